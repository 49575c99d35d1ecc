"""Shares of the video, its end and all of it: times that need the video's length, in every form of file that has texts.

The video has 40 s; what is scored under ``corrected`` is right, and ``--explain`` shows that and no other reading.
"""

import json

import pytest

from all_benchmark_eval.benchmark import get, names
from all_benchmark_eval.items import known_length
from all_benchmark_eval.metrics.choices import ChoiceBenchmark
from all_benchmark_eval.metrics.rules import RuledBenchmark
from all_benchmark_eval.score import score_file
from tests.answers import answer_line
from tests.form_files import SHAPES, lines, write

SECONDS = 40
TOLD = [  # what an answer says, the moment
    ("From 20% to 45% of the video.", [8.0, 18.0]),
    ("20 - 45%", [8.0, 18.0]),
    ("It happens from 30 s to the end of the video.", [30.0, 40.0]),
    ("Throughout the video.", [0.0, 40.0]),
]
STEPS = "20% - 45%, cut the onion. 30 s - the end, add oil."
EVENTS = {"cut the onion": [8.0, 18.0], "add oil": [30.0, 40.0]}
LISTED = json.dumps([{"event": "cut the onion", "timestamps": "20% - 45%"},
                     {"event": "add oil", "timestamps": "from 30 s to the end"}])  # fmt: skip

# ---- benchmark -> annotations from the true span, id to explain, a metric and its best value -------------------------

HEAD = "video_id,question,answer,qid,type,a0,a1,a2,a3,a4\n"
LINE = {"vid": "AAA", "query": "a door.", "duration": SECONDS}
ET = {"source": "a", "idx": 0, "video": "AAA.mp4", "duration": SECONDS, "q": "a door."}
SHAPE = SHAPES | {"id": "0", "video": "AAA.mp4", "duration": SECONDS}
SHAPE["conversations"] = [{"from": "human", "value": "<video>\na door."}, SHAPES["conversations"][1]]
MOMENTS = {
    "charades": (
        lambda span: {
            "database": {"AAA": {"duration": SECONDS, "annotations": [{"label": "a door.", "segment": span}]}}
        },
        "AAA/a door.", "mIoU", 100,
    ),
    "anet": (
        lambda span: {"AAA": {"duration": SECONDS, "timestamps": [span], "sentences": ["a door."]}},
        "AAA-0", "mIoU", 100,
    ),
    "qvhighlights": (lambda span: lines(LINE | {"qid": 0, "relevant_windows": [span]}), "0", "mIoU", 100),
    "moment_retrieval": (lambda span: lines(LINE | {"qid": 0, "relevant_windows": [span]}), "0", "mIoU", 100),
    "charades_timelens": (
        lambda span: {"AAA": {"duration": SECONDS, "spans": [span], "queries": ["a door."]}},
        "AAA-0", "mIoU", 100,
    ),
    "nextgqa": (lambda span: {"AAA": {"duration": SECONDS, "location": {"0": [span]}}}, "AAA_0", "mIoU", 100),
    "rextime": (
        lambda span: [{"vid": "AAA", "question": "a door.", "ans": "A", "span": span, "duration": SECONDS}],
        "rextime_0", "mIoU", 100,
    ),
    "cgbench": (
        lambda span: [{"video_uid": "AAA", "question": "a door.", "choices": ["a"], "right_answer": "A"}
                      | {"clue_intervals": [span], "duration": SECONDS}],
        "cgbench_0", "mIoU", 100,
    ),
    "etbench": (lambda span: [ET | {"task": "tvg", "tgt": span}], "tvg/a/0", "TVG_F1", 1),
    "moving_shapes": (lambda span: lines(SHAPE | {"tgt": span}), None, "mIoU", 1),
}  # fmt: skip
CAPTIONS = {"AAA": {"duration": SECONDS, "timestamps": list(EVENTS.values()), "sentences": list(EVENTS)}}


def moment_files(name: str, text: str, span: list) -> dict:
    """Files whose answer is ``text``, in each form that any benchmark has, and in its own."""
    key = f"AAA.mp4>>>a door.>>>{span}"
    own = {
        "charades": {"D2VLM answers": [{"idx": 0, "video": "AAA.mp4", "a": f"<evi> 1 - 2 </evi>{text}"}]},
        "qvhighlights": {"DisTime": [{"qid": 0, "prediction": text}]},
        "etbench": {"E.T. Bench": [ET | {"task": "tvg", "tgt": span, "a": f"<evi> {text} </evi>{text}"}]},
    }
    files = own.get(name, {}) | {
        "texts": lines({"video": "AAA", "question": "a door.", "text": text}),
        "lmms-eval samples": lines(
            {"doc_id": 0, "doc": {"video": "AAA", "question": "a door."}, "target": "", "filtered_resps": [text]}
        ),
    }
    if name in ("charades", "anet", "moment_retrieval", "qvhighlights", "charades_timelens"):
        files |= {"video>>>query>>>[s, e]": {key: text}, "timestamps": {key: {"timestamps": text, "answers": ""}}}
    return files


def scored(name: str, file: str, truth, predictions, folder, explain: str | None):
    """(metrics under ``corrected``, what is explained)."""
    if name == "nextgqa":
        write(folder / "test.csv", HEAD + "AAA,a door.,d,0,TN,a,b,c,d,e\n")
    paths = write(folder / "given.json", predictions), write(folder / file, truth)
    result = score_file(
        name, paths[0], paths[1:], folder / "scores.json", protocols=["corrected"], skip_meteor=True, explain=explain,
        wording="plain",
    )  # fmt: skip
    return result["protocols"]["corrected"]["metrics"], result.get("explained")


MOMENT_CASES = [(name, form) for name in MOMENTS for form in moment_files(name, "", [0, 1])]


@pytest.mark.parametrize(("text", "span"), TOLD)
@pytest.mark.parametrize(("name", "form"), MOMENT_CASES)
def test_a_moment_is_read_with_the_length_of_its_video(name, form, text, span, tmp_path):
    truth, sample, metric, best = MOMENTS[name]
    predictions = moment_files(name, text, span)[form]
    metrics, told = scored(name, "gsub_test.json", truth(span), predictions, tmp_path, sample)
    assert metrics[metric] == pytest.approx(best)
    if sample is not None:  # moving_shapes explains none
        assert told["read"].strip("[]").startswith(str(span).strip("[]"))
        assert told["text"].endswith(text) and not told["rule"].startswith("as the file")


def dense_files(name: str) -> dict:
    own = {
        "anet_dvc": {
            "text": lines({"video_id": "AAA", "task": "captioning", "answer": STEPS}),
            "list": lines({"video_id": "AAA", "task": "captioning", "answer": LISTED}),
        },
        "youcook2": {"D2VLM answers": [{"video": "x/AAA.mp4", "a": f"<evi> 1 - 2 </evi>{STEPS}"}]},
    }
    return own[name] | {
        "infer": lines(answer_line("AAA", STEPS).to_json()),
        "texts": {"AAA": STEPS},
        "lmms-eval samples": lines({"doc_id": 0, "doc": {"video_id": "AAA"}, "target": "", "filtered_resps": [STEPS]}),
    }


@pytest.mark.parametrize(("name", "form"), [(n, form) for n in ("anet_dvc", "youcook2") for form in dense_files(n)])
def test_events_are_read_with_the_length_of_their_video(name, form, tmp_path):
    metrics, told = scored(name, "t.json", CAPTIONS, dense_files(name)[form], tmp_path, "AAA")
    assert metrics["F1"] == pytest.approx(100)
    assert told["read"] == "; ".join(f"{span} {text}" for text, span in EVENTS.items())
    assert told["text"] and not told["rule"].startswith("as the file")


UNITS = [  # an answer, how --variant percent scores it: the moments are those of CAPTIONS, in a video of 40 s
    STEPS,
    "8 s - 18 s, cut the onion. 0:30 - 0:40, add oil.",
    LISTED,
    "[8.0 s - 18.0 s] cut the onion. [30.0 s - 40.0 s] add oil.",
    "20 - 44, cut the onion. 75 - 99, add oil.",  # bare numbers: hundredths, the last one counted in
    json.dumps([{"event": "cut the onion", "timestamps": "from 20 to 44"},
                {"event": "add oil", "timestamps": "from 75 to 99"}]),
    "20 - 44, cut the onion. 30 s - 40 s, add oil.",
]  # fmt: skip


@pytest.mark.parametrize("form", ["log", "texts"])
@pytest.mark.parametrize("text", UNITS)
def test_hundredths_are_times_that_tell_no_unit(text, form, tmp_path):
    data = {"AAA": text} if form == "texts" else lines({"video_id": "AAA", "task": "captioning", "answer": text})
    paths = write(tmp_path / "p.json", data), write(tmp_path / "t.json", CAPTIONS)
    protocols = score_file("anet_dvc", paths[0], paths[1:], tmp_path / "s.json", variant="percent", skip_meteor=True)[
        "protocols"
    ]
    assert protocols["corrected"]["metrics"]["F1@0.9"] == pytest.approx(100)
    told = any("taken for hundredths all the same" in note for note in protocols["published"]["notes"])
    assert told == (" s" in text or "%" in text or ":30" in text)


@pytest.mark.parametrize("text", ["At 30% of the video.", "the event is at 30 %"])
def test_one_time_and_its_evidence_are_shares_of_the_video(text, tmp_path):
    truth = ET | {"task": "vhd", "tgt": [[10, 14]]}
    metrics, told = scored("etbench", "t.json", [truth], [truth | {"a": f"{text}</evi>{text}"}], tmp_path, "vhd/a/0")
    assert metrics["VHD_F1"] == 1 and told["read"] == "12.0"
    result = json.loads((tmp_path / "scores.json").read_text())["protocols"]["corrected"]
    assert '"F1_evi": 1.0' in json.dumps(result)


def test_no_benchmark_with_times_is_left_out():
    timed = {name for name in names() if not isinstance(get(name), ChoiceBenchmark)}
    as_others = {name for name in timed if isinstance(get(name), RuledBenchmark)}
    assert timed == {*MOMENTS, "anet_dvc", "youcook2", *as_others}


@pytest.mark.parametrize("length", [float("nan"), float("inf"), 0, -1.0, None, "40", True])
def test_what_is_no_length_is_not_known(length):
    assert known_length(length) is None


def test_a_share_of_a_video_of_unknown_length_is_not_read(tmp_path):
    text = "From 20% to 45% of the video."
    _, told = scored("charades", "t.txt", "AAA 8.0 18.0##a door.", {"AAA/a door.": text}, tmp_path, "AAA/a door.")
    assert (told["text"], told["read"]) == (text, "nothing")
