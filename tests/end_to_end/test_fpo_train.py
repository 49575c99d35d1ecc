"""Preference optimization as a user runs it: from a trained checkpoint, by the command, with everything it writes."""

import pytest
import yaml

from tests.end_to_end.test_distributed import torchrun
from tests.models import clip_lines, read_log, write_config, write_lines
from videollm import train
from videollm.checkpoint import load

FACTORS = {f"logp_{which}_{factor}" for which in ("chosen", "rejected") for factor in ("grounding", "text")}


def pairs(count: int = 4) -> list[dict]:
    """Clips with two rejected answers each: another time, other words."""
    worse = [
        {"factor": "shift", "value": "It is in <span>.", "tgt": [0, 1]},
        {"factor": "wording", "value": "It never happens."},
    ]
    return [line | {"rejected": worse} for line in clip_lines(count)]


def preference_config(folder, checkpoint, **train_options):
    """A config that goes on from ``checkpoint``, which brings the whole model."""
    path = write_config(folder, "text", lines=pairs(), **train_options)
    config = yaml.safe_load(path.read_text())
    config["model"] = {"checkpoint": str(checkpoint)}
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.fixture(scope="module")
def sft(tmp_path_factory):
    """A supervised run of the evidence head, its model the start of the preference stage."""
    folder = tmp_path_factory.mktemp("sft")
    assert train.main(["--config", str(write_config(folder, "d2vlm", steps=2))]) == 0
    return folder / "run" / "final"


def test_the_preference_stage_trains_logs_and_validates(sft, tmp_path):
    objective = {"name": "d2vlm.fpo", "beta": 0.1, "reference": str(sft)}
    config = preference_config(
        tmp_path, sft, objective=objective, steps=4, batch_size=2, accumulation=2, lr=3e-3, validate_every=2,
        best="preference_accuracy",
    )  # fmt: skip
    assert train.main(["--config", str(config)]) == 0
    log = read_log(tmp_path / "run")
    for entry in log:
        assert FACTORS | {"fpo", "margin", "preference_accuracy", "lm", "grounding", "consistency"} <= set(entry)
        assert entry["loss"] == pytest.approx(
            sum(entry[n] for n in ("fpo", "lm", "grounding", "consistency")), rel=1e-4
        )
    assert log[0]["margin"] == pytest.approx(0, abs=1e-3) and log[-1]["margin"] > 0.01
    held_out = read_log(tmp_path / "run", "eval_preference_accuracy")
    assert [e["step"] for e in held_out] == [2, 4] and held_out[-1]["eval_margin"] > 0 and "eval_mIoU" in held_out[0]
    assert load(tmp_path / "run" / "best").config.head["name"] == "d2vlm"
    assert load(tmp_path / "run" / "final").model.objective.logged == ()  # a model is saved without its objective


def test_records_without_rejected_answers_are_one_clear_error(sft, tmp_path, capsys):
    config = preference_config(tmp_path, sft, objective={"name": "d2vlm.fpo"})
    lines = [*pairs(1), *clip_lines(3)[1:]]
    write_lines(tmp_path / "train.jsonl", lines)
    assert train.main(["--config", str(config)]) == 2
    message = capsys.readouterr().err
    assert "train.jsonl:2: no rejected answer" in message and "2 of 3 records" in message


@pytest.mark.distributed
def test_two_processes_with_zero2_prefer_as_one(sft, tmp_path, repository):
    """The same global batch, split and accumulated otherwise, has the same terms."""
    options = {"steps": 3, "lr": 1e-4, "warmup": 0.0, "schedule": "constant"}
    objective = {"name": "d2vlm.fpo", "rejected": "all"}
    one = preference_config(tmp_path / "one", sft, objective=objective, batch_size=4, **options)
    assert train.main(["--config", str(one)]) == 0
    zero2 = str(repository / "configs" / "deepspeed" / "zero2.json")
    two = preference_config(
        tmp_path / "two", sft, objective=objective, batch_size=1, accumulation=2, deepspeed=zero2, **options
    )
    done = torchrun(repository, 2, "videollm.train", "--config", two)
    assert done.returncode == 0, done.stderr[-3000:]
    alone, shared = (read_log(tmp_path / name / "run") for name in ("one", "two"))
    for key in ("loss", "fpo", "margin", "lm", "grounding", "grad_norm", *sorted(FACTORS)):
        assert [e[key] for e in shared] == pytest.approx([e[key] for e in alone], rel=1e-3, abs=1e-5), key
