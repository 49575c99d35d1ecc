"""The reader against phrasings of answers that were written without it (tests/data/README.md)."""

import json
from pathlib import Path

import pytest

from videollm.reading import read_choice, read_spans, read_steps

CORPUS = Path(__file__).parents[2] / "data" / "answers_corpus.jsonl"
LINES = [json.loads(line) for line in CORPUS.read_text(encoding="utf-8").splitlines()]
EDGES = " \t\r\n.,:;|-–—。，*_"
LABELS = {"choice": "letter", "grounded_choice": "digit"}
ENOUGH = 0.98


def read(line: dict) -> object:
    """What the reader makes of a line, in the corpus' form."""
    text, length = line["text"], line["duration_s"]
    if line["task"] in LABELS:
        return read_choice(text, len(line["options"]), line["options"], LABELS[line["task"]])
    if line["task"] == "caption":
        events = zip(*read_steps(text, length), strict=True)
        return [{"span": span, "caption": caption.strip(EDGES)} for span, caption in events] or None
    spans = read_spans(text, length)
    return spans[: 1 if line["task"] == "span" else None] or None


def expected(line: dict) -> object:
    if line["task"] == "caption" and line["reading"]:
        return [event | {"caption": event["caption"].strip(EDGES)} for event in line["reading"]]
    return line["reading"] if line["reading"] != [] else None


def rounded(reading: object) -> object:
    """To a millionth of a second, to compare."""
    if isinstance(reading, float):
        return round(reading, 6)
    if isinstance(reading, list):
        return [rounded(item) for item in reading]
    return {key: rounded(value) for key, value in reading.items()} if isinstance(reading, dict) else reading


@pytest.mark.parametrize("task", sorted({line["task"] for line in LINES}))
def test_no_phrasing_is_read_wrongly_and_nearly_all_are_read(task):
    lines = [line for line in LINES if line["task"] == task]
    assert lines
    readings = [(line, rounded(read(line))) for line in lines]
    other = [(line, found) for line, found in readings if found != rounded(expected(line))]
    wrong = [(line["text"], line["reading"], found) for line, found in other if found is not None]
    unread = [line["text"] for line, found in other if found is None and not line["may_be_null"]]
    assert not wrong
    assert len(unread) <= (1 - ENOUGH) * len(lines), unread
