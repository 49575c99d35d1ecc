"""docs/d2vlm.md says what is so: every flag with its default and published value, tests that exist, measured sizes."""

import json
import re
from pathlib import Path

import pytest

from d2vlm.fpo import FPOOptions
from videollm.common.config import build
from videollm.heads import build_head
from videollm.training.assemble import read_settings

RUN = {"model": {"head": {"name": "d2vlm"}}, "data": {}}


@pytest.fixture(scope="module")
def page(repository):
    return (repository / "docs/d2vlm.md").read_text(encoding="utf-8")


def value_of(key, values):
    settings = read_settings(values)
    part, _, name = key.rpartition(".")
    objective = build(FPOOptions, {}, "train.objective")
    parts = {"model.head": build_head(dict(settings.model.head), 8).options, "data": settings.data}
    return getattr(parts.get(part, objective), name)


def test_every_flag_has_the_default_and_the_published_value_of_the_page(page):
    rows = re.findall(r"^\| \d+ \| .+ \| `([\w.]+)` \| `(.+?)` \| `(.+?)` \| `test_\w+` \|$", page, re.MULTILINE)
    assert len(rows) >= 6
    for key, default, published in rows:
        for values, told in ((RUN, default), (RUN | {"compatibility": "published"}, published)):
            assert json.dumps(value_of(key, values)).strip('"') == told, key


def test_every_surprise_has_a_row(page):
    table = page.partition("## Compatibility")[2]
    assert {int(number) for number in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)} == set(range(1, 21))


def test_every_test_that_the_page_names_is_there(page, repository):
    named = set(re.findall(r"`(test_\w+)`", page))
    code = "\n".join(path.read_text(encoding="utf-8") for path in Path(repository, "tests").rglob("test_*.py"))
    assert len(named) >= 20 and not {name for name in named if f"def {name}(" not in code}


def test_files_and_configs_of_the_pages_are_there(page, repository):
    text = page + (repository / "docs/data.md").read_text(encoding="utf-8")
    for name in set(re.findall(r"\b(?:scripts|benchmarks|videollm|d2vlm)/[\w/]+\.(?:sh|py)\b", text)):
        assert (repository / name).is_file(), name
    for name in re.findall(r"\]\(([\w.]+\.md)", text):
        assert (repository / "docs" / name).is_file(), name
