"""Span tokens that are new to the language model have to be learnt: where they cannot be, a run says so, once."""

from pathlib import Path

import pytest

from tests.models import (
    BACKBONES,
    HEADS,
    SPECIAL,
    byte_tokenizer,
    clip_lines,
    make_bundle,
    settings,
    tokenizer_folder,
    write_config,
    write_lines,
)
from videollm import train
from videollm.common.config import build, read_yaml
from videollm.data.__main__ import main as data
from videollm.training.assemble import assemble
from videollm.training.optimizer import set_trainable, warn_frozen
from videollm.training.settings import Settings

ROOT = Path(__file__).resolve().parents[3]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
TOKENS = {"d2vlm": "<evi>", "distime": "<TIME_STAMP>"}
LORA = {"r": 2, "targets": ["q_proj"]}


def told(caplog, given, model=None):
    """What is said of a run's settings."""
    caplog.clear()
    model = model or assemble(given).model
    set_trainable(model, given.train)
    warn_frozen(model, given)
    return caplog.messages


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("head", HEADS)
def test_it_is_told_where_no_weight_of_the_output_layer_learns(head, tie, caplog, tmp_path):
    byte_tokenizer((*SPECIAL, *TOKENS.values())).save_pretrained(tmp_path)
    language = {**BACKBONES["internvl"]["language"], "tie_word_embeddings": tie}

    def run(tokenizer=None, lora=None, **parts):
        parts = {part: {"train": value} for part, value in parts.items()}
        parts = {"lora": lora, "parts": parts}
        return told(
            caplog, settings("internvl", head, parts, language=language, tokenizer=tokenizer or tokenizer_folder())
        )

    key = "embeddings" if tie else "lm_head"
    frozen = run(lora=LORA), run(embeddings=False, lm_head=False)
    if head not in TOKENS:
        assert frozen == ([], [])
        return
    for said in frozen:
        (line,) = said
        assert line.startswith(f"train.parts.{key}: is frozen") and TOKENS[head] in line
        assert line.endswith(f"set train.parts.{key}.train=true") and "\n" not in line
    assert run() == run(lora=LORA, **{key: True}) == []
    assert run(tokenizer=str(tmp_path), lora=LORA) == []  # which had the token
    if not tie:  # its rows there learn, or an adapter moves them
        assert run(lora={"r": 2, "targets": ["lm_head"]}) == [] and run(lora=LORA, embeddings=True) != []


def test_a_checkpoint_has_learnt_its_tokens_and_a_base_has_not(caplog, tmp_path):
    bundle = make_bundle("internvl", "d2vlm")
    for name, headless in (("base", True), ("trained", False)):
        bundle.config.headless = headless
        bundle.save(tmp_path / name)
        given = build(Settings, {"model": {"checkpoint": str(tmp_path / name)}, "data": {}, "train": {"lora": LORA}})
        said = [line for line in told(caplog, given) if line.startswith("train.parts")]
        assert len(said) == headless


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_recipe_is_warned_of(path, caplog, tmp_path):
    given = build(Settings, read_yaml(path))
    head = given.model.head.get("name", "d2vlm")
    first = given.model.checkpoint is None or given.model.checkpoint.startswith("checkpoints/")  # it starts a head
    for tie in (True, False)[: 1 if "realweights" in path.parts else 2]:  # SmolLM2 is tied
        language = {**BACKBONES["internvl"]["language"], "tie_word_embeddings": tie}
        bundle = make_bundle("internvl", head, language=language)
        bundle.config.headless = first
        bundle.save(tmp_path / str(tie))
        lora = given.train.lora and {"r": 2, "targets": ["q_proj", "o_proj"]}
        parts = {part: vars(one) for part, one in given.train.parts.items() if part in ("embeddings", "lm_head")}
        model = {"checkpoint": str(tmp_path / str(tie))}
        run = build(Settings, {"model": model, "data": {}, "train": {"lora": lora, "parts": parts}})
        assert [line for line in told(caplog, run) if line.startswith("train.parts")] == []


def test_training_and_check_say_it_once(caplog, tmp_path):
    """In check without any weights."""
    path = write_config(tmp_path, "d2vlm", steps=1, lora=LORA)
    assert train.main(["--config", str(path)]) == 0
    assert sum(line.startswith("train.parts.") for line in caplog.messages) == 1
    caplog.clear()
    lines = write_lines(tmp_path / "lines.jsonl", clip_lines(1))
    data(["check", "--annotations", lines, "--model", str(path)])
    assert sum(line.startswith("train.parts.") for line in caplog.messages) == 1
