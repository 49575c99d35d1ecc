"""JSON in an answer, fenced, in prose or cut off: the spans and timed captions that its keys and lists name.

In: an answer part. Out: spans in the order of the text, and events where captions stand beside them. Numbers under keys
that no format uses for times are not read. Times that are texts ("00:12", "12.0 s") go through the reader that the
caller gives.
"""

import ast
import json
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

from videollm.reading.quantities import quantities

Span = list[float]
SpansOf = Callable[[str], list[Span]]

_UNIT = r"(?:[_ ]?(?:time|timestamp|sec|secs|seconds|s))?"
_START = re.compile(
    rf"(?:time)?[_ ]?(?:start|begin|from|onset|s)(?:ing|ning|s)?{_UNIT}|(?:timestamp|time)[_ ]?start", re.IGNORECASE
)
_END = re.compile(
    rf"(?:time)?[_ ]?(?:end|stop|to|finish|offset|e)(?:ing|s)?{_UNIT}|(?:timestamp|time)[_ ]?end", re.IGNORECASE
)
_LENGTH = re.compile(r"(?:length|lasts|duration)(?:[_ ]?(?:sec|secs|seconds|s))?", re.IGNORECASE)
_SPANS = re.compile(
    r"(?:(?:pred(?:icted|iction)?|relevant|final|best|event|video|the)[_ ]?)*"
    r"(?:times?|timestamps?|spans?|segments?|intervals?|windows?|ranges?|moments?|clips?|preds?|predictions?|answers?|"
    r"results?|output|events?|(?:event[_ ]?)?timeline|steps|actions|captions|response)",
    re.IGNORECASE,
)
_CAPTION = re.compile(
    r"(?:event|caption|description|sentence|label|text|action|step|query|activity|content|summary)s?", re.I
)
_OPEN = re.compile(r"[\[{(]")
_ATTEMPTS = 64  # places where JSON may begin that are tried; an answer has a few
_LONGEST = 20_000  # characters of a Python literal


def fragments(text: str) -> Iterator[Any]:
    """Every JSON object or list of ``text``, the outermost that can be read, in order; Python literals as well."""
    place, tries = 0, 0
    while tries < _ATTEMPTS and (found := _OPEN.search(text, place)):
        tries += 1
        value, place = _fragment(text, found.start())
        if value is not None:
            yield value


def _fragment(text: str, start: int) -> tuple[Any, int]:
    """(value, where it ends) of what begins at ``start``; (None, the next place) where nothing can be read."""
    if text[start] != "(":
        try:
            return json.JSONDecoder().raw_decode(text, start)
        except (ValueError, RecursionError):
            pass
    end = _closing(text, start)
    if end is not None:
        try:
            value = ast.literal_eval(text[start:end])
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            return None, start + 1
        if isinstance(value, list | tuple | dict):
            return value, end
    return None, start + 1


def _closing(text: str, start: int) -> int | None:
    """Behind the bracket that closes the one at ``start``; brackets in quotes are not told apart."""
    depth = 0
    for place in range(start, min(len(text), start + _LONGEST)):
        depth += (text[place] in "[{(") - (text[place] in ")}]")
        if not depth:
            return place + 1
    return None


def structured_spans(text: str, spans_of: SpansOf) -> tuple[list[Span], list[Span]]:
    """(spans under keys or in lists of lists, spans that are lone lists of numbers such as [12.0, 15.0])."""
    keyed: list[Span] = []
    plain: list[Span] = []
    for value in fragments(text):
        lone = isinstance(value, list | tuple) and _of_list(value) is not None
        (plain if lone else keyed).extend(_spans(value, spans_of))
    return keyed, plain


def structured_events(text: str, spans_of: SpansOf) -> list[tuple[Span, str]]:
    """(span, caption) of every event that JSON of ``text`` tells."""
    return [event for value in fragments(text) for event in _events(value, spans_of)]


def _spans(value: Any, spans_of: SpansOf) -> Iterator[Span]:
    if isinstance(value, dict):
        own = _of_keys(value)
        if own:
            yield from own
            return
        for key, inner in value.items():
            if _SPANS.fullmatch(str(key)):
                yield from _spans(inner, spans_of)
    elif isinstance(value, list | tuple):
        told = _of_list(value)
        if told is not None:
            yield told
        elif len(value) == 2 and all(isinstance(v, str) for v in value) and (pair := _of_texts(*value)):
            yield pair
        else:
            for inner in value:
                yield from _spans(inner, spans_of) if isinstance(inner, list | tuple | dict) else ()
    elif isinstance(value, str):
        yield from spans_of(value)


def _events(value: Any, spans_of: SpansOf) -> Iterator[tuple[Span, str]]:
    if isinstance(value, dict):
        caption = next((v for k, v in value.items() if isinstance(v, str) and _CAPTION.fullmatch(str(k))), None)
        rest = {k: v for k, v in value.items() if v is not caption}
        spans = list(_spans(rest, spans_of)) if caption is not None else []
        texts = next((v for k, v in value.items() if _CAPTION.fullmatch(str(k)) and _are(v, str)), None)
        if len(spans) == 1:
            yield spans[0], caption
        elif texts is not None and len(
            found := list(_spans({k: v for k, v in value.items() if v is not texts}, spans_of))
        ) == len(texts):
            yield from zip(found, texts, strict=True)
        else:
            for key, inner in value.items():
                if isinstance(inner, list | dict):
                    yield from _events(inner, spans_of)
                elif isinstance(inner, str) and len(told := spans_of(str(key))) == 1:
                    yield told[0], inner
    elif isinstance(value, list | tuple):
        if len(value) in (3, 4) and isinstance(value[-1], str) and (told := _of_list(value[:-1])):
            yield told, value[-1]
            return
        for inner in value:
            yield from _events(inner, spans_of)


def _are(value: Any, kind: type) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(v, kind) for v in value)


def _of_keys(value: dict) -> list[Span]:
    """The span that start and end keys of an object tell, or the spans of two lists under them."""
    at = {
        name: next((v for k, v in value.items() if form.fullmatch(str(k))), None)
        for name, form in (("start", _START), ("end", _END), ("length", _LENGTH))
    }
    if isinstance(at["start"], list) and isinstance(at["end"], list) and len(at["start"]) == len(at["end"]):
        pairs = [[_time(a), _time(b)] for a, b in zip(at["start"], at["end"], strict=True)]
        return [sorted(pair) for pair in pairs] if all(None not in pair for pair in pairs) else []
    start, end, length = (_time(at[name]) for name in ("start", "end", "length"))
    if start is None or (end is None and length is None):
        return []
    return [sorted([start, end if end is not None else start + length])]


def _time(value: Any) -> float | None:
    """Seconds of a number, or of a text that is one quantity."""
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int | float):
        return float(value) if value >= 0 and math.isfinite(value) else None
    found = list(quantities(value)) if isinstance(value, str) and len(value) < 60 else []
    good = len(found) == 1 and found[0].unit in ("s", "", "m", "h")
    return found[0].value if good else None


def _of_texts(first: str, second: str) -> Span | None:
    times = [_time(first), _time(second)]
    return None if None in times else sorted(times)


def _of_list(value: Any) -> Span | None:
    """[start, end], or that with a score between 0 and 1 behind it; [120, 45] is a size or a place in the picture."""
    numbers = [v for v in value if isinstance(v, int | float) and not isinstance(v, bool)]
    if len(numbers) != len(value) or len(value) not in (2, 3):
        return None
    if len(value) == 3 and not 0 <= value[2] <= 1:
        return None
    try:
        span = [float(value[0]), float(value[1])]
    except OverflowError:
        return None
    return span if 0 <= span[0] <= span[1] < math.inf else None
