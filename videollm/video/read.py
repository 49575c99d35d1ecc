"""A path and a sampling rule -> ``Frames``: the chosen frames and the seconds at which they are really shown.

Which frames those are, sampling.py says; decode.py finds them in the file. Frame indices stay in this room: everybody
else sees seconds. It must not know models, preprocessing numbers or annotations.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import av
import numpy as np
from PIL import Image

from videollm.video.budget import SizeError
from videollm.video.decode import VideoError, VideoFile, VideoInfo, get_backend, video_error
from videollm.video.names import ONLY_FILES, as_url, spellings, unusable
from videollm.video.picture import upright_rgb
from videollm.video.sampling import Sampler, kept_places

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class Frames:
    """Chosen frames of one video, in order of time.

    ``pixels`` is uint8 [F, H, W, 3], or what the caller's ``resize`` makes of each frame (CLIP-style resizing gives
    float32 [F, 3, S, S] in 0..1, since rounding to grey levels would change the numbers). ``times_s`` float64 [F] are
    true times of the frames shown. ``damaged`` counts frames that could not be decoded and were replaced by the nearest
    that could.
    Where not all chosen frames were wanted, ``places`` [F] says which of the ``chosen`` ones these are.
    """

    pixels: "Tensor"
    times_s: np.ndarray
    duration_s: float
    path: str
    damaged: int = 0
    places: np.ndarray | None = None
    chosen: int = 0


def read_video(
    path: str | Path,
    sampler: Sampler,
    *,
    resize: Callable[[np.ndarray, int], np.ndarray] | None = None,
    backend: str = "pyav",
    rng: Random | None = None,
    window_s: tuple[float, float] | None = None,
    limits: Sequence[int] = (),
) -> Frames:
    """Decode the frames that ``sampler`` chooses, each at most once; with ``limits`` those of ``kept_places``.

    ``resize`` maps one RGB frame (uint8 [H, W, 3]) and the number of frames that the sampler chose to an array of fixed
    shape, and is applied as frames are decoded, so that full-size frames are never held together. Damaged frames are
    replaced by the nearest decodable one (its own time is reported). Raises ``VideoError``, also where more than half
    of the chosen frames cannot be decoded.
    """
    decode = get_backend(backend)
    with VideoFile(path) as file:
        chosen, places, count = choose(sampler, file.info, rng, window_s, limits)
        wanted, place = np.unique(chosen, return_inverse=True)
        shown = np.full(len(wanted), -1)
        pixels: np.ndarray | None = None  # [U, H, W, 3]
        for i, found in enumerate(decode(file, wanted)):
            if found is None:
                continue
            shown[i], frame = found
            frame = frame if resize is None else resized(path, resize, frame, count)
            if pixels is None:
                pixels = np.empty((len(wanted), *frame.shape), frame.dtype)
            if frame.shape != pixels.shape[1:]:
                problem = f"frame {shown[i]} has shape {frame.shape}, the frames before it {pixels.shape[1:]}"
                raise video_error(path, problem, "resize the frames, or mend it: ffmpeg -i IN -vf scale=W:H OUT.mp4")
            pixels[i] = frame
    good = np.flatnonzero(shown >= 0)
    damaged = int((shown[place] != chosen).sum())
    if pixels is None or damaged > len(chosen) / 2:
        problem = f"{damaged} of the {len(chosen)} chosen frames cannot be decoded"
        raise video_error(path, problem, "fetch it again or leave it out")
    nearest = good[np.abs(good - np.arange(len(wanted))[:, None]).argmin(1)]  # [U] row that stands in for each
    rows = nearest[place]
    rows = rows[np.argsort(shown[rows], kind="stable")]  # stand-ins of a damaged stretch may overtake what follows
    if not np.array_equal(rows, np.arange(len(wanted))):
        pixels = pixels[rows]
    times_s = sampler.times_s(file.info, shown[rows])
    return Frames(as_tensor(pixels), times_s, file.info.duration_s, str(path), damaged, places, count)


def as_tensor(array: np.ndarray) -> "Tensor":
    """The same memory as a tensor; torch is loaded here, for annotations are read without it."""
    import torch

    return torch.from_numpy(array)


def choose(
    sampler: Sampler, info: VideoInfo, rng: Random | None, window_s: tuple[float, float] | None, limits: Sequence[int]
) -> tuple[np.ndarray, np.ndarray, int]:
    """Indices of the frames that are wanted, which of the sampler's these are, and how many it chose."""
    chosen = sampler.indices(info, rng, window_s)
    places = kept_places(len(chosen), limits)
    return chosen[places], places, len(chosen)


def resized(path: str | Path, resize: Callable[[np.ndarray, int], np.ndarray], frame: np.ndarray, count: int):
    """``resize(frame, count)``; a frame that has no size is a ``VideoError`` of this video."""
    try:
        return resize(frame, count)
    except SizeError as error:
        raise VideoError(f"{path}: {error}") from None


def read_image(path: str | Path) -> Frames:
    """One picture as a single frame: uint8 [1, H, W, 3] upright RGB, time 0, duration 0. Raises ``VideoError``."""
    if wrong := unusable(Path(path)):
        raise video_error(path, *wrong)
    try:
        with Image.open(path) as image:
            image.load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise video_error(path, f"is not a readable image ({error})", "fetch it again or convert it") from error
    try:
        rgb = upright_rgb(image)
    except ValueError as error:
        raise video_error(path, f"cannot be shown: {error}", "convert it to 8-bit grey or RGB") from error
    return Frames(as_tensor(rgb)[None], np.zeros(1), 0.0, str(path))


def stored_shape(path: str | Path) -> tuple[int, int] | None:
    """Height and width of a video file or picture as it lies in the file, turned or not; None where no header says so.

    Nothing is decoded.
    """
    try:
        with av.open(as_url(path), options=ONLY_FILES, metadata_errors="replace") as container:
            stream = container.streams.video[0]
            return (stream.height, stream.width) if stream.height and stream.width else None
    except (av.FFmpegError, OSError, ValueError, IndexError):
        return None


def safe_join(root: str | Path, relative: str | Path) -> Path:
    """``root / relative``; a path that leads out of ``root`` by its name ('..', absolute) is a ``VideoError``.

    Links below the root may lead anywhere: annotations cannot make them, and the Hub's cache is made of them. Where
    nothing has that name, one is taken that differs only as systems spell names (backslashes, NFC and NFD).
    """
    for spelling in spellings(str(relative)):
        inside = os.path.normpath(spelling)
        if os.path.isabs(spelling) or inside.split(os.sep)[0] == ".." or inside == ".":
            raise video_error(
                relative, f"is not inside the root {root}", "give a relative path to a file below the root"
            )
        joined = Path(root, inside)
        try:
            joined.lstat()
            return joined
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (ValueError, OSError) as error:  # null byte, name too long
            problem = f"is not a usable path ({error})"
            raise video_error(repr(str(relative)), problem, "correct the annotation") from error
    return Path(root, os.path.normpath(relative))
