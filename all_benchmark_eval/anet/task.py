"""ActivityNet Captions, moment retrieval: the first span found for each sentence of a video.

Ground truth ``{video: {"duration", "timestamps": [[s, e], ..], "sentences": [..]}}`` (val_2: 17031 sentences);
predictions ``{"results": {"<video>-<i>": {"timestamp": [[s, e], ..]}}}``, i counting the video's sentences from 0::

    {"results": {"v_uqiMw7tQ1Cc-0": {"video_id": "v_uqiMw7tQ1Cc", "anno_id": 0, "timestamp": [[0.02, 7.32]]}}}
"""

import numpy as np

from all_benchmark_eval import moment_forms
from all_benchmark_eval.benchmark import Layout, Scores
from all_benchmark_eval.dense_forms import read_videos
from all_benchmark_eval.forms import Content, Form, has_key, need
from all_benchmark_eval.items import Answers, Videos, answered, as_object
from all_benchmark_eval.metrics.intervals import iou_epsilon
from all_benchmark_eval.metrics.moments import Located, MomentBenchmark, Moments, State, grounding, top_recalls
from all_benchmark_eval.metrics.rules import rules


def _sentences(content: Content) -> Moments:
    """ActivityNet Captions' own json (val_1, val_2). A sentence's id is ``<video>-<i>``."""
    rows = []
    for where, video, duration, sentences, spans in read_videos(content):
        each = isinstance(spans, list) and len(spans) == len(sentences)
        need(each, f"{where}: not one of timestamps for each of the {len(sentences)} sentences")
        pairs = enumerate(zip(sentences, spans, strict=True))
        rows += [(f"{video}-{i}", video, text, span, duration) for i, (text, span) in pairs]
    return Moments.of(rows, content.path)


def _results(content: Content, truth: Moments) -> Located:
    """The spans of each entry, the best first; an empty list is unparsed."""
    results = as_object(content.object["results"], f"{content.path}: results")
    located, names = Located.nowhere(len(truth)), list(dict.fromkeys(truth.videos))
    videos = Videos(names)
    for name, entry in results.items():
        where, row = f"{content.path}: {name!r:.200}", truth.rows.get(name)
        if row is None:
            video, _, number = name.rpartition("-")
            row = truth.rows.get(f"{names[videos.find(video, where)]}-{number}")
        need(row is not None, f"{where}: no sentence of the annotations has this id; are they of another split?")
        need(located.state[row] == State.MISSING, f"{where}: {truth.ids[row]!r} stands twice")
        spans = as_object(entry, where, ("timestamp",))["timestamp"]
        need(isinstance(spans, list), f"{where}: timestamp is not a list of [start, end]")
        located.put(row, spans)
    return located


def _default(truth: Moments, located: Located) -> Scores:
    """IoU with 1e-8 added to the denominator; a reversed span is not ordered and scores 0; recalls are means in
    float32; a missing sentence counts as 0."""
    ious = np.where(located.parsed, iou_epsilon(located.spans, truth.spans), 0.0)
    scores = grounding(truth, located, ious, top=top_recalls(truth.spans, located, iou_epsilon))
    for name in scores.metrics.keys() - {"mIoU"}:
        hits = np.fromiter(scores.per_sample[name].values(), np.float32)
        scores.metrics[name] = 100.0 * float(np.mean(hits))
    return scores


class ActivityNet(MomentBenchmark):
    """Recall of the first span at IoU 0.3, 0.5, 0.7 and mean IoU; ``R5@t`` where an entry has several spans."""

    name = "anet"
    title = "ActivityNet Captions moment retrieval"
    layout = Layout(("val_2.json",))
    scripts = {"default": _default} | rules("time_r1", "videomind", "unitime")
    truths = (
        Form(
            "ActivityNet Captions", '{video: {"duration", "timestamps", "sentences"}}',
            lambda content: content.object is not None, _sentences,
        ),
    )  # fmt: skip
    forms = (
        Form("DisTime", '{"results": {"<video>-<i>": {"timestamp": [[s, e]]}}}', has_key("results"), _results),
        *moment_forms.PREDICTIONS,
    )

    def from_answers(self, truth: Moments, answers: Answers, wording: str) -> dict:
        """All spans of each answer; no entry for a question that was not answered."""
        places = {}
        for answer, name, video, query in answered(answers, truth.ids, truth.videos, truth.queries):
            number = int(name.rpartition("-")[2])
            places[name] = {"video_id": video, "anno_id": number, "query": query.lstrip()}
            places[name]["timestamp"] = answer.scored_spans
        return {"results": places}


TASK = ActivityNet()
