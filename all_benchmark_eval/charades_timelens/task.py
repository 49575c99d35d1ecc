"""Charades-TimeLens, and what the three data sets of TimeLens-Bench share (Zhang et al., CVPR 2026).

Videos of Charades, ActivityNet and QVHighlights, annotated anew: one span a query. Ground truth, and predictions as
their script and lmms-eval write them; either of ``timestamps`` and ``answers`` will do, or a text in place of both::

    {"3MSZA": {"duration": 30.96, "spans": [[24.3, 30.4]], "queries": ["A person turns on a light."]}}
    {"3MSZA.mp4>>>A person turns on a light>>>[24.3, 30.4]":
        {"timestamps": [[24.0, 30.0]], "answers": "The event happens in 24.0 - 30.0 seconds."}}
"""

from all_benchmark_eval import moment_forms
from all_benchmark_eval.benchmark import Layout
from all_benchmark_eval.metrics.moments import published_wordings
from all_benchmark_eval.metrics.rules import RuledBenchmark, rules
from videollm.reading.styles import STYLES


class TimeLens(RuledBenchmark):
    """Recall of the first span at IoU 0.3, 0.5, 0.7 and mean IoU. A query's id is ``<video>-<i>``, i from 0."""

    scripts = rules("timelens")
    truths = (moment_forms.of_moments(moment_forms.BY_VIDEO, moment_forms.tidy),)
    # TimeLens' own; TimeLens-7B has a sentence on its times between the frames before it
    wordings = published_wordings() | {"plain": STYLES["timelens"].moment}


class CharadesTimeLens(TimeLens):
    """Charades' videos."""

    name = "charades_timelens"
    title = "Charades-TimeLens"
    layout = Layout(("charades-timelens.json",), "TimeLens-Bench", "videos/charades")


TASK = CharadesTimeLens()
