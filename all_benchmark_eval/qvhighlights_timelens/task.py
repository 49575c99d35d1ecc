"""QVHighlights-TimeLens: the files are those of Charades-TimeLens (``charades_timelens/task.py``)."""

from all_benchmark_eval.benchmark import Layout
from all_benchmark_eval.charades_timelens.task import TimeLens


class QVHighlightsTimeLens(TimeLens):
    """QVHighlights's videos."""

    name = "qvhighlights_timelens"
    title = "QVHighlights-TimeLens"
    layout = Layout(("qvhighlights-timelens.json",), "TimeLens-Bench", "videos/qvhighlights")


TASK = QVHighlightsTimeLens()
