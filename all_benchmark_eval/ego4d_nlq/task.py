"""Ego4D-NLQ: the moment that answers a question about a long first-person video (Grauman et al., 2022), validation set.

Ground truth and predictions are moment_detr's lines (``moment_retrieval/task.py``), as VideoMind writes them.
"""

from all_benchmark_eval import moment_forms
from all_benchmark_eval.benchmark import Layout
from all_benchmark_eval.metrics.rules import rules
from all_benchmark_eval.moment_retrieval.task import AnyMoments


class Ego4DNLQ(AnyMoments):
    """R1 and, where spans are ranked, R5 at IoU 0.3, 0.5, 0.7; mIoU."""

    name = "ego4d_nlq"
    title = "Ego4D-NLQ"
    layout = Layout(("nlq_val.jsonl",))
    rules = rules("videomind", "unitime", "default")
    variants = tuple(rules)
    truths = tuple(moment_forms.of_moments(form, moment_forms.tidy) for form in moment_forms.TRUTHS)


TASK = Ego4DNLQ()
