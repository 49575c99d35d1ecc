"""Moment retrieval: the one span a sentence describes, for any data set that has a file in one of the common forms.

One's own data, which needs no folder here; ``tacos`` and others are based on it. Ground truth and predictions as
moment_detr, VideoMind, TimeLens and lmms-eval write them (``moment_forms.py``)::

    {"qid": 3, "vid": "s27-d50", "query": "He washes a knife.", "duration": 209.7, "relevant_windows": [[11.2, 15.9]]}
    {"qid": 3, "vid": "s27-d50", "query": "He washes a knife.", "pred_relevant_windows": [[10.9, 16.0, 0.93]]}
"""

from all_benchmark_eval import moment_forms
from all_benchmark_eval.benchmark import Layout
from all_benchmark_eval.items import Answers, answered
from all_benchmark_eval.metrics.moments import Moments
from all_benchmark_eval.metrics.rules import RuledBenchmark, rules


class AnyMoments(RuledBenchmark):
    """Recall at IoU 0.3, 0.5, 0.7 of one span, and of five where they are ranked; mean IoU.

    A query's id is its ``qid``, or else made of its video. The default rule is what the scripts of these data sets
    share: plain means over all queries of the IoU over the union.
    """

    name = "moment_retrieval"
    title = "Moment retrieval"
    layout = Layout(("test.jsonl", "test.json"))
    scripts = rules("default", "videomind", "unitime")
    truths = tuple(map(moment_forms.of_moments, moment_forms.TRUTHS))

    def from_answers(self, truth: Moments, answers: Answers, wording: str) -> list[dict]:
        """moment_detr's lines, spans in the order of the answer; no line for a query that was not answered."""
        lines = []
        for answer, name, video, query in answered(answers, truth.ids, truth.videos, truth.queries):
            windows = [[*span, 1.0] for span in answer.scored_spans]
            lines.append({"qid": name, "vid": video, "query": query, "pred_relevant_windows": windows})
        return lines


class VideoMindMoments(AnyMoments):
    """A data set that VideoMind has prepared: its script comes first, and queries are asked as it cleans them."""

    scripts = rules("videomind", "unitime", "default")
    truths = tuple(moment_forms.of_moments(form, moment_forms.tidy) for form in moment_forms.TRUTHS)


TASK = AnyMoments()
