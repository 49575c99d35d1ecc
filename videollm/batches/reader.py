"""Reads the visuals of a record as the model wants them: from files, stored frames or stored features.

In: a name below the root of the videos, and what of it is looked at. Out: pixels or features, times in seconds, and the
duration. A decoder that hangs costs its video, not the worker. Knows no prompt and no network.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from videollm.common.config import ConfigError
from videollm.common.isolate import Isolated, Stopped
from videollm.data import Record
from videollm.video.decode import VideoError, video_error
from videollm.video.folder import open_folder, read_frame_folder
from videollm.video.preprocess import Preprocess, each, through_jpeg, tile
from videollm.video.read import Frames, read_image, read_video, resized, safe_join, stored_shape
from videollm.video.sampling import Sampler
from videollm.video.store import FrameStore
from videollm.video.view import WHOLE, View


@dataclass
class Seen:
    """A video as the reader gives it, F frames of the ``chosen`` ones that the sampler chose.

    ``pixels``: uint8 [F, S, S, 3], or float32 [F, C, S, S] as the tower takes them, where the resizing gives no whole
    grey levels; ``features`` [F, P, Dv] in place of them where they are stored. ``places`` [F] says which of the chosen
    frames these are; both None: all.
    """

    pixels: Tensor | None
    features: Tensor | None
    times_s: np.ndarray
    duration_s: float
    places: np.ndarray | None = None
    chosen: int | None = None

    def __post_init__(self):
        if self.places is None:
            self.places, self.chosen = np.arange(len(self.times_s)), len(self.times_s)


@dataclass
class VisualReader:
    """Reads the visuals of a record as the model wants them, from files or from stored features.

    ``stored`` maps a relative video path to ``(features [F, P, Dv], times_s [F], duration_s)`` or None.
    """

    root: Path
    sampler: Sampler
    preprocess: Preprocess
    backend: str = "pyav"
    max_tiles: int = 1
    stored: Callable[[str], tuple[Tensor, np.ndarray, float] | None] | None = None
    frames: FrameStore | None = None  # decoded frames to read instead of video files
    timeout_s: float | None = None  # that decoding a video may take in a data worker
    last: tuple | None = field(default=None, repr=False)  # the newest video, where its frames are fixed
    child: Isolated | None = field(default=None, repr=False)  # decodes for this worker

    @property
    def fixed(self) -> bool:
        """Whether a video always gives the same frames."""
        return self.sampler.pick != "random" and not self.preprocess.random_crop

    def video(self, name: str, rng: random.Random | None, view: View = WHOLE, limits: Sequence[int] = ()) -> Seen:
        """A video; its times are those of the whole.

        ``limits``: to how many frames each of those who ask would thin them; only what one of them keeps is decoded
        (of stored features all is given, and of frames that are seen with the one before them). Questions about one
        video mostly stand together, so the newest one is kept, unless its frames are drawn.
        """
        limits = () if self.preprocess.frame_difference else limits
        key = (name, view, self.stored, limits)
        if self.last is None or self.last[0] != key:
            self.last = None  # two videos are never held together
            try:
                found = self._video(name, rng, view, limits)
            except VideoError as error:
                found = error
            self.last = (key, found)
        found = self.last[1]
        if not self.fixed or view.jpeg:
            self.last = None
        if isinstance(found, VideoError):
            raise found
        return found

    def _video(self, name: str, rng: random.Random | None, view: View, limits: Sequence[int]) -> Seen:
        found = self.stored(name) if self.stored and view == WHOLE else None
        if found is not None:
            return Seen(None, *found)
        frames = self.frames(name, limits) if self.frames is not None and view == WHOLE else None
        if frames is None:
            frames = self._in_time(name, rng, view, limits)
        elif not self.frames.resized:
            frames.pixels = each(self.preprocess.while_decoding(rng), frames.pixels)
        pixels = self.preprocess.before_device(frames.pixels)
        return Seen(pixels, None, frames.times_s, frames.duration_s, frames.places, frames.chosen)

    def _in_time(self, name: str, rng: random.Random | None, view: View, limits: Sequence[int]) -> Frames:
        """``decode``; in a data worker by a child of it, so that a decoder that hangs or crashes is one bad video."""
        if self.timeout_s is None or get_worker_info() is None:
            return self.decode(name, rng, view, limits)
        if self.child is None:
            self.child = Isolated(self._decode_arrays, self.timeout_s)
        try:
            frames = self.child(name, rng, view, limits)
        except Stopped as error:
            problem = f"its decoder {error}"
            raise video_error(name, problem, "raise data.decode_timeout_s, or mend it: ffmpeg -i IN OUT.mp4") from None
        return replace(frames, pixels=torch.from_numpy(frames.pixels))

    def _decode_arrays(self, name: str, rng: random.Random | None, view: View, limits: Sequence[int]) -> Frames:
        frames = self.decode(name, rng, view, limits)
        return replace(frames, pixels=frames.pixels.numpy())

    def decode(self, name: str, rng: random.Random | None, view: View, limits: Sequence[int] = ()) -> Frames:
        """The frames of a video file or folder, after the first stage of the preprocessing."""
        path, resize = safe_join(self.root, name), self.preprocess.while_decoding(rng, view.jpeg)
        options = {"resize": resize, "rng": rng, "window_s": view.bound_s, "limits": limits}
        if view.frames:
            return read_frame_folder(path, view.frames, self.sampler, **options)
        return read_video(path, self.sampler, backend=self.backend, **options)

    def shape(self, name: str, view: View = WHOLE) -> tuple[int, int] | None:
        """Height and width of a video as it is stored, by its header alone; None where that cannot be read."""
        try:
            path = safe_join(self.root, name)
            return stored_shape(open_folder(path, view.frames)[1][0] if view.frames else path)
        except VideoError:
            return None

    def images(
        self, names: Sequence[str], jpeg: random.Random | None = None, max_tiles: int | None = None
    ) -> tuple[Tensor | list[Tensor], list[int]]:
        """Pixels of all images' tiles, and the number of tiles of each; ``jpeg`` draws every tile's quality.

        Images that keep their own sizes are one tile each, in a list.
        """
        limit = max(1, (max_tiles or self.max_tiles) // len(names))
        limit = 1 if self.preprocess.dynamic else limit
        tiles = [self._tiles(read_image(safe_join(self.root, name)), limit, jpeg) for name in names]
        alike = len({t.shape[1:] for t in tiles}) == 1
        return torch.cat(tiles) if alike else tiles, [len(t) for t in tiles]

    def _tiles(self, image: Frames, limit: int, jpeg: random.Random | None) -> Tensor:
        """One image as tiles, [T, S, S, 3] or [T, C, S, S] as ``Seen.pixels``; one tile is the whole image."""
        pixels = image.pixels[0].numpy()
        if limit == 1:
            resize = self.preprocess.while_decoding(jpeg, jpeg=jpeg is not None, image=True)
            made = resized(image.path, resize, pixels, 1)
            return self.preprocess.before_device(torch.as_tensor(np.array(made))[None])
        tiles = tile(pixels, limit, self.preprocess.size)
        if jpeg is not None:
            tiles = torch.from_numpy(np.stack([through_jpeg(t, jpeg) for t in tiles.numpy()]))
        return self.preprocess.before_device(tiles)


def open_store(folder: str | Path, reader: VisualReader, records: Sequence[Record]) -> None:
    """Let ``reader`` take frames from the store; ConfigError where it does not fit or holds none of the videos."""
    store = FrameStore(folder, reader.sampler, reader.preprocess)
    names = {record.video for record in records if record.video is not None}
    if names and not names & store.where.keys():
        raise ConfigError(
            f"data.frames: {folder} holds none of the {len(names)} videos, such as {min(names)}; build it with these "
            "annotations and this folder of videos"
        )
    reader.frames = store
