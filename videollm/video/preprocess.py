"""Pictures -> what a vision tower takes, in stages: while decoding (one RGB frame at a time), after, on the device.

Whole grey levels stay bytes up to the device. What the resizing makes floats of is rounded nowhere and kept once.

CLIP-style frames are resized by torch in float, InternVL-style ones by PIL to uint8; the two differ by one or two grey
levels, so each tower gets the resizing it was trained with. Knows nothing of files, times or models.
"""

import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

# kind -> (mean, std) of its towers: ImageNet, CLIP, and a plain map of 0..1 to -1..1
NORMALISATION = {
    "internvl": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "plain": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
JPEG_QUALITY = (75, 100)  # of ``data_augment``, both ends drawn
CROP_AREA = (0.8, 1.0)  # share of the largest square that a random crop keeps


@dataclass(frozen=True)
class Preprocess:
    """How frames become tower inputs. Field values are checked; errors name the field.

    kind ``internvl`` and ``plain``: PIL bicubic to size x size, aspect ratio not kept (DISTIME.md §4). kind ``clip``:
    shorter edge to ``size`` in float (bilinear, antialiased), centre square (D2VLM.md §2.4). ``mean`` and ``std``
    default to the kind's own. ``frame_difference`` appends each frame's change since the frame before it as three more
    channels (zeros for the first). ``random_crop`` (clip) trains on a random square instead of the centre.
    """

    kind: str = "internvl"
    size: int = 448
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    frame_difference: bool = False
    random_crop: bool = False

    def __post_init__(self):
        if self.kind not in NORMALISATION:
            raise ValueError(f"Preprocess.kind must be one of {', '.join(NORMALISATION)}, not {self.kind!r}")
        if not isinstance(self.size, int) or self.size < 1:
            raise ValueError(f"Preprocess.size must be a whole number of pixels >= 1, not {self.size!r}")
        if self.random_crop and self.kind != "clip":
            raise ValueError(f"Preprocess.random_crop is for kind clip, not {self.kind!r}")
        for name, default in zip(("mean", "std"), NORMALISATION[self.kind], strict=True):
            value = default if getattr(self, name) is None else tuple(getattr(self, name))
            if len(value) != 3 or not all(math.isfinite(v) and (name == "mean" or v > 0) for v in value):
                raise ValueError(f"Preprocess.{name} must be three finite numbers (std > 0), not {value!r}")
            object.__setattr__(self, name, value)

    @property
    def channels(self) -> int:
        """Channels of the result: 3, or 6 with ``frame_difference``."""
        return 6 if self.frame_difference else 3

    def while_decoding(self, rng: Random | None = None, jpeg: bool = False) -> Callable[[np.ndarray], np.ndarray]:
        """The first stage, for ``read_video(resize=...)``, of RGB uint8 [H, W, 3].

        -> uint8 [S, S, 3] for ``internvl`` and ``plain``; float32 [3, S, S] in 0..1 for ``clip``. With ``random_crop``
        and an ``rng``, one crop is drawn here and holds for all frames; without ``rng`` (evaluation) the centre is
        used. ``jpeg`` puts every frame through JPEG of a quality drawn from ``rng`` first (DISTIME.md §4).
        """
        if jpeg:
            resize = self.while_decoding(rng)
            return lambda frame: resize(through_jpeg(frame, rng))
        if self.kind != "clip":
            return self._resize_pil
        if not (self.random_crop and rng is not None):
            return self._resize_clip
        crop = (math.sqrt(rng.uniform(*CROP_AREA)), rng.random(), rng.random())
        return lambda frame: self._resize_clip(_crop_square(frame, *crop))

    def __call__(self, pixels: Tensor) -> Tensor:
        """All that is behind the first stage: its frames -> normalised float32 [F, channels, S, S].

        uint8 frames [F, H, W, 3] that are not S x S yet go through the first stage here. Floats are normalised in
        place. Raises ``ValueError`` for other shapes.
        """
        return self.on_device(self.before_device(pixels))

    def before_device(self, pixels: Tensor) -> Tensor:
        """The second stage, frames of one video -> what travels to the device; arguments and errors as of a call.

        uint8 [F, S, S, 3], or [F, S, S, 6] with each frame's predecessor behind it, so that frames may be left out;
        ``clip``: float32 [F, channels, S, S], finished.
        """
        floats, square = pixels.is_floating_point(), (self.size, self.size)
        if pixels.ndim != 4 or (pixels.shape[1:] != (3, *square) if floats else pixels.shape[-1] != 3):
            wanted = f"uint8 [F, H, W, 3] or float [F, 3, {self.size}, {self.size}]"
            raise ValueError(f"frames must be {wanted}, not {pixels.dtype} {list(pixels.shape)}")
        if not floats and pixels.shape[1:3] != square:
            pixels = each(self.while_decoding(), pixels)
        before = [0, *range(len(pixels) - 1)] if self.frame_difference else []
        if self.kind != "clip":
            return torch.cat([pixels, pixels[before]], dim=-1) if before else pixels
        x = self._normalised(pixels)
        return torch.cat([x, x - x[before]], dim=1) if before else x

    def on_device(self, pixels: Tensor) -> Tensor:
        """The last stage, frames of any videos: what ``before_device`` made -> float32 [F, channels, S, S]."""
        if pixels.is_floating_point():
            return pixels
        x = self._normalised(pixels)
        if self.frame_difference:
            torch.sub(x[:, :3], x[:, 3:], out=x[:, 3:])
        return x

    def _normalised(self, pixels: Tensor) -> Tensor:
        """uint8 [F, S, S, 3 n], or float [F, 3 n, S, S] in 0..1, which is changed -> float32 [F, 3 n, S, S]."""
        x = pixels
        if not x.is_floating_point():
            x = x.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
            x /= x.new_tensor(255.0)  # a tensor: a GPU would multiply by the rounded inverse of a plain number
        x.unflatten(1, (-1, 3)).sub_(x.new_tensor(self.mean).view(3, 1, 1)).div_(x.new_tensor(self.std).view(3, 1, 1))
        return x

    def _resize_pil(self, frame: np.ndarray) -> np.ndarray:
        if frame.shape[:2] == (self.size, self.size):
            return frame
        return np.asarray(Image.fromarray(frame).resize((self.size, self.size), Image.Resampling.BICUBIC))

    def _resize_clip(self, frame: np.ndarray) -> np.ndarray:
        height, width = frame.shape[:2]
        short = min(height, width)
        target = (int(self.size * height / short), int(self.size * width / short))
        x = torch.from_numpy(frame).permute(2, 0, 1)[None].to(torch.float32, memory_format=torch.contiguous_format)
        x = F.interpolate(x / 255, size=target, mode="bilinear", antialias=True, align_corners=False)
        top, left = ((edge - self.size) // 2 for edge in target)
        x = x[0, :, top : top + self.size, left : left + self.size]
        return x.numpy()  # [3, S, S]


def each(resize: Callable[[np.ndarray], np.ndarray], frames: Tensor) -> Tensor:
    """Frames [F, H, W, 3] through a first stage, one after the other into one piece of memory."""
    made: Tensor | None = None
    for i, frame in enumerate(frames.numpy()):
        small = resize(frame)
        if made is None:
            made = torch.from_numpy(np.empty((len(frames), *small.shape), small.dtype))
        made.numpy()[i] = small
    return made


def through_jpeg(frame: np.ndarray, rng: Random) -> np.ndarray:
    """RGB uint8 [H, W, 3] as JPEG of a quality drawn from ``JPEG_QUALITY`` leaves it."""
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "JPEG", quality=rng.randint(*JPEG_QUALITY))
    return np.asarray(Image.open(buffer))


def _crop_square(frame: np.ndarray, share: float, down: float, right: float) -> np.ndarray:
    """A square with ``share`` of the shorter edge; ``down`` and ``right`` in 0..1 place it in the frame."""
    height, width = frame.shape[:2]
    side = max(1, round(min(height, width) * share))
    top, left = round((height - side) * down), round((width - side) * right)
    return np.ascontiguousarray(frame[top : top + side, left : left + side])


def tile_grid(width: int, height: int, max_tiles: int, size: int) -> tuple[int, int]:
    """(columns, rows) whose shape is nearest to the picture's, with at most ``max_tiles`` tiles (DISTIME.md §4).

    On an exact tie the larger grid wins if the picture has more than half of its pixels.
    """
    if min(width, height, max_tiles, size) < 1:
        raise ValueError(f"width, height, max_tiles and size must be >= 1, not {(width, height, max_tiles, size)}")
    grids = [(c, r) for c in range(1, max_tiles + 1) for r in range(1, max_tiles // c + 1)]
    best, best_gap = (1, 1), math.inf
    for columns, rows in sorted(grids, key=lambda grid: grid[0] * grid[1]):
        gap = abs(width / height - columns / rows)
        if gap < best_gap or (gap == best_gap and width * height > 0.5 * size * size * columns * rows):
            best, best_gap = (columns, rows), gap
    return best


def tile(image: Image.Image | np.ndarray, max_tiles: int, size: int, thumbnail: bool = True) -> Tensor:
    """InternVL's dynamic tiling: uint8 [T, size, size, 3], tiles row by row, then the thumbnail where T > 1."""
    image = (Image.fromarray(image) if isinstance(image, np.ndarray) else image).convert("RGB")
    columns, rows = tile_grid(*image.size, max_tiles, size)
    whole = np.asarray(image.resize((columns * size, rows * size), Image.Resampling.BICUBIC))
    tiles = whole.reshape(rows, size, columns, size, 3).swapaxes(1, 2).reshape(-1, size, size, 3)
    if thumbnail and len(tiles) > 1:
        small = np.asarray(image.resize((size, size), Image.Resampling.BICUBIC))
        tiles = np.concatenate([tiles, small[None]])
    return torch.from_numpy(np.array(tiles))
