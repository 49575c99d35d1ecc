"""Spans that an answer tells, in seconds.

In: the text of an answer, and the video's length where percent, "the end" or "the whole video" need it. Out: spans in
the order of the text, each with start <= end. Two quantities make a span where a dash, "to", brackets or the words for
start and end join them; a pair that tells its unit outranks one that does not ("lifts 2 to 3 boxes from 12.0 to 15.0
seconds"). What is doubtful is not read: an unparsed answer is seen in the counts, a wrong span is not.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from videollm.reading.part import Reading, answer_part
from videollm.reading.quantities import Quantity, quantities
from videollm.reading.structured import structured_spans

Span = list[float]  # [start, end] in seconds
SPAN_TAGS = ("glue", "answer")  # a tag of VideoChat-R1 holds spans beside the choice in <answer>

_HEDGE = (
    r"(?:[\s*_\"'`$~]|\\text\{|\}|\{|</?[a-z_]+>|\b(?:about|around|approximately|approx\.?|roughly|nearly|almost|circa|the|at|"
    r"sec|seconds?|mark|point|timestamps?|exactly|just|onwards?|t\s?=)|-?second mark|秒|第)"
)
_HEDGES = rf"{_HEDGE}{{0,12}}"
_LINK = re.compile(
    rf"{_HEDGES}[\])]?{_HEDGES}(?:-+>?|=+>|[\u2010-\u2015\u2212]|~|\u2192|\b(?:to|until|till|til|through|thru|up\s+to|bis|a|à)\b|到|至|から|"
    rf"[,;]?\s?(?:and\s+)?(?:lasting|lasts|continuing|continues|running|going on)\s+(?:until|till|to))"
    rf"{_HEDGES}[\[(]?{_HEDGES}",
    re.IGNORECASE,
)
_AND = re.compile(rf"{_HEDGES}(?:and|&)\b{_HEDGES}", re.IGNORECASE)
_COMMA = re.compile(r"[\s*_\"'`]{0,4}[,;][\s*_\"'`]{0,4}")
_CELL = re.compile(r"[ \t*_s]{0,6}\|[ \t*_]{0,6}")
_FROM = re.compile(rf"\b(?:from|between|de|von|entre)\b{_HEDGES}$", re.IGNORECASE)
_BETWEEN = re.compile(rf"\b(?:between|entre)\b{_HEDGES}$", re.IGNORECASE)
_OPENED, _CLOSED = re.compile(r"[\[(<{][\s*_\"'`]{0,4}$"), re.compile(r"[\s*_\"'`]{0,4}(?:,\s?[01]?\.\d+\s?)?[\])>}]")
_STARTS = re.compile(
    r"\b(?:start|begin|began|onset)\w*\b[^\d.!?;]{0,30}$|\bstart(?:[_ ]?(?:time|s|sec))?\W{0,6}$|开始\D{0,8}$", re.I
)
_ENDS = re.compile(r"\b(?:end|finish|conclud|stop|complet)\w*\b[^\d.!?;]{0,30}$|结束\D{0,8}$", re.I)
_LASTS = re.compile(
    rf"\W{{0,4}}(?:and\s+)?(?:it\s+)?(?:then\s+)?(?:lasts?|lasting|goes\s+on|going\s+on|continu\w+|runs?|with\s+a\s+duration\s+of)"
    rf"\s+(?:for\s+)?{_HEDGES}",
    re.IGNORECASE,
)
_PLACE = re.compile(
    rf"(?:^|[\n:.;,(|\[]\s{{0,3}}|\b(?:in|at|during|from|and|then|second|time)\b){_HEDGES}(?:\d{{1,3}}[.)]\s)?{_HEDGES}$",
    re.I,
)
_NOUN = re.compile(
    r"\s{1,3}(?!(?:seconds?|secs?|s|of|in|into|when|where|while|as|during|and|or|but|with|the|a|an|he|she|it|they|then|is|was|mark|"
    r"which|for|on|at|to|from|by)\b)[A-Za-z]",
)
_RELATIVE = re.compile(r"\s(?:after|before|later|earlier|ago|apart)\b(?!\s(?:the\s)?(?:start|beginning|video))", re.I)
_FOR = re.compile(rf"\bfor\s{_HEDGES}$", re.IGNORECASE)  # "he waits for 5 to 10 minutes"
_JSON_KEY = re.compile(r"[\"']\s{0,3}:\s{0,3}[\[({]$")  # lists under keys are read, or not, by structured.py
_LONG = re.compile(r"\W{0,3}(?:s|seconds?)?\W{0,3}(?:long|in\s+length|in\s+total|total)\b|\s{0,3}\?", re.IGNORECASE)
_DENIED = re.compile(
    r"(?:\b(?:does|did|do|is|was|are|were|has|have|can|could|will|would)\s{0,2}(?:not|n['’]t)\b|n['’]t\b|\bcannot\b)"
    r"\W{1,3}(?:\w+\W{1,3}){0,3}?(?:happen|occur|take|taking|appear|exist|present|visible|shown|seen|see|find|found|from|between|in|at|during)\b"
    r"|\bno\s+(?:such|segment|moment|part|scene|time)\b|\b(?:never|instead\s+of|rather\s+than|except|excluding|not\s+(?:from|between|in|at|during))\b"
    r"|\bI\s+(?:\w+\s+)?(?:assumed|believed|thought|guessed|suspected)\b"  # and thinks otherwise by now
    r"|(?:\bnot|n['’]t)\s{1,3}$"  # "it is not 10 - 15 seconds"
    r"|没有|不在|并非",
    re.IGNORECASE,
)
_DENIED_BEHIND = re.compile(
    r"[^.!?;\n]{0,60}\b(?:not\s+(?:relevant|the\s+(?:answer|moment|event|query))|irrelevant|wrong|incorrect|too\s+(?:early|late))\b",
    re.IGNORECASE,
)
_SENTENCE = re.compile(r"[.!?;]\s|\n|。")
_CONCLUSION = re.compile(
    r"\b(?:therefore|thus|hence|in\s+conclusion|to\s+conclude|in\s+summary|conclusion|actually|on\s+(?:second|closer)\s+\w+)\b"
    r"|(?:^|[.!?\n])\s{0,3}(?:so|wait|no|correction)\b|因此|所以|其实|不对",
    re.I,
)
_WHOLE = re.compile(
    r"\b(?:entire|whole|full|complete)\s+(?:duration\s+of\s+the\s+)?(?:video|clip|footage|recording|duration)\b"
    r"|\b(?:throughout|all\s+through)\s+the\s+(?:video|clip)\b|整个视频|全程",
    re.IGNORECASE,
)
_AND_SO_ON = re.compile(
    r"[\s*_\"'`)\]]{0,6}(?:[,;&]|\band\b|,\s?and\b)[\s*_\"'`(\[]{0,6}(?:from\s|between\s)?\s{0,3}", re.IGNORECASE
)
_BULLET = re.compile(r"\n\s{0,9}[-*•–]\s")
_BLANKS = re.compile(r"\s+")
_FRAMES = re.compile(r"\bframes?\b|帧", re.IGNORECASE)
_SAME_S = 1.0  # "90 to 120 seconds (1:30 to 2:00)" tells one span twice


@dataclass(frozen=True)
class Told:
    """One span of a text: where it stands, what it says, and how sure that is (2: with units, 1: "from .. to", 0)."""

    start: int
    end: int
    span: Span
    sure: int
    rule: str
    unit: str = ""


def read_spans(text: str, duration_s: float | None = None) -> list[Span]:
    """Every span that ``text`` tells, [[start, end], ...] in seconds and in its order; [] where none is sure."""
    return explain_spans(text, duration_s).value


def explain_spans(text: str, duration_s: float | None = None) -> Reading[list[Span]]:
    """The spans, and by which rule they were read."""
    part, why = answer_part(text, SPAN_TAGS)
    told = kept(tell_spans(part, duration_s), part)
    keyed, plain = structured_spans(part, lambda inner: [t.span for t in kept(tell_spans(inner, duration_s), inner)])
    if keyed or (plain and not any(t.sure == 2 for t in told)):
        return Reading(keyed or plain, f"{why}; {'keys' if keyed else 'lists'} of JSON")
    if told:
        return Reading([t.span for t in told], f"{why}; {told[0].rule}")
    whole = _WHOLE.search(part)
    if whole and duration_s and not _denied(part, whole.start()):
        return Reading([[0.0, duration_s]], f"{why}; the whole video")
    return Reading([], f"{why}; no pair of times")


def read_moment(text: str, duration_s: float | None = None) -> float | None:
    """The one time that ``text`` tells: the middle of its first span, else a time with a unit, else a number."""
    spans = read_spans(text, duration_s)
    if spans:
        return sum(spans[0]) / 2
    found = [q for q in quantities(answer_part(text, SPAN_TAGS)[0]) if q.unit in ("s", "m", "h", "%", "")]
    times = [_seconds(q, duration_s) for q in sorted(found, key=lambda q: q.bare)]
    return next(filter(math.isfinite, times), None)


# ---- pairs -----------------------------------------------------------------------------------------------------------


def tell_spans(text: str, duration_s: float | None = None) -> list[Told]:
    """All pairs of ``text`` that are spans by their form, also the doubtful ones; see ``kept``."""
    found, listed = [], _without_restatements(text, list(quantities(text)))
    place = 0
    while place + 1 < len(listed):
        told = _pair(text, listed, place, duration_s)
        if told:
            found.append(told)
        place += 2 if told else 1
    return found


def kept(found: Sequence[Told], text: str) -> list[Told]:
    """The spans that count: the surest, those listed with them, no denied one, nothing where it is "3-9 or 12-15"."""
    if any(
        re.fullmatch(r"\W*(?:s|seconds?)?\W*or\W*(?:from|between)?\W*", text[a.end : b.start], re.I)
        for a, b in _neighbours(found)
    ):
        return []
    found = [t for t in found if not (t.sure < 2 and _frames(text, t)) and not _length_only(text, t)]
    found = [
        t
        for i, t in enumerate(found)
        if not _denied(text, t.start, found[i - 1].end if i else 0) and not _DENIED_BEHIND.match(text, t.end)
    ]
    best, lists = max((t.sure for t in found), default=0), _lists(found, text)
    sure = {number for number, t in zip(lists, found, strict=True) if t.sure == best}
    found = [t for number, t in zip(lists, found, strict=True) if number in sure]
    if not best:
        found = [t for t in found if _stands_alone(text, t)]
    found = _last_conclusion(found, text)
    twice = [i for i, (a, b) in enumerate(_neighbours(found), 1) if _restated(text, a, b)]
    return [_shared_unit(t, found) for i, t in enumerate(found) if i not in twice]


def _pair(text: str, listed: Sequence[Quantity], place: int, duration_s: float | None) -> Told | None:
    """The span that quantities ``place`` and ``place + 1`` tell together."""
    a, b = listed[place : place + 2]
    if "none" in (a.unit, b.unit) or "nth" in (a.unit, b.unit) and "s" not in (a.unit, b.unit) or b.start - a.end > 80:
        return None
    gap = text[a.end : b.start]
    before = text[max(listed[place - 1].end if place else 0, a.start - 60) : a.start]
    rule = _joined(text, gap, before, b.end)
    if rule is None or (a.unit == b.unit == "anchor" and a.value == b.value) or _cut_off(text, a, b):
        return None
    if rule == _BRACKETS and (_JSON_KEY.search(before) or (a.bare and a.value > b.value)):
        return None  # a size, or a place in the picture
    if rule == _CELLS and not _only_two_cells(text, listed, place):
        return None
    a, b = a.scaled(b.unit if b.unit in _SPREADS else ""), b.scaled(a.unit if a.unit in _SPREADS else "")
    if "%" in (a.unit, b.unit) and (a.unit == "%") != (b.unit == "%"):
        a, b = (Quantity(q.start, q.end, q.value, "%") if q.bare else q for q in (a, b))
    ends = [_seconds(q, duration_s) for q in (a, b)]
    if rule == "start and duration":
        ends[1] = ends[0] + ends[1]
    if not all(map(math.isfinite, ends)):
        return None
    return Told(a.start, b.end, sorted(ends), _sureness(text, a, b, before, rule), rule, b.unit or a.unit)


_BRACKETS, _CELLS = "two times in brackets", "two cells of a table"
_SPREADS = ("m", "h", "s")


def _joined(text: str, gap: str, before: str, end: int) -> str | None:
    """How two quantities are joined into a span; None where they are not."""
    bullet, gap = _BULLET.search(gap), _BLANKS.sub(" ", gap)
    if _LASTS.fullmatch(gap) and _STARTS.search(before):
        return "start and duration"
    if _LINK.fullmatch(gap) and not bullet:
        return "a pair of times"
    if _AND.fullmatch(gap) and _BETWEEN.search(before):
        return "between two times"
    if _COMMA.fullmatch(gap) and _OPENED.search(before) and _CLOSED.match(text, end):
        return _BRACKETS
    if _CELL.fullmatch(gap) and before.rstrip(" *_").endswith("|"):
        return _CELLS
    if _STARTS.search(before) and _ENDS.search(gap):
        return "start and end by name"
    return "start and end by name" if _ENDS.search(before) and _STARTS.search(gap) else None


def _cut_off(text: str, a: Quantity, b: Quantity) -> bool:
    """ "from 12.0 seconds to 1": the text breaks off within its last number."""
    return b.value < a.value and b.bare and not text[b.end :].strip() and b.end - b.start < a.end - a.start


def _only_two_cells(text: str, listed: Sequence[Quantity], place: int) -> bool:
    """Whether these two cells are alike and have no third beside them; a row number is not like its times."""
    first = max(0, place - 1)
    near = listed[first : place + 3]
    kinds = [(q.bare, q.decimal) for q in near]
    own = kinds[place - first : place - first + 2]
    beside = [
        kinds[other]
        for left, other in ((place - first - 1, place - first - 1), (place - first + 1, place - first + 2))
        if left >= 0 and other < len(near) and _CELL.fullmatch(text[near[left].end : near[left + 1].start])
    ]
    return own[0][0] == own[1][0] and not (beside and (own[0] != own[1] or own[0] in beside))


def _sureness(text: str, a: Quantity, b: Quantity, before: str, rule: str) -> int:
    """2: units, brackets or names say that these are times; 1: "from .. to .." or decimals; 0: two bare numbers."""
    if rule not in ("a pair of times", "between two times") or not (a.bare and b.bare):
        return 2
    years = _years([a.value, b.value]) and not (a.decimal or b.decimal)
    counted = not b.decimal and _NOUN.match(text, b.end)
    if years or counted:
        return 0
    return int(bool(_FROM.search(before)) or (a.decimal and b.decimal) or rule == "between two times")


def _stands_alone(text: str, told: Told) -> bool:
    """Whether a pair of bare numbers stands where an answer puts a span, with no noun behind: "3 - 4", "in 3 - 4"."""
    years = _years(told.span) and text.strip() != text[told.start : told.end]
    return (
        not years
        and bool(_PLACE.search(text[max(0, told.start - 40) : told.start]))
        and not _NOUN.match(text, told.end)
    )


def _years(numbers: Sequence[float]) -> bool:
    return all(1900 <= number <= 2100 for number in numbers)


def _seconds(q: Quantity, duration_s: float | None) -> float:
    if q.unit == "%":
        return q.value * duration_s / 100 if duration_s else math.inf
    if q.unit == "anchor" and q.value:
        return duration_s or math.inf
    return q.value


# ---- what counts -----------------------------------------------------------------------------------------------------


def _without_restatements(text: str, listed: list[Quantity]) -> list[Quantity]:
    """ "1:30 (90s) to 2:00 (120s)": what only repeats the time before it is passed over."""
    kept_ones: list[Quantity] = []
    for q in listed:
        last = kept_ones[-1] if kept_ones else None
        if last and re.fullmatch(r"\s?[(=]\s?", text[last.end : q.start]) and abs(q.value - last.value) <= _SAME_S:
            closed = re.compile(r"\s?\)").match(text, q.end)
            kept_ones[-1] = Quantity(last.start, closed.end() if closed else q.end, last.value, last.unit, last.decimal)
        else:
            kept_ones.append(q)
    return kept_ones


def _neighbours(found: Sequence[Told]) -> list[tuple[Told, Told]]:
    return list(zip(found, found[1:], strict=False))


def _lists(found: Sequence[Told], text: str) -> list[int]:
    """The number of the list that each span is in: "5 - 9, 20 - 24 and 31 - 36 seconds" is one."""
    numbers = [0] * len(found)
    for i, (a, b) in enumerate(_neighbours(found), 1):
        numbers[i] = numbers[i - 1] + (not _AND_SO_ON.fullmatch(text[a.end : b.start][:40]))
    return numbers


def _shared_unit(told: Told, found: Sequence[Told]) -> Told:
    """A bare pair in a list whose last pair is in minutes is in minutes as well."""
    unit = found[-1].unit
    if told.unit or unit not in _SPREADS:
        return told
    return Told(
        told.start, told.end, [Quantity(0, 0, t, "").scaled(unit).value for t in told.span], told.sure, told.rule
    )


def _restated(text: str, a: Told, b: Told) -> bool:
    """Whether ``b`` only says in brackets or "i.e." what ``a`` has said."""
    same = all(abs(x - y) <= _SAME_S for x, y in zip(a.span, b.span, strict=True))
    between = text[a.end : b.start][:40]
    return same and bool(
        re.fullmatch(r"\s?(?:s|sec|seconds)?\s?(?:\(|[,(]?\s?(?:i\.e\.,?|that\s+is,?|or)\s?)", between, re.I)
    )


def _sentence_start(text: str, place: int, floor: int = 0) -> int:
    first = max(floor, place - 200)
    ends = [m.end() for m in _SENTENCE.finditer(text, first, place)]
    return ends[-1] if ends else first


def _denied(text: str, place: int, floor: int = 0) -> bool:
    """Whether the sentence says before ``place`` that it does not happen there."""
    return bool(_DENIED.search(text, _sentence_start(text, place, floor), place))


def _length_only(text: str, told: Told) -> bool:
    """ "3 - 4 seconds long", "about 2 - 3 seconds after he falls": no place in the video."""
    if _LONG.match(text, told.end) or _FOR.search(text, max(0, told.start - 40), told.start):
        return True
    named = told.rule != "a pair of times" or _FROM.search(text, max(0, told.start - 60), told.start)
    return not named and bool(_RELATIVE.match(text, told.end))


def _frames(text: str, told: Told) -> bool:
    return bool(_FRAMES.search(text, _sentence_start(text, told.start), told.start))


def _last_conclusion(found: list[Told], text: str) -> list[Told]:
    """The spans behind the last "therefore" that has one behind it; all where none has."""
    last = found[-1].start if found else -1
    mark = max((m.start() for m in _CONCLUSION.finditer(text) if m.start() <= last), default=0)
    return [t for t in found if t.start >= mark]
