"""Folders that are whole or not there: written aside, listed in a manifest, put in place by one rename.

Every rank writes below ``OUTPUT/.saving/NAME``; once all are done, one of them lists the files with their sizes and
renames the folder to ``OUTPUT/NAME``. So a killed run leaves its last good checkpoint, and one that lost a file later
is seen. Also finds the newest good checkpoint, keeps the last few, and takes logs back to its step. Knows folders and
small facts about a run; no trainer, no model.
"""

import contextlib
import json
import logging
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

from videollm.common.files import json_lines, write_text

logger = logging.getLogger(__name__)

STAGING = ".saving"
MANIFEST = "manifest.json"
OLD = ".old"


class SaveError(RuntimeError):
    """A model or checkpoint could not be written; what was saved before is untouched."""


@dataclass(frozen=True)
class Facts:
    """What resuming has to find again."""

    step: int
    processes: int
    zero_stage: int | None  # None: without DeepSpeed
    items: int  # of the training data


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that has all its files."""

    folder: Path
    facts: Facts


def staged(output: Path, name: str) -> Path:
    """Where ``name`` is written before it is published."""
    return output / STAGING / name


def start(output: Path, name: str) -> None:
    """An empty folder to write ``name`` into."""
    folder = staged(output, name)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def publish(output: Path, name: str, facts: Facts | None = None) -> None:
    """Put the written folder in place, instead of one that is there; with ``facts`` as a checkpoint."""
    folder, target = staged(output, name), output / name
    if facts is not None:
        content = {**vars(facts), "files": sizes(folder)}
        (folder / MANIFEST).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    old = folder.with_name(name + OLD)
    if target.exists():
        target.rename(old)
    folder.rename(target)
    discard(old)


def discard(folder: Path) -> None:
    """Delete a folder below ``.saving``, and that one with its last."""
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):  # not empty
        folder.parent.rmdir()


def sizes(folder: Path) -> dict[str, int]:
    """{path below the folder: bytes} of all its files."""
    return {str(p.relative_to(folder)): p.stat().st_size for p in sorted(folder.rglob("*")) if p.is_file()}


def tidy(output: Path) -> None:
    """Remove what a killed run was writing, and put back what it was about to replace."""
    for old in (output / STAGING).glob(f"*{OLD}"):
        target = output / old.name.removesuffix(OLD)
        if not target.exists():
            old.rename(target)
    shutil.rmtree(output / STAGING, ignore_errors=True)


def checkpoint_folders(output: Path) -> list[tuple[int, Path]]:
    """(step, folder) of everything that is named as a checkpoint, newest first."""
    found = ((re.fullmatch(r"checkpoint-(\d+)", p.name), p) for p in output.glob("checkpoint-*") if p.is_dir())
    return sorted(((int(match[1]), p) for match, p in found if match), reverse=True)


def read_checkpoint(folder: Path) -> Checkpoint:
    """A checkpoint folder; ValueError that says what is wrong with it."""
    try:
        content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        facts, files = Facts(*(content[field.name] for field in fields(Facts))), content["files"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ValueError(f"no readable {MANIFEST}, so it was not written to the end") from None
    there = sizes(folder)
    wrong = sorted(name for name, size in files.items() if there.get(name) != size)
    if wrong:
        raise ValueError(f"{len(wrong)} files are missing or have another size, first {wrong[0]}")
    return Checkpoint(folder, facts)


def last_good(output: Path) -> Checkpoint | None:
    """The newest whole checkpoint of a run; damaged ones are named in a warning and passed over."""
    for _, folder in checkpoint_folders(output):
        try:
            return read_checkpoint(folder)
        except ValueError as error:
            logger.warning("%s: passed over, %s", folder, error)
    return None


def keep_last(output: Path, count: int, step: int) -> None:
    """Delete all but the newest ``count`` checkpoints up to ``step``; a kill in between leaves no half of one."""
    for number, folder in [f for f in checkpoint_folders(output) if f[0] <= step][count:]:
        aside = staged(output, f"deleted-{number}")
        aside.parent.mkdir(exist_ok=True)
        folder.rename(aside)
        discard(aside)


def rewind(path: Path, step: int) -> None:
    """Drop the lines of a JSON-lines log that come after ``step``, as a run left them that died behind a checkpoint."""
    if path.is_file():
        write_text(path, "".join(json.dumps(line) + "\n" for line in whole_lines(path) if line["step"] <= step))


def whole_lines(path: Path) -> Iterator[dict]:
    """The entries of a JSON-lines file without a torn last one."""
    return (line for _, line in json_lines(path, lambda *_: logger.warning("%s: dropped a torn line", path)))
