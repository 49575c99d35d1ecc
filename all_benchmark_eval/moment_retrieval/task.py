"""Moment retrieval: the one span a sentence describes, for any data set that has a file in one of the common forms.

TACoS, Ego4D-NLQ, TimeLens-Bench and one's own data, none of which needs a folder here. Ground truth and predictions as
moment_detr, VideoMind, TimeLens and lmms-eval write them (``moment_forms.py``)::

    {"qid": 3, "vid": "s27-d50", "query": "He washes a knife.", "duration": 209.7, "relevant_windows": [[11.2, 15.9]]}
    {"qid": 3, "vid": "s27-d50", "query": "He washes a knife.", "pred_relevant_windows": [[10.9, 16.0, 0.93]]}
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from all_benchmark_eval import moment_forms
from all_benchmark_eval.benchmark import Layout, Options, Scores
from all_benchmark_eval.forms import Content, Form
from all_benchmark_eval.items import Answers, answered
from all_benchmark_eval.metrics import moments
from all_benchmark_eval.metrics.intervals import iou_union
from all_benchmark_eval.metrics.moments import Located, Moments, corrected_grounding, grounding, top_recalls


def _moments(form: Form) -> Callable[[Content], Moments]:
    return lambda content: Moments.of(form.read(content), content.path)


class AnyMoments(moments.MomentBenchmark):
    """Recall of one span at IoU 0.3, 0.5, 0.7 and mean IoU. A query's id is its ``qid``, or else made of its video."""

    name = "moment_retrieval"
    title = "Moment retrieval"
    layout = Layout(("test.jsonl", "test.json"))
    truths = tuple(replace(form, read=_moments(form)) for form in moment_forms.TRUTHS)
    forms = moment_forms.PREDICTIONS

    def from_answers(self, truth: Moments, answers: Answers, wording: str) -> list[dict]:
        """moment_detr's lines, spans in the order of the answer; no line for a query that was not answered."""
        lines = []
        for answer, name, video, query in answered(answers, truth.ids, truth.videos, truth.queries):
            windows = [[*span, 1.0] for span in answer.scored_spans]
            lines.append({"qid": name, "vid": video, "query": query, "pred_relevant_windows": windows})
        return lines

    def score(self, truth: Moments, predictions: Located, options: Options) -> Scores:
        """Metrics in percent. ``published``: what the scripts of these data sets share, plain means over all queries of
        the IoU over the union; a missing query counts as 0. ``corrected``: see ``moments.corrected_grounding``.
        """
        if options.protocol == "corrected":
            return corrected_grounding(truth, predictions)
        ious = np.nan_to_num(iou_union(predictions.spans, truth.spans))
        return grounding(truth, predictions, ious, top=top_recalls(truth.spans, predictions, iou_union))


TASK = AnyMoments()
