"""ReXTime: multiple choice across events of a video, with the moment of the answer (Chen et al., 2024; val: 921).

Ground truth: VideoMind's ``rextime_val.json``, or the data set's own lines, which have no options and can only be
scored. Predictions: the data set's lines, or VideoMind's (``metrics/grounded.py``)::

    [{"vid": "v_ZMTi498qnPc", "question": "What ...?", "options": ["she ..", ..], "answer": "From <s0> to <e0>, ..",
      "ans": "A", "span": [5, 8], "category": "sequential"}]
    {"qid": "anet_val92", "pred_relevant_windows": [[5, 9]], "ans": "A"}
"""

from collections.abc import Iterable, Mapping
from functools import partial

import numpy as np
from numpy.typing import NDArray

from all_benchmark_eval.benchmark import Layout
from all_benchmark_eval.forms import Content, Form, need, rows_with
from all_benchmark_eval.items import are_texts, first_span, known_length, read_rows, read_spans, stem
from all_benchmark_eval.metrics.choices import Question
from all_benchmark_eval.metrics.grounded import (
    Grounded,
    GroundedBenchmark,
    Measures,
    Script,
    first_letter,
    lines,
    what_it_says,
)
from all_benchmark_eval.metrics.intervals import iou_hull, iou_union
from all_benchmark_eval.metrics.moments import THRESHOLDS, Floats

LETTERS, ACTIVITYNET = "ABCD", 13  # characters of the name of a video that is from ActivityNet


def _truth(spans: str, text: str, content: Content) -> Grounded:
    """Of rows whose windows and question are under these keys."""

    def given() -> Iterable[tuple[Question, Floats, float | None]]:
        for n, (where, row) in enumerate(read_rows(content, ("vid", "ans", spans, text))):
            vid, options = stem(row["vid"]), row.get("options", [])
            need(row["ans"] in tuple(LETTERS), f"{where}: ans {row['ans']!r:.40} is not one of {', '.join(LETTERS)}")
            need(are_texts(options), f"{where}: options is not a list of texts")
            windows = row[spans] if first_span(row[spans]) is not row[spans] else [row[spans]]
            true = np.sort(read_spans(windows, f"{where}: {spans} is not [start, end] in seconds"), axis=-1)
            folder = "activitynet" if len(vid) == ACTIVITYNET else "qvhighlights"
            name, answer = str(row.get("qid", f"rextime_{n}")), LETTERS.index(row["ans"])
            question = Question(name, f"{folder}/{vid}", str(row[text]), tuple(options), answer)
            yield question, true, known_length(row.get("duration"))

    return Grounded.of(given(), content.path)


def _first(iou, spans: Floats, true: Floats) -> float:
    """Of the first span, with the true window that fits it best."""
    return float(np.nan_to_num(iou(spans[:1], true)).max())


class ReXTime(GroundedBenchmark):
    """mIoU and R1 of the first span, accuracy, and accuracy where the IoU is at least 0.5."""

    name = "rextime"
    title = "ReXTime"
    layout = Layout(("rextime_val.json", "rextime_val.jsonl"))
    scripts: Mapping[str, Script] = {
        "rextime": Script(partial(_first, iou_hull), what_it_says),
        "videomind": Script(partial(_first, partial(iou_union, dtype=np.float32)), first_letter, dtype=np.float32),
    }
    headline = ("mIoU", "Acc", "Acc@IoU0.5")
    truths = (
        Form(
            "VideoMind", '[{"vid", "question", "options", "ans", "span"}]', rows_with("vid", "question", "ans", "span"),
            partial(_truth, "span", "question"),
        ),
        Form(
            "ReXTime", '{"qid", "vid", "query", "relevant_windows", "ans"} lines',
            rows_with("vid", "query", "ans", "relevant_windows"), partial(_truth, "relevant_windows", "query"),
        ),
    )  # fmt: skip
    forms = (
        Form(
            "ReXTime lines", '{"qid", "pred_relevant_windows", "ans"}', rows_with("pred_relevant_windows", "ans"),
            lines("pred_relevant_windows", "ans"),
        ),
        *GroundedBenchmark.forms,
    )  # fmt: skip

    def measures(self, ious: Floats, right: NDArray[np.bool_], slack: float) -> Measures:
        recalls = {f"R1@{t}": ("span", ious >= t - slack) for t in THRESHOLDS}
        both = right & (ious >= 0.5 - slack)
        return {"mIoU": ("span", ious)} | recalls | {"Acc": ("choice", right), "Acc@IoU0.5": ("both", both)}

    @staticmethod
    def meant_iou(spans: Floats, true: Floats) -> float:
        return _first(iou_union, spans, true)


TASK = ReXTime()
