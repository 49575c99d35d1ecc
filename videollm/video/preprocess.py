"""Pictures -> what a vision tower takes, in stages: while decoding (one RGB frame at a time), after, on the device.

Whole grey levels stay bytes up to the device. What the resizing makes floats of is rounded nowhere and kept once.

CLIP-style frames are resized by torch in float, InternVL-style ones by PIL to uint8, those of the Qwen-VL towers by
torch in bytes (their images by PIL); these differ by a few grey levels, so each tower gets the resizing it was trained
with. Knows nothing of files, times or models.
"""

import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from videollm.common.config import later
from videollm.video.budget import RELEASED, TEMPORAL, Budget, shared_limit, smart_resize

if TYPE_CHECKING:  # torch is loaded where pixels come: settings are read without it
    from torch import Tensor

# kind -> (mean, std) of its towers: ImageNet, CLIP, and a plain map of 0..1 to -1..1
_CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
_PLAIN = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
NORMALISATION = {
    "internvl": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "clip": _CLIP,
    "plain": _PLAIN,
    "qwen2_5_vl": _CLIP,
    "qwen3_vl": _PLAIN,
}
LIMITS = ("budget", "min_pixels", "max_pixels", "image_min_pixels", "image_max_pixels", "total_pixels")
SIZING = ("factor", "budget", "min_pixels", "max_pixels", "total_pixels")  # fields that decide on a frame's size
Resize = Callable[..., np.ndarray]  # (RGB frame [H, W, 3], frames that are chosen of its video = 1) -> the frame made
JPEG_QUALITY = (75, 100)  # of ``data_augment``, both ends drawn
CROP_AREA = (0.8, 1.0)  # share of the largest square that a random crop keeps


@dataclass(frozen=True)
class Preprocess:
    """How frames become tower inputs. Field values are checked; errors name the field.

    kind ``internvl`` and ``plain``: PIL bicubic to size x size, aspect ratio not kept. kind ``clip``:
    shorter edge to ``size`` in float (bilinear, antialiased), centre square (E.T. Chat). ``mean`` and ``std``
    default to the kind's own. ``frame_difference`` appends each frame's change since the frame before it as three more
    channels (zeros for the first). ``random_crop`` (clip) trains on a random square instead of the centre.

    kinds ``qwen2_5_vl`` and ``qwen3_vl``: dynamic resolution, sides in multiples of ``factor``, within limits of pixels
    (budget.py). ``min_pixels`` and ``max_pixels`` are for each frame or for the whole video, as ``budget`` says;
    ``total_pixels`` limits a video whose budget is that of each frame. What is None is as released for the kind;
    ``size`` says nothing.
    """

    kind: str = "internvl"
    size: int = 448
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    frame_difference: bool = False
    random_crop: bool = False
    factor: int | None = later(None)
    budget: Budget | None = later(None)
    min_pixels: int | None = later(None)
    max_pixels: int | None = later(None)
    total_pixels: int | None = later(None)
    image_min_pixels: int | None = later(None)
    image_max_pixels: int | None = later(None)

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
        self._check_limits()

    def _check_limits(self) -> None:
        """Fill in what the kind's processor does, or refuse limits that the kind does not have or nothing can keep."""
        limits = ("factor", *LIMITS)
        if not self.dynamic:
            if given := [name for name in limits if getattr(self, name) is not None]:
                raise ValueError(f"Preprocess.{given[0]} is for kind {' or '.join(RELEASED)}, not {self.kind!r}")
            return
        for name in limits[:-1]:
            if getattr(self, name) is None:
                object.__setattr__(self, name, getattr(RELEASED[self.kind], name))
            elif name != "budget" and getattr(self, name) < 1:
                raise ValueError(f"Preprocess.{name} must be a whole number >= 1, not {getattr(self, name)!r}")
        if self.frame_difference:
            raise ValueError(f"Preprocess.frame_difference is for frames of one size, not for kind {self.kind!r}")
        if self.total_pixels is not None and self.budget == "video":
            raise ValueError("Preprocess.total_pixels is for budget frame; max_pixels is the whole video's already")
        least = {"max_pixels": TEMPORAL if self.budget == "video" else 1, "image_max_pixels": 1, "total_pixels": 1}
        for name, frames in least.items():
            value, token = getattr(self, name), frames * self.factor**2
            if value is not None and value < token:
                raise ValueError(f"Preprocess.{name} is {value}, less than one visual token ({token} pixels); raise it")
        for kind in ("", "image_"):
            low, high = getattr(self, f"{kind}min_pixels"), getattr(self, f"{kind}max_pixels")
            if low > high:
                raise ValueError(f"Preprocess.{kind}min_pixels is {low}, over {kind}max_pixels {high}; lower it")

    @property
    def dynamic(self) -> bool:
        """Whether frames keep their shape and each video has a size of its own."""
        return self.kind in RELEASED

    @property
    def sizing(self) -> int | dict:
        """What decides at which size the frames of videos are seen, as JSON."""
        return {name: getattr(self, name) for name in SIZING} if self.dynamic else self.size

    def frame_size(self, height: int, width: int, frames: int) -> tuple[int, int]:
        """(height, width) at which a video of ``frames`` chosen frames is seen. Raises ``SizeError``."""
        if not self.dynamic:
            return self.size, self.size
        if self.budget == "video":
            return smart_resize(height, width, self.factor, self.min_pixels, self.max_pixels, frames)
        limit = shared_limit(self.min_pixels, self.max_pixels, self.total_pixels, frames)
        return smart_resize(height, width, self.factor, self.min_pixels, limit)

    def image_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) at which an image is seen. Raises ``SizeError``."""
        if not self.dynamic:
            return self.size, self.size
        return smart_resize(height, width, self.factor, self.image_min_pixels, self.image_max_pixels)

    @property
    def channels(self) -> int:
        """Channels of the result: 3, or 6 with ``frame_difference``."""
        return 6 if self.frame_difference else 3

    def while_decoding(self, rng: Random | None = None, jpeg: bool = False, image: bool = False) -> Resize:
        """The first stage, for ``read_video(resize=...)``, of RGB uint8 [H, W, 3]; ``image``: of an image.

        -> uint8 [S, S, 3] for ``internvl`` and ``plain``, float32 [3, S, S] in 0..1 for ``clip``, uint8 [h, w, 3] of
        ``frame_size`` or ``image_size`` for the rest. With ``random_crop`` and an ``rng``, one crop is drawn here and
        holds for all frames; without ``rng`` (evaluation) the centre is used. ``jpeg`` puts every frame through JPEG of
        a quality drawn from ``rng`` first.
        """
        if jpeg:
            resize = self.while_decoding(rng, image=image)
            return lambda frame, frames=1: resize(through_jpeg(frame, rng), frames)
        if self.dynamic and not image:
            return self._resize_bytes
        if self.kind != "clip":
            return self._resize_pil
        if not (self.random_crop and rng is not None):
            return self._resize_clip
        crop = (math.sqrt(rng.uniform(*CROP_AREA)), rng.random(), rng.random())
        return lambda frame, frames=1: self._resize_clip(_crop_square(frame, *crop))

    def __call__(self, pixels: "Tensor") -> "Tensor":
        """All that is behind the first stage: its frames -> normalised float32 [F, channels, S, S].

        uint8 frames [F, H, W, 3] that are not S x S yet go through the first stage here. Floats are normalised in
        place. Raises ``ValueError`` for other shapes.
        """
        return self.on_device(self.before_device(pixels))

    def before_device(self, pixels: "Tensor") -> "Tensor":
        """The second stage, frames of one video -> what travels to the device; arguments and errors as of a call.

        uint8 [F, S, S, 3], or [F, S, S, 6] with each frame's predecessor behind it, so that frames may be left out;
        ``clip``: float32 [F, channels, S, S], finished. Of dynamic resolution: uint8 [F, h, w, 3] as they come.
        """
        import torch

        if self.dynamic:
            if pixels.dtype != torch.uint8 or pixels.ndim != 4 or any(side % self.factor for side in pixels.shape[1:3]):
                wanted = f"uint8 [F, h, w, 3] with sides in multiples of {self.factor}"
                raise ValueError(f"frames must be {wanted}, not {pixels.dtype} {list(pixels.shape)}")
            return pixels
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

    def on_device(self, pixels: "Tensor") -> "Tensor":
        """The last stage, frames of any videos: what ``before_device`` made -> float32 [F, channels, S, S]."""
        import torch

        if pixels.is_floating_point():
            return pixels
        x = self._normalised(pixels)
        if self.frame_difference:
            torch.sub(x[:, :3], x[:, 3:], out=x[:, 3:])
        return x

    def _normalised(self, pixels: "Tensor") -> "Tensor":
        """uint8 [F, S, S, 3 n], or float [F, 3 n, S, S] in 0..1, which is changed -> float32 [F, 3 n, S, S]."""
        import torch

        x = pixels
        if not x.is_floating_point():
            x = x.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
            x /= x.new_tensor(255.0)  # a tensor: a GPU would multiply by the rounded inverse of a plain number
        x.unflatten(1, (-1, 3)).sub_(x.new_tensor(self.mean).view(3, 1, 1)).div_(x.new_tensor(self.std).view(3, 1, 1))
        return x

    def _resize_pil(self, frame: np.ndarray, frames: int = 1) -> np.ndarray:
        height, width = self.image_size(*frame.shape[:2])
        if frame.shape[:2] == (height, width):
            return frame
        return np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC))

    def _resize_bytes(self, frame: np.ndarray, frames: int = 1) -> np.ndarray:
        import torch

        size = self.frame_size(*frame.shape[:2], frames)
        if frame.shape[:2] == size:
            return frame
        x = torch.from_numpy(frame).permute(2, 0, 1)[None]
        return (
            torch.nn.functional.interpolate(x, size, mode="bicubic", antialias=True)[0]
            .permute(1, 2, 0)
            .contiguous()
            .numpy()
        )

    def _resize_clip(self, frame: np.ndarray, frames: int = 1) -> np.ndarray:
        import torch

        height, width = frame.shape[:2]
        short = min(height, width)
        target = (int(self.size * height / short), int(self.size * width / short))
        x = torch.from_numpy(frame).permute(2, 0, 1)[None].to(torch.float32, memory_format=torch.contiguous_format)
        x = torch.nn.functional.interpolate(x / 255, size=target, mode="bilinear", antialias=True, align_corners=False)
        top, left = ((edge - self.size) // 2 for edge in target)
        x = x[0, :, top : top + self.size, left : left + self.size]
        return x.numpy()  # [3, S, S]


def each(resize: Resize, frames: "Tensor") -> "Tensor":
    """Frames [F, H, W, 3] through a first stage, one after the other into one piece of memory."""
    import torch

    made: Tensor | None = None
    for i, frame in enumerate(frames.numpy()):
        small = resize(frame, len(frames))
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
    """(columns, rows) whose shape is nearest to the picture's, with at most ``max_tiles`` tiles.

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


def tile(image: Image.Image | np.ndarray, max_tiles: int, size: int, thumbnail: bool = True) -> "Tensor":
    """InternVL's dynamic tiling: uint8 [T, size, size, 3], tiles row by row, then the thumbnail where T > 1."""
    import torch

    image = (Image.fromarray(image) if isinstance(image, np.ndarray) else image).convert("RGB")
    columns, rows = tile_grid(*image.size, max_tiles, size)
    whole = np.asarray(image.resize((columns * size, rows * size), Image.Resampling.BICUBIC))
    tiles = whole.reshape(rows, size, columns, size, 3).swapaxes(1, 2).reshape(-1, size, size, 3)
    if thumbnail and len(tiles) > 1:
        small = np.asarray(image.resize((size, size), Image.Resampling.BICUBIC))
        tiles = np.concatenate([tiles, small[None]])
    return torch.from_numpy(np.array(tiles))
