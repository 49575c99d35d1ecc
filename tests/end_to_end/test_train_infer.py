"""Training and inference as a user runs them: through ``main``, on real mp4 files, with everything they write."""

import json
import shutil

import pytest
import torch
import yaml

from tests.end_to_end.test_bad_input import the_error
from tests.models import clip_lines, clips, read_log, turns, write_config, write_lines
from videollm import infer, train
from videollm.checkpoint import load
from videollm.inference import run as inference_run

BROKEN = {"id": "bad", "video": "broken.mp4", "tgt": [0, 1], "conversations": turns("<video>\nwhen?", "<span>")}


def run_train(config, *overrides) -> int:
    return train.main(["--config", str(config), *overrides])


def run_infer(model, annotations, output, *more) -> int:
    paths = ["--model", model, "--annotations", annotations, "--videos", clips(), "--output", output]
    return infer.main([*map(str, paths), "--device", "cpu", "--batch-size", "2", *more])


def read(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(
    scope="module", params=[("internvl", "d2vlm"), ("etchat", "distime"), ("internvl", "text")], ids="-".join
)
def trained(request, tmp_path_factory):
    """A run of three steps with validation; its folder."""
    backbone, head = request.param
    folder = tmp_path_factory.mktemp("run")
    config = write_config(folder, head, backbone=backbone, validate_every=2, best="mIoU", batch_size=2)
    assert run_train(config, "train.steps=3", "train.seed=5") == 0
    return head, folder


def test_a_run_writes_its_config_its_log_and_a_model(trained):
    head, folder = trained
    run = folder / "run"
    written = yaml.safe_load((run / "config.yaml").read_text())
    assert written["train"]["seed"] == 5 and written["data"]["max_bad_fraction"] == 0.0
    terms = {"d2vlm": {"lm", "grounding", "consistency"}, "distime": {"lm", "dfl", "diou"}, "text": {"lm"}}[head]
    log = read_log(run)
    assert [entry["step"] for entry in log] == [1, 2, 3]
    for entry in log:
        assert terms <= set(entry) and entry["bad_videos"] == 0 and entry["grad_norm"] > 0
        assert sum(entry[t] for t in terms) == pytest.approx(entry["loss"], rel=1e-3)
    assert load(run / "final").config.head["name"] == head


def test_validation_answers_freely_and_keeps_the_best_model(trained):
    _, folder = trained
    entries = read_log(folder / "run", "eval_mIoU")
    assert [e["step"] for e in entries] == [2, 3] and all(0 <= e["eval_mIoU"] <= 100 for e in entries)
    best, final = (load(folder / "run" / name).model.state_dict() for name in ("best", "final"))
    same = all(torch.equal(best[k], final[k]) for k in final)
    assert best.keys() == final.keys() and same is (entries[1]["eval_mIoU"] > entries[0]["eval_mIoU"])


def test_a_trained_model_answers_every_question_once(trained, capsys):
    _, folder = trained
    lines = [*clip_lines(3), BROKEN, {"id": "plain", "conversations": turns("hi")}]
    annotations, output = write_lines(folder / "test.jsonl", lines), folder / "answers.jsonl"
    more = ("generate.max_new_tokens=6", "sampler.num_frames=3")
    assert run_infer(folder / "run" / "final", annotations, output, *more) == 0
    rows = read(output)
    assert [row["id"] for row in rows] == ["q0", "q1", "q2", "bad", "plain"]
    fields = ["id", "video", "question", "text", "raw_text", "spans", "evidence_spans", "scores", "duration"]
    assert all(list(row) == [*fields, "finish_reason", "thinned", "error"] for row in rows)
    bad = rows[3]
    assert "broken.mp4" in bad["error"] and bad["finish_reason"] == "error" and bad["spans"] == []
    for row in rows[:3]:
        assert row["error"] is None and row["finish_reason"] in ("stop", "length") and row["raw_text"]
        assert all(0 <= start <= end <= row["duration"] for start, end in row["spans"])
    meta = json.loads((folder / "answers.jsonl.meta.json").read_text())
    assert meta["counts"] == {"questions": 5, "answered": 4, "errors": 1}
    assert meta["sampler"]["num_frames"] == 3 and meta["decoding"]["max_new_tokens"] == 6
    assert "4 answers, 1 errors of 5 questions" in capsys.readouterr().out


def test_interrupted_inference_goes_on_and_refuses_other_settings(trained, capsys, monkeypatch):
    _, folder = trained
    model, annotations = folder / "run" / "final", write_lines(folder / "more.jsonl", clip_lines(4))
    output = folder / "again.jsonl"
    small = "generate.max_new_tokens=4"
    assert run_infer(model, annotations, output, small) == 0
    whole = output.read_text()
    cut = whole.splitlines(keepends=True)
    output.write_text("".join(cut[:2]) + cut[2][:20])  # killed in the middle of a line
    again, answer = [], inference_run.answer_records

    def watched(*args, asked, **options):
        again.extend(record.id for alike in asked for record, _ in alike)
        return answer(*args, asked=asked, **options)

    monkeypatch.setattr(inference_run, "answer_records", watched)
    assert run_infer(model, annotations, output, small) == 0
    assert again == ["q0", "q1", "q2", "q3"] and output.read_text() == whole
    capsys.readouterr()
    assert run_infer(model, annotations, output, "generate.max_new_tokens=5") == 2
    assert "decoding" in the_error(capsys) and output.read_text() == whole
    assert run_infer(model, annotations, output, small, "sampler.num_frames=2") == 2
    assert "sampler" in the_error(capsys)


def test_resuming_equals_not_having_stopped(tmp_path):
    straight = write_config(tmp_path / "a", "d2vlm", save_every=2)
    assert run_train(straight, "train.steps=4") == 0
    halves = write_config(tmp_path / "b", "d2vlm", save_every=2)
    run = tmp_path / "b" / "run"
    # Stopped after two of four steps: the schedule must know of four, so the run is cut by deleting what came later.
    assert run_train(halves, "train.steps=4") == 0
    for name in ("checkpoint-4", "final"):
        shutil.rmtree(run / name)
    (run / "log.jsonl").unlink()
    assert run_train(halves, "train.steps=4", "train.resume=true") == 0
    whole, resumed = read_log(tmp_path / "a" / "run"), read_log(run)
    assert [e["step"] for e in resumed] == [3, 4]
    for key in ("loss", "lm", "grounding", "consistency", "learning_rate", "grad_norm"):
        assert [e[key] for e in resumed] == pytest.approx([e[key] for e in whole[2:]], rel=1e-6), key
    one, other = (load(tmp_path / x / "run" / "final").model.state_dict() for x in "ab")
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=1e-6)


def test_resuming_without_a_checkpoint_is_an_error(tmp_path, capsys):
    config = write_config(tmp_path, "text")
    assert run_train(config, "train.resume=true") == 2
    assert "train.resume" in the_error(capsys)


def test_unreadable_videos_are_skipped_and_named_within_the_limit(tmp_path, capsys):
    lines = [*clip_lines(3), BROKEN]
    config = write_config(tmp_path, "distime", lines=lines, epochs=2.0)
    overrides = ("train.steps=null", "data.max_bad_fraction=0.25")
    assert run_train(config, *overrides) == 0
    run = tmp_path / "run"
    named = read(run / "skipped.jsonl")
    assert len(named) == 2 and all("bad" in n["video"] and "broken.mp4" in n["video"] for n in named)
    assert read_log(run)[-1]["bad_videos"] == 2 and len(read_log(run)) == 8
    capsys.readouterr()
    assert run_train(config, "train.steps=4", f"train.output={tmp_path / 'strict'}") == 2
    message = the_error(capsys)
    assert "data.max_bad_fraction=0.0" in message and "skipped.jsonl" in message


def test_stored_features_train_as_the_videos_do(tmp_path):
    losses = []
    for name, features in (("a", "null"), ("b", str(tmp_path / "features"))):
        config = write_config(tmp_path / name, "d2vlm", validate_every=2)
        assert run_train(config, f"data.features={features}", "train.steps=2", "train.batch_size=4") == 0
        losses.append([e["loss"] for e in read_log(tmp_path / name / "run")])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert len(list((tmp_path / "features").iterdir())) == 4


def test_accumulated_batches_train_as_one_large_batch(tmp_path):
    """Although they hold different numbers of tokens and spans."""
    losses = {}
    for batch, accumulation in ((4, 1), (2, 2), (1, 4)):
        config = write_config(tmp_path / str(batch), "distime", batch_size=batch, accumulation=accumulation)
        assert run_train(config, "train.steps=2") == 0
        losses[batch] = [
            (e["loss"], e["lm"], e["dfl"], e["grad_norm"]) for e in read_log(tmp_path / str(batch) / "run")
        ]
    for other in (losses[2], losses[1]):
        for one, two in zip(losses[4], other, strict=True):
            assert one == pytest.approx(two, rel=1e-4)


def test_adapters_and_packing_train_and_are_merged(tmp_path):
    lines = [*clip_lines(4), *({**line, "id": f"more{i}"} for i, line in enumerate(clip_lines(4)))]
    config = write_config(tmp_path, "d2vlm", lines=lines, lora={"r": 2, "dropout": 0.0}, gradient_checkpointing=True)
    assert run_train(config, "data.pack=true", "train.steps=2") == 0
    final = load(tmp_path / "run" / "final")
    assert final.config.lora is None
    assert not any("lora" in name for name, _ in final.model.named_parameters())


# ---- what a user does wrong ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "override, words",
    [
        ("train.stps=3", ["train.stps", "train.steps"]),
        ("model.head.alpha=2", ["model.head.alpha"]),
        ("data.train=[none.jsonl]", ["none.jsonl"]),
        ("data.train=[]", ["data.train"]),
        ("model.head.name=evidence", ["model.head.name", "evidence"]),
        ("model.template=qwen9", ["model.template", "qwen9"]),
        ("model.vision.type=clip", ["model.vision.type", "clip"]),
        ("model.tokenizer=null", ["model.tokenizer"]),
        ("train.best=mIoU", ["train.best", "validate_every"]),
        ("train.deepspeed=none.json", ["train.deepspeed", "none.json"]),
        ("model.checkpoint=none", ["model.checkpoint"]),
        ("data.sampler.fps=-1", ["data.sampler", "fps"]),
        ("nonsense", ["nonsense", "key=value"]),
    ],
)
def test_a_mistake_in_the_config_is_one_line_and_status_2(tmp_path, capsys, override, words):
    assert run_train(write_config(tmp_path, "text"), override) == 2
    message = the_error(capsys)
    assert all(word in message for word in words)


def test_a_record_without_an_answer_cannot_train(tmp_path, capsys):
    config = write_config(tmp_path, "text", lines=[{"video": "clip0.mp4", "conversations": turns("<video>\nwhen?")}])
    assert run_train(config) == 2
    assert "train.jsonl:1" in the_error(capsys)


@pytest.mark.parametrize("what", ["model", "annotations", "key"])
def test_a_mistake_in_inference_is_one_line_and_status_2(trained, tmp_path, capsys, what):
    _, folder = trained
    model = tmp_path / "none" if what == "model" else folder / "run" / "final"
    annotations = tmp_path / "none.jsonl" if what == "annotations" else folder / "train.jsonl"
    more = ["generate.max_tokens=3"] if what == "key" else []
    assert run_infer(model, annotations, tmp_path / "out.jsonl", *more) == 2
    assert ("generate.max_tokens" if what == "key" else "none") in the_error(capsys)
    assert not (tmp_path / "out.jsonl").exists()
