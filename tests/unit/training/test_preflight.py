"""Combinations that cannot work are named before anything starts, with what to do instead."""

import json
import os
import time

import pytest
import yaml

from tests.models import settings
from videollm.common.config import ConfigError, to_dict
from videollm.training import preflight, resuming, saving
from videollm.training.saving import Facts


def zero_file(tmp_path, stage: int = 2, **changes) -> str:
    """A DeepSpeed file."""
    auto = dict.fromkeys(preflight.FROM_THE_RUN, "auto")
    zero = {"stage": stage, "stage3_gather_16bit_weights_on_model_save": True} | changes.pop("zero", {})
    path = tmp_path / "zero.json"
    path.write_text(json.dumps({**auto, "bf16": {"enabled": "auto"}, "zero_optimization": zero, **changes}))
    return str(path)


def run_settings(tmp_path, **train):
    return settings("internvl", "text", {"output": str(tmp_path / "run"), **train})


def refused(given) -> str:
    with pytest.raises(ConfigError) as error:
        preflight.check_start(given)
    return str(error.value)


@pytest.mark.parametrize("name", ["zero1", "zero2", "zero2_offload", "zero3", "zero3_offload"])
def test_every_shipped_file_starts_without_a_compiler(repository, tmp_path, monkeypatch, name):
    monkeypatch.setenv("PATH", "")
    given = run_settings(tmp_path, deepspeed=str(repository / f"configs/deepspeed/{name}.json"))
    assert preflight.check_start(given) is None


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"train_micro_batch_size_per_gpu": 4}, '"train_micro_batch_size_per_gpu": "auto"; train.batch_size decides'),
        ({"gradient_clipping": 1.0}, '"gradient_clipping": "auto"; train.clip decides'),
        ({"bf16": {"enabled": True}}, "train.precision (fp32) decides"),
        ({"fp16": {"enabled": True}}, "not enable fp16"),
        ({"zero": {"stage": "two"}}, '"zero_optimization": {"stage": 0, 1, 2 or 3}'),
    ],
)
def test_a_deepspeed_file_that_contradicts_the_run_is_refused(tmp_path, changes, says):
    message = refused(run_settings(tmp_path, deepspeed=zero_file(tmp_path, **changes)))
    assert message.startswith("train.deepspeed: ") and "zero.json must say" in message and says in message


@pytest.mark.parametrize(
    "changes, train, generate, says",
    [
        ({}, {"lora": {"r": 2}}, {}, "train.merge_lora: not possible under ZeRO-3; set it to false"),
        ({"zero": {"stage3_gather_16bit_weights_on_model_save": False}}, {}, {}, "saves no model that can be loaded"),
        *(
            ({}, {"validate_every": 2}, {key: 9}, f"generate.{key}: not possible with train.validate_every")
            for key in ("time_limit_s", "graphs", "compile_tower")
        ),
    ],
)
def test_what_zero3_cannot_do_is_said_at_the_start(tmp_path, changes, train, generate, says):
    given = run_settings(tmp_path, deepspeed=zero_file(tmp_path, 3, **changes), **train)
    for name, value in generate.items():
        setattr(given.generate, name, value)
    assert says in refused(given)
    zero_file(tmp_path, 2, **changes)
    assert preflight.check_start(given) is None


OFFLOAD = {"zero": {"offload_optimizer": {"device": "cpu"}}}


def test_a_compilation_without_a_compiler_is_refused(tmp_path, monkeypatch):
    given = run_settings(tmp_path, deepspeed=zero_file(tmp_path, **OFFLOAD))
    monkeypatch.setenv("CXX", "no-such-compiler")
    message = refused(given)
    assert "no-such-compiler or ninja is missing" in message and '"zero_force_ds_cpu_optimizer": false' in message
    zero_file(tmp_path, zero_force_ds_cpu_optimizer=False, **OFFLOAD)
    assert preflight.check_start(given) is None


@pytest.mark.parametrize("below", ["cpu_adam", "py311_cpu/cpu_adam"])
def test_a_lock_that_a_killed_compilation_left_is_named(tmp_path, monkeypatch, caplog, below):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "extensions"))
    monkeypatch.setattr(preflight.shutil, "which", lambda name: name)
    lock = tmp_path / "extensions" / below / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    given = run_settings(tmp_path, deepspeed=zero_file(tmp_path, **OFFLOAD))
    assert preflight.check_start(given) is None and "this one waits" in caplog.text
    os.utime(lock, (time.time() - 3600,) * 2)
    message = refused(given)
    assert f"{lock} was left by a compilation" in message and "delete it" in message
    zero_file(tmp_path)  # compiles nothing
    assert preflight.check_start(given) is None


# ---- resuming --------------------------------------------------------------------------------------------------------


def earlier_run(tmp_path, facts: Facts, **train):
    """The folder of a run with one checkpoint; its settings, for going on."""
    given = run_settings(tmp_path, resume=True, **train)
    output = tmp_path / "run"
    saving.begin(output / f"checkpoint-{facts.step}")
    saving.finish(output / f"checkpoint-{facts.step}", facts, 9)
    (output / "config.yaml").write_text(yaml.safe_dump(to_dict(given)))
    return given


@pytest.mark.parametrize(
    "facts, deepspeed, says",
    [
        (Facts(4, 1, None, 9), True, "was written with no DeepSpeed, this run has ZeRO-2"),
        (Facts(4, 1, 3, 9), True, "was written with ZeRO-3, this run has ZeRO-2"),
        (Facts(4, 1, 2, 9), False, "was written with ZeRO-2, this run has no DeepSpeed"),
        (Facts(4, 2, 2, 9), True, "was written by 2 processes, this run has 1; start 2"),
    ],
)
def test_a_checkpoint_of_another_kind_of_run_is_refused(tmp_path, facts, deepspeed, says):
    given = earlier_run(tmp_path, facts, deepspeed=zero_file(tmp_path) if deepspeed else None)
    message = refused(given)
    assert says in message and f"model.checkpoint={tmp_path / 'run/checkpoint-4'}" in message


def test_the_same_run_goes_on_and_may_change_what_does_not_change_its_numbers(tmp_path):
    given = earlier_run(tmp_path, Facts(4, 1, None, 9), steps=8)
    assert preflight.check_start(given).facts.step == 4
    for name, value in {"steps": 10, "save_every": 3, "keep": 7, "validate_every": 5, "best": "mIoU"}.items():
        setattr(given.train, name, value)
    given.data.videos, given.data.workers = "elsewhere", 5
    assert preflight.check_start(given).facts.step == 4


@pytest.mark.parametrize("key, value", [("train.lr", 1.0), ("train.seed", 7), ("data.pack", True), ("train.clip", 9.0)])
def test_what_changes_the_numbers_is_refused_by_name(tmp_path, key, value):
    given = earlier_run(tmp_path, Facts(4, 1, None, 9))
    section, _, name = key.partition(".")
    setattr(getattr(given, section), name, value)
    assert refused(given).startswith(f"{key}: {value}, but the run in ")


def test_other_data_are_refused():
    found = saving.Checkpoint("checkpoint-4", Facts(4, 1, None, 9))
    resuming.check_items(found, 9)
    resuming.check_items(None, 3)
    with pytest.raises(ConfigError, match=r"data\.train: 3 items, but checkpoint-4 was trained on 9"):
        resuming.check_items(found, 3)


def test_resume_needs_a_whole_checkpoint_and_a_new_run_an_empty_folder(tmp_path):
    given = run_settings(tmp_path, resume=True)
    assert "train.resume: " in refused(given)
    given.train.resume = "auto"
    assert preflight.check_start(given) is None
    (tmp_path / "run" / "checkpoint-4").mkdir(parents=True)  # without a manifest
    given.train.resume = True
    assert "holds no whole checkpoint-N" in refused(given)
    given.train.resume = False
    assert "holds an earlier run" in refused(given)


def test_an_output_that_cannot_be_written_is_said_before_the_model_is_built(tmp_path, monkeypatch):
    (tmp_path / "run").write_text("a file")
    assert "train.output: cannot write to" in refused(run_settings(tmp_path))
    (tmp_path / "run").unlink()

    def refuse(dir):  # root may write everywhere
        raise PermissionError(13, "Permission denied", str(dir))

    monkeypatch.setattr("videollm.common.files.tempfile.TemporaryFile", refuse)
    message = refused(run_settings(tmp_path))
    assert "cannot write to" in message and "Permission denied" in message and not (tmp_path / "run").exists()


def test_a_run_that_saved_nothing_says_how_it_begins_again(tmp_path):
    """``true`` would find no checkpoint."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "log.jsonl").touch()
    given = run_settings(tmp_path)
    assert "train.resume=auto to begin again" in refused(given)
    given.train.resume = "auto"
    assert preflight.check_start(given) is None
