"""A video that is stored as a folder of pictures -> ``Frames``, as if it were a file.

In: the folder, frames a second and the lowest number; which of the pictures are looked at is the sampler's choice, as
for any video. Picture number n is shown at n / fps seconds, as the published evaluation counts, so
that a folder numbered from 1 begins one frame late. No models, preprocessing numbers or annotations.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

import numpy as np

from videollm.video.decode import VideoInfo, video_error
from videollm.video.names import unusable
from videollm.video.read import Frames, as_tensor, choose, read_image, resized
from videollm.video.sampling import Sampler
from videollm.video.view import FrameFolder

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
_NUMBER = re.compile(r"(\d+)$")


def read_frame_folder(
    path: str | Path,
    stored: FrameFolder,
    sampler: Sampler,
    *,
    resize: Callable[[np.ndarray, int], np.ndarray] | None = None,
    rng: Random | None = None,
    window_s: tuple[float, float] | None = None,
    limits: Sequence[int] = (),
) -> Frames:
    """The pictures that ``sampler`` chooses, each read once; arguments and errors as of ``read_video``."""
    info, files = open_folder(path, stored)
    chosen, places, count = choose(sampler, info, rng, window_s, limits)
    wanted, place = np.unique(chosen, return_inverse=True)
    keep = resize or (lambda picture, _: picture)
    pictures = [resized(path, keep, read_image(files[i]).pixels[0].numpy(), count) for i in wanted.tolist()]
    shapes = {picture.shape for picture in pictures}
    if len(shapes) > 1:
        raise video_error(path, f"holds pictures of different shapes {sorted(shapes)}", "give them one size")
    pixels = np.stack([pictures[i] for i in place])  # [F, ...]
    times_s = sampler.times_s(info, chosen)
    return Frames(as_tensor(pixels), times_s, info.duration_s, str(path), places=places, chosen=count)


def open_folder(path: str | Path, stored: FrameFolder) -> tuple[VideoInfo, list[Path]]:
    """The timeline of a folder and its pictures in order. Raises ``VideoError``: no folder, no pictures, or a gap."""
    path = Path(path)
    if wrong := unusable(path, folder=True):
        raise video_error(path, f"{wrong[0]}, but its frames should be in it", wrong[1])
    found: dict[int, Path] = {}
    for file in sorted(path.iterdir()):
        if file.suffix.lower() not in SUFFIXES:
            continue
        number = _NUMBER.search(file.stem)
        if number is None or int(number[1]) in found:
            raise video_error(file, "has no number of its own as name", "name the frames 00001.jpg, 00002.jpg, ...")
        found[int(number[1])] = file
    if not found:
        raise video_error(path, "holds no picture", f"put its frames there ({', '.join(SUFFIXES)})")
    last = max(found)
    absent = next((n for n in range(min(stored.first, *found), last + 1) if n not in found), None)
    if absent is not None or min(found) < stored.first:
        problem = f"starts with frame {min(found)}" if absent is None else f"has no frame {absent}"
        raise video_error(path, f"{problem}, but they count from {stored.first} to {last}", "fetch it again")
    files = [found[n] for n in sorted(found)]
    pts_s = np.arange(stored.first, last + 1) / stored.fps  # [N]
    _, height, width, _ = read_image(files[0]).pixels.shape
    return VideoInfo(str(path), len(files) / stored.fps, stored.fps, len(files), width, height, pts_s), files
