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

from videollm.common.files import Bad, check_json, parse_json, read_json
from videollm.data.annotations import SHOWN, AnnotationError, kind_of, not_an_object, parse_record
from videollm.data.record import Record, ending, is_packed, place

LONG_FILE = 20_000  # records from which on a progress bar is worth a line of the terminal
Paths = str | os.PathLike | Sequence[str | os.PathLike]


Rows = list[tuple[int, Any]]  # (line or number of the item, value)


def read_rows(path: str | os.PathLike) -> tuple[Rows, list[str]]:
    """The rows of a file, and the problems of those that are no JSON data, or of the file as a whole."""
    kind = ending(path)
    if kind not in (".json", ".jsonl"):
        packed = " (docs/data.md tells how packed answers become one)" if kind == ".pt" else ""
        return [], [f"{path}: not an annotation file (name) - use .json or .jsonl, optionally with .gz{packed}"]
    try:
        with gzip.open(path) if is_packed(path) else open(path, "rb") as handle:
            lines = list(handle)
    except (OSError, EOFError, zlib.error) as error:
        return [], [f"{path}: cannot be read: {error} (file) - check the path, and that the copy is complete"]
    rows, problems = (_items if kind == ".json" else _lines)(path, lines)
    if not rows and not problems:
        problems = [f"{path}: holds no record (file) - check how it was written"]
    return rows, problems


def _lines(path: str | os.PathLike, lines: Sequence[bytes]) -> tuple[Rows, list[str]]:
    """Of a .jsonl file."""
    rows, problems = [], []
    for line, text in enumerate(lines, start=1):
        if text.strip():
            try:
                rows.append((line, read_json(text)))
            except ValueError as error:
                problems.append(_not_json(path, line, error))
    first = next((text.strip() for text in lines if text.strip()), b"")
    one = len(rows) == 1 and not problems and isinstance(rows[0][1], list)
    if one or (problems and first.startswith(b"[") and _is_list(b"".join(lines))):
        return [], [f"{path}: holds one list (file) - name it .json, or write one record a line"]
    return rows, problems


def _is_list(text: bytes) -> bool:
    """Whether the whole is a list; where it is cut or damaged, whether it begins as one over several lines."""
    try:
        return isinstance(parse_json(text), list)
    except ValueError:
        return text.split(b"\n", 1)[0].strip() == b"["


def _items(path: str | os.PathLike, lines: Sequence[bytes]) -> tuple[Rows, list[str]]:
    """Of a .json file."""
    text, rows, problems = b"".join(lines), [], []
    if not text.strip():
        return [], []
    try:
        value = parse_json(text)
    except ValueError as error:
        one_a_line = getattr(error, "msg", "") == "Extra data"
        return [], [_one_a_line(path) if one_a_line else _not_json(path, 1, error)]
    if not isinstance(value, list):
        try:
            check_json(value)
        except Bad as bad:
            return [], [_not_json(path, 1, bad)]
        remedy = "write a list of records, or name it .jsonl (a list of data sets is for data.train)"
        return [], [f"{path}: holds {kind_of(value)} (file) - {remedy}"]
    for number, item in enumerate(value, start=1):
        try:
            check_json(item)
            rows.append((number, item))
        except Bad as bad:
            problems.append(f"{place(path, number)}: {bad}")
    return rows, problems


def _one_a_line(path: str | os.PathLike) -> str:
    return f"{path}: holds several values, as JSON lines do (file) - name it .jsonl, or write one list of records"


def _not_json(path: str | os.PathLike, line: int, error: ValueError) -> str:
    if isinstance(error, Bad):
        return f"{path}:{line}: {error}"
    is_list = ending(path) == ".json"
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
    rows, problems = read_rows(path)
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
        rows, bad = read_rows(path)
        problems += bad
        records += parse_rows(path, rows, first_use, problems, raw_spans)
    return own_ids(records)[0] if raw_spans else records, problems


def parse_rows(
    path: str | os.PathLike,
    rows: Sequence[tuple[int, Any]],
    first_use: dict[str, Record],
    problems: list[str],
    raw_spans: bool = False,
) -> list[Record]:
    """The records of a file's (line, value) rows; what is wrong goes into ``problems``, and each id into ``first_use``,
    which has the records before it. With ``raw_spans`` ids may occur twice: see ``own_ids``."""
    records = []
    for line, item in tqdm(rows, desc=f"reading {path}", disable=None if len(rows) >= LONG_FILE else True):
        try:
            record = parse_record(item, line, path, raw_spans=raw_spans)
        except AnnotationError as error:
            problems += error.problems
            continue
        first = first_use.setdefault(record.id, record)
        if first is not record and not raw_spans:  # published code looks at no id
            problems.append(f"{record.where}: has the id {record.id!r} of {first.where} (id) - give each its own")
        records.append(record)
    return records


def own_ids(records: Sequence[Record]) -> tuple[list[Record], list[str]]:
    """The records, each with an id of its own, and ``FILE:LINE: new id`` of those whose id an earlier one has."""
    every, given, found, renamed = {record.id for record in records}, set(), [], []
    for record in records:
        name = record.id
        while name in given or (name != record.id and name in every):
            name += f":{record.line}"
        if name != record.id:
            renamed.append(f"{record.where}: {name}")
            record = replace(record, id=name)
        given.add(name)
        found.append(record)
    return found, renamed


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
