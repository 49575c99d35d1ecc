"""One line of an answers file, and how a span is spelled in an answer's text.

``videollm.infer`` writes these lines; benchmarks, preference pairs and the quickstart read them. This is the only place
that knows their keys. Knows no file, no model and no benchmark, and needs nothing installed.
"""

import re
from dataclasses import MISSING, asdict, dataclass, field, fields

Span = list[float]  # [start, end] in seconds

_WRITTEN = re.compile(r"\[\s*(-?\d+(?:\.\d+)?)\s*s\s*-\s*(-?\d+(?:\.\d+)?)\s*s\s*\]")


@dataclass(frozen=True, kw_only=True)
class AnswerLine:
    """The answer to one question; fields in the order of the keys in the file. One with a default may be missing there.

    Attributes:
        text, raw_text: with the times written out as by ``span_text``; as the model produced it.
        spans, evidence_spans: of the answer, and of the evidence that stands before it.
        scores: in [0, 1], one a span of the answer.
        duration: of the video, in seconds.
        finish_reason: "stop", "length" (cut off) or "error".
        thinned: frames dropped to fit the context.
        error: why the question could not be asked; None for an answer.
    """

    id: str
    video: str | None = None
    question: str = ""
    text: str
    raw_text: str
    spans: list[Span]
    evidence_spans: list[Span]
    scores: list[float] = field(default_factory=list)
    duration: float | None = None
    finish_reason: str
    thinned: int = 0
    error: str | None

    @property
    def scored_spans(self) -> list[Span]:
        """The spans that are scored: the answer's, the evidence only where the answer has none."""
        return self.spans or self.evidence_spans

    def to_json(self) -> dict:
        """The line as JSON data."""
        return asdict(self)

    @classmethod
    def from_json(cls, row: object) -> "AnswerLine":
        """The line of JSON data; keys that are not its own are left out.

        Raises:
            ValueError: says which keys are missing, or what is wrong; the caller knows file and line.
        """
        if absent := cls.absent(row):
            raise ValueError(f"no {', '.join(absent)}")
        line = cls(**{one.name: row[one.name] for one in fields(cls) if one.name in row})
        if not isinstance(line.id, str) or not isinstance(line.text, str):
            raise ValueError("id or text is no text")
        if not _is_spans(line.spans) or not _is_spans(line.evidence_spans):
            raise ValueError("spans are not [[start, end], ...] in seconds")
        return line

    @classmethod
    def absent(cls, row: object) -> list[str]:
        """The keys that JSON data lacks for a line."""
        needed = [one.name for one in fields(cls) if one.default is MISSING and one.default_factory is MISSING]
        return [name for name in needed if not isinstance(row, dict) or name not in row]


def span_text(start_s: float, end_s: float) -> str:
    """The neutral spelling of a span in an answer's text: ``[12.0 s - 15.5 s]``."""
    return f"[{start_s:.1f} s - {end_s:.1f} s]"


def split_spans(text: str) -> tuple[list[str], list[Span]]:
    """(pieces, spans) of a text: the N spans spelled as by ``span_text``, and the N + 1 texts around them."""
    pieces = _WRITTEN.split(text)  # text, start, end, text, start, end, ..., text
    return pieces[::3], [[float(a), float(b)] for a, b in zip(pieces[1::3], pieces[2::3], strict=True)]


def _is_spans(spans: object) -> bool:
    """Whether JSON data is [[start, end], ...]; numbers that are not finite count as numbers."""
    return isinstance(spans, list) and all(
        isinstance(span, list) and len(span) == 2 and all(isinstance(time, int | float) for time in span)
        for span in spans
    )
