"""Two times of a text that are told together: what joins them, and how sure it is that they are a span.

In: an answer part. Out: ``Told`` objects in the order of the text, also the doubtful ones. Which of them count,
claims.py says. Patterns look at the few characters around a number, so that time grows linearly with the text.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from videollm.reading.quantities import Quantity, quantities

Span = list[float]  # [start, end] in seconds

# What may stand beside a time and says nothing: signs of markdown, LaTeX and tags, hedges, words for units and places.
_SIGNS = r"[\s*_\"'`$~{}]|\\text\{|</?[a-z_]+>"
_WORDS = (
    "about|around|approximately|approx\\.?|roughly|nearly|almost|circa|exactly|just|the|at|sec|seconds?|mark|point|"
    "timestamps?|onwards?|t\\s?=|minute"
)
HEDGES = rf"(?:{_SIGNS}|\b(?:{_WORDS})|-?second mark|秒|第){{0,12}}"

_DASHES = r"-+>?|=+>|[\u2010-\u2015\u2212]|~|\u2192"
_TO = r"\b(?:to|until|till|til|through|thru|up\s+to|bis|a|à)\b|到|至|から"
_GOES_ON_TO = r"[,;]?\s?(?:and\s+)?(?:lasting|lasts|continuing|continues|running|going on)\s+(?:until|till|to)"
_LINK = re.compile(rf"{HEDGES}[\])]?{HEDGES}(?:{_DASHES}|{_TO}|{_GOES_ON_TO}){HEDGES}[\[(]?{HEDGES}", re.IGNORECASE)
_AND = re.compile(rf"{HEDGES}(?:and|&)\b{HEDGES}", re.IGNORECASE)
_COMMA = re.compile(r"[\s*_\"'`]{0,4}[,;][\s*_\"'`]{0,4}")
_CELL = re.compile(r"[ \t*_s]{0,6}\|[ \t*_]{0,6}")
FROM = re.compile(rf"\b(?:from|between|de|von|entre)\b{HEDGES}$", re.IGNORECASE)
_BETWEEN = re.compile(rf"\b(?:between|entre)\b{HEDGES}$", re.IGNORECASE)
_OPENED = re.compile(r"[\[(<{][\s*_\"'`]{0,4}$")
_CLOSED = re.compile(r"[\s*_\"'`]{0,4}(?:,\s?[01]?\.\d+\s?)?[\])>}]")  # behind a score, if there is one
_STARTS = re.compile(
    r"\b(?:start|begin|began|onset)\w*\b[^\d.!?;]{0,30}$|\bstart(?:[_ ]?(?:time|s|sec))?\W{0,6}$|开始\D{0,8}$", re.I
)
_ENDS = re.compile(r"\b(?:end|finish|conclud|stop|complet|wrap|ceas)\w*\b[^\d.!?;]{0,30}$|结束\D{0,8}$", re.IGNORECASE)
_LASTS = re.compile(
    r"\W{0,4}(?:and\s+)?(?:it\s+|(?:the|this)\s+(?:action|event|scene|segment|moment)\s+)?(?:then\s+)?"
    rf"(?:lasts?|lasting|goes\s+on|going\s+on|continu\w+|runs?|with\s+a\s+duration\s+of)\s+(?:for\s+)?{HEDGES}",
    re.IGNORECASE,
)
_AFTER = re.compile(rf"\bafter\b{HEDGES}$", re.IGNORECASE)
_LATER = re.compile(r"\s(?:later|after(?:wards|\s+(?:that|this))?)\b", re.IGNORECASE)
_NO_NOUN = (
    "seconds?|secs?|s|of|in|into|when|where|while|as|during|and|or|but|with|the|a|an|he|she|it|they|then|is|was|mark|which|"
    "for|on|at|to|from|by"
)
NOUN = re.compile(rf"\s{{1,3}}(?!(?:{_NO_NOUN})\b)[A-Za-z]")  # "2 to 3 boxes" counts boxes
_JSON_KEY = re.compile(r"[\"']\s{0,3}:\s{0,3}[\[({]$")  # lists under keys are read, or not, by structured.py
_BULLET = re.compile(r"\n\s{0,9}[-*•–]\s")
_BLANKS = re.compile(r"\s+")
_BRACKETS, _CELLS, _LENGTH = "two times in brackets", "two cells of a table", "start and duration"
PAIR, _NAMES = "a pair of times", "start and end by name"
SPREADS = ("m", "h", "s")  # units that a bare number takes from its partner
SAME_S = 1.0  # "90 to 120 seconds (1:30 to 2:00)" tells one span twice


@dataclass(frozen=True)
class Told:
    """One span of a text: where it stands, what it says, and how sure that is (2: with units, 1: "from .. to", 0)."""

    start: int
    end: int
    span: Span
    sure: int
    rule: str
    unit: str = ""


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
    if rule == _CELLS and _is_linked(text, listed[place + 1 : place + 3]):
        return None  # the number of a row, before its times
    if rule == _NAMES and a.value > b.value and _AFTER.search(gap):
        return None  # "ends after 5 s": a time, or how long it lasts?
    if rule == _CELLS and not _only_two_cells(text, listed, place):
        return None
    a, b = a.scaled(b.unit if b.unit in SPREADS else ""), b.scaled(a.unit if a.unit in SPREADS else "")
    if "%" in (a.unit, b.unit) and (a.unit == "%") != (b.unit == "%"):
        a, b = (Quantity(q.start, q.end, q.value, "%") if q.bare else q for q in (a, b))
    ends = [seconds(q, duration_s) for q in (a, b)]
    if rule == _LENGTH:
        ends[1] = ends[0] + ends[1]
    if not all(map(math.isfinite, ends)):
        return None
    return Told(a.start, b.end, sorted(ends), _sureness(text, a, b, before, rule), rule, b.unit or a.unit)


def _joined(text: str, gap: str, before: str, end: int) -> str | None:
    """How two quantities are joined into a span; None where they are not."""
    bullet, gap = _BULLET.search(gap), _BLANKS.sub(" ", gap)
    if _LASTS.fullmatch(gap) and _STARTS.search(before):
        return _LENGTH
    if _LINK.fullmatch(gap) and not bullet:
        return PAIR
    if _AND.fullmatch(gap) and _BETWEEN.search(before):
        return "between two times"
    if _COMMA.fullmatch(gap) and _OPENED.search(before) and _CLOSED.match(text, end):
        return _BRACKETS
    if _CELL.fullmatch(gap) and before.rstrip(" *_").endswith("|"):
        return _CELLS
    if _STARTS.search(before) and _ENDS.search(gap):
        return _LENGTH if _LATER.match(text, end) else _NAMES
    return _NAMES if _ENDS.search(before) and _STARTS.search(gap) else None


def _cut_off(text: str, a: Quantity, b: Quantity) -> bool:
    """ "from 12.0 seconds to 1": the text breaks off within its last number."""
    return b.value < a.value and b.bare and not text[b.end :].strip() and b.end - b.start < a.end - a.start


def _is_linked(text: str, pair: Sequence[Quantity]) -> bool:
    """Whether two quantities stand in one cell: "5.0 - 12.0"."""
    return len(pair) == 2 and bool(_LINK.fullmatch(text[pair[0].end : pair[1].start]))


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
    if rule not in (PAIR, "between two times") or not (a.bare and b.bare):
        return 2
    dated = years([a.value, b.value]) and not (a.decimal or b.decimal)
    counted = not b.decimal and NOUN.match(text, b.end)
    if dated or counted:
        return 0
    return int(bool(FROM.search(before)) or (a.decimal and b.decimal) or rule == "between two times")


def years(numbers: Sequence[float]) -> bool:
    """Whether whole numbers look like years: 2010 to 2015."""
    return all(1900 <= number <= 2100 for number in numbers)


def seconds(q: Quantity, duration_s: float | None) -> float:
    """Of a quantity in a video of ``duration_s``; inf where that is needed and not known."""
    if q.unit == "%":
        return q.value * duration_s / 100 if duration_s else math.inf
    if q.unit == "anchor" and q.value:
        return duration_s or math.inf
    return q.value


def _without_restatements(text: str, listed: list[Quantity]) -> list[Quantity]:
    """ "1:30 (90s) to 2:00 (120s)", "5 s (frame 10)": what only repeats the time before it is passed over."""
    kept_ones: list[Quantity] = []
    for q in listed:
        last = kept_ones[-1] if kept_ones else None
        same = last and abs(q.value - last.value) <= SAME_S
        if last and re.fullmatch(r"\s?[(=]\s?" if same else r"\s?\(frame\s", text[last.end : q.start]):
            closed = re.compile(r"\s?\)").match(text, q.end)
            kept_ones[-1] = Quantity(last.start, closed.end() if closed else q.end, last.value, last.unit, last.decimal)
        else:
            kept_ones.append(q)
    return kept_ones
