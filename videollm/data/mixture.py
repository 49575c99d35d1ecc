"""Which data sets a run trains on, and how often: annotation files, and InternVL's list of data sets ("meta json").

In: the paths of ``data.train``. Out: one list of ``Record``, and the folder below which all their videos and images
are. A list of data sets is an object ``{name: {root, annotation, data_augment, repeat_time, length,
max_dynamic_patch}}``. It opens no video and knows no model.
"""

import difflib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from videollm.common.files import Bad, read_json
from videollm.data.annotations import AnnotationError, kind_of
from videollm.data.load import load_records, load_with_problems
from videollm.data.record import Record, ending, is_packed

KEYS = ("root", "annotation", "data_augment", "repeat_time", "length", "max_dynamic_patch")


@dataclass(frozen=True)
class DataSet:
    """One entry of a list of data sets."""

    name: str
    where: str  # FILE: data set NAME, for messages
    root: Path  # of its videos and images, absolute
    annotation: Path
    jpeg: bool  # frames and tiles go through JPEG of random quality (``data_augment``)
    repeat: int | float  # how often; below 1 the first share of the records
    max_tiles: int | None  # of an image; None: as the run has it

    def of(self, records: list[Record], base: Path) -> list[Record]:
        """``records`` of the annotation file as this set's, their visuals named relative to ``base``.

        Raises:
            AnnotationError: ``repeat_time`` keeps no record at all.
        """
        if self.repeat < 1:
            kept = records[: int(len(records) * self.repeat)]
            if not kept:
                what = f"{self.repeat:g} keeps none of {len(records)} records (repeat_time)"
                raise AnnotationError([f"{self.where}: {what} - raise it, or leave the data set out"])
            records = kept
        return self.once(records, base) * max(1, int(self.repeat))

    def once(self, records: Sequence[Record], base: Path) -> list[Record]:
        """All ``records`` as ``of`` gives them, each once."""
        named = []
        for r in below(records, self.root, base):
            asking = replace(r.asking, view=replace(r.asking.view, jpeg=True)) if self.jpeg else r.asking
            named.append(replace(r, id=f"{self.name}/{r.id}", asking=asking, max_tiles=self.max_tiles))
        return named


def load_training(paths: Sequence[str], videos: str | Path, *, raw_spans: bool = False) -> tuple[list[Record], Path]:
    """The records of annotation files and of lists of data sets, in order, and the folder their visuals are below.

    That folder is ``videos``, or what it and the roots of all data sets have in common. Paths of annotations and roots
    are relative to the working folder, or to the list if nothing is there; ids get the data set's name in front.

    Raises:
        AnnotationError: everything that is wrong with any of the files.
    """
    plain, sets, problems = read_lists(paths, Path(videos))
    base, records = common_folder(Path(videos), [s.root for s in sets]), []
    for paths_of, own in [(plain, None)] * bool(plain) + [([s.annotation], s) for s in sets]:
        try:
            found = load_records(paths_of, raw_spans=raw_spans)
            records += below(found, Path(videos), base) if own is None else own.of(found, base)
        except AnnotationError as error:
            problems += error.problems
    if problems:
        raise AnnotationError(problems)
    return records, base


def load_to_check(
    paths: Sequence[str], videos: str | Path, raw_spans: bool = False
) -> tuple[list[Record], list[str], Path]:
    """As ``load_training``, but every record of a data set once, and the problems beside the good records."""
    plain, sets, problems = read_lists(paths, Path(videos))
    base, records = common_folder(Path(videos), [s.root for s in sets]), []
    for paths_of, own in [(plain, None)] * bool(plain) + [([s.annotation], s) for s in sets]:
        found, bad = load_with_problems(paths_of, raw_spans)
        records += below(found, Path(videos), base) if own is None else own.once(found, base)
        problems += bad
    return records, problems, base


def read_lists(paths: Sequence[str], videos: Path) -> tuple[list[str], list[DataSet], list[str]]:
    """-> the annotation files among ``paths``, the data sets of the others, and what is wrong with those."""
    plain, sets, problems = [], [], []
    for path in paths:
        if (entries := read_list(path)) is None:
            plain.append(path)
            continue
        for name, entry in entries.items():
            try:
                sets.append(data_set(name, entry, path, videos))
            except Bad as bad:
                problems.append(f"{path}: data set {name!r}: {bad}")
    return plain, sets, problems


def read_list(path: str | Path) -> dict | None:
    """The object in ``path`` if it is a list of data sets; None for an annotation file, readable or not."""
    if ending(path) != ".json" or is_packed(path):
        return None
    try:
        value = read_json(Path(path).read_bytes())
    except (OSError, ValueError):
        return None  # reading it as an annotation file says what is wrong
    return value if isinstance(value, dict) and value and "conversations" not in value else None


def data_set(name: str, entry: Any, path: str | Path, videos: Path) -> DataSet:
    """One checked entry of the list in ``path``.

    Raises:
        Bad: a key that is missing, unknown or of the wrong kind, or a path with nothing behind it.
    """
    if not isinstance(entry, dict):
        raise Bad(f"is {kind_of(entry)}", "entry", 'write {"root": ..., "annotation": ...}, or name a list .jsonl')
    for key in entry:
        if key not in KEYS:
            near = difflib.get_close_matches(key, KEYS, n=1)
            raise Bad("unknown key", key, f"did you mean {near[0]}?" if near else f"known keys: {', '.join(KEYS)}")
    for key in ("root", "annotation"):
        if not isinstance(entry.get(key), str) or not entry[key]:
            raise Bad("missing" if key not in entry else "no path", key, "write a path")
    root = found_at(entry["root"], videos, Path(), Path(path).parent)
    if not root.is_dir():
        raise Bad(f"no folder {entry['root']!r}", "root", "name the folder of its videos and images")
    annotation = found_at(entry["annotation"], Path(), Path(path).parent)
    if not annotation.is_file():
        raise Bad(f"no file {entry['annotation']!r}", "annotation", "correct the path, or leave the data set out")
    jpeg, repeat, tiles = entry.get("data_augment", False), entry.get("repeat_time", 1), entry.get("max_dynamic_patch")
    if not isinstance(jpeg, bool):
        raise Bad(f"{kind_of(jpeg)} instead of true or false", "data_augment", "write one of them")
    number = isinstance(repeat, int | float) and not isinstance(repeat, bool)
    if not number or not 0 < repeat < float("inf") or (repeat > 1 and repeat != int(repeat)):
        remedy = "write a whole number of passes, or a share between 0 and 1"
        raise Bad(f"{repeat!r} is neither", "repeat_time", remedy)
    if tiles is not None and (not isinstance(tiles, int) or isinstance(tiles, bool) or tiles < 1):
        raise Bad(f"{tiles!r} is no number of tiles", "max_dynamic_patch", "write a whole number from 1")
    return DataSet(name, f"{path}: data set {name!r}", root.resolve(), annotation, jpeg, repeat, tiles)


def found_at(name: str, *folders: Path) -> Path:
    """``name`` below the first of ``folders`` that has it, else below the first; an absolute path as it is."""
    places = [folder / name for folder in folders]
    return next((place for place in places if place.exists()), places[0])


def common_folder(videos: Path, roots: Sequence[Path]) -> Path:
    """``videos``, or the nearest folder above it and all ``roots``."""
    common = Path(os.path.commonpath([videos.resolve(), *roots]))
    return videos if common == videos.resolve() else common


def below(records: Sequence[Record], root: Path, base: Path) -> list[Record]:
    """``records`` whose visuals are relative to ``root``, with names relative to ``base``, which is above it."""
    front = root.resolve().relative_to(base.resolve()).as_posix()
    if front == ".":
        return list(records)
    return [
        replace(r, video=r.video and f"{front}/{r.video}", images=tuple(f"{front}/{name}" for name in r.images))
        for r in records
    ]
