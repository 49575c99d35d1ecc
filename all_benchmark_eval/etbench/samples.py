"""E.T. Bench samples: a line of the annotations, with or without an answer, checked.

In: the annotation file, or prediction files (the same lines with the answer as ``a``). Out: ``Sample``s with an id
``task/source/idx``. What an answer means is not known here.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from all_benchmark_eval.benchmark import BenchmarkError, read_json, read_lines

REFERRING = ("rar", "eca", "rvq")  # choose an option
MOMENT = ("tvg", "epm")  # one span
CAPTION = ("dvc", "slc")  # spans with captions
# Each task with the number that stands for it, in the order of the official table.
PRIMARY = {
    "rar": "Acc",
    "eca": "Acc",
    "rvq": "Acc",
    "tvg": "F1",
    "epm": "F1",
    "tal": "F1",
    "evs": "F1",
    "vhd": "F1",
    "dvc": "F1",
    "slc": "F1",
    "tem": "mRec",
    "gvq": "mRec",
}
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

Spans = list[list[float]]


@dataclass(frozen=True)
class Sample:
    """One line. ``spans`` is the truth: one span for tvg, epm and gvq, all annotators' windows for vhd."""

    id: str
    task: str
    source: str
    video: str
    duration: float | None  # seconds
    spans: Spans = field(default_factory=list)
    options: tuple[str, ...] = ()  # as they are shown, without letter
    choice: int = -1  # the right option
    captions: tuple[str, ...] = ()  # of dvc and slc, one a span
    answer: str | None = ""  # None: something else than a text
    row: dict = field(default_factory=dict, repr=False)  # the line itself


@dataclass
class Outcome:
    """What scoring the samples of one task and source gives.

    ``numbers`` has the names of the official table. ``per_sample``: {metric: {id: value}}. ``states``: {id: "scored",
    "unparsed" or "missing"}. ``stops``: ids at which the published script would stop; they count as failed.
    """

    numbers: dict[str, float | None]
    per_sample: dict[str, dict[str, float]] = field(default_factory=dict)
    states: dict[str, str] = field(default_factory=dict)
    stops: list[str] = field(default_factory=list)
    clipped: int = 0


def read_samples(path: Path, *, answers: bool) -> list[Sample]:
    """The samples of a .json list, of .jsonl lines, or of all such files in a folder but metrics (as the scripts do).

    Raises BenchmarkError naming the sample for keys that are not there, bad values and an id that occurs twice.
    """
    path = Path(path)
    paths = [path]
    if path.is_dir():
        found = (p for kind in ("json", "jsonl", "json.gz", "jsonl.gz") for p in path.glob(f"*.{kind}"))
        paths = sorted(p for p in found if "metrics" not in p.name)
        if not paths:
            raise BenchmarkError(f"{path}: no .json or .jsonl file in this folder")
    samples: dict[str, Sample] = {}
    for where, row in (line for file in paths for line in _lines(file)):
        sample = _sample(row, where, answers)
        if sample.id in samples:
            raise BenchmarkError(f"{where}: {sample.id} stands twice; each task, source and idx may occur once")
        samples[sample.id] = sample
    if not samples:
        raise BenchmarkError(f"{path}: no sample in it")
    return list(samples.values())


def answered(sample: Sample, answer: str | None) -> Sample:
    return replace(sample, answer=answer)


def cut(spans: Spans, duration: float | None) -> tuple[Spans, int]:
    """Spans ordered and cut to [0, duration] (None: at 0 only), and how many of them were cut."""
    end = math.inf if duration is None else duration
    inside = [[min(max(time, 0.0), end) for time in sorted(span)] for span in spans]
    return inside, sum(sorted(span) != kept for span, kept in zip(spans, inside, strict=True))


def _lines(path: Path) -> Iterable[tuple[str, Any]]:
    if path.name.removesuffix(".gz").endswith(".jsonl"):
        return read_lines(path)
    rows = read_json(path)
    if not isinstance(rows, list):
        raise BenchmarkError(f"{path}: expected a list of E.T. Bench samples, got {type(rows).__name__}")
    return ((f"{path}: item {number}", row) for number, row in enumerate(rows, start=1))


def _sample(row: Any, where: str, answers: bool) -> Sample:
    if not isinstance(row, dict):
        raise BenchmarkError(f"{where}: expected an object, got {type(row).__name__}")
    _need(row, ("task", "source", "idx", "video"), where)
    if row["task"] not in PRIMARY:
        raise BenchmarkError(f"{where}: unknown task {row['task']!r}; known: {', '.join(PRIMARY)}")
    if answers:
        _need(row, ("a",), where, "; predictions carry the answer under it")
    name = f"{row['task']}/{row['source']}/{row['idx']}"
    where = f"{where}: {name}"
    answer = row.get("a")
    sample = Sample(
        id=name,
        task=row["task"],
        source=str(row["source"]),
        video=str(row["video"]),
        duration=_duration(row.get("duration"), where),
        answer=answer if isinstance(answer, str) else None,
        row=row,
    )
    if sample.task in (*REFERRING, "gvq"):
        sample = replace(sample, **_choice(row, where))
    if sample.task not in REFERRING:
        sample = replace(sample, spans=_spans(row, where, sample.task))
    return replace(sample, captions=_captions(row, where, sample.spans)) if sample.task in CAPTION else sample


def _need(row: dict, keys: Sequence[str], where: str, more: str = "") -> None:
    absent = [key for key in keys if key not in row]
    if absent:
        raise BenchmarkError(f"{where}: no key {', '.join(map(repr, absent))}{more}")


def _duration(value: Any, where: str) -> float | None:
    if value is None:
        return None
    if not _is_number(value) or value <= 0:
        raise BenchmarkError(f"{where}: duration {value!r} is not a number of seconds above 0")
    return float(value)


def _choice(row: dict, where: str) -> dict:
    _need(row, ("o", "p"), where)
    options, right = row["o"], row["p"]
    if not isinstance(options, list) or not 2 <= len(options) <= len(LETTERS):
        raise BenchmarkError(f"{where}: o {options!r:.60} is not a list of 2 to {len(LETTERS)} options")
    if isinstance(right, bool) or not isinstance(right, int) or not 0 <= right < len(options):
        raise BenchmarkError(f"{where}: p {right!r:.60} is not the place of one of the {len(options)} options")
    texts = (f"{o[0]} - {o[1]}" if isinstance(o, list) and len(o) == 2 else str(o) for o in options)
    return {"options": tuple(texts), "choice": right}


def _spans(row: dict, where: str, task: str) -> Spans:
    _need(row, ("tgt",), where)
    target = row["tgt"]
    try:
        if task in (*MOMENT, "gvq"):
            target = [target]
        elif task == "vhd" and isinstance(target[0][0], list):  # one list of windows an annotator
            target = [window for annotator in target for window in annotator]
        spans = [[start, end] for start, end in target]
    except (TypeError, ValueError, IndexError, KeyError):
        raise BenchmarkError(f"{where}: tgt {row['tgt']!r:.60} is not made of [start, end] in seconds") from None
    if not spans or not all(map(_is_number, sum(spans, []))):
        raise BenchmarkError(f"{where}: tgt {row['tgt']!r:.60} is not made of [start, end] in seconds")
    return [[float(start), float(end)] for start, end in spans]


def _captions(row: dict, where: str, spans: Spans) -> tuple[str, ...]:
    _need(row, ("g",), where)
    captions = row["g"]
    if not isinstance(captions, list) or len(captions) != len(spans) or not all(isinstance(c, str) for c in captions):
        raise BenchmarkError(f"{where}: g needs one caption for each of the {len(spans)} spans of tgt")
    return tuple(captions)


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(float(value))
    except OverflowError:
        return False
