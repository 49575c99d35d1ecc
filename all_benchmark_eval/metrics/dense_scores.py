"""What the dense-captioning benchmarks share: ground truth, predictions and per-video measures under both protocols.

Texts go in as they were written and are tokenized here, all of a run in one call. Files, official formats, and how a
benchmark averages the measures are the tasks'. Spans in one unit, measures as fractions (CIDEr up to 10).
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import compress, cycle
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from all_benchmark_eval.benchmark import WITHOUT_BREAK, Benchmark, Options, Scores, worded
from all_benchmark_eval.items import need, read_span
from all_benchmark_eval.metrics import captions, dense
from all_benchmark_eval.metrics.dense import THRESHOLDS, Events, Floats, overlaps, precision_recall, soda
from all_benchmark_eval.metrics.intervals import iou_union
from all_benchmark_eval.metrics.java import JavaError, find_java
from all_benchmark_eval.metrics.moments import SLACK, State, moment_questions, order_and_clip, table
from videollm.common.answers import AnswerLine, split_spans
from videollm.reading import read_steps


@dataclass(frozen=True)
class DenseTruth:
    """V videos with their true events. ``durations`` [V] is NaN where unknown."""

    names: list[str]
    durations: Floats
    spans: list[list[list[float]]]  # [V], seconds, ordered
    captions: list[list[str]]  # [V]

    @staticmethod
    def of(videos: Iterable[tuple[str, float | None, Any, list[str]]], path: object) -> "DenseTruth":
        """From the (name, duration, spans, captions) of each. Raises BenchmarkError for one that is not usable."""
        found: dict[str, tuple] = {}
        for name, duration, spans, texts in videos:
            where = f"{path}: {name!r}"
            need(name not in found, f"{path}: the video {name!r} stands twice")
            need(all(isinstance(text, str) for text in texts), f"{where}: a caption is not a text")
            each = isinstance(spans, list) and len(spans) == len(texts)
            need(each, f"{where}: {len(texts)} captions, but not a list of as many spans")
            need(spans, f"{where}: no event")
            odd = [span for span in spans if read_span(span) is None]
            need(not odd, f"{where}: the span {next(iter(odd), None)!r} is not [start, end] in seconds")
            ordered = [sorted(read_span(span)) for span in spans]
            found[name] = (np.nan if duration is None else duration, ordered, texts)
        need(found, f"{path}: no video in it")
        durations, spans, texts = map(list, zip(*found.values(), strict=True))
        return DenseTruth(list(found), np.array(durations), spans, texts)

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def rows(self) -> dict[str, int]:
        """{name: place of the video}."""
        return {name: row for row, name in enumerate(self.names)}

    def select(self, keep: NDArray[np.bool_]) -> "DenseTruth":
        """The videos where ``keep`` [V] holds."""
        names, spans, texts = (list(compress(values, keep)) for values in (self.names, self.spans, self.captions))
        return DenseTruth(names, self.durations[keep], spans, texts)


@dataclass(frozen=True)
class DenseAnswers:
    """Predicted events of V videos in the order of the truth, as the file has them.

    ``published``: what a published script reads in the same file, where that is something else.
    """

    spans: list[list[list[float]]]  # [V]
    captions: list[list[str]]  # [V]
    state: NDArray[np.int8]  # [V], a State
    notes: list[str] = field(default_factory=list)
    published: "DenseAnswers | None" = None

    @staticmethod
    def none(count: int) -> "DenseAnswers":
        """``count`` videos, all missing."""
        spans, texts = ([[] for _ in range(count)] for _ in range(2))
        return DenseAnswers(spans, texts, np.full(count, State.MISSING, np.int8))

    def put(self, row: int, spans: list[list[float]], texts: list[str]) -> None:
        """The events of video ``row``; unparsed without any."""
        self.spans[row], self.captions[row] = spans, texts
        self.state[row] = State.PARSED if spans else State.UNPARSED

    def select(self, keep: NDArray[np.bool_]) -> "DenseAnswers":
        spans, texts = (list(compress(values, keep)) for values in (self.spans, self.captions))
        return DenseAnswers(spans, texts, self.state[keep], self.notes)


def answer_events(answer: AnswerLine) -> list[tuple[list[float], str]]:
    """(span, caption) of every event of an answer: the text behind each span, up to the next one.

    An event without a caption is left out. Text without spans in our own notation is read as any answer
    (``videollm.reading``).
    """
    (_, *texts), spans = split_spans(answer.text)
    if not spans:
        spans, texts = read_steps(answer.text)
    elif len(answer.spans) == len(spans):
        spans = answer.spans  # the same, not rounded
    events = zip(spans, (re.sub(r"^[\s,.:;]+", "", text).rstrip(" \t\r\n,") for text in texts), strict=True)
    return [(list(span), text) for span, text in events if text]


class Words:
    """The texts of a run as tokens, and which caption scores can be made.

    ``meteor``: METEOR is running (it is started here, before the caller goes on); ``tokens``: captions are tokenized.
    ``skip_meteor`` switches the first off, and the second as well where there is no Java.
    """

    def __init__(self, options: Options):
        self.meteor, self.tokens, self.notes = not options.skip_meteor, True, list[str]()
        self._known: dict[str, str] = {}
        if self.meteor:
            captions.start_meteor()
            return
        self.notes.append("METEOR and SODA_c are left out (--skip-meteor)")
        try:
            find_java()
        except JavaError:
            self.tokens = False
            self.notes.append("all caption scores are left out: there is no Java for the PTB tokenizer")

    def add(self, texts: Sequence[str]) -> None:
        """Tokenize texts. One call with all texts of a run."""
        if self.tokens:
            self._known.update(zip(texts, captions.tokenize(texts), strict=True))

    def __getitem__(self, text: str) -> str:
        """The tokens of a text; the text itself where nothing is tokenized."""
        return self._known[text] if self.tokens else text

    def events(self, spans: Sequence[Sequence[Sequence[float]]], texts: Sequence[Sequence[str]]) -> Events:
        """Events with tokenized captions."""
        return Events.of(spans, [[self[text] for text in video] for video in texts])

    def both(self, answers: DenseAnswers, truth: DenseTruth) -> tuple[Events, Events]:
        """(predicted, true) events of all videos of a run, with tokenized captions."""
        self.add([text for side in (answers.captions, truth.captions) for video in side for text in video])
        return self.events(answers.spans, answers.captions), self.events(truth.spans, truth.captions)


class DenseBenchmark(Benchmark):
    """A benchmark whose ground truth is ``DenseTruth``, its predictions ``DenseAnswers``; files are the task's."""

    settings = WITHOUT_BREAK
    headline = ("SODA_c", "CIDEr", "METEOR", "F1")
    wordings: ClassVar[Mapping[str, str]]
    metrics: ClassVar[tuple[str, ...]]  # in printing order

    def asked(self, truth: DenseTruth) -> Iterable[tuple[str, str, str]]:
        """The videos, of each of which the same is asked."""
        return ((name, name, "") for name in truth.names)

    def questions(self, truth: DenseTruth, wording: str) -> list[dict]:
        """One question a video; videos are ``<video>.mp4`` where they name no container."""
        videos, text = [name.removesuffix(".mp4") for name in truth.names], worded(self.wordings, wording)
        return moment_questions(truth.names, videos, [""] * len(videos), truth.durations, text)

    def scores(
        self, names: Sequence[str], means: Mapping[str, float], flat: Mapping[str, Floats], counts: dict, notes: list
    ) -> Scores:
        """``means`` in percent, None where there is none, and the values [V] of each video."""
        metrics = {name: means.get(name) for name in self.metrics}
        per_sample = {name: table(names, flat[name]) for name in self.metrics if name in flat}
        return Scores(metrics, "percent", counts, per_sample, notes=notes)


def plain(text: str) -> str:
    """A caption as some scripts hand it to the tokenizer: a blank for every character that is not ASCII."""
    return "".join(char if ord(char) < 128 else " " for char in text)


def published_measures(
    words: Words, predicted: Events, true: Events, iou: dense.Measure, seed: int, heard: Sequence[str] | None = None
) -> dict[str, Floats]:
    """Per-video measures as the published scripts have them, each [V, 4] (IoU thresholds) but SODA_c [V].

    Precision, Recall; CIDEr, METEOR, ROUGE_L, BLEU_1..4 of each video's pairs as one corpus (a prediction that matches
    nothing is paired with random letters). SODA_c takes the prediction for the reference and the truth for the
    hypothesis of METEOR; ``heard`` [P] are the predicted captions as SODA_c gets them, if not in their order.
    """
    over = overlaps(predicted, true, iou)
    precision, recall = precision_recall(over, predicted, true, lambda values, threshold: values > threshold)
    measures = {"Precision": precision, "Recall": recall}
    if not words.tokens:
        return measures
    groups = dense.caption_groups(over, predicted, true, THRESHOLDS, cycle(captions.random_letters(1, seed)))
    scores = {"CIDEr": captions.cider(groups), "ROUGE_L": captions.rouge_l(groups)}
    scores |= {f"BLEU_{n}": column for n, column in enumerate(captions.bleu(groups).T, start=1)}
    if words.meteor:
        scores["METEOR"] = captions.meteor(groups)
        heard = predicted.captions if heard is None else heard
        pairs = [(true.captions[t], heard[p]) for p, t in zip(over.predicted, over.true, strict=True)]
        measures["SODA_c"] = soda(over, predicted, true, _where(over.iou > 0, pairs, captions.meteor_pairs))
    return measures | {name: values.reshape(len(THRESHOLDS), -1).T for name, values in scores.items()}


def corrected_measures(words: Words, predicted: Events, true: Events) -> dict[str, Floats]:
    """Per-video measures as they are meant, each [V, 4] (IoU thresholds) but SODA_c [V].

    Precision, Recall, METEOR, CIDEr, ROUGE_L, SODA_c. Differences from the published scripts: IoU without an epsilon,
    and one that equals the threshold counts everywhere; a caption score is the mean over pairs, where a prediction that
    matches nothing counts 0, not a corpus score that random letters stand in; document frequencies of CIDEr come from
    all true captions, so that a video with one pair can score; SODA_c has prediction and truth in METEOR's order and
    takes the events of both sides in order of time.
    """
    predicted, true = predicted.by_start(), true.by_start()
    over = overlaps(predicted, true, lambda a, b: np.nan_to_num(iou_union(a, b)))
    passes = lambda values, threshold: values >= threshold - SLACK  # noqa: E731
    precision, recall = precision_recall(over, predicted, true, passes)
    measures = {"Precision": precision, "Recall": recall}
    if not words.tokens:
        return measures
    pairs = [(predicted.captions[p], true.captions[t]) for p, t in zip(over.predicted, over.true, strict=True)]
    near = passes(over.iou, THRESHOLDS[0])
    scores = {
        "CIDEr": _where(near, pairs, lambda some: captions.cider_pairs([some], true.captions)[0]),
        "ROUGE_L": _where(near, pairs, captions.rouge_l_pairs),
    }
    if words.meteor:
        scores["METEOR"] = _where(over.iou > 0, pairs, captions.meteor_pairs)
        measures["SODA_c"] = soda(over, predicted, true, scores["METEOR"])
    alone = dense.unmatched(over, predicted, [t - SLACK for t in THRESHOLDS])  # [4, V]
    video = predicted.owner[over.predicted]
    for name, values in scores.items():
        columns = []
        for threshold, lonely in zip(THRESHOLDS, alone, strict=True):
            hit = passes(over.iou, threshold)
            count = np.bincount(video[hit], minlength=len(lonely)) + lonely
            columns.append(np.bincount(video[hit], weights=values[hit], minlength=len(lonely)) / np.maximum(count, 1))
        measures[name] = np.stack(columns, axis=1)
    return measures


def _where(keep: NDArray[np.bool_], pairs: Sequence[captions.Pair], score: Callable) -> Floats:
    """Scores [K] of the pairs where ``keep`` holds, 0 elsewhere."""
    values = np.zeros(len(pairs))
    if keep.any():
        values[keep] = score([pairs[k] for k in np.flatnonzero(keep)])
    return values


def clip_events(truth: DenseTruth, answers: DenseAnswers) -> tuple[DenseAnswers, int]:
    """The answers with every span ordered and cut to its video, and how many spans that cut.

    A video ends with its last true event where that lies behind the noted duration; nothing is cut where none is noted.
    """
    last = np.array([max(end for _, end in spans) for spans in truth.spans])
    sizes = [len(video) for video in answers.spans]
    limits = np.repeat(np.where(np.isnan(truth.durations), np.nan, np.maximum(truth.durations, last)), sizes)
    flat = np.array([span for video in answers.spans for span in video], np.float64).reshape(-1, 2)
    inside, cut = order_and_clip(flat, limits)
    parts = np.split(inside, np.cumsum(sizes)[:-1])
    return replace(answers, spans=[part.tolist() for part in parts]), int(cut.sum())


def mean_over_thresholds(measures: dict[str, Floats]) -> dict[str, Floats]:
    """Per-video values [V] under flat names: Precision@t, Recall@t, and each measure's mean over the thresholds."""
    flat = {name: values if values.ndim == 1 else values.mean(1) for name, values in measures.items()}
    for name in ("Precision", "Recall"):
        flat |= {f"{name}@{t:g}": measures[name][:, k] for k, t in enumerate(THRESHOLDS)}
    return flat
