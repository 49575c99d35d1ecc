"""Charades-STA: the one span a sentence describes, in videos of about 30 s (test set: 3720 sentences, 1334 videos).

Ground truth: the data set's ``VID start end##sentence`` lines, UMT's ``{"database": ...}`` or TimeChat's
``{"annotations": [...]}``. Predictions, one file of each kind (any variant scores any of them)::

    {"3MSZA": {"person turn a light on.": {"start": 21.31, "end": 29.67, "conf": 1}}}
    {"0": {"timestamp": [21.31, 29.67], "vid": "3MSZA.mp4", "query": "person turn a light on. "}, "20": []}
    [{"idx": 0, "video": "3MSZA.mp4", "a": "<evi> 1.0 - 2.0 </evi>The event happens in 3.0 - 4.0 seconds.", ...}]
"""

import csv
import io
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from all_benchmark_eval.benchmark import (
    WITHOUT_BREAK,
    Benchmark,
    BenchmarkError,
    Layout,
    Options,
    Scores,
    read_json,
    read_text,
    worded,
)
from all_benchmark_eval.metrics.intervals import iou_hull, iou_union
from all_benchmark_eval.metrics.moments import (
    THRESHOLDS,
    Located,
    Moments,
    State,
    as_object,
    corrected_grounding,
    first_span,
    grounding,
    missing_note,
    moment_questions,
    seconds,
    table,
    true_spans,
)
from all_benchmark_eval.metrics.parsing import evidence_and_answer_spans
from videollm.common.answers import AnswerLine

DURATIONS = "Charades_v1_test.csv"  # of the Charades data set: columns id, length
WORDINGS = {
    "distime": (
        "Give you a textual query: '{query}'. When does the described content occur in the video? "
        "Please return the timestamp in seconds."
    ),
    "d2vlm": (
        "You are given a video about indoor activities. Watch the video carefully and find a visual event described by "
        "the sentence: '{sentence}'. The format of your response should be: "
        "'The event happens in <start time> - <end time>'."
    ),
    "plain": "When does this happen in the video: '{query}'?",
}
_LINE = re.compile(r"(\S+) (\S+) (\S+?)##(.*)")

Query = tuple[str, str, list]  # video, sentence, [start, end]


class Charades(Benchmark):
    """Recall of one span at IoU 0.3, 0.5, 0.7 and mean IoU."""

    name = "charades"
    title = "Charades-STA"
    layout = Layout(("charades_sta_test.txt", "charades_sta_test.json"))
    settings = WITHOUT_BREAK
    variants = ("distime", "d2vlm", "timechat", "timechat_sample")

    def load(self, path: Path) -> Moments:
        """A sentence's id is ``<video>/<sentence>``.

        Lengths of the videos come from UMT's json, else from ``Charades_v1_test.csv`` (of the Charades data set) in the
        same folder, else they are unknown: the corrected protocol then cuts no span at the end.
        """
        text = read_text(path)
        if text.lstrip()[:1] != "{":
            queries, lengths = list(_text_queries(text, path)), _lengths_beside(path)
        else:
            data = as_object(read_json(path), f"{path}")
            if "database" in data:
                queries, lengths = _umt_queries(as_object(data["database"], f"{path}: database"), path)
            elif "annotations" in data:
                queries, lengths = list(_timechat_queries(data["annotations"], path)), _lengths_beside(path)
            else:
                raise BenchmarkError(f"{path}: no Charades-STA annotations (neither 'database' nor 'annotations')")
        if not queries:
            raise BenchmarkError(f"{path}: no sentence in it")
        videos, sentences, spans = map(list, zip(*queries, strict=True))
        ids = [f"{video}/{sentence.strip()}" for video, sentence in zip(videos, sentences, strict=True)]
        if len(set(ids)) < len(ids):
            twice = Counter(ids).most_common(1)[0][0]
            raise BenchmarkError(f"{path}: {twice!r} stands twice; answers to it could not be told apart")
        durations = np.array([lengths.get(video, np.nan) for video in videos])
        return Moments(ids, videos, sentences, true_spans(spans, ids, path), durations)

    def questions(self, truth: Moments, wording: str) -> list[dict]:
        """One question a sentence; videos are ``<video>.mp4``."""
        wording = worded(WORDINGS, wording)
        return moment_questions(truth.ids, truth.videos, truth.queries, truth.durations, wording)

    def from_answers(self, truth: Moments, answers: Mapping[str, AnswerLine], wording: str) -> dict:
        """The first form above, for every wording; an answer without a span is written as [-1, -1]."""
        found: dict[str, dict] = {}
        for name, video, sentence in zip(truth.ids, truth.videos, truth.queries, strict=True):
            answer = answers.get(name)
            if answer is not None and not answer.error:
                start, end = (answer.scored_spans or [[-1, -1]])[0]
                found.setdefault(video, {})[sentence] = {"start": start, "end": end, "conf": 1}
        return found

    def read(self, path: Path, truth: Moments) -> Located:
        """Any of the three forms."""
        data = read_json(path)
        located = Located.nowhere(len(truth))
        if isinstance(data, list):
            entries = _d2vlm_entries(data, path)
        elif isinstance(data, dict) and data and all(map(_is_numbered, data.values())):
            entries = ((f"{path}: {key!r}", key, value) for key, value in data.items())
        else:
            _put_by_sentence(as_object(data, f"{path}"), truth, located, path)
            return located
        seen = set()
        for where, key, entry in entries:
            row = _row(where, key, entry, truth)
            if row in seen:
                raise BenchmarkError(f"{where}: there are two predictions for query {key}")
            seen.add(row)
            spans = entry["timestamp"] if isinstance(entry, dict) else entry
            located.put(row, first_span(spans))
        return located

    def score(self, truth: Moments, predictions: Located, options: Options) -> Scores:
        """Metrics in percent; ``corrected``: see ``moments.corrected_grounding``. ``published``, by variant:

        * ``distime`` (from UMT): IoU in float32; recall over N + 1e-5; each IoU of mIoU is floored to whole percents.
        * ``d2vlm``: mean over the *parsed* predictions only.
        * ``timechat``: mean over all queries; its script prints no mIoU.
        * ``timechat_sample``: the same over the queries in the prediction file (its option ``--sample``). These are all
          there are, under ``corrected`` as well.
        """
        if options.variant == "timechat_sample":
            asked = predictions.state != State.MISSING
            truth, predictions = truth.select(asked), predictions.select(asked)
        if options.protocol == "corrected":
            scores = corrected_grounding(truth, predictions)
        else:
            scores = PUBLISHED[options.variant](truth, predictions)
        if options.variant == "timechat_sample":
            scores.denominator = "the queries in the prediction file"
        return scores


# ---- published scores ------------------------------------------------------------------------------------------------


def _distime(truth: Moments, located: Located) -> Scores:
    raw = iou_union(truth.spans, located.spans, np.float32)
    stops = located.parsed & np.isnan(raw)
    ious = np.where(located.parsed & ~stops, raw, np.float32(0))  # [N] float32
    scores = grounding(truth.ids, ious, located.counts())
    hits = {f"{t:g}": int((ious >= np.float32(t)).sum()) for t in THRESHOLDS}
    floored = np.floor(ious.astype(np.float64) * 100) / 100
    scores.details = {"hits": hits, "unfloored mIoU": scores.metrics["mIoU"], "N": len(truth)}
    scores.metrics |= {f"R1@{t}": 100 * count / (len(truth) + 1e-5) for t, count in hits.items()}
    scores.metrics["mIoU"] = 100 * float(floored.sum()) / len(truth)
    scores.per_sample["mIoU"] = table(truth.ids, floored)
    scores.denominator = "all queries + 1e-5 (recall), all queries (mIoU)"
    scores.notes = ["mIoU is floored to whole percents query by query, as published", *missing_note(located.state)]
    if stops.any():
        first = truth.ids[int(stops.argmax())]
        scores.notes.append(
            f"{int(stops.sum())} spans with 0/0 as IoU score 0 ({first!r}); the published script stops at the first"
        )
    return scores


def _d2vlm(truth: Moments, located: Located) -> Scores:
    parsed = located.parsed
    kept = truth.select(parsed)
    scores = grounding(kept.ids, iou_hull(kept.spans, located.spans[parsed]), located.counts())
    scores.denominator = f"the {len(kept)} parsed predictions only"
    return scores


def _timechat(truth: Moments, located: Located) -> Scores:
    ious = np.where(located.parsed, iou_hull(truth.spans, located.spans), 0.0)
    scores = grounding(truth.ids, ious, located.counts())
    scores.notes = ["mIoU is not printed by TimeChat's script"]
    return scores


PUBLISHED: dict[str, Callable[[Moments, Located], Scores]] = {
    "distime": _distime,
    "d2vlm": _d2vlm,
    "timechat": _timechat,
    "timechat_sample": _timechat,
}


# ---- annotation files ------------------------------------------------------------------------------------------------


def _text_queries(text: str, path: Path) -> Iterable[Query]:
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        match = _LINE.fullmatch(line)
        try:
            video, start, end, sentence = match.groups()
            yield video, sentence, [float(start), float(end)]
        except (AttributeError, ValueError):
            raise BenchmarkError(f"{path}:{number}: not 'VID start end##sentence': {line[:80]!r}") from None


def _umt_queries(database: Mapping[str, Any], path: Path) -> tuple[list[Query], dict[str, float]]:
    queries, lengths = [], {}
    for video, entry in database.items():
        where = f"{path}: {video!r}"
        entry = as_object(entry, where, ("duration", "annotations"))
        length = seconds(entry["duration"])
        if length is None or length <= 0 or not isinstance(entry["annotations"], list):
            raise BenchmarkError(f"{where}: needs a duration in seconds and a list of annotations")
        lengths[video] = length
        for item in entry["annotations"]:
            item = as_object(item, where, ("label", "segment"))
            queries.append((video, _sentence(item["label"], where), item["segment"]))
    return queries, lengths


def _timechat_queries(annotations: Any, path: Path) -> Iterable[Query]:
    if not isinstance(annotations, list):
        raise BenchmarkError(f"{path}: annotations is not a list")
    for place, item in enumerate(annotations):
        where = f"{path}: annotations[{place}]"
        item = as_object(item, where, ("image_id", "caption", "timestamp", "id"))
        if item["id"] != place:
            raise BenchmarkError(f"{where}: its id is {item['id']!r}; ids must count the queries from 0")
        yield _stem(item["image_id"]), _sentence(item["caption"], where), item["timestamp"]


def _sentence(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise BenchmarkError(f"{where}: the sentence is not a text")
    return value


def _lengths_beside(path: Path) -> dict[str, float]:
    """Length of each video, from the Charades data set's own table in the same folder; empty if it is not there."""
    beside = Path(path).with_name(DURATIONS)
    if not beside.is_file():
        return {}
    rows = csv.DictReader(io.StringIO(read_text(beside), newline=""))
    try:
        return {row["id"]: float(row["length"]) for row in rows}
    except (KeyError, TypeError, ValueError) as error:
        raise BenchmarkError(f"{beside}: not the table of Charades (columns id and length): {error!r}") from None


# ---- prediction files ------------------------------------------------------------------------------------------------


def _put_by_sentence(data: Mapping[str, Any], truth: Moments, located: Located, path: Path) -> None:
    """``{video: {sentence: {"start", "end"}}}``."""
    rows = {name: row for row, name in enumerate(truth.ids)}
    for video, sentences in data.items():
        for sentence, span in as_object(sentences, f"{path}: {video!r}").items():
            where = f"{path}: {video!r}: {sentence[:200]!r}"
            row = rows.get(f"{video}/{sentence.strip()}")
            if row is None:
                raise BenchmarkError(f"{where}: no sentence of the annotations is this; are they of another split?")
            if located.state[row] != State.MISSING:
                raise BenchmarkError(f"{where}: the sentence stands twice for this video")
            span = as_object(span, where, ("start", "end"))
            located.put(row, [span["start"], span["end"]])


def _is_numbered(entry: Any) -> bool:
    """Whether an entry is of the second form, keyed by the number of the query."""
    return isinstance(entry, list) or (isinstance(entry, dict) and "timestamp" in entry)


def _row(where: str, key: Any, entry: Any, truth: Moments) -> int:
    """The number of a query, held against the video that the entry names."""
    if not str(key).isdecimal() or int(key) >= len(truth):
        raise BenchmarkError(f"{where}: the annotations have queries 0 to {len(truth) - 1}, not {key!r}")
    row = int(key)
    if isinstance(entry, dict) and "vid" in entry and _stem(entry["vid"]) != truth.videos[row]:
        raise BenchmarkError(
            f"{where}: is about video {entry['vid']!r}, but query {row} of the annotations is about "
            f"{truth.videos[row]!r}; are they in another order?"
        )
    return row


def _d2vlm_entries(samples: list, path: Path) -> Iterable[tuple[str, Any, dict]]:
    """D2VLM's answers as (place, number of the query, {"timestamp", "vid"}); spec METRICS 9."""
    for place, sample in enumerate(samples):
        where = f"{path}: item {place + 1}"
        sample = as_object(sample, where, ("idx", "video", "a"))
        if not isinstance(sample["a"], str):
            raise BenchmarkError(f"{where}: the answer 'a' is not a text")
        evidence, answer = evidence_and_answer_spans(sample["a"])
        yield where, sample["idx"], {"timestamp": (answer or evidence)[:1], "vid": sample["video"]}


def _stem(video: Any) -> str:
    return PurePosixPath(str(video)).stem


TASK = Charades()
