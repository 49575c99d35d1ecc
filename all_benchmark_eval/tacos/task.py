"""TACoS: moment retrieval in videos of cooking, several minutes each (Regneri et al., 2013), as VideoMind asks it.

Ground truth and predictions are moment_detr's lines (``moment_retrieval/task.py``); the video of ``s27-d50`` is
``s27-d50-cam-002.mp4``.
"""

from all_benchmark_eval.benchmark import Layout
from all_benchmark_eval.moment_retrieval.task import VideoMindMoments


class TACoS(VideoMindMoments):
    """R1 and, where spans are ranked, R5 at IoU 0.3, 0.5, 0.7; mIoU."""

    name = "tacos"
    title = "TACoS"
    layout = Layout(("test.jsonl",))

    def file_of(self, video: str) -> str:
        return f"{video}-cam-002.mp4"


TASK = TACoS()
