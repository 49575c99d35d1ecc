"""ExtremeWhenBench: moment retrieval in videos of 76 min on average, up to 9 h (2273 queries, 194 videos; 2026).

Ground truth: rows of the hub's data set, as JSON. Predictions: lmms-eval's samples, texts, or any form of moments::

    {"qid": "a1", "video_id": "abc", "source_corpus": "LVBench", "question": "When ...?",
     "correct_interval": [3601.0, 3620.5], "video_duration_s": 5400.0, "category": "action", ...}
"""

from collections.abc import Mapping
from typing import Any

from all_benchmark_eval import moment_forms
from all_benchmark_eval.benchmark import Layout, Options, Scores
from all_benchmark_eval.forms import Form, rows_with
from all_benchmark_eval.items import duration_of
from all_benchmark_eval.metrics.moments import Located, Moments, published_wordings
from all_benchmark_eval.metrics.rules import RuledBenchmark, rules

_KEYS = ("qid", "video_id", "source_corpus", "question", "correct_interval", "video_duration_s")
QUESTION = (  # of its lmms-eval task
    "[Video Temporal Grounding]\nYou are watching a {duration:.0f}-second long video.\nPlease find the moment "
    "described by the following question, determining its starting and ending times. The format should be: 'The event "
    "happens in the start time - end time'. For example, The event 'person turn a light on' happens in the 24.3 - 30.4 "
    "seconds. "
    'Now I will give you the question: "{query}"\nPlease return its start time and end time.'
)


def _question(where: str, row: Mapping[str, Any], number: int) -> moment_forms.Query:
    """A video is in the folder of the data set that it is from."""
    video, length = (
        f"{row['source_corpus']}/{row['video_id']}",
        duration_of({"duration": row["video_duration_s"]}, where),
    )
    return str(row["qid"]), video, str(row["question"]), row["correct_interval"], length, str(row.get("category", ""))


_FORM = Form("ExtremeWhenBench", str(list(_KEYS)), rows_with(*_KEYS), moment_forms.rows_of(_question, *_KEYS))


class ExtremeWhenBench(RuledBenchmark):
    """Recall at IoU 0.3, 0.5, 0.7, mIoU and the share of answers without times, of all and of each category."""

    name = "extremewhenbench"
    title = "ExtremeWhenBench"
    layout = Layout(("extreme-when-bench.jsonl", "extreme-when-bench.json"))
    scripts = rules("extremewhen")
    headline = (*RuledBenchmark.headline, "parse_fail")
    truths = (moment_forms.of_moments(_FORM),)
    wordings = published_wordings() | {"plain": QUESTION}

    def score(self, truth: Moments, predictions: Located, options: Options) -> Scores:
        """See ``RuledBenchmark.score``; ``parse_fail``: answers, also missing ones, in which no times are found."""
        scores = super().score(truth, predictions, options)
        scores.metrics["parse_fail"] = 100.0 * (1 - scores.counts["scored"] / len(truth))
        return scores


TASK = ExtremeWhenBench()
