"""The neutral record: one annotated conversation, its spans in seconds, and how it is written as a line of our schema.

What a line may look like, annotations.py knows; this file knows no file and no head.
"""

import itertools
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from videollm.data.conversation import SpanMark, Turn, VisualMark, span_marks
from videollm.data.letter import spelled_out
from videollm.data.options import Asking, asking_json
from videollm.data.published import SPAN_MARKS

SPEAKERS = {"system": "system", "user": "human", "assistant": "gpt"}
Span = tuple[float, float]


@dataclass(frozen=True)
class RejectedAnswer:
    """A worse last answer of a record, for preference training.

    The marks of ``turn`` go on counting from the turns before it, so that it may stand in the place of the record's
    own answer: see ``Record.answered_by``. ``text_only`` is the published ``qwen`` class.
    """

    factor: str  # what is wrong with it
    turn: Turn  # of the assistant
    spans_s: tuple[Span, ...] = ()  # of the marks of ``turn``, in order
    text_only: bool = False


@dataclass
class Record:
    """One annotated conversation in neutral form; times in seconds from the start of the video.

    ``spans_s[i]`` belongs to ``SpanMark(i)`` and they are numbered as they appear over all turns. The evidence stage
    of a published answer is not part of it. ``extra`` keeps every other key of the line.
    """

    id: str
    video: str | None  # relative to the folder of the videos
    images: tuple[str, ...]
    duration_s: float | None  # as annotated; None: known only when the video is opened
    turns: tuple[Turn, ...]
    spans_s: tuple[Span, ...]
    task: str
    source: str
    extra: dict[str, Any]
    line: int  # of a .jsonl file; the number of the item in a .json list; from 1
    path: str
    odd: tuple[str, ...] = field(default=(), compare=False)  # what was mended, or read as text
    rejected: tuple[RejectedAnswer, ...] = ()  # worse answers than the last turn; none: no preference record
    asking: Asking = field(default_factory=Asking)
    max_tiles: int | None = None  # of an image; None: as the reader has it
    moment: bool = False  # the question's times are one alone, which published training does not see
    raw: bool = False  # as annotated: spans neither ordered nor cut, published answers to the letter

    @property
    def where(self) -> str:
        """The place of the record in its file, for messages."""
        return place(self.path, self.line)

    @property
    def text_only(self) -> bool:
        """Whether it has neither a video nor an image."""
        return self.video is None and not self.images

    @property
    def has_answer(self) -> bool:
        """False for a question that is only to be answered, never trained on."""
        return self.turns[-1].role == "assistant"

    def answered_by(self, answer: RejectedAnswer) -> "Record":
        """The same conversation with ``answer`` as its last turn; it has no rejected answers itself."""
        kept = self.spans_s[: len(self.spans_s) - len(span_marks(self.turns[-1]))]
        return replace(self, turns=(*self.turns[:-1], answer.turn), spans_s=kept + answer.spans_s, rejected=())

    @property
    def question(self) -> str:
        """What a question-conditioned connector reads: the last user turn without visuals, stripped.

        Its span marks are spelled as published, which the published connector reads as plain characters.
        """
        turn = next(turn for turn in reversed(self.turns) if turn.role == "user")
        parts = turn.parts if turn.written is None else turn.written
        return spelled_out([part for part in parts if not isinstance(part, VisualMark)]).strip()


def plain_name(path: str | os.PathLike) -> Path:
    """The file's name without ``.gz``."""
    name = Path(path).name
    return Path(name[: -len(".gz")] if is_packed(path) else name)


def is_packed(path: str | os.PathLike) -> bool:
    """Whether a file is named ``.gz``."""
    return str(path).lower().endswith(".gz")


def ending(path: str | os.PathLike) -> str:
    """The ending of the name without ``.gz``, in small letters: ``.json``, ``.jsonl``."""
    return plain_name(path).suffix.lower()


def place(path: str | os.PathLike, line: int) -> str:
    """``FILE:LINE``, or ``FILE:item N`` in a .json list, where lines say nothing."""
    return f"{path}:{'item ' if ending(path) == '.json' else ''}{line}"


def neutral_json(record: Record) -> dict:
    """The record as a line of our own schema, such that parsing it gives an equal record."""
    seconds: dict[str, list[float]] = {"system": [], "user": [], "assistant": []}
    turns = []
    for turn in record.turns:
        seconds[turn.role] += [time for mark in span_marks(turn) for time in record.spans_s[mark.span]]
        text = as_annotated(turn, "<video>" if record.video else "<image>")
        turns.append({"from": SPEAKERS[turn.role], "value": text})
    src = seconds["user"]
    own = {
        "id": record.id,
        "video": record.video,
        "image": list(record.images),
        "duration": record.duration_s,
        "task": record.task,
        "source": record.source,
        "src": src[:1] if record.moment else src,
        "tgt": seconds["assistant"],
        "conversations": turns,
        "rejected": [_rejected_json(answer) for answer in record.rejected],
    }
    kept = {key: value for key, value in own.items() if value not in (None, "", [])}
    return kept | asking_json(record.asking) | record.extra


def _rejected_json(answer: RejectedAnswer) -> dict:
    times = {"tgt": list(itertools.chain(*answer.spans_s))} if answer.spans_s else {}
    marker = {"text_only": True} if answer.text_only else {}
    return {"factor": answer.factor, "value": as_annotated(answer.turn)} | times | marker


def spelled(turn: Turn, visual: str = "<video>") -> str:
    """The text of a turn with its marks spelled as in our own schema."""
    names = {SpanMark: SPAN_MARKS[0], VisualMark: f"{visual}\n"}
    return "".join(names.get(type(part), part) for part in turn.parts)


def as_annotated(turn: Turn, visual: str = "<video>") -> str:
    """The text of a turn to the letter where it is known, else in our own schema."""
    return spelled(turn, visual) if turn.written is None else spelled_out(turn.written)
