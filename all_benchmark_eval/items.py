"""Items of files: what tasks read of annotations and predictions, checked, and the question lines that they write.

In: JSON data of whatever form, and the place where it stands. Out: the value that a task counts on, or a BenchmarkError
that names the place. No benchmark, protocol or metric is known here.
"""

import csv
import io
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from os.path import commonprefix
from pathlib import Path
from typing import Any, NamedTuple

from all_benchmark_eval.forms import BenchmarkError, Content, Rows, need, read_json, read_text
from videollm.common.answers import AnswerLine

Answers = Mapping[str, AnswerLine]  # by the id of the question
CONTAINERS = ("mp4", "mkv", "webm", "avi", "mov", "m4v", "flv", "wmv", "mpg", "mpeg", "ts", "3gp", "ogv")
_CONTAINER = re.compile(rf"\.(?:{'|'.join(CONTAINERS)})$", re.IGNORECASE)


def as_object(value: Any, where: str, keys: Sequence[str] = ()) -> Mapping[str, Any]:
    """``value``, an object with ``keys``. Raises BenchmarkError saying what it is instead."""
    need(isinstance(value, dict), f"{where}: expected an object, got {type(value).__name__}")
    if absent := [key for key in keys if key not in value]:
        raise BenchmarkError(f"{where}: no key {', '.join(map(repr, absent))}; it has {quoted(list(value)[:8])}")
    return value


def quoted(keys: Iterable[str]) -> str:
    """Keys of a file for a message, on one line."""
    return ", ".join(f"{key!r:.40}" for key in keys)


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


def known_length(value: Any) -> float | None:
    """Seconds of a video, above 0; None where they are not known, of which arrays have NaN."""
    length = seconds(value)
    return length if length and length > 0 else None


def duration_of(entry: Mapping[str, Any], where: str) -> float:
    """Seconds of ``entry["duration"]``. Raises BenchmarkError unless they are above 0."""
    length = known_length(entry["duration"])
    need(length, f"{where}: duration {entry['duration']!r} is not a number of seconds above 0")
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


def read_object(path: Path) -> Mapping[str, Any]:
    """A JSON file that holds one object. Raises BenchmarkError where that is not so."""
    return as_object(read_json(path), f"{path}")


def read_rows(
    source: Path | Content, keys: Sequence[str], what: str = "a list with an item for every question"
) -> Rows:
    """(place, object) of every item of a JSON list or of JSON lines; each has ``keys``.

    Raises BenchmarkError where that is not so.
    """
    content = Content.of(source)
    listed = content.rows and (content.object is None or content.object.keys() & {*keys})
    need(listed, f"{content.path}: expected {what}, got {'one object' if content.object is not None else 'none'}")
    return [(where, dict(as_object(row, where, keys))) for where, row in content.rows]


def read_table(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a .csv file by column."""
    return csv.DictReader(io.StringIO(read_text(path), newline=""))


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


def stem(video: Any) -> str:
    """A video's name without folders and container: "x/a.b.MP4" and "a.b.mkv" are "a.b"."""
    return _CONTAINER.sub("", re.split(r"[/\\\\]", str(video))[-1])


def video_file(video: str) -> str:
    """The file of a video: ``.mp4``, unless it has a container's name already."""
    return video if _CONTAINER.search(video) else f"{video}.mp4"


class Videos:
    """Finds the videos of a ground truth by whatever name a file has for them: with folders, another container or
    none, ActivityNet's ``v_`` or not, TACoS' camera or not. A name that says exactly what the truth says always comes
    first."""

    def __init__(self, names: Iterable[str]):
        self._exact = {name: row for row, name in enumerate(names)}
        self._loose = [defaultdict(list), defaultdict(list)]
        for name, row in self._exact.items():
            for found, key in zip(self._loose, _loosely(name), strict=True):
                found[key].append(row)

    def find(self, name: Any, where: str) -> int:
        """The place of a video. Raises BenchmarkError where none has the name, or several have it."""
        name = str(name)
        if name in self._exact:
            return self._exact[name]
        rows = next(filter(None, (found.get(key) for found, key in zip(self._loose, _loosely(name), strict=True))), [])
        need(rows, f"{where}: no video of the annotations has the name {name!r:.200}; are they of another split?")
        names = list(self._exact)
        need(len(rows) < 2, f"{where}: {name!r:.200} may be {' or '.join(repr(names[row]) for row in rows[:2])}")
        return rows[0]


def _loosely(name: str) -> tuple[str, str]:
    return stem(name), stem(name).removeprefix("v_").removesuffix("-cam-002")


class Asked(NamedTuple):
    """A question of a ground truth. The reader of an answer needs the length of its video (None: not known)."""

    id: str
    video: str
    text: str
    duration_s: float | None


class Questions:
    """Finds the questions of a ground truth by video and text: case, blanks and final signs do not count unless they
    tell two questions apart. The same text may be asked of a video more than once."""

    def __init__(self, asked: Iterable[Asked]):
        asked = list(asked)
        self.ids = [question.id for question in asked]
        self.durations = [question.duration_s for question in asked]
        self._texts = [question.text.strip() for question in asked]
        start = commonprefix(self.ids).rpartition("_")  # ids that all begin alike are known without that as well
        self._places = {name.removeprefix("".join(start[:2])): row for row, name in enumerate(self.ids)}
        self._places |= {name: row for row, name in enumerate(self.ids)}
        number = {video: k for k, video in enumerate(dict.fromkeys(question.video for question in asked))}
        self._videos = Videos(number)
        self._rows: dict[tuple[int, str], list[int]] = defaultdict(list)
        for row, question in enumerate(asked):
            self._rows[number[question.video], _plain(question.text)].append(row)

    def by_id(self, name: Any) -> list[int]:
        """The place of an id, in a list; empty for an unknown one."""
        row = self._places.get(str(name))
        return [] if row is None else [row]

    def find(self, video: Any, text: Any, where: str) -> list[int]:
        """The places of a question. Raises BenchmarkError where the video is unknown, or not asked this."""
        rows = self._rows.get((self._videos.find(video, where), _plain(str(text))))
        known = f"the annotations do not ask this of {str(video)[:80]!r}: {str(text)[:120]!r}"
        need(rows, f"{where}: {known}; are they of another split?")
        return [row for row in rows if self._texts[row] == str(text).strip()] or rows

    def spread(self, found: Iterable[tuple[str, list[int], Any]]) -> Iterator[tuple[int, Any]]:
        """(place, value) of every question from (place in the file, places of the question, value).

        One value goes to every place; as many values as places go to them in order. Raises BenchmarkError otherwise.
        """
        values: dict[tuple[int, ...], list[tuple[str, Any]]] = defaultdict(list)
        for where, rows, value in found:
            values[tuple(rows)].append((where, value))
        for rows, given in values.items():
            each = len(given) in (1, len(rows))
            need(each, f"{given[-1][0]}: {self.ids[rows[0]]!r:.200} stands twice: which of the answers counts?")
            yield from zip(rows, (value for _, value in given * (1 if len(given) > 1 else len(rows))), strict=True)


def asked_questions(truth: Mapping[str, Any]) -> Iterator[Asked]:
    """The questions of multiple choice, without their options."""
    return (Asked(q.id, q.video, q.text, known_length(q.record.get("duration"))) for q in truth.values())


def _plain(text: str) -> str:
    return " ".join(text.split()).strip(".? ").casefold()


def question_line(name: str, video: str, text: str, **more: Any) -> dict[str, Any]:
    """A line for ``videollm.infer``: the question ``text`` about a video, with ``more`` keys that are not None."""
    kept = {key: value for key, value in more.items() if value is not None}
    turns = [{"from": "human", "value": f"<video>\n{text}"}]
    return {"id": name, "video": video} | kept | {"conversations": turns}
