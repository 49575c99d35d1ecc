"""Annotation files become lists of neutral records here, or one list of everything that is wrong with them.

In: ``.json`` and ``.jsonl`` files, also ``.gz``. Out: ``Record``, in the order of the files. No head, tokenizer,
network or decoder is known here; a video is a name.
"""

import gzip
import itertools
import json
import os
import random
import warnings
import zlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from tqdm import tqdm

from videollm.data.annotations import SHOWN, AnnotationError, kind_of, not_an_object, parse_record
from videollm.data.record import Record, plain_name

LONG_FILE = 20_000  # records from which on a progress bar is worth a line of the terminal
Paths = str | os.PathLike | Sequence[str | os.PathLike]


def _read(path: str | os.PathLike) -> tuple[list[tuple[int, Any]], list[str]]:
    """-> [(line, value), ...] and the problems of the lines that are not JSON, or of the file as a whole."""
    suffix = plain_name(path).suffix
    if suffix not in (".json", ".jsonl"):
        packed = " (docs/data.md tells how packed answers become one)" if suffix == ".pt" else ""
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
        raw_spans: read as published code does: spans neither ordered nor clipped, annotated evidence stages to the
            letter, and nothing refused that it computes.
        on_odd: ``warn``: one warning a file about what was mended; ``error``: what would be mended is an error.

    Raises:
        AnnotationError: with every bad line of every file; also for an id that occurs twice.
        ValueError: ``on_odd`` is neither.
    """
    if on_odd not in ("warn", "error"):
        raise ValueError(f"on_odd: {on_odd!r} is not known - use 'warn' or 'error'")
    records, problems = load_with_problems(paths, raw_spans)
    if on_odd == "error":
        problems += [f"{r.where}: {kind} (spans) - correct the line" for r in records for kind in r.odd]
    if problems:
        raise AnnotationError(problems)
    for path, of_file in itertools.groupby(records, key=lambda record: record.path):
        if odd := odd_lines(of_file):
            warnings.warn(f"{path}: {odd}", stacklevel=2)
    return records


def draw_rejected(records: Iterable[Record], seed: int = 42) -> list[Record]:
    """Each preference record with one of its rejected answers, drawn in order as the published script does it."""
    rng = random.Random(seed)
    return [replace(r, rejected=(rng.choice(r.rejected),)) if r.rejected else r for r in records]


def load_with_problems(paths: Paths, raw_spans: bool = False) -> tuple[list[Record], list[str]]:
    """-> the good records and the problems of all files."""
    paths = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    if not paths:
        raise AnnotationError(["no annotation file was named (paths) - name at least one"])
    records, problems, first_use = [], [], {}
    for path in paths:
        rows, bad = _read(path)
        problems += bad
        records += parse_rows(path, rows, first_use, problems, raw_spans)
    return records, problems


def parse_rows(
    path: str | os.PathLike,
    rows: Sequence[tuple[int, Any]],
    first_use: dict[str, Record],
    problems: list[str],
    raw_spans: bool = False,
) -> list[Record]:
    """The records of a file's (line, value) rows; what is wrong goes into ``problems``, and each id into ``first_use``,
    which has the records before it."""
    records = []
    for line, item in tqdm(rows, desc=f"reading {path}", disable=None if len(rows) >= LONG_FILE else True):
        try:
            record = parse_record(item, line, path, raw_spans=raw_spans)
        except AnnotationError as error:
            problems += error.problems
            continue
        if raw_spans and record.id in first_use:
            record = replace(record, id=f"{record.id}:{line}")  # published code looks at no id
        first = first_use.setdefault(record.id, record)
        if first is not record:
            problems.append(f"{record.where}: has the id {record.id!r} of {first.where} (id) - give each its own")
        records.append(record)
    return records


def odd_lines(records: Iterable[Record]) -> str:
    """Each kind of oddity with its count and the first lines it is on; empty if there is none."""
    lines = defaultdict(list)
    for record in records:
        for kind in record.odd:
            lines[kind].append(record.line)
    return "; ".join(
        f"{kind}: {len(at)} (lines {', '.join(map(str, at[:SHOWN]))}{', ...' if len(at) > SHOWN else ''})"
        for kind, at in lines.items()
    )
