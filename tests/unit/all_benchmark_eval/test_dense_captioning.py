"""Dense captioning: events held against events, answers read into events, and what bad files lead to."""

import gzip
import json
from itertools import repeat

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from all_benchmark_eval.benchmark import BenchmarkError, Options, get
from all_benchmark_eval.metrics import dense_measures, dense_scores
from all_benchmark_eval.metrics.dense import (
    THRESHOLDS,
    Events,
    _best_alignment,
    caption_groups,
    overlaps,
    precision_recall,
    unmatched,
)
from all_benchmark_eval.metrics.dense_scores import answer_events
from all_benchmark_eval.metrics.intervals import iou_epsilon
from all_benchmark_eval.metrics.java import JavaError
from tests.answers import answer_line

# ---- events against events -------------------------------------------------------------------------------------------

SPANS = st.tuples(st.integers(0, 20), st.integers(0, 20)).map(sorted)
VIDEOS = st.lists(st.tuples(st.lists(SPANS, max_size=4), st.lists(SPANS, max_size=4)), min_size=1, max_size=4)


def events(spans, letter):
    return Events.of(spans, [[f"{letter}{v}{i}" for i in range(len(video))] for v, video in enumerate(spans)])


@settings(max_examples=60, deadline=None)
@given(VIDEOS)
def test_pairs_precision_and_recall_are_those_of_loops_over_videos(videos):
    predicted, true = events([p for p, _ in videos], "p"), events([t for _, t in videos], "t")
    over = overlaps(predicted, true, iou_epsilon)
    precision, recall = precision_recall(over, predicted, true, lambda iou, t: iou > t)
    groups = caption_groups(over, predicted, true, THRESHOLDS, repeat("filler"))
    bare = caption_groups(over, predicted, true, THRESHOLDS, None)
    alone = unmatched(over, predicted, THRESHOLDS)
    for v, (ps, ts) in enumerate(videos):
        iou = iou_epsilon(np.reshape(ps, (-1, 1, 2)), np.reshape(ts, (1, -1, 2)))
        for k, threshold in enumerate(THRESHOLDS):
            assert precision[v, k] == ((iou > threshold).any(1).sum() / max(len(ps), 1) if len(ts) else 0)
            assert recall[v, k] == ((iou > threshold).any(0).sum() / max(len(ts), 1) if len(ps) else 0)
            pairs = [(f"p{v}{i}", f"t{v}{j}") for i, j in np.argwhere(iou >= threshold)]
            lonely = [(f"p{v}{i}", "filler") for i, row in enumerate(iou) if not (row >= threshold).any()]
            assert list(groups[k * len(videos) + v]) == pairs + lonely
            assert list(bare[k * len(videos) + v]) == pairs
            assert alone[k, v] == len(lonely)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 4), st.integers(0, 4), st.integers(0, 2**32 - 1))
def test_the_alignment_is_the_best_of_all_monotone_ones(rows, columns, seed):
    earned = np.random.default_rng(seed).integers(0, 5, (rows, columns)) / 4

    def best(i, j):
        if i == rows or j == columns:
            return 0.0
        return max(best(i + 1, j), best(i, j + 1), earned[i, j] + best(i + 1, j + 1))

    assert _best_alignment(earned) == pytest.approx(best(0, 0))


# ---- answers of videollm.infer ---------------------------------------------------------------------------------------


def answer(text, spans=(), error=None):
    return answer_line("x", text, spans, error=error)


@pytest.mark.parametrize(
    ("text", "spans", "expected"),
    [
        ("[1.0 s - 2.5 s], cut it. [3.0 s - 4.0 s] , fry it.", [], [([1.0, 2.5], "cut it."), ([3.0, 4.0], "fry it.")]),
        ("[1.0 s - 2.5 s], cut it.", [[1.04, 2.46]], [([1.04, 2.46], "cut it.")]),
        ("First [1.0 s - 2.5 s]: cut it", [[9, 9], [1, 2]], [([1.0, 2.5], "cut it")]),
        ("[1.0 s - 2.5 s], [3.0 s - 4.0 s], fry it.", [], [([3.0, 4.0], "fry it.")]),
        ("1 - 2.5 seconds, cut it. 3 - 4 seconds, fry it.", [], [([1.0, 2.5], "cut it"), ([3.0, 4.0], "fry it")]),
        ("I see a kitchen.", [], []),
        ("", [], []),
    ],
)
def test_events_of_an_answer(text, spans, expected):
    assert answer_events(answer(text, spans), None) == expected


# ---- the benchmarks --------------------------------------------------------------------------------------------------

COOK = {
    "annotations": [
        {"image_id": "a.mp4", "duration": 40.0, "segments": [[0, 10], [20, 30]], "pure_cap": "cut the onion. add oil"},
        {"image_id": "b.mp4", "duration": 50.0, "segments": [[5, 15]], "pure_cap": "stir the soup"},
        {"image_id": "c.mp4", "duration": 50.0, "segments": [[5, 15]], "pure_cap": "serve"},
    ]
}
ANET = {
    "v_a": {"duration": 40.0, "timestamps": [[0, 10], [20, 30]], "sentences": ["A man cuts.", " He adds oil."]},
    "v_b": {"duration": 50.0, "timestamps": [[5, 15]], "sentences": ["A dog runs."]},
}
TRUTHS = {"youcook2": COOK, "anet_dvc": ANET}


def write(folder, name, data):
    path = folder / name
    path.write_text(data if isinstance(data, str) else json.dumps(data), encoding="utf-8")
    return path


def load(name, folder):
    return get(name).load(write(folder, "truth.json", TRUTHS[name]))


@pytest.mark.parametrize("name", TRUTHS)
@pytest.mark.parametrize("wording", ["d2vlm", "distime", "plain"])
def test_questions_hold_no_answer(name, wording, tmp_path):
    lines = get(name).questions(load(name, tmp_path), wording)
    assert [line["id"] for line in lines] == load(name, tmp_path).names
    for line in lines:
        assert set(line) == {"id", "video", "duration", "conversations"}
        assert line["video"].endswith(".mp4") and line["video"].count(".mp4") == 1
        assert len(line["conversations"]) == 1 and "{" not in line["conversations"][0]["value"]


@pytest.mark.parametrize("name", TRUTHS)
def test_perfect_answers_score_full_marks_through_the_official_form(name, tmp_path, plain_words):
    task, truth = get(name), load(name, tmp_path)
    answers = {
        video: answer(" ".join(f"[{s:.1f} s - {e:.1f} s], {text}" for (s, e), text in zip(spans, texts, strict=True)))
        for video, spans, texts in zip(truth.names, truth.spans, truth.captions, strict=True)
    }
    path = write(tmp_path, "predictions.json", task.from_answers(truth, answers, "distime"))
    scores = task.score(truth, task.read(path, truth), Options("corrected", task.variants[0]))
    for metric in ("F1", "Precision@0.9", "Recall@0.9", "SODA_c", "METEOR"):
        assert scores.metrics[metric] == pytest.approx(100)
    assert scores.counts == {"samples": len(truth), "scored": len(truth), "unparsed": 0, "missing": 0, "clipped": 0}


@pytest.mark.parametrize("name", TRUTHS)
@pytest.mark.parametrize("protocol", ["published", "corrected"])
def test_nothing_answered_is_no_crash(name, protocol, tmp_path, plain_words):
    task, truth = get(name), load(name, tmp_path)
    answers = {truth.names[0]: answer("I do not know."), truth.names[1]: answer("", error="unreadable")}
    path = write(tmp_path, "predictions.json", task.from_answers(truth, answers, "plain"))
    scores = task.score(truth, task.read(path, truth), Options(protocol, task.variants[0]))
    assert scores.metrics["F1"] == scores.metrics["CIDEr"] == scores.metrics["SODA_c"] == 0
    assert (scores.counts["unparsed"], scores.counts["missing"]) == (1, len(truth) - 1)


def test_missing_videos_count_zero_and_are_reported(tmp_path, plain_words):
    task, truth = get("youcook2"), load("youcook2", tmp_path)
    path = write(tmp_path, "p.json", {"b.mp4": [{"timestamp": [5, 15], "caption": "stir the soup."}], "c.mp4": []})
    predictions = task.read(path, truth)
    published = task.score(truth, predictions, Options("published", "default"))
    corrected = task.score(truth, predictions, Options("corrected", "default"))
    assert published.counts["missing"] == published.counts["unparsed"] == published.counts["scored"] == 1
    assert corrected.metrics["F1"] == pytest.approx(100 / 3)
    assert corrected.per_sample["F1"] == {"a.mp4": 0, "b.mp4": 1, "c.mp4": 0}
    assert published.metrics["CIDEr"] == 0 < corrected.metrics["CIDEr"]  # one pair has no document frequencies
    assert any("1 videos are missing" in note for note in published.notes)


def test_spans_are_ordered_and_cut_in_the_corrected_protocol(tmp_path, plain_words):
    task, truth = get("youcook2"), load("youcook2", tmp_path)
    given = {"b.mp4": [{"timestamp": [99, 5], "caption": "stir the soup"}]}
    predictions = task.read(write(tmp_path, "p.json", given), truth)
    scores = task.score(truth, predictions, Options("corrected", "default"))
    assert scores.counts["clipped"] == 1
    assert scores.metrics["SODA_c"] == pytest.approx(100 * 10 / 45 / 3)  # 5 to 50 against 5 to 15


def test_published_soda_hears_the_eleventh_caption_third(tmp_path, plain_words, monkeypatch):
    """Captions reach SODA in text order of their numbers: 0, 1, 10, 2, ...; their spans do not."""
    heard = []
    measures = dense_measures.published_measures
    task, truth = get("youcook2"), load("youcook2", tmp_path)
    monkeypatch.setattr(dense_measures, "published_measures", lambda *a: heard.append(a[-1]) or measures(*a))
    listed = [{"timestamp": [i, i + 1], "caption": f"step {i}"} for i in range(12)]
    predictions = task.read(write(tmp_path, "p.json", {"a.mp4": listed}), truth)
    task.score(truth, predictions, Options("published", "default"))
    assert heard == [[f"step {i}" for i in (0, 1, 10, 11, *range(2, 10))]]


def anet_lines(*events):
    answer = json.dumps([{"event": text, "timestamps": times} for text, times in events])
    return json.dumps({"video_id": "v_a", "task": "captioning", "answer": answer})


def test_anet_variants_read_the_same_times_differently(tmp_path, plain_words):
    task, truth = get("anet_dvc"), load("anet_dvc", tmp_path)
    predictions = task.read(write(tmp_path, "p.jsonl", anet_lines(("a", "0 - 10"), ("b", "50 - 74"))), truth)
    metrics = [task.score(truth, predictions, Options("published", v)).metrics for v in ("seconds", "percent")]
    recall = dict(zip(("seconds", "percent"), (found["Recall@0.9"] for found in metrics), strict=True))
    assert recall == {"seconds": 50, "percent": 50}  # the first in seconds, the second in hundredths of 40 s
    assert task.score(truth, predictions, Options("published", "percent")).denominator == "videos in the predictions"


def test_anet_events_end_at_the_first_odd_one_and_repeated_sentences_are_merged(tmp_path, plain_words):
    task, truth = get("anet_dvc"), load("anet_dvc", tmp_path)
    lines = anet_lines(
        ("he runs", "0 - 4"), ("he runs", "5 - 10"), ("he runs", "20 - 30"), ("x", "1.5 - 2"), ("y", "1 - 2")
    )
    predictions = task.read(write(tmp_path, "p.jsonl", lines), truth)
    assert predictions.published.spans[0] == [[0, 4], [5, 10], [20, 30]]
    assert predictions.spans[0] == [[0, 4], [5, 10], [20, 30], [1.5, 2], [1, 2]]
    scores = task.score(truth, predictions, Options("published", "seconds"))
    assert scores.metrics["Precision@0.7"] == scores.metrics["Recall@0.7"] == 100


def test_the_last_of_two_lines_counts_and_is_named(tmp_path):
    task, truth = get("anet_dvc"), load("anet_dvc", tmp_path)
    path = write(tmp_path, "p.jsonl", anet_lines(("x", "0 - 1")) + "\n" + anet_lines(("y", "2 - 3")))
    predictions = task.read(path, truth)
    assert predictions.captions[0] == ["y"]
    assert "1 lines are for a video that has one already" in predictions.notes[0]


@pytest.mark.parametrize("name", TRUTHS)
def test_without_java_and_meteor_the_spans_are_still_scored(name, tmp_path, monkeypatch):
    def none():
        raise JavaError("no java")

    monkeypatch.setattr(dense_scores, "find_java", none)
    task, truth = get(name), load(name, tmp_path)
    answers = {truth.names[0]: answer("[0.0 s - 10.0 s], cut.")}
    path = write(tmp_path, "p.json", task.from_answers(truth, answers, "plain"))
    for protocol in ("published", "corrected"):
        scores = task.score(truth, task.read(path, truth), Options(protocol, task.variants[0], skip_meteor=True))
        assert scores.metrics["METEOR"] is scores.metrics["CIDEr"] is scores.metrics["SODA_c"] is None
        assert scores.metrics["Precision"] > 0
        assert any("METEOR and SODA_c are left out" in note for note in scores.notes)
        assert any("no Java" in note for note in scores.notes)


BAD_PREDICTIONS = [
    ("youcook2", {"z.mp4": []}, "'z.mp4': no video of the annotations"),
    ("youcook2", {"a.mp4": {"timestamp": [1, 2]}}, "none of the forms of youcook2"),
    ("youcook2", {"b.mp4": [{"timestamp": [1, 2], "caption": ""}], "a.mp4": {}}, "'a.mp4': expected a list"),
    ("youcook2", {"a.mp4": [{"timestamp": [1, 2]}]}, "'a.mp4': no key 'caption'"),
    ("youcook2", {"a.mp4": ["text"]}, "'a.mp4': expected an object"),
    ("youcook2", '{"a.mp4": [], "a.mp4": []}', "'a.mp4' stands twice"),
    ("youcook2", [{"video": "x/a.mp4", "a": ""}, {"video": "y/a.mp4", "a": ""}], "'a.mp4' stands twice"),
    ("youcook2", [{"qid": 3}], "none of the forms of youcook2"),
    ("youcook2", [{"video": "a.mp4", "a": ""}, {"qid": 3}], "no key 'video', 'a'"),
    ("youcook2", "", "empty"),
    ("anet_dvc", {"video_id": "v_z", "answer": "[]"}, "'v_z'"),
    ("anet_dvc", {"results": 3}, "none of the forms of anet_dvc"),
    ("anet_dvc", {"results": {"v_a": 3}}, "'v_a': expected a list"),
    ("anet_dvc", "[3]", "expected an object"),
    ("anet_dvc", '{"video_id": "v_a", "answer', ":1: not JSON"),
]


@pytest.mark.parametrize(("name", "data", "message"), BAD_PREDICTIONS)
def test_a_bad_prediction_file_is_named(name, data, message, tmp_path):
    with pytest.raises(BenchmarkError, match="p.json") as error:
        get(name).read(write(tmp_path, "p.json", data), load(name, tmp_path))
    assert message in str(error.value)


def test_events_that_are_none_are_left_out_and_counted(tmp_path):
    bad = [
        {"timestamp": t, "caption": "x"} for t in ([float("nan"), 1], [1, float("inf")], [1], None, ["a", 2], [-1, -1])
    ]
    bad += [{"timestamp": [1, 2], "caption": None}]
    predictions = get("youcook2").read(write(tmp_path, "p.json", {"a.mp4": bad}), load("youcook2", tmp_path))
    assert predictions.spans[0] == [] and "7 events" in predictions.notes[0]


@pytest.mark.parametrize(
    "text", ["[", "null", "3", '[{"event": 3, "timestamps": "1 - 2"}]', '[{"event": "x"}]', "[" * 9999]
)
def test_an_anet_answer_that_is_no_list_of_events_is_unparsed(text, tmp_path, plain_words):
    task, truth = get("anet_dvc"), load("anet_dvc", tmp_path)
    path = write(tmp_path, "p.jsonl", {"video_id": "v_a", "answer": text})
    for protocol in ("published", "corrected"):
        assert task.score(truth, task.read(path, truth), Options(protocol, "seconds")).counts["unparsed"] == 1


BAD_TRUTHS = [
    ("youcook2", {"annotations": []}, "no video"),
    ("youcook2", {"annotations": COOK["annotations"] * 2}, "'a.mp4' stands twice"),
    ("youcook2", {"annotations": [{"image_id": "a", "segments": [[0, 1]], "pure_cap": "x. y"}]}, "2 captions"),
    ("youcook2", {"annotations": [{"image_id": "a", "segments": [[0]], "pure_cap": "x"}]}, "[0]"),
    ("youcook2", {"v_a": 3}, "none of the forms of the annotations of youcook2"),
    ("anet_dvc", {"v_a": ANET["v_a"] | {"duration": -1}}, "duration -1"),
    ("anet_dvc", {"v_a": ANET["v_a"] | {"timestamps": []}}, "2 captions"),
    ("anet_dvc", {"v_a": ANET["v_a"] | {"sentences": [1, 2]}}, "not a list of texts"),
    ("anet_dvc", [3], "expected an object"),
]


@pytest.mark.parametrize(("name", "data", "message"), BAD_TRUTHS)
def test_a_bad_annotation_file_is_named(name, data, message, tmp_path):
    with pytest.raises(BenchmarkError, match=r"truth\.json") as error:
        get(name).load(write(tmp_path, "truth.json", data))
    assert message in str(error.value)


def test_the_data_sets_own_annotations_and_gzip_are_read(tmp_path):
    event = {"segment": [0, 10], "id": 0, "sentence": "cut. Then stir"}
    videos = {"a": {"subset": "validation", "duration": 40.5, "annotations": [event]}, "b": {"subset": "training"}}
    videos["b"]["annotations"] = []
    path = tmp_path / "youcookii.json.gz"
    path.write_bytes(gzip.compress(json.dumps({"database": videos}).encode()))
    truth = get("youcook2").load(path)
    assert (truth.names, truth.durations.tolist(), truth.captions) == (["a.mp4"], [40.5], [["cut. Then stir"]])
