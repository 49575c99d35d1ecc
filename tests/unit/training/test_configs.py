"""Every shipped config is one that runs take, and docs/training.md lists every key with its default."""

import dataclasses
import json
import os
import re
import subprocess
import typing
from pathlib import Path

import pytest

from benchmarks.real_sizes import SYSTEMS
from d2vlm.evidence import EvidenceOptions
from distime.time_head import TimeOptions
from videollm.batches.templates import TEMPLATES
from videollm.common.config import ConfigError, build, read_yaml
from videollm.heads import head_class
from videollm.heads.text import TextOptions
from videollm.training.run import accumulation
from videollm.training.settings import PARTS, PartSettings, Settings

ROOT = Path(__file__).resolve().parents[3]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
PUBLISHED = (
    "configs/d2vlm/sft_etchat_phi3.yaml",
    "configs/d2vlm/fpo_etchat_phi3.yaml",
    "configs/d2vlm/fpo_mcqa_etchat_phi3.yaml",
    "configs/distime/internvl2_5_1b_lora.yaml",
    "configs/distime/internvl2_5_8b_lora.yaml",
)
FPO_VARIANT = "configs/d2vlm/fpo_mcqa_etchat_phi3.yaml"  # the same training on other pairs
HEAD_OPTIONS = {"d2vlm": EvidenceOptions, "distime": TimeOptions, "text": TextOptions}


def by(path, system):
    """Whether a config trains a system."""
    return path in (system.recipe, system.preferences) or (path == FPO_VARIANT and system.preferences)


def name(path):
    return str(path.relative_to(ROOT))


# ---- configs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", CONFIGS, ids=name)
def test_every_config_fills_the_settings(path):
    settings = build(Settings, read_yaml(path))
    head = dict(settings.model.head)
    if head or not settings.model.checkpoint:  # else it is the checkpoint's
        build(head_class(head.pop("name")).Options, head, "model.head")
    assert settings.model.template is None or settings.model.template in TEMPLATES
    if settings.train.deepspeed:
        assert (ROOT / settings.train.deepspeed).is_file()


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "deepspeed").glob("*.json")), ids=name)
def test_every_deepspeed_file_leaves_the_runs_own_values_to_the_run(path):
    values = json.loads(path.read_text(encoding="utf-8"))
    taken = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
    assert [values[key] for key in taken] == ["auto"] * 4 and values["bf16"]["enabled"] == "auto"
    assert "optimizer" not in values and "scheduler" not in values
    assert path.stem.removesuffix("_offload") == f"zero{values['zero_optimization']['stage']}"


@pytest.mark.parametrize("path", PUBLISHED)
def test_a_published_systems_config_opens_with_what_its_user_needs(path):
    comment = "".join(re.match(r"(#.*\n)+", (ROOT / path).read_text(encoding="utf-8"))[0])
    assert f"scripts/train.sh {path}" in comment
    assert all(word in comment for word in ("arXiv", "Download", "convert", "Trained:"))


@pytest.mark.parametrize("path", PUBLISHED)
def test_a_published_systems_expected_parameters_add_up(path):
    """The numbers in the comment are those of the real sizes, built without memory."""
    import torch

    from videollm.model.lora import add_lora
    from videollm.model.videollm import VideoLLM, VideoLLMConfig
    from videollm.training.optimizer import part_of, set_trainable

    settings = build(Settings, read_yaml(ROOT / path))
    config = VideoLLMConfig(head=settings.model.head, **next(s.sizes for s in SYSTEMS.values() if by(path, s)))
    with torch.device("meta"):
        model = VideoLLM(config)
        add_lora(model.language_model, dataclasses.asdict(settings.train.lora))
    set_trainable(model, settings.train)
    trained: dict[str, int] = {}
    for key, parameter in model.named_parameters():
        trained[part_of(key)] = trained.get(part_of(key), 0) + parameter.numel() * parameter.requires_grad
    comment = (ROOT / path).read_text(encoding="utf-8").partition("Trained:")[2].partition("of ")[0]
    total = re.search(r"of ([\d,]+) parameters", (ROOT / path).read_text(encoding="utf-8"))[1]
    assert int(total.replace(",", "")) == sum(p.numel() for p in model.parameters())
    told = re.findall(r"(\w+) ([\d,]+)", comment)
    expected = {part.lower(): int(number.replace(",", "")) for part, number in told}
    assert {part: count for part, count in trained.items() if count} == expected


# ---- docs/training.md ------------------------------------------------------------------------------------------------


def settings_keys(cls, prefix):
    """(key, default as JSON) of every field of a dataclass and of those below it."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        hint, key = hints[field.name], f"{prefix}{field.name}"
        below = next((h for h in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(h)), None)
        if below is not None:
            yield from settings_keys(below, f"{key}.PART." if below is PartSettings else f"{key}.")
            continue
        made = field.default_factory is not dataclasses.MISSING
        yield key, json.dumps(field.default_factory() if made else field.default)


def table_rows(text):
    """(key, default) of every row of a Markdown table."""
    return re.findall(r"^\| `([\w.]+)` \| `(.*?)` \| .+ \|$", text, re.MULTILINE)


@pytest.fixture(scope="module")
def page():
    return (ROOT / "docs" / "training.md").read_text(encoding="utf-8")


def test_the_page_lists_every_setting_with_its_default_in_order(page):
    listed = [row for row in table_rows(page) if not row[0].startswith("model.head.")]
    assert listed == list(settings_keys(Settings, ""))


@pytest.mark.parametrize("head", HEAD_OPTIONS)
def test_the_page_lists_every_option_of_a_head_with_its_default(page, head):
    section = page.partition(f"`name: {head}`")[2].partition("\n`name:")[0].partition("\n### ")[0]
    assert table_rows(section) == list(settings_keys(HEAD_OPTIONS[head], "model.head."))


def test_the_page_names_every_part(page):
    parts = page.partition("The parts are ")[2].partition("By default")[0]
    assert tuple(re.findall(r"`(\w+)`", parts)) == PARTS


# ---- scripts ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def script(tmp_path):
    """Runs a script with a stand-in for python that prints how it is called."""

    def run(*command, **environment):
        fake = tmp_path / "python"
        fake.write_text('#!/bin/bash\nprintf "%s " "$@"\n')
        fake.chmod(0o755)
        kept = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
        command = ["bash", str(ROOT / "scripts" / command[0]), *command[1:]]
        environment = kept | {"VIDEOLLM_PYTHON": str(fake)} | environment
        done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
        return done.returncode, done.stdout.strip(), done.stderr

    return run


def test_every_script_ends_in_the_launcher(script):
    launched = "-m videollm.launch videollm"
    assert script("train.sh", "c.yaml", "train.steps=3")[:2] == (0, f"{launched}.train --config c.yaml train.steps=3")
    called = script("infer.sh", "m", "a.jsonl", "v", "o.jsonl", "--batch-size", "4", "generate.do_sample=true")[1]
    wanted = "--model m --annotations a.jsonl --videos v --output o.jsonl --batch-size 4 generate.do_sample=true"
    assert called == f"{launched}.infer {wanted}"


@pytest.mark.parametrize("stage", ["sft", "fpo"])
def test_each_stage_of_d2vlm_is_its_config_with_values_laid_over(script, stage):
    config, zero2 = f"{ROOT}/configs/d2vlm/{stage}_etchat_phi3.yaml", f"{ROOT}/configs/deepspeed/zero2.json"
    status, called, _ = script(f"d2vlm/train_{stage}.sh", "train.steps=3", GPUS="2")
    assert status == 0 and called.endswith(f"--config {config} train.deepspeed={zero2} train.steps=3")
    assert script(f"d2vlm/train_{stage}.sh", "--help")[0] == 0 and script(f"d2vlm/train_{stage}.sh", "--x")[0] == 2


@pytest.mark.parametrize("size", ["1b", "8b"])
def test_each_size_of_distime_is_its_config_with_values_laid_over(script, size):
    config, zero2 = f"{ROOT}/configs/distime/internvl2_5_{size}_lora.yaml", f"{ROOT}/configs/deepspeed/zero2.json"
    name = f"distime/train_internvl2_5_{size}.sh"
    status, called, _ = script(name, "train.steps=3")
    assert status == 0 and called.endswith(f"--config {config} train.deepspeed={zero2} train.steps=3")
    assert script(name, "--help")[0] == 0 and script(name, "--x")[0] == 2


@pytest.mark.parametrize("size", ["1b", "8b"])
def test_distime_sees_128_items_a_step_however_it_is_launched(size, monkeypatch):
    train = build(Settings, read_yaml(ROOT / f"configs/distime/internvl2_5_{size}_lora.yaml")).train
    for world in (1, 4, 8, 16, 128):
        monkeypatch.setenv("WORLD_SIZE", str(world))
        assert accumulation(train) * world * train.batch_size == 128
    monkeypatch.setenv("WORLD_SIZE", "6")
    with pytest.raises(ConfigError, match=r"train\.global_batch: 128 items cannot be split over 6 processes"):
        accumulation(train)


@pytest.mark.parametrize("name, arguments", [("train.sh", []), ("infer.sh", ["m", "a.jsonl"])])
def test_missing_arguments_show_the_usage(script, name, arguments):
    status, out, err = script(name, *arguments)
    assert (status, out) == (2, "") and "usage: bash scripts/" in err
    status, out, err = script(name, "--help")
    assert status == 0 and "NNODES, NODE_RANK" in out
