"""What the grounding benchmarks share: one predicted span a query, held against true ones.

Ground truth and predictions are arrays over the queries, in the order of the truth; a query without a usable answer
stays in them. Files and official formats are the tasks'. Seconds everywhere; shares in percent, IoUs in [0, 1].
"""

import enum
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import compress
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from all_benchmark_eval.benchmark import WITHOUT_BREAK, Benchmark, Explanation, Options, Scores, worded
from all_benchmark_eval.items import Asked, known_length, need, question_line, read_span, seconds, video_file
from all_benchmark_eval.metrics.intervals import iou_union
from all_benchmark_eval.metrics.parsing import split_evidence
from videollm.common.answers import split_spans
from videollm.reading.spans import explain_spans, read_spans
from videollm.reading.styles import STYLES

THRESHOLDS = (0.3, 0.5, 0.7)
RANKS = 5  # spans of a query that R5 looks at
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

    ``durations`` is NaN where unknown. ``ids`` are those of questions, per-sample scores and messages. ``kinds``: of
    which kind each query is, by which the scores are broken down; empty where the data set tells none.
    """

    ids: list[str]
    videos: list[str]  # names without .mp4
    queries: list[str]
    spans: Floats  # [N, 2]
    durations: Floats  # [N]
    kinds: Texts = ()  # [N] or none

    @staticmethod
    def of(queries: Iterable[tuple[str, str, str, Any, float]], path: object, kinds: Texts = ()) -> "Moments":
        """From the (id, video, query, span, duration) of each. Raises BenchmarkError for a bad or repeated one."""
        queries = list(queries)
        need(queries, f"{path}: no sentence in it")
        ids, videos, texts, spans, durations = map(list, zip(*queries, strict=True))
        twice, times = Counter(ids).most_common(1)[0]
        need(times == 1, f"{path}: {twice!r} stands twice; answers to it could not be told apart")
        return Moments(ids, videos, texts, true_spans(spans, ids, path), np.array(durations), kinds)

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def rows(self) -> dict[str, int]:
        """{id: place of the query}."""
        return {name: row for row, name in enumerate(self.ids)}

    def asked(self) -> Iterable[Asked]:
        """The queries, with the lengths of their videos."""
        return map(Asked, self.ids, self.videos, self.queries, map(known_length, self.durations))

    def select(self, keep: NDArray[np.bool_]) -> "Moments":
        """The queries where ``keep`` [N] holds."""
        lists = (list(compress(values, keep)) for values in (self.ids, self.videos, self.queries))
        return Moments(*lists, self.spans[keep], self.durations[keep], list(compress(self.kinds, keep)))


@dataclass(frozen=True)
class Located:
    """Predicted span and state of N queries; a span that is not PARSED is NaN.

    ``published``: what a published script reads in the same file, where that is something else. ``ranked``: of a query
    with several spans all of them, the best first; ``told``: the text of an answer, or of what the file has in place of
    a span. Both by the place of the query, where the reader of the file knows them. ``worded``: the queries whose
    answer is told by such a text alone, from which a published script may read something else.
    """

    spans: Floats  # [N, 2], raw: as the file has them
    state: NDArray[np.int8]  # [N], a State
    published: "Located | None" = field(default=None, kw_only=True)
    ranked: dict[int, list[tuple[float, float]]] = field(default_factory=dict, kw_only=True)
    told: dict[int, str] = field(default_factory=dict, kw_only=True)
    worded: set[int] = field(default_factory=set, kw_only=True)

    @staticmethod
    def nowhere(count: int) -> "Located":
        """``count`` queries, all missing."""
        return Located(np.full((count, 2), np.nan), np.full(count, State.MISSING, np.int8))

    def put(self, row: int, value: Any, text: str | None = None) -> None:
        """The answer to query ``row``: a span or a list of them, the best first; unparsed unless the first is a span
        (see ``read_span``). ``text``: what the answer says, where the file has it."""
        several = isinstance(value, list) and value and isinstance(value[0], list)
        spans = [read_span(each) for each in value] if several else [read_span(value)]
        self.state[row] = State.UNPARSED if spans[0] is None else State.PARSED
        if spans[0] is not None:
            self.spans[row] = spans[0]
        if spans[0] is not None and len(spans) > 1:
            self.ranked[row] = [span for span in spans if span is not None]
        if text is not None or spans[0] is None:
            self.told[row] = str(value) if text is None else text
        if text is not None:
            self.worded.add(row)

    def select(self, keep: NDArray[np.bool_]) -> "Located":
        place = np.cumsum(keep) - 1
        kept = [{int(place[row]): v for row, v in d.items() if keep[row]} for d in (self.ranked, self.told)]
        worded = {int(place[row]) for row in self.worded if keep[row]}
        return Located(self.spans[keep], self.state[keep], ranked=kept[0], told=kept[1], worded=worded)

    @property
    def parsed(self) -> NDArray[np.bool_]:
        return self.state == State.PARSED

    def counts(self, clipped: int = 0) -> dict[str, int]:
        """Of ``Scores.counts``."""
        return state_counts(self.state, clipped)

    def unread(self, ids: Texts) -> dict[str, str]:
        """Of ``Scores.unread``."""
        return unread_of(ids, self.state, self.told)


Script = Callable[[Moments, Located], Scores]


def state_counts(state: NDArray[np.int8], clipped: int = 0) -> dict[str, int]:
    """How many of the samples are in which state, in the words of ``Scores.counts``."""
    of = np.bincount(state, minlength=len(State)).tolist()
    scored, unparsed, missing = of[State.PARSED], of[State.UNPARSED], of[State.MISSING]
    return {"samples": sum(of), "scored": scored, "unparsed": unparsed, "missing": missing, "clipped": clipped}


def unread_of(ids: Texts, state: NDArray[np.int8], told: Mapping[int, str]) -> dict[str, str]:
    """{id: text} of the unparsed answers; ``told`` has texts by the place of the sample."""
    return {ids[row]: told.get(row, "") for row in np.flatnonzero(state == State.UNPARSED).tolist()}


def true_spans(spans: Sequence[Any], ids: Sequence[str], path: object) -> Floats:
    """The spans of a ground truth, ordered -> [N, 2]. Raises BenchmarkError naming the id of a bad one."""
    for name, span in zip(ids, spans, strict=True):
        good = isinstance(span, list | tuple) and len(span) == 2 and None not in map(seconds, span)
        need(good, f"{path}: {name!r}: the true span {str(span)[:60]} is not [start, end] in seconds")
    return np.sort(np.array(spans, np.float64).reshape(-1, 2), axis=-1)


def order_and_clip(spans: Floats, limits: Floats) -> tuple[Floats, NDArray[np.bool_]]:
    """Spans [N, 2] ordered and cut to [0, limit] (limits [N]; NaN: no limit) -> spans, which of them were cut [N].

    [N, K, 2] of K spans each as well, which gives [N, K].
    """
    ordered = np.sort(spans, axis=-1)
    ends = np.where(np.isnan(limits), np.inf, limits).reshape(-1, *[1] * (spans.ndim - 1))
    inside = np.clip(ordered, 0.0, ends)
    return inside, np.any((inside != ordered) & ~np.isnan(ordered), axis=-1)


def no_length(spans: Floats) -> list[str]:
    """A note on true spans [N, 2] without length, if there are any."""
    count = int((spans[:, 0] == spans[:, 1]).sum())
    return [f"{count} true spans have no length: nothing overlaps them, whatever is predicted"] * (count > 0)


def top_recalls(
    true: Floats, located: Located, iou: Callable[[Floats, Floats], NDArray[np.floating]], slack: float = 0.0
) -> dict[str, NDArray[np.bool_]]:
    """``R5@t``: whether one of the first five spans of each query has an IoU of t with the true one -> [N] each.

    Empty unless a query has several spans. A query with one span has that one.
    """
    if not located.ranked:
        return {}
    spans = np.full((len(true), RANKS, 2), np.nan)
    spans[:, 0] = located.spans
    for row, ranked in located.ranked.items():
        spans[row, : len(ranked)] = ranked[:RANKS]
    best = np.nan_to_num(iou(spans, true[:, None])).max(-1)
    return {f"R{RANKS}@{t:g}": best >= t - slack for t in THRESHOLDS}


def grounding(
    truth: Moments, located: Located, ious: NDArray[np.floating], slack: float = 0.0, clipped: int = 0,
    top: Mapping[str, NDArray] = MappingProxyType({}), keep: NDArray[np.bool_] | None = None,
    reaches: Callable[[NDArray, float], NDArray] = np.greater_equal,
) -> Scores:  # fmt: skip
    """``R1@t`` and ``mIoU`` in percent, as plain means over N queries with IoU [N] (0 without a usable answer), and the
    means of ``top`` (see ``top_recalls``). ``keep`` [N]: the means are over these queries only. ``reaches``: whether an
    IoU is a hit at a threshold."""
    samples = {f"R1@{t:g}": reaches(ious, t - slack) for t in THRESHOLDS} | dict(top) | {"mIoU": ious}
    ids = truth.ids
    if keep is not None:
        ids, samples = list(compress(ids, keep)), {name: values[keep] for name, values in samples.items()}
    scores = means_of(ids, samples, located.counts(clipped))
    scores.unread = located.unread(truth.ids)
    scores.notes += no_length(truth.spans)
    return scores


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
    limits = np.maximum(truth.durations, truth.spans[:, 1])  # NaN stays
    spans, cut = order_and_clip(located.spans, limits)
    ious = np.nan_to_num(iou_union(spans, truth.spans))  # NaN: no span, or a point held against a point
    inside = lambda several, true: iou_union(order_and_clip(several, limits)[0], true)  # noqa: E731
    top = top_recalls(truth.spans, located, inside, SLACK)
    scores = grounding(truth, located, ious, SLACK, int(cut.sum()), top)
    unknown = int(np.isnan(truth.durations).sum())
    if unknown:
        scores.notes.append(f"{unknown} of {len(truth)} queries have no duration: their spans are not cut at the end")
    return scores


def by_kind(scores: Scores, truth: Moments) -> Scores:
    """With every mean broken down by the kind of query, as ``<metric>/<kind>``."""
    kinds = dict(zip(truth.ids, truth.kinds, strict=False))
    scale = 100.0 if scores.unit == "percent" else 1.0
    for kind in sorted({*truth.kinds} - {""}):
        for metric, values in list(scores.per_sample.items()):
            own = {name: value for name, value in values.items() if kinds.get(name) == kind}
            if own and "/" not in metric:
                scores.per_sample[f"{metric}/{kind}"] = own
                scores.metrics[f"{metric}/{kind}"] = scale * float(np.mean(list(own.values())))
    return scores


def explain_span(located: Located, row: int, true: list, duration: float) -> Explanation:
    """What was read of query ``row``. The rule is the reader's of free text where the text is known and says the same
    as what was scored; else the file has the span in a form of its own."""
    state = State(int(located.state[row]))
    if state == State.MISSING:
        return Explanation(None, "nothing", "no answer in the file", str(true))
    span = located.spans[row].tolist() if state == State.PARSED else None
    text = located.told.get(row)
    told = None if text is None else explain_spans(split_evidence(text)[1], known_length(duration))
    if told is not None and (told.value[:1] or [None])[0] == span:
        rule = told.rule
    else:
        rule = "as the file has it" if span else "not [start, end] in seconds"
    return Explanation(text, "nothing" if span is None else str(span), rule, str(true))


def published_wordings(videos: str = "") -> dict[str, str]:
    """The published questions for a moment, and a plain one; D2VLM's says of what kind the ``videos`` are."""
    return {
        "distime": "Give you a textual query: '{query}'. When does the described content occur in the video? "
        "Please return the timestamp in seconds.",
        "d2vlm": f"You are given a video{videos}. Watch the video carefully and find a visual event described by the "
        "sentence: '{sentence}'. The format of your response should be: 'The event happens in <start time> - <end "
        "time>'.",
        "plain": "When does this happen in the video: '{query}'?",
        **{name: style.moment for name, style in STYLES.items()},
    }


def moment_questions(
    ids: Texts, videos: Texts, queries: Texts, durations: Floats, wording: str,
    file_of: Callable[[str], str] = video_file,
) -> list[dict]:  # fmt: skip
    """One line for ``videollm.infer`` a query. ``wording`` has a place for ``{query}`` or, without its final period,
    ``{sentence}``, and may have one for the seconds of the video, ``{duration}``; ``file_of``: name -> path of a video.
    """
    lines = []
    for name, video, query, duration in zip(ids, videos, queries, durations.tolist(), strict=True):
        text = wording.format(query=query.lstrip(), sentence=query.strip().removesuffix("."), duration=duration)
        lines.append(question_line(name, file_of(video), text, duration=known_length(duration)))
    return lines


class MomentBenchmark(Benchmark):
    """A benchmark whose ground truth is ``Moments``, its predictions ``Located``; files are the task's.

    ``scripts``: what each variant's published script makes of the two, the benchmark's own first.
    """

    settings = WITHOUT_BREAK
    scripts: ClassVar[Mapping[str, Script]]
    wordings: ClassVar[Mapping[str, str]] = published_wordings()  # see ``moment_questions``

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        cls.variants = tuple(getattr(cls, "scripts", cls.variants))

    def asked(self, truth: Moments) -> Iterable[Asked]:
        return truth.asked()

    def score(self, truth: Moments, predictions: Located, options: Options) -> Scores:
        """Metrics in percent. ``published``: by the variant's script. ``corrected``: see ``corrected_grounding``."""
        script = corrected_grounding if options.protocol == "corrected" else self.scripts[options.variant]
        return by_kind(script(truth, predictions), truth)

    def file_of(self, video: str) -> str:
        """The path of a video below the folder of the videos."""
        return video_file(video)

    def questions(self, truth: Moments, wording: str) -> list[dict]:
        """One question a query."""
        text = worded(self.wordings, wording)
        return moment_questions(truth.ids, truth.videos, truth.queries, truth.durations, text, self.file_of)

    def explain(self, truth: Moments, predictions: Located, name: str) -> Explanation:
        """The span that counts, and how it was read."""
        need(name in truth.rows, f"--explain: the annotations have no query {name!r}")
        row = truth.rows[name]
        return explain_span(predictions, row, truth.spans[[row]].tolist(), float(truth.durations[row]))

    def keep_texts(self, truth: Moments, predictions: Located, texts: Mapping[str, str]) -> None:
        """Also, which spans are told by the text alone: not those of a head's tokens, nor of evidence before it."""
        for row, text in ((row, texts[name]) for name, row in truth.rows.items() if name in texts):
            predictions.told[row] = text
            span = predictions.spans[[row]][predictions.parsed[[row]]].tolist()
            if not split_spans(text)[1] and read_spans(text, known_length(truth.durations[row]))[:1] == span:
                predictions.worded.add(row)
