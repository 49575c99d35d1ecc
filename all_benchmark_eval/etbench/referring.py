"""rar, eca, rvq and gvq of E.T. Bench as the published scripts score them.

The rules: published_systems.md#choices.

A letter decides where the variant's rule finds one, else the option most like the answer's text. ``verdicts`` tells
which texts that is, so that a run can embed all of them in one go. Files are not known here.
"""

from collections.abc import Sequence

import numpy as np

from all_benchmark_eval.etbench.grounding import Parsed, best_ious, parse, read_all, recall_at
from all_benchmark_eval.etbench.outcomes import EVIDENCE_VARIANTS, THRESHOLDS, Outcome, by_id, states_of
from all_benchmark_eval.etbench.samples import LETTERS, Sample
from all_benchmark_eval.items import need
from all_benchmark_eval.metrics.choices import Verdict, etbench_verdict
from all_benchmark_eval.metrics.parsing import DELIMITER
from all_benchmark_eval.metrics.sentences import SentenceModel

_TINY = 1e-7  # in the denominator of D2VLM's ratios


def verdicts(samples: Sequence[Sample], variant: str) -> list[Verdict]:
    """What the variant's letter rule makes of the answers of one task and source."""
    grounded = samples[0].task == "gvq"
    bracketed = variant not in EVIDENCE_VARIANTS and not grounded
    final = grounded or variant in ("etchat_strict", "d2vlm")
    found = []
    for sample in samples:
        count = len(sample.options if grounded else samples[0].options)  # the first sample's letters hold for all
        known = "the published scripts know 4 or 5 (--protocol corrected)"
        need(count in (4, 5), f"{sample.id}: {count} options; {known}")
        text = sample.answer or ""
        if variant in EVIDENCE_VARIANTS:
            text = text.split(DELIMITER)[-1]
        found.append(etbench_verdict(text, sample.choice, count, bracketed=bracketed, final=final))
    return found


def shown(options: Sequence[str]) -> list[str]:
    """The options as an answer is compared with them: "(A) a man opens the door"."""
    return [f"({letter}) {option}" for letter, option in zip(LETTERS, options, strict=False)]


def texts(samples: Sequence[Sample], found: Sequence[Verdict]) -> list[str]:
    """Every text that has to be embedded to decide."""
    open_ones = [(s, v) for s, v in zip(samples, found, strict=True) if v.right is None and v.rest]
    return [text for sample, verdict in open_ones for text in (verdict.rest, *shown(sample.options))]


def choice(samples: Sequence[Sample], variant: str, found: Sequence[Verdict], model: SentenceModel) -> Outcome:
    """rar, eca, rvq: accuracy. "Failed" counts texts that no letter matched; they may still be right."""
    right = _decide(samples, found, model)
    matched, by_letter = _letters(found)
    numbers = {"Total": len(samples), "Failed": len(samples) - matched, "Acc": sum(right) / len(samples)}
    if variant in EVIDENCE_VARIANTS:
        numbers |= {"Matched_count": matched, "matched_ratio": matched / len(samples)}
        numbers["correct_ratio_within_matched"] = by_letter / (matched + _TINY)
    return Outcome(numbers, {"Acc": by_id(samples, right)}, states_of(samples, map(_chose, found)))


def grounded(samples: Sequence[Sample], variant: str, found: Sequence[Verdict], model: SentenceModel) -> Outcome:
    """gvq: accuracy, and the first span's IoU where the option is right."""
    right = _decide(samples, found, model)
    parsed = parse([s for s, r in zip(samples, right, strict=True) if r], read_all(variant))
    failed = sum(not verdict.rest and verdict.right is None for verdict in found)
    numbers = {"Total": len(samples), "Failed": failed + sum(answer is None for answer in parsed.answers)}
    ious = _first_ious(samples, parsed, parsed.answers)
    numbers |= recall_at(ious, "R", mean="mRec")
    if variant in EVIDENCE_VARIANTS:
        numbers |= recall_at(_first_ious(samples, parsed, parsed.evidence), "R", "_evi", mean="mRec")
    numbers["Acc"] = sum(right) / len(samples)
    if variant in EVIDENCE_VARIANTS:
        matched, by_letter = _letters(found)
        numbers |= {"Matched count": matched, "Matched ratio": matched / len(samples)}
        numbers["correct count within matched"] = by_letter
        numbers["correct ratio within matched"] = by_letter / (matched + _TINY)
    hits = (ious.astype(np.float64)[:, None] >= np.array(THRESHOLDS)).mean(1)
    values = {"Acc": right, "mIoU": ious, "mRec": hits}
    per_sample = {name: by_id(samples, column) for name, column in values.items()}
    return Outcome(numbers, per_sample, states_of(samples, map(_chose, found)), parsed.stops)


def _decide(samples: Sequence[Sample], found: Sequence[Verdict], model: SentenceModel) -> list[bool]:
    return [
        verdict.right
        if verdict.right is not None
        else bool(verdict.rest) and model.most_similar(verdict.rest, shown(sample.options)) == sample.choice
        for sample, verdict in zip(samples, found, strict=True)
    ]


def _letters(found: Sequence[Verdict]) -> tuple[int, int]:
    """How many answers a letter matched, and how many of all a letter made right."""
    return sum(verdict.matched for verdict in found), sum(verdict.right is True for verdict in found)


def _chose(verdict: Verdict) -> bool:
    return verdict.right is not None or bool(verdict.rest)


def _first_ious(samples: Sequence[Sample], parsed: Parsed, told: Sequence) -> np.ndarray:
    """IoU of the first span of each sample that is in ``parsed`` and has an answer, else 0, [N] float32."""
    first = {
        sample.id: spans[:1]
        for sample, answer, spans in zip(parsed.samples, parsed.answers, told, strict=True)
        if answer is not None and spans
    }
    return best_ious([sample.spans for sample in samples], [first.get(sample.id) for sample in samples])
