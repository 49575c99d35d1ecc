"""What the grounding benchmarks share: one predicted span a query, held against true ones.

Ground truth and predictions are arrays over the queries, in the order of the truth; a query without a usable answer
stays in them. Files and official formats are the tasks'. Seconds everywhere; shares in percent, IoUs in [0, 1].
"""

import enum
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import compress
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from all_benchmark_eval.benchmark import WITHOUT_BREAK, Benchmark, Scores, worded
from all_benchmark_eval.items import need, question_line, read_span, seconds, video_file
from all_benchmark_eval.metrics.intervals import iou_union

THRESHOLDS = (0.3, 0.5, 0.7)
SLACK = 1e-9  # of the corrected protocol: an IoU that is 0.5 on paper is a hit, whatever float64 makes of it

Floats = NDArray[np.float64]
Texts = Sequence[str]


class State(enum.IntEnum):
    """What became of the answer to a query."""

    MISSING = 0
    UNPARSED = 1
    PARSED = 2


@dataclass(frozen=True)
class Moments:
    """Ground truth of N queries with one true span each.

    ``durations`` is NaN where unknown. ``ids`` are those of questions, per-sample scores and messages.
    """

    ids: list[str]
    videos: list[str]  # names without .mp4
    queries: list[str]
    spans: Floats  # [N, 2]
    durations: Floats  # [N]

    @staticmethod
    def of(queries: Iterable[tuple[str, str, str, Any, float]], path: object) -> "Moments":
        """From the (id, video, query, span, duration) of each. Raises BenchmarkError for a bad or repeated one."""
        queries = list(queries)
        need(queries, f"{path}: no sentence in it")
        ids, videos, texts, spans, durations = map(list, zip(*queries, strict=True))
        twice, times = Counter(ids).most_common(1)[0]
        need(times == 1, f"{path}: {twice!r} stands twice; answers to it could not be told apart")
        return Moments(ids, videos, texts, true_spans(spans, ids, path), np.array(durations))

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def rows(self) -> dict[str, int]:
        """{id: place of the query}."""
        return {name: row for row, name in enumerate(self.ids)}

    def select(self, keep: NDArray[np.bool_]) -> "Moments":
        """The queries where ``keep`` [N] holds."""
        lists = (list(compress(values, keep)) for values in (self.ids, self.videos, self.queries))
        return Moments(*lists, self.spans[keep], self.durations[keep])


@dataclass(frozen=True)
class Located:
    """Predicted span and state of N queries; a span that is not PARSED is NaN.

    ``published``: what a published script reads in the same file, where that is something else.
    """

    spans: Floats  # [N, 2], raw: as the file has them
    state: NDArray[np.int8]  # [N], a State
    published: "Located | None" = field(default=None, kw_only=True)

    @staticmethod
    def nowhere(count: int) -> "Located":
        """``count`` queries, all missing."""
        return Located(np.full((count, 2), np.nan), np.full(count, State.MISSING, np.int8))

    def put(self, row: int, value: Any) -> None:
        """The answer to query ``row``; unparsed unless it is a span (see ``read_span``)."""
        span = read_span(value)
        self.state[row] = State.UNPARSED if span is None else State.PARSED
        if span is not None:
            self.spans[row] = span

    def select(self, keep: NDArray[np.bool_]) -> "Located":
        return Located(self.spans[keep], self.state[keep])

    @property
    def parsed(self) -> NDArray[np.bool_]:
        return self.state == State.PARSED

    def counts(self, clipped: int = 0) -> dict[str, int]:
        """Of ``Scores.counts``."""
        return state_counts(self.state, clipped)


def state_counts(state: NDArray[np.int8], clipped: int = 0) -> dict[str, int]:
    """How many of the samples are in which state, in the words of ``Scores.counts``."""
    of = np.bincount(state, minlength=len(State)).tolist()
    scored, unparsed, missing = of[State.PARSED], of[State.UNPARSED], of[State.MISSING]
    return {"samples": sum(of), "scored": scored, "unparsed": unparsed, "missing": missing, "clipped": clipped}


def true_spans(spans: Sequence[Any], ids: Sequence[str], path: object) -> Floats:
    """The spans of a ground truth, ordered -> [N, 2]. Raises BenchmarkError naming the id of a bad one."""
    for name, span in zip(ids, spans, strict=True):
        good = isinstance(span, list | tuple) and len(span) == 2 and None not in map(seconds, span)
        need(good, f"{path}: {name!r}: the true span {str(span)[:60]} is not [start, end] in seconds")
    return np.sort(np.array(spans, np.float64).reshape(-1, 2), axis=-1)


def order_and_clip(spans: Floats, limits: Floats) -> tuple[Floats, NDArray[np.bool_]]:
    """Spans [N, 2] ordered and cut to [0, limit] (limits [N]; NaN: no limit) -> spans, which of them were cut [N]."""
    ordered = np.sort(spans, axis=-1)
    inside = np.clip(ordered, 0.0, np.where(np.isnan(limits), np.inf, limits)[:, None])
    return inside, np.any((inside != ordered) & ~np.isnan(ordered), axis=-1)


def grounding(ids: Sequence[str], ious: NDArray[np.floating], counts: dict[str, int], slack: float = 0.0) -> Scores:
    """``R1@t`` and ``mIoU`` in percent, as plain means over N queries with IoU [N] (0 without a usable answer)."""
    return means_of(ids, {f"R1@{t:g}": ious >= t - slack for t in THRESHOLDS} | {"mIoU": ious}, counts)


def means_of(ids: Sequence[str], samples: Mapping[str, NDArray], counts: dict[str, int]) -> Scores:
    """The mean of each metric of ``samples`` [N] in percent; None of nothing."""
    if not len(ids):
        return Scores(dict.fromkeys(samples), "percent", counts, notes=["no sample to score"])
    per_sample = {name: table(ids, values) for name, values in samples.items()}
    metrics = {name: 100.0 * float(np.mean(values, dtype=np.float64)) for name, values in samples.items()}
    return Scores(metrics, "percent", counts, per_sample)


def table(ids: Sequence[str], values: NDArray) -> dict[str, float]:
    """{id: value}, for ``Scores.per_sample``."""
    return dict(zip(ids, np.asarray(values, np.float64).tolist(), strict=True))


def corrected_grounding(truth: Moments, located: Located) -> Scores:
    """What R@1 and mIoU mean, whoever published them.

    Differences from the published scripts: IoU in float64 without an epsilon, one that is a threshold on paper is a
    hit; nothing floored, rounded or averaged over another number than all queries; a missing or unparsed answer, and
    one of no length, scores 0; a reversed span is ordered; a span is cut to the video, or to the true span's end
    where that lies behind the noted duration (as for 562 queries of Charades-STA).
    """
    spans, cut = order_and_clip(located.spans, np.maximum(truth.durations, truth.spans[:, 1]))  # NaN stays
    ious = np.nan_to_num(iou_union(spans, truth.spans))  # NaN: no span, or a point held against a point
    scores = grounding(truth.ids, ious, located.counts(int(cut.sum())), slack=SLACK)
    unknown = int(np.isnan(truth.durations).sum())
    if unknown:
        scores.notes.append(f"{unknown} of {len(truth)} queries have no duration: their spans are not cut at the end")
    return scores


def published_wordings(videos: str = "") -> dict[str, str]:
    """The published questions for a moment, and a plain one; D2VLM's says of what kind the ``videos`` are."""
    return {
        "distime": "Give you a textual query: '{query}'. When does the described content occur in the video? "
        "Please return the timestamp in seconds.",
        "d2vlm": f"You are given a video{videos}. Watch the video carefully and find a visual event described by the "
        "sentence: '{sentence}'. The format of your response should be: 'The event happens in <start time> - <end "
        "time>'.",
        "plain": "When does this happen in the video: '{query}'?",
    }


def moment_questions(ids: Texts, videos: Texts, queries: Texts, durations: Floats, wording: str) -> list[dict]:
    """One line for ``videollm.infer`` a query. ``wording`` has a place for ``{query}`` or, without its final period,
    ``{sentence}``; the video is ``<name>.mp4``."""
    lines = []
    for name, video, query, duration in zip(ids, videos, queries, durations.tolist(), strict=True):
        text = wording.format(query=query.lstrip(), sentence=query.strip().removesuffix("."))
        known = None if math.isnan(duration) else duration
        lines.append(question_line(name, video_file(video), text, duration=known))
    return lines


class MomentBenchmark(Benchmark):
    """A benchmark whose ground truth is ``Moments``, its predictions ``Located``; files are the task's."""

    settings = WITHOUT_BREAK
    wordings: ClassVar[Mapping[str, str]] = published_wordings()  # see ``moment_questions``

    def asked(self, truth: Moments) -> Iterable[tuple[str, str, str]]:
        """The queries."""
        return zip(truth.ids, truth.videos, truth.queries, strict=True)

    def questions(self, truth: Moments, wording: str) -> list[dict]:
        """One question a query; videos are ``<video>.mp4``."""
        text = worded(self.wordings, wording)
        return moment_questions(truth.ids, truth.videos, truth.queries, truth.durations, text)
