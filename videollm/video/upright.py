"""A display matrix -> how the stored picture is turned and mirrored so that people see it upright.

In: the nine numbers that a file keeps beside its pictures (a frame's side data). Out: one of the eight ways to lay a
picture on a right angle, and the picture laid so, as ffmpeg's own ``autorotate`` does. Knows no files and no times.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import av
import numpy as np
from av.sidedata.sidedata import Type


@dataclass(frozen=True)
class Orientation:
    """First rows and columns change places, then the picture is mirrored, left to right and top to bottom."""

    transposed: bool = False
    columns: bool = False  # mirrored left to right
    rows: bool = False  # mirrored top to bottom

    @property
    def mirrored(self) -> bool:
        """Whether writing in the stored picture reads backwards until it is laid right."""
        return self.transposed ^ self.columns ^ self.rows

    def __call__(self, picture: np.ndarray) -> np.ndarray:
        """The upright picture, [H, W, 3] -> [H, W, 3] or [W, H, 3], in one piece of memory."""
        picture = picture.swapaxes(0, 1) if self.transposed else picture
        return np.ascontiguousarray(picture[:: -1 if self.rows else 1, :: -1 if self.columns else 1])


AS_STORED = Orientation()


def orientation_of(frame: av.VideoFrame) -> Orientation:
    """How a decoded frame is shown. Raises ``ValueError`` as ``of_matrix``."""
    matrix = frame.side_data.get(Type.DISPLAYMATRIX)
    return AS_STORED if matrix is None else of_matrix(bytes(matrix))


@lru_cache(maxsize=16)
def of_matrix(matrix: bytes) -> Orientation:
    """How a picture with this display matrix is shown; its scale and shift say nothing about that.

    The matrix is 3 x 3 int32 by rows: the place (x, y) of the picture is shown at (a x + c y, b x + d y).

    Raises:
        ValueError: it turns by other than right angles (to the nearest degree, as ffmpeg counts).
    """
    a, b, _, c, d, *_ = np.frombuffer(matrix, np.int32).tolist()
    if not (a or c) or not (b or d):
        return AS_STORED  # no map of the plane: ffmpeg too shows such a picture as it is
    degrees = round(math.degrees(math.atan2(b / math.hypot(b, d), a / math.hypot(a, c))))
    if degrees % 90:
        raise ValueError(f"is shown turned by {degrees % 360} degrees")
    if degrees % 180:
        return Orientation(True, columns=c < 0, rows=b < 0)
    return Orientation(False, columns=a < 0, rows=d < 0)
