"""Highlight detection: how well one score a clip of 2 s finds the clips that annotators liked.

Predicted scores [K] a query and true saliency [C, 3] (0 to 4, from three annotators) in; Hit@1 and average precision
[Q, levels] out, over all queries at once. A query without scores (None) gets 0 for both.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

LEVELS = {"Fair": 2, "Good": 3, "VeryGood": 4}  # the least saliency that counts as a highlight

Floats = NDArray[np.float64]


def highlight_scores(
    predicted: Sequence[Floats | None], true: Sequence[Floats], *, published: bool
) -> tuple[Floats, Floats]:
    """Hit@1 [Q, 3] and average precision [Q, 3] for each of ``LEVELS``.

    Hit@1: whether the clip of the highest score is a highlight for any annotator. AP: from the precision envelope,
    mean over annotators; one who liked no clip gives 0, one who liked every clip 1. ``published`` (moment_detr):
    Hit@1 takes the first of equal scores, also behind the last true clip; clips without a score get 0; AP is the mean
    of the precisions where recall changes. Else: of equal scores the mean, clips without a score rank last, AP weighs
    each precision by the recall that it adds.
    """
    clips = np.array([len(t) for t in true])
    there = np.arange(clips.max(initial=1)) < clips[:, None]  # [Q, C]
    saliency = np.full((*there.shape, 3), -1.0)
    saliency[there] = np.concatenate(true)
    scores = np.full(there.shape, 0.0 if published else -np.inf)
    given = np.array([p is not None for p in predicted])
    first = np.full(len(true), -1)
    for row, values in enumerate(predicted):
        if values is not None:
            cut = values[: clips[row]]
            scores[row, : len(cut)] = cut
            first[row] = np.argmax(values)
    positive = saliency[:, None] >= np.array(list(LEVELS.values()))[:, None, None]  # [Q, L, C, 3]
    liked = positive.any(-1)  # [Q, L, C]
    if published:
        inside = (first >= 0) & (first < clips)
        hit = liked[np.arange(len(true)), :, np.where(inside, first, 0)] & inside[:, None]
    else:
        top = there & (scores == np.where(there, scores, -np.inf).max(-1, keepdims=True))  # [Q, C]
        hit = (liked & top[:, None]).sum(-1) / np.maximum(top.sum(-1), 1)[:, None]
    ap = _average_precision(scores, there, positive.transpose(0, 1, 3, 2), mean_of_changes=published).mean(-1)
    return hit.astype(float) * given[:, None], ap * given[:, None]


def _average_precision(scores: Floats, there: NDArray, positive: NDArray, *, mean_of_changes: bool) -> Floats:
    """AP of rankings by scores [Q, C] for labels [Q, L, A, C] -> [Q, L, A]; equal scores are one step of the curve."""
    clips = there.sum(-1)  # [Q]
    key = np.where(there, -scores, np.inf)
    order = np.argsort(key, axis=-1, kind="stable")  # clips that are not there come last, also behind -inf
    key = np.take_along_axis(key, order, -1)
    place = np.arange(key.shape[1])
    step = np.ones(key.shape, bool)  # the last of equal scores
    step[:, :-1] = key[:, 1:] != key[:, :-1]
    step = ((step | (place == clips[:, None] - 1)) & (place < clips[:, None]))[:, None, None]  # [Q, 1, 1, C]
    found = np.cumsum(np.take_along_axis(positive, order[:, None, None], -1), axis=-1)  # [Q, L, A, C]
    precision = np.where(step, found / (place + 1), -np.inf)
    envelope = np.maximum.accumulate(precision[..., ::-1], axis=-1)[..., ::-1]
    at_step = np.maximum.accumulate(np.where(step, found, 0), axis=-1)
    gained = np.where(step, np.diff(at_step, axis=-1, prepend=0), 0)  # positives that a step adds
    weight = (gained > 0) if mean_of_changes else gained
    total = np.sum(weight, axis=-1)
    area = np.sum(np.where(weight > 0, envelope, 0.0) * weight, axis=-1)
    ap = np.divide(area, total, out=np.zeros(area.shape), where=total > 0)
    return np.where(found[..., -1] == clips[:, None, None], 1.0, ap)
