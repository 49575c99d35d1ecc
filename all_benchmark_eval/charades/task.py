"""Charades-STA: the one span a sentence describes, in videos of about 30 s (test set: 3720 sentences, 1334 videos).

Ground truth: the data set's ``VID start end##sentence`` lines, UMT's ``{"database": ...}``, TimeChat's
``{"annotations": [...]}`` and other groups' (``files.py``). Predictions, in any variant (three of the forms)::

    {"3MSZA": {"person turn a light on.": {"start": 21.31, "end": 29.67, "conf": 1}}}
    {"0": {"timestamp": [21.31, 29.67], "vid": "3MSZA.mp4", "query": "person turn a light on. "}, "20": []}
    [{"idx": 0, "video": "3MSZA.mp4", "a": "<evi> 1.0 - 2.0 </evi>The event happens in 3.0 - 4.0 seconds.", ...}]
"""

from collections import Counter
from pathlib import Path

import numpy as np

from all_benchmark_eval.benchmark import Layout, Options, Scores
from all_benchmark_eval.charades.files import FORMS, TRUTHS, lengths_beside
from all_benchmark_eval.forms import Content, pick
from all_benchmark_eval.items import Answers, answered, video_file
from all_benchmark_eval.metrics import moments
from all_benchmark_eval.metrics.intervals import iou_hull, iou_union
from all_benchmark_eval.metrics.moments import THRESHOLDS, Located, Moments, State, grounding
from all_benchmark_eval.metrics.rules import rules


def _distime(truth: Moments, located: Located) -> Scores:
    """From UMT: IoU in float32; recall over N + 1e-5; each IoU of mIoU is floored to whole percents."""
    raw = iou_union(truth.spans, located.spans, np.float32)
    stops = located.parsed & np.isnan(raw)
    ious = np.where(located.parsed & ~stops, raw, np.float32(0))  # [N] float32
    several = lambda spans, true: iou_union(true, spans, np.float32)  # noqa: E731
    scores = grounding(truth, located, ious, top=moments.top_recalls(truth.spans, located, several))
    hits = {f"{t:g}": int((ious >= np.float32(t)).sum()) for t in THRESHOLDS}
    floored = np.floor(ious.astype(np.float64) * 100) / 100
    scores.details = {"hits": hits, "unfloored mIoU": scores.metrics["mIoU"], "N": len(truth)}
    scores.metrics |= {f"R1@{t}": 100 * count / (len(truth) + 1e-5) for t, count in hits.items()}
    scores.metrics["mIoU"] = 100 * float(floored.sum()) / len(truth)
    scores.per_sample["mIoU"] = moments.table(truth.ids, floored)
    scores.denominator = "all queries + 1e-5 (recall), all queries (mIoU)"
    scores.notes.append("mIoU is floored to whole percents query by query, as published")
    if missing := located.counts()["missing"]:
        scores.notes.append(f"{missing} without a prediction score 0; the published script stops at the first")
    if stops.any():
        first = truth.ids[int(stops.argmax())]
        odd = f"{int(stops.sum())} spans with 0/0 as IoU score 0 ({first!r})"
        scores.notes.append(f"{odd}; the published script stops at the first")
    return scores


def _d2vlm(truth: Moments, located: Located) -> Scores:
    """Mean over the *parsed* predictions only."""
    scores = grounding(truth, located, iou_hull(truth.spans, located.spans), keep=located.parsed)
    scores.denominator = f"the {int(located.parsed.sum())} parsed predictions only"
    return scores


def _timechat(truth: Moments, located: Located) -> Scores:
    """Mean over all queries; the script prints no mIoU."""
    ious = np.where(located.parsed, iou_hull(truth.spans, located.spans), 0.0)
    scores = grounding(truth, located, ious)
    scores.notes += ["mIoU is not printed by TimeChat's script"]
    return scores


OWN = {"distime": _distime, "d2vlm": _d2vlm, "timechat": _timechat, "timechat_sample": _timechat}


class Charades(moments.MomentBenchmark):
    """Recall of one span at IoU 0.3, 0.5, 0.7 and mean IoU."""

    name = "charades"
    title = "Charades-STA"
    layout = Layout(("charades_sta_test.txt", "charades_sta_test.json"))
    wordings = moments.published_wordings(" about indoor activities")
    scripts = OWN | rules("lmms_charades", "exactly_one", "time_r1", "videomind", "unitime")
    truths, forms = TRUTHS, FORMS

    def load(self, path: Path) -> Moments:
        """A sentence's id is ``<video>/<sentence>``, with ``#2`` behind it where the video has the sentence again.

        Lengths of the videos come from UMT's or moment_detr's file, else from ``Charades_v1_test.csv`` (of the Charades
        data set) in the same folder, else they are unknown: the corrected protocol then cuts no span at the end.
        """
        content = Content.of(path)
        queries = list(pick(content, self.truths, f"the annotations of {self.name}").read(content))
        lengths = {} if all(length > 0 for *_, length in queries) else lengths_beside(path)
        times, rows = Counter[str](), []
        for video, text, span, length in queries:
            name = f"{video}/{text.strip()}"
            times[name] += 1
            again = f" #{times[name]}" if times[name] > 1 else ""
            rows.append((name + again, video, text, span, length if length > 0 else lengths.get(video, np.nan)))
        return Moments.of(rows, path)

    def from_answers(self, truth: Moments, answers: Answers, wording: str) -> dict:
        """The first form above, the second where a sentence stands twice, for every wording.

        An answer without a span is written as [-1, -1].
        """
        columns = (range(len(truth)), truth.videos, truth.queries)
        found = [(a, *where) for a, _, *where in answered(answers, truth.ids, *columns)]
        spans = [(answer.scored_spans or [[-1, -1]])[0] for answer, *_ in found]
        if len({*zip(truth.videos, map(str.strip, truth.queries), strict=True)}) < len(truth):
            return {
                str(row): {"timestamp": span, "vid": video_file(video), "query": sentence}
                for span, (_, row, video, sentence) in zip(spans, found, strict=True)
            }
        places: dict[str, dict] = {}
        for (start, end), (_, _, video, sentence) in zip(spans, found, strict=True):
            places.setdefault(video, {})[sentence] = {"start": start, "end": end, "conf": 1}
        return places

    def score(self, truth: Moments, predictions: Located, options: Options) -> Scores:
        """See ``MomentBenchmark.score``. The script of ``timechat_sample`` is ``timechat``'s with its option
        ``--sample``: the queries in the prediction file are all there are, under ``corrected`` as well."""
        if options.protocol == "published" and options.variant in OWN:
            predictions = predictions.published or predictions
        if options.variant != "timechat_sample":
            return super().score(truth, predictions, options)
        asked = predictions.state != State.MISSING
        scores = super().score(truth.select(asked), predictions.select(asked), options)
        scores.denominator = "the queries in the prediction file"
        return scores


TASK = Charades()
