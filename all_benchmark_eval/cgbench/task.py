"""CG-Bench mini: multiple choice about long videos, with the moments that hold the clue (Chen et al., ICLR 2025; 3000).

Ground truth: ``cgbench_mini.json``. Predictions: VideoMind's lines, with all spans of each (``metrics/grounded.py``)::

    [{"qid": 7, "video_uid": "BV1xx", "question": "Who ..?", "choices": ["he", ..], "answer": "she",
      "right_answer": "B", "clue_intervals": [[101, 110], [300, 320]], "sub_category": "...", "domain": "..."}]
    {"qid": 7, "pred": [[100, 111]], "response": "B"}
"""

import json
import re
from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from all_benchmark_eval.benchmark import Layout
from all_benchmark_eval.forms import Content, Form, need, rows_with
from all_benchmark_eval.items import are_texts, known_length, read_rows, read_spans
from all_benchmark_eval.metrics.choices import Question
from all_benchmark_eval.metrics.grounded import (
    Grounded,
    GroundedBenchmark,
    Measures,
    Script,
    first_letter,
    merged_iou,
    summed_iou,
)
from all_benchmark_eval.metrics.moments import Floats

THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5)
_KEYS = ("video_uid", "question", "choices", "right_answer", "clue_intervals")
_FENCED = re.compile(r"```json(.*?)```", re.DOTALL)
_BARE = re.compile(r"(:\s)([A-Za-z_]\w*)")  # a value without quotes


def _truth(content: Content) -> Grounded:
    def given() -> Iterable[tuple[Question, Floats, float | None]]:
        for n, (where, row) in enumerate(read_rows(content, _KEYS)):
            options, answer = row["choices"], row["right_answer"]
            need(are_texts(options) and options, f"{where}: choices is not a list of texts")
            letters = "ABCDEFGHIJ"[: len(options)]
            need(answer in tuple(letters), f"{where}: right_answer {answer!r:.40} is not one of {', '.join(letters)}")
            problem = f"{where}: clue_intervals is not [[start, end], ...] in seconds"
            true = np.sort(read_spans(row["clue_intervals"], problem), axis=-1)
            name, video = str(row.get("qid", f"cgbench_{n}")), str(row["video_uid"])
            question = Question(name, video, str(row["question"]), tuple(options), letters.index(answer))
            yield question, true, known_length(row.get("duration"))

    return Grounded.of(given(), content.path)


def cgbench_right(text: str, question: Question) -> bool | None:
    """CG-Bench's script: "result" of a fenced JSON object; else right if the right letter stands anywhere as a word."""
    fenced = _FENCED.search(text)
    if fenced:
        try:
            return json.loads(_BARE.sub(r'\1"\2"', fenced.group(1)))["result"] == question.right
        except (ValueError, TypeError, KeyError, RecursionError):
            pass
    letters = re.findall(r"\b[A-H]\b", text)
    return question.right in letters if letters else None


class CGBench(GroundedBenchmark):
    """Accuracy on the whole video (long-acc), mIoU; rec@IoU and acc@IoU are means over IoU 0.1 to 0.5."""

    name = "cgbench"
    title = "CG-Bench mini"
    layout = Layout(("cgbench_mini.json",))
    scripts: Mapping[str, Script] = {
        "cgbench": Script(merged_iou, cgbench_right, read=True),
        "videomind": Script(lambda spans, true: summed_iou(spans[:1], true), first_letter, dtype=np.float32),
    }
    truths = (Form("CG-Bench", str(list(_KEYS)), rows_with(*_KEYS), _truth),)

    def measures(self, ious: Floats, right: NDArray[np.bool_], slack: float) -> Measures:
        hits = np.stack([ious >= t - slack for t in THRESHOLDS])  # [T, N]
        return {
            "long-acc": ("choice", right),
            "mIoU": ("span", ious),
            "rec@IoU": ("span", hits.mean(0)),
            "acc@IoU": ("both", (hits & right).mean(0)),
        }

    meant_iou = staticmethod(merged_iou)


TASK = CGBench()
