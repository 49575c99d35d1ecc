"""Annotation lines of a 10 s video, and what is read of them or wrong with them, for the tests of ``videollm.data``."""

import re

import pytest

from tests.models import turns
from videollm.data import AnnotationError, Record, parse_record


def item(*values, **keys) -> dict:
    """A line whose turns alternate between the user and the assistant."""
    return {"video": "v.mp4", "duration": 10, "conversations": turns(*values)} | keys


def parse(annotation, **options) -> Record:
    return parse_record(annotation, 3, "set.jsonl", **options)


def parts(annotation, **options) -> list[tuple]:
    return [turn.parts for turn in parse(annotation, **options).turns]


def problem(annotation, **options) -> str:
    """The only one of a line that is refused."""
    with pytest.raises(AnnotationError) as caught:
        parse(annotation, **options)
    (only,) = caught.value.problems
    assert re.fullmatch(r"set\.jsonl:3: .+ \(.+\) - .+", only), only
    return only
