"""ActivityNet Captions, moment retrieval: the first span found for each sentence of a video.

Ground truth ``{video: {"duration", "timestamps": [[s, e], ..], "sentences": [..]}}`` (val_2: 17031 sentences);
predictions ``{"results": {"<video>-<i>": {"timestamp": [[s, e], ..]}}}``, i counting the video's sentences from 0::

    {"results": {"v_uqiMw7tQ1Cc-0": {"video_id": "v_uqiMw7tQ1Cc", "anno_id": 0, "timestamp": [[0.02, 7.32]]}}}
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from all_benchmark_eval.benchmark import Layout, Options, Scores
from all_benchmark_eval.items import Answers, answered, are_texts, as_object, duration_of, need, read_object
from all_benchmark_eval.metrics.intervals import iou_epsilon
from all_benchmark_eval.metrics.moments import (
    Located,
    MomentBenchmark,
    Moments,
    corrected_grounding,
    grounding,
    top_recalls,
)


def read_videos(path: Path) -> Iterator[tuple[str, str, float, list[str], object]]:
    """(place, video, seconds, sentences, timestamps) of each video of ActivityNet Captions' own json."""
    for video, entry in read_object(path).items():
        where = f"{path}: {video!r}"
        entry = as_object(entry, where, ("duration", "timestamps", "sentences"))
        need(are_texts(entry["sentences"]), f"{where}: sentences is not a list of texts")
        yield where, video, duration_of(entry, where), entry["sentences"], entry["timestamps"]


class ActivityNet(MomentBenchmark):
    """Recall of the first span at IoU 0.3, 0.5, 0.7 and mean IoU."""

    name = "anet"
    title = "ActivityNet Captions moment retrieval"
    layout = Layout(("val_2.json",))

    def load(self, path: Path) -> Moments:
        """ActivityNet Captions' own json (val_1, val_2). A sentence's id is ``<video>-<i>``."""
        rows = []
        for where, video, duration, sentences, spans in read_videos(path):
            each = isinstance(spans, list) and len(spans) == len(sentences)
            need(each, f"{where}: not one of timestamps for each of the {len(sentences)} sentences")
            pairs = enumerate(zip(sentences, spans, strict=True))
            rows += [(f"{video}-{i}", video, text, span, duration) for i, (text, span) in pairs]
        return Moments.of(rows, path)

    def from_answers(self, truth: Moments, answers: Answers, wording: str) -> dict:
        """All spans of each answer; no entry for a question that was not answered."""
        places = {}
        for answer, name, video, query in answered(answers, truth.ids, truth.videos, truth.queries):
            number = int(name.rpartition("-")[2])
            places[name] = {"video_id": video, "anno_id": number, "query": query.lstrip()}
            places[name]["timestamp"] = answer.scored_spans
        return {"results": places}

    def read(self, path: Path, truth: Moments) -> Located:
        """The spans of each entry, the best first; an empty list is unparsed."""
        results = as_object(read_object(path, ("results",))["results"], f"{path}: results")
        located = Located.nowhere(len(truth))
        for name, entry in results.items():
            where = f"{path}: {name!r}"
            known = name in truth.rows
            need(known, f"{where}: no sentence of the annotations has this id; are they of another split?")
            spans = as_object(entry, where, ("timestamp",))["timestamp"]
            need(isinstance(spans, list), f"{where}: timestamp is not a list of [start, end]")
            located.put(truth.rows[name], spans)
        return located

    def score(self, truth: Moments, predictions: Located, options: Options) -> Scores:
        """Metrics in percent.

        ``R5@t`` is there where an entry has several spans. ``published``: IoU with 1e-8 added to the denominator; a
        reversed span is not ordered and scores 0; recalls are means in float32; a missing sentence counts as 0.
        ``corrected``: see ``moments.corrected_grounding``.
        """
        if options.protocol == "corrected":
            return corrected_grounding(truth, predictions)
        ious = np.where(predictions.parsed, iou_epsilon(predictions.spans, truth.spans), 0.0)
        scores = grounding(truth, predictions, ious, top=top_recalls(truth.spans, predictions, iou_epsilon))
        for name in scores.metrics.keys() - {"mIoU"}:
            hits = np.fromiter(scores.per_sample[name].values(), np.float32)
            scores.metrics[name] = 100.0 * float(np.mean(hits))
        return scores


TASK = ActivityNet()
