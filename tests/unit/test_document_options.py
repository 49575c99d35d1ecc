"""Options, keys and defaults in the text of README.md and docs/*.md are those of the parsers and of the settings.

What stands in a command is parsed by tests/end_to_end/test_documents.py, and the tables of docs/training.md are held by
tests/unit/training/test_configs.py; here is the rest.
"""

import argparse
import dataclasses
import re
from pathlib import Path

import pytest

from d2vlm.fpo import FPOOptions
from d2vlm.preference import PreferenceOptions
from tests.documents import TYPED, blocks, documents, own_files, spans
from tests.unit.training.test_configs import HEAD_OPTIONS, settings_keys
from videollm import infer
from videollm.common.config import parse_yaml
from videollm.grpo import GRPOOptions
from videollm.training.settings import Settings

REPOSITORY = Path(__file__).resolve().parents[2]
FREE = ("model.vision.", "model.connector.", "model.language.", "train.objective.")  # of classes that configs name
OTHERS = {  # options of programs that are not ours
    "--log_samples", "--num_gpus", "--num_accelerators", "--module", "--signal", "--ntasks-per-node", "--shm-size",
    "--sample", "--dynamic", "--model_args",
}  # fmt: skip


def said(path: Path) -> list[str]:
    """What stands in backticks of a page and is no command."""
    lines = (lines for language, _, lines in blocks(path.read_text(encoding="utf-8")) if language is None)
    return [code for block in lines for _, code in spans(block) if not TYPED.match(code)]


def known_options() -> set[str]:
    """Every ``--option`` that a parser or a script of ours has."""
    found = {"--tokens", "--train", "--val", "--test", "--unseen", "--repeats"}  # made in loops
    for suffix, form in ((".py", r'"(--[a-z][\w-]+)"'), (".sh", r"(?<!\w)(--[a-z][\w-]+)")):
        files = [f for f in own_files(REPOSITORY, suffix) if f.relative_to(REPOSITORY).parts[0] != "tests"]
        found |= {option for f in files for option in re.findall(form, f.read_text(encoding="utf-8"))}
    return found


def known_keys() -> set[str]:
    """Every key of a config, and the beginnings of keys."""
    keys = {key for key, _ in settings_keys(Settings, "")}
    for cls in HEAD_OPTIONS.values():
        keys |= {key for key, _ in settings_keys(cls, "model.head.")}
    keys |= {key for key, _ in settings_keys(PreferenceOptions, "")}
    keys |= {f"{key.split('.', 1)[1]}" for key in keys if key.startswith(("data.", "model."))}  # of ``infer``
    return keys | {key.rsplit(".", n)[0] for key in keys for n in range(1, key.count(".") + 1)}


@pytest.mark.parametrize("path", documents(REPOSITORY), ids=lambda path: path.stem)
def test_every_option_and_key_that_a_page_names_is_there(path):
    options, keys = known_options() | OTHERS, known_keys()
    named = {option for code in said(path) for option in re.findall(r"(?<![\w-])--[a-z][\w-]+", code)}
    assert named <= options
    sections = "model|data|train|generate|sampler|preprocess|mix|severity|own|rewrite"
    found = {key for code in said(path) for key in re.findall(rf"^(?:{sections})(?:\.[a-z_]\w*)+(?=$|[=: ])", code)}
    parts = {re.sub(r"parts\.[a-z_]+\b", "parts.PART", key) for key in found if not key.startswith(FREE)}
    files = {key for key in parts if key.endswith((".jsonl", ".py", ".sh", ".yaml", ".md", ".csv", ".safetensors"))}
    assert sorted(parts - files - keys) == []


def rows(page: str, heading: str) -> list[tuple[str, str]]:
    """(name, default) of the rows of the table below a heading whose second column says ``default``."""
    text = (REPOSITORY / "docs" / page).read_text(encoding="utf-8").partition(heading)[2]
    table = re.search(r"\n\| \w+ \| default \|.*\n\|---.*\n((?:\|.*\n)+)", text)[1]
    return [tuple(cell.strip() for cell in line.split("|")[1:3]) for line in table.splitlines()]


@pytest.mark.parametrize("page, options", [("fpo.md", FPOOptions), ("rl.md", GRPOOptions)])
def test_the_options_of_an_objective_are_listed_with_their_defaults(page, options):
    listed = {}
    for names, default in rows(page, "## Options"):
        named, values = re.findall(r"`(\w+)`", names), re.findall(r"`(.+?)`", default) or [""]
        listed |= dict(zip(named, values if len(values) > 1 else values * len(named), strict=True))
    listed.pop("name")
    defaults = {f.name: getattr(options(), f.name) for f in dataclasses.fields(options)}
    assert listed.keys() == defaults.keys()
    assert {name: parse_yaml(value) for name, value in listed.items()} == defaults


@pytest.fixture
def parser(monkeypatch):
    """The parser of a command, as it is when the command line is read."""

    class Found(Exception):
        pass

    def stop(self, *given):
        raise Found(self)

    def of(main) -> argparse.ArgumentParser:
        monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", stop)
        with pytest.raises(Found) as found:
            main([])
        return found.value.args[0]

    return of


def test_the_options_of_inference_are_listed_with_their_defaults(parser):
    actions = {name: action for action in parser(infer.main)._actions for name in action.option_strings}
    listed = {
        re.match(r"`(--[\w-]+)", name)[1]: default for name, default in rows("inference.md", "# ") if "--" in name
    }
    required = {name for name, action in actions.items() if action.required} | {"-h", "--help"}
    assert listed.keys() == actions.keys() - required
    for name, default in listed.items():
        number = re.fullmatch(r"[\d.]+|pyav", default)
        assert not number or str(actions[name].default).removesuffix(".0") == default, name
