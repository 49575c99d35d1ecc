"""ActivityNet-RTL: reasoning temporal localisation, 229 questions about 160 videos (LITA, Huang et al., ECCV 2024).

Ground truth: ``annot_val_1_q229.json``, whose answers have their two times in angle brackets. Predictions: any form of
the benchmarks of moments; LITA's own text tells its times in the same way::

    [{"question_id": "0", "vid": "zEttwyGFsQ0", "duration": 63.0, "question": "Does the boy ...?",
      "answer": "<10.0> <25.5> He ..."}]
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from all_benchmark_eval import moment_forms
from all_benchmark_eval.benchmark import Layout, Scores
from all_benchmark_eval.forms import Content, Form, need, rows_with
from all_benchmark_eval.items import duration_of
from all_benchmark_eval.metrics.intervals import iou_union
from all_benchmark_eval.metrics.moments import Located, Moments, State, means_of, order_and_clip
from all_benchmark_eval.metrics.rules import Rule, RuledBenchmark, rules, taken

_TIME = re.compile(r"<(\d*\.\d+|\d+\.?)>")
_KEYS = ("vid", "duration", "question", "answer")


def _pairs(text: str) -> list[list[float]]:
    """The first two times in brackets; none where there are fewer."""
    times = [float(time) for time in _TIME.findall(text)[:2]]
    return [times] if len(times) == 2 else []


def _question(where: str, row: Mapping[str, Any], number: int) -> moment_forms.Query:
    spans = _pairs(str(row["answer"]))
    need(spans, f"{where}: the answer {row['answer']!r:.60} has no two times such as <1.5> <3.0>")
    video = "v_" + str(row["vid"]).removeprefix("v_").removesuffix(".mp4")
    name = str(row.get("question_id", f"{video}-{number}"))
    return name, video, str(row["question"]), spans[0], duration_of(row, where)


_FORM = Form("LITA", str(list(_KEYS)), rows_with(*_KEYS), moment_forms.rows_of(_question, *_KEYS))


def _lita(truth: Moments, located: Located) -> Scores:
    """An answer without two times is the whole video; spans, the true ones too, are ordered and cut to the video; a
    mean over videos of the mean over the questions of each that are in the file."""
    given = taken(truth, located, Rule("first", _pairs, ordered=True))
    whole = np.stack([np.zeros(len(truth)), truth.durations], -1)
    spans = order_and_clip(np.where(given.parsed[:, None], given.spans, whole), truth.durations)[0]
    ious = np.nan_to_num(iou_union(spans, order_and_clip(truth.spans, truth.durations)[0]))
    found: dict[str, list[float]] = {}
    for row in np.flatnonzero(given.state != State.MISSING):
        found.setdefault(truth.videos[row], []).append(ious[row])
    samples = {"mIoU": [np.mean(own) for own in found.values()]}
    samples["P@0.5"] = [np.mean(np.array(own) >= 0.5) for own in found.values()]
    scores = means_of(list(found), {name: np.array(own) for name, own in samples.items()}, given.counts())
    scores.denominator, scores.unread = "the videos in the prediction file", given.unread(truth.ids)
    return scores


class ActivityNetRTL(RuledBenchmark):
    """mIoU and P@0.5; of the other scripts their own metrics."""

    name = "activitynet_rtl"
    title = "ActivityNet-RTL"
    layout = Layout(("annot_val_1_q229.json",))
    scripts = {"lita": _lita} | rules("videomind")
    headline = ("mIoU", "P@0.5", "R1@0.5")
    truths = (moment_forms.of_moments(_FORM, moment_forms.tidy),)

    def read(self, path: Path | Content, truth: Moments) -> Located:
        """Times in angle brackets, which elsewhere may be anything, are read in a text that tells none otherwise."""
        located = super().read(path, truth)
        for row in [row for row in located.worded if located.state[row] == State.UNPARSED]:
            located.put(row, _pairs(located.told[row]) or moment_forms.NO_TIME, located.told[row])
        return located


TASK = ActivityNetRTL()
