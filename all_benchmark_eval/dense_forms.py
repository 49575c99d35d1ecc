"""Files of dense captioning that several benchmarks share: the events of a video, each with a span and a sentence.

In: a ``Content`` and the ``DenseTruth`` that it is held against. Out: ``DenseAnswers``, or the videos of
``DenseTruth.of``. A video is found by whatever name a file has for it. Times stay as they are, fractions included.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from all_benchmark_eval.forms import Content, Form, entries, has_key, need
from all_benchmark_eval.items import Videos, are_texts, as_object, duration_of, read_span, seconds
from all_benchmark_eval.metrics.dense_scores import DenseAnswers, DenseTruth
from all_benchmark_eval.metrics.moments import State

Event = tuple[list[float], str]  # [start, end], caption
Found = tuple[str, str, list[Event], str | None]  # place in the file, video, events, text of the answer if it has one
Video = tuple[str, float | None, Any, list[str]]  # a row of ``DenseTruth.of``: name, seconds, spans, captions


# ---- predictions -----------------------------------------------------------------------------------------------------


def answers_of(truth: DenseTruth, found: Iterable[Found], again: str = "") -> DenseAnswers:
    """Events by video. Raises BenchmarkError for a video that is not there or twice.

    ``again``: what a note says where the last of several counts; then a video may stand twice.
    """
    answers, videos, twice = DenseAnswers.none(len(truth)), Videos(truth.names), 0
    for where, name, events, told in found:
        row = videos.find(name, where)
        known = answers.state[row] != State.MISSING
        need(again or not known, f"{where}: the video {truth.names[row]!r} stands twice")
        twice += int(known)
        answers.put(row, [span for span, _ in events], [text for _, text in events], told)
    answers.notes.extend([f"{twice} {again}"] * (twice > 0))
    return answers


def _reader(key: str, inside: str | None = None) -> Callable[[Content, DenseTruth], DenseAnswers]:
    """Reads {video: [{"timestamp": [s, e], ``key``: caption}]}, ``inside`` a key of the file.

    An event without a usable span or caption is left out and counted in a note.
    """

    def read(content: Content, truth: DenseTruth) -> DenseAnswers:
        found, odd = [], 0
        videos = content.object[inside] if inside else content.object
        for name, listed in as_object(videos, f"{content.path}: {inside}").items():
            where = f"{content.path}: {name!r:.200}"
            need(isinstance(listed, list), f"{where}: expected a list of events, got {type(listed).__name__}")
            events = list(_usable((as_object(event, where, ("timestamp", key)) for event in listed), key))
            odd += len(listed) - len(events)
            found.append((where, name, events, None))
        answers = answers_of(truth, found)
        answers.notes.extend([f"{odd} events without [start, end] and a text are left out"] * (odd > 0))
        return answers

    return read


def _usable(events: Iterable[Mapping[str, Any]], key: str) -> Iterator[Event]:
    for event in events:
        span = read_span(event["timestamp"])
        if span is not None and isinstance(event[key], str):
            yield list(span), event[key]


def _is_challenge(content: Content) -> bool:
    return has_key("results")(content) and isinstance(content.object["results"], dict)


def _is_by_video(content: Content) -> bool:
    """Also an empty file, of a model that answered nothing."""
    key, value = content.entry or ("", [])
    return content.object is not None and isinstance(value, list) and key not in ("results", "annotations")


CHALLENGE = Form(
    "ActivityNet challenge", '{"version", "results": {video: [{"sentence", "timestamp"}]}}', _is_challenge,
    _reader("sentence", "results"),
)  # fmt: skip
TIMECHAT = Form(
    "TimeChat, TRACE", '{video: [{"timestamp", "caption"}]}',
    _is_by_video, _reader("caption"),
)  # fmt: skip
BY_VIDEO = (CHALLENGE, TIMECHAT)


# ---- annotations -----------------------------------------------------------------------------------------------------


def read_videos(content: Content) -> Iterator[tuple[str, str, float, list[str], Any]]:
    """(place, video, seconds, sentences, timestamps) of each video of ActivityNet Captions' own json."""
    for video, entry in as_object(content.object, f"{content.path}").items():
        where = f"{content.path}: {video!r:.200}"
        entry = as_object(entry, where, ("duration", "timestamps", "sentences"))
        need(are_texts(entry["sentences"]), f"{where}: sentences is not a list of texts")
        yield where, video, duration_of(entry, where), entry["sentences"], entry["timestamps"]


def _captions(content: Content) -> Iterator[Video]:
    return ((video, duration, spans, texts) for _, video, duration, texts, spans in read_videos(content))


def _coco(content: Content) -> Iterator[Video]:
    """Each video of the ``annotations`` list, its captions joined by ". "."""
    annotations = content.object["annotations"]
    need(isinstance(annotations, list), f"{content.path}: annotations is not a list")
    for number, entry in enumerate(annotations):
        where = f"{content.path}: annotations[{number}]"
        entry = as_object(entry, where, ("image_id", "segments", "pure_cap"))
        name, text = entry["image_id"], entry["pure_cap"]
        need(isinstance(name, str) and isinstance(text, str), f"{where}: image_id and pure_cap must be texts")
        yield name, seconds(entry.get("duration")), entry["segments"], text.split(". ")


def _database(content: Content) -> Iterator[Video]:
    """Each validation video of YouCook2's own file."""
    for video, entry in as_object(content.object["database"], f"{content.path}: database").items():
        where = f"{content.path}: {video!r:.200}"
        entry = as_object(entry, where, ("subset", "annotations"))
        if entry["subset"] == "validation":
            need(isinstance(entry["annotations"], list), f"{where}: annotations is not a list")
            events = [as_object(event, where, ("segment", "sentence")) for event in entry["annotations"]]
            spans, texts = [e["segment"] for e in events], [e["sentence"] for e in events]
            yield f"{video}.mp4", seconds(entry.get("duration")), spans, texts


def _is_captions(key: str, value: Any) -> bool:
    return isinstance(value, dict) and ("sentences" in value or "timestamps" in value)


def _truth(videos: Callable[[Content], Iterator[Video]]) -> Callable[[Content], DenseTruth]:
    return lambda content: DenseTruth.of(videos(content), content.path)


TRUTHS = (
    Form(
        "ActivityNet Captions, PDVC", '{video: {"duration", "timestamps", "sentences"}}', entries(_is_captions),
        _truth(_captions),
    ),
    Form(
        "TimeChat, Vid2Seq", '{"annotations": [{"image_id", "duration", "segments", "pure_cap"}]}',
        has_key("annotations"), _truth(_coco),
    ),
    Form(
        "YouCook2", '{"database": {video: {"subset", "duration", "annotations"}}}', has_key("database"),
        _truth(_database),
    ),
)  # fmt: skip
