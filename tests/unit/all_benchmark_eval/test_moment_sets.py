"""Benchmarks of one moment a query that have files of their own: each scored by hand, and what it asks."""

import pytest

from all_benchmark_eval.benchmark import BenchmarkError, get
from tests.answers import answer_line
from tests.form_files import TRUTHS, lines, scored, write


def metrics(name, truth, given, folder, protocol="published", **options):
    return scored(name, truth, given, folder, **options)[protocol]["metrics"]


# ---- TVGBench --------------------------------------------------------------------------------------------------------

TVG = [
    {"path": f"./x/v{i}.mp4", "question": f"q{i}.", "answer": answer, "duration": 30, "qsemtype": kind}
    | {"start": None, "end": None, "source": "x/Charades_sta_test.json", "bins": {"qsemtype": kind[0]}}
    for i, (answer, kind) in enumerate([("10.0-20.0", "Pose"), ("0.5-5", "Pose"), ("20-30.0", "Object")])
]
SAID = [
    {"qid": "a_0", "pred": [10.0, 15.0], "target": [10, 20], "output_text": "1 to 2? <answer>10.0 to 15.0</answer>"},
    {"qid": "a_1", "pred": [None, None], "target": [0.5, 5.0], "output_text": "I do not know"},
    {"qid": "a_2", "pred": [20.0, 30.0], "target": [20.0, 30.0]},
]


def test_tvgbench_by_hand_and_by_kind(tmp_path):
    found = metrics("tvgbench", TVG, lines(*SAID), tmp_path)
    overall = {"R1@0.3": 200 / 3, "R1@0.5": 100 / 3, "R1@0.7": 100 / 3, "mIoU": 50}  # 0.5 is not above 0.5
    pose = {"R1@0.3/Pose": 50, "R1@0.5/Pose": 0, "R1@0.7/Pose": 0, "mIoU/Pose": 25}
    rest = {"R1@0.3/Object": 100, "R1@0.5/Object": 100, "R1@0.7/Object": 100, "mIoU/Object": 100}
    assert found == pytest.approx(overall | pose | rest)
    assert metrics("tvgbench", TVG, lines(*SAID), tmp_path, "corrected")["R1@0.5"] == pytest.approx(200 / 3)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ({"qid": "a_7"}, "no question 'a_7'"),
        ({"qid": "a_1", "target": [10, 20]}, r"question 1 is \[0.5, 5.0\]: were videos missing"),
        ({"qid": "a_0"}, "question 0 stands twice"),
        ({"qid": "a_" + "9" * 5000}, "no question"),
    ],
)
def test_a_line_of_time_r1_about_something_else_is_refused(line, why, tmp_path):
    with pytest.raises(BenchmarkError, match=why):
        metrics("tvgbench", TVG, lines(SAID[0], SAID[0] | line), tmp_path)


# ---- TACoS, Ego4D-NLQ ------------------------------------------------------------------------------------------------

RANKED = lines(
    *(
        {"qid": i, "vid": f"v{i}", "query": "q", "pred_relevant_windows": windows}
        for i, windows in enumerate([[[0, 1, 0.1], [10, 20, 0.9]], [[5, 6, 0.2], [0, 1, 0.9]]])
    )
)
WINDOWS = lines(
    *(
        {"qid": i, "vid": f"v{i}", "query": "q", "duration": 99, "relevant_windows": [w]}
        for i, w in enumerate([[10, 20], [5, 6]])
    )
)


@pytest.mark.parametrize("name", ["tacos", "ego4d_nlq"])
def test_ranked_windows_have_r1_and_r5(name, tmp_path):
    found = metrics(name, WINDOWS, RANKED, tmp_path)
    assert found == {f"R1@{t}": 50 for t in (0.3, 0.5, 0.7)} | {f"R5@{t}": 100 for t in (0.3, 0.5, 0.7)} | {"mIoU": 50}
    every = metrics(name, WINDOWS, RANKED, tmp_path, variant="unitime")
    assert "R5@0.5" not in every and every["mIoU"] == pytest.approx(100 * (10 / 11 + 1 / 2) / 2)


def test_the_videos_of_tacos_are_those_of_one_camera(tmp_path):
    truth = get("tacos").load(write(tmp_path / "t.jsonl", WINDOWS.replace('"v0"', '"s27-d50"')))
    assert get("tacos").questions(truth, "plain")[0]["video"] == "s27-d50-cam-002.mp4"


# ---- HiREST ----------------------------------------------------------------------------------------------------------


def test_hirest_asks_relevant_clips_only(tmp_path):
    truth = get("hirest").load(write(tmp_path / "t.json", TRUTHS["hirest"]["HiREST"]))
    assert truth.ids == ["AAA.mp4/a door.", "BBB.mp4/a cat.", "BBB.mp4/a dog."]
    assert truth.queries[0] == "a door" and truth.durations.tolist() == [30, 40, 40]
    given = lines({"vid": "AAA", "query": "a door", "pred_relevant_windows": [[10, 15]]})
    assert metrics("hirest", TRUTHS["hirest"]["HiREST"], given, tmp_path)["mIoU"] == 50  # of the answers in the file
    corrected = metrics("hirest", TRUTHS["hirest"]["HiREST"], given, tmp_path, "corrected")
    assert corrected["mIoU"] == pytest.approx(50 / 3)


def test_hirests_own_predictions_are_read(tmp_path):
    """The truth has a door in AAA from 10 to 20; a video that is not asked about may stand in the file."""
    own = {"a door.": {"CCC.mp4": {"bounds": [0, 1]}, "AAA.mp4": {"bounds": [10, 15]}}, "another": {}}
    for protocol, value in (("published", 50), ("corrected", 50 / 3)):
        found = metrics("hirest", TRUTHS["hirest"]["HiREST"], own, tmp_path, protocol)
        assert found["mIoU"] == pytest.approx(value) and found["R1@0.5"] == pytest.approx(2 * value)
    others = {"a door.": {"X.mp4": {"bounds": [1, 2]}}}
    torn = {"a door.": {"X.mp4": {"bounds": [1, 2]}, "AAA.mp4": {"bound": [1, 2]}}}
    for given, why in ((others, "no query of the annotations"), (torn, "'AAA.mp4/a door.': no key 'bounds'")):
        with pytest.raises(BenchmarkError, match=why):
            metrics("hirest", TRUTHS["hirest"]["HiREST"], given, tmp_path)


# ---- ActivityNet-RTL -------------------------------------------------------------------------------------------------

RTL = [
    {"question_id": i, "vid": vid, "duration": 40, "question": f"q{i}?", "answer": answer}
    for i, (vid, answer) in enumerate([("a", "<10> <20.0> x"), ("a", "from <0.> to <.5>"), ("b", "<20> <30> y <3>")])
]


def test_lita_takes_the_whole_video_for_no_answer_and_means_over_videos(tmp_path):
    texts = lines(
        {"id": "0", "text": "<20> to <15>, so"}, {"id": "1", "text": "never"}, {"id": "2", "text": "<20> <99>"}
    )
    found = metrics("activitynet_rtl", RTL, texts, tmp_path)
    assert found == pytest.approx({"mIoU": 100 * ((0.5 + 0.5 / 40) / 2 + 0.5) / 2, "P@0.5": 100 * (0.5 + 1) / 2})
    assert metrics("activitynet_rtl", RTL, texts[: texts.index("\n") + 1], tmp_path)["mIoU"] == 50  # one video asked
    corrected = metrics("activitynet_rtl", RTL, texts, tmp_path, "corrected")
    assert corrected["mIoU"] == pytest.approx(100 * (0.5 + 0 + 0.5) / 3)
    plain = metrics("activitynet_rtl", RTL, texts, tmp_path, variant="timelens")
    assert plain["mIoU"] == pytest.approx(100 * 10 / 79 / 3)  # a reversed pair and none at all are 0, nothing is cut


def test_activitynets_videos_and_spans_in_brackets(tmp_path):
    task = get("activitynet_rtl")
    truth = task.load(write(tmp_path / "t.json", RTL))
    assert truth.spans.tolist() == [[10, 20], [0, 0.5], [20, 30]]
    assert [line["video"] for line in task.questions(truth, "plain")] == ["v_a.mp4", "v_a.mp4", "v_b.mp4"]
    with pytest.raises(BenchmarkError, match="item 1: the answer 'never' has no two times"):
        task.load(write(tmp_path / "t.json", [RTL[0] | {"answer": "never"}]))


# ---- ExtremeWhenBench ------------------------------------------------------------------------------------------------

HOURS = lines(
    *(
        {"qid": f"e{i}", "video_id": f"v{i}", "source_corpus": "LVBench", "question": f"When {i}?"}
        | {"correct_interval": [3600, 3620], "video_duration_s": 5400, "category": kind}
        for i, kind in enumerate(["talk", "talk", "fall"])
    )
)


def test_extremewhenbench_takes_the_last_pair_and_counts_what_is_not_parsed(tmp_path):
    texts = {"e0": "from 3 to 4, or rather 3620 ~ 3600", "e1": "No idea."}
    found = metrics("extremewhenbench", HOURS, texts, tmp_path)
    overall = {f"R1@{t}": 100 / 3 for t in (0.3, 0.5, 0.7)} | {"mIoU": 100 / 3, "parse_fail": 200 / 3}
    assert {name: value for name, value in found.items() if "/" not in name} == pytest.approx(overall)
    assert (found["mIoU/talk"], found["mIoU/fall"]) == (50, 0)


def test_extremewhenbench_asks_as_its_task_does(tmp_path):
    task = get("extremewhenbench")
    (line, *_) = task.questions(task.load(write(tmp_path / "t.jsonl", HOURS)), "plain")
    text = line["conversations"][0]["value"]
    assert line["video"] == "LVBench/v0.mp4"
    assert "a 5400-second long video" in text and 'question: "When 0?"' in text and "3620" not in text


# ---- answers of our own become files that say the same ---------------------------------------------------------------


@pytest.mark.parametrize("name", ["charades_timelens", "tvgbench", "activitynet_rtl", "extremewhenbench"])
def test_spans_by_token_are_scored_as_they_are_and_texts_by_each_script(name, tmp_path):
    task = get(name)
    truth = task.load(write(tmp_path / "truth.json", next(iter(TRUTHS[name].values()))))
    ids = [line["id"] for line in task.questions(truth, "plain")]
    by_token = answer_line(ids[0], "It happens in [10.0 s - 15.0 s].", [[10.04, 15.02]])
    told = answer_line(ids[1], "From 1 to 2, no, from 0 to 2.5 seconds.", [[0, 2.5]])
    failed = answer_line(ids[2], error="no video")
    data = task.from_answers(truth, {a.id: a for a in (by_token, told, failed)}, "plain")
    assert [sorted(entry) for entry in data.values()] == [["answers", "timestamps"], ["answers"]]
    given = task.read(write(tmp_path / "p.json", data), truth)
    assert given.spans[:2].tolist() == [[10.04, 15.02], [0, 2.5]] and given.counts()["missing"] == 1
    assert given.worded == {1}
