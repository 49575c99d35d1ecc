"""What the published scripts read in an answer's text, quirks included, and where evidence ends and the answer starts.

``published_*`` find what the scripts of E.T. Bench find (published_systems.md#et-bench-spans), ``*_pairs`` what those
of moment retrieval find; what a text means is read by ``videollm.reading``. Seconds out. Every function takes any text,
in a time that grows about linearly with its length. Ground truth, tasks and metrics are not known here.
"""

import re
from collections.abc import Sequence

Spans = list[list[float]]  # [[start, end], ...] in seconds
Steps = tuple[Spans, list[str]]  # spans and as many captions

DELIMITER = "</evi>"  # between the evidence and the answer, in the text of a head that writes evidence first

# ---- published: spans ------------------------------------------------------------------------------------------------

# Digits, any number of dots, digits. It starts only where a run of digits starts: the same matches as without that, but
# in linear time, also for a text of 100,000 digits.
_NUMBER = r"(?<!\d)\d+(?:\.+\d*)?"
_RANGE = re.compile(rf"({_NUMBER})\s*-\s*({_NUMBER})")
_TO_RANGE = re.compile(rf"({_NUMBER})\s* to \s*({_NUMBER})")
_WHOLE_NUMBER = re.compile(r"\b\d+(?:\.\d+)?\b")
_SIGNED = re.compile(r"[-+]?(?:\d+(?:\.\d+)?|\.\d+)")
_KEYWORDS = ("start", "end", "happen")


def published_spans(text: str, *, drop_dots: bool = False) -> Spans | None:
    """All spans that the published rules find, each in order; None if there is none
    (published_systems.md#et-bench-spans).

    ``drop_dots`` (D2VLM's answers): dots behind a number do not count. Raises ValueError where the published script
    stops: a number such as ``10..``.
    """
    text = text.lower()
    pairs = _RANGE.findall(text) or _TO_RANGE.findall(text) or _keyword_pairs(text)
    found = [sorted(float(n.rstrip(".") if drop_dots else n) for n in pair) for pair in pairs]
    return found or None


def published_spans_with_evidence(text: str) -> tuple[Spans | None, Spans | None]:
    """(answer, evidence) spans: after the last and before the first delimiter, in whichever case it is written.

    Evidence is found by the first rule only and not ordered. Without a delimiter there is neither. Raises ValueError as
    ``published_spans``.
    """
    pieces = text.lower().split(DELIMITER)
    if len(pieces) == 1:
        return None, None
    evidence = [[float(start), float(end)] for start, end in _RANGE.findall(pieces[0])]
    return published_spans(pieces[-1], drop_dots=True), evidence or None


def evidence_and_answer_spans(text: str) -> tuple[Spans, Spans]:
    """(evidence, answer) spans by the published rules; empty for none, and where the published script stops."""
    try:
        answer, evidence = published_spans_with_evidence(text)
    except ValueError:
        return [], []
    return evidence or [], answer or []


# ---- published: pairs of moment retrieval, reversed ones as they stand -----------------------------------------------

_SECONDS = r"(?<!\d)\d+(?:\.\d*)?"
_CLOCK = re.compile(r"\b(?:(\d{1,2}):(?=\d\d:))?(\d{1,2}):(\d{2}(?:\.\d+)?)\b")
_BY_DASH = re.compile(rf"({_SECONDS})\s*-\s*({_SECONDS})")
_BY_TO = re.compile(rf"({_SECONDS})\s+to\s+({_SECONDS})")
_BY_TO_OR_AND = re.compile(rf"({_SECONDS}) (?:to|and) ({_SECONDS})")
_BY_ANY_DASH = re.compile(r"((?<!\d)\d+(?:\.\d+)?)\s*(?:-|to|~|–|—)\s*(\d+(?:\.\d+)?)")
_ANY_NUMBER = re.compile(r"\b\d+(?:\.\d*)?\b")
_LMMS_CLOCK = re.compile(r"\b\d{1,2}:\d{2}(?::\d{2})?\b")
_LMMS_CLOCKS = re.compile(rf"({_LMMS_CLOCK.pattern[:-2]})\s*[–-]\s*({_LMMS_CLOCK.pattern[2:]})")
_BY_EN_DASH = re.compile(r"((?<!\d)\d+(?:\.\d+)?)\s*[–-]\s*(\d+(?:\.\d+)?)")
_BY_S_DASH = re.compile(r"((?<!\d)\d+(?:\.\d+)?)\s*s?\s*[–-]\s*(\d+(?:\.\d+)?)")
_SENTENCE_END = re.compile(r"[!?\n]")
_EXAMPLE = "a specific example is : 20.8 - 30.0 seconds"  # of a question, which an answer may repeat


def timelens_pairs(text: str) -> Spans:
    """TimeLens, lmms-eval's timelens: clock times two by two; else "a - b"; else "a to b"; else numbers two by two."""
    text = text.lower()
    clock = [3600.0 * int(h or 0) + 60.0 * int(m) + float(s) for h, m, s in _CLOCK.findall(text)]
    found = _BY_DASH.findall(text) or _BY_TO.findall(text)
    if len(clock) > 1 or found:
        return _two_by_two(clock) if len(clock) > 1 else _floats(found)
    return _two_by_two([float(number) for number in _ANY_NUMBER.findall(text)])


def lmms_charades_pairs(text: str) -> Spans:
    """lmms-eval's charades_sta since 0.7, "to" being a dash: of the sentences about a start, an end or a happening, of
    all if there is none, the first with pairs of clock times; else with pairs; else all clock times two by two; else
    a number of each two by two; else the first with pairs such as "3s - 4s"."""
    parts = _SENTENCE_END.split(text.lower().replace(_EXAMPLE, "").replace("to", "-"))
    told = [part for part in parts if any(word in part for word in _KEYWORDS)] or parts
    clocks = [_clock_seconds(time) for part in told for time in _LMMS_CLOCK.findall(part)]
    if pairs := _first_found(_LMMS_CLOCKS, told):
        return [[_clock_seconds(start), _clock_seconds(end)] for start, end in pairs]
    numbers = [float(found.group()) for found in map(_WHOLE_NUMBER.search, told) if found]
    by_two = _two_by_two(clocks) or _two_by_two(numbers)
    return _floats(_first_found(_BY_EN_DASH, told)) or by_two or _floats(_first_found(_BY_S_DASH, told))


def _clock_seconds(time: str) -> float:
    """Seconds of ``m:ss`` or ``h:mm:ss``."""
    return sum(float(part) * 60.0**place for place, part in enumerate(reversed(time.split(":"))))


def _first_found(pattern: re.Pattern, parts: Sequence[str]) -> list:
    """What a pattern finds in the first part in which it finds anything."""
    return next(filter(None, map(pattern.findall, parts)), [])


def charades_pairs(text: str) -> Spans:
    """lmms-eval's charades_sta before 0.7: every "a - b" where "to" is a dash as well; else a number of
    each sentence about a start, an end or a happening, two by two. ``10..``, at which the script stops, tells nothing.
    """
    text = text.lower().replace(_EXAMPLE, "").replace("to", "-")
    try:
        return _floats(_RANGE.findall(text) or _keyword_pairs(text))
    except ValueError:
        return []


def time_r1_pairs(text: str) -> Spans:
    """Time-R1: every "a to b" or "a and b"."""
    return _floats(_BY_TO_OR_AND.findall(text))


def any_dash_pairs(text: str) -> Spans:
    """ExtremeWhenBench: every pair joined by a dash of any kind, a tilde or "to"."""
    return _floats(_BY_ANY_DASH.findall(text))


def _two_by_two(times: Sequence[float]) -> Spans:
    """An odd one is dropped."""
    return [list(pair) for pair in zip(times[::2], times[1::2], strict=False)]


def published_number(text: str) -> float | None:
    """The first number, with its sign: what the original script takes for a highlight."""
    found = _SIGNED.search(text)
    return float(found.group()) if found else None


def _keyword_pairs(text: str) -> list[tuple[str, str]]:
    """The first number of each sentence about a start, an end or a happening, two by two; an odd one is dropped."""
    sentences = [s for s in _SENTENCE_END.split(text) if any(word in s for word in _KEYWORDS)]
    numbers = [found.group() for found in map(_WHOLE_NUMBER.search, sentences) if found]
    return list(zip(numbers[::2], numbers[1::2], strict=False))


# ---- published: steps ------------------------------------------------------------------------------------------------

_START = re.compile(r"start(?:ing)? time: (\d+(?:\.+\d*)?)")
_END = re.compile(r"end(?:ing)? time: (\d+(?:\.+\d*)?)")
_START_END = re.compile(r"start time \d+(?:\.+\d*)?, end time \d")
_DESCRIPTION = re.compile(r"description: (.*)")
_BULLET = re.compile(r"\*\s*(.*)")
_MINUTES = re.compile(rf"({_NUMBER}):(\d+(?:\.+\d*)?)")
_LAST_NUMBER = re.compile(r"\d+(?:\.+\d*)?(?!\.)")
_SHORT_CAPTION, _SHORT_SENTENCE = 5, 7  # characters; no more than that is passed over
_RADIUS_S = 20.0  # around a step of which only one time is told


def published_steps(text: str) -> Steps | None:
    """Spans and captions as the original script finds them; None where it finds none or gives up
    (published_systems.md#et-bench-steps)."""
    try:
        spans, captions = _listed_steps(text.lower())
    except ValueError:
        return None
    return (spans, captions) if spans else _one_step(text)


def published_steps_with_evidence(text: str) -> tuple[Spans, list[str], Spans] | None:
    """(spans, captions, evidence spans) as D2VLM's script finds them; None without the delimiter or a step.

    A step that no list tells is looked for in the whole text, evidence included. Raises ValueError where the published
    script stops.
    """
    pieces = text.split(DELIMITER)
    if len(pieces) == 1:
        return None
    evidence, answer = (re.sub(r"\.{2,}", " ", piece.lower()) for piece in pieces[:2])
    spans, captions = _listed_steps(answer)
    steps = (spans, captions) if spans else _one_step(text)
    return (*steps, _floats(_RANGE.findall(evidence))) if steps else None


def _listed_steps(text: str) -> Steps:
    """Steps told as a list, in a text in lower case. Raises ValueError for numbers and forms that stop the scripts."""
    marks, spans, captions = list(_RANGE.finditer(text)), [], []
    if marks:
        spans = _floats([mark.groups() for mark in marks])
        text = _cut_out(text, [mark.group() for mark in marks])
        captions = text.replace("seconds", "").split("\n")
    else:
        starts, ends = _START.findall(text), _END.findall(text)
        if starts and ends:
            spans = _floats(list(zip(starts, ends, strict=False)))
            captions = _DESCRIPTION.findall(text) or _BULLET.findall(text)
        elif _START_END.search(text):
            raise ValueError("'start time N, end time N' stops the published parser")
    captions = [caption.strip().strip(", ").rstrip() for caption in captions if len(caption) > _SHORT_CAPTION]
    count = min(len(spans), len(captions))
    return [sorted(span) for span in spans[:count]], captions[:count]


def _cut_out(text: str, strings: Sequence[str]) -> str:
    """``text`` with a line break for every occurrence of each string: "1 - 5" is cut out of "11 - 5" as well."""
    gone = set()
    for string in strings:
        if string not in gone:
            text = text.replace(string, "\n")
        if "\n" not in string:  # one with a line break may appear anew behind the next cut
            gone.add(string)
    return text


def _one_step(text: str) -> Steps | None:
    """The first line (or sentence, if there is one line) with a time before "seconds" as the only step."""
    lines = "\n" in text
    for sentence in text.split("\n" if lines else "."):
        if len(sentence) <= _SHORT_SENTENCE:
            continue
        parts = (sentence if lines else sentence + ".").split("seconds")
        try:
            span = _told_time(parts[0].strip(","))
        except ValueError:
            continue
        if span:
            return [sorted(round(time, 2) for time in span)], [parts[-1].strip(",").strip()]
    return None


def _told_time(text: str) -> tuple[float, float] | None:
    """One time, told as "a - b", m:ss, two m:ss, a number or two numbers. Raises ValueError for an odd number."""
    found = _RANGE.search(text)
    if found:
        return float(found.group(1)), float(found.group(2))
    if text.count(":") in (1, 2):
        times = [60.0 * float(m) + float(s) for m, s in _MINUTES.findall(text)]
        if len(times) < text.count(":"):
            raise ValueError(f"not m:ss: {text!r}")
    else:
        times = [float(number) for number in _LAST_NUMBER.findall(text)]
    if len(times) == 1:
        time = times[0]
        return (time - _RADIUS_S, time + _RADIUS_S) if time > _RADIUS_S else (time, time + 2 * _RADIUS_S)
    return (times[0], times[1]) if len(times) == 2 else None


def _floats(pairs: Sequence[Sequence[str]]) -> Spans:
    return [[float(start), float(end)] for start, end in pairs]


def split_evidence(text: str) -> tuple[str, str]:
    """(evidence, answer): before the first and after the last delimiter; without one all of it is the answer."""
    pieces = re.split(re.escape(DELIMITER), text, flags=re.IGNORECASE)
    return (pieces[0], pieces[-1]) if len(pieces) > 1 else ("", text)
