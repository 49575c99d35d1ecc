"""Damaged annotation lines, a small share of what benchmarks/fuzz_annotations.py tries; and that it sees faults."""

import pytest

from benchmarks import fuzz_annotations as fuzz
from videollm.data import load


def test_a_damaged_line_is_good_and_can_be_written_or_is_refused_with_its_number():
    good, fields = fuzz.run(2000, seed=1)
    assert good > 150 and fields["line"] > 200 and fields["tgt"] > 20  # damage of every degree


def test_every_form_is_good_before_it_is_damaged():
    assert [problem for line in fuzz.forms() for problem in _problems(line)] == []


def _problems(line):
    try:
        fuzz.content(load.parse_record(line, 1, "a.jsonl"))
    except load.AnnotationError as error:
        return error.problems
    return []


@pytest.mark.parametrize("said", ["a.jsonl:1: wrong", "{path}: wrong (line) - mend"])
def test_a_complaint_of_another_form_is_seen(tmp_path, monkeypatch, said):
    path = tmp_path / "lines.jsonl"
    monkeypatch.setattr(fuzz, "load_with_problems", lambda _: ([], [said.format(path=path)]))
    with pytest.raises(fuzz.Broken, match="not as documented"):
        fuzz.run_file([b"{"], tmp_path)


def test_a_line_that_is_lost_or_changed_is_seen(tmp_path, monkeypatch):
    line = b'{"id": "x", "conversations": [{"from": "human", "value": "q"}]}'
    monkeypatch.setattr(fuzz, "content", lambda record: record.path)
    with pytest.raises(fuzz.Broken, match="read otherwise"):
        fuzz.run_file([line], tmp_path)
    monkeypatch.setattr(fuzz, "load_with_problems", lambda _: ([], []))
    with pytest.raises(fuzz.Broken, match="neither read nor refused"):
        fuzz.run_file([line], tmp_path)
