"""A conversation as parts: text, marks of spans and visuals, and the slots that a head puts in their place.

A turn is *neutral* when its parts are text, ``SpanMark`` and ``VisualMark``; a head's ``compose`` and ``layout``
replace the marks by slots, and only then is it tokenised. Knows no files, no seconds and no tokenizer.
"""

import enum
from dataclasses import dataclass


class Role(enum.IntEnum):
    """Why a span stands where it stands: asked about, grounded before answering, answered, or a frame's own time."""

    QUESTION = 0
    EVIDENCE = 1
    ANSWER = 2
    FRAME = 3


@dataclass(frozen=True)
class SpanMark:
    """Neutral place of a span; ``span`` indexes the record's list of spans."""

    span: int


@dataclass(frozen=True)
class VisualMark:
    """Neutral place of a video or an image; ``visual`` indexes the record's visuals (0 for a video)."""

    visual: int = 0
    after: str | None = None  # text behind it; None: as the model's layout has it


@dataclass(frozen=True)
class Token:
    """One special token of the tokenizer, by name. Literal text can never produce it."""

    text: str


@dataclass(frozen=True)
class SpanSlot:
    """A span token that stands for ``spans[span]``; EVIDENCE and ANSWER slots of one event share it."""

    token: str
    role: Role
    span: int


@dataclass(frozen=True)
class FrameSlot:
    """The visual tokens of one frame (or image tile); ``timed`` if the head wants to add the frame's time to them."""

    frame: int
    timed: bool = False


@dataclass(frozen=True)
class FrameTimeSlot:
    """A token whose embedding the head replaces by the time of frame ``frame``."""

    token: str
    frame: int


Part = str | SpanMark | VisualMark | Token | SpanSlot | FrameSlot | FrameTimeSlot


@dataclass(frozen=True)
class Turn:
    """One turn of a conversation; ``role`` is ``system``, ``user`` or ``assistant``.

    ``written`` is the same turn to the letter where a published file has it in its head's own tokens, evidence stage
    and all (published.py); of an event that is marked twice the first mark grounds it. Only that head looks at it.
    """

    role: str
    parts: tuple[Part, ...]
    written: tuple[Part, ...] | None = None


def span_marks(turn: Turn) -> list[SpanMark]:
    """The marks of a turn, in order."""
    return [part for part in turn.parts if isinstance(part, SpanMark)]
