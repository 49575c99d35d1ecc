"""Events that an answer tells: spans with a caption each, as lists, prose, tables, subtitles or JSON.

In: the text of an answer. Out: spans in seconds and as many captions. A span opens an event where a line or a sentence
begins with it (behind a list number, "Step 2:", "From"), and its caption goes up to the next one; else events are lines
that end with their span. Spans within a caption ("crack 1 to 2 eggs", "wait 5 to 10 minutes") open nothing.
"""

import re
from collections.abc import Sequence

from videollm.reading.pairs import Told, tell_spans
from videollm.reading.part import Reading, answer_part
from videollm.reading.spans import claimed_spans
from videollm.reading.structured import structured_events

Steps = tuple[list[list[float]], list[str]]  # spans in seconds and as many captions

_NAMES = r"(?:step|event|scene|segment|phase|part|action|clip|shot|chapter|moment)"
_MARK = r"(?:[-*•·▪–]\s|\d{1,3}\s?[.):]\s|\(\d{1,3}\)\s|\d{1,3}\s*\n|#{1,6}\s|\|\s*\d{1,3}\s*\|)"
_NTH = r"(?:first|second|third|fourth|fifth|sixth|next|last|final|opening|closing)"
_LABEL = r"(?:time(?:stamp)?s?\s?[:=]|start(?:ing)?(?:\s?time)?\s?[:=]?)"
_OPENS = re.compile(
    rf"(?:^|[\n.!?;。|]|(?<=,)|\"|</[a-z_]+>)[\s*_>]*(?:{_MARK})?[\s*_]*(?:{_NAMES}\s*\d*\s*[:.)–-]?|(?:in|during)\s+the\s+{_NTH}\s+{_NAMES}\s*[,:]?)?[\s*_]*"
    rf"(?:{_LABEL})?[\s*_]*(?:(?:first|then|next|finally|afterwards)[,:]?\s+)?(?:(?:from|between|at|during|in|从|在|第)\s*(?:the\s+)?(?:(?:about|around|approximately)\s+)?)?"
    r"[\s\[(<{*_~`\"']*$",
    re.IGNORECASE,
)
_AFTER_COLON = re.compile(r":\s(?:from\s|between\s)?[\s\[(*]*$", re.IGNORECASE)
_OF_VIDEO = r"(?:(?:of|into|in|within)\s+(?:the|this)\s+(?:video|clip|footage|recording)\b)?"
_SIGNS = r"[\s*_\])>}`\"'|]*"
_SECONDS = rf"{_SIGNS}(?:s|sec|secs|seconds)?(?![A-Za-z])(?:[\s-]?(?:mark|point)s?\b)?\s?{_OF_VIDEO}{_SIGNS}"
_BEHIND = re.compile(
    rf"{_SECONDS}[,:;.–—|-]*[\s*_|]*(?:(?:description|caption|event|action)\s?[:=]\s?)?", re.IGNORECASE
)
_LINE_END = re.compile(rf"{_SECONDS}(?:[.,;|]*[ \t]*(?=\n|$)|(?<=[)\]])[.,;])", re.IGNORECASE)
_BEFORE = re.compile(r"[(\[|:–—]\s*[*_]*\s*(?:from\s+|between\s+|at\s+)?$", re.IGNORECASE)
_CLAUSE_END = re.compile(rf"{_SECONDS}(?:[.;](?=\s|$)|,(?=\s(?:and|then|before|while|followed)\b))", re.IGNORECASE)
_NAMED_BEFORE = re.compile(r"[,\s]\s*(?:from|between)\s+$", re.IGNORECASE)
_BROKEN_OFF = re.compile(
    r"(?<=[.;\n])\s*(?:from\s+)?\d[\d.:]*\s*(?:s|seconds)?\s*(?:(?:-|–|to)\s*[\d.:]*)?\s*$", re.IGNORECASE
)
_PARAGRAPH = re.compile(r"(?<=\S)\s*\n\s*\n")
_LIST_MARK = re.compile(
    rf"^[\s*_]*(?:{_MARK})?[\s*_]*(?:{_NAMES}\s*\d+\s*[:.)–-]\s*)?(?:(?:description|caption)\s?[:=]\s?)?", re.IGNORECASE
)
_FRAMES = re.compile(r"\bframes?\W{0,3}$|帧", re.IGNORECASE)
_WORD = re.compile(r"\s(?!s\b|sec)[a-z]{3,}")
_LINE = 400  # characters of a caption that stands before its time
_EDGES = " \t\r\n.,:;|*_`\"'-–—·•()[]。，、"


def read_steps(text: str, duration_s: float | None = None) -> Steps:
    """Spans and captions in the order of the text; ([], []) where it tells no event."""
    return explain_steps(text, duration_s).value


def explain_steps(text: str, duration_s: float | None = None) -> Reading[Steps]:
    """The events, and by which rule they were read."""
    part, why = answer_part(text)
    events = structured_events(part, lambda inner: claimed_spans(inner, duration_s))
    if events:
        return Reading(([span for span, _ in events], [text.strip() for _, text in events]), f"{why}; keys of JSON")
    told = [t for t in tell_spans(part, duration_s) if not _FRAMES.search(part, max(0, t.start - 12), t.start)]
    heads = [found for i, t in enumerate(told) if (found := _header(part, t, i == 0))]
    tails = [found for t in told if (found := _tail(part, t))]
    if heads and not (len(tails) == len(told) and _captions_lead(part, tails)):
        return Reading(_captions_behind(part, heads), f"{why}; captions behind their times")
    if tails:
        return Reading(_captions_before(part, tails), f"{why}; captions before their times")
    return Reading(([], []), f"{why}; no event with times")


def _header(text: str, told: Told, first: bool) -> tuple[int, int, Told] | None:
    """(start, end, span) of what opens an event: list mark, "Step 2:", the span, "seconds:"."""
    floor = max(0, told.start - 60)
    opens = _OPENS.search(text, floor, told.start)
    if opens is None and first and not _LINE_END.match(text, told.end):
        opens = _AFTER_COLON.search(text, floor, told.start)
    behind = _BEHIND.match(text, told.end)  # none where a letter sticks to the time
    if opens is None or behind is None or (told.sure == 0 and _WORD.match(text, told.end)):
        return None
    start = opens.start() + (text[opens.start()] in '.!?;。|":')
    return start, behind.end(), told


def _captions_behind(text: str, heads: Sequence[tuple[int, int, Told]]) -> Steps:
    edges = [head[0] for head in heads[1:]] + [len(text)]
    captions = [text[end:edge] for (_, end, _), edge in zip(heads, edges, strict=True)]
    if len(captions) > 1:
        captions[-1] = _BROKEN_OFF.sub("", captions[-1])
        if not any(_PARAGRAPH.search(caption.strip()) for caption in captions[:-1]):  # a closing remark
            captions[-1] = _PARAGRAPH.split(captions[-1], maxsplit=1)[0]
    return _told([(told, _trimmed(caption)) for (_, _, told), caption in zip(heads, captions, strict=True)])


def _tail(text: str, told: Told) -> tuple[int, int, Told] | None:
    """(start, end, span) of a span in brackets, behind a colon or "from", that ends its line or part of it."""
    floor = max(0, told.start - 30)
    named = _NAMED_BEFORE.search(text, floor, told.start)
    before = _BEFORE.search(text, floor, told.start) or named
    ends = _LINE_END.match(text, told.end) or (_CLAUSE_END.match(text, told.end) if named else None)
    return (before.start(), ends.end(), told) if ends and before else None


def _captions_lead(text: str, tails: Sequence[tuple[int, int, Told]]) -> bool:
    """Whether captions stand before their spans: none is left for the last, or "A man enters, from .." begins."""
    first = tails[0][2]
    named = _NAMED_BEFORE.search(text, max(0, first.start - 30), first.start)
    return not text[tails[-1][1] :].strip(_EDGES) or bool(named and text[: named.start()].rstrip()[-1:].isalnum())


def _captions_before(text: str, tails: Sequence[tuple[int, int, Told]]) -> Steps:
    starts = [0] + [tail[1] for tail in tails[:-1]]
    pieces = []
    for first, (start, _, told) in zip(starts, tails, strict=True):
        first = max(first, start - _LINE)
        line = text[max(first, text.rfind("\n", first, start) + 1) : start]
        pieces.append((told, _trimmed(_LIST_MARK.sub("", line, count=1))))
    return _told(pieces)


def _told(pieces: Sequence[tuple[Told, str]]) -> Steps:
    """Without a last event that breaks off before its caption, where others have one."""
    if len(pieces) > 1 and not pieces[-1][1] and any(caption for _, caption in pieces):
        pieces = pieces[:-1]
    return [told.span for told, _ in pieces], [caption for _, caption in pieces]


def _trimmed(caption: str) -> str:
    """In one line, without signs at the edges."""
    return " ".join(caption.strip(_EDGES).split())
