"""dvc and slc of E.T. Bench: steps with captions, as the published scripts score them and corrected.

The rules: published_systems.md#et-bench-captions.

The steps of all sources are read first, so that one tokenizer call, one METEOR process and one run of the sentence
model serve them all; then each source is scored under ``Rules``. Text is read in ``parsing`` (published) and
``videollm.reading``, scores of captions come from ``captions``; files are not known here.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle

import numpy as np
from numpy.typing import NDArray

from all_benchmark_eval.etbench.outcomes import EVIDENCE_VARIANTS, THRESHOLDS, Outcome, at_each
from all_benchmark_eval.etbench.samples import Sample, Spans, cut
from all_benchmark_eval.metrics import captions, parsing
from all_benchmark_eval.metrics.captions import Group
from all_benchmark_eval.metrics.dense import Events, Overlaps, caption_groups, harmonic, overlaps
from all_benchmark_eval.metrics.dense_scores import Words, plain
from all_benchmark_eval.metrics.intervals import iou_epsilon, iou_union
from all_benchmark_eval.metrics.moments import SLACK
from all_benchmark_eval.metrics.sentences import SentenceModel
from videollm.reading import read_spans, read_steps

MAX_STEPS = 1000  # of one video, as published
RANDOM_STRINGS = 500  # different ones: enough for a mean, and few enough to embed
MEASURES = ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "METEOR", "ROUGE_L", "CIDEr", "SentSim")

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Rules:
    """What the two protocols do differently once the steps are read.

    ``exact``: an IoU that is t on paper counts for F1 as it does for the captions (published: only a higher one).
    ``scaled``: captions are averaged over all samples, not over the parsed ones, and one that is paired with a random
    string has similarity 0. ``shared``: CIDEr's document frequencies come from all true captions of the run, not from
    those of a video's own pairs.
    """

    iou: Callable[[Floats, Floats], Floats]
    exact: bool
    scaled: bool
    shared: bool
    slack: float = 0.0


PUBLISHED = Rules(iou_epsilon, exact=False, scaled=False, shared=False)
CORRECTED = Rules(lambda a, b: np.nan_to_num(iou_union(a, b)), exact=True, scaled=True, shared=True, slack=SLACK)


@dataclass(frozen=True)
class Steps:
    """What the answer to a sample tells."""

    sample: Sample
    spans: Spans
    captions: list[str]
    evidence: Spans


@dataclass(frozen=True)
class Source:
    """The answers of one task and source. ``kept`` are scored; a video that comes twice is kept once, its last time."""

    samples: Sequence[Sample]
    kept: list[Steps]
    failed: list[str]  # ids
    stops: list[str]  # ids
    evidence: bool  # it is scored as well
    clipped: int = 0

    def texts(self) -> list[str]:
        """All captions, as the scripts clean them."""
        return [plain(text) for steps in self.kept for text in steps.captions] + self.true_texts()

    def true_texts(self) -> list[str]:
        """The true captions of all samples, whether their answers are read or not."""
        return [plain(text) for sample in self.samples for text in sample.captions]


def read_source(samples: Sequence[Sample], variant: str) -> Source:
    """Read the answers of one task and source by the published rules."""
    kept, failed, stops = {}, [], []
    for sample in samples:
        try:
            if variant in EVIDENCE_VARIANTS:
                found = parsing.published_steps_with_evidence(sample.answer or "")
            else:
                found = parsing.published_steps(sample.answer or "")
        except ValueError:
            found = None
            stops.append(sample.id)
        if found is None:
            failed.append(sample.id)
            continue
        evidence = found[2] if variant in EVIDENCE_VARIANTS else []
        kept[sample.video] = Steps(sample, found[0][:MAX_STEPS], found[1][:MAX_STEPS], evidence)
    return Source(samples, list(kept.values()), failed, stops, variant in EVIDENCE_VARIANTS)


def corrected_source(samples: Sequence[Sample]) -> Source:
    """Read the answers of one task and source for what they mean; each sample stands for itself."""
    kept, failed, clipped = [], [], 0
    for sample in samples:
        evidence, answer = parsing.split_evidence(sample.answer or "")
        spans, texts = read_steps(answer, sample.duration)
        if not spans:
            failed.append(sample.id)
            continue
        inside, count = cut(spans, sample.duration)
        kept.append(Steps(sample, inside, texts, cut(read_spans(evidence, sample.duration), sample.duration)[0]))
        clipped += count
    return Source(samples, kept, failed, [], any(steps.evidence for steps in kept), clipped)


class Dense:
    """Scores of several sources. ``words`` has tokenized the texts of all of them; ``true`` are their true captions."""

    def __init__(self, words: Words, model: SentenceModel, rules: Rules, seed: int, true: Sequence[str]):
        self.words, self.model, self.rules = words, model, rules
        self._documents = [words[text] for text in true] if rules.shared else None
        self._random = captions.random_letters(RANDOM_STRINGS, seed)
        self._next = cycle(self._random)

    def score(self, source: Source) -> Outcome:
        """F1 over all samples; caption scores over the parsed videos, or all samples (``Rules.scaled``)."""
        count, states = len(source.samples), {sample.id: "scored" for sample in source.samples}
        states |= dict.fromkeys(source.failed, "unparsed")
        scale = len(source.kept) / count
        predicted, true = self._events(source)
        over = overlaps(predicted, true, self.rules.iou)
        numbers = {"Total": count, "Failed": len(source.failed)}
        numbers |= at_each("F1", self._f1(over, predicted, true, scale))
        if source.evidence:
            told = [steps.evidence for steps in source.kept]
            evidence = Events.of(told, [[""] * len(spans) for spans in told])
            f1 = self._f1(overlaps(evidence, true, self.rules.iou), evidence, true, scale)
            numbers |= at_each("F1", f1, "_evi")
        measures, per_sample = self._captions(over, predicted, true), {}
        for name in MEASURES:
            values = measures.get(name)
            numbers[name] = None if values is None else float(values.mean()) * (scale if self.rules.scaled else 1.0)
            if values is not None:
                per_sample[name] = {steps.sample.id: float(v) for steps, v in zip(source.kept, values, strict=True)}
                per_sample[name] |= dict.fromkeys(source.failed, 0.0) if self.rules.scaled else {}
        if not source.kept:
            numbers |= dict.fromkeys(MEASURES, 0.0)
        return Outcome(numbers, per_sample, states, source.stops, source.clipped)

    def _events(self, source: Source) -> tuple[Events, Events]:
        kept, samples = source.kept, [steps.sample for steps in source.kept]
        told, true = ([[plain(text) for text in one.captions] for one in side] for side in (kept, samples))
        predicted = self.words.events([steps.spans for steps in kept], told)
        return predicted, self.words.events([sample.spans for sample in samples], true)

    def _f1(self, over: Overlaps, predicted: Events, true: Events, scale: float) -> list[float]:
        """F1 at each threshold of the mean precision and recall over videos, both times ``scale``."""
        if not len(true.sizes):
            return [0.0] * len(THRESHOLDS)
        means = []
        for best, events in ((over.best_predicted, predicted), (over.best_true, true)):
            passes = [best >= t - self.rules.slack if self.rules.exact else best > t for t in THRESHOLDS]
            hits = [np.bincount(events.owner[row], minlength=len(events.sizes)) for row in passes]
            means.append(scale * (np.stack(hits) / np.maximum(events.sizes, 1)).mean(1))  # [4]
        return harmonic(*means).tolist()

    def _captions(self, over: Overlaps, predicted: Events, true: Events) -> dict[str, Floats]:
        """Each caption score, mean over the thresholds, of each video [V]; those that cannot be made are left out."""
        if not self.words.tokens or not len(true.sizes):
            return {}
        least = [t - self.rules.slack for t in THRESHOLDS]
        groups = caption_groups(over, predicted, true, least, self._next)  # 4 * V
        measures = {"SentSim": self._similarities(groups)}  # first: the model loads while METEOR starts
        measures |= {f"Bleu_{n}": column for n, column in enumerate(captions.bleu(groups).T, start=1)}
        measures |= {"ROUGE_L": captions.rouge_l(groups), "CIDEr": captions.cider(groups, self._documents)}
        if self.words.meteor:
            measures["METEOR"] = captions.meteor(groups)
        return {name: values.reshape(len(THRESHOLDS), -1).mean(0) for name, values in measures.items()}

    def _similarities(self, groups: Sequence[Group]) -> Floats:
        """Mean sentence similarity of each group's pairs, [G]."""
        flat = [pair for group in groups for pair in group]
        if not flat:
            return np.zeros(len(groups))
        values = self.model.similarity(*zip(*flat, strict=True)).astype(np.float64)
        if self.rules.scaled:
            values[np.isin([true for _, true in flat], self._random)] = 0.0
        return captions.group_means(values, groups)
