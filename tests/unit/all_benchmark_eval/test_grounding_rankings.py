"""Rankings of QVHighlights, vectorised over queries, against plain loops that follow the definitions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from all_benchmark_eval.benchmark import Options, get
from all_benchmark_eval.metrics.intervals import iou_union
from all_benchmark_eval.metrics.moments import Located, Moments, State, corrected_grounding
from all_benchmark_eval.qvhighlights.files import Queries, Submission
from all_benchmark_eval.qvhighlights.highlights import highlight_scores
from all_benchmark_eval.qvhighlights.metrics import moment_detr
from all_benchmark_eval.qvhighlights.retrieval import THRESHOLDS, average_precision
from tests.grounding_files import write

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


def best_by_loop(window: tuple, true: list) -> float:
    """IoU over the hull with the true window of the highest IoU over the union, the first of equal ones."""
    start, end = max(true, key=lambda w: float(iou_union(window, w)))
    hull = max(end, window[1]) - min(start, window[0])
    return max(min(end, window[1]) - max(start, window[0]), 0) / hull


@given(st.lists(st.tuples(windows.filter(bool), windows.filter(bool)), min_size=1, max_size=6))
def test_moment_detr_prints_miou_and_low_recalls_by_length(queries) -> None:
    """As the json that CG-DETR writes has them: percent with two decimals, over the queries with such a window."""
    predicted, true = ([[list(w) for w in q[side]] for q in queries] for side in (0, 1))
    scores = moment_detr(submission(predicted, true), corrected=False)
    for name, low, high in (("full", 0, 150), ("short", 0, 10), ("middle", 10, 30), ("long", 30, 150)):
        kept = [[w for w in several if low < w[1] - w[0] <= high] for several in true]
        best = [best_by_loop(said[0], own) for said, own in zip(predicted, kept, strict=True) if own]
        if not best:
            assert scores.metrics[f"MR-{name}-mIoU"] is None
            continue
        assert scores.metrics[f"MR-{name}-mIoU"] == pytest.approx(100 * np.mean(best), abs=0.006)
        for t in (0.3, 0.35, 0.4, 0.45):
            hits = 100 * np.mean(np.array(best) >= t)
            assert scores.details[name]["MR-R1"][f"{t:g}"] == pytest.approx(hits, abs=0.006)
        assert scores.metrics[f"MR-{name}-R1@0.3"] == scores.details[name]["MR-R1"]["0.3"]


def submission(predicted: list, true: list) -> Submission:
    count = len(true)
    truth = Queries(
        [str(q) for q in range(count)], [""] * count, [""] * count, np.full(count, 150.0), list(map(array, true))
    )
    windows = [np.column_stack([array(w), np.ones(len(w))]) for w in predicted]
    return Submission(truth, windows, None, np.full(count, State.PARSED))


def array(spans: list) -> np.ndarray:
    return np.array(spans, float).reshape(-1, 2)


def test_recall_at_5_is_there_where_a_file_ranks_spans() -> None:
    truth = Moments(["a", "b", "c"], ["v"] * 3, ["q"] * 3, array([[0, 10], [20, 40], [0, 4]]), np.full(3, 50.0))
    located = Located.nowhere(3)
    located.put(0, [[30, 40], [0, 10]])
    located.put(1, [[0, 1], [1, 2], [2, 3], [3, 4], [4, 5], [20, 40]])  # right, but the sixth
    scores = corrected_grounding(truth, located)
    assert scores.metrics["R1@0.5"] == 0
    assert scores.metrics["R5@0.5"] == scores.metrics["R5@0.7"] == pytest.approx(100 / 3)
    assert scores.per_sample["R5@0.5"] == {"a": 1, "b": 0, "c": 0}
    located.ranked.clear()
    assert "R5@0.5" not in corrected_grounding(truth, located).metrics


def test_ranked_spans_are_ordered_and_cut_as_the_first_is() -> None:
    truth = Moments(["a"], ["v"], ["q"], array([[0, 10]]), np.array([10.0]))
    located = Located.nowhere(1)
    located.put(0, [[8, 9], [99, 0]])
    assert corrected_grounding(truth, located).metrics["R5@0.7"] == 100


@pytest.mark.parametrize(("protocol", "half"), [("published", 0), ("corrected", 100)])
def test_activitynets_entries_are_ranked_spans(protocol, half, tmp_path) -> None:
    """An IoU of exactly 0.5 misses by the script's epsilon."""
    task = get("anet")
    truth = task.load(write(tmp_path / "t.json", {"v": {"duration": 50, "timestamps": [[0, 10]], "sentences": ["x"]}}))
    given = task.read(write(tmp_path / "p.json", {"results": {"v-0": {"timestamp": [[30, 40], [0, 5]]}}}), truth)
    metrics = task.score(truth, given, Options(protocol, "default")).metrics
    assert (metrics["R1@0.3"], metrics["R5@0.3"], metrics["R5@0.5"]) == (0, 100, half)


@pytest.mark.parametrize("name", ["charades", "moment_retrieval"])
def test_windows_of_moment_detrs_lines_are_ranked_by_their_scores(name, tmp_path) -> None:
    true = {"qid": 1, "vid": "V", "query": "q", "duration": 50, "relevant_windows": [[0, 10]]}
    said = {"qid": 1, "vid": "V", "query": "q", "pred_relevant_windows": [[0, 10, 0.2], [30, 40, 0.9]]}
    task = get(name)
    truth = task.load(write(tmp_path / "t.jsonl", true))
    given = task.read(write(tmp_path / "p.jsonl", said), truth)
    for protocol in ("published", "corrected"):
        metrics = task.score(truth, given, Options(protocol, task.variants[0])).metrics
        assert (metrics["R1@0.5"], metrics["R5@0.7"]) == (0, pytest.approx(100, rel=1e-4))
