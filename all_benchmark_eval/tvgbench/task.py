"""TVGBench: moment retrieval over five data sets, by 11 kinds of question (Time-R1, Wang et al., 2025; 800 questions).

Ground truth: ``tvgbench.json`` of Time-R1, the span as a text. Predictions: Time-R1's lines, or what any of the scripts
of moment retrieval reads::

    [{"path": "./x/KWZSA.mp4", "question": "a person was sitting at a table.", "answer": "13.4-28.1", "duration": 30.12,
      "qsemtype": "Human Pose", ...}]
    {"qid": "Charades_sta_test_0", "pred": [13.0, 28.0], "target": [13.4, 28.1], "output_text": "... 13.00 to 28.00"}
"""

from collections.abc import Mapping
from typing import Any

from all_benchmark_eval import moment_forms
from all_benchmark_eval.benchmark import Layout
from all_benchmark_eval.forms import Content, Form, need, rows_with
from all_benchmark_eval.items import duration_of, read_rows
from all_benchmark_eval.metrics.moments import Located, Moments
from all_benchmark_eval.metrics.rules import RuledBenchmark, rules
from videollm.reading import read_spans


def _question(where: str, row: Mapping[str, Any], number: int) -> moment_forms.Query:
    """Ids count the questions from 0, as Time-R1 does."""
    start, dash, end = str(row["answer"]).partition("-")
    try:
        span = [float(start), float(end)]
    except ValueError:
        span = None
    need(span and dash, f"{where}: the answer {row['answer']!r:.60} is not 'start-end' in seconds")
    video = str(row["path"]).split("/")[-1].removesuffix(".mp4")
    return f"tvgbench_{number}", video, str(row["question"]), span, duration_of(row, where), str(row["qsemtype"])


def _lines(content: Content, truth: Moments) -> Located:
    """Time-R1's: the number behind the last ``_`` of a qid is the question's, and the target shows whether it is."""
    located = Located.nowhere(len(truth))
    for where, row in read_rows(content, ("qid", "pred", "target")):
        number = str(row["qid"]).rpartition("_")[2]
        place = int(number) if number.isdecimal() and len(number) < 7 else len(truth)
        need(place < len(truth), f"{where}: the annotations have no question {str(row['qid'])[:60]!r}")
        same = row["target"] == truth.spans[place].tolist()
        other = f"the target is {str(row['target'])[:60]}, that of question {place} is {truth.spans[place].tolist()}"
        need(same, f"{where}: {other}: were videos missing, so that it counts other questions?")
        need(not located.state[place], f"{where}: question {place} stands twice")
        text = row.get("output_text")
        spans = read_spans(text, truth.durations[place])[:1] if isinstance(text, str) else row["pred"]
        located.put(place, spans or moment_forms.NO_TIME, text if isinstance(text, str) else None)
    return located


_KEYS = ("path", "question", "answer", "duration", "qsemtype")
_READ = moment_forms.rows_of(_question, *_KEYS)


class TVGBench(RuledBenchmark):
    """Recall at IoU 0.3, 0.5, 0.7 and mIoU, of all and of each kind (``qsemtype``)."""

    name = "tvgbench"
    title = "TVGBench"
    layout = Layout(("tvgbench.json",))
    scripts = rules("time_r1")
    truths = (moment_forms.of_moments(Form("Time-R1", str(list(_KEYS)), rows_with(*_KEYS), _READ)),)
    forms = (
        Form("Time-R1 lines", '{"qid", "pred", "target", "output_text"}', rows_with("qid", "pred", "target"), _lines),
        *RuledBenchmark.forms,
    )


TASK = TVGBench()
