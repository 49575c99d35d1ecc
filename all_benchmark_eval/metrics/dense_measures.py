"""Per-video measures of dense captions under both protocols, from tokenized events.

In: ``Words``, the predicted events of V videos and the true ones of each of their references. Out: precision, recall,
caption scores [V, 4] (IoU thresholds) and SODA_c [V], as fractions (CIDEr up to 10). A caption is paired with the
events of all references; of precision, recall and SODA_c the best reference of a video counts. How measures are
averaged is the tasks'.
"""

from collections.abc import Callable, Sequence
from itertools import cycle

import numpy as np
from numpy.typing import NDArray

from all_benchmark_eval.metrics import captions, dense
from all_benchmark_eval.metrics.dense import (
    THRESHOLDS,
    Events,
    Floats,
    Ints,
    Overlaps,
    overlaps,
    precision_recall,
    soda,
)
from all_benchmark_eval.metrics.dense_scores import Words
from all_benchmark_eval.metrics.intervals import iou_union
from all_benchmark_eval.metrics.moments import SLACK

SODA = ("SODA_c", "SODA_c_Precision", "SODA_c_Recall")


def published_measures(
    words: Words, predicted: Events, references: Sequence[Events], iou: dense.Measure, seed: int,
    heard: Sequence[str] | None = None,
) -> dict[str, Floats]:  # fmt: skip
    """Per-video measures as the published scripts have them, each [V, 4] (IoU thresholds) but those of SODA_c [V].

    Precision, Recall; CIDEr, METEOR, ROUGE_L, BLEU_1..4 of each video's pairs as one corpus (a prediction that matches
    nothing is paired with random letters). SODA_c takes the prediction for the reference and the truth for the
    hypothesis of METEOR; ``heard`` [P] are the predicted captions as SODA_c gets them, if not in their order.
    """
    each = [overlaps(predicted, true, iou) for true in references]
    measures = _best_precision_recall(each, predicted, references, lambda values, threshold: values > threshold)
    if not words.tokens:
        return measures
    true = dense.pool(references)
    over = each[0] if len(references) == 1 else overlaps(predicted, true, iou)
    groups = dense.caption_groups(over, predicted, true, THRESHOLDS, cycle(captions.random_letters(1, seed)))
    scores = {"CIDEr": captions.cider(groups), "ROUGE_L": captions.rouge_l(groups)}
    scores |= {f"BLEU_{n}": column for n, column in enumerate(captions.bleu(groups).T, start=1)}
    if words.meteor:
        scores["METEOR"] = captions.meteor(groups)
        heard = predicted.captions if heard is None else heard
        swapped = [
            _similar(o, true.captions, o.true, heard, o.predicted) for o, true in zip(each, references, strict=True)
        ]
        measures |= _best_soda(each, predicted, references, swapped)
    return measures | {name: values.reshape(len(THRESHOLDS), -1).T for name, values in scores.items()}


def corrected_measures(words: Words, predicted: Events, references: Sequence[Events]) -> dict[str, Floats]:
    """Per-video measures as they are meant, each [V, 4] (IoU thresholds) but those of SODA_c [V].

    Precision, Recall, METEOR, CIDEr, ROUGE_L, SODA_c. Differences from the published scripts: IoU without an epsilon,
    and one that equals the threshold counts everywhere; a caption score is the mean over pairs, where a prediction that
    matches nothing counts 0, not a corpus score that random letters stand in; document frequencies of CIDEr come from
    all true captions, so that a video with one pair can score; SODA_c has prediction and truth in METEOR's order and
    takes the events of both sides in order of time.
    """
    predicted, references = predicted.by_start(), [true.by_start() for true in references]
    iou = lambda a, b: np.nan_to_num(iou_union(a, b))  # noqa: E731
    each = [overlaps(predicted, true, iou) for true in references]
    passes = lambda values, threshold: values >= threshold - SLACK  # noqa: E731
    measures = _best_precision_recall(each, predicted, references, passes)
    if not words.tokens:
        return measures
    true = dense.pool(references)
    over = each[0] if len(references) == 1 else overlaps(predicted, true, iou)
    pairs = [(predicted.captions[p], true.captions[t]) for p, t in zip(over.predicted, over.true, strict=True)]
    near = passes(over.iou, THRESHOLDS[0])
    scores = {
        "CIDEr": _where(near, pairs, lambda some: captions.cider_pairs([some], true.captions)[0]),
        "ROUGE_L": _where(near, pairs, captions.rouge_l_pairs),
    }
    if words.meteor:
        scores["METEOR"] = _where(over.iou > 0, pairs, captions.meteor_pairs)
        said = predicted.captions
        similar = [
            _similar(o, said, o.predicted, true.captions, o.true) for o, true in zip(each, references, strict=True)
        ]
        measures |= _best_soda(each, predicted, references, similar)
    alone = dense.unmatched(over, predicted, [t - SLACK for t in THRESHOLDS])  # [4, V]
    video = predicted.owner[over.predicted]
    for name, values in scores.items():
        columns = []
        for threshold, lonely in zip(THRESHOLDS, alone, strict=True):
            hit = passes(over.iou, threshold)
            count = np.bincount(video[hit], minlength=len(lonely)) + lonely
            columns.append(np.bincount(video[hit], weights=values[hit], minlength=len(lonely)) / np.maximum(count, 1))
        measures[name] = np.stack(columns, axis=1)
    return measures


def _best_precision_recall(
    each: Sequence[Overlaps], predicted: Events, references: Sequence[Events], passes: Callable
) -> dict[str, Floats]:
    """Precision and Recall [V, 4], each of the reference that is best for it."""
    found = [precision_recall(over, predicted, true, passes) for over, true in zip(each, references, strict=True)]
    precision, recall = (np.maximum.reduce(values) for values in zip(*found, strict=True))
    return {"Precision": precision, "Recall": recall}


def _best_soda(
    each: Sequence[Overlaps], predicted: Events, references: Sequence[Events], similar: Sequence[Floats]
) -> dict[str, Floats]:
    """SODA_c with its precision and recall, each [V], of the reference with the highest SODA_c of each video."""
    sides = zip(each, references, similar, strict=True)
    found = np.stack([soda(over, predicted, true, values) for over, true, values in sides])  # [R, V, 3]
    best = found[found[..., 0].argmax(0), np.arange(found.shape[1])]
    return dict(zip(SODA, best.T, strict=True))


def _similar(over: Overlaps, first: Sequence[str], i: Ints, second: Sequence[str], j: Ints) -> Floats:
    """METEOR [K] of first[i] as hypothesis and second[j] as reference, where their events overlap; 0 elsewhere."""
    return _where(over.iou > 0, [(first[a], second[b]) for a, b in zip(i, j, strict=True)], captions.meteor_pairs)


def _where(keep: NDArray[np.bool_], pairs: Sequence[captions.Pair], score: Callable) -> Floats:
    """Scores [K] of the pairs where ``keep`` holds, 0 elsewhere."""
    values = np.zeros(len(pairs))
    if keep.any():
        values[keep] = score([pairs[k] for k in np.flatnonzero(keep)])
    return values


def mean_over_thresholds(measures: dict[str, Floats]) -> dict[str, Floats]:
    """Per-video values [V] under flat names: Precision@t, Recall@t, and each measure's mean over the thresholds."""
    flat = {name: values if values.ndim == 1 else values.mean(1) for name, values in measures.items()}
    for name in ("Precision", "Recall"):
        flat |= {f"{name}@{t:g}": measures[name][:, k] for k, t in enumerate(THRESHOLDS)}
    return flat
