"""The moving-shapes benchmark: what a perfect, a wrong and a missing answer score, and what guessing is worth."""

import gzip
import json

import numpy as np
import pytest

from all_benchmark_eval import score as score_command
from all_benchmark_eval.benchmark import BenchmarkError, find_annotations, read_answers
from all_benchmark_eval.moving_shapes import task
from quickstart import clips
from tests.answers import answer_line
from videollm.common.answers import AnswerLine

EVENTS = [
    {"color": "red", "shape": "circle", "motion": "left", "span": [2.0, 6.0]},
    {"color": "blue", "shape": "square", "motion": "growing", "span": [10.0, 20.0]},
]


def item(name: str, kind: str, answer: str, tgt: list[float], duration: float = 32.0) -> dict:
    turns = [{"from": "human", "value": "<video>\nquestion ?"}, {"from": "gpt", "value": answer}]
    common = {"id": name, "video": "test/00000.mp4", "duration": duration, "source": "moving_shapes"}
    return common | {"task": kind, "conversations": turns, "tgt": tgt, "events": EVENTS}


@pytest.fixture
def items() -> list[dict]:
    return [
        item("g0", "grounding", "it happens at <span> .", [2.0, 6.0]),
        item("g1", "grounding", "it happens at <span> .", [10.0, 20.0]),
        item("d", "dense_caption", "<span> red circle moving left . <span> blue square growing .", [2, 6, 10, 20]),
        item("c", "grounded_mc", "blue square growing (b) <span> .", [10.0, 20.0]),
    ]


PERFECT = {
    "g0": answer_line("g0", "it happens at [2.0 s - 6.0 s] .", [[2.0, 6.0]]),
    "g1": answer_line("g1", "it happens at [10.0 s - 20.0 s] .", [[10.0, 20.0]]),
    "d": answer_line(
        "d",
        "[2.0 s - 6.0 s] red circle moving left . [10.0 s - 20.0 s] blue square growing .",
        [[2.0, 6.0], [10.0, 20.0]],
    ),
    "c": answer_line("c", "blue square growing (b) [10.0 s - 20.0 s] .", [[10.0, 20.0]]),
}


def scores_of(items: list[dict], answers: dict[str, AnswerLine]) -> dict:
    return task.score(items, [task.to_prediction(i, answers.get(i["id"])) for i in items])


def test_perfect_answers_score_one_everywhere(items):
    scores = scores_of(items, PERFECT)
    assert scores["mIoU"] == scores["dense_F1"] == scores["dense_caption_F1"] == scores["mc_accuracy"] == 1.0
    assert scores["R@1"] == {"0.3": 1.0, "0.5": 1.0, "0.7": 1.0}
    assert scores["evidence_mIoU"] is None
    assert scores["per_sample"] == {"g0": 1.0, "g1": 1.0}
    assert scores["counts"]["grounding"] == {"scored": 2, "unparsed": 0, "missing": 0}


def test_missing_failed_and_unparsed_answers_score_zero_and_are_counted(items):
    answers = {
        "g0": answer_line("g0", "", [], error="decode failed"),
        "g1": answer_line("g1", "it happens somewhere .", []),
        "d": answer_line("d", "nothing", []),
        "c": answer_line("c", "the blue one", []),
    }
    scores = scores_of(items, answers)
    assert scores["mIoU"] == scores["dense_F1"] == scores["dense_caption_F1"] == scores["mc_accuracy"] == 0.0
    assert scores["counts"] == {
        "grounding": {"scored": 0, "unparsed": 1, "missing": 1},
        "dense_caption": {"scored": 0, "unparsed": 1, "missing": 0},
        "grounded_mc": {"scored": 0, "unparsed": 1, "missing": 0},
    }
    assert task.score(items, [])["counts"]["grounded_mc"] == {"scored": 0, "unparsed": 0, "missing": 1}


def test_captions_need_the_phrase_as_well_as_the_span(items):
    text = "[2.0 s - 6.0 s] red circle moving right . [10.0 s - 20.0 s] blue square growing ."
    scores = scores_of(items, PERFECT | {"d": answer_line("d", text, [[2.0, 6.0], [10.0, 20.0]])})
    assert scores["dense_F1"] == 1.0
    assert scores["dense_caption_F1"] == 0.5


def test_captions_are_paired_with_exact_spans_in_any_order(items):
    text = "[10.0 s - 20.0 s] blue  square growing. [2.0 s - 6.0 s] red circle moving left"
    scores = scores_of(items, PERFECT | {"d": answer_line("d", text, [[10.04, 20.0], [2.0, 6.01]])})
    assert scores["dense_caption_F1"] == 1.0


def test_captions_without_one_time_a_span_are_not_guessed(items):
    text = "red circle moving left . [10.0 s - 20.0 s] blue square growing ."
    scores = scores_of(items, PERFECT | {"d": answer_line("d", text, [[2.0, 6.0], [10.0, 20.0]])})
    assert scores["dense_F1"] == 1.0
    assert scores["dense_caption_F1"] == 0.0


def test_evidence_is_scored_apart_and_stands_in_where_the_answer_has_no_span(items):
    answers = PERFECT | {
        "g0": answer_line("g0", "it happens then", [], evidence=[[2.0, 4.0]]),
        "g1": answer_line("g1", "at [10.0 s - 20.0 s]", [[10.0, 20.0]], evidence=[[15.0, 20.0]]),
    }
    scores = scores_of(items, answers)
    assert scores["per_sample"] == {"g0": 0.5, "g1": 1.0}
    assert scores["evidence_mIoU"] == pytest.approx((0.5 + 0.5 + 0.0) / 3)  # the choice has no evidence


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("blue square growing (b) [1.0 s - 2.0 s] .", "b"),
        ("(B)", "b"),
        ("b.", "b"),
        ("not (a) but (c)", "c"),
        ("a blue square", None),
        ("", None),
    ],
)
def test_the_option_is_the_last_letter_in_brackets(items, text, choice):
    assert task.to_prediction(items[3], answer_line("c", text, []))["choice"] == choice


def test_a_record_for_inference_holds_no_truth(items):
    record = task.to_record(items[3])
    assert record["conversations"] == items[3]["conversations"][:1]
    assert {"id", "video", "duration", "task"} <= set(record)
    assert not {"tgt", "events"} & set(record)
    assert "growing" not in json.dumps(record)


def test_unknown_and_repeated_predictions_are_refused(items):
    prediction = task.to_prediction(items[0], PERFECT["g0"])
    with pytest.raises(ValueError, match="'g0' is there twice"):
        task.score(items, [prediction, prediction])
    with pytest.raises(ValueError, match="'x': no annotation"):
        task.score(items, [prediction | {"id": "x"}])


def test_a_line_that_is_no_answer_is_refused(items, tmp_path):
    (tmp_path / "answers.jsonl").write_text('{"id": "g0", "text": ""}')
    with pytest.raises(BenchmarkError, match=r"answers.jsonl:1: .*no raw_text, spans, evidence_spans"):
        read_answers(tmp_path / "answers.jsonl")
    bad = task.to_prediction(items[0], answer_line("g0", "", [[5.0, float("nan")]]))
    with pytest.raises(ValueError, match="g0, prediction: .*not finite"):
        task.score(items, [bad])


def test_baselines_on_a_clip_worked_by_hand(items):
    scores = task.baselines(items, items, seed=0)
    assert scores["whole_video"]["mIoU"] == pytest.approx((4 / 32 + 10 / 32) / 2)
    assert scores["mean_segment"]["mIoU"] == pytest.approx((0 + 3 / 14) / 2)  # [6, 13] s against [2, 6] and [10, 20]
    assert scores["random_event"]["mIoU"] == pytest.approx(0.5)  # two events that do not overlap
    assert scores["random_event"]["R@1"] == {"0.3": 0.5, "0.5": 0.5, "0.7": 0.5}
    assert scores["random_segment"]["mIoU"] in (0.0, 0.5, 1.0)
    assert task.baselines(items, items, seed=3) == task.baselines(items, items, seed=3)


def test_oracle_is_exact_on_the_grid_and_near_one_off_it(items):
    assert task.oracle(items, num_frames=32)["mIoU"] == 1.0  # frames of one second, spans of whole seconds
    # Grid of 3.2 s: [2, 6] -> [3.2, 6.4] (2.8 / 4.4); [10, 20] -> [9.6, 19.2] (9.2 / 10.4).
    assert task.oracle(items, num_frames=10)["mIoU"] == pytest.approx((2.8 / 4.4 + 9.2 / 10.4) / 2)


BAD_LINES = [
    ({"task": "counting"}, "task 'counting'"),
    ({"duration": 0}, "duration 0"),
    ({"tgt": [2.0]}, "tgt needs"),
    ({"tgt": [6.0, 2.0]}, "ends before it starts"),
    ({"tgt": [2.0, 40.0]}, "outside the video"),
    ({"conversations": [{"from": "human", "value": "?"}]}, "must end with the answer"),
    ({"task": "grounded_mc"}, "names no option"),
    ({"task": "dense_caption", "tgt": [2.0, 6.0, 8.0, 9.0]}, "one <span> for each of the 2"),
]


@pytest.mark.parametrize(("change", "why"), BAD_LINES)
def test_bad_annotations_are_refused_with_file_and_line(tmp_path, items, change, why):
    path = tmp_path / "test.jsonl"
    path.write_text("\n".join(map(json.dumps, [items[1], items[0] | change])))
    with pytest.raises(ValueError, match=f"test.jsonl:2: .*{why}"):
        task.load(path)


def test_broken_empty_and_repeated_lines_are_refused(tmp_path, items):
    path = tmp_path / "test.jsonl"
    line = json.dumps(items[0])
    no_id = json.dumps({key: value for key, value in items[0].items() if key != "id"})
    cases = (
        (line + "\n{", ":2: not JSON"),
        (line + "\n" + line, ":2: the id 'g0'"),
        ("[]", "expected a line for every question"),
    )
    for text, why in (*cases, (no_id, "test.jsonl: no key 'id'"), ("\n", "the file is empty")):
        path.write_text(text)
        with pytest.raises(ValueError, match=why):
            task.load(path)


def test_a_gzipped_file_is_found_and_read(tmp_path, items):
    (tmp_path / "test.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, items)).encode()))
    assert task.TASK.load(find_annotations(task.TASK, tmp_path)) == items


def test_the_command_scores_a_file(tmp_path, items, capsys):
    (tmp_path / "test.jsonl").write_text("\n".join(map(json.dumps, items)))
    (tmp_path / "answers.jsonl").write_text("\n".join(json.dumps(PERFECT[name].to_json()) for name in ("g1", "d", "c")))
    paths = {"annotations": "test.jsonl", "predictions": "answers.jsonl", "output": "made/scores.json"}
    arguments = [part for name, file in paths.items() for part in (f"--{name}", str(tmp_path / file))]
    task.main(arguments)
    scores = json.loads((tmp_path / "made/scores.json").read_text())
    assert scores["mIoU"] == 0.5
    assert scores["counts"]["grounding"] == {"scored": 1, "unparsed": 0, "missing": 1}
    printed = capsys.readouterr().out
    assert "mIoU" in printed and "0.5000" in printed and "fraction" in printed
    given = [part for name, file in paths.items() for part in (f"--{name}", str(tmp_path / file))][:4]
    assert (
        score_command.main(["moving_shapes", *given, "--wording", "plain", "--output", str(tmp_path / "s.json")]) == 0
    )
    assert "0.5000" in (printed := capsys.readouterr().out) and "fraction" in printed  # in the same unit


def test_the_command_refuses_answers_to_other_questions(tmp_path, items, capsys):
    (tmp_path / "test.jsonl").write_text(json.dumps(items[0]))
    (tmp_path / "answers.jsonl").write_text(json.dumps(PERFECT["d"].to_json()))
    paths = {"annotations": "test.jsonl", "predictions": "answers.jsonl", "output": "scores.json"}
    arguments = [part for name, file in paths.items() for part in (f"--{name}", str(tmp_path / file))]
    assert task.main(arguments) == 2
    assert "answers.jsonl:1: no annotation has the id 'd'" in capsys.readouterr().err
    (tmp_path / "answers.jsonl").unlink()
    assert task.main(arguments) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_synthetic_data_set_is_read_and_its_own_answers_score_one(tmp_path):
    lines = []
    for index in range(6):
        rng = np.random.default_rng(index)
        lines += clips.annotate(clips.make_clip(rng), "test", index, rng)
    (tmp_path / "test.jsonl").write_text("\n".join(map(json.dumps, lines)))
    items = task.load(tmp_path / "test.jsonl")
    answers = {}
    for line in items:
        spans = [line["tgt"][i : i + 2] for i in range(0, len(line["tgt"]), 2)]
        text = line["conversations"][-1]["value"]
        for start, end in spans:
            text = text.replace("<span>", f"[{start:.1f} s - {end:.1f} s]", 1)
        answers[line["id"]] = answer_line(line["id"], text, spans)
    scores = scores_of(items, answers)
    assert scores["mIoU"] == scores["dense_F1"] == scores["dense_caption_F1"] == scores["mc_accuracy"] == 1.0
    assert task.baselines(items, items, 0)["random_event"]["mIoU"] < task.oracle(items)["mIoU"] < 1.0
