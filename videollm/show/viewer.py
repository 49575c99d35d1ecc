"""A static page of answers: list, filters, player, timeline. It needs no server and no network.

In: one or two files of answers, the folder of the videos, annotations where the truth is known. Out: a folder with
``index.html``, ``answers.js`` (all data, read once) and the assets. Videos are linked, never copied. Knows no model.
"""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from videollm.common.answers import AnswerLine, Span
from videollm.common.config import ConfigError, need
from videollm.common.files import json_lines, write_text
from videollm.data import Record
from videollm.data.conversation import span_marks
from videollm.data.record import as_annotated
from videollm.show.answers import answer_json, judge

ASSETS = Path(__file__).parent / "assets"
PAGE = ("index.html", "show.css", "viewer.css", "show.js", "viewer.js")
NEEDED = ("id", "text", "spans")  # keys of a line that can be shown


@dataclass(frozen=True)
class Asked:
    """What is known of a question beside its answers; times in seconds."""

    video: str | None = None
    question: str = ""
    prompt: str = ""  # the conversation before the answer, and what the answer should be
    task: str = ""
    truth: Sequence[Span] = ()
    duration: float | None = None


def read_answers(path: Path) -> dict[str, AnswerLine]:
    """The lines of an answers file by id. Raises ConfigError with FILE:LINE for one that is none, or stands twice."""
    found: dict[str, AnswerLine] = {}
    for number, line in json_lines(path, parse=lambda row: AnswerLine.from_json(row, NEEDED)):
        need(line.id not in found, f"{path}:{number}: the id {line.id!r} stands twice; give each answer its own")
        found[line.id] = line
    need(found, f"{path}: holds no answer; give a file that videollm.infer wrote")
    return found


def check_page(folder: Path) -> None:
    """ConfigError where ``folder`` holds a page that is not one of answers, and would be lost."""
    other = (folder / "index.html").exists() and not (folder / "answers.js").is_file()
    need(not other, f"--output: {folder} holds another page, index.html; give a folder of its own")


def of_record(record: Record) -> Asked:
    """What an annotation says of a question; its last turn of the assistant, if it has one, is the truth."""
    marks = span_marks(record.turns[-1]) if record.has_answer else []
    told = [f"{turn.role}: {as_annotated(turn, '<video>').strip()}" for turn in record.turns]
    if record.has_answer:
        told[-1] = f"true answer: {told[-1].partition(': ')[2]}"
    truth = [[float(time) for time in record.spans_s[mark.span]] for mark in marks]
    return Asked(record.video, record.question, "\n\n".join(told), record.task, truth, record.duration_s)


def names_of(files: Sequence[Path]) -> list[str]:
    """What files are called: by their names, with as many folders before them as it takes to tell them apart."""
    for depth in range(1, max(len(file.resolve().parts) for file in files)):
        names = ["/".join(file.resolve().parts[-depth:]).removesuffix(".jsonl") for file in files]
        if len(set(names)) == len(names):
            return names
    raise ConfigError(f"{files[0]}: is given twice; compare it with another file")


def write_page(
    folder: Path, runs: Mapping[str, Mapping[str, AnswerLine]], videos: Path, asked: Mapping[str, Asked]
) -> list[str]:
    """Write the page of ``runs``, {name: answers by id}; returns what a reader of it should know beforehand.

    ``asked`` may lack questions, or be empty; those without an answer are shown as missing. Raises OSError.
    """
    ids = list(dict.fromkeys([*asked, *(name for answers in runs.values() for name in answers)]))
    links = Links(videos, folder)
    columns = [[answers.get(name) for name in ids] for answers in runs.values()]
    rows = [row_of(name, asked.get(name), [c[k] for c in columns], links) for k, name in enumerate(ids)]
    for place, column in enumerate(columns):
        for row, scores in zip(rows, judge(column, [row["truth"] for row in rows]), strict=True):
            if row["answers"][place] is not None:
                row["answers"][place] |= scores
    folder.mkdir(parents=True, exist_ok=True)
    for name in PAGE:
        shutil.copyfile(ASSETS / name, folder / name)
    data = {"names": list(runs), "videos": links.known, "rows": rows}
    # A script, not JSON: a page that is opened as a file may load no other form. Plain ASCII, and nothing that could
    # end a script, whatever is in an answer.
    text = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    write_text(folder / "answers.js", f'"use strict";\nconst VIEW = {text};\n')
    return [*told_of(runs, asked), *links.told()]


def row_of(name: str, asked: Asked | None, lines: Sequence[AnswerLine | None], links: "Links") -> dict:
    """One question with its answers."""
    line = next((line for line in lines if line is not None), None)
    own, spoken = asked or Asked(), line or AnswerLine(id=name, text="", spans=[])
    return {
        "id": name, "question": spoken.question or own.question, "prompt": own.prompt or spoken.question,
        "task": own.task, "video": links.place(own.video or spoken.video), "truth": own.truth,
        "duration": spoken.duration or own.duration, "answers": [line and answer_json(line) for line in lines],
    }  # fmt: skip


class Links:
    """Addresses of videos for a page in ``folder``: relative to it where ``videos`` is relative, else absolute."""

    def __init__(self, videos: Path, folder: Path):
        self.videos, self.folder = videos, folder
        self.known: list[dict] = []
        self.places: dict[str, int] = {}

    def place(self, video: str | None) -> int | None:
        """The number of a video in ``known``."""
        if video is None:
            return None
        if video not in self.places:
            self.places[video] = len(self.known)
            self.known.append({"name": video, "url": self.address(self.videos / video)})
        return self.places[video]

    def address(self, path: Path) -> str:
        """Percent-encoded byte by byte, so that blanks, ``#``, ``%`` and names in any encoding work."""
        if self.videos.is_absolute():
            return path.as_uri()
        return quote(os.fsencode(os.path.relpath(path, self.folder)))

    def told(self) -> list[str]:
        """What is not there."""
        lost = [one["name"] for one in self.known if not os.path.isfile(self.videos / one["name"])]
        told = (
            f"{len(lost)} of {len(self.known)} videos are no files in {self.videos} (such as {min(lost, default='')})"
        )
        return [told] if lost else []


def told_of(runs: Mapping[str, Mapping[str, AnswerLine]], asked: Mapping[str, Asked]) -> list[str]:
    """How far the answers and the annotations are about the same questions."""
    known = asked or {name: None for answers in runs.values() for name in answers}
    said = []
    for run, answers in runs.items():
        counts = (
            ("answers have no annotation", answers.keys() - known),
            ("questions have no answer", known.keys() - answers),
        )
        said += [f"{run}: {len(ids)} {what} (such as {min(ids)})" for what, ids in counts if ids]
    return said
