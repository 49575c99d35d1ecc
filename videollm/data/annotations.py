"""One annotation line becomes one neutral record here, or one clear complaint.

In: the object of a line, in our schema or the published ones. Out: ``Record``, whose turns hold text, ``SpanMark`` and
``VisualMark``, and whose spans are seconds; and back. The rules are in docs/annotations.md. This file knows no head,
tokenizer, network or file: a video is a name here.
"""

import itertools
import math
import ntpath
import os
import re
from collections.abc import Callable, Sequence
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from videollm.common.config import UserError
from videollm.common.files import Bad
from videollm.data import letter
from videollm.data.conversation import SpanMark, Turn, VisualMark, span_marks
from videollm.data.foreign import VISUAL_MARKS, check_keys, own_span_marks, own_visual_marks
from videollm.data.options import KEYS, parse_asking
from videollm.data.published import EVIDENCE_END, SPAN_MARKS, from_classes, read_as_published
from videollm.data.record import Record, RejectedAnswer, Span, place, plain_name

SLACK_S = 0.5  # annotations round their times, and containers disagree on where a video ends
LONGEST_PATH, LONGEST_NAME = 4000, 255  # bytes; no file system takes more, and the root needs some as well
SHOWN = 20  # bad or mended lines that a message names before it only counts
ROLES = {"system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}
OWN_KEYS = ("id", "video", "image", "duration", "task", "source", "conversations", "src", "tgt", "rejected", *KEYS)
REJECTED_KEYS = ("factor", "value", "tgt", "text_only")

_SPAN = re.compile("|".join(SPAN_MARKS))
_VISUAL = re.compile("|".join(VISUAL_MARKS))
_MARK = re.compile(rf"({_SPAN.pattern}|(?:{_VISUAL.pattern})\n?)")  # the layout decides on the newline after a visual
_STAGE_FILLER = re.compile(rf"{_SPAN.pattern}|\band\b|[\s,;.&-]")  # all that may stand in an evidence stage


class AnnotationError(UserError, ValueError):
    """Everything wrong with the annotations; ``problems`` has one ``FILE:LINE: what (field) - remedy`` for each."""

    def __init__(self, problems: Sequence[str]):
        super().__init__(list(problems))
        self.problems = list(problems)

    def __str__(self) -> str:
        lines = self.problems[:SHOWN]
        if len(self.problems) > SHOWN:
            lines.append(f"... and {len(self.problems) - SHOWN} more: {len(self.problems)} bad lines in all")
        return "\n".join(lines)


def not_an_object(path: str | os.PathLike, line: int, item: Any) -> str:
    return f"{place(path, line)}: is {kind_of(item)} (line) - a record is an object with `conversations`"


def parse_record(item: dict, line: int, path: str | os.PathLike, *, raw_spans: bool = False) -> Record:
    """One annotation line -> its neutral record. ``odd`` says what was mended on the way.

    With ``raw_spans`` it is read as published code reads it: nothing is mended, and nothing refused that it computes.

    Raises:
        AnnotationError: the first thing that is wrong with the line.
    """
    if not isinstance(item, dict):
        raise AnnotationError([not_an_object(path, line, item)])
    try:
        return _parse(item, line, path, raw_spans)
    except Bad as bad:
        raise AnnotationError([f"{place(path, line)}: {bad}"]) from None


def _parse(item: dict, line: int, path: str | os.PathLike, raw_spans: bool) -> Record:
    item = read_as_published(item) if raw_spans else item
    item = from_classes(item, raw_spans) if isinstance(item.get("conversations"), dict) else item
    check_keys(item, OWN_KEYS)
    item, aside = letter.usable(item) if (literal := raw_spans and letter.is_published(item)) else (item, {})
    duration = None if item.get("duration") is None else _number(item["duration"], "duration")
    if duration is not None and duration <= 0 and not raw_spans:
        raise Bad(f"a video of {duration:g} s", "duration", "give its length in seconds, or leave the key out")
    video, images = _visuals(item)
    texts, staged = _conversation(item, raw_spans, literal)
    mark = "<video>" if video and not literal else "<image>"
    texts = _with_visual_marks(texts, mark, 1 if video else len(images), raw_spans)
    odd: list[str] = []

    def spans(key: str, holder: dict = item) -> list[Span]:
        pairs = _pairs(holder, key)
        kept = [] if len(holder[key]) == 1 else odd  # a single moment is no mistake
        return pairs if raw_spans else [_mend(pair, duration, key, kept) for pair in pairs]

    roles = [role for role, text in texts if role != "system" for _ in _SPAN.findall(text)]  # one a span mark
    src, tgt, unused = _match(item, roles, staged, spans)
    if (src or tgt) and video is None:
        raise Bad("span marks without a video", "video", "name the video, or leave the marks and their spans out")
    if len(src) < roles.count("user"):
        odd.append("span mark of a question without a span, read as text")
    turns, spans_s = _neutral(texts, src, tgt)
    if literal:
        turns = letter.written(item, texts[0][1], turns, len(src))
    return Record(
        id=_name(item, "id") or f"{plain_name(path).stem}:{line}",
        video=video,
        images=images,
        duration_s=duration,
        turns=turns,
        spans_s=spans_s,
        task=_name(item, "task"),
        source=_name(item, "source"),
        extra={key: value for key, value in item.items() if key not in OWN_KEYS or key in unused} | aside,
        line=line,
        path=str(path),
        rejected=_rejected(item, turns, spans_s, spans, raw_spans),
        asking=parse_asking(item, duration),
        odd=tuple(dict.fromkeys(odd)),
        moment=bool(src) and letter.has_moment(item),
        raw=raw_spans,
    )


def _visuals(item: dict) -> tuple[str | None, tuple[str, ...]]:
    """-> the video, the images; at most one of the two kinds."""
    video, images = item.get("video"), item.get("image")
    if isinstance(video, list):
        if len(video) != 1 or video == [None]:
            raise Bad(
                f"a list of {len(video)} instead of a path", "video", "make a record of each, or leave the key out"
            )
        video = video[0]
    images = [] if images is None else [images] if isinstance(images, str) else images
    if not isinstance(images, list) or (not images and item.get("image") is not None):
        shown = "an empty list" if images == [] else kind_of(images)
        raise Bad(f"{shown} instead of a path", "image", "give a path or a list of paths")
    if video is not None and images:
        raise Bad("both a video and an image", "video, image", "make two records of it")
    for key, path in [("video", video)] * (video is not None) + [("image", image) for image in images]:
        if not isinstance(path, str) or not path.strip():
            shown = "an empty path" if isinstance(path, str) else kind_of(path)
            raise Bad(f"{shown} instead of a path", key, "give a path, or leave the key out of a text-only record")
        windows = PureWindowsPath(ntpath.normpath(path))  # a/../b is b
        if PurePosixPath(path).is_absolute() or windows.root or ".." in windows.parts:
            raise Bad(f"{path!r} leads out of the folder of the videos", key, "write it relative to that folder")
        if "\0" in path or _bytes(path) > LONGEST_PATH or any(_bytes(part) > LONGEST_NAME for part in windows.parts):
            raise Bad(f"{path[:40]!r}... can be no file's name", key, "give the path of a file")
    return video, tuple(images)


def _conversation(item: dict, raw: bool, literal: bool) -> tuple[list[tuple[str, str]], bool]:
    """-> [(role, text), ...] without evidence stages, and whether there were any (``literal``: read as if)."""
    name, turns = "conversations", item.get("conversations")
    if not isinstance(turns, list) or not turns:
        what = "missing" if turns is None else "empty" if turns == [] else kind_of(turns)
        raise Bad(what, name, 'give a list of turns: [{"from": "human", "value": "..."}, ...]')
    texts, staged = [], literal
    for k, turn in enumerate(turns):
        name = f"conversations[{k}]"
        if not isinstance(turn, dict) or not isinstance(turn.get("value"), str):
            raise Bad("not a turn with a text", name, 'write {"from": "human", "value": "..."}')
        speaker, text = turn.get("from"), turn["value"]
        role = ROLES.get(speaker) if isinstance(speaker, str) else None
        if role is None:
            raise Bad(f"unknown role {speaker!r}", f"{name}.from", f"use one of {', '.join(ROLES)}")
        expected = "user" if not texts or texts[-1][0] != "user" else "assistant"
        again = raw and role == "user" and texts  # published DisTime joins whatever turns come
        if role != expected and not (role == "system" and k == 0) and not again:
            raise Bad(f"a turn of the {role} where the {expected} should speak", name, "make the two take turns")
        text = text if raw else own_span_marks(text)
        if role == "user" and not literal:
            text = own_visual_marks(text, name)
        if role == "assistant":
            text, stage = (letter.neutral_answer(text), True) if literal else _without_evidence(text, name)
            staged |= stage
            if not text.strip() and not raw:
                raise Bad("empty answer", name, "write the answer, or leave the turn out of a record without one")
        texts.append((role, text))
    if texts[-1][0] == "system":
        raise Bad("no turn of the user", "conversations", "add the question")
    return texts, staged


def _without_evidence(text: str, name: str) -> tuple[str, bool]:
    """An answer without its evidence stage ``<evi>*n </evi>``, and whether it had marks there."""
    stage, end, answer = text.partition(EVIDENCE_END)
    if not end:
        return text, False
    if EVIDENCE_END in answer or _STAGE_FILLER.sub("", stage):
        what = "two evidence stages" if EVIDENCE_END in answer else "words in the evidence stage"
        raise Bad(what, name, f"write only span marks before one {EVIDENCE_END}, or no {EVIDENCE_END} at all")
    grounded, said = len(_SPAN.findall(stage)), len(_SPAN.findall(answer))
    if grounded not in (0, said):
        what = f"{grounded} span marks in the evidence stage and {said} in the answer after it"
        raise Bad(what, name, "repeat each event's mark once in the answer, in the same order")
    return answer.lstrip(), grounded > 0


def _with_visual_marks(texts: list[tuple[str, str]], mark: str, visuals: int, raw: bool) -> list[tuple[str, str]]:
    """The turns with a mark for each visual: at the front of the first user turn if they have none at all."""
    marks = sum(len(_VISUAL.findall(text)) for role, text in texts if role == "user")
    if marks == 0:
        first = next(k for k, (role, _) in enumerate(texts) if role == "user")
        texts = [(role, f"{mark}\n" * visuals * (k == first) + text) for k, (role, text) in enumerate(texts)]
    elif marks != visuals:
        what = f"{marks} {' or '.join(VISUAL_MARKS)} marks for {visuals} videos or images"
        remedy = (
            "write one mark for each, or none at all" if visuals else "name the file (video, image), or take them out"
        )
        raise Bad(what, "conversations", remedy)
    if not all(text.strip() or raw for role, text in texts if role == "user"):
        raise Bad("empty turn of the user", "conversations", "write the question")
    return texts


def _match(
    item: dict, roles: list[str], staged: bool, spans: Callable[[str], list[Span]]
) -> tuple[list[Span], list[Span], set[str]]:
    """Which spans stand behind the marks of the user, and of the assistant; and which keys no mark needs.

    ``roles`` has the role of each span mark in order. Without ``src``, ``tgt`` may count the marks of all turns in
    order of appearance (published_systems.md#distime-data); otherwise ``src`` is for the questions
    and ``tgt`` for the answers (published_systems.md#d2vlm-data).
    """
    asked, answered = roles.count("user"), roles.count("assistant")
    has_src, has_tgt = (item.get(key) is not None and item[key] != [] for key in ("src", "tgt"))
    needs = {"src": has_src and asked > 0, "tgt": has_tgt and (answered > 0 or (asked > 0 and not has_src))}
    src, tgt = (spans(key) if needed else [] for key, needed in needs.items())
    unused = {key for key, has in (("src", has_src), ("tgt", has_tgt)) if has and not needs[key]}
    if len(src) > asked:
        what = f"fewer span marks than spans: {asked} in the questions for {len(src)} spans"
        raise Bad(what, "src", "write one start and one end a mark")
    if not has_src and not staged and len(tgt) == len(roles):
        paired = list(zip(roles, tgt, strict=True))
        return [s for role, s in paired if role == "user"], [s for role, s in paired if role != "user"], unused
    if len(tgt) != answered:
        what = f"{'more' if answered > len(tgt) else 'fewer'} span marks than spans: {answered} in the answers"
        what += f" (and {asked} in the questions)" * (asked > 0 and not has_src)
        raise Bad(f"{what} for {len(tgt)} spans", "tgt", "write one start and one end a mark")
    return src, tgt, unused


def _pairs(item: dict, key: str) -> list[Span]:
    """The flat seconds of ``key`` as pairs. One number alone is a moment of a question (docs/d2vlm.md, surprise 4)."""
    values = item[key]
    if not isinstance(values, list):
        raise Bad(f"{kind_of(values)} instead of a list", key, "write flat seconds: [start, end, start, end, ...]")
    if any(isinstance(value, list) for value in values):
        raise Bad("nested spans", key, "flatten them: [start, end, start, end, ...]")
    numbers = [_number(value, f"{key}[{k}]") for k, value in enumerate(values)]
    if key == "src" and len(numbers) == 1:
        numbers *= 2
    if len(numbers) % 2:
        raise Bad(f"an odd number of values, {len(numbers)}", key, "write a start and an end for each span")
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def _mend(span: Span, duration: float | None, key: str, odd: list[str]) -> Span:
    """The span ordered and inside the video; what was odd about it is added to ``odd``."""
    start, end = sorted(span)
    last = math.inf if duration is None else duration
    if end < 0 or start > last:
        video = "starts at 0 s" if duration is None else f"has {duration:g} s"
        raise Bad(f"span [{start:g}, {end:g}] lies outside the video, which {video}", key, "correct it (in seconds)")
    inside = max(start, 0.0), min(end, last)
    if (start, end) != span:
        odd.append("reversed span")
    if inside != (start, end):
        odd.append("span partly outside the video")
    if inside[0] == inside[1]:
        odd.append("span of zero length")
    return inside


def _neutral(
    texts: list[tuple[str, str]], src: list[Span], tgt: list[Span]
) -> tuple[tuple[Turn, ...], tuple[Span, ...]]:
    """Marks become parts. A mark of the user beyond ``src`` stays text; so does every mark of the system."""
    behind = {"system": iter(()), "user": iter(src), "assistant": iter(tgt)}
    visuals, spans, turns = itertools.count(), [], []
    for role, text in texts:
        parts: list[Any] = [""]
        for piece in _MARK.split(text):
            if piece in SPAN_MARKS and (span := next(behind[role], None)) is not None:
                parts += [SpanMark(len(spans)), ""]
                spans.append(span)
            elif role == "user" and piece.rstrip("\n") in VISUAL_MARKS:
                parts += [VisualMark(next(visuals)), ""]
            else:
                parts[-1] += piece
        turns.append(Turn(role, tuple(part for part in parts if part != "")))
    return tuple(turns), tuple(spans)


def _rejected(
    item: dict, turns: tuple[Turn, ...], spans_s: tuple[Span, ...], spans: Callable[[str, dict], list[Span]], raw: bool
) -> tuple[RejectedAnswer, ...]:
    """The rejected answers, each different from the chosen one, which is the last turn."""
    name, entries = "rejected", item.get("rejected")
    if entries is None:
        return ()
    if not isinstance(entries, list) or not entries:
        what = "an empty list" if entries == [] else kind_of(entries)
        raise Bad(f"{what} instead of rejected answers", name, "list them, or leave the key out")
    if turns[-1].role != "assistant":
        raise Bad("rejected answers without a chosen one", name, "end the conversation with the chosen answer")
    before = len(spans_s) - len(span_marks(turns[-1]))
    chosen = _wording(turns[-1], before), spans_s[before:]
    found = []
    for k, entry in enumerate(entries):
        answer = _rejected_answer(entry, f"{name}[{k}]", before, spans, raw, turns[-1].written is not None)
        if (_wording(answer.turn, before), answer.spans_s) == chosen and not raw:
            raise Bad("the same as the chosen answer", f"{name}[{k}]", "make it worse, or leave it out")
        if answer.text_only and (answer.spans_s or chosen[1]):
            raise Bad("span marks in a pair that is text only", f"{name}[{k}].text_only", "leave that key out")
        found.append(answer)
    return tuple(found)


def _rejected_answer(
    entry: Any, name: str, before: int, spans: Callable[[str, dict], list[Span]], raw: bool, literal: bool
) -> RejectedAnswer:
    """One rejected answer; ``before`` spans stand in the turns before it."""
    if not isinstance(entry, dict):
        raise Bad(f"{kind_of(entry)} instead of an object", name, 'write {"factor": ..., "value": ..., "tgt": [...]}')
    if unknown := [key for key in entry if key not in REJECTED_KEYS]:
        raise Bad("unknown key", f"{name}.{unknown[0]}", f"known keys: {', '.join(REJECTED_KEYS)}")
    factor, text, text_only = entry.get("factor"), entry.get("value"), entry.get("text_only", False)
    for key, value in (("factor", factor), ("value", text)):
        if not isinstance(value, str) or not value.strip():
            what = "empty" if isinstance(value, str) else "missing" if value is None else kind_of(value)
            raise Bad(what, f"{name}.{key}", "write a string")
    if not isinstance(text_only, bool):
        raise Bad(f"{kind_of(text_only)} instead of true or false", f"{name}.text_only", "leave the key out for false")
    text = text if raw else own_span_marks(text)
    said, literal = text, literal and letter.marked_twice(text, entry.get("tgt"))
    text = letter.neutral_answer(text) if literal else _without_evidence(text, f"{name}.value")[0]
    if not text.strip() and not literal:
        raise Bad("empty answer", f"{name}.value", "write what the rejected answer says")
    key, marks = f"{name}.tgt", len(_SPAN.findall(text))
    tgt = spans(key, {key: entry["tgt"]}) if entry.get("tgt") is not None else []
    if len(tgt) != marks:
        what = f"{'more' if marks > len(tgt) else 'fewer'} span marks than spans: {marks} for {len(tgt)} spans"
        raise Bad(what, key, "write one start and one end a mark")
    (turn,), spans_s = _neutral([("assistant", text)], [], tgt)
    parts = (SpanMark(part.span + before) if isinstance(part, SpanMark) else part for part in turn.parts)
    written = letter.written_answer(said, before) if literal else None
    return RejectedAnswer(factor, Turn("assistant", tuple(parts), written), spans_s, text_only)


def _wording(turn: Turn, before: int) -> str:
    """The text of an answer with blanks evened out, and its marks; what two answers are compared by."""
    words = (f"<{part.span - before}>" if isinstance(part, SpanMark) else part for part in turn.parts)
    return " ".join("".join(words).split())


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise Bad(f"{kind_of(value)} instead of a number", name, "write seconds as a number")
    if not -1e15 < value < 1e15:  # also false for NaN; an integer may be too large for a float
        raise Bad(f"{value if isinstance(value, float) else 'an integer'} is not a time", name, "write finite seconds")
    return float(value) + 0.0  # -0.0 becomes 0.0


def _name(item: dict, key: str) -> str:
    value = item.get(key)
    if key == "id" and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if value is not None and (not isinstance(value, str) or (key == "id" and not value)):
        shown = kind_of(value) if value != "" else "an empty string"
        raise Bad(f"{shown} instead of a name", key, "write a string, or leave the key out")
    return value or ""


def _bytes(text: str) -> int:
    return len(text.encode(errors="replace"))


def kind_of(value: Any) -> str:
    """The type of a JSON value in JSON's own words, with its article."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
