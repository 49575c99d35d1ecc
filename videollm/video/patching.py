"""Frames of one size as groups of patches, for towers that take pictures of any size: data that such a tower carries.

In: frames of a video or an image with their times. Out: patches in the order in which the tower merges them, the grid
that they lie in, the times of the groups, and for a prompt of L tokens the position of every token on the axes time,
row and column. Knows no prompt, no tower and no weights.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

RULES = ("4.49", "4.52", "5.3")  # transformers' versions from which on time was laid on positions so
EARLY = 1e-3  # of a position: containers round times, so that a frame may come a little before its step

Grid = tuple[int, int]  # rows and columns of patches of a group


class Run(NamedTuple):
    """Adjacent visual tokens of groups of one grid: the first one's place in the prompt, and when each group starts."""

    place: int
    grid: Grid
    starts_s: Sequence[float]


@dataclass(frozen=True)
class Patching:
    """How frames become patches, and where they stand.

    A *group* of ``temporal`` frames is what all that lies behind calls a frame: it has one time, and one vector in a
    head. ``per_second``: position units a second, by which groups of one run are apart; None: only what stands around
    a group tells its time, so that each needs its own pair of tokens around it.

    ``rule``: how those units are counted. ``4.49`` is that of the release: text behind a run goes on behind its largest
    position. ``4.52``: seconds a group are cut to whole ones first. ``5.3``: text goes on behind the longer side of the
    picture, within the video's own times. Checkpoints may have been tuned with any. ``even``: positions count even
    steps of the mean time between groups, as released, in place of the times at which frames are shown.
    """

    patch: int
    merge: int = 2
    temporal: int = 2
    per_second: float | None = None
    rule: Literal["4.49", "4.52", "5.3"] = "4.49"
    even: bool = False

    def __post_init__(self):
        if self.rule not in RULES:
            raise ValueError(f"positions: {self.rule!r} is none of {', '.join(RULES)}")

    @property
    def factor(self) -> int:
        """Pixels by which height and width are divisible."""
        return self.patch * self.merge

    @property
    def width(self) -> int:
        """Numbers of a patch."""
        return 3 * self.temporal * self.patch**2

    def grid(self, height: int, width: int) -> Grid:
        """The grid of a frame. Raises ValueError for a size that is no multiple of ``factor``."""
        if height % self.factor or width % self.factor or not height or not width:
            raise ValueError(f"frames of {width}x{height} pixels, but both sides must be multiples of {self.factor}")
        return height // self.patch, width // self.patch

    def tokens(self, grid: Grid) -> int:
        """Tokens that a group becomes."""
        return grid[0] * grid[1] // self.merge**2

    def group(self, frames: Tensor) -> Tensor:
        """Frames [F, H, W, 3] -> patches [G, N, 3 * temporal * patch^2], N those of a group; the last frame fills up.

        Patches that are merged stand together, row by row. Raises ValueError as ``grid``.
        """
        rows, columns = (side // self.merge for side in self.grid(*frames.shape[1:3]))
        lack = -len(frames) % self.temporal
        frames = torch.cat([frames, frames[-1:].expand(lack, -1, -1, -1)]) if lack else frames
        m, p = self.merge, self.patch
        cut = frames.reshape(-1, self.temporal, rows, m, p, columns, m, p, 3)
        cut = cut.permute(0, 2, 5, 3, 6, 8, 1, 4, 7)  # group, cell, place in it, channel, frame, pixel
        return cut.reshape(len(cut), rows * columns * m * m, -1)

    def blank(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Patches [merge^2, 3 * temporal * patch^2] of the smallest picture, zeros: as the tower takes them."""
        return torch.zeros(self.merge**2, self.width, device=device, dtype=dtype)

    def times(self, times_s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Times of F frames -> of each group, the mean of its first and last frame, and its start. [G] seconds each."""
        first, last = times_s[:: self.temporal], times_s[self.temporal - 1 :: self.temporal]
        last = np.append(last, times_s[-1:]) if len(last) < len(first) else last
        if not self.even or len(times_s) < 2:
            return (first + last) / 2, first
        step = self.temporal * (times_s[-1] - times_s[0]) / (len(times_s) - 1)
        return (first + last) / 2, even_starts(len(first), step)

    def normalised(self, patches: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
        """Bytes [N, 3 * temporal * patch^2] -> float32 of the same shape, with the tower's mean and deviation."""
        x = patches.float().unflatten(1, (3, -1))
        x = x / x.new_tensor(255.0)  # a tensor, as in preprocess.py
        return ((x - x.new_tensor(mean)[:, None]) / x.new_tensor(std)[:, None]).flatten(1)

    def positions(self, length: int, runs: Sequence[Run]) -> np.ndarray:
        """Of every token of a prompt on the axes time, row and column, [3, length] int64.

        Raises:
            ValueError: several groups in one run, where none of them would have a time.
        """
        places, done, base = np.empty((3, length), np.int64), 0, 0
        for place, grid, starts_s in runs:
            if self.per_second is None and len(starts_s) > 1:
                raise ValueError(f"{len(starts_s)} groups of frames in one run have no time: part them by text")
            places[:, done:place] = base + np.arange(place - done)
            base += place - done
            rows, columns = (side // self.merge for side in grid)
            inside = np.indices((len(starts_s), rows, columns)).reshape(3, -1)
            inside[0] = self.units(starts_s)[inside[0]]
            done = place + inside.shape[1]
            places[:, place:done] = base + inside
            base += max(rows, columns) if self.rule == "5.3" else int(inside.max()) + 1
        places[:, done:] = base + np.arange(length - done)
        return places

    def units(self, starts_s: Sequence[float]) -> np.ndarray:
        """Of groups that start at ``starts_s``, how far each lies behind the first on the time axis. [G] int64."""
        if self.per_second is None or len(starts_s) == 1:
            return np.zeros(len(starts_s), np.int64)
        starts, count, rate = np.asarray(starts_s), np.arange(len(starts_s)), self.per_second
        if self.rule == "4.52":
            return (count * int(starts[1] - starts[0]) * rate).astype(np.int64)
        if starts.dtype != np.float32:
            return np.floor((starts - starts[0]) * rate + EARLY).astype(np.int64)
        if self.rule == "5.3":
            return np.floor(count.astype(np.float32) * np.float32(starts[1] * rate)).astype(np.int64)
        return np.floor(starts * np.float32(rate)).astype(np.int64)


def even_starts(groups: int, step_s: float) -> np.ndarray:
    """Starts of groups at even steps, in the precision in which the release multiplies. [G] float32."""
    return np.arange(groups, dtype=np.float32) * np.float32(step_s)
