"""Ego4D-NLQ: the moment that answers a question about a long first-person video (Grauman et al., 2022), validation set.

Ground truth and predictions are moment_detr's lines (``moment_retrieval/task.py``), as VideoMind writes them.
"""

from all_benchmark_eval.benchmark import Layout
from all_benchmark_eval.moment_retrieval.task import VideoMindMoments


class Ego4DNLQ(VideoMindMoments):
    """R1 and, where spans are ranked, R5 at IoU 0.3, 0.5, 0.7; mIoU."""

    name = "ego4d_nlq"
    title = "Ego4D-NLQ"
    layout = Layout(("nlq_val.jsonl",))


TASK = Ego4DNLQ()
