"""docs/d2vlm.md says what is so: every flag with its default and its published value, and every surprise."""

import json
import re

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
