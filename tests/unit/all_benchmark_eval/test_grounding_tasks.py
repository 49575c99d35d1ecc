"""The grounding benchmarks on files of a few lines: what is read, what is refused, and what each protocol counts."""

import gzip
import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from all_benchmark_eval.benchmark import BenchmarkError, Options, Scores, get
from all_benchmark_eval.metrics.moments import State
from all_benchmark_eval.qvhighlights.files import parse_windows
from tests.grounding_files import COUNT, GROUNDING, PERFECT, TRUTH, truth_of, write


def scored(name: str, folder: Path, predictions, protocol: str, variant: str | None = None) -> Scores:
    task, truth = get(name), truth_of(name, folder)
    given = task.read(write(folder / "predictions.json", predictions), truth)
    return task.score(truth, given, Options(protocol, variant or task.variants[0]))


# ---- what both protocols count ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", ["published", "corrected"])
@pytest.mark.parametrize("name", GROUNDING)
def test_perfect_predictions_score_100_percent_but_for_the_scripts_epsilon(name, protocol, tmp_path) -> None:
    scores = scored(name, tmp_path, PERFECT[name], protocol)
    tolerance = 1e-3 if protocol == "published" else 1e-9
    assert all(value == pytest.approx(100, rel=tolerance) for value in scores.metrics.values())
    assert scores.counts == {"samples": COUNT[name], "scored": COUNT[name], "unparsed": 0, "missing": 0, "clipped": 0}


FIRST = {  # the file with this as its first prediction
    "charades": lambda span: {**PERFECT["charades"], "AAA": {"a door.": {"start": span[0], "end": span[1]}}},
    "anet": lambda span: {"results": {**PERFECT["anet"]["results"], "v_A-0": {"timestamp": [span]}}},
    "qvhighlights": lambda span: [{"qid": 7, "pred_relevant_windows": [[*span, 0.9]]}, PERFECT["qvhighlights"][1]],
    "nextgqa": lambda span: [{**PERFECT["nextgqa"][0], "timestamp": span}, PERFECT["nextgqa"][1]],
}
BAD_SPANS = {
    "NaN": [float("nan"), 5.0],
    "infinite": [0.0, float("inf")],
    "no time": [-1, -1],
    "text": ["a", "b"],
    "null": [None, None],
    "too large for a float": [0, 10**400],
    "truth value": [False, True],
}


@pytest.mark.parametrize("protocol", ["published", "corrected"])
@pytest.mark.parametrize("span", BAD_SPANS.values(), ids=BAD_SPANS.keys())
@pytest.mark.parametrize("name", GROUNDING)
def test_a_span_that_is_none_is_unparsed_and_stays_in_the_denominator(name, span, protocol, tmp_path) -> None:
    scores = scored(name, tmp_path, FIRST[name](span), protocol)
    assert scores.counts["unparsed"] == 1
    assert scores.counts["scored"] == COUNT[name] - 1
    key = "mIoU"
    assert len(scores.per_sample[key]) == COUNT[name]
    assert scores.metrics[key] == pytest.approx(100 * (COUNT[name] - 1) / COUNT[name], rel=1e-3)


@pytest.mark.parametrize("name", GROUNDING)
def test_a_reversed_span_is_ordered_by_the_corrected_protocol_only(name, tmp_path) -> None:
    reverse = {"charades": [20, 10], "anet": [10, 0], "qvhighlights": [20, 10], "nextgqa": [10, 5]}[name]
    corrected = scored(name, tmp_path, FIRST[name](reverse), "corrected")
    published = scored(name, tmp_path, FIRST[name](reverse), "published")
    assert corrected.metrics["mIoU"] == pytest.approx(100)
    assert published.metrics["mIoU"] == pytest.approx(100 * (COUNT[name] - 1) / COUNT[name], rel=1e-3)


@pytest.mark.parametrize("name", GROUNDING)
def test_a_span_beyond_the_video_is_cut_and_counted_by_the_corrected_protocol(name, tmp_path) -> None:
    beyond = {"charades": [10, 99], "anet": [-5, 99], "qvhighlights": [10, 999], "nextgqa": [5, 99]}[name]
    limit = {"charades": [10, 30], "anet": [0, 50], "qvhighlights": [10, 150], "nextgqa": [5, 30]}[name]
    assert scored(name, tmp_path, FIRST[name](beyond), "corrected").counts["clipped"] == 1
    cut = scored(name, tmp_path, FIRST[name](beyond), "corrected").metrics["mIoU"]
    assert cut == pytest.approx(scored(name, tmp_path, FIRST[name](limit), "corrected").metrics["mIoU"])


MISSING_ONE = {
    "charades": {"BBB": PERFECT["charades"]["BBB"]},
    "anet": {"results": {"v_A-1": {"timestamp": [[20, 40]]}}},
    "qvhighlights": PERFECT["qvhighlights"][1:],
    "nextgqa": PERFECT["nextgqa"][1:],
}


@pytest.mark.parametrize("name", GROUNDING)
def test_a_missing_answer_is_wrong_when_corrected_and_what_published_does_is_said(name, tmp_path) -> None:
    corrected = scored(name, tmp_path, MISSING_ONE[name], "corrected")
    assert corrected.counts["missing"] == 1
    assert corrected.metrics["mIoU"] == pytest.approx(100 * (COUNT[name] - 1) / COUNT[name])
    published = scored(name, tmp_path, MISSING_ONE[name], "published")
    if name in ("qvhighlights", "nextgqa"):  # the scripts look at the file's queries only
        assert "in the prediction file" in published.denominator
        assert published.metrics["mIoU"] == pytest.approx(100)
    else:
        assert published.metrics["mIoU"] == pytest.approx(100 * (COUNT[name] - 1) / COUNT[name], rel=1e-3)


def test_a_metric_that_is_a_mean_is_the_mean_of_its_samples(tmp_path) -> None:
    for name in GROUNDING:
        scores = scored(name, tmp_path, MISSING_ONE[name], "corrected")
        for metric in scores.metrics.keys() & scores.per_sample.keys():
            mean = 100 * np.mean(list(scores.per_sample[metric].values()))
            assert scores.metrics[metric] == pytest.approx(mean)


def test_published_charades_floors_each_iou_and_says_where_the_script_stops(tmp_path) -> None:
    third = scored("charades", tmp_path, FIRST["charades"]([10, 40]), "published")  # IoU 0.333: 33
    assert third.metrics["mIoU"] == pytest.approx((33 + 200) / 3)
    stops = scored("charades", tmp_path, FIRST["charades"]([20, 10]), "published")  # 0/0
    assert any("0/0" in note and "AAA/a door." in note for note in stops.notes)


def test_an_iou_that_is_a_threshold_on_paper_is_a_hit_when_corrected(tmp_path) -> None:
    exactly_half = FIRST["anet"]([0, 5])  # true span [0, 10]
    assert scored("anet", tmp_path, exactly_half, "corrected").metrics["R1@0.5"] == 100
    assert scored("anet", tmp_path, exactly_half, "published").metrics["R1@0.5"] == 50


# ---- files -----------------------------------------------------------------------------------------------------------


def test_the_three_forms_of_charades_annotations_are_one_truth(tmp_path) -> None:
    rows = [("AAA", 10, 20, "a door."), ("BBB", 0, 5, "a cat."), ("BBB", 30, 40.5, "a dog.")]
    text = "".join(f"{v} {s} {e}##{q}\n" for v, s, e, q in rows)
    listed = [
        {"image_id": f"{v}.mp4", "caption": q, "timestamp": [s, e], "id": i} for i, (v, s, e, q) in enumerate(rows)
    ]
    write(tmp_path / "Charades_v1_test.csv", "id,subject,length\nAAA,x,30.0\nBBB,y,40.0\n")
    task, expected = get("charades"), truth_of("charades", tmp_path)
    for other in (write(tmp_path / "a.txt", text), write(tmp_path / "b.json", {"annotations": listed})):
        truth = task.load(other)
        assert (truth.ids, truth.queries) == (expected.ids, expected.queries)
        np.testing.assert_array_equal(truth.spans, expected.spans)
        np.testing.assert_array_equal(truth.durations, expected.durations)


def test_without_lengths_of_the_videos_the_table_says_that_nothing_is_cut(tmp_path) -> None:
    task = get("charades")
    truth = task.load(write(tmp_path / "a.txt", "AAA 10 20##a door.\n"))
    given = task.read(write(tmp_path / "p.json", {"AAA": {"a door.": {"start": 10, "end": 99}}}), truth)
    scores = task.score(truth, given, Options("corrected", "distime"))
    assert scores.counts["clipped"] == 0
    assert any("no duration" in note for note in scores.notes)


@pytest.mark.parametrize(
    "predictions",
    [
        {"0": {"timestamp": [9, 20], "vid": "AAA.mp4", "query": "a door. "}, "1": []},
        {"0": {"timestamp": [[9, 20], [0, 1]], "vid": "AAA.mp4"}, "1": {"timestamp": [], "vid": "BBB.mp4"}},
        {"AAA": {"a door.": {"start": 9, "end": 20}}, "BBB": {"a cat.": {"start": -1, "end": -1}}},
        [
            {"idx": 0, "video": "charades/AAA.mp4", "a": "<evi> 0 - 1 </evi>It happens in 9.0 - 20.0 seconds."},
            {"idx": 1, "video": "charades/BBB.mp4", "a": "I do not know."},
        ],
    ],
    ids=["converted", "timechat", "distime", "d2vlm"],
)
def test_every_form_of_charades_predictions_is_read(predictions, tmp_path) -> None:
    located = get("charades").read(write(tmp_path / "p.json", predictions), truth_of("charades", tmp_path))
    assert located.spans[0].tolist() == [9, 20]
    assert located.state.tolist() == [State.PARSED, State.UNPARSED, State.MISSING]


def test_charades_variants_differ_in_what_they_average_over(tmp_path) -> None:
    file = {"0": {"timestamp": [10, 20], "vid": "AAA.mp4"}, "1": []}
    means = {
        variant: scored("charades", tmp_path, file, "published", variant).metrics["mIoU"]
        for variant in get("charades").variants
    }
    own = {"distime": 100 / 3, "d2vlm": 100, "timechat": 100 / 3, "timechat_sample": 50}
    others = ("lmms_charades", "exactly_one", "time_r1", "videomind", "unitime")
    assert means == pytest.approx(own | dict.fromkeys(others, 50))  # of the answers in the file


def test_qvhighlights_takes_its_truth_from_the_targets_where_no_file_is_given(tmp_path) -> None:
    lines = [{"qid": "QVHighlight_7", "prediction": "[[10, 20]]", "target": "[[10, 20]]", "duration": 150}]
    task = get("qvhighlights")
    given = task.read(write(tmp_path / "p.json", lines), None)
    assert task.score(None, given, Options("published", "distime")).metrics["R1@0.5"] == 100
    with pytest.raises(BenchmarkError, match=r"qid 7 has the target \[\[10.0, 20.0\]\], but the annotations say"):
        task.read(tmp_path / "p.json", truth_of("qvhighlights", tmp_path))


def test_json_lines_and_a_json_list_of_qvhighlights_are_the_same(tmp_path) -> None:
    lines = "".join(json.dumps(line) + "\n" for line in PERFECT["qvhighlights"])
    truth = truth_of("qvhighlights", tmp_path)
    given = get("qvhighlights").read(write(tmp_path / "p.jsonl", lines), truth)
    assert given.state.tolist() == [State.PARSED] * 2


def test_highlights_need_the_annotations_that_have_them(tmp_path) -> None:
    file = [{"qid": 7, "pred_saliency_scores": [0.1] * 75}]
    with pytest.raises(BenchmarkError, match="no saliency_scores"):
        scored("qvhighlights", tmp_path, file, "published", "moment_detr")
    with pytest.raises(BenchmarkError, match="--variant moment_detr"):
        scored("qvhighlights", tmp_path, file, "published", "distime")


BAD_FILES = {
    "another benchmark's": {
        "charades": PERFECT["nextgqa"],
        "anet": PERFECT["charades"],
        "qvhighlights": PERFECT["nextgqa"],
        "nextgqa": PERFECT["anet"],
    },
    "an unknown id": {
        "charades": {"ZZZ": {"a door.": {"start": 0, "end": 1}}},
        "anet": {"results": {"v_ZZZ-0": {"timestamp": [[0, 1]]}}},
        "qvhighlights": [{"qid": "ZZZ", "pred_relevant_windows": []}],
        "nextgqa": [{"qid": "TN_ZZZ_0", "prediction": 1, "timestamp": [0, 1], "target": 1}],
    },
    "a repeated id": {
        "charades": {"AAA": {"a door.": {"start": 0, "end": 1}, "a door. ": {"start": 0, "end": 1}}},
        "anet": '{"results": {"v_A-0": {"timestamp": []}, "v_A-0": {"timestamp": []}}}',
        "qvhighlights": [PERFECT["qvhighlights"][0]] * 2,
        "nextgqa": [PERFECT["nextgqa"][0]] * 2,
    },
    "a missing key": {
        "charades": {"AAA": {"a door.": {"start": 0}}},
        "anet": {"results": {"v_A-0": {}}},
        "qvhighlights": [{"qid": 7}],
        "nextgqa": [{"qid": "TN_111_0", "prediction": 1, "target": 1}],
    },
    "a list of numbers": dict.fromkeys(GROUNDING, [1, 2, 3]),
    "one number": dict.fromkeys(GROUNDING, 5),
    "an empty file": dict.fromkeys(GROUNDING, ""),
    "brackets without end": dict.fromkeys(GROUNDING, "[" * 100_000),
    "no json": dict.fromkeys(GROUNDING, "\x00\x01\x02"),
}
NAMES_THE_PLACE = {
    "an unknown id": "ZZZ",
    "a repeated id": "a door. |v_A-0|qid 7|TN_111_0",
    "a missing key": "'end'|v_A-0|prediction|timestamp",
}


@pytest.mark.parametrize("key", ["3", "-1", "1.0", "9" * 5000, "x"])  # Python reads no number of 4,301 digits
def test_a_number_of_no_query_is_refused_by_name(key, tmp_path) -> None:
    path = write(tmp_path / "predictions.json", {key: {"timestamp": [0, 1], "vid": "AAA.mp4"}})
    with pytest.raises(BenchmarkError, match=f"the annotations have queries 0 to 2, not '{re.escape(key[:40])}'"):
        get("charades").read(path, truth_of("charades", tmp_path))


@pytest.mark.parametrize("what", BAD_FILES)
@pytest.mark.parametrize("name", GROUNDING)
def test_a_bad_prediction_file_is_one_clear_error(name, what, tmp_path) -> None:
    path = write(tmp_path / "predictions.json", BAD_FILES[what][name])
    with pytest.raises(BenchmarkError, match=NAMES_THE_PLACE.get(what, "predictions.json")):
        get(name).read(path, truth_of(name, tmp_path))


@pytest.mark.parametrize("name", GROUNDING)
def test_a_truncated_gzip_file_is_one_clear_error(name, tmp_path) -> None:
    whole = gzip.compress(json.dumps(PERFECT[name]).encode())
    path = tmp_path / "predictions.json.gz"
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BenchmarkError, match="predictions.json.gz: cannot be read"):
        get(name).read(path, truth_of(name, tmp_path))


BAD_TRUTHS = {
    "charades": [
        {"other": 1},
        {"database": {"AAA": {"duration": 0, "annotations": []}}},
        {"database": {"AAA": {"duration": 9, "annotations": [{"label": "x", "segment": [0, float("nan")]}]}}},
        {"annotations": [{"image_id": "A.mp4", "caption": "x", "timestamp": [0, 1], "id": 5}]},
        "AAA 10 twenty##a door.\n",
        "AAA 10 20 a door.\n",
    ],
    "anet": [
        {},
        [],
        {"v_A": {"duration": 5, "timestamps": [[0, 1]], "sentences": []}},
        {"v_A": {"duration": "5", "timestamps": [[0, 1]], "sentences": ["x"]}},
        {"v_A": {"duration": 5, "timestamps": [[0]], "sentences": ["x"]}},
    ],
    "qvhighlights": [
        [],
        [{"qid": 1, "query": "x", "duration": 150}],
        [{"qid": 1, "query": "x", "duration": 150, "relevant_windows": []}],
        [{"qid": 1, "query": "x", "duration": 0, "relevant_windows": [[0, 1]]}],
        [TRUTH["qvhighlights"][0]] * 2,
        [{**TRUTH["qvhighlights"][0], "relevant_clip_ids": [75], "saliency_scores": [[1, 2, 3]]}],
        [{**TRUTH["qvhighlights"][0], "relevant_clip_ids": [-1], "saliency_scores": [[1, 2, 3]]}],
        [{**TRUTH["qvhighlights"][0], "relevant_clip_ids": [0], "saliency_scores": [[1, 2]]}],
    ],
    "nextgqa": [{}, {"111": {"duration": 30}}, {"111": {"duration": 30, "location": {"0": [[0, "x"]]}}}],
}


@pytest.mark.parametrize(
    ("name", "truth"), [(name, truth) for name, truths in BAD_TRUTHS.items() for truth in truths], ids=repr
)
def test_bad_annotations_are_one_clear_error(name, truth, tmp_path) -> None:
    path = write(tmp_path / "truth.json", truth)
    with pytest.raises(BenchmarkError, match="truth.json"):
        get(name).load(path)


@pytest.mark.parametrize(
    "text", ["[[" + "1, " * 33_000 + "2]]", "[" * 100_000 + "]]", "x\x00\x1b[[1, 2]]", "[[1e999, 2]]"]
)
def test_an_unusual_text_of_windows_is_unparsed(text, tmp_path) -> None:
    lines = [{"qid": 7, "prediction": text}, {"qid": 8, "prediction": "[[100, 150]]"}]
    assert scored("qvhighlights", tmp_path, lines, "published").counts["unparsed"] == 1


def test_thousands_of_windows_in_one_answer_are_ranked(tmp_path) -> None:
    many = str([[1, 2]] * 9_999 + [[100, 150]])  # about 80,000 characters
    lines = [{"qid": 7, "prediction": "[[10, 20]]"}, {"qid": 8, "prediction": many}]
    scores = scored("qvhighlights", tmp_path, lines, "published")
    assert scores.per_sample["mAP avg"]["8"] == pytest.approx(1e-4)


@given(st.text() | st.text(alphabet='[]-1.5, "e', max_size=40))
def test_no_text_of_windows_is_an_exception(text) -> None:
    assert parse_windows(text)


def test_a_choice_that_is_no_number_is_wrong_and_a_single_time_is_a_point(tmp_path) -> None:
    file = [
        {"qid": "TN_111_0", "prediction": "none", "timestamp": 7.0, "target": 3},
        {"qid": "TP_111_2", "prediction": None, "timestamp": [0, 30], "target": 1},
    ]
    published = scored("nextgqa", tmp_path, file, "published")
    assert published.metrics["Acc@QA"] == 0
    assert published.per_sample["mIoP"]["111_0"] == 1
    assert published.per_sample["mIoU"]["111_0"] == 0
    assert scored("nextgqa", tmp_path, file, "corrected").per_sample["mIoP"]["111_0"] == 0
    assert published.details["Acc@QA by type, grounded"].keys() == {"TN", "T", "all"}


POINT = {  # a ground truth whose first span has no length
    "charades": {"database": {"AAA": {"duration": 30.0, "annotations": [{"label": "a door.", "segment": [10, 10]}]}}},
    "anet": {"v_A": {"duration": 50, "timestamps": [[7, 7], [20, 40]], "sentences": ["One.", " Two."]}},
    "qvhighlights": [{"qid": 7, "query": "q", "duration": 150, "relevant_windows": [[10, 10]]}],
    "nextgqa": {"111": {"duration": 30, "location": {"0": [[5, 5], [20, 25]]}}},
}


@pytest.mark.parametrize("protocol", ["published", "corrected"])
@pytest.mark.parametrize("name", GROUNDING)
def test_true_spans_of_no_length_are_counted_in_a_note(name, protocol, tmp_path) -> None:
    task = get(name)
    known = {"charades": {"AAA": PERFECT["charades"]["AAA"]}, "anet": PERFECT["anet"]}
    known |= {key: PERFECT[key][:1] for key in ("qvhighlights", "nextgqa")}
    path = write(tmp_path / "p.json", known[name])
    for truth, notes in ((POINT[name], 1), (TRUTH[name], 0)):
        true = task.load(write(tmp_path / "t.json", truth))
        scores = task.score(true, task.read(path, true), Options(protocol, task.variants[0]))
        assert sum(note.startswith("1 true spans have no length") for note in scores.notes) == notes


@pytest.mark.parametrize("protocol", ["published", "corrected"])
def test_nextgqa_has_recalls_of_iop_and_iou_up_to_seven_tenths(protocol, tmp_path) -> None:
    given = [{**PERFECT["nextgqa"][0], "timestamp": [5, 13]}, {**PERFECT["nextgqa"][1], "timestamp": [0, 24]}]
    metrics = scored("nextgqa", tmp_path, given, protocol).metrics  # IoP 0.625 and 1, IoU 0.625 and 0.8
    assert [metrics[f"IoP@{t}"] for t in (0.3, 0.5, 0.7)] == [100, 100, 50]
    assert [metrics[f"IoU@{t}"] for t in (0.3, 0.5, 0.7)] == [100, 100, 50]
