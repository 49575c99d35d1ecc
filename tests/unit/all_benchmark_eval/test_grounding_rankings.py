"""Rankings of QVHighlights, vectorised over queries, against plain loops that follow the definitions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from all_benchmark_eval.metrics.intervals import iou_union
from all_benchmark_eval.qvhighlights.highlights import highlight_scores
from all_benchmark_eval.qvhighlights.retrieval import THRESHOLDS, average_precision

windows = st.lists(st.tuples(st.integers(0, 30), st.integers(1, 20)).map(lambda w: (w[0], w[0] + w[1])), max_size=6)


def precision_by_loop(predicted: list, true: list, threshold: float) -> float:
    free, hits = list(range(len(true))), []
    for window in predicted:
        fits = [(float(iou_union(window, true[g])), g) for g in free]
        best = max(fits, default=(0.0, -1))
        hits.append(best[0] >= threshold)
        if hits[-1]:
            free.remove(best[1])
    total = 0.0
    for k, hit in enumerate(hits):
        later = [sum(hits[: n + 1]) / (n + 1) for n in range(k, len(hits))]
        total += max(later) / len(true) if hit else 0.0
    return total


@given(st.lists(st.tuples(windows, windows.filter(bool)), min_size=1, max_size=6))
def test_average_precision_is_that_of_a_loop_over_predictions(queries) -> None:
    predicted, true = ([np.array(q[side], float).reshape(-1, 2) for q in queries] for side in (0, 1))
    expected = [[precision_by_loop(p, t, threshold) for threshold in THRESHOLDS] for p, t in queries]
    np.testing.assert_allclose(average_precision(predicted, true), expected, atol=1e-12)


def highlight_by_loop(scores: list, labels: list) -> float:
    """moment_detr's rule, from the definition of a precision-recall curve."""
    if len(set(labels)) == 1:
        return float(labels[0])
    curve = []  # (true positives, precision) from the highest threshold on
    for threshold in sorted(set(scores), reverse=True):
        kept = [label for score, label in zip(scores, labels, strict=True) if score >= threshold]
        curve.append((sum(kept), sum(kept) / len(kept)))
    steps, before = [], 0
    for k, (found, _) in enumerate(curve):
        if found > before:
            steps.append(max(precision for _, precision in curve[k:]))
        before = found
    return float(np.mean(steps))


saliency = st.integers(1, 9).flatmap(
    lambda clips: st.tuples(
        st.lists(st.sampled_from([-1.0, 0.0, 0.5, 2.0]), min_size=1, max_size=12),
        st.lists(st.tuples(*[st.integers(0, 4)] * 3), min_size=clips, max_size=clips),
    )
)


@given(st.lists(saliency, min_size=1, max_size=5))
def test_highlight_precision_is_that_of_a_loop_over_thresholds(queries) -> None:
    predicted = [np.array(scores) for scores, _ in queries]
    true = [np.array(labels, float) for _, labels in queries]
    hit, ap = highlight_scores(predicted, true, published=True)
    for row, (scores, labels) in enumerate(queries):
        padded = (scores + [0.0] * len(labels))[: len(labels)]
        best = int(np.argmax(scores))
        for level, least in enumerate((2, 3, 4)):
            expected = [highlight_by_loop(padded, [int(clip[who] >= least) for clip in labels]) for who in range(3)]
            assert ap[row, level] == pytest.approx(np.mean(expected))
            assert hit[row, level] == (best < len(labels) and max(labels[best]) >= least)


def test_corrected_highlights_give_no_credit_for_constant_or_absent_scores() -> None:
    true = [np.array([[4, 4, 4], [0, 0, 0], [0, 0, 0], [0, 0, 0]], float)] * 3
    hit, ap = highlight_scores([np.zeros(4), None, np.array([0.1])], true, published=False)
    assert hit[:, 0].tolist() == [0.25, 0, 1]  # a quarter: any clip may be the highest
    assert ap[:, 0].tolist() == [0.25, 0, 1]
