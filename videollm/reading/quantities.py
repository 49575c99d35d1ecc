"""Times in a text: every quantity with its units, as one thing. "1 minute 23 seconds" is 83 s, never 1 and 23.

In: an answer part. Out: ``Quantity`` objects in the order of the text, numbers that are no times (frames, years of age,
"2 boxes" is left to the caller) marked as such. What pairs they form, spans.py says.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

NUMBER = r"(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?(?!\d)|\d+,\d{1,2}(?!\d)|\d+(?:\.\d+)?|\.\d+)"
_EDGE = r"(?![A-Za-z])"
_SECOND = rf"(?:(?:seconds?|secs?|s|segundos?|secondes?|sekunden?){_EDGE}|秒钟?)"
_MINUTE = rf"(?:(?:minutes?|mins?|m|minutos?|minuten?){_EDGE}|分钟?)"
_HOUR = rf"(?:(?:hours?|hrs?|h|horas?|heures?){_EDGE}|小时)"
_JOIN = r"\s?-?\s?"
_NTH = r"(?:st|nd|rd|th)"
_THEN = r"(?:\s{0,3}(?:,|and\b|&)\s{0,3}|\s{0,3})"
_CLOCK = r"\d{1,3}:\d{2}(?::\d{2})?(?:[.,]\d{1,6})?(?!\d|:\d)"
_QUANTITY = re.compile(
    rf"(?<![A-Za-z0-9_./])(?<!\d:)(?<!\d \. )(?:"
    rf"(?P<clock>{_CLOCK})(?:{_JOIN}(?:{_SECOND}|{_MINUTE}|{_HOUR}))?"
    rf"|(?P<h>{NUMBER}){_JOIN}{_HOUR}(?:{_THEN}(?P<hm>{NUMBER}){_JOIN}{_MINUTE})?(?:{_THEN}(?P<hs>{NUMBER}){_JOIN}{_SECOND})?"
    rf"|(?P<m>{NUMBER}){_JOIN}{_MINUTE}(?:{_THEN}(?P<ms>{NUMBER}){_JOIN}{_SECOND})?"
    rf"|(?P<milli>{NUMBER})\s?(?:ms|milliseconds?|msecs?){_EDGE}"
    rf"|(?P<s>{NUMBER})(?:{_NTH})?{_JOIN}{_SECOND}"
    rf"|(?P<percent>{NUMBER})\s?(?:%|per\s?cent\b)"
    rf"|(?P<plain>{NUMBER})(?:(?P<nth>{_NTH})\b|(?P<tail>[A-Za-z]\w*|[:/]\d[\d:/.]*|(?:\.\d+)+))?"
    rf")|(?P<anchor>\b(?:the\s+)?(?:very\s+)?(?:(?P<first>beginning|start)|end)\s+of\s+(?:the\s+|this\s+)?(?:video|clip|footage|recording)"
    rf"|\b(?:the|this)\s+(?:video|clip)(?:\s+(?:ends|finishes|is\s+over)|'s\s+end)\b"
    rf"|\bthe\s+(?:very\s+)?(?:(?P<opening>beginning|start)|end)\b(?!\s+(?:time|point|mark|at|of)))",
    re.IGNORECASE,
)
_NO_TIME_AFTER = re.compile(
    r"\s?-?\s?(?:frames?|fps|years?|yrs?|days?|weeks?|months?|degrees?|°|people|persons?|men|women|times?\b|kg|km|cm|mm|ml|"
    r"g\b|x\d|px|pixels?|points?|pounds?|dollars?|帧|人|个|次|岁|年)",
    re.IGNORECASE,
)
_SHARE = re.compile(r"\s?of\s+the\s+(?:video|clip)\b", re.IGNORECASE)  # "0.25 to 0.5 of the video": no seconds
_OF_MINUTES = re.compile(r"\bminute\s$", re.IGNORECASE)  # "from minute 2 to minute 3"
_NO_TIME_BEFORE = re.compile(
    r"(?:frames?|frame[_ ]?(?:number|index|id)s?|figure|fig\.|number|scores?|aged?|ages|year|帧)[\s:#({\[\"'=]{0,4}$"
    r"|(?:steps?|options?|events?|scenes?|players?|jersey|no\.|#|€|£)\s?$",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Quantity:
    """A number of a text with what stands beside it.

    ``value``: seconds; of a ``%`` hundredths of the video, of a bare number what it says. ``unit``: "s" for anything
    that tells its unit (seconds, minutes, clock times), "m" or "h" for a lone number of minutes or hours, "%", "" for a
    bare number, "nth" for a bare "12th", "anchor" for the beginning (0) or the end (inf) of the video, "none" for what
    is no time.
    """

    start: int
    end: int
    value: float
    unit: str
    decimal: bool = False

    @property
    def bare(self) -> bool:
        return self.unit == ""

    def scaled(self, unit: str) -> "Quantity":
        """A bare number in the ``unit`` of its partner."""
        if unit and self.unit in ("", "nth"):
            return replace(self, value=self.value * _FACTOR.get(unit, 1.0), unit=unit)
        return self


_FACTOR = {"m": 60.0, "h": 3600.0}


def number(text: str) -> float:
    """ "12.5", "12,5" (a decimal comma), "1,234.5" (thousands) or ".5"."""
    if re.fullmatch(r"[1-9]\d{0,2}(?:,\d{3})+(?:\.\d+)?", text):
        return float(text.replace(",", ""))
    return float(text.replace(",", "."))


def quantities(text: str) -> Iterator[Quantity]:
    """Every number of ``text`` and every mention of the video's beginning or end, in order."""
    for found in _QUANTITY.finditer(text):
        value, unit, written = _meaning(found)
        start, end = found.span()
        if unit in ("", "%", "s") and _negative(text, start):
            unit = "none"
        if unit == "" and _OF_MINUTES.search(text, max(0, start - 24), start):
            value, unit = value * 60, "m"
        if unit == "" and found["nth"]:
            unit = "nth"
        if unit == "" and (found["tail"] or _NO_TIME_AFTER.match(text, end) or _enclosed(text, start, end)):
            unit = "none"
        if unit == "" and value <= 1 and _SHARE.match(text, end):
            unit = "none"
        if unit == "" and _NO_TIME_BEFORE.search(text, max(0, start - 24), start):
            unit = "none"
        yield Quantity(start, end, value, unit, "." in written or "," in written)


def _meaning(found: re.Match[str]) -> tuple[float, str, str]:
    """(value, unit, the number as written)."""
    if found["clock"]:
        parts = [float(part.replace(",", ".")) for part in found["clock"].split(":")]
        good = all(part < 60 for part in parts[1:])
        value = sum(part * 60.0**power for power, part in enumerate(reversed(parts)))
        return (value, "s", "") if good else (0.0, "none", "")
    if found["h"] or found["m"]:
        hours, minutes, seconds = found["h"], found["hm"] or found["m"], found["hs"] or found["ms"]
        value = sum(number(n) * factor for n, factor in ((hours, 3600.0), (minutes, 60.0), (seconds, 1.0)) if n)
        alone = sum(map(bool, (hours, minutes, seconds))) == 1
        return value, ("h" if hours else "m") if alone else "s", ""
    if found["milli"]:
        return number(found["milli"]) / 1000.0, "s", ""
    for name, unit in (("s", "s"), ("percent", "%"), ("plain", "")):
        if found[name]:
            return number(found[name]), unit, found[name]
    return (0.0 if found["first"] or found["opening"] else float("inf")), "anchor", ""


def _negative(text: str, start: int) -> bool:
    """Whether a minus sign, no dash between two times, or ± stands before the number."""
    if text[:start].endswith(("±", "+/-")):
        return True
    if start == 0 or text[start - 1] not in "-−":
        return False
    before = text[max(0, start - 12) : start - 1].rstrip()
    return before == "" and start == 1 or before.endswith(("[", "(", ",", ":", "-", "to", "="))


def _enclosed(text: str, start: int, end: int) -> bool:
    """``<12>``: a token whose meaning only its model knows."""
    return text[max(0, start - 1) : start] == "<" and text[end : end + 1] == ">"
