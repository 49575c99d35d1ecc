"""The command ``evaluate`` without a model: questions out, answers in, official files and scores, one table."""

import json
import os
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from all_benchmark_eval import evaluate, score
from all_benchmark_eval.benchmark import SETTINGS, get, names
from tests.benchmark_data import CLIPS, copy, events
from videollm import checkpoint, infer


@pytest.fixture
def model(tmp_path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "none"}')
    return folder


class Answerer:
    """In place of ``videollm.infer``: ``say(line)`` gives text and spans, or None for a video that is not read."""

    def __init__(self, say):
        self.say, self.asked, self.settings = say, [], []

    def __call__(self, argv) -> int:
        args = infer.arguments(argv)
        (questions,) = args.annotations
        lines = [json.loads(line) for line in Path(questions).read_text().splitlines()]
        old = args.output.read_text() if args.output.is_file() else ""
        done = {json.loads(line)["id"] for line in old.splitlines() if not json.loads(line)["error"]}
        new = []
        for line in (line for line in lines if line["id"] not in done):
            self.asked.append(line)
            said = self.say(line)
            text, spans = said or ("", [])
            answer = {"id": line["id"], "text": text, "raw_text": text, "spans": spans, "evidence_spans": []}
            new.append(json.dumps(answer | {"finish_reason": "stop", "error": None if said else "no video"}) + "\n")
        args.output.write_text(
            "".join(x for x in old.splitlines(keepends=True) if json.loads(x)["id"] in done) + "".join(new)
        )
        self.settings.append(args.overrides)
        return 0


def test_results_of_a_name_on_the_hub_need_a_place(capsys):
    """``lab/name/evaluation`` would be a folder that wins over the name the next time."""
    assert evaluate.main(["lab/name", "--benchmarks", "charades", "--data", "none"]) == 2
    assert "--output: needed, as lab/name is no folder to put results beside" in capsys.readouterr().err


def true_answer(line: dict) -> tuple[str, list]:
    """What is right for every benchmark of ``tests.benchmark_data``."""
    text = line["conversations"][-1]["value"]
    index = int(next(c for c in line["video"].split(".")[0].split("/")[-1] if c.isdecimal()))
    if "(0)" in text:
        return "(1)", []
    if "Best Option" in text or "best option" in text or "letter" in text or "around" in text:
        return "(B)" if "best option" in text else "B", []
    found = [(span, phrase) for span, phrase in events(index) if phrase in text]
    found = found or events(index)
    written = " ".join(f"[{s} s - {e} s], {phrase}." for (s, e), phrase in found)
    return written, [span for span, _ in found]


@pytest.fixture
def answering(monkeypatch) -> Answerer:
    made = Answerer(true_answer)
    monkeypatch.setattr(infer, "main", made)
    return made


def run(model, data, benchmarks, *more, wording="distime") -> int:
    return evaluate.main([str(model), "--benchmarks", benchmarks, "--data", str(data), "--wording", wording, *more])


def results(model: Path) -> dict:
    return json.loads((model / "evaluation/results.json").read_text())["benchmarks"]


def test_right_answers_score_full_marks_under_both_protocols(model, data, answering):
    assert run(model, data, "charades,anet,qvhighlights,nextgqa,longvideobench,videomme") == 0
    full = {"charades": "mIoU", "anet": "mIoU", "qvhighlights": "mIoU", "nextgqa": "Acc@GQA", "videomme": "accuracy"}
    for name, metric in full.items():
        for protocol, entry in results(model)[name]["protocols"].items():
            assert entry["metrics"][metric] == pytest.approx(100, abs=1e-2), (name, protocol)
    table = (model / "evaluation/results.md").read_text()
    count = sum(len(events(i)) for i in range(CLIPS))
    assert f"| Charades-STA | mIoU | 100.00 | 100.00 | percent | {count} of {count} |" in table


def test_next_gqa_asks_its_second_stage_inside_the_first_ones_span(model, data, answering):
    assert run(model, data, "nextgqa") == 0
    where, choice = answering.asked[:2], answering.asked[2:]
    assert [line["id"].split("-")[0] for line in (*where, *choice)] == ["where"] * 2 + ["choice"] * 2
    assert [line["bound"] for line in choice] == [events(0)[0][0], events(1)[0][0]]
    assert all("bound" not in line for line in where)


def test_an_answer_that_stands_on_a_new_one_is_asked_again(model, data, answering):
    blind = {"where-TN_00_3"}
    answering.say = lambda line: None if line["id"] in blind else true_answer(line)
    assert run(model, data, "nextgqa") == 0
    answering.asked.clear()
    blind.clear()
    assert run(model, data, "nextgqa") == 0
    assert [line["id"] for line in answering.asked] == ["where-TN_00_3", "choice-TN_00_3"]
    assert answering.asked[1]["bound"] == events(0)[0][0]


def test_what_is_answered_is_not_asked_again_and_other_questions_are_refused(model, data, answering, tmp_path):
    assert run(model, data, "anet") == 0
    before = answering.asked.copy()
    (model / "evaluation/anet/scores.json").unlink()
    assert run(model, data, "anet") == 0
    assert answering.asked == before and (model / "evaluation/anet/scores.json").is_file()
    other = copy(data, tmp_path / "other", "anet")
    truth = json.loads((other / "anet/val_2.json").read_text())
    truth["v_0"]["sentences"][0] = "Something else."
    (other / "anet/val_2.json").write_text(json.dumps(truth))
    assert run(model, other, "anet") == 1
    assert "choose another --output" in results(model)["anet"]["error"]


def test_one_benchmark_that_fails_does_not_stop_the_others(model, data, answering, tmp_path, capsys, monkeypatch):
    part = copy(data, tmp_path / "part", "charades", "qvhighlights")
    (part / "charades/charades_sta_test.txt").unlink()
    monkeypatch.setattr(get("qvhighlights"), "score", lambda *_: 1 / 0)
    copy(data, part, "longvideobench")
    assert run(model, part, "charades,qvhighlights,longvideobench") == 1
    found = results(model)
    assert "charades_sta_test.txt" in found["charades"]["error"] and "README.md" in found["charades"]["error"]
    assert "ZeroDivisionError" in found["qvhighlights"]["error"]
    assert found["longvideobench"]["protocols"]["published"]["metrics"]["accuracy"] == 1.0
    assert (model / "evaluation/qvhighlights/predictions.json").is_file()
    assert "failed" in (model / "evaluation/results.md").read_text()
    assert "error: charades" in capsys.readouterr().err


def test_benchmarks_can_be_added_one_by_one_for_one_model_and_wording(model, data, answering, capsys):
    assert run(model, data, "anet") == run(model, data, "charades") == 0
    assert set(results(model)) == {"anet", "charades"}
    assert run(model, data, "anet", wording="plain") == 2
    assert "results.json: wording was distime, now plain" in capsys.readouterr().err


def test_a_failing_inference_is_the_benchmarks_failure(model, data, monkeypatch):
    monkeypatch.setattr(infer, "main", lambda argv: 2)
    assert run(model, data, "anet") == 1
    assert "status 2" in results(model)["anet"]["error"]


@pytest.mark.parametrize(
    ("name", "wording", "sampler", "line_break"),
    [
        ("charades", "distime", ['rule="segments"', "num_frames=16", 'pick="midpoint"'], False),
        ("longvideobench", "distime", ['rule="segments"', "num_frames=32", 'pick="middle"'], True),
        ("nextgqa", "distime", ['rule="segments"', "num_frames=16", 'pick="midpoint"'], True),
        ("charades", "d2vlm", ['rule="fps"', "fps=1.0", "max_frames=null"], True),
        ("charades", "plain", [], True),
    ],
)
def test_frames_and_line_break_are_the_published_ones(model, data, answering, name, wording, sampler, line_break):
    assert run(model, data, name, "sampler.num_frames=4", wording=wording) == 0
    for overrides in answering.settings:
        assert overrides == [*(f"sampler.{value}" for value in sampler), "sampler.num_frames=4"]
    for line in answering.asked:
        assert line.get("after_video") == (None if line_break else "")


def test_every_benchmark_says_where_its_data_lie_and_how_each_wording_asks():
    for name in names():
        task = get(name)
        assert task.layout.annotations and set(task.settings) == set(SETTINGS)
        assert task.name == name


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--benchmarks", "nothing", "--data", "."], "unknown benchmark 'nothing'"),
        (["--benchmarks", "anet", "--data", "."], "convert it first"),
        (["--benchmarks", "anet", "--data", "nowhere"], "--data: nowhere is not a folder"),
        (["--benchmarks", "anet", "--data", ".", "sampler.fsp=1"], "did you mean sampler.fps?"),
    ],
)
def test_what_cannot_begin_is_one_line_and_status_2(model, capsys, arguments, why):
    assert evaluate.main([str(model), *arguments]) == 2
    assert why in capsys.readouterr().err


@pytest.mark.parametrize("head", ["d2vlm", "distime", "text", "mine"])
def test_the_wording_follows_the_head_and_an_unknown_one_must_be_told(
    head, model, data, answering, capsys, monkeypatch
):
    monkeypatch.setattr(checkpoint, "read_config", lambda folder: SimpleNamespace(head={"name": head}))
    status = evaluate.main([str(model), "--benchmarks", "charades", "--data", str(data)])
    said = {"d2vlm": "visual event described", "distime": "Give you a textual query", "text": "When does this happen"}
    if head == "mine":  # its package cannot be imported here
        assert status == 2 and "--wording: no wording is known for the head 'mine'" in capsys.readouterr().err
    else:
        assert status == 0 and said[head] in json.dumps(answering.asked[0])


@pytest.mark.parametrize("gpus", ["0", "two"])
def test_gpus_must_be_a_number(model, data, capsys, monkeypatch, gpus):
    monkeypatch.setenv("GPUS", gpus)
    assert run(model, data, "anet") == 2
    assert f"GPUS={gpus}" in capsys.readouterr().err


def test_scoring_the_predictions_again_gives_the_same_numbers(model, data, answering, tmp_path):
    assert run(model, data, "anet") == 0
    folder, output = model / "evaluation/anet", tmp_path / "again.json"
    arguments = ["anet", "--predictions", folder / "predictions.json", "--annotations", data / "anet/val_2.json"]
    assert score.main([*map(str, arguments), "--output", str(output)]) == 0
    assert json.loads(output.read_text())["protocols"] == results(model)["anet"]["protocols"]


# ---- the scripts around it: what they start, with an interpreter that only takes note --------------------------------


@pytest.fixture
def started(tmp_path, repository):
    """A function that runs a script and gives the commands it would start."""
    log, fake = tmp_path / "log", tmp_path / "python"
    fake.write_text(f'#!/usr/bin/env bash\nif [ "$1" = -c ]; then echo 0; else echo "$*" >>"{log}"; fi\n')
    fake.chmod(0o755)

    def run(script: str, *arguments: str, **environment: str) -> list[str]:
        log.write_text("")
        env = {k: v for k, v in os.environ.items() if k not in ("GPUS", "DATA", "VIDEOS")}
        env |= {"VIDEOLLM_PYTHON": str(fake), **environment}
        subprocess.run(["bash", str(repository / script), *arguments], env=env, check=True, capture_output=True)
        return log.read_text().splitlines()

    return run


@pytest.mark.parametrize("name", names())
def test_every_benchmark_has_its_inference_script(started, name):
    script = f"all_benchmark_eval/{name}/inference.sh"
    begin = f"-m all_benchmark_eval.evaluate M --benchmarks {name}"
    assert started(script, "M") == [f"{begin} --data data"]
    assert started(script, "M", "V", "sampler.fps=2") == [f"{begin} --videos V sampler.fps=2"]
    all_three = started(script, "M", "V", "A", "O", "--workers", "2")
    assert all_three == [f"{begin} --videos V --annotations A --output O --workers 2"]


@pytest.mark.parametrize(
    ("called", "name", "more"),
    [
        (["qvh"], "qvhighlights", ""),
        (["youcook2_dvc"], "youcook2", ""),
        (["nextgqa", "1"], "nextgqa", ""),
        (["nextgqa", "2", "--batch-size", "4"], "nextgqa", " --batch-size 4"),
        (["mvbench"], "mvbench", ""),
    ],
)
def test_evaluate_answers_to_the_published_names(started, called, name, more):
    command = f"-m all_benchmark_eval.evaluate M --benchmarks {name} --data D{more}"
    assert started("scripts/evaluate.sh", "M", *called, DATA="D") == [command]


def test_inference_is_et_bench_as_d2vlm_calls_it(started):
    begin = "-m all_benchmark_eval.evaluate M --benchmarks etbench --videos"
    assert started("scripts/inference.sh", "M", "e/x.json", "phi3") == [f"{begin} e/videos --annotations e/x.json"]
    other = started("scripts/inference.sh", "M", "e/x.json", "generate.max_new_tokens=9", VIDEOS="V")
    assert other == [f"{begin} V --annotations e/x.json generate.max_new_tokens=9"]


def test_training_inference_and_metrics_follow_each_other(started, repository):
    arguments = ["e/x.json", "sft.train.steps=3", "fpo.train.output=out", "--skip-meteor"]
    sft, fpo, asked = started("scripts/train_inference_eval.sh", *arguments)
    assert "configs/d2vlm/sft_etchat_phi3.yaml" in sft and sft.endswith("train.output=runs/d2vlm_sft train.steps=3")
    assert "fpo_etchat_phi3.yaml" in fpo and fpo.endswith("model.checkpoint=runs/d2vlm_sft/final train.output=out")
    assert asked.endswith(
        "evaluate out/final --benchmarks etbench --videos e/videos --annotations e/x.json --skip-meteor"
    )


def test_an_evaluation_without_an_answer_is_begun_anew(model, data, monkeypatch, answering, capsys):
    """With another wording; of one that has answers the first difference is told."""
    said, answering.say = answering.say, lambda line: None
    with monkeypatch.context() as once:
        once.setattr(infer, "main", lambda argv: answering(argv) or 2)  # as where no question could be asked
        assert run(model, data, "anet") == 1
    answering.say = said
    assert run(model, data, "anet", wording="plain") == 0
    assert run(model, data, "anet", "--output", str(model / "other")) == 0
    (model / "other" / "results.json").unlink()
    capsys.readouterr()
    assert run(model, data, "anet", "--output", str(model / "other"), wording="plain") == 1
    assert "questions are others now, such as 'v_0-0': its after_video was \"\", now null" in capsys.readouterr().err
