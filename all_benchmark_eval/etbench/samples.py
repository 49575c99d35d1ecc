"""E.T. Bench samples: a line of the annotations, with or without an answer, checked.

In: the annotation file, or prediction files (the same lines with the answer as ``a``). Out: ``Sample``s with an id
``task/source/idx``. What an answer means is not known here.
"""

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from all_benchmark_eval.forms import BenchmarkError, Content, need
from all_benchmark_eval.items import are_texts, as_object, duration_of, seconds

REFERRING = ("rar", "eca", "rvq")  # choose an option
MOMENT = ("tvg", "epm")  # one span
CAPTION = ("dvc", "slc")  # spans with captions
# Each task with the number that stands for it, in the order of the official table.
PRIMARY = dict.fromkeys(REFERRING, "Acc") | dict.fromkeys((*MOMENT, "tal", "evs", "vhd", *CAPTION), "F1")
PRIMARY |= dict.fromkeys(("tem", "gvq"), "mRec")
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


def read_samples(path: Path | Content, *, answers: bool) -> list[Sample]:
    """The samples of a list, of lines, or of all such files in a folder but metrics (as the scripts do).

    Raises BenchmarkError naming the sample for keys that are not there, bad values and an id that occurs twice.
    """
    content = Content.of(path)
    samples: dict[str, Sample] = {}
    rows = [] if content.object == {} else content.rows
    for where, row in rows:
        sample = _sample(row, where, answers)
        need(sample.id not in samples, f"{where}: {sample.id} stands twice; each task, source and idx may occur once")
        samples[sample.id] = sample
    need(samples, f"{content.path}: expected a list of E.T. Bench samples, found none")
    return list(samples.values())


def cut(spans: Spans, duration: float | None) -> tuple[Spans, int]:
    """Spans ordered and cut to [0, duration] (None: at 0 only), and how many of them were cut."""
    end = math.inf if duration is None else duration
    inside = [[min(max(time, 0.0), end) for time in sorted(span)] for span in spans]
    return inside, sum(sorted(span) != kept for span, kept in zip(spans, inside, strict=True))


def _sample(row: Any, where: str, answers: bool) -> Sample:
    row = as_object(row, where, ("task", "source", "idx", "video"))
    need(str(row["task"]) in PRIMARY, f"{where}: unknown task {row['task']!r:.40}; known: {', '.join(PRIMARY)}")
    need(not answers or "a" in row, f"{where}: no key 'a'; predictions carry the answer under it")
    name = f"{row['task']}/{row['source']}/{row['idx']}"
    where = f"{where}: {name}"
    answer = row.get("a")
    duration = None if row.get("duration") is None else duration_of(row, where)
    sample = Sample(name, row["task"], str(row["source"]), str(row["video"]), duration, row=row)
    sample = replace(sample, answer=answer if isinstance(answer, str) else None)
    if sample.task in (*REFERRING, "gvq"):
        sample = replace(sample, **_choice(row, where))
    if sample.task not in REFERRING:
        sample = replace(sample, spans=_spans(row, where, sample.task))
    return replace(sample, captions=_captions(row, where, sample.spans)) if sample.task in CAPTION else sample


def _choice(row: dict, where: str) -> dict:
    options, right = (as_object(row, where, ("o", "p"))[key] for key in ("o", "p"))
    enough = isinstance(options, list) and 2 <= len(options) <= len(LETTERS)
    need(enough, f"{where}: o {options!r:.60} is not a list of 2 to {len(LETTERS)} options")
    place = isinstance(right, int) and not isinstance(right, bool) and 0 <= right < len(options)
    need(place, f"{where}: p {right!r:.60} is not the place of one of the {len(options)} options")
    texts = (f"{o[0]} - {o[1]}" if isinstance(o, list) and len(o) == 2 else str(o) for o in options)
    return {"options": tuple(texts), "choice": right}


def _spans(row: dict, where: str, task: str) -> Spans:
    target = as_object(row, where, ("tgt",))["tgt"]
    problem = f"{where}: tgt {target!r:.60} is not made of [start, end] in seconds"
    try:
        if task in (*MOMENT, "gvq"):
            target = [target]
        elif task == "vhd" and isinstance(target[0][0], list):  # one list of windows an annotator
            target = [window for annotator in target for window in annotator]
        spans = [[start, end] for start, end in target]
    except (TypeError, ValueError, IndexError, KeyError):
        raise BenchmarkError(problem) from None
    need(spans and None not in map(seconds, sum(spans, [])), problem)
    return [[float(start), float(end)] for start, end in spans]


def _captions(row: dict, where: str, spans: Spans) -> tuple[str, ...]:
    captions = as_object(row, where, ("g",))["g"]
    each = are_texts(captions) and len(captions) == len(spans)
    need(each, f"{where}: g needs one caption for each of the {len(spans)} spans of tgt")
    return tuple(captions)
