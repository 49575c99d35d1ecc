"""TEMPLATE: one paragraph on what the benchmark asks, of what videos, and how many (paper, year).

Show an item of the ground truth and of a prediction file here, as they are published. This one is a toy that works:
when does something happen? ::

    [{"id": "q1", "video": "kitchen.mp4", "duration": 62.5, "query": "she waxes the ski", "span": [11.4, 31.6]}]
    {"q1": [10.0, 30.0]}
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from all_benchmark_eval.benchmark import (
    Benchmark,
    BenchmarkError,
    Layout,
    Options,
    Scores,
    read_json,
    worded,
)
from all_benchmark_eval.metrics.intervals import iou_union
from all_benchmark_eval.metrics.moments import (
    Located,
    Moments,
    as_object,
    corrected_grounding,
    grounding,
    moment_questions,
    seconds,
    true_spans,
)
from videollm.common.answers import AnswerLine

# How a question is put: a published system's own words where it has been evaluated here, else ones like them.
WORDINGS = {
    "distime": "Give you a textual query: '{query}'. When does the described content occur in the video?",
    "d2vlm": "Find the visual event described by the sentence: '{sentence}'. The format of your response should be: "
    "'The event happens in <start time> - <end time>'.",
    "plain": "When does this happen in the video: '{query}'?",
}


class Template(Benchmark):
    """What is measured, in one line."""

    name = "TEMPLATE"  # the folder's name
    title = "Template"  # for tables
    layout = Layout(("template_test.json",))  # <data root>/TEMPLATE/template_test.json and <data root>/TEMPLATE/videos
    # settings: frames and line break by wording, where they are not those of benchmark.SETTINGS
    # variants: names of published scripts that differ; the first is the default
    # headline: the few metrics that stand for many
    # own_truth = True: where predictions carry their ground truth

    def load(self, path: Path) -> Moments:
        """Check everything that a broken download, another split or a hand-made file could get wrong."""
        rows = read_json(path)
        if not isinstance(rows, list) or not rows:
            raise BenchmarkError(f"{path}: expected a list of questions, got {type(rows).__name__}")
        keys = ("id", "video", "duration", "query", "span")
        rows = [as_object(row, f"{path}: item {place}", keys) for place, row in enumerate(rows, start=1)]
        ids = [str(row["id"]) for row in rows]
        if len(set(ids)) < len(ids):
            raise BenchmarkError(f"{path}: an id stands twice; answers to it could not be told apart")
        lengths = [seconds(row["duration"]) for row in rows]
        if None in lengths:
            raise BenchmarkError(f"{path}: {ids[lengths.index(None)]!r}: its duration is not a number of seconds")
        videos = [str(row["video"]).removesuffix(".mp4") for row in rows]
        spans = true_spans([row["span"] for row in rows], ids, path)
        return Moments(ids, videos, [str(row["query"]) for row in rows], spans, np.array(lengths))

    def questions(self, truth: Moments, wording: str) -> list[dict]:
        text = worded(WORDINGS, wording)
        return moment_questions(truth.ids, truth.videos, truth.queries, truth.durations, text)

    def from_answers(self, truth: Moments, answers: Mapping[str, AnswerLine], wording: str) -> dict:
        """No entry for a question that was not answered; [-1, -1] says that the answer holds no time."""
        answered = {name: answers[name] for name in truth.ids if name in answers and not answers[name].error}
        return {name: (answer.scored_spans or [[-1, -1]])[0] for name, answer in answered.items()}

    def read(self, path: Path, truth: Moments) -> Located:
        rows = {name: row for row, name in enumerate(truth.ids)}
        located = Located.nowhere(len(truth))
        for name, span in as_object(read_json(path), f"{path}").items():
            if name not in rows:
                raise BenchmarkError(f"{path}: {name!r}: no question has this id; is it another split?")
            located.put(rows[name], span)
        return located

    def score(self, truth: Moments, predictions: Located, options: Options) -> Scores:
        """``published``: what the official script does, quirks included: this toy's counts parsed answers only.

        ``corrected``: what the metric means, and each difference: all questions count.
        """
        if options.protocol == "corrected":
            return corrected_grounding(truth, predictions)
        kept = truth.select(predictions.parsed)
        ious = iou_union(predictions.spans[predictions.parsed], kept.spans)
        scores = grounding(kept.ids, ious, predictions.counts())
        scores.denominator = "the parsed answers"
        return scores


TASK = Template()
