"""Scores of predicted time spans against true ones: float64 numpy, fractions in [0, 1].

A span is ``[start, end]`` with start <= end, in any one unit (the scores do not depend on it). Text, files and what
the spans are about are not known here. An answer without a span counts as 0 and stays in the denominator.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

THRESHOLDS = (0.3, 0.5, 0.7)

SpanList = Sequence[Sequence[float]]  # [[start, end], ...]; may be empty


def as_spans(spans: ArrayLike, name: str = "spans") -> NDArray[np.float64]:
    """Spans [..., 2] as float64; an empty list becomes [0, 2]. ``name`` says in an error whose spans they are.

    Raises ValueError for another shape, for NaN or infinity and for an end before its start.
    """
    try:
        array = np.asarray(spans, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{name}: expected [start, end] pairs of numbers, got {spans!r}") from error
    if array.shape == (0,):
        return array.reshape(0, 2)
    if array.ndim == 0 or array.shape[-1] != 2:
        raise ValueError(f"{name}: expected shape [..., 2] ([start, end] pairs), got {list(array.shape)}")
    for bad, why in (
        (~np.isfinite(array).all(-1), "is not finite"),
        (array[..., 1] < array[..., 0], "ends before it starts"),
    ):
        if bad.any():
            raise ValueError(f"{name}: span {array[bad][0].tolist()} {why}")
    return array


def iou_union(a: ArrayLike, b: ArrayLike, dtype: type = np.float64) -> NDArray[np.floating]:
    """Overlap / (length a + length b - overlap) of spans as they are; 0/0 is NaN (a reversed span of the same size).

    Published scripts do the same: QVHighlights in float64, Charades-STA (``dtype=np.float32``) in float32.
    """
    a, b = np.asarray(a, dtype), np.asarray(b, dtype)
    overlap = np.maximum(np.minimum(a[..., 1], b[..., 1]) - np.maximum(a[..., 0], b[..., 0]), 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return overlap / ((a[..., 1] - a[..., 0]) + (b[..., 1] - b[..., 0]) - overlap)


def _tiou(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.nan_to_num(iou_union(a, b))


def tiou(a: ArrayLike, b: ArrayLike) -> NDArray[np.float64]:
    """Temporal IoU of spans a [..., 2] and b [..., 2] (broadcast) -> [...]; 0 where the union has no length."""
    return _tiou(as_spans(a, "a"), as_spans(b, "b"))


def tiou_matrix(a: ArrayLike, b: ArrayLike) -> NDArray[np.float64]:
    """Temporal IoU of every span of a [N, 2] with every span of b [M, 2] -> [N, M]."""
    a, b = as_spans(a, "a"), as_spans(b, "b")
    if a.ndim != 2 or b.ndim != 2:
        raise ValueError(f"tiou_matrix: expected [N, 2] and [M, 2], got {list(a.shape)} and {list(b.shape)}")
    return _tiou(a[:, None], b[None])


def first_span_ious(
    predictions: Sequence[SpanList], truths: Sequence[SpanList], names: Sequence[str] | None = None
) -> NDArray[np.float64]:
    """IoU of each sample's first predicted span with the true span that it matches best -> [N]; NaN without a span.

    All samples go through one array operation. ``names`` are the samples' names in errors (their places otherwise).
    Raises ValueError for lists of different lengths, for a sample without a true span and for bad spans.
    """
    names = _names(predictions, truths, names)
    best = np.zeros(len(truths))  # [N]
    first = np.full((len(truths), 2), np.nan)  # [N, 2]
    true, owner = [], []
    for i, (name, predicted, truth) in enumerate(zip(names, predictions, truths, strict=True)):
        spans = _sample(truth, f"{name}, truth")
        if not len(spans):
            raise ValueError(f"{name}: no true span")
        predicted = _sample(predicted, f"{name}, prediction")
        if len(predicted):
            first[i] = predicted[0]
        true.append(spans)
        owner.append(np.full(len(spans), i))
    if true:
        owner = np.concatenate(owner)
        np.maximum.at(best, owner, _tiou(first[owner], np.concatenate(true)))  # NaN gives 0
    return np.where(np.isnan(first[:, 0]), np.nan, best)


def summarise(ious: ArrayLike, thresholds: Sequence[float] = THRESHOLDS) -> dict:
    """``{"mIoU", "R@1": {"0.3": ...}}`` of IoUs [N]; NaN (no span) counts as 0, no sample at all gives None."""
    ious = np.nan_to_num(np.asarray(ious, dtype=np.float64), nan=0.0)
    if not ious.size:
        return {"mIoU": None, "R@1": {f"{t:g}": None for t in thresholds}}
    return {"mIoU": float(ious.mean()), "R@1": {f"{t:g}": float((ious >= t).mean()) for t in thresholds}}


def grounding_scores(
    predictions: Sequence[SpanList],
    truths: Sequence[SpanList],
    thresholds: Sequence[float] = THRESHOLDS,
    names: Sequence[str] | None = None,
) -> dict:
    """Mean IoU and recall of the first predicted span: ``{"mIoU", "R@1": {"0.3": ...}, "count", "unparsed"}``.

    A sample with several true spans takes the best match. One without a predicted span scores 0 and is counted in
    ``unparsed`` as well as in ``count``. Errors as in :func:`first_span_ious`.
    """
    ious = first_span_ious(predictions, truths, names)
    return summarise(ious, thresholds) | {"count": len(ious), "unparsed": int(np.isnan(ious).sum())}


def set_f1(predicted: ArrayLike, true: ArrayLike, threshold: float, allowed: ArrayLike | None = None) -> float:
    """F1 of a set of spans [P, 2] against a set [T, 2], paired one to one where IoU >= threshold.

    The pairing is the largest possible, so a repeated prediction earns nothing. ``allowed`` [P, T] bool keeps pairs
    out (captions that differ). Two empty sets agree: 1.
    """
    predicted, true = as_spans(predicted, "predicted"), as_spans(true, "true")
    if not len(predicted) and not len(true):
        return 1.0
    from scipy.optimize import linear_sum_assignment  # here: it costs most scorers half of their start, for nothing

    hit = tiou_matrix(predicted, true) >= threshold  # [P, T]
    if allowed is not None:
        hit = hit & np.asarray(allowed, dtype=bool).reshape(hit.shape)
    pairs = hit[linear_sum_assignment(hit, maximize=True)].sum()
    return float(2 * pairs / (len(predicted) + len(true)))


def mean_set_f1(
    predictions: Sequence[SpanList], truths: Sequence[SpanList], threshold: float, names: Sequence[str] | None = None
) -> float | None:
    """Mean of :func:`set_f1` over samples; None without a sample."""
    scores = [
        set_f1(_sample(p, f"{name}, prediction"), _sample(t, f"{name}, truth"), threshold)
        for name, p, t in zip(_names(predictions, truths, names), predictions, truths, strict=True)
    ]
    return float(np.mean(scores)) if scores else None


def _names(predictions: Sequence, truths: Sequence, names: Sequence[str] | None) -> Sequence[str]:
    names = [f"sample {i}" for i in range(len(truths))] if names is None else names
    if not len(predictions) == len(truths) == len(names):
        raise ValueError(
            f"{len(predictions)} predictions, {len(truths)} truths and {len(names)} names: give one of each a sample"
        )
    return names


def _sample(spans: SpanList, name: str) -> NDArray[np.float64]:
    """One sample's spans [K, 2]."""
    array = as_spans(spans, name)
    if array.ndim != 2:
        raise ValueError(f"{name}: expected a list of [start, end] pairs, got shape {list(array.shape)}")
    return array
