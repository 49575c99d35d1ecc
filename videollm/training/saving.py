"""Folders that count only if they are whole: a checkpoint has its manifest, a model comes by one rename.

All ranks write a checkpoint in its place, marked as unfinished; once all are done, one of them lists the files with
their sizes in its manifest. A model is written below ``OUTPUT/.saving/NAME`` and renamed to ``OUTPUT/NAME``. So a
killed run leaves its last good checkpoint and model, and a checkpoint that lost a file later is seen. Also finds the
newest good checkpoint, keeps the last few, and takes logs back to its step. Knows folders and small facts about a
run; no trainer, no model.
"""

import contextlib
import json
import logging
import re
import shutil
from dataclasses import dataclass, fields
from pathlib import Path

from videollm.common.config import UserError
from videollm.common.files import json_lines, write_text

logger = logging.getLogger(__name__)

STAGING = ".saving"
MANIFEST = "manifest.json"
UNFINISHED = "unfinished"  # a file in a folder that is being written; of a checkpoint it becomes the manifest
OLD, GONE = ".old", ".gone"  # ends of names below ``.saving``: about to be replaced, about to be deleted


class SaveError(UserError, RuntimeError):
    """A model or checkpoint could not be written; what was saved before is untouched."""


@dataclass(frozen=True)
class Facts:
    """What resuming has to find again."""

    step: int
    processes: int
    zero_stage: int | None  # None: without DeepSpeed
    items: int  # of the training data
    questions: str | None = None  # a digest of the validation's; None without one, and in older checkpoints


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that has all its files."""

    folder: Path
    facts: Facts


def begin(folder: Path) -> None:
    """An empty folder to write into, instead of one that is there."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / UNFINISHED).touch()


def finish(folder: Path, facts: Facts, keep: int) -> None:
    """All files of a checkpoint are written: its manifest makes it count. The newest ``keep`` up to it stay."""
    files, mark = sizes(folder), folder / UNFINISHED
    del files[UNFINISHED]
    mark.write_text(json.dumps({**vars(facts), "files": files}, indent=1) + "\n", encoding="utf-8")
    mark.rename(folder / MANIFEST)
    for _, old in [f for f in checkpoint_folders(folder.parent) if f[0] <= facts.step][keep:]:
        discard(old)


def staged(target: Path) -> Path:
    """Where the model that is to be in the folder ``target`` is written."""
    return target.parent / STAGING / target.name


def publish(target: Path) -> None:
    """Put the written model in place; one that is there goes only then."""
    new = staged(target)
    (new / UNFINISHED).unlink()
    if target.exists():
        target.rename(new.with_suffix(OLD))
    new.rename(target)
    remove(new.with_suffix(OLD))


def discard(folder: Path) -> None:
    """Delete a folder of the output; a kill in between leaves no half of it in its place."""
    aside = staged(folder).with_suffix(GONE)
    aside.parent.mkdir(exist_ok=True)
    remove(folder.rename(aside))


def remove(folder: Path) -> None:
    """Delete a folder below ``.saving``, and that one with its last."""
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):  # not empty
        folder.parent.rmdir()


def tidy(output: Path) -> None:
    """Remove what a killed run was writing, and put back what it was about to replace."""
    for old in (output / STAGING).glob(f"*{OLD}"):
        if not (output / old.stem).exists():
            old.rename(output / old.stem)
    for mark in output.glob(f"checkpoint-*/{UNFINISHED}"):
        discard(mark.parent)
    shutil.rmtree(output / STAGING, ignore_errors=True)


def sizes(folder: Path) -> dict[str, int]:
    """{path below the folder: bytes} of all its files."""
    return {str(p.relative_to(folder)): p.stat().st_size for p in sorted(folder.rglob("*")) if p.is_file()}


def checkpoint_folders(output: Path) -> list[tuple[int, Path]]:
    """(step, folder) of everything that is named as a checkpoint, newest first."""
    found = ((re.fullmatch(r"checkpoint-(\d+)", p.name), p) for p in output.glob("checkpoint-*") if p.is_dir())
    return sorted(((int(match[1]), p) for match, p in found if match), reverse=True)


def read_checkpoint(folder: Path) -> Checkpoint:
    """A checkpoint folder; ValueError that says what is wrong with it."""
    try:
        content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files = content.pop("files")
        facts = Facts(**{field.name: content[field.name] for field in fields(Facts) if field.name in content})
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


def rewind(path: Path, step: int) -> None:
    """Drop the lines of a JSON-lines log that come after ``step``, as a run left them that died behind a checkpoint."""
    if path.is_file():
        whole = json_lines(path, lambda *_: logger.warning("%s: dropped a torn line", path))
        write_text(path, "".join(json.dumps(line) + "\n" for _, line in whole if line["step"] <= step))
