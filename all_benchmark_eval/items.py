"""Items of files: what tasks read of annotations and predictions, checked, and the question lines that they write.

In: JSON data of whatever form, and the place where it stands. Out: the value that a task counts on, or a BenchmarkError
that names the place. No benchmark, protocol or metric is known here.
"""

import csv
import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from all_benchmark_eval.benchmark import BenchmarkError, need, read_json, read_lines, read_text
from videollm.common.answers import AnswerLine

Answers = Mapping[str, AnswerLine]  # by the id of the question


def as_object(value: Any, where: str, keys: Sequence[str] = ()) -> Mapping[str, Any]:
    """``value``, an object with ``keys``. Raises BenchmarkError saying what it is instead."""
    need(isinstance(value, dict), f"{where}: expected an object, got {type(value).__name__}")
    if absent := [key for key in keys if key not in value]:
        raise BenchmarkError(f"{where}: no key {', '.join(map(repr, absent))}; it has {', '.join(list(value)[:8])}")
    return value


def are_texts(value: Any) -> bool:
    """Whether ``value`` is a list of texts."""
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def seconds(value: Any) -> float | None:
    """A finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def duration_of(entry: Mapping[str, Any], where: str) -> float:
    """Seconds of ``entry["duration"]``. Raises BenchmarkError unless they are above 0."""
    length = seconds(entry["duration"])
    need(length and length > 0, f"{where}: duration {entry['duration']!r} is not a number of seconds above 0")
    return length


def first_span(value: Any) -> Any:
    """The first of a list of spans; anything else (a span, say, or an empty list) as it is."""
    return value[0] if isinstance(value, list) and value and isinstance(value[0], list) else value


def read_span(value: Any) -> tuple[float, float] | None:
    """[start, end] as it stands, reversed or not; None for anything else and for [-1, -1], which says "no time"."""
    if not isinstance(value, list | tuple) or len(value) != 2:
        return None
    start, end = seconds(value[0]), seconds(value[1])
    return None if start is None or end is None or start == end == -1 else (start, end)


def read_spans(value: Any, problem: str) -> list[tuple[float, float]]:
    """A list of at least one span. Raises BenchmarkError with ``problem``."""
    spans = [read_span(span) for span in value] if isinstance(value, list) else []
    need(spans and None not in spans, problem)
    return spans


def read_object(path: Path, keys: Sequence[str] = ()) -> Mapping[str, Any]:
    """A JSON file that holds one object with ``keys``. Raises BenchmarkError where that is not so."""
    return as_object(read_json(path), f"{path}", keys)


def read_rows(
    path: Path, keys: Sequence[str], what: str = "a list with an item for every question"
) -> list[tuple[str, dict]]:
    """(place, object) of every item of a JSON list; each has ``keys``. Raises BenchmarkError where that is not so."""
    rows = read_json(path)
    need(isinstance(rows, list) and rows, f"{path}: expected {what}, got {type(rows).__name__}")
    places = [f"{path}: item {number}" for number in range(1, len(rows) + 1)]
    return [(where, dict(as_object(row, where, keys))) for where, row in zip(places, rows, strict=True)]


def read_table(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a .csv file by column."""
    return csv.DictReader(io.StringIO(read_text(path), newline=""))


def list_or_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """(place, item) of a JSON list or of JSON lines."""
    if read_text(path).lstrip()[:1] != "[":
        yield from read_lines(path)
        return
    for place, row in enumerate(read_json(path), start=1):
        yield f"{path}: item {place}", row


def once(items: Iterable[tuple[str, Any]], path: object) -> dict[str, Any]:
    """{id: item}. Raises BenchmarkError for an id that stands twice."""
    found: dict[str, Any] = {}
    for name, item in items:
        need(name not in found, f"{path}: {name!r} stands twice")
        found[name] = item
    return found


def answered(answers: Answers, ids: Iterable[str], *columns: Iterable) -> Iterator[tuple]:
    """(answer, id, what each of ``columns`` holds of it) of every question that was answered."""
    for name, *row in zip(ids, *columns, strict=True):
        answer = answers.get(name)
        if answer is not None and not answer.error:
            yield answer, name, *row


def question_line(name: str, video: str, text: str, **more: Any) -> dict[str, Any]:
    """A line for ``videollm.infer``: the question ``text`` about a video, with ``more`` keys that are not None."""
    kept = {key: value for key, value in more.items() if value is not None}
    turns = [{"from": "human", "value": f"<video>\n{text}"}]
    return {"id": name, "video": video} | kept | {"conversations": turns}
