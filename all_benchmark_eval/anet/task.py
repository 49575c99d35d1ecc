"""ActivityNet Captions, moment retrieval: the first span found for each sentence of a video.

Ground truth ``{video: {"duration", "timestamps": [[s, e], ..], "sentences": [..]}}`` (val_2: 17031 sentences);
predictions ``{"results": {"<video>-<i>": {"timestamp": [[s, e], ..]}}}``, i counting the video's sentences from 0::

    {"results": {"v_uqiMw7tQ1Cc-0": {"video_id": "v_uqiMw7tQ1Cc", "anno_id": 0, "timestamp": [[0.02, 7.32]]}}}
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from all_benchmark_eval.benchmark import (
    WITHOUT_BREAK,
    Benchmark,
    BenchmarkError,
    Layout,
    Options,
    Scores,
    read_json,
    worded,
)
from all_benchmark_eval.metrics.intervals import iou_epsilon
from all_benchmark_eval.metrics.moments import (
    Located,
    Moments,
    as_object,
    corrected_grounding,
    first_span,
    grounding,
    moment_questions,
    seconds,
    true_spans,
)
from videollm.common.answers import AnswerLine

WORDINGS = {
    "distime": (
        "Give you a textual query: '{query}'. When does the described content occur in the video? "
        "Please return the timestamp in seconds."
    ),
    # D2VLM published none: its wording for Charades-STA, without the word on what the video shows
    "d2vlm": (
        "You are given a video. Watch the video carefully and find a visual event described by the sentence: "
        "'{sentence}'. The format of your response should be: 'The event happens in <start time> - <end time>'."
    ),
    "plain": "When does this happen in the video: '{query}'?",
}


class ActivityNet(Benchmark):
    """Recall of the first span at IoU 0.3, 0.5, 0.7 and mean IoU."""

    name = "anet"
    title = "ActivityNet Captions moment retrieval"
    layout = Layout(("val_2.json",))
    settings = WITHOUT_BREAK

    def load(self, path: Path) -> Moments:
        """ActivityNet Captions' own json (val_1, val_2). A sentence's id is ``<video>-<i>``."""
        ids, videos, queries, spans, durations = [], [], [], [], []
        data = as_object(read_json(path), f"{path}")
        for video, entry in data.items():
            where = f"{path}: {video!r}"
            entry = as_object(entry, where, ("duration", "timestamps", "sentences"))
            duration, sentences = seconds(entry["duration"]), entry["sentences"]
            if duration is None or duration <= 0:
                raise BenchmarkError(f"{where}: duration {entry['duration']!r} is not a number of seconds above 0")
            if not isinstance(sentences, list) or not all(isinstance(sentence, str) for sentence in sentences):
                raise BenchmarkError(f"{where}: sentences is not a list of texts")
            if not isinstance(entry["timestamps"], list) or len(entry["timestamps"]) != len(sentences):
                raise BenchmarkError(f"{where}: not one of timestamps for each of the {len(sentences)} sentences")
            ids += [f"{video}-{i}" for i in range(len(sentences))]
            videos += [video] * len(sentences)
            queries += sentences
            spans += entry["timestamps"]
            durations += [duration] * len(sentences)
        if not ids:
            raise BenchmarkError(f"{path}: no sentence in it")
        return Moments(ids, videos, queries, true_spans(spans, ids, path), np.array(durations))

    def questions(self, truth: Moments, wording: str) -> list[dict]:
        """One question a sentence; videos are ``<video>.mp4``."""
        wording = worded(WORDINGS, wording)
        return moment_questions(truth.ids, truth.videos, truth.queries, truth.durations, wording)

    def from_answers(self, truth: Moments, answers: Mapping[str, AnswerLine], wording: str) -> dict:
        """All spans of each answer; no entry for a question that was not answered."""
        places = {}
        number_in_video: dict[str, int] = {}
        for name, video, query in zip(truth.ids, truth.videos, truth.queries, strict=True):
            number = number_in_video[video] = number_in_video.get(video, -1) + 1
            answer = answers.get(name)
            if answer is not None and not answer.error:
                head = {"video_id": video, "anno_id": number, "query": query.lstrip()}
                places[name] = head | {"timestamp": answer.scored_spans}
        return {"results": places}

    def read(self, path: Path, truth: Moments) -> Located:
        """The first span of each entry; an empty list is unparsed."""
        results = as_object(as_object(read_json(path), f"{path}", ("results",))["results"], f"{path}: results")
        rows = {name: row for row, name in enumerate(truth.ids)}
        located = Located.nowhere(len(truth))
        for name, entry in results.items():
            where = f"{path}: {name!r}"
            if name not in rows:
                raise BenchmarkError(f"{where}: no sentence of the annotations has this id; are they of another split?")
            spans = as_object(entry, where, ("timestamp",))["timestamp"]
            if not isinstance(spans, list):
                raise BenchmarkError(f"{where}: timestamp is not a list of [start, end]")
            located.put(rows[name], first_span(spans))
        return located

    def score(self, truth: Moments, predictions: Located, options: Options) -> Scores:
        """Metrics in percent.

        ``published``: IoU with 1e-8 added to the denominator; a reversed span is not ordered and scores 0; recalls are
        means in float32; a missing sentence counts as 0. ``corrected``: see ``moments.corrected_grounding``.
        """
        if options.protocol == "corrected":
            return corrected_grounding(truth, predictions)
        ious = np.where(predictions.parsed, iou_epsilon(predictions.spans, truth.spans), 0.0)
        scores = grounding(truth.ids, ious, predictions.counts())
        for name in scores.metrics.keys() - {"mIoU"}:
            hits = np.fromiter(scores.per_sample[name].values(), np.float32)
            scores.metrics[name] = 100.0 * float(np.mean(hits))
        return scores


TASK = ActivityNet()
