"""The file of answers: one JSON line a question, written so that no kill at any moment loses or doubles an answer.

Every rank appends to a part of its own, line by line, unbuffered. ``gather`` repairs a torn last line and merges the
parts; ``prove`` reads the result back. Beside ``OUTPUT.jsonl`` lie ``.meta.json`` (what made it) and, while a command
runs, ``.lock`` and ``.part*``. Knows records by id, video and question; no model and no video.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from io import FileIO
from pathlib import Path
from typing import Any

from videollm.common.answers import AnswerLine
from videollm.common.config import ConfigError
from videollm.common.files import an_object, json_lines, json_text, write_text
from videollm.data import Record

logger = logging.getLogger(__name__)
FIXED = ("content", "sampler", "preprocess", "decoding")  # of the meta file: what may not change while an output grows
READ_BY_LOAD = ("*.json", "*.safetensors", "question_tokenizer/*.json")
NOT_READ = ("trainer_state.json",)


def beside(output: Path, suffix: str) -> Path:
    """The file ``OUTPUT.jsonl<suffix>``."""
    return output.with_name(output.name + suffix)


def model_content(folder: str | Path) -> str:
    """A digest of everything that loading a checkpoint folder reads: config, tokenizers, every byte of the weights.

    Where the folder holds adapters only, of the checkpoint they belong to, too.
    """
    from videollm.checkpoint import local  # loads torch; what reads the lines does without

    digest, folder = hashlib.sha256(), local(folder)
    base = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("base")
    for root in (folder, local(base)) if base else (folder,):
        found = {path for pattern in READ_BY_LOAD for path in root.glob(pattern)}
        for path in sorted(path for path in found if path.name not in NOT_READ):
            with open(path, "rb") as stream:
                digest.update(path.name.encode() + hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


# ---- the meta file -----------------------------------------------------------------------------------------------


def write_meta(output: Path, meta: dict) -> None:
    """Write the settings and counts beside the output."""
    write_text(beside(output, ".meta.json"), json.dumps(meta, indent=1) + "\n")


def begin_meta(output: Path, meta: dict, absent: dict[str, dict]) -> dict:
    """``meta`` for a new output; for one that is gone on with what is known of it, brought up to date.

    How it is made stays as it was begun. ``absent`` says what an option means that the file does not name, since it
    was begun before there was such an option; one that there is no more is passed over.

    One without any answer is begun anew, whatever made it: there is nothing to lose.

    Raises:
        ConfigError: it was made with other settings, or by something else.
    """
    path = beside(output, ".meta.json")
    if path.is_file() and not any(not line.error for file in files_of(output) for line in read_lines(file)):
        for file in (*files_of(output), path):
            file.unlink(missing_ok=True)
    if not path.is_file():
        if output.is_file() and output.stat().st_size:
            raise ConfigError(
                f"--output: {output} is there and not from this command; choose another file or delete it"
            )
        return meta
    try:
        old = an_object(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise ConfigError(f"{path}: not JSON ({error}); delete it with the output it belongs to") from None
    models = f"{old.get('model')}, now {meta['model']}"
    if old.get("model") == meta["model"]:
        models = f"{meta['model']}, whose config, tokenizer or weights have changed"
    told = [difference(key, old.get(key, {}), meta[key], absent.get(key), models) for key in FIXED]
    if differ := list(filter(None, told)):
        raise ConfigError(
            f"{path}: the output was made with another {', another '.join(differ)}; give what it was made with, choose "
            "another --output or delete it"
        )
    begun = {key: old[key] for key in (*FIXED, "sources") if key in old}
    return old | {key: value for key, value in meta.items() if key != "sources"} | begun


def difference(key: str, old: Any, new: Any, absent: dict | None, models: str) -> str:
    """What of the meta file's ``key`` is not as it was; empty where all is. ``models``: of what model, and of which."""
    if absent is None or not isinstance(old, dict):
        return "" if old == new else f"model ({models})"
    before = absent | old
    told = [f"{name}: {before[name]}, now {value}" for name, value in new.items() if before[name] != value]
    return f"{key} ({', '.join(told)})" if told else ""


@contextlib.contextmanager
def locked(output: Path) -> Iterator[None]:
    """Hold the output against a second command; ConfigError if one writes it. A killed process holds nothing.

    A lock of the process (not of the open file), so that workers it has forked do not keep it.
    """
    path = beside(output, ".lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as lock:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise ConfigError(f"--output: another command still writes {output}; wait for it or end it") from None
            logger.warning("%s: this file system has no locks (%s); start one command at a time", path, error)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def files_of(output: Path) -> list[Path]:
    """The output, and what ranks have left beside it."""
    return [output, *sorted(output.parent.glob(f"{output.name}.part*"))]


# ---- the lines ---------------------------------------------------------------------------------------------------


def read_lines(path: Path) -> list[AnswerLine]:
    """The complete lines of an output file; a torn last line is left out. ConfigError names a damaged one."""

    def damaged(number: int, why: str) -> None:
        raise ConfigError(f"{path}:{number}: damaged ({why}); delete the line, it is then asked again")

    found = json_lines(path, damaged, parse=AnswerLine.from_json, torn=True) if path.is_file() else ()
    return [line for _, line in found]


def gather(output: Path, records: Sequence[Record]) -> dict[str, AnswerLine]:
    """Merge the output and what ranks have left beside it into the output, one line an id; returns {id: line}.

    Lines come in the order of the records, an answer before an error of the same id.

    Raises:
        ConfigError: a damaged line, or one that answers another question than the record of its id asks.
    """
    _, *parts = files_of(output)
    asked = {record.id: record for record in records}
    lines: dict[str, AnswerLine] = {}
    for path in (output, *parts):
        for line in read_lines(path):
            record = asked.get(line.id)
            if record is None or (record.video, record.question) != (line.video, line.question):
                problem = "is not in the annotations" if record is None else "asks something else in the annotations"
                raise ConfigError(f"{path}: the question {line.id!r} {problem}; choose another --output or delete it")
            if line.id not in lines or not line.error:
                lines[line.id] = line
    lines = {i: lines[i] for i in asked if i in lines}
    if lines or output.is_file():
        write_text(output, json_text(line.to_json() for line in lines.values()))
    for path in parts:
        path.unlink()
    return lines


def prove(output: Path, records: Sequence[Record]) -> list[AnswerLine]:
    """The lines of a finished output as they stand in the file; ConfigError unless every id is there exactly once."""
    lines = read_lines(output)
    times = Counter(line.id for line in lines)
    missing = [record.id for record in records if not times[record.id]]
    twice = [i for i, count in times.items() if count > 1]
    if missing or twice or len(times) != len(records):
        few = ", ".join((missing + twice)[:5])
        raise ConfigError(
            f"{output}: {len(missing)} of {len(records)} questions have no line, {len(twice)} more than one ({few}); "
            "run the same command again"
        )
    return lines


def add_line(out: FileIO, line: AnswerLine) -> None:
    """Append to an unbuffered file; ConfigError where the disk is full or gone. What was written before is kept."""
    data = memoryview(json_text([line.to_json()]).encode())
    try:
        while data:
            data = data[out.write(data) :]
    except OSError as error:
        raise ConfigError(
            f"--output: cannot write {out.name} ({error.strerror}); what is there is kept: make room and run the "
            "same command again"
        ) from None
