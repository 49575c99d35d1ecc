"""What the dense-captioning benchmarks share: ground truth, predictions and per-video measures under both protocols.

Texts go in as they were written and are tokenized here, all of a run in one call. Files, official formats, and how a
benchmark averages the measures are the tasks'. Spans in one unit, measures as fractions (CIDEr up to 10).
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from all_benchmark_eval.benchmark import BenchmarkError, Options
from all_benchmark_eval.metrics import captions
from all_benchmark_eval.metrics.dense import (
    THRESHOLDS,
    Events,
    Floats,
    caption_groups,
    overlaps,
    precision_recall,
    soda,
    unmatched,
)
from all_benchmark_eval.metrics.intervals import iou_union
from all_benchmark_eval.metrics.java import JavaError, find_java
from all_benchmark_eval.metrics.moments import SLACK, State, order_and_clip, read_span
from all_benchmark_eval.metrics.parsing import read_steps
from videollm.common.answers import AnswerLine, split_spans


@dataclass(frozen=True)
class DenseTruth:
    """V videos with their true events. ``durations`` [V] is NaN where unknown."""

    names: list[str]
    durations: Floats
    spans: list[list[list[float]]]  # [V], seconds, ordered
    captions: list[list[str]]  # [V]

    def __len__(self) -> int:
        return len(self.names)

    def select(self, keep: NDArray[np.bool_]) -> "DenseTruth":
        """The videos where ``keep`` [V] holds."""
        return DenseTruth(
            _kept(self.names, keep), self.durations[keep], _kept(self.spans, keep), _kept(self.captions, keep)
        )


@dataclass(frozen=True)
class DenseAnswers:
    """Predicted events of V videos in the order of the truth, as the file has them."""

    spans: list[list[list[float]]]  # [V]
    captions: list[list[str]]  # [V]
    state: NDArray[np.int8]  # [V], a State
    notes: list[str] = field(default_factory=list)

    @staticmethod
    def none(count: int) -> "DenseAnswers":
        """``count`` videos, all missing."""
        return DenseAnswers(
            [[] for _ in range(count)], [[] for _ in range(count)], np.full(count, State.MISSING, np.int8)
        )

    def put(self, row: int, spans: list[list[float]], texts: list[str]) -> None:
        """The events of video ``row``; unparsed without any."""
        self.spans[row], self.captions[row] = spans, texts
        self.state[row] = State.PARSED if spans else State.UNPARSED

    def select(self, keep: NDArray[np.bool_]) -> "DenseAnswers":
        return DenseAnswers(_kept(self.spans, keep), _kept(self.captions, keep), self.state[keep], self.notes)


def _kept(values: list, keep: NDArray[np.bool_]) -> list:
    return [value for value, kept in zip(values, keep, strict=True) if kept]


def check_truth(truth: DenseTruth, path: object) -> DenseTruth:
    """``truth`` with ordered spans. Raises BenchmarkError naming the video whose events are not usable."""
    if not truth.names:
        raise BenchmarkError(f"{path}: no video in it")
    ordered = []
    for name, spans, texts in zip(truth.names, truth.spans, truth.captions, strict=True):
        where = f"{path}: {name!r}"
        if not isinstance(spans, list) or len(spans) != len(texts):
            raise BenchmarkError(f"{where}: {len(texts)} captions, but not a list of as many spans")
        if not spans:
            raise BenchmarkError(f"{where}: no event")
        read = [read_span(span) for span in spans]
        if None in read:
            raise BenchmarkError(f"{where}: the span {spans[read.index(None)]!r} is not [start, end] in seconds")
        ordered.append([sorted(span) for span in read])
    return replace(truth, spans=ordered)


def answer_events(answer: AnswerLine) -> list[tuple[list[float], str]]:
    """(span, caption) of every event of an answer: the text behind each span, up to the next one.

    An event without a caption is left out. Text without spans in our own notation is read as any answer
    (``parsing.read_steps``).
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


def published_measures(
    words: Words,
    predicted: Events,
    true: Events,
    iou: Callable[[Floats, Floats], Floats],
    seed: int,
    heard: Sequence[str] | None = None,
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
    filler = captions.random_letters(1, seed)[0]
    groups = [g for row in caption_groups(over, predicted, true, lambda t: t, filler) for g in row]
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
    alone = unmatched(over, predicted, lambda t: t - SLACK)  # [4, V]
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
