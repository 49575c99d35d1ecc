"""Factorized Preference Optimization (D2VLM, ICCV 2025): an answer's log-probability is *when* plus *what*.

In: one reading of a batch whose rows hold a chosen and rejected answers behind one encoding of video and question
(``Collator.rank``). Out: the preference loss, the chosen answers' supervised losses, and every factor for the log. The
head says how probable a time is (``log_prob``), the language model how probable the words are, so it trains any head.
It knows no files but the folder of a reference model, and no trainer.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from videollm.batches.batch import Batch
from videollm.checkpoint import Bundle
from videollm.checkpoint.reference import load_reference
from videollm.common.config import ConfigError, at_least
from videollm.data import Record
from videollm.heads import SpanRefs
from videollm.model.loss import token_cross_entropy
from videollm.model.objective import OBJECTIVES, Objective, Reading, Sums
from videollm.model.videollm import VideoLLM
from videollm.training.settings import Settings

FACTORS = tuple(f"logp_{answer}_{factor}" for answer in ("chosen", "rejected") for factor in ("grounding", "text"))


@dataclass
class FPOOptions:
    """Options of the objective, below ``train.objective``."""

    beta: float = 0.1  # how far log-probabilities must part; the loss is -log sigmoid(beta * (chosen - rejected))
    grounding_weight: float = 1.0  # of the times' log-probability
    text_weight: float = 1.0  # of the words' log-probability
    supervised_weight: float = 1.0  # of the chosen answers' own losses
    normalise: bool = False  # a mean over an answer's tokens and over its spans, not a sum (published)
    rejected: Literal["one", "all"] = "one"  # of a record's rejected answers, one an epoch or all at once
    reference: str | None = None  # checkpoint folder of a frozen model whose own preference is taken off

    def __post_init__(self):
        where = "train.objective"
        at_least(where, self, 0, "grounding_weight", "text_weight", "supervised_weight")
        if not self.beta > 0:
            raise ConfigError(f"{where}.beta: {self.beta}, but it must be above 0")
        if not self.grounding_weight + self.text_weight > 0:
            raise ConfigError(f"{where}.grounding_weight, text_weight: both are 0, so nothing would be preferred")


@OBJECTIVES.register(name="d2vlm.fpo")
class FPO(Objective):
    """-log sigmoid(beta * (log p(chosen) - log p(rejected))) + the chosen answer's losses (docs/fpo.md)."""

    Options = FPOOptions
    logged = (*FACTORS, "margin", "preference_accuracy")
    together = 2

    def __init__(self, options: FPOOptions):
        super().__init__(options)
        self.rejected = options.rejected
        self.reference: VideoLLM | None = None

    def check(self, records: Sequence[Record], settings: Settings) -> None:
        """Also refuses records without rejected answers, and what cannot go with several answers in a row."""
        super().check(records, settings)
        lacking = [r for r in records if not r.rejected]
        if lacking:
            raise ConfigError(
                f"{lacking[0].where}: no rejected answer to train a preference on ({len(lacking)} of {len(records)} "
                "records); make some with `python -m d2vlm.preference`, or leave those records out"
            )
        if settings.data.pack:
            raise ConfigError("data.pack: a pair is packed already, with one question a row; set it to false")

    def prepare(self, bundle: Bundle, settings: Settings) -> None:
        """Loads the reference model."""
        if self.options.reference is None:
            return
        attention, features = settings.model.attention, bool(settings.data.features)
        self.reference = load_reference(
            self.options.reference, bundle, attention, "train.objective.reference", features
        )

    # ---- the loss --------------------------------------------------------------------------------------------------

    def counts(self, model: VideoLLM, batch: Batch) -> Sums:
        """Supervised counts of the chosen answers; the number of pairs for all that is about pairs."""
        pairs = torch.full((), float(len(batch.pairs.chosen)), device=batch.pairs.chosen.device)
        chosen = chosen_spans(batch, batch.refs.select(batch.span_refs))
        supervised = {"lm": batch.label_weight.sum(), **model.head.counts(chosen)}
        return {**supervised, "fpo": pairs, **dict.fromkeys(self.logged, pairs)}

    def sums(self, model: VideoLLM, batch: Batch, reading: Reading) -> tuple[Sums, Sums]:
        """``fpo``, and ``lm`` and the head's terms of the chosen answers; the factors, margin and accuracy."""
        token, factors = self.factors(model, batch, reading)
        chosen, rejected, margin = self.pairs(factors, batch, reading)
        spans = chosen_spans(batch, reading.spans)
        losses = model.head.loss(reading.queries[batch.pairs.chosen_refs], spans, reading.frames)
        losses["lm"] = (token * batch.label_weight).sum()
        losses = {name: self.options.supervised_weight * value for name, value in losses.items()}
        losses["fpo"] = -logsigmoid(margin).sum()
        logged = (*chosen.sum(0), *rejected.sum(0), margin.sum(), (margin > 0).float().sum())
        return losses, {name: value.detach() for name, value in zip(self.logged, logged, strict=True)}

    def pairs(self, factors: Tensor, batch: Batch, reading: Reading) -> tuple[Tensor, Tensor, Tensor]:
        """Factors [P, 2] of the chosen and of the rejected answer of every pair, and their margin [P]."""
        chosen, rejected = factors[batch.pairs.chosen], factors[batch.pairs.rejected]  # [P, 2]
        margin = self.options.beta * (self._gap(factors, batch) - self._reference_gap(batch, reading))  # [P]
        return chosen, rejected, margin

    def factors(self, model: VideoLLM, batch: Batch, reading: Reading) -> tuple[Tensor, Tensor]:
        """Cross-entropy of every label [M], and log-probability of every answer's times and words [S, 2]."""
        token = token_cross_entropy(model.language_model, reading.states, batch.label_index, batch.label_ids)
        answers = batch.pairs.answer_refs  # not those of earlier turns, which chosen and rejected share
        spans = reading.spans.select(answers)
        times = model.head.log_prob(reading.queries[answers], spans, reading.frames)
        samples = batch.num_samples
        grounding = self._per_answer(times, spans.sample, samples)
        return token, torch.stack([grounding, self._per_answer(-token, batch.pairs.label_sample, samples)], -1)

    def _per_answer(self, values: Tensor, sample: Tensor, samples: int) -> Tensor:
        """Sum (or mean) of ``values`` [K] over each of the answers; what no answer owns is left out. [S]."""
        total = values.new_zeros(samples + 1).index_add(0, sample, values)
        if self.options.normalise:
            count = values.new_zeros(samples + 1).index_add(0, sample, torch.ones_like(values))
            total = total / count.clamp(min=1)
        return total[:samples]

    def _gap(self, factors: Tensor, batch: Batch) -> Tensor:
        """Weighted log p(chosen) - log p(rejected), [P]."""
        grounding, text = (factors[batch.pairs.chosen] - factors[batch.pairs.rejected]).unbind(-1)  # [P] each
        return self.options.grounding_weight * grounding + self.options.text_weight * text

    @torch.no_grad()
    def _reference_gap(self, batch: Batch, reading: Reading) -> Tensor | float:
        """The same of the reference model; 0 without one."""
        if self.reference is None:
            return 0.0
        model = self.reference.to(reading.states.device, reading.states.dtype)
        return self._gap(self.factors(model, batch, model.read(batch))[1], batch)


def chosen_spans(batch: Batch, spans: SpanRefs) -> SpanRefs:
    """The span places of the chosen answers and of their questions, counted by row: one chosen answer each."""
    chosen = spans.select(batch.pairs.chosen_refs)
    return replace(chosen, sample=chosen.owner, num_samples=batch.num_samples - len(batch.pairs.rejected))
