"""tvg, epm, tem, tal, evs and vhd of E.T. Bench as the published scripts score them.

The rules: published_systems.md#et-bench-tasks.

Each function takes the samples of one task and source and gives an ``Outcome`` with the numbers of the official table
as fractions, not rounded. "F1" of tvg and epm is a recall, as published. The variants ``d2vlm`` and ``d2vlm_looser``
score the evidence as well. Text is read in ``parsing``; files are not known here.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from all_benchmark_eval.etbench.outcomes import EVIDENCE_VARIANTS, THRESHOLDS, Outcome, at_each, by_id, states_of
from all_benchmark_eval.etbench.samples import Sample, Spans
from all_benchmark_eval.metrics.intervals import iou_union
from all_benchmark_eval.metrics.parsing import (
    DELIMITER,
    published_number,
    published_spans,
    published_spans_with_evidence,
)

_BINS = 1000  # of one second: what lies behind them does not count

Floats32 = NDArray[np.float32]


@dataclass(frozen=True)
class Parsed:
    """The samples of a source with what their answers tell; ``answers`` [N] holds None where an answer failed."""

    samples: Sequence[Sample]
    answers: list[Any]
    evidence: list[Any]  # None: none was told
    stops: list[str]

    def outcome(self, numbers: dict, per_sample: dict[str, dict[str, float]]) -> Outcome:
        """With the two counts that every table starts with."""
        read = [answer is not None for answer in self.answers]
        numbers = {"Total": len(read), "Failed": read.count(False)} | numbers
        return Outcome(numbers, per_sample, states_of(self.samples, read), self.stops)

    def told(self) -> list[Any]:
        """The evidence of each answer, the answer itself where there is none; None for an answer that failed."""
        return [a if a is None or e is None else e for a, e in zip(self.answers, self.evidence, strict=True)]


def parse(samples: Sequence[Sample], read: Callable[[str], tuple[Any, Any]]) -> Parsed:
    """``read(text)`` gives (answer, evidence), or raises ValueError where the published script stops."""
    found, stops = [], []
    for sample in samples:
        try:
            found.append((None, None) if sample.answer is None else read(sample.answer))
        except ValueError:
            found.append((None, None))
            stops.append(sample.id)
    return Parsed(samples, [answer for answer, _ in found], [evidence for _, evidence in found], stops)


def read_all(variant: str) -> Callable[[str], tuple[Spans | None, Spans | None]]:
    """How a variant reads spans: published_systems.md#et-bench-spans."""
    if variant in EVIDENCE_VARIANTS:
        return published_spans_with_evidence
    return lambda text: (published_spans(text), None)


def moment(samples: Sequence[Sample], variant: str) -> Outcome:
    """tvg, epm: the first span; with evidence, the best of all spans."""
    return _recalled(samples, variant, "F1", "F1", every_span=variant in EVIDENCE_VARIANTS)


def event(samples: Sequence[Sample], variant: str) -> Outcome:
    """tem: the first span with the true span that it fits best."""
    return _recalled(samples, variant, "R", "mRec", every_span=False)


def actions(samples: Sequence[Sample], variant: str) -> Outcome:
    """tal: F1 of spans that are not paired one to one.

    Evidence earns only where the answer reaches the threshold; evidence without any hit sets the sum so far to 0.
    """
    parsed = parse(samples, read_all(variant))
    scores = np.zeros((len(samples), len(THRESHOLDS)))  # [N, 4]
    evidence_sums = np.zeros(len(THRESHOLDS))
    for row, (sample, answer, evidence) in enumerate(zip(samples, parsed.answers, parsed.evidence, strict=True)):
        if answer is None:
            continue
        iou = _ious(sample.spans, answer)  # [T, P]
        evidence_iou = _ious(sample.spans, evidence) if evidence else iou
        for k, threshold in enumerate(THRESHOLDS):
            if not iou.max() >= np.float32(threshold):
                continue
            scores[row, k] = _set_f1(iou, threshold)
            hit = evidence_iou.max() >= np.float32(threshold)
            evidence_sums[k] = evidence_sums[k] + _set_f1(evidence_iou, threshold) if hit else 0.0
    numbers = at_each("F1", scores.sum(0) / len(samples))
    if variant in EVIDENCE_VARIANTS:
        numbers |= at_each("F1", evidence_sums / len(samples), "_evi")
    return parsed.outcome(numbers, {"F1": by_id(samples, scores.mean(1))})


def summary(samples: Sequence[Sample], variant: str) -> Outcome:
    """evs: F1 of one-second bins, mean over the parsed samples; evidence is painted into the answer's bins."""
    parsed = parse(samples, _read_bins(variant))
    f1s = {
        sample.id: _bin_f1(_bins(sample.spans), bins)
        for sample, bins in zip(samples, parsed.answers, strict=True)
        if bins is not None
    }
    f1 = sum(f1s.values()) / len(f1s) if f1s else 0.0
    numbers = {"F1": f1} | ({"F1_evi": f1} if variant in EVIDENCE_VARIANTS else {})
    return parsed.outcome(numbers, {"F1": f1s})


def highlight(samples: Sequence[Sample], variant: str) -> Outcome:
    """vhd: one time, a hit in any window of any annotator: the first number, or the middle of the first span."""
    parsed = parse(samples, _read_middle if variant in EVIDENCE_VARIANTS else lambda t: (published_number(t), None))
    hits = [_inside(answer, sample.spans) for sample, answer in zip(samples, parsed.answers, strict=True)]
    numbers = {"F1": sum(hits) / len(samples)}
    if variant in EVIDENCE_VARIANTS:
        told = zip(samples, parsed.told(), strict=True)
        numbers["F1_evi"] = sum(_inside(time, sample.spans) for sample, time in told) / len(samples)
    return parsed.outcome(numbers, {"F1": by_id(samples, hits)})


def best_ious(truths: Sequence[Spans], spans: Sequence[Spans | None]) -> Floats32:
    """The highest IoU of any true with any predicted span, [N] in float32; 0 without a prediction."""
    best = np.zeros(len(truths), np.float32)
    pairs = enumerate(zip(truths, spans, strict=True))
    told = [(row, t, p) for row, (true, found) in pairs for t in true for p in found or ()]
    if told:
        owner, true, found = zip(*told, strict=True)
        with np.errstate(invalid="ignore"):  # NaN (0/0) stays, as in the scripts
            np.maximum.at(best, np.array(owner), _float32_ious(true, found))
    return best


def recall_at(ious: Floats32, name: str, suffix: str = "", mean: str | None = None) -> dict[str, float]:
    """mIoU, ``name@t`` and their mean over all samples, from IoUs [N]."""
    hits = ious.astype(np.float64)[:, None] >= np.array(THRESHOLDS)  # [N, 4]
    return {f"mIoU{suffix}": sum(ious.tolist()) / len(ious)} | at_each(name, hits.sum(0) / len(ious), suffix, mean)


def _recalled(samples: Sequence[Sample], variant: str, name: str, mean: str, every_span: bool) -> Outcome:
    """Recall of the answers, and of the evidence where it counts; evidence that is missing is the answer."""
    parsed = parse(samples, read_all(variant))

    def best(spans: Sequence[Spans | None]) -> Floats32:
        used = [found if every_span or found is None else found[:1] for found in spans]
        return best_ious([sample.spans for sample in samples], used)

    ious = best(parsed.answers)
    hits = (ious.astype(np.float64)[:, None] >= np.array(THRESHOLDS)).mean(1)
    numbers = recall_at(ious, name, mean=mean)
    if variant in EVIDENCE_VARIANTS:
        numbers |= recall_at(best(parsed.told()), name, "_evi", mean)
    return parsed.outcome(numbers, {"mIoU": by_id(samples, ious), mean: by_id(samples, hits)})


def _ious(true: Spans, found: Spans) -> Floats32:
    """[T, P], float32."""
    return _float32_ious(np.array(true)[:, None], np.array(found)[None])


def _float32_ious(true: ArrayLike, found: ArrayLike) -> Floats32:
    with np.errstate(over="ignore", invalid="ignore"):  # times that float32 does not hold
        return iou_union(true, found, np.float32)


def _set_f1(iou: Floats32, threshold: float) -> float:
    """F1 of IoUs [T, P] of which one reaches the threshold; shares in float32, as in the scripts."""
    hit = iou >= np.float32(threshold)
    recall, precision = (float(hit.any(axis).mean(dtype=np.float32)) for axis in (1, 0))
    return 2 * precision * recall / (precision + recall)


def _bins(spans: Spans) -> NDArray[np.bool_]:
    """Bins [round(start), round(end)), [1000]. Raises OverflowError for an infinite time."""
    painted = np.zeros(_BINS, bool)
    for start, end in spans:
        painted[max(0, round(start)) : round(end)] = True
    return painted


def _read_bins(variant: str) -> Callable[[str], tuple[NDArray[np.bool_] | None, None]]:
    def read(text: str) -> tuple[NDArray[np.bool_] | None, None]:
        answer, evidence = read_all(variant)(text)
        if answer is None:
            return None, None
        if variant in EVIDENCE_VARIANTS:
            answer = [span for span in answer + (evidence or []) if all(map(math.isfinite, span))]
        elif not all(map(math.isfinite, sum(answer, []))):
            raise ValueError("an infinite time stops the published script")
        return _bins(answer), None

    return read


def _bin_f1(true: NDArray[np.bool_], found: NDArray[np.bool_]) -> float:
    hit = int((true & found).sum())
    if not hit:
        return 0.0
    recall, precision = hit / int(true.sum()), hit / int(found.sum())
    return 2 * precision * recall / (precision + recall)


def _read_middle(text: str) -> tuple[float | None, float | None]:
    """The middle of the first span behind the delimiter, and of the first before it."""
    pieces = text.split(DELIMITER)
    if len(pieces) == 1:
        return None, None
    answer, evidence = published_spans(pieces[-1], drop_dots=True), published_spans(pieces[0])
    return tuple(None if spans is None else sum(spans[0]) / 2 for spans in (answer, evidence))


def _inside(time: float | None, windows: Spans) -> bool:
    return time is not None and any(start <= time <= end for start, end in windows)
