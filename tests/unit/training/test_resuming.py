"""What may change between a run and its resumption stands beside each setting, and messages name only what may."""

import ast
import json
import re
from pathlib import Path

import pytest
import yaml

from tests.models import settings
from videollm.common.config import ConfigError, to_dict
from videollm.training import resuming, saving
from videollm.training.saving import Facts
from videollm.training.settings import BEST, FREE, STEP, Settings, TrainSettings
from videollm.training.trainer import smaller

ROOT = Path(__file__).resolve().parents[3]
RULES = dict(resuming.rules(Settings))


def resumed(tmp_path, then: dict, now: dict, *, items: int = 24, best: float | None = None) -> str:
    """What is said against going on with ``now`` after ``then``; empty where nothing is."""
    folder = tmp_path / "run/checkpoint-4"
    saving.begin(folder)
    (folder / "trainer_state.json").write_text(json.dumps({"best_metric": best}))
    saving.finish(folder, Facts(4, resuming.world_size(), None, items), 9)
    before, after = (settings("internvl", "text", **values) for values in (then, now))
    (tmp_path / "run/config.yaml").write_text(yaml.safe_dump(to_dict(before)))
    try:
        resuming.check_resume(after, None, saving.read_checkpoint(folder))
    except ConfigError as error:
        return str(error)
    return ""


# ---- rules -----------------------------------------------------------------------------------------------------------


def test_everything_that_is_another_is_named_with_why_and_the_remedy(tmp_path):
    frames = ({"rule": "segments", "num_frames": n} for n in (4, 8))
    then, now = ({"train": {"lr": lr}, "data": {"pack": lr > 1, "sampler": next(frames)}} for lr in (1.0, 2.0))
    said = resumed(tmp_path, then, now)
    data = "the model would see other data than so far"
    assert said == (
        f"data.sampler.num_frames: 8, but the run in {tmp_path / 'run'} began with 4 ({data}); data.pack: True, it "
        f"began with False ({data}); train.lr: 2.0, it began with 1.0 (it would be another training); resume with "
        f"those; or start a new run from it: model.checkpoint={tmp_path / 'run/checkpoint-4'} and another train.output"
    )


@pytest.mark.parametrize("key", [key for key, rule in RULES.items() if rule == FREE])
def test_what_is_free_may_change(tmp_path, key):
    """From any value to any other one: here from one that no setting has."""
    section, _, name = key.partition(".")
    given = settings("internvl", "text")
    folder = tmp_path / "run/checkpoint-4"
    saving.begin(folder)
    saving.finish(folder, Facts(4, 1, None, 9), 9)
    values = to_dict(given)
    values[section][name] = "another"
    (tmp_path / "run/config.yaml").write_text(yaml.safe_dump(values))
    resuming.check_resume(given, None, saving.read_checkpoint(folder))


@pytest.mark.parametrize(
    "then, now, says",
    [
        ({"batch_size": 4}, {"batch_size": 2, "accumulation": 2}, ""),
        ({"batch_size": 4}, {"batch_size": 1, "global_batch": 4}, ""),
        ({"batch_size": 4, "global_batch": 8}, {"batch_size": 2, "global_batch": 8}, ""),
        (
            {"batch_size": 4},
            {"batch_size": 2},
            "a step would have 2 items on each process, not 4; choose train.batch_size",
        ),
        ({"batch_size": 4, "global_batch": 8}, {"batch_size": 4, "global_batch": 4}, "4 items on each process, not 8"),
        (
            {"batch_size": 4, "group_by_length": True},
            {"batch_size": 2, "accumulation": 2, "group_by_length": True},
            "train.group_by_length puts together",
        ),
    ],
)
def test_a_step_may_be_cut_otherwise_but_not_hold_other_items(tmp_path, then, now, says):
    said = resumed(tmp_path, {"train": then}, {"train": now})
    assert (says in said) if says else not said


@pytest.mark.parametrize("items, refused", [(24, False), (22, True)])
def test_ranks_must_not_end_a_pass_with_other_items(tmp_path, monkeypatch, items, refused):
    monkeypatch.setenv("WORLD_SIZE", "2")
    then, now = {"train": {"batch_size": 4}}, {"train": {"batch_size": 2, "accumulation": 2}}
    said = resumed(tmp_path, then, now, items=items)
    assert ("no multiple of it on 2 processes" in said) is refused


@pytest.mark.parametrize("change", [{"metric": "x:y"}, {"best": "b"}, {"validation_size": 3}])
def test_scores_of_the_best_model_stay_of_one_kind(tmp_path, change):
    then = {"train": {"best": "a", "validate_every": 1}}
    now = {"train": then["train"] | change}
    ((key, value),) = change.items()
    said = resumed(tmp_path, then, now, best=0.5)
    assert said.startswith(f"train.{key}: {value!r}, but the run in ") and "or set train.best=null" in said
    assert not resumed(tmp_path, then, now)  # none has been chosen so far
    assert not resumed(tmp_path, then, {"train": now["train"] | {"best": None}}, best=0.5)


def test_a_manifest_of_before_says_nothing_of_questions(tmp_path):
    folder = tmp_path / "checkpoint-4"
    saving.begin(folder)
    saving.finish(folder, Facts(4, 1, None, 9, "abc"), 9)
    content = json.loads((folder / saving.MANIFEST).read_text())
    assert saving.read_checkpoint(folder).facts.questions == content.pop("questions") == "abc"
    (folder / saving.MANIFEST).write_text(json.dumps(content | {"later": 1}))
    assert saving.read_checkpoint(folder).facts == Facts(4, 1, None, 9)


# ---- messages --------------------------------------------------------------------------------------------------------

WHILE_IT_RUNS = ("training/trainer.py", "training/validation.py", "training/features.py", "batches/reader.py",
                 "batches/collate.py", "video/store.py", "model/generate.py", "inference/*.py", "training/preflight.py",
                 "training/run.py")  # fmt: skip
SETTING = re.compile(r"\b(?:model|data|train|generate)\.[a-z_]+")


def texts(file: Path) -> list[str]:
    """The texts of a file's code, whole: pieces of an f-string are joined, what it puts in is left out."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    joined = [node for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)]
    inside = {id(value) for node in joined for value in node.values}
    plain = (
        n for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str) and id(n) not in inside
    )
    pieces = ("".join(v.value for v in node.values if isinstance(v, ast.Constant)) for node in joined)
    return [*pieces, *(node.value for node in plain)]


def remedies(text: str) -> set[str]:
    """Settings that a message, or the remedy alone, tells to change, and not for a new run.

    What "decides on that" of a DeepSpeed file is not to be changed, but the file.
    """
    text = re.sub(r"[^;]+ decides? on that", "", text).partition("new run")[0]
    told = text.partition(";")[2] if ";" in text or SETTING.match(text) else text
    return set(SETTING.findall(told)) if " " in told else set()


def test_messages_of_a_run_name_only_remedies_that_its_resumption_takes():
    files = [file for pattern in WHILE_IT_RUNS for file in sorted((ROOT / "videollm").glob(pattern))]
    assert len(files) > len(WHILE_IT_RUNS)
    found = {name: file.name for file in files for text in texts(file) for name in remedies(text)}
    for options in ({"batch_size": 2}, {"batch_size": 2, "group_by_length": True}, {"gradient_checkpointing": True}):
        found |= dict.fromkeys(remedies(f"; {smaller(TrainSettings(**options))}"), "trainer.py")
    refused = {name: file for name, file in found.items() if RULES.get(name, FREE) not in (FREE, STEP, BEST)}
    assert refused == {} and {"data.decode_timeout_s", "train.batch_size"} <= found.keys()


@pytest.mark.parametrize(
    "options, remedy",
    [
        ({"batch_size": 4}, "lower train.batch_size and raise train.accumulation as much or set train.gradient_checkp"),
        (
            {"batch_size": 4, "group_by_length": True},
            "set train.gradient_checkpointing=true and resume; or start a new",
        ),
        ({"gradient_checkpointing": True}, "start a new run with a lower data.max_length, fewer"),
    ],
)
def test_what_does_not_fit_into_memory_gets_a_remedy_that_the_run_can_take(options, remedy):
    assert smaller(TrainSettings(**options)).startswith(remedy)


def test_the_page_lists_what_may_change():
    page = (ROOT / "docs/training.md").read_text(encoding="utf-8").partition("\n## Resuming\n")[2].partition("\n## ")[0]
    rows = {part.partition("**")[0]: set(SETTING.findall(part)) for part in page.split("\n- **")[1:]}
    assert rows == {
        "free": {key for key, rule in RULES.items() if rule == FREE},
        "step": {key for key, rule in RULES.items() if rule == STEP},
        "best": {key for key, rule in RULES.items() if rule == BEST and not key.startswith("generate.")},
    }
