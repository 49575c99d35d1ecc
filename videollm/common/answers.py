"""One line of an answers file, and how a span is spelled in an answer's text.

``videollm.infer`` writes these lines; benchmarks, preference pairs and the quickstart read them. This is the only place
that knows their keys. Knows no file, no model and no benchmark, and needs nothing installed.
"""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields

Span = list[float]  # [start, end] in seconds
NEEDED = ("id", "text", "raw_text", "spans", "evidence_spans", "finish_reason", "error")  # every line that we write

_WRITTEN = re.compile(r"\[\s*(-?\d+(?:\.\d+)?)\s*s\s*-\s*(-?\d+(?:\.\d+)?)\s*s\s*\]")


@dataclass(frozen=True, kw_only=True)
class AnswerLine:
    """The answer to one question; fields in the order of the keys in the file. One with a default may be missing there.

    Attributes:
        text, raw_text: with the times written out as by ``span_text``; as the model produced it.
        spans, evidence_spans: of the answer, and of the evidence that stands before it.
        scores: in [0, 1], one a span of the answer.
        duration: of the video, in seconds.
        finish_reason: "stop", "length" or "time" (cut off) or "error".
        frames: looked at; for people, not written.
        thinned: frames dropped to fit the context.
        error: why the question could not be asked; None for an answer.
        extra: other keys of the line, which are kept.
    """

    id: str
    video: str | None = None
    question: str = ""
    text: str
    raw_text: str = ""
    spans: list[Span]
    evidence_spans: list[Span] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    duration: float | None = None
    finish_reason: str = ""
    frames: int = 0
    thinned: int = 0
    error: str | None = None
    extra: dict = field(default_factory=dict)

    @property
    def scored_spans(self) -> list[Span]:
        """The spans that are scored: the answer's, the evidence only where the answer has none."""
        return self.spans or self.evidence_spans

    def to_json(self) -> dict:
        """The line as JSON data."""
        own = asdict(self)
        del own["frames"]
        return own | own.pop("extra")

    @classmethod
    def from_json(cls, row: object, needed: Sequence[str] = NEEDED) -> "AnswerLine":
        """The line of JSON data that has at least the keys ``needed``.

        Raises:
            ValueError: says which keys are missing, or what is wrong; the caller knows file and line.
        """
        if absent := cls.absent(row, needed):
            raise ValueError(f"no {', '.join(absent)}")
        own = {one.name: row[one.name] for one in fields(cls) if one.name in row and one.name != "frames"}
        line = cls(**own | {"extra": {key: value for key, value in row.items() if key not in own}})
        if not isinstance(line.id, str) or not isinstance(line.text, str):
            raise ValueError("id or text is no text")
        if not _is_spans(line.spans) or not _is_spans(line.evidence_spans):
            raise ValueError("spans are not [[start, end], ...] in seconds")
        for name, (holds, what) in _FORMS.items():
            if not holds(getattr(line, name)):
                raise ValueError(f"{name} is not {what}")
        return line

    @classmethod
    def absent(cls, row: object, needed: Sequence[str] = NEEDED) -> list[str]:
        """The keys that JSON data lacks for a line."""
        return [name for name in needed if not isinstance(row, dict) or name not in row]


def span_text(start_s: float, end_s: float) -> str:
    """The neutral spelling of a span in an answer's text: ``[12.0 s - 15.5 s]``."""
    return f"[{start_s:.1f} s - {end_s:.1f} s]"


def split_spans(text: str) -> tuple[list[str], list[Span]]:
    """(pieces, spans) of a text: the N spans spelled as by ``span_text``, and the N + 1 texts around them."""
    pieces = _WRITTEN.split(text)  # text, start, end, text, start, end, ..., text
    return pieces[::3], [[float(a), float(b)] for a, b in zip(pieces[1::3], pieces[2::3], strict=True)]


def _is_number(value: object) -> bool:
    """Whether JSON data is a number that a float can hold; one that is not finite counts."""
    return isinstance(value, float) or (type(value) is int and abs(value) < 2**1000)


def _is_spans(spans: object) -> bool:
    """Whether JSON data is [[start, end], ...]; numbers that are not finite count as numbers."""
    return isinstance(spans, list) and all(
        isinstance(span, list) and len(span) == 2 and all(map(_is_number, span)) for span in spans
    )


# What the other keys of a line hold, where they are there; who reads them relies on it.
_FORMS = {
    **dict.fromkeys(
        ("video", "question", "raw_text", "finish_reason", "error"),
        (lambda value: isinstance(value, str | None), "text or null"),
    ),
    "scores": (lambda value: isinstance(value, list) and all(map(_is_number, value)), "a list of numbers"),
    "duration": (lambda value: value is None or _is_number(value), "a number of seconds or null"),
}
