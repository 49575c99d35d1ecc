"""Other groups' training files as records of our own schema, and what could not become one, with the reason.

In: a file of one of the ``FORMS``. Out: ``Imported``: objects that docs/annotations.md describes, each read back by the
schema's own parser. Times that stand in the text of an answer become span marks where ``videollm.reading`` is sure of
them and finds the same again in what is left. Knows no head and opens no video.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath, PurePosixPath
from typing import Any

from videollm.common.config import ConfigError, nearest, need
from videollm.common.files import Bad
from videollm.data.annotations import AnnotationError, kind_of, not_an_object, parse_record
from videollm.data.load import read_rows
from videollm.data.published import SPAN_MARKS
from videollm.data.record import neutral_json, place, plain_name
from videollm.reading.claims import kept
from videollm.reading.pairs import tell_spans
from videollm.reading.part import answer_part
from videollm.reading.quantities import quantities
from videollm.reading.spans import SPAN_TAGS, explain_spans, read_spans

QUESTION, ANSWER = "When does this happen in the video: '{query}'?", "It happens in {spans}."
SPAN, TIMES = SPAN_MARKS[0], ("s", "m", "h", "%")  # our own mark; units that make a number a time
SPEAKERS = {"human": "human", "user": "human", "gpt": "gpt", "assistant": "gpt", "system": "system"}
APART_S = 1e-6  # two readings of one time may differ so far
LATEST_S = 1e9  # no video is longer

Item = Mapping[str, Any]


@dataclass(frozen=True)
class Unusable:
    """Why a record is left out: one of a few ``kind``s, and what it is here."""

    kind: str
    detail: str


@dataclass
class Imported:
    """``records``: of our own schema. ``dropped``: {kind: {id: detail}}. ``mended``: {kind: count}."""

    rows: int
    records: list[dict] = field(default_factory=list)
    dropped: dict[str, dict[str, str]] = field(default_factory=dict)
    mended: Counter = field(default_factory=Counter)

    def report(self) -> dict[str, Any]:
        """For a file beside the records."""
        dropped = {kind: {"count": len(which), "records": which} for kind, which in self.dropped.items()}
        return {"rows": self.rows, "records": len(self.records), "mended": dict(self.mended), "dropped": dropped}

    def __str__(self) -> str:
        lost = sum(map(len, self.dropped.values()))
        lines = [f"{len(self.records)} records of {self.rows} rows, {lost} dropped"]
        lines += [f"  mended: {count} with a {kind}" for kind, count in self.mended.items()]
        for kind, which in self.dropped.items():
            name, detail = next(iter(which.items()))
            lines.append(f"  dropped: {len(which)}: {kind} ({name}: {detail:.200})")
        return "\n".join(lines)


def import_file(form: str, path: str | os.PathLike, videos: Path | None = None) -> Imported:
    """The records of a file of the form ``form``. ``videos``: the folder that absolute paths of videos are below.

    An id is the file's name with the line, and the number of the record where a line makes several.

    Raises:
        ConfigError: unknown form. AnnotationError: a file that cannot be read, and every row that is not of the form.
    """
    need(form in FORMS, f"FORM: {form!r} is not known; {nearest(form, list(FORMS), noun='forms')}")
    rows, problems = read_rows(path)
    found, said = Imported(len(rows)), {}
    for line, item in rows:
        try:
            if not isinstance(item, dict):
                raise AnnotationError([not_an_object(path, line, item)])
            made = list(FORMS[form](item))
        except Bad as bad:
            problems.append(f"{place(path, line)}: {bad}")
        except AnnotationError as error:
            problems += error.problems
        else:
            for number, one in enumerate(made, start=1):
                name = f"{plain_name(path).stem}:{line}" + f".{number}" * (len(made) > 1)
                _take(found, said, name, one, (path, line, videos))
    if rows and not found.records and (others := _forms_of(rows[0][1])) and form not in others:
        told = f"its first row is of {' or '.join(others)}"
        raise ConfigError(f"FORM: {path} is not of the form {form}; {told}: give that")
    if problems:
        raise AnnotationError(problems)
    return found


def _forms_of(item: Any) -> list[str]:
    """The forms of which a row can be, as far as records can be made of it."""

    def fits(form: str) -> bool:
        try:
            return any(isinstance(one, dict) for one in FORMS[form](item))
        except (Bad, AnnotationError):
            return False

    return [form for form in FORMS if isinstance(item, dict) and fits(form)]


def _take(
    found: Imported, said: dict[str, str], name: str, one: dict | Unusable, source: tuple[Any, int, Path | None]
) -> None:
    """Keep a record, or note why it is left out. ``said``: {what a record says: id of the first that does}."""
    path, line, videos = source
    if isinstance(one, dict):
        one = _finished(one | {"id": name}, path, line, videos, found.mended)
    if isinstance(one, dict):
        says = str([one.get(key) for key in ("video", "image", "conversations", "src", "tgt", "bound")])
        first = said.setdefault(says, name)
        if first != name:
            one = Unusable("said before", f"the same as {first}")
    if isinstance(one, Unusable):
        found.dropped.setdefault(one.kind, {})[name] = one.detail
    else:
        found.records.append(one)


def _finished(item: dict, path: Any, line: int, videos: Path | None, mended: Counter) -> dict | Unusable:
    """An object as our schema writes it, with paths below the folder of the videos."""
    for key in ("video", "image"):
        if isinstance(item.get(key), str):
            inside = _below(item[key], videos)
            if inside is None:
                return Unusable("a path that is not below the videos", f"{item[key]!r:.200}: name its folder, --videos")
            item = item | {key: inside}
    try:
        record = parse_record(item, line, path)
    except AnnotationError as error:
        return Unusable("refused by our schema", str(error).partition(": ")[2])
    mended.update(record.odd)
    return neutral_json(record)


def _below(name: str, videos: Path | None) -> str | None:
    """A path relative to the folder of the videos; None for an absolute one elsewhere."""
    path = PurePosixPath(name)
    if not path.is_absolute():
        return str(path)  # without "./"
    root = None if videos is None else PurePath(os.path.abspath(videos))
    return str(path.relative_to(root)) if root and path.is_relative_to(root) else None


# ---- moments: a query, its spans -------------------------------------------------------------------------------------


def _value(item: Item, key: str, kind: type | tuple[type, ...], what: str) -> Any:
    """A key that every row of a form has. Raises Bad."""
    value = item.get(key)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise Bad("missing" if key not in item else kind_of(value), key, f"a row of this form has {what} there")
    return value


def _moment(query: str, spans: Any, video: str, duration: float | None, **more: Any) -> dict | Unusable:
    """A question for a moment and its answer. ``spans``: [s, e] or a list of them."""
    query = " ".join(query.split()).strip(".").strip()
    spans = [spans] if isinstance(spans, list) and spans and not isinstance(spans[0], list) else spans
    if not query or not isinstance(spans, list) or not spans:
        return Unusable("no query" if not query else "no span", f"{video}: {query or spans!r:.80}")
    if not all(isinstance(span, list) and len(span) == 2 for span in spans):
        return Unusable("a span that is not [start, end]", f"{spans!r:.80}")
    answer = ANSWER.format(spans=" and ".join([SPAN] * len(spans)))
    turns = [{"from": "human", "value": f"<video>\n{QUESTION.format(query=query)}"}, {"from": "gpt", "value": answer}]
    item = {"video": video, "duration": duration, "task": "grounding", "tgt": [time for span in spans for time in span]}
    return item | {key: value for key, value in more.items() if value is not None} | {"conversations": turns}


def _timelens(item: Item) -> Iterator[dict | Unusable]:
    """TimeLens-100K: {"source", "video_path", "duration", "events": [{"query", "span"}]}, a record an event."""
    video, length = _value(item, "video_path", str, "a path"), _value(item, "duration", (int, float), "seconds")
    for event in _value(item, "events", list, "a list of events"):
        if not isinstance(event, dict):
            raise Bad(kind_of(event), "events", 'write {"query": ..., "span": [[start, end]]}')
        yield _moment(
            _value(event, "query", str, "a text"), event.get("span"), video, length, source=item.get("source")
        )


def _time_r1(item: Item) -> Iterator[dict | Unusable]:
    """Time-R1: {"video", "duration", "timestamp", "sentence", ...}. Of a part of a video, which its trainer cuts out,
    the times count from ``video_start``: they become times of the whole video, and the part its ``bound``."""
    video, query = _value(item, "video", str, "a path"), _value(item, "sentence", str, "a text")
    span, length = _value(item, "timestamp", list, "[start, end]"), _value(item, "duration", (int, float), "seconds")
    more = {key: item.get(key) for key in ("qid", "difficulty")}
    start, end = item.get("video_start"), item.get("video_end")
    if start is None and end is None:
        yield _moment(query, span, video, length, **more)
        return
    bound = [_value(item, key, (int, float), "seconds, or null") for key in ("video_start", "video_end")]
    if not all(isinstance(time, int | float) and abs(time) < LATEST_S for time in (*span, *bound)):
        raise Bad("no two times", "timestamp", "a row of this form has [start, end] there, in seconds")
    yield _moment(query, [time + bound[0] for time in span], video, None, bound=bound, **more)


def _videomind(item: Item) -> Iterator[dict | Unusable]:
    """VideoMind, moment_detr: {"vid", "query", "duration", "relevant_windows"} lines."""
    video, length = _value(item, "vid", str, "a name"), _value(item, "duration", (int, float), "seconds")
    query = _value(item, "query", str, "a text")
    yield _moment(query, item.get("relevant_windows"), _file(video), length, qid=item.get("qid"))


def _unitime(item: Item) -> Iterator[dict | Unusable]:
    """UniTime: {"qid", "id", "annos": [{"query", "window"}], "duration", "video_path"}, a record a query."""
    length = _value(item, "duration", (int, float), "seconds")
    video = item.get("video_path") or _file(_value(item, "id", str, "a name"))
    for anno in _value(item, "annos", list, "a list of queries"):
        if not isinstance(anno, dict):
            raise Bad(kind_of(anno), "annos", 'write {"query": ..., "window": [[start, end]]}')
        if item.get("video_start"):
            yield Unusable("a part of a video", "the file does not say from where its times count (video_start)")
        else:
            query = _value(anno, "query", str, "a text")
            yield _moment(query, anno.get("window"), video, length, qid=item.get("qid"))


def _file(video: str) -> str:
    """The file of a video's name."""
    return video if PurePosixPath(video).suffix.lower() in (".mp4", ".mkv", ".avi", ".webm") else f"{video}.mp4"


# ---- conversations with times as text --------------------------------------------------------------------------------


def _conversation(item: Item) -> Iterator[dict | Unusable]:
    """LLaMA-Factory and ms-swift: ``messages``, ``conversations``, or a question and its answer; ``videos``."""
    videos = _paths(item, "videos", "video")
    images = _paths(item, "images", "image")
    turns, duration = [], item.get("duration")
    for speaker, text, shown in _turns(item):
        videos += shown
        if speaker not in SPEAKERS:
            yield Unusable("a turn of neither user nor assistant", f"{speaker!r:.40}")
            return
        turns.append({"from": SPEAKERS[speaker], "value": text})
    if len(videos) + bool(images) != 1:
        detail = f"{len(videos)} videos, {len(images)} images"
        yield Unusable("not one video, nor images alone", detail)
        return
    spans: list[float] = []
    for turn in (turn for turn in turns if turn["from"] == "gpt"):
        marked = mark_times(turn["value"], duration if isinstance(duration, int | float) else None)
        if isinstance(marked, Unusable):
            yield marked
            return
        turn["value"], own = marked
        spans += [time for span in own for time in span]
    visual = {"video": videos[0]} if videos else {"image": images}
    task = "grounding" if spans else ""
    yield visual | {"duration": duration, "task": task, "tgt": spans, "conversations": turns}


def _paths(item: Item, *keys: str) -> list[str]:
    found = next((item[key] for key in keys if item.get(key)), [])
    found = [found] if isinstance(found, str) else found
    if not isinstance(found, list) or not all(isinstance(path, str) for path in found):
        raise Bad(kind_of(found), keys[0], "write a list of paths")
    return list(found)


def _turns(item: Item) -> Iterator[tuple[str, str, list[str]]]:
    """(speaker, text, videos shown in it) of each turn."""
    listed = item.get("messages", item.get("conversations"))
    if listed is None:
        yield from _pair_turns(item)
        return
    if not isinstance(listed, list) or not listed:
        raise Bad(kind_of(listed), "messages", "write a list of turns")
    for turn in listed:
        turn = turn if isinstance(turn, dict) else {}
        speaker, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
        parts = [content] if isinstance(content, str) else content
        if not isinstance(speaker, str) or not isinstance(parts, list):
            raise Bad("a turn without a speaker or a text", "messages", 'write {"role": "user", "content": "..."}')
        parts = [part if isinstance(part, dict) else {"text": part} for part in parts]
        shown = [part["video"] for part in parts if isinstance(part.get("video"), str)]
        text = "".join(f"{'<video>' * ('video' in part)}{part.get('text') or ''}" for part in parts)
        yield speaker, text, shown


def _pair_turns(item: Item) -> Iterator[tuple[str, str, list[str]]]:
    """Of a question and its answer, with earlier pairs in ``history``."""
    answer = next((item[key] for key in ("response", "output") if isinstance(item.get(key), str)), None)
    asked = [item[key] for key in ("query", "instruction", "input") if isinstance(item.get(key), str) and item[key]]
    if answer is None or not asked:
        raise Bad("missing", "messages", "a row has messages, conversations, or a question and an answer")
    if item.get("system"):
        yield "system", str(item["system"]), []
    history = item.get("history") or []
    if not isinstance(history, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in history):
        raise Bad("not a list of [question, answer]", "history", "write pairs, or leave the key out")
    for pair in history:
        yield from zip(("user", "assistant"), map(str, pair), ([], []), strict=True)
    yield "user", "\n".join(asked), []
    yield "assistant", answer, []


def mark_times(text: str, duration_s: float | None) -> tuple[str, list[list[float]]] | Unusable:
    """An answer with a mark in place of each span that it tells, and the spans; as it is where it tells no time."""
    part, _ = answer_part(text, SPAN_TAGS)
    at, told = text.rfind(part), kept(tell_spans(part, duration_s), part)
    reading = explain_spans(text, duration_s)
    spans = [one.span for one in told]
    if not reading.value and not any(q.unit in TIMES for q in quantities(part)):
        return text, []
    if not reading.value:
        return Unusable("times that are no sure span", f"{part.strip()!r:.160}")
    if spans != reading.value or at < 0 or "JSON" in reading.rule:
        return Unusable("times in a form that cannot be marked", f"{reading.rule}: {part.strip()!r:.160}")
    marked, again, place_ = "", "", 0
    for one in told:
        before, place_ = part[place_ : one.start], one.end
        marked += f"{before}{SPAN}"
        again += f"{before}{one.span[0]!r} - {one.span[1]!r} seconds"
    marked, again = marked + part[place_:], again + part[place_:]
    if not _alike(read_spans(again, duration_s), spans):
        return Unusable("times that do not come back", f"{part.strip()!r:.160}")
    return text[:at] + marked + text[at + len(part) :], spans


def _alike(one: Iterable[list[float]], other: Iterable[list[float]]) -> bool:
    one, other = list(one), list(other)
    pairs = zip(one, other, strict=False)
    return len(one) == len(other) and all(abs(a - b) <= APART_S for x, y in pairs for a, b in zip(x, y, strict=True))


FORMS: Mapping[str, Callable[[Item], Iterator[dict | Unusable]]] = {
    "timelens": _timelens,
    "time_r1": _time_r1,
    "videomind": _videomind,
    "unitime": _unitime,
    "llama_factory": _conversation,
    "ms_swift": _conversation,
}
