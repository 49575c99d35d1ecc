"""ActivityNet-TimeLens: the files are those of Charades-TimeLens (``charades_timelens/task.py``)."""

from all_benchmark_eval.benchmark import Layout
from all_benchmark_eval.charades_timelens.task import TimeLens


class ActivityNetTimeLens(TimeLens):
    """ActivityNet's videos."""

    name = "activitynet_timelens"
    title = "ActivityNet-TimeLens"
    layout = Layout(("activitynet-timelens.json",), "TimeLens-Bench", "videos/activitynet")


TASK = ActivityNetTimeLens()
