"""Interval overlaps as the published scripts compute them, quirks included: spans [..., 2] in, numbers [...] out.

Published data hold overlaps that are exactly 0.5 on paper, so float32, an epsilon or another denominator moves hits
(published_systems.md#spans-and-iou). Nothing here orders or clips a span; what a span means is in ``spans.py``.
Everything broadcasts.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from videollm.common.spans import iou_union  # the fourth form: ours, too

__all__ = ["iou_epsilon", "iou_hull", "iou_union", "nextgqa_overlap"]
EPSILON = 1e-8  # in the denominator of ``iou_epsilon``

Floats = NDArray[np.floating]


def _parts(a: ArrayLike, b: ArrayLike) -> tuple[Floats, Floats, Floats, Floats]:
    """-> overlap (below 0 where there is a gap), hull, length of a, length of b."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    overlap = np.minimum(a[..., 1], b[..., 1]) - np.maximum(a[..., 0], b[..., 0])
    hull = np.maximum(a[..., 1], b[..., 1]) - np.minimum(a[..., 0], b[..., 0])
    return overlap, hull, a[..., 1] - a[..., 0], b[..., 1] - b[..., 0]


def iou_epsilon(a: ArrayLike, b: ArrayLike) -> Floats:
    """Overlap / (min(hull, length a + length b) + 1e-8): ActivityNet Captions, dense captioning, SODA.

    An IoU that is exactly 0.5 on paper becomes 0.4999... and misses. A reversed span gives 0.
    """
    overlap, hull, length_a, length_b = _parts(a, b)
    return np.maximum(overlap, 0) / (np.minimum(hull, length_a + length_b) + EPSILON)


def iou_hull(a: ArrayLike, b: ArrayLike) -> Floats:
    """Overlap / hull, 0 where the hull has no length: recall on QVHighlights, TimeChat's Charades-STA script.

    TimeChat's script divides by zero there and stops.
    """
    overlap, hull, _, _ = _parts(a, b)
    return np.divide(np.maximum(overlap, 0), hull, out=np.zeros_like(overlap), where=hull != 0)


def nextgqa_overlap(predicted: ArrayLike, true: ArrayLike) -> tuple[Floats, Floats]:
    """(IoU, IoP) of NExT-GQA, which may be negative: no overlap is counted as a negative one.

    A predicted point has IoU 0, and IoP 1 if it lies inside the true span (borders included). IoP is 0 where the
    predicted span is reversed.
    """
    p, t = np.broadcast_arrays(np.asarray(predicted, np.float64), np.asarray(true, np.float64))
    overlap, hull, length, _ = _parts(p, t)
    iou = np.divide(overlap, hull, out=np.zeros_like(hull), where=(length != 0) & (hull != 0))
    iop = np.divide(overlap, length, out=np.zeros_like(hull), where=length > 0)
    inside = (t[..., 0] <= p[..., 0]) & (p[..., 0] <= t[..., 1])
    return iou, np.where(length == 0, inside.astype(float), iop)
