"""Moment retrieval with several windows a query: recall of the first, and average precision of all of them.

Lists of windows [K, 2] in, one a query, in rank order; scores [Q] or [Q, T] out, over all queries at once. Windows are
used as they come: ordering, clipping and sorting is the caller's.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from all_benchmark_eval.metrics.intervals import iou_hull, iou_union

THRESHOLDS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))  # 0.5, 0.55 .. 0.95
TOGETHER = 16  # queries with up to so many predicted windows are padded to one array

Floats = NDArray[np.float64]


def best_iou(first: Floats, true: Sequence[Floats]) -> Floats:
    """IoU of one window a query [Q, 2] with the true window that it overlaps most (the first of equal ones) -> [Q].

    As moment_detr does it: chosen by the IoU over the union, scored over the hull. NaN where ``first`` is NaN.
    """
    windows, there = _padded(true)  # [Q, G, 2], [Q, G]
    overlap = np.where(there, iou_union(first[:, None], windows), -np.inf)
    chosen = windows[np.arange(len(windows)), np.argmax(overlap, axis=-1)]  # argmax takes a NaN first, as published
    return iou_hull(first, chosen)


def average_precision(
    predicted: Sequence[Floats], true: Sequence[Floats], thresholds: Sequence[float] = THRESHOLDS
) -> Floats:
    """Average precision (VOC, all points) of each query at each IoU threshold -> [Q, T].

    The rule: published_systems.md#qvhighlights-average-precision.

    Each prediction takes the free true window of highest IoU if that is not below the threshold. A NaN overlap (a
    reversed window on one of the same size) is not below it, so it takes the window, as published.
    """
    sizes = np.array([len(windows) for windows in predicted], dtype=int)
    scores = np.zeros((len(predicted), len(thresholds)))
    # A text can hold thousands of windows; it must not widen the array of all other queries.
    bucket = np.where(sizes <= TOGETHER, 0, np.ceil(np.log2(np.maximum(sizes, 1))))
    for members in (np.flatnonzero(bucket == size) for size in np.unique(bucket)):
        group = [predicted[i] for i in members], [true[i] for i in members]
        scores[members] = _average_precision(*map(_padded, group), np.asarray(thresholds))
    return scores


def _average_precision(predicted: tuple[Floats, NDArray], true: tuple[Floats, NDArray], thresholds: Floats) -> Floats:
    (windows, there), (true_windows, true_there) = predicted, true  # [Q, P, 2], [Q, P], [Q, G, 2], [Q, G]
    iou = np.where(true_there[:, None], iou_union(windows[:, :, None], true_windows[:, None]), -1.0)  # [Q, P, G]
    order = np.argsort(np.where(np.isnan(iou), np.inf, iou), axis=-1, kind="stable")[..., ::-1]
    query = np.arange(len(windows))
    free = np.ones((len(windows), true_windows.shape[1], len(thresholds)), bool)  # [Q, G, T]
    hit = np.zeros((*there.shape, len(thresholds)), bool)  # [Q, P, T]
    for p in range(windows.shape[1]):
        for rank in range(true_windows.shape[1]):
            g = order[:, p, rank]  # [Q]
            high = ~(iou[query, p, g][:, None] < thresholds)  # [Q, T]; true for NaN
            takes = high & free[query, g] & ~hit[:, p] & there[:, p, None]
            hit[:, p] |= takes
            free[query, g] &= ~takes
    found = np.cumsum(hit, axis=1)  # [Q, P, T]
    precision = found / np.arange(1, windows.shape[1] + 1)[:, None]
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    recall = found / np.maximum(true_there.sum(-1), 1)[:, None, None]
    return np.sum(np.diff(recall, axis=1, prepend=0.0) * envelope, axis=1)


def _padded(windows: Sequence[Floats]) -> tuple[Floats, NDArray[np.bool_]]:
    """[Q, M, 2] with M the longest list (at least 1), and where a window stands [Q, M]."""
    sizes = np.array([len(w) for w in windows], dtype=int)
    there = np.arange(max(sizes.max(initial=0), 1)) < sizes[:, None]
    array = np.zeros((*there.shape, 2))
    if there.any():
        array[there] = np.concatenate([w for w in windows if len(w)])
    return array, there
