"""Dense captioning: predicted events (a span and a caption) held against the true events of the same video.

Events of all videos lie one after the other in arrays, a video's events together, so that everything is computed for
all videos at once; results have one row a video. Captions are tokenized (``captions.tokenize``). Files, official
formats and what is averaged over what are the tasks'.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from all_benchmark_eval.metrics.captions import Group, Pair

THRESHOLDS = (0.3, 0.5, 0.7, 0.9)

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Measure = Callable[[Floats, Floats], Floats]  # of spans [K, 2] and [K, 2] -> IoU [K]


@dataclass(frozen=True)
class Events:
    """N events of V videos."""

    sizes: Ints  # [V], events of each video
    spans: Floats  # [N, 2], in any one unit
    captions: list[str]  # N

    @staticmethod
    def of(spans: Sequence[Sequence[Sequence[float]]], captions: Sequence[Sequence[str]]) -> "Events":
        """From one list of [start, end] and one of captions a video."""
        sizes = np.array([len(video) for video in captions], dtype=np.int64)
        flat = list(chain.from_iterable(spans))
        return Events(sizes, np.array(flat, np.float64).reshape(-1, 2), list(chain.from_iterable(captions)))

    @property
    def owner(self) -> Ints:
        """The video of each event, [N]."""
        return np.repeat(np.arange(len(self.sizes)), self.sizes)

    @property
    def first(self) -> Ints:
        """Where each video's events begin, [V]."""
        return np.cumsum(self.sizes) - self.sizes

    def by_start(self) -> "Events":
        """The events of each video in order of their starts; equal ones stay in order."""
        order = np.lexsort((self.spans[:, 0], self.owner))
        return Events(self.sizes, self.spans[order], [self.captions[i] for i in order])


def pool(references: Sequence[Events]) -> Events:
    """The events of several references of the same videos as one list a video, first reference first."""
    if len(references) == 1:
        return references[0]
    owner = np.concatenate([events.owner for events in references])
    order = np.argsort(owner, kind="stable")
    texts = list(chain.from_iterable(events.captions for events in references))
    spans = np.concatenate([events.spans for events in references])[order]
    return Events(sum(events.sizes for events in references), spans, [texts[i] for i in order])


@dataclass(frozen=True)
class Overlaps:
    """Every predicted event with every true event of its video: K combinations, by video, prediction, truth."""

    predicted: Ints  # [K], index of the predicted event
    true: Ints  # [K], index of the true event
    iou: Floats  # [K]
    best_predicted: Floats  # [P], the highest IoU of each predicted event; -1 without a true one
    best_true: Floats  # [T], likewise


def overlaps(predicted: Events, true: Events, iou: Measure) -> Overlaps:
    """``iou`` takes spans [K, 2] and [K, 2]. Raises ValueError if the events are not of the same videos."""
    if len(predicted.sizes) != len(true.sizes):
        raise ValueError(f"events of {len(predicted.sizes)} and of {len(true.sizes)} videos")
    partners = true.sizes[predicted.owner]  # [P]
    index_p = np.repeat(np.arange(len(partners)), partners)
    before = np.repeat(np.cumsum(partners) - partners, partners)  # combinations of the predictions before
    index_t = true.first[predicted.owner[index_p]] + np.arange(len(index_p)) - before
    values = iou(predicted.spans[index_p], true.spans[index_t])
    best_p, best_t = np.full(len(predicted.spans), -1.0), np.full(len(true.spans), -1.0)
    np.maximum.at(best_p, index_p, values)
    np.maximum.at(best_t, index_t, values)
    return Overlaps(index_p, index_t, values, best_p, best_t)


def precision_recall(
    over: Overlaps, predicted: Events, true: Events, passes: Callable[[Floats, float], NDArray[np.bool_]]
) -> tuple[Floats, Floats]:
    """(precision, recall), each [V, 4]: share of a video's events that overlap any event of the other side enough.

    Pairing is not one to one. 0 for a video without such events. ``passes(iou, threshold)`` says what is enough.
    """
    return _shares(over.best_predicted, predicted, passes), _shares(over.best_true, true, passes)


def caption_groups(
    over: Overlaps, predicted: Events, true: Events, least: Sequence[float], filler: Iterator[str] | None
) -> list[Group]:
    """Pairs of captions for each threshold of ``least`` and, within it, each video: T * V groups.

    Every (prediction, truth) with an IoU of at least the threshold is a pair, so one prediction may stand in several. A
    prediction without a true event is paired with the next of ``filler``, or left out if that is None.
    """
    owner, groups = predicted.owner, []
    for threshold in least:
        of_video: list[list[Pair]] = [[] for _ in predicted.sizes]
        for k in np.flatnonzero(over.iou >= threshold):
            p, t = over.predicted[k], over.true[k]
            of_video[owner[p]].append((predicted.captions[p], true.captions[t]))
        if filler is not None:
            for p in np.flatnonzero(~(over.best_predicted >= threshold)):  # NaN as well
                of_video[owner[p]].append((predicted.captions[p], next(filler)))
        groups += of_video
    return groups


def unmatched(over: Overlaps, predicted: Events, least: Sequence[float]) -> Ints:
    """Predictions without a true event at each threshold of ``least``, [T, V]."""
    lonely = over.best_predicted[None] < np.array(least)[:, None]  # [T, P]
    return np.stack([np.bincount(predicted.owner[row], minlength=len(predicted.sizes)) for row in lonely])


def soda(over: Overlaps, predicted: Events, true: Events, similarity: Floats) -> Floats:
    """SODA of each video, [V, 3]: F-measure, precision and recall of the best alignment that keeps both lists' order.

    ``similarity`` [K] is of the captions; an aligned pair earns its IoU times that. 0 for a video without events on
    either side (Fujita et al., "SODA: Story Oriented Dense Video Captioning Evaluation", ECCV 2020).
    """
    ends = np.cumsum(predicted.sizes * true.sizes)  # [V], of each video's combinations; no video: one empty part
    videos = zip(np.split(over.iou * similarity, ends[:-1]), predicted.sizes, true.sizes, strict=False)
    total = np.array([_best_alignment(earned.reshape(p, t)) for earned, p, t in videos])
    precision, recall = total / np.maximum(predicted.sizes, 1), total / np.maximum(true.sizes, 1)
    return np.stack([harmonic(precision, recall), precision, recall], axis=-1)


def harmonic(a: Floats, b: Floats) -> Floats:
    """Harmonic mean, 0 where both are 0."""
    total = np.asarray(a + b, dtype=np.float64)
    return np.divide(2 * a * b, total, out=np.zeros_like(total), where=total > 0)


def _shares(best: Floats, events: Events, passes: Callable[[Floats, float], NDArray[np.bool_]]) -> Floats:
    """Share [V, 4] of each video's events whose best IoU passes."""
    hits = [np.bincount(events.owner[passes(best, t)], minlength=len(events.sizes)) for t in THRESHOLDS]
    return np.stack(hits, axis=1) / np.maximum(events.sizes, 1)[:, None]


def _best_alignment(earned: Floats) -> float:
    """The highest sum of entries of [P, T] that go down and to the right, at most one a row and a column."""
    row = np.zeros(earned.shape[1] + 1)
    for gain in earned:
        row[1:] = np.maximum(row[1:], row[:-1] + gain)
        np.maximum.accumulate(row, out=row)
    return float(row[-1])
