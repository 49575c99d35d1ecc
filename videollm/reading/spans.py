"""Spans that an answer tells, in seconds.

In: the text of an answer, and the video's length where percent, "the end" or "the whole video" need it. Out: spans in
the order of the text, each with start <= end. Two quantities make a span where a dash, "to", brackets or the words for
start and end join them (pairs.py); a pair that tells its unit outranks one that does not, and what an answer denies or
takes back does not count (claims.py). What is doubtful is not read: an unparsed answer is seen in the counts, a wrong
span is not.
"""

import math
import re

from videollm.reading.claims import denied, kept
from videollm.reading.pairs import Span, seconds, tell_spans
from videollm.reading.part import ANSWER_TAGS, Reading, answer_part, beside_answer
from videollm.reading.quantities import quantities
from videollm.reading.structured import structured_spans

SPAN_TAGS = ("glue", *ANSWER_TAGS)  # a tag of VideoChat-R1 holds spans beside the choice in <answer>
_WHOLE = re.compile(
    r"\b(?:entire|whole|full|complete)\s+(?:duration\s+of\s+the\s+)?(?:video|clip|footage|recording|duration)\b"
    r"|\b(?:throughout|all\s+through)\s+the\s+(?:video|clip)\b|整个视频|全程",
    re.IGNORECASE,
)


def claimed_spans(text: str, duration_s: float | None) -> list[Span]:
    """The spans that a text without tags, marks of the answer and JSON claims."""
    return [told.span for told in kept(tell_spans(text, duration_s), text)]


def measured_spans(text: str, duration_s: float | None) -> list[Span]:
    """The spans in ``text`` that tell their own units (seconds, minutes, shares of the video); no bare numbers."""
    return [told.span for told in tell_spans(answer_part(text, SPAN_TAGS)[0], duration_s) if told.unit]


def span_beside(text: str, duration_s: float | None) -> Span | None:
    """The one span told beside an answer that has none: of a text with a moment and a choice, "5 - 10 s. Answer: C"."""
    spans = claimed_spans(beside_answer(text), duration_s)
    return spans[0] if len(spans) == 1 else None


def read_spans(text: str, duration_s: float | None = None) -> list[Span]:
    """Every span that ``text`` tells, [[start, end], ...] in seconds and in its order; [] where none is sure."""
    return explain_spans(text, duration_s).value


def explain_spans(text: str, duration_s: float | None = None) -> Reading[list[Span]]:
    """The spans, and by which rule they were read."""
    part, why = answer_part(text, SPAN_TAGS)
    told = kept(tell_spans(part, duration_s), part)
    keyed, plain = structured_spans(part, lambda inner: claimed_spans(inner, duration_s))
    if keyed or (plain and not any(t.sure == 2 for t in told)):
        return Reading(keyed or plain, f"{why}; {'keys' if keyed else 'lists'} of JSON")
    if told:
        return Reading([t.span for t in told], f"{why}; {told[0].rule}")
    whole = _WHOLE.search(part)
    if whole and duration_s and not denied(part, whole.start()):
        return Reading([[0.0, duration_s]], f"{why}; the whole video")
    return Reading([], f"{why}; no pair of times")


def read_moment(text: str, duration_s: float | None = None) -> float | None:
    """The one time that ``text`` tells: the middle of its first span, else a time with a unit, else a number."""
    spans = read_spans(text, duration_s)
    if spans:
        return sum(spans[0]) / 2
    found = [q for q in quantities(answer_part(text, SPAN_TAGS)[0]) if q.unit in ("s", "m", "h", "%", "")]
    times = [seconds(q, duration_s) for q in sorted(found, key=lambda q: q.bare)]
    return next(filter(math.isfinite, times), None)
