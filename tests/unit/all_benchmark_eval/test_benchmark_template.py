"""The folder to copy for the next benchmark works as it stands, and moving shapes is a benchmark like the others."""

import json

import pytest

from all_benchmark_eval import score
from all_benchmark_eval.benchmark import BenchmarkError, Options, get, names
from all_benchmark_eval.TEMPLATE.task import TASK
from tests.answers import answer_line
from tests.benchmark_data import moving_shapes
from tests.form_files import write

ROWS = [
    {"id": "q1", "video": "kitchen.mp4", "duration": 60, "query": "she waxes the ski.", "span": [10, 30]},
    {"id": "q2", "video": "kitchen.mp4", "duration": 60, "query": "she leaves.", "span": [40, 60]},
]


def scores_of(truth, path, protocol):
    return TASK.score(truth, TASK.read(path, truth), Options(protocol, "default"))


def test_the_template_scores_its_toy_by_hand(tmp_path):
    truth = TASK.load(write(tmp_path / "truth.json", ROWS))
    path = write(tmp_path / "p.json", {"q1": [20, 30], "q2": [-1, -1]})
    published, corrected = (scores_of(truth, path, protocol) for protocol in ("published", "corrected"))
    assert published.metrics == {"R1@0.3": 100, "R1@0.5": 100, "R1@0.7": 0, "mIoU": 50}
    assert corrected.metrics == {"R1@0.3": 50, "R1@0.5": 50, "R1@0.7": 0, "mIoU": 25}
    assert corrected.counts == {"samples": 2, "scored": 1, "unparsed": 1, "missing": 0, "clipped": 0}


@pytest.mark.parametrize("wording", ["d2vlm", "distime", "plain"])
def test_the_templates_answers_come_back_from_its_file(tmp_path, wording):
    truth = TASK.load(write(tmp_path / "truth.json", ROWS))
    lines = TASK.questions(truth, wording)
    assert [line["id"] for line in lines] == ["q1", "q2"] and "waxes" in json.dumps(lines[0])
    answers = {name: answer_line(name, spans=[[10, 30]], error=why) for name, why in (("q1", None), ("q2", "no video"))}
    data = TASK.from_answers(truth, answers, wording)
    assert data == {"q1": [10, 30]}
    assert TASK.read(write(tmp_path / "p.json", data), truth).counts()["missing"] == 1


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        ([], "list with an item for every question"),
        ([{"id": 1}], "item 1: no key"),
        ([ROWS[0], ROWS[0]], "stands twice"),
        ([ROWS[0] | {"duration": "long"}], "item 1: duration 'long'"),
        ([ROWS[0] | {"span": [1]}], "'q1': the true span"),
    ],
)
def test_the_template_refuses_bad_files(tmp_path, rows, why):
    with pytest.raises(BenchmarkError, match=why):
        TASK.load(write(tmp_path / "truth.json", rows))


def test_the_template_refuses_unknown_ids(tmp_path):
    truth = TASK.load(write(tmp_path / "truth.json", ROWS))
    with pytest.raises(BenchmarkError, match="'q9': no question"):
        TASK.read(write(tmp_path / "p.json", {"q9": [1, 2]}), truth)


def test_the_template_is_no_benchmark_itself():
    assert "TEMPLATE" not in names() and "moving_shapes" in names()


# ---- moving shapes ---------------------------------------------------------------------------------------------------


@pytest.fixture
def annotations(tmp_path):
    moving_shapes(tmp_path, lambda index, path: None)
    return tmp_path / "moving_shapes/test.jsonl"


def test_moving_shapes_is_scored_by_the_common_command(tmp_path, annotations):
    task = get("moving_shapes")
    truth = task.load(annotations)
    answers = {}
    for item in truth:
        text, spans = (
            item["conversations"][-1]["value"],
            [item["tgt"][i : i + 2] for i in range(0, len(item["tgt"]), 2)],
        )
        for start, end in spans:
            text = text.replace("<span>", f"[{start} s - {end} s]", 1)
        answers[item["id"]] = answer_line(item["id"], text, spans)
    path = write(tmp_path / "p.json", task.from_answers(truth, answers, "plain"))
    output = tmp_path / "scores.json"
    command = ["moving_shapes", "--predictions", path, "--annotations", annotations, "--output", output]
    assert score.main([*map(str, command), "--bootstrap", "10"]) == 0
    for entry in json.loads(output.read_text())["protocols"].values():
        perfect = {name: value for name, value in entry["metrics"].items() if name != "evidence_mIoU"}
        assert set(perfect.values()) == {1.0} and entry["counts"]["scored"] == len(truth)


def test_moving_shapes_refuses_files_that_are_something_else(tmp_path, annotations, capsys):
    task = get("moving_shapes")
    truth = task.load(annotations)
    for data in ({}, [1], [{"id": "x"}], [{"id": "x", "phrases": []}]):
        with pytest.raises(BenchmarkError, match="none of the forms|expected an object|no key 'task'"):
            task.read(write(tmp_path / "p.json", data), truth)
    with pytest.raises(BenchmarkError, match="no such file"):
        task.load(tmp_path / "absent.jsonl")
    unknown = [task.from_answers(truth, {}, "plain")[0] | {"id": "x"}]
    with pytest.raises(BenchmarkError, match="no annotation has this id"):
        task.score(truth, unknown, Options("published", "default"))
