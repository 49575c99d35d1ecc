"""Which of the spans told in a text are its claims: the surest, not denied, behind the conclusion, each once.

In: an answer part and what pairs.py found in it. Out: the ``Told`` objects that count, in their order.
"""

import re
from collections.abc import Sequence

from videollm.reading.pairs import FROM, HEDGES, NOUN, PAIR, SAME_S, SPREADS, Told, years
from videollm.reading.part import TURNS
from videollm.reading.quantities import Quantity

_AUXILIARY = r"\b(?:does|did|do|is|was|are|were|has|have|can|could|will|would)"
_NOT = rf"(?:{_AUXILIARY}\s{{0,2}}(?:not|n['’]t)\b|n['’]t\b|\bcannot\b)"
_HAPPENS = "happen|occur|take|taking|appear|exist|present|visible|shown|seen|see|find|found|from|between|in|at|during"
_DENIED = re.compile(
    rf"{_NOT}\W{{1,3}}(?:\w+\W{{1,3}}){{0,3}}?(?:{_HAPPENS})\b"
    r"|\bno\s+(?:such|segment|moment|part|scene|time)\b"
    r"|\b(?:never|instead\s+of|rather\s+than|except|excluding|not\s+(?:from|between|in|at|during))\b"
    r"|\bI\s+(?:\w+\s+)?(?:assumed|believed|thought|guessed|suspected)\b"  # and thinks otherwise by now
    r"|(?:\bnot|n['’]t)\s{1,3}$"  # "it is not 10 - 15 seconds"
    r"|\b(?:neither|nor)\s{1,3}(?:(?:from|between|in|at|during)\s{1,3})?$"
    r"|没有|不在|并非|(?<!是)不是",
    re.IGNORECASE,
)
_DENIED_BEHIND = re.compile(
    r"[^.!?;\n]{0,60}\b(?:not\s+(?:relevant|the\s+(?:answer|moment|event|query))|irrelevant|wrong|incorrect|too\s+(?:early|late))\b"
    rf"|{HEDGES},?\s(?:there\s+is\s+)?nothing\b",
    re.IGNORECASE,
)
_LENGTH_OF = re.compile(  # "In the video (0-120 s)", "The clip, which runs from 0:00 to 2:00": no moment in it
    r"(?<!entire\s)(?<!whole\s)(?<!full\s)\b(?:video|clip|footage|recording)"
    rf"(?:,?\s(?:which\s|that\s)?(?:runs|lasts|goes)\s(?:from\s)?|\s?\(|\s(?:length|duration)\W{{1,3}}){HEDGES}$",
    re.IGNORECASE,
)
_CONCLUSION = re.compile(
    r"\b(?:therefore|thus|hence|in\s+conclusion|to\s+conclude|in\s+summary|conclusion|best\s+(?:match|guess|estimate)\s+is|actually(?!.{0,40}\balso))\b"
    rf"|(?:^|[.!?\n])\s{{0,3}}(?:so|no)\b|因此|所以|{TURNS}",
    re.IGNORECASE,
)
_SENTENCE = re.compile(r"[.!?;]\s|\n|。")
_NO_TIMES = re.compile(  # what the bare numbers of a sentence count or measure
    r"\bframes?\b|帧|\b(?:number|amount)\s+of\b|\b(?:score|temperature|speed|price|weight)\b", re.IGNORECASE
)
_PLACES = r"\b(?:in|at|during|from|and|then|second|time)\b"
_PLACE = re.compile(rf"(?:^|[\n:.;,(|\[]\s{{0,3}}|{_PLACES}){HEDGES}(?:\d{{1,3}}[.)]\s)?{HEDGES}$", re.IGNORECASE)
_LONG = re.compile(r"\W{0,3}(?:s|seconds?)?\W{0,3}(?:long|in\s+length|in\s+total|total)\b|\s{0,3}\?", re.IGNORECASE)
_FOR = re.compile(rf"\bfor\s{HEDGES}$", re.IGNORECASE)  # "he waits for 5 to 10 minutes"
_RELATIVE = re.compile(r"\s(?:after|before|later|earlier|ago|apart)\b(?!\s(?:the\s)?(?:start|beginning|video))", re.I)
_OR = re.compile(r"\W*(?:s|seconds?)?\W*or\W*(?:from|between)?\W*", re.IGNORECASE)
_AGAIN = re.compile(r"\s?(?:s|sec|seconds)?\s?(?:\(|[,(]?\s?(?:i\.e\.,?|that\s+is,?|or)\s?)", re.IGNORECASE)
_AND_SO_ON = re.compile(
    r"[\s*_\"'`)\]]{0,6}(?:[,;&]|\band\b|,\s?and\b)[\s*_\"'`(\[]{0,6}(?:from\s|between\s)?\s{0,3}", re.IGNORECASE
)


def kept(found: Sequence[Told], text: str) -> list[Told]:
    """The spans that count: the surest, those listed with them, no denied one, nothing where it is "3-9 or 12-15"."""
    if any(_OR.fullmatch(text[a.end : b.start]) for a, b in _neighbours(found)):
        return []
    found = [t for t in found if not (t.sure < 2 and _counts(text, t)) and not _length_only(text, t)]
    found = [t for t in found if t.span[0] or not _LENGTH_OF.search(text, max(0, t.start - 60), t.start)]
    found = [
        t
        for i, t in enumerate(found)
        if not denied(text, t.start, found[i - 1].end if i else 0) and not _DENIED_BEHIND.match(text, t.end)
    ]
    best, lists = max((t.sure for t in found), default=0), _lists(found, text)
    sure = {number for number, t in zip(lists, found, strict=True) if t.sure == best}
    found = [t for number, t in zip(lists, found, strict=True) if number in sure]
    if not best:
        found = [t for t in found if _stands_alone(text, t)]
    found = _last_conclusion(found, text)
    twice = [i for i, (a, b) in enumerate(_neighbours(found), 1) if _restated(text, a, b)]
    return [_shared_unit(t, found) for i, t in enumerate(found) if i not in twice]


def _neighbours(found: Sequence[Told]) -> list[tuple[Told, Told]]:
    return list(zip(found, found[1:], strict=False))


def _lists(found: Sequence[Told], text: str) -> list[int]:
    """The number of the list that each span is in: "5 - 9, 20 - 24 and 31 - 36 seconds" is one."""
    numbers = [0] * len(found)
    for i, (a, b) in enumerate(_neighbours(found), 1):
        numbers[i] = numbers[i - 1] + (not _AND_SO_ON.fullmatch(text[a.end : b.start][:40]))
    return numbers


def _stands_alone(text: str, told: Told) -> bool:
    """Whether a pair of bare numbers stands where an answer puts a span, with no noun behind: "3 - 4", "in 3 - 4"."""
    if years(told.span) and text.strip() != text[told.start : told.end]:
        return False
    return bool(_PLACE.search(text, max(0, told.start - 40), told.start)) and not NOUN.match(text, told.end)


def _shared_unit(told: Told, found: Sequence[Told]) -> Told:
    """A bare pair in a list whose last pair is in minutes is in minutes as well."""
    unit = found[-1].unit
    if told.unit or unit not in SPREADS:
        return told
    return Told(
        told.start, told.end, [Quantity(0, 0, t, "").scaled(unit).value for t in told.span], told.sure, told.rule
    )


def _restated(text: str, a: Told, b: Told) -> bool:
    """Whether ``b`` only says in brackets or "i.e." what ``a`` has said."""
    same = all(abs(x - y) <= SAME_S for x, y in zip(a.span, b.span, strict=True))
    between = text[a.end : b.start][:40]
    return same and bool(_AGAIN.fullmatch(between))


def denied(text: str, place: int, floor: int = 0) -> bool:
    """Whether the sentence says before ``place`` that it does not happen there."""
    return bool(_DENIED.search(text, _sentence_start(text, place, floor), place))


def _sentence_start(text: str, place: int, floor: int = 0) -> int:
    first = max(floor, place - 200)
    ends = [m.end() for m in _SENTENCE.finditer(text, first, place)]
    return ends[-1] if ends else first


def _length_only(text: str, told: Told) -> bool:
    """ "3 - 4 seconds long", "about 2 - 3 seconds after he falls": no place in the video."""
    if _LONG.match(text, told.end) or _FOR.search(text, max(0, told.start - 40), told.start):
        return True
    named = told.rule != PAIR or FROM.search(text, max(0, told.start - 60), told.start)
    return not named and bool(_RELATIVE.match(text, told.end))


def _counts(text: str, told: Told) -> bool:
    return bool(_NO_TIMES.search(text, _sentence_start(text, told.start), told.start))


def _last_conclusion(found: list[Told], text: str) -> list[Told]:
    """The spans behind the last "therefore" that has one behind it; all where none has."""
    last = found[-1].start if found else -1
    mark = max((m.start() for m in _CONCLUSION.finditer(text) if m.start() <= last), default=0)
    return [t for t in found if t.start >= mark]
