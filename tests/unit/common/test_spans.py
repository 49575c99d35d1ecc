"""Span scores equal their definitions, do not depend on unit or origin, and refuse what is not a span."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from videollm.common.spans import first_span_ious, grounding_scores, mean_set_f1, set_f1, tiou, tiou_matrix

# Quarters of a second are exact in binary, so exact ties at a threshold do happen and mean the same everywhere.
quarter = st.integers(0, 400).map(lambda n: n / 4)
span = st.tuples(quarter, quarter).map(lambda ends: [min(ends), max(ends)])
span_list = st.lists(span, max_size=4)


def brute_force_tiou(a: list[float], b: list[float]) -> float:
    """By counting quarters of a second."""
    inside = [{n for n in range(1600) if s * 4 <= n < e * 4} for s, e in (a, b)]
    union = inside[0] | inside[1]
    return len(inside[0] & inside[1]) / len(union) if union else 0.0


def brute_force_f1(predicted: list, true: list, threshold: float) -> float:
    """The best of all one-to-one pairings."""
    if not predicted and not true:
        return 1.0
    short, long = sorted((predicted, true), key=len)
    pairs = max(sum(brute_force_tiou(a, b) >= threshold for a, b in zip(short, p)) for p in permutations(long))  # noqa: B905
    return 2 * pairs / (len(predicted) + len(true))


@given(span, span)
@settings(max_examples=60, deadline=None)
def test_tiou_equals_counting_and_is_symmetric(a, b):
    assert tiou(a, b) == pytest.approx(brute_force_tiou(a, b), abs=1e-12)
    assert tiou(a, b) == tiou(b, a)


finite = st.floats(-1e6, 1e6, allow_subnormal=False)


@given(st.tuples(finite, finite).map(sorted), st.tuples(finite, finite).map(sorted))
@settings(deadline=None)
def test_tiou_of_any_floats_lies_in_the_unit_interval(a, b):
    assert 0.0 <= tiou(a, b) <= 1.0
    assert tiou(a, a) == (1.0 if a[1] > a[0] else 0.0)


@given(span, span, st.integers(-4000, 4000).map(lambda n: n / 4), st.floats(0.01, 100))
@settings(deadline=None)
def test_tiou_depends_neither_on_origin_nor_on_unit(a, b, shift, scale):
    expected = tiou(a, b)
    assert tiou(np.add(a, shift), np.add(b, shift)) == expected
    assert tiou(np.multiply(a, scale), np.multiply(b, scale)) == pytest.approx(expected, abs=1e-9)


def test_tiou_of_known_spans():
    assert tiou([0, 10], [5, 15]) == pytest.approx(1 / 3)
    assert tiou([0, 3], [0, 10]) == 0.3
    assert tiou([0, 5], [5, 10]) == 0.0
    assert tiou([4, 4], [4, 4]) == 0.0  # no length: nothing to overlap
    assert tiou([4, 4], [0, 8]) == 0.0


@given(span_list, span_list)
@settings(max_examples=40, deadline=None)
def test_tiou_matrix_holds_every_pair(a, b):
    matrix = tiou_matrix(a, b)
    assert matrix.shape == (len(a), len(b))
    assert matrix.tolist() == [[float(tiou(x, y)) for y in b] for x in a]


def test_grounding_takes_the_first_prediction_and_the_best_true_span():
    scores = grounding_scores([[[0, 10], [20, 30]], [[20, 30]]], [[[20, 30]], [[0, 10], [20, 40]]])
    assert scores == {"mIoU": 0.25, "R@1": {"0.3": 0.5, "0.5": 0.5, "0.7": 0.0}, "count": 2, "unparsed": 0}


def test_an_answer_without_a_span_scores_zero_and_stays_in_the_denominator():
    scores = grounding_scores([[], [[0, 4]]], [[[0, 4]], [[0, 4]]])
    assert scores == {"mIoU": 0.5, "R@1": {"0.3": 0.5, "0.5": 0.5, "0.7": 0.5}, "count": 2, "unparsed": 1}


def test_an_iou_on_the_threshold_is_a_hit():
    assert grounding_scores([[[0, 5]]], [[[0, 10]]], thresholds=(0.5,))["R@1"] == {"0.5": 1.0}


def test_no_samples_give_no_score():
    assert grounding_scores([], []) == {
        "mIoU": None,
        "R@1": {"0.3": None, "0.5": None, "0.7": None},
        "count": 0,
        "unparsed": 0,
    }
    assert mean_set_f1([], [], 0.5) is None


@given(st.lists(st.tuples(span_list, st.lists(span, min_size=1, max_size=3)), min_size=1, max_size=5))
@settings(max_examples=40, deadline=None)
def test_grounding_equals_a_loop_over_samples(samples):
    predictions, truths = zip(*samples, strict=True)
    expected = [max(float(tiou(p[0], t)) for t in truth) if p else 0.0 for p, truth in samples]
    scores = grounding_scores(predictions, truths, thresholds=(0.5,))
    assert scores["mIoU"] == pytest.approx(np.mean(expected))
    assert scores["R@1"]["0.5"] == pytest.approx(np.mean([iou >= 0.5 for iou in expected]))


@given(span_list, span_list, st.sampled_from([0.3, 0.5, 0.7]))
@settings(max_examples=60, deadline=None)
def test_set_f1_equals_the_best_of_all_pairings(predicted, true, threshold):
    assert set_f1(predicted, true, threshold) == pytest.approx(brute_force_f1(predicted, true, threshold))


def test_set_f1_does_not_reward_a_repeated_span():
    assert set_f1([[0, 10]], [[0, 10], [20, 30]], 0.5) == pytest.approx(2 / 3)
    assert set_f1([[0, 10], [0, 10]], [[0, 10], [20, 30]], 0.5) == pytest.approx(1 / 2)


def test_set_f1_keeps_forbidden_pairs_apart():
    spans = [[0, 10], [20, 30]]
    assert set_f1(spans, spans, 0.5, allowed=[[True, False], [False, False]]) == 0.5
    assert set_f1([], spans, 0.5, allowed=[]) == 0.0


def test_mean_set_f1_averages_samples():
    assert mean_set_f1([[[0, 10]], []], [[[0, 10]], [[0, 10]]], 0.5) == 0.5


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ([[0, float("nan")]], "not finite"),
        ([[0, float("inf")]], "not finite"),
        ([[5, 4]], "ends before it starts"),
        ([[1, 2, 3]], "pairs"),
        ([1, 2], "list of"),
        ([[1, 2], [3]], "pairs"),
        ([["one", 2]], "pairs"),
    ],
)
def test_bad_spans_are_refused_with_the_name_of_the_sample(bad, why):
    good = [[0, 1]]
    with pytest.raises(ValueError, match=f"clip-7, prediction: .*{why}"):
        grounding_scores([good, bad], [good, good], names=["clip-6", "clip-7"])
    with pytest.raises(ValueError, match=f"sample 0, truth: .*{why}"):
        mean_set_f1([good], [bad], 0.5)


def test_a_sample_without_a_true_span_is_refused():
    with pytest.raises(ValueError, match="sample 1: no true span"):
        first_span_ious([[], []], [[[0, 1]], []])


def test_lists_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match="1 predictions, 2 truths"):
        grounding_scores([[]], [[[0, 1]], [[0, 1]]])
