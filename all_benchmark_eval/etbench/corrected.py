"""The ten E.T. Bench tasks without captions, scored for what their metrics mean.

Differences from the published scripts, whichever variant: times are read with their units, clock times and any dash
(``videollm.reading``), ordered and cut to the video; the evidence before ``</evi>`` is never the answer and is
scored apart (``_evi``, over all samples, no substitute where it is missing); tvg, epm and gvq score the first span,
not the best of all; IoU in float64, one that is the threshold on paper is a hit; tal pairs spans one to one, so that
repeated ones earn nothing; evs compares stretches of time, not 1000 bins of a second; a choice is what
``choices.chosen`` reads, no likeness of sentences: an empty or unclear answer is wrong; gvq's answer with a wrong
option scores 0; what is unparsed or missing is wrong and stays in every denominator; nothing is rounded.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from all_benchmark_eval.benchmark import Explanation
from all_benchmark_eval.etbench.outcomes import THRESHOLDS, Outcome, at_each, by_id, states_of
from all_benchmark_eval.etbench.samples import CAPTION, LETTERS, MOMENT, REFERRING, Sample, Spans, cut
from all_benchmark_eval.metrics.choices import chosen
from all_benchmark_eval.metrics.intervals import iou_union
from all_benchmark_eval.metrics.moments import SLACK
from all_benchmark_eval.metrics.parsing import split_evidence
from videollm.common.spans import set_f1
from videollm.reading import Reading, read_moment, read_spans
from videollm.reading.spans import explain_spans
from videollm.reading.steps import explain_steps

Floats = NDArray[np.float64]


def score(samples: Sequence[Sample]) -> Outcome:
    """One task and source; a missing sample has no answer."""
    task = samples[0].task
    if task in CAPTION:
        raise ValueError(f"{task} is scored in dense.py")
    if task in REFERRING:
        choices = [_choice(sample) for sample in samples]
        right = [choice == sample.choice for sample, choice in zip(samples, choices, strict=True)]
        parsed = [choice is not None for choice in choices]
        return _outcome(samples, parsed, {"Acc": sum(right) / len(samples)}, {"Acc": by_id(samples, right)})
    return _highlights(samples) if task == "vhd" else _spans(samples, task)


def _spans(samples: Sequence[Sample], task: str) -> Outcome:
    answers, evidence, clipped = [], [], 0
    for sample in samples:
        before, behind = split_evidence(sample.answer or "")
        spans, count = cut(read_spans(behind, sample.duration), sample.duration)
        answers.append(spans)
        evidence.append(cut(read_spans(before, sample.duration), sample.duration)[0])
        clipped += count
    measure = _MEASURES.get(task, _first_span)
    numbers, per_sample = measure(samples, answers, "")
    parsed = [bool(spans) for spans in answers]
    if task == "gvq":
        choices = [_choice(sample) for sample in samples]
        right = np.array([c == s.choice for s, c in zip(samples, choices, strict=True)])
        numbers, per_sample = measure(samples, _only(answers, right), "")
        evidence = _only(evidence, right)
        numbers["Acc"] = float(right.mean())
        per_sample["Acc"] = by_id(samples, right)
        parsed = [choice is not None and spans for choice, spans in zip(choices, parsed, strict=True)]
    if any(evidence):
        numbers |= measure(samples, evidence, "_evi")[0]
    return _outcome(samples, parsed, numbers, per_sample, clipped)


def _outcome(
    samples: Sequence[Sample], parsed: Sequence[bool], numbers: dict, tables: dict, clipped: int = 0
) -> Outcome:
    failed = len(samples) - sum(map(bool, parsed))
    numbers = {"Total": len(samples), "Failed": failed} | numbers
    return Outcome(numbers, tables, states_of(samples, parsed), [], clipped)


def _first_span(samples: Sequence[Sample], found: Sequence[Spans], suffix: str) -> tuple[dict, dict]:
    """tvg, epm, gvq, tem: the first span with the true span that it fits best."""
    name, mean = ("F1", "F1") if samples[0].task in MOMENT else ("R", "mRec")
    best = np.zeros(len(samples))
    for row, (sample, spans) in enumerate(zip(samples, found, strict=True)):
        if spans:
            best[row] = np.nan_to_num(iou_union(np.array(sample.spans), np.array(spans[:1]))).max()
    hits = best[:, None] >= np.array(THRESHOLDS) - SLACK  # [N, 4]
    numbers = {f"mIoU{suffix}": float(best.mean())} | at_each(name, hits.mean(0), suffix, mean)
    return numbers, {"mIoU": by_id(samples, best), mean: by_id(samples, hits.mean(1))}


def _actions(samples: Sequence[Sample], found: Sequence[Spans], suffix: str) -> tuple[dict, dict]:
    """tal: F1 of the spans paired one to one."""
    true = [[sorted(span) for span in sample.spans] for sample in samples]
    f1s = [[set_f1(p, t, at - SLACK) if p else 0.0 for at in THRESHOLDS] for p, t in zip(found, true, strict=True)]
    scores = np.array(f1s)  # [N, 4]
    return at_each("F1", scores.mean(0), suffix, "F1"), {"F1": by_id(samples, scores.mean(1))}


def _summary(samples: Sequence[Sample], found: Sequence[Spans], suffix: str) -> tuple[dict, dict]:
    """evs: F1 of the time covered."""
    f1s = [_covered_f1(spans, sample.spans) for sample, spans in zip(samples, found, strict=True)]
    return {f"F1{suffix}": float(np.mean(f1s))}, {"F1": by_id(samples, np.array(f1s))}


def _highlights(samples: Sequence[Sample]) -> Outcome:
    """vhd: one time inside any window."""
    told = [split_evidence(sample.answer or "") for sample in samples]
    times = [read_moment(answer, sample.duration) for sample, (_, answer) in zip(samples, told, strict=True)]
    hits = [_inside(time, sample.spans) for sample, time in zip(samples, times, strict=True)]
    numbers = {"F1": float(np.mean(hits))}
    evidence = [read_moment(before, sample.duration) for sample, (before, _) in zip(samples, told, strict=True)]
    if any(time is not None for time in evidence):
        numbers["F1_evi"] = float(np.mean([_inside(time, s.spans) for s, time in zip(samples, evidence, strict=True)]))
    tables = {"F1": by_id(samples, hits)}
    return _outcome(samples, [time is not None for time in times], numbers, tables)


_MEASURES = {"tal": _actions, "evs": _summary}


def explain(sample: Sample) -> Explanation:
    """What is read of a sample's answer, and how."""
    answer = split_evidence(sample.answer or "")[1]
    if sample.task in REFERRING:
        true, found = f"({LETTERS[sample.choice]})", _explained(sample)
        return Explanation(sample.answer, _letter(found.value), found.rule, true)
    true = str(sample.spans)
    if sample.task in CAPTION:
        steps = explain_steps(answer, sample.duration)
        pairs = zip(*steps.value, strict=True)
        return Explanation(sample.answer, "; ".join(f"{s} {text}" for s, text in pairs) or "nothing", steps.rule, true)
    spans = explain_spans(answer, sample.duration)
    if sample.task == "vhd":
        time = read_moment(answer, sample.duration)
        rule = spans.rule if spans.value or time is None else "one time"
        return Explanation(sample.answer, "nothing" if time is None else str(time), rule, true)
    read, rule = str(spans.value or "nothing"), spans.rule
    if sample.task == "gvq":
        found = _explained(sample)
        true = f"({LETTERS[sample.choice]}), {true}"
        read, rule = f"{_letter(found.value)}, {read}", f"choice: {found.rule}; spans: {rule}"
    return Explanation(sample.answer, read, rule, true)


def _explained(sample: Sample) -> Reading[int | None]:
    return chosen(sample.answer or "", len(sample.options), sample.options)


def _choice(sample: Sample) -> int | None:
    return _explained(sample).value


def _letter(choice: int | None) -> str:
    return "nothing" if choice is None else f"({LETTERS[choice]})"


def _only(spans: Sequence[Spans], keep: NDArray[np.bool_]) -> list[Spans]:
    return [found if kept else [] for found, kept in zip(spans, keep, strict=True)]


def _inside(time: float | None, windows: Spans) -> bool:
    return time is not None and any(min(window) <= time <= max(window) for window in windows)


def _covered_f1(found: Spans, true: Spans) -> float:
    """F1 of two sets of spans as stretches of time; 0 where they have none in common."""
    edges = np.unique([time for span in (*found, *true) for time in span])
    middles, lengths = (edges[1:] + edges[:-1]) / 2, np.diff(edges)
    ours, theirs = ([sorted(span) for span in spans] for spans in (found, true))
    inside = [np.array([any(s < m < e for s, e in spans) for m in middles], bool) for spans in (ours, theirs)]
    common = lengths[inside[0] & inside[1]].sum()
    return float(2 * common / (lengths[inside[0]].sum() + lengths[inside[1]].sum())) if common > 0 else 0.0
