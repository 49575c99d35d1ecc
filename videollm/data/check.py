"""What is wrong with annotations and their videos, for people: a report of the lines, and a look at every file.

In: annotation files and the folder of the videos. Out: ``Report`` of the lines; ``Visuals``, which says what is wrong
with which file and which records can be used; and a clean annotation file of those. Files are opened in parallel, each
in a process that can be stopped. Knows no model.
"""

import itertools
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from tqdm import tqdm

from videollm.common.config import ConfigError
from videollm.common.files import json_text, write_text
from videollm.common.isolate import isolated_map
from videollm.data.annotations import SLACK_S
from videollm.data.load import Paths, odd_lines
from videollm.data.mixture import load_to_check
from videollm.data.record import Record, neutral_json
from videollm.video.decode import VideoError, probe
from videollm.video.folder import open_folder, read_frame_folder
from videollm.video.names import nearest, unusable
from videollm.video.preprocess import Preprocess
from videollm.video.read import read_image, read_video, safe_join
from videollm.video.sampling import Sampler
from videollm.video.timeline import mend
from videollm.video.view import FrameFolder

LOOKS = 16  # frames all over a video that --decode decodes
OFF_S, OFF_SHARE = 1.0, 0.02  # an annotated duration is wrong where it differs by more than both

File = tuple[str, bool, FrameFolder | None]  # path, whether it is an image, how its frames are stored


@dataclass
class Visuals:
    """What was found. Reasons by file; lines of text, one a record, for what is wrong with a record only."""

    files: int = 0
    missing: dict[File, str] = field(default_factory=dict)
    unreadable: dict[File, str] = field(default_factory=dict)
    damaged: dict[File, str] = field(default_factory=dict)  # readable, but frames had to be replaced
    truncated: dict[File, str] = field(default_factory=dict)
    jumping: dict[File, str] = field(default_factory=dict)
    durations: dict[File, float] = field(default_factory=dict)  # seconds, of readable videos
    mismatched: dict[str, str] = field(default_factory=dict)  # id -> its annotated and its real duration
    outside: dict[str, str] = field(default_factory=dict)  # id -> a span that begins behind the real end
    cut: dict[str, str] = field(default_factory=dict)  # id -> one that ends there, where no duration is annotated
    sources: dict[str, Counter] = field(default_factory=dict)  # source -> counts of all this

    @property
    def ok(self) -> bool:
        """Whether every file is there, readable, whole, and as long as its records say."""
        return not any(getattr(self, kind) for kind in KINDS)

    def usable(self, record: Record) -> bool:
        """Whether training and inference could use the record."""
        bad = self.missing.keys() | self.unreadable.keys()
        return record.id not in self.outside and not bad & set(files_of(record))

    def __str__(self) -> str:
        lines = [f"{self.files} videos and images looked at"]
        for source, counts in sorted(self.sources.items()):
            found = ", ".join(f"{counts[name]} {name}" for name in KINDS)
            lines.append(f"  source {source or '(none)'}: {counts['files']} files, {found}")
        for name in KINDS:
            if found := getattr(self, name):
                lines += [f"{len(found)} {name} ({KINDS[name]}):", *found.values()]
        return "\n".join(lines)


KINDS = {
    "missing": "no such file",
    "unreadable": "their records are left out of training",
    "damaged": "used, with frames replaced by their neighbours",
    "truncated": "used as far as they go; fetch them again",
    "jumping": "used, but their times are wrong",
    "mismatched": "records whose duration is not the video's",
    "outside": "records with a span behind the end of the video",
    "cut": "records with a span that ends behind the end of the video; used up to there",
}
OF_RECORDS = ("mismatched", "outside", "cut")
OF_FILES = tuple(kind for kind in KINDS if kind not in OF_RECORDS)


def files_of(record: Record) -> list[File]:
    """The files that a record shows."""
    video = [] if record.video is None else [(record.video, False, record.asking.view.frames)]
    return video + [(name, True, None) for name in record.images]


def check_some(records: Sequence[Record], root: str | Path, key: str) -> None:
    """ConfigError where not one file of ``records`` lies below ``root``, the value of option ``key``."""
    names = dict.fromkeys(name for record in records for name, *_ in files_of(record))

    def there(name: str) -> bool:
        try:
            return safe_join(root, name).exists()
        except VideoError:
            return False

    if names and not any(map(there, names)):
        first = next(iter(names))
        hint = nearest(Path(root, first))
        why = f"none of the {len(names)} videos and images of the annotations is below {root}: {first} does not exist"
        raise ConfigError(f"{key}: {why}{hint and f' ({hint})'}; give the folder that their paths are below")


class Look:
    """Opens one file: -> (kind of problem or "", reason, duration in seconds, frames replaced, further problems)."""

    def __init__(self, root: str | Path, decode: bool):
        self.root, self.decode = Path(root), decode
        self.sampler = Sampler(rule="segments", num_frames=LOOKS)
        self.resize = Preprocess(kind="plain", size=64).while_decoding()

    def __call__(self, file: File) -> tuple[str, str, float, int, dict[str, str]]:
        name, is_image, frames = file
        try:
            path = safe_join(self.root, name)
            if not path.exists():
                hint = nearest(path)
                return "missing", f"no file {name} below {self.root}{hint and f' ({hint})'}", 0.0, 0, {}
            if is_image:
                read_image(path)
                return "", "", 0.0, 0, {}
            info, damaged = open_folder(path, frames)[0] if frames else probe(path), 0
            if self.decode:
                read = partial(read_frame_folder, stored=frames) if frames else read_video
                damaged = read(path, sampler=self.sampler, resize=self.resize).damaged
            return "", "", info.duration_s, damaged, info.problems
        except VideoError as error:
            return "unreadable", str(error), 0.0, 0, {}


def check_visuals(
    records: Sequence[Record], root: str | Path, *, decode: bool = False, workers: int = 1, timeout_s: float = 300.0
) -> Visuals:
    """Look at every file of the records once: its timeline, and with ``decode`` frames all over it."""
    users: dict[File, list[Record]] = {}
    for record in records:
        for file in files_of(record):
            users.setdefault(file, []).append(record)
    found = Visuals(files=len(users))
    looked = isolated_map(Look(root, decode), users, workers, timeout_s)
    for file, result in tqdm(looked, total=len(users), desc="videos", unit="file", disable=None):
        if isinstance(result, Exception):
            result = ("unreadable", f"{file[0]}: its decoder {result}; {mend(file[0])}, or leave it out", 0.0, 0, {})
        kind, reason, duration_s, damaged, problems = result
        first = users[file][0]
        if kind:
            getattr(found, kind)[file] = f"{first.where}: {reason}"
        elif not file[1]:
            found.durations[file] = duration_s
        for kind, reason in problems.items():
            getattr(found, kind)[file] = f"{first.where}: {file[0]}: {reason}"
        if damaged:
            found.damaged[file] = f"{first.where}: {file[0]}: {damaged} of {LOOKS} frames cannot be decoded"
    for record in records:
        _against_annotation(record, found)
    _count(users, records, found)
    return found


def _against_annotation(record: Record, found: Visuals) -> None:
    """Note a duration or a span that is not the video's."""
    for file in files_of(record):
        real = found.durations.get(file)
        if real is None:
            continue
        said = record.duration_s
        if said is not None and abs(said - real) > max(OFF_S, OFF_SHARE * real):
            found.mismatched[record.id] = f"{record.where}: duration is {said:g} s, {record.video} has {real:.2f} s"
        for kind, at, word in (("outside", 0, "begins"), ("cut", 1, "ends")):
            late = next((span for span in record.spans_s if span[at] > real + SLACK_S), None)
            if late is not None and (kind == "outside" or said is None):  # else it is the duration that is wrong
                end = f"{word} behind the end of {record.video}, at {real:.2f} s"
                getattr(found, kind)[record.id] = f"{record.where}: span [{late[0]:g}, {late[1]:g}] {end}"
                break


def _count(users: dict[File, list[Record]], records: Iterable[Record], found: Visuals) -> None:
    """Everything by source."""
    for file, of_file in users.items():
        for source in {record.source for record in of_file}:
            counts = found.sources.setdefault(source, Counter())
            counts["files"] += 1
            counts.update(kind for kind in OF_FILES if file in getattr(found, kind))
    for record in records:
        counts = found.sources.setdefault(record.source, Counter())
        counts.update(kind for kind in OF_RECORDS if record.id in getattr(found, kind))


def write_clean(
    output: Path,
    records: Sequence[Record],
    problems: Sequence[str],
    visuals: Visuals,
    *,
    long: Mapping[str, str],
    renamed: Sequence[str],
) -> int:
    """Write the usable records in our own schema, and beside it ``.report.json``, which names what is left out.

    ``long`` says of records by id that they are too long, ``renamed`` names those with a new id. Returns how many
    records were kept. Raises OSError.
    """
    usable = [visuals.usable(record) and record.id not in long for record in records]
    kept = list(itertools.compress(records, usable))
    report = {
        "records": len(records),
        "kept": len(kept),
        "bad_lines": list(problems),
        "left_out": [record.where for record, good in zip(records, usable, strict=True) if not good],
        "too_long": list(long.values()),
        "renamed": list(renamed),
        "sources": {name or "(none)": dict(counts) for name, counts in visuals.sources.items()},
    }
    report |= {kind: {file[0]: why for file, why in getattr(visuals, kind).items()} for kind in OF_FILES}
    report |= {kind: getattr(visuals, kind) for kind in OF_RECORDS}
    text = json.dumps(report, indent=1, ensure_ascii=False) + "\n"
    write_text(output.with_name(output.name + ".report.json"), text)
    write_text(output, json_text(map(neutral_json, kept)))
    return len(kept)


@dataclass
class Report:
    """What ``validate`` found; as text, what the check command prints."""

    records: Counter  # (task, source) -> records
    spans: Counter  # (task, source) -> spans
    rejected: Counter  # factor -> rejected answers
    preferences: int  # records that have any
    text_only: int  # records without a video or an image
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
        if self.text_only:
            lines.append(f"{self.text_only} records are text only: no video, no image")
        lines += [f"odd, mended when loaded: {path}: {odd}" for path, odd in self.odd.items()]
        if self.unused:
            lines.append(f"{self.unused} answered records have src or tgt without a span mark: nothing trains on them")
        lines += [f"{len(self.missing)} files are missing:", *self.missing] if self.missing else []
        lines += [f"{len(self.problems)} bad lines:", *self.problems] if self.problems else ["no bad line"]
        return "\n".join(lines)


def validate(paths: Paths, videos_root: str | os.PathLike | None = None) -> Report:
    """Check annotation files and lists of data sets, and with ``videos_root`` that each video and image is a file below
    it or the root of its set. Never raises for what the files hold: it is all in the report."""
    paths = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    records, problems, base = load_to_check(paths, videos_root or Path())
    return report_on(records, problems, videos_root and base)


def report_on(
    records: Sequence[Record], problems: Sequence[str], videos_root: str | os.PathLike | None = None
) -> Report:
    counts, spans, missing, problems = Counter(), Counter(), {}, list(problems)
    if videos_root is not None and not Path(videos_root).is_dir():
        problems.append(f"{videos_root}: not a folder (videos) - give the folder that the paths are relative to")
        videos_root = None
    for record in records:
        counts[record.task, record.source] += 1
        spans[record.task, record.source] += len(record.spans_s)
        for name in record.images + (record.video,) * (record.video is not None):
            if videos_root is not None and name not in missing:
                missing[name] = _absent(record, name, videos_root)
    by_file = itertools.groupby(records, key=lambda record: record.path)
    return Report(
        records=counts,
        spans=spans,
        rejected=Counter(answer.factor for record in records for answer in record.rejected),
        preferences=sum(bool(record.rejected) for record in records),
        text_only=sum(record.text_only for record in records),
        odd={path: odd for path, of_file in by_file if (odd := odd_lines(of_file))},
        unused=sum(r.has_answer and bool(r.extra.keys() & {"src", "tgt"}) for r in records),
        missing=[problem for problem in missing.values() if problem],
        problems=problems,
    )


def _absent(record: Record, name: str, root: str | os.PathLike) -> str | None:
    """What to say where a visual of the record is not below ``root``."""
    try:
        path = safe_join(root, name)
    except VideoError as error:
        return f"{record.where}: {error}"
    if unusable(path, folder=record.asking.view.frames is not None) is None:
        return None
    hint = nearest(path)
    return f"{record.where}: no file {name} (video) - add it to {root}{hint and f'; {hint}'}"
