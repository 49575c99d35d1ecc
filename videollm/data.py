"""Annotation files become lists of neutral records here, or one list of everything that is wrong with them.

In: ``.json`` and ``.jsonl`` files, also ``.gz``. Out: ``Record`` (annotations.py), in the order of the files, or a
``Report`` for people: ``python -m videollm.data check``. No head, tokenizer, network or decoder is known here; a video
is at most looked for.
"""

import argparse
import gzip
import itertools
import json
import os
import random
import sys
import warnings
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from videollm.annotations import (
    SHOWN,
    AnnotationError,
    Record,
    kind_of,
    neutral_json,
    not_an_object,
    parse_record,
    plain_name,
)

__all__ = [
    "AnnotationError",
    "Record",
    "Report",
    "draw_rejected",
    "load_records",
    "neutral_json",
    "parse_record",
    "read_annotations",
    "validate",
]

LONG_FILE = 20_000  # records from which on a progress bar is worth a line of the terminal
Paths = str | os.PathLike | Sequence[str | os.PathLike]


def _read(path: str | os.PathLike) -> tuple[list[tuple[int, Any]], list[str]]:
    """-> [(line, value), ...] and the problems of the lines that are not JSON, or of the file as a whole."""
    suffix = plain_name(path).suffix
    if suffix not in (".json", ".jsonl"):
        packed = " (python -m d2vlm.preference --packed turns packed answers into it)" if suffix == ".pt" else ""
        return [], [f"{path}: not an annotation file (name) - use .json or .jsonl, optionally with .gz{packed}"]
    rows, problems = [], []
    try:
        with gzip.open(path) if str(path).endswith(".gz") else open(path, "rb") as handle:
            for line, text in enumerate(handle if suffix == ".jsonl" else [handle.read()], start=1):
                if text.strip():
                    try:
                        rows.append((line, json.loads(text)))
                    except (ValueError, RecursionError) as error:  # a ValueError too where the bytes are not UTF-8
                        problems.append(_not_json(path, line, error))
    except (OSError, EOFError, zlib.error) as error:
        return [], [f"{path}: cannot be read: {error} (file) - check the path, and that the copy is complete"]
    if suffix == ".json" and rows:
        value = rows[0][1]
        if not isinstance(value, list):
            remedy = "write a list of records, or name it .jsonl (a list of data sets is for data.train)"
            return [], [f"{path}: holds {kind_of(value)} (file) - {remedy}"]
        rows = list(enumerate(value, start=1))
    if not rows and not problems:
        problems = [f"{path}: holds no record (file) - check how it was written"]
    return rows, problems


def _not_json(path: str | os.PathLike, line: int, error: Exception) -> str:
    is_list = plain_name(path).suffix == ".json"
    what, column = str(error), ""
    if isinstance(error, json.JSONDecodeError):
        line = error.lineno if is_list else line  # within one line of a .jsonl the decoder always counts from 1
        what, column = error.msg, f", column {error.colno}"
    remedy = "one list of records, or name it .jsonl if it has one a line" if is_list else "one whole record a line"
    return f"{path}:{line}: not JSON: {what}{column} (line) - write {remedy}"


def read_annotations(path: str | os.PathLike) -> list[dict]:
    """The records of a file as they stand in it, unchecked but for being JSON objects.

    Raises:
        AnnotationError: the file cannot be read, or some of its lines are not JSON objects (all of them are named).
    """
    rows, problems = _read(path)
    problems += [not_an_object(path, line, item) for line, item in rows if not isinstance(item, dict)]
    if problems:
        raise AnnotationError(problems)
    return [item for _, item in rows]


def load_records(paths: Paths, *, raw_spans: bool = False, on_odd: str = "warn") -> list[Record]:
    """Read, check and neutralise one or several annotation files, in order.

    Args:
        raw_spans: keep spans as they are annotated, as the published systems do: neither ordered nor clipped.
        on_odd: ``warn``: one warning a file about what was mended; ``error``: what would be mended is an error.

    Raises:
        AnnotationError: with every bad line of every file; also for an id that occurs twice.
        ValueError: ``on_odd`` is neither.
    """
    if on_odd not in ("warn", "error"):
        raise ValueError(f"on_odd: {on_odd!r} is not known - use 'warn' or 'error'")
    records, problems = _load(paths, raw_spans)
    if on_odd == "error":
        problems += [f"{r.where}: {kind} (spans) - correct the line" for r in records for kind in r.odd]
    if problems:
        raise AnnotationError(problems)
    for path, of_file in itertools.groupby(records, key=lambda record: record.path):
        if odd := _odd_lines(of_file):
            warnings.warn(f"{path}: {odd}", stacklevel=2)
    return records


def draw_rejected(records: Iterable[Record], seed: int = 42) -> list[Record]:
    """Each preference record with one of its rejected answers, drawn in order as the published script does it."""
    rng = random.Random(seed)
    return [replace(r, rejected=(rng.choice(r.rejected),)) if r.rejected else r for r in records]


def _load(paths: Paths, raw_spans: bool = False) -> tuple[list[Record], list[str]]:
    """-> the good records and the problems of all files."""
    paths = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    if not paths:
        raise AnnotationError(["no annotation file was named (paths) - name at least one"])
    records, problems, first_use = [], [], {}
    for path in paths:
        rows, bad = _read(path)
        problems += bad
        for line, item in tqdm(rows, desc=f"reading {path}", disable=None if len(rows) >= LONG_FILE else True):
            try:
                record = parse_record(item, line, path, raw_spans=raw_spans)
            except AnnotationError as error:
                problems += error.problems
                continue
            first = first_use.setdefault(record.id, record)
            if first is not record:
                problems.append(f"{record.where}: has the id {record.id!r} of {first.where} (id) - give each its own")
            records.append(record)
    return records, problems


def _odd_lines(records: Iterable[Record]) -> str:
    """Each kind of oddity with its count and the first lines it is on; empty if there is none."""
    lines = defaultdict(list)
    for record in records:
        for kind in record.odd:
            lines[kind].append(record.line)
    return "; ".join(
        f"{kind}: {len(at)} (lines {', '.join(map(str, at[:SHOWN]))}{', ...' if len(at) > SHOWN else ''})"
        for kind, at in lines.items()
    )


@dataclass
class Report:
    """What ``validate`` found; as text, what the check command prints."""

    records: Counter  # (task, source) -> records
    spans: Counter  # (task, source) -> spans
    rejected: Counter  # factor -> rejected answers
    preferences: int  # records that have any
    odd: dict[str, str]  # file -> what would be mended, and where
    unused: int  # records with an answer, and with spans that no mark refers to
    missing: list[str]  # problems, one a missing video or image
    problems: list[str]  # problems of the annotations

    @property
    def ok(self) -> bool:
        return not self.problems and not self.missing

    def __str__(self) -> str:
        lines = [f"{self.records.total()} good records, {self.spans.total()} spans"]
        for (task, source), count in sorted(self.records.items()):
            name = f"task {task or '(none)'}, source {source or '(none)'}"
            lines.append(f"  {name}: {count} records, {self.spans[task, source]} spans")
        if self.preferences:
            lines.append(f"{self.preferences} preference records, {self.rejected.total()} rejected answers")
            lines += [f"  factor {factor}: {count}" for factor, count in sorted(self.rejected.items())]
        lines += [f"odd, mended when loaded: {path}: {odd}" for path, odd in self.odd.items()]
        if self.unused:
            lines.append(f"{self.unused} answered records have src or tgt without a span mark: nothing trains on them")
        lines += [f"{len(self.missing)} files are missing:", *self.missing] if self.missing else []
        lines += [f"{len(self.problems)} bad lines:", *self.problems] if self.problems else ["no bad line"]
        return "\n".join(lines)


def validate(paths: Paths, videos_root: str | os.PathLike | None = None) -> Report:
    """Check annotation files, and with ``videos_root`` that each video and image is a file below it. Never raises
    for what the files hold: it is all in the report."""
    return _report(*_load(paths), videos_root)


def _report(records: Sequence[Record], problems: Sequence[str], videos_root: str | os.PathLike | None = None) -> Report:
    counts, spans, missing, problems = Counter(), Counter(), {}, list(problems)
    if videos_root is not None and not Path(videos_root).is_dir():
        problems.append(f"{videos_root}: not a folder (videos) - give the folder that the paths are relative to")
        videos_root = None
    for record in records:
        counts[record.task, record.source] += 1
        spans[record.task, record.source] += len(record.spans_s)
        for name in record.images + (record.video,) * (record.video is not None):
            if videos_root is not None and name not in missing:
                place = Path(videos_root) / name
                there = place.is_dir() if record.asking.view.frames else place.is_file()
                missing[name] = None if there else f"{record.where}: no file {name} (video) - add it to {videos_root}"
    by_file = itertools.groupby(records, key=lambda record: record.path)
    return Report(
        records=counts,
        spans=spans,
        rejected=Counter(answer.factor for record in records for answer in record.rejected),
        preferences=sum(bool(record.rejected) for record in records),
        odd={path: odd for path, of_file in by_file if (odd := _odd_lines(of_file))},
        unused=sum(r.has_answer and bool(r.extra.keys() & {"src", "tgt"}) for r in records),
        missing=[problem for problem in missing.values() if problem],
        problems=problems,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """``python -m videollm.data check``: print a report; 1 if anything is wrong, else 0."""
    parser = argparse.ArgumentParser(prog="python -m videollm.data", description="Annotation files.")
    check = parser.add_subparsers(dest="command", required=True).add_parser("check", help="check annotation files")
    check.add_argument("--annotations", nargs="+", required=True, metavar="FILE", help=".json or .jsonl, also .gz")
    check.add_argument("--videos", metavar="FOLDER", help="folder that video paths are relative to; opens every video")
    check.add_argument("--decode", action="store_true", help="decode frames all over each video, too")
    check.add_argument("--workers", type=int, default=os.cpu_count() or 1, metavar="N", help="processes that look")
    check.add_argument("--timeout", type=float, default=300.0, metavar="S", help="seconds a video may take")
    check.add_argument("--output", type=Path, metavar="CLEAN.jsonl", help="write the records that are good")
    options = parser.parse_args(arguments)
    if options.workers < 1 or (options.output and options.output.suffix != ".jsonl"):
        check.error("--workers must be at least 1, and the name of --output end in .jsonl")
    records, problems = _load(options.annotations)
    report, visuals = _report(records, problems), None
    print(report)
    if options.videos and not Path(options.videos).is_dir():
        check.error(f"--videos: {options.videos} is not a folder; give the one that the paths are relative to")
    if options.videos:
        from videollm.video_check import check_visuals  # opens videos, which loading annotations must not need

        visuals = check_visuals(
            records, options.videos, decode=options.decode, workers=options.workers, timeout_s=options.timeout
        )
        print(visuals)
    if options.output:
        from videollm.video_check import write_clean

        try:
            kept = write_clean(options.output, records, problems, visuals)
        except OSError as error:
            check.error(f"--output: cannot write {options.output} ({error.strerror}); choose another file")
        print(f"{options.output}: {kept} of {len(records)} good lines; what is left out: {options.output}.report.json")
    return 0 if report.ok and (visuals is None or visuals.ok) else 1


if __name__ == "__main__":
    sys.exit(main())
