"""How large a frame is made, so that it, or its whole video, keeps to a budget of pixels.

In: height and width of a frame, the number of frames, limits. Out: the size at which the towers of dynamic resolution
see it, a multiple of the side of one visual token. The arithmetic is that of the released processors, with their even
rounding and their order of checks (golden/backbones). It knows sizes alone, no pictures.
"""

import math
from dataclasses import dataclass
from typing import Literal

from videollm.video.timeline import VideoError

MOST_OBLONG = 200  # released: the longer side may be so many times the shorter one
TEMPORAL = 2  # frames that a temporal patch takes, in all released models
SPARE = 1.05  # released: what a frame may have of a video's total, it never falls below its least by less than this

Budget = Literal["frame", "video"]


class SizeError(VideoError):
    """A frame that cannot be brought to any size; the message is what is wrong and the remedy, without a path."""


@dataclass(frozen=True)
class Released:
    """What the processor of a family does; limits are pixels."""

    factor: int  # pixels of a side of a visual token: patch x merge
    budget: Budget  # whether the limits of videos are for a frame or for all frames together
    min_pixels: int
    max_pixels: int
    image_min_pixels: int
    image_max_pixels: int


RELEASED = {
    "qwen2_5_vl": Released(28, "frame", 128 * 28**2, 768 * 28**2, 56 * 56, 1280 * 28**2),
    "qwen3_vl": Released(32, "video", 128 * 32**2, 768 * 32**2, 56 * 56, 1280 * 28**2),
}


def smart_resize(
    height: int, width: int, factor: int, min_pixels: float, max_pixels: float, frames: int | None = None
) -> tuple[int, int]:
    """(height, width) near the given ones, both multiples of ``factor``, within the limits where there is such a size.

    With ``frames`` the limits are for so many frames together (Qwen3-VL's videos), else for one (Qwen2.5-VL's videos,
    images of both). As released, the limits are held against the frames rounded to an even number, the size is made
    for all of them, and no side falls below ``factor``.

    Raises:
        SizeError: too oblong; for a video's budget also fewer frames than a temporal patch takes, or too small.
    """
    if frames is not None and frames < TEMPORAL:
        raise SizeError(f"{frames} frame is chosen, a temporal patch takes {TEMPORAL}; choose more, or give an image")
    if frames is not None and min(height, width) < factor:
        raise SizeError(f"{width} x {height} pixels are less than a token's {factor} x {factor}; enlarge it")
    if max(height, width) > MOST_OBLONG * min(height, width):
        raise SizeError(f"{width} x {height}: one side is over {MOST_OBLONG} times the other; cut it")
    held, count = (1, 1) if frames is None else (round(frames / TEMPORAL) * TEMPORAL, frames)
    rows, columns = round(height / factor), round(width / factor)
    pixels = held * rows * columns * factor**2
    if pixels > max_pixels:
        shrink = math.sqrt(count * height * width / max_pixels)
        rows, columns = (max(1, math.floor(side / shrink / factor)) for side in (height, width))
    elif pixels < min_pixels:
        grow = math.sqrt(min_pixels / (count * height * width))
        rows, columns = (math.ceil(side * grow / factor) for side in (height, width))
    return rows * factor, columns * factor


def shared_limit(min_pixels: int, max_pixels: int, total_pixels: int | None, frames: int) -> float:
    """The limit of one frame where ``frames`` of them share ``total_pixels`` (per temporal patch, as released)."""
    if total_pixels is None:
        return max_pixels
    return max(min(max_pixels, total_pixels / frames * TEMPORAL), int(min_pixels * SPARE))
