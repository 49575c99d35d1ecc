"""Charades-STA: the one span a sentence describes, in videos of about 30 s (test set: 3720 sentences, 1334 videos).

Ground truth: the data set's ``VID start end##sentence`` lines, UMT's ``{"database": ...}`` or TimeChat's
``{"annotations": [...]}``. Predictions, one file of each kind (any variant scores any of them)::

    {"3MSZA": {"person turn a light on.": {"start": 21.31, "end": 29.67, "conf": 1}}}
    {"0": {"timestamp": [21.31, 29.67], "vid": "3MSZA.mp4", "query": "person turn a light on. "}, "20": []}
    [{"idx": 0, "video": "3MSZA.mp4", "a": "<evi> 1.0 - 2.0 </evi>The event happens in 3.0 - 4.0 seconds.", ...}]
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from all_benchmark_eval.benchmark import BenchmarkError, Layout, Options, Scores, read_json, read_text
from all_benchmark_eval.items import Answers, answered, as_object, need, read_table, seconds
from all_benchmark_eval.metrics import moments
from all_benchmark_eval.metrics.intervals import iou_hull, iou_union
from all_benchmark_eval.metrics.moments import THRESHOLDS, Located, Moments, State, grounding
from all_benchmark_eval.metrics.parsing import evidence_and_answer_spans

DURATIONS = "Charades_v1_test.csv"  # of the Charades data set: columns id, length
_LINE = re.compile(r"(\S+) (\S+) (\S+?)##(.*)")

Query = tuple[str, str, list]  # video, sentence, [start, end]


class Charades(moments.MomentBenchmark):
    """Recall of one span at IoU 0.3, 0.5, 0.7 and mean IoU."""

    name = "charades"
    title = "Charades-STA"
    layout = Layout(("charades_sta_test.txt", "charades_sta_test.json"))
    wordings = moments.published_wordings(" about indoor activities")
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
        rows = ((f"{v}/{text.strip()}", v, text, span, lengths.get(v, np.nan)) for v, text, span in queries)
        return Moments.of(rows, path)

    def from_answers(self, truth: Moments, answers: Answers, wording: str) -> dict:
        """The first form above, for every wording; an answer without a span is written as [-1, -1]."""
        found: dict[str, dict] = {}
        for answer, _, video, sentence in answered(answers, truth.ids, truth.videos, truth.queries):
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
            need(row not in seen, f"{where}: there are two predictions for query {key}")
            seen.add(row)
            located.put(row, entry["timestamp"] if isinstance(entry, dict) else entry)
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
            scores = moments.corrected_grounding(truth, predictions)
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
    several = lambda spans, true: iou_union(true, spans, np.float32)  # noqa: E731
    scores = grounding(truth, located, ious, top=moments.top_recalls(truth.spans, located, several))
    hits = {f"{t:g}": int((ious >= np.float32(t)).sum()) for t in THRESHOLDS}
    floored = np.floor(ious.astype(np.float64) * 100) / 100
    scores.details = {"hits": hits, "unfloored mIoU": scores.metrics["mIoU"], "N": len(truth)}
    scores.metrics |= {f"R1@{t}": 100 * count / (len(truth) + 1e-5) for t, count in hits.items()}
    scores.metrics["mIoU"] = 100 * float(floored.sum()) / len(truth)
    scores.per_sample["mIoU"] = moments.table(truth.ids, floored)
    scores.denominator = "all queries + 1e-5 (recall), all queries (mIoU)"
    scores.notes.append("mIoU is floored to whole percents query by query, as published")
    if missing := located.counts()["missing"]:
        scores.notes.append(f"{missing} without a prediction score 0; the published script stops at the first")
    if stops.any():
        first = truth.ids[int(stops.argmax())]
        odd = f"{int(stops.sum())} spans with 0/0 as IoU score 0 ({first!r})"
        scores.notes.append(f"{odd}; the published script stops at the first")
    return scores


def _d2vlm(truth: Moments, located: Located) -> Scores:
    scores = grounding(truth, located, iou_hull(truth.spans, located.spans), keep=located.parsed)
    scores.denominator = f"the {int(located.parsed.sum())} parsed predictions only"
    return scores


def _timechat(truth: Moments, located: Located) -> Scores:
    ious = np.where(located.parsed, iou_hull(truth.spans, located.spans), 0.0)
    scores = grounding(truth, located, ious)
    scores.notes += ["mIoU is not printed by TimeChat's script"]
    return scores


PUBLISHED = {"distime": _distime, "d2vlm": _d2vlm, "timechat": _timechat, "timechat_sample": _timechat}


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
        good = length and length > 0 and isinstance(entry["annotations"], list)
        need(good, f"{where}: needs a duration in seconds and a list of annotations")
        lengths[video] = length
        for item in entry["annotations"]:
            item = as_object(item, where, ("label", "segment"))
            queries.append((video, _sentence(item["label"], where), item["segment"]))
    return queries, lengths


def _timechat_queries(annotations: Any, path: Path) -> Iterable[Query]:
    need(isinstance(annotations, list), f"{path}: annotations is not a list")
    for place, item in enumerate(annotations):
        where = f"{path}: annotations[{place}]"
        item = as_object(item, where, ("image_id", "caption", "timestamp", "id"))
        need(item["id"] == place, f"{where}: its id is {item['id']!r}; ids must count the queries from 0")
        yield _stem(item["image_id"]), _sentence(item["caption"], where), item["timestamp"]


def _sentence(value: Any, where: str) -> str:
    need(isinstance(value, str), f"{where}: the sentence is not a text")
    return value


def _lengths_beside(path: Path) -> dict[str, float]:
    """Length of each video, from the Charades data set's own table in the same folder; empty if it is not there."""
    beside = Path(path).with_name(DURATIONS)
    if not beside.is_file():
        return {}
    try:
        return {row["id"]: float(row["length"]) for row in read_table(beside)}
    except (KeyError, TypeError, ValueError) as error:
        raise BenchmarkError(f"{beside}: not the table of Charades (columns id and length): {error!r}") from None


# ---- prediction files ------------------------------------------------------------------------------------------------


def _put_by_sentence(data: Mapping[str, Any], truth: Moments, located: Located, path: Path) -> None:
    """``{video: {sentence: {"start", "end"}}}``."""
    for video, sentences in data.items():
        for sentence, span in as_object(sentences, f"{path}: {video!r}").items():
            where = f"{path}: {video!r}: {sentence[:200]!r}"
            row = truth.rows.get(f"{video}/{sentence.strip()}")
            need(row is not None, f"{where}: no sentence of the annotations is this; are they of another split?")
            need(located.state[row] == State.MISSING, f"{where}: the sentence stands twice for this video")
            span = as_object(span, where, ("start", "end"))
            located.put(row, [span["start"], span["end"]])


def _is_numbered(entry: Any) -> bool:
    """Whether an entry is of the second form, keyed by the number of the query."""
    return isinstance(entry, list) or (isinstance(entry, dict) and "timestamp" in entry)


def _row(where: str, key: Any, entry: Any, truth: Moments) -> int:
    """The number of a query, held against the video that the entry names."""
    known = str(key).isdecimal() and int(key) < len(truth)
    need(known, f"{where}: the annotations have queries 0 to {len(truth) - 1}, not {key!r}")
    row = int(key)
    true = truth.videos[row]
    video = entry["vid"] if isinstance(entry, dict) and "vid" in entry else f"{true}.mp4"
    other = f"is about video {video!r}, but query {row} of the annotations is about {true!r}"
    need(_stem(video) == true, f"{where}: {other}; are they in another order?")
    return row


def _d2vlm_entries(samples: list, path: Path) -> Iterable[tuple[str, Any, dict]]:
    """D2VLM's answers as (place, number of the query, {"timestamp", "vid"}); spec METRICS 9."""
    for place, sample in enumerate(samples):
        where = f"{path}: item {place + 1}"
        sample = as_object(sample, where, ("idx", "video", "a"))
        need(isinstance(sample["a"], str), f"{where}: the answer 'a' is not a text")
        evidence, answer = evidence_and_answer_spans(sample["a"])
        yield where, sample["idx"], {"timestamp": (answer or evidence)[:1], "vid": sample["video"]}


def _stem(video: Any) -> str:
    return PurePosixPath(str(video)).stem


TASK = Charades()
