"""Group-relative policy optimisation: of several answers that a model draws, the better ones become more probable.

In: a batch of roll-outs (``rollout.py``). Out: minus the advantage of every answer times the log-probability of its
decisions, the words (by the language model) and the times (by the head, ``draw_log_prob``); what the answers earned,
for the log. So a wrong time is the head's fault even where it is one token. Any head that draws spans is trained by it.
It knows the bundle and the run's folder; no trainer.
"""

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from videollm.batches.batch import Batch, Draws
from videollm.batches.dataset import VideoDataset
from videollm.checkpoint import Bundle
from videollm.checkpoint.reference import digest, load_reference
from videollm.common.config import ConfigError, UserError, at_least, need
from videollm.common.files import json_lines
from videollm.common.processes import this_rank
from videollm.data import Record
from videollm.grpo.difficulty import Redrawn, RedrawOptions
from videollm.grpo.rewards import Rewards, true_text
from videollm.grpo.rollout import TOLD, Gather, Group, Questions, RollOuts, place_draws, told
from videollm.heads import NO_DRAW
from videollm.model.generate import GenerateOptions
from videollm.model.loss import token_cross_entropy
from videollm.model.objective import OBJECTIVES, Objective, Reading, Sums
from videollm.model.towers import SHARES
from videollm.model.videollm import VideoLLM
from videollm.training.settings import Settings

WHERE = "train.objective"
ROLLOUTS, LOG = "rollouts.jsonl", "log.jsonl"
FALLING = 2  # validations in a row
COLDEST = 0.01  # temperature; below it all answers are the likeliest one
logger = logging.getLogger(__name__)


class AllFlat(UserError, RuntimeError):
    """For too long no question had answers that earned different rewards, so that nothing was learnt."""


@dataclass
class GRPOOptions:
    """Options of the objective, below ``train.objective``."""

    answers: int = 8  # drawn to each question
    temperature: float = 1.0  # of words and spans
    rewards: dict[str, float] = field(default_factory=lambda: {"f1": 1.0})  # weight of each, by name
    word_weight: float = 1.0  # of the words' log-probability
    span_weight: float = 1.0  # of the times' log-probability
    scale: bool = False  # advantages in standard deviations of the group (GRPO); off: in the reward's unit (Dr. GRPO)
    skip_flat: bool = True  # groups whose answers all earned the same are left out of the step
    updates: int = 1  # steps that train on a roll-out
    clip: float = 0.2  # from the second on: how far a decision's probability ratio counts, below 1 and above
    clip_high: float | None = None  # above 1, where it is another (DAPO: 0.28)
    kl: float = 0.0  # weight of the divergence from a reference, a decision's mean (k3 estimator); 0: none is loaded
    reference: str | None = None  # its checkpoint folder; null: model.checkpoint, from which the run starts
    average: Literal["sum", "mean", "decisions"] = "sum"  # of an answer's decisions; decisions: mean of a step's (DAPO)
    redraw: RedrawOptions | None = None  # each epoch asks a share of the questions, by what they earned; null: all
    patience: int = 100  # roll-outs in a row without a group to learn from, after which the run stops
    show_every: int = 50  # steps between two pages of roll-outs in rollouts.jsonl

    def __post_init__(self):
        at_least(WHERE, self, 2, "answers")
        at_least(WHERE, self, 0, "word_weight", "span_weight", "kl")
        at_least(WHERE, self, 1, "patience", "show_every", "updates")
        need(0 < self.clip < 1, f"{WHERE}.clip: {self.clip}, but it must be above 0 and below 1")
        need(self.clip_high is None or self.clip_high > 0, f"{WHERE}.clip_high: {self.clip_high}, but must be above 0")
        at_least(WHERE, self, COLDEST, "temperature")
        need(self.word_weight + self.span_weight > 0, f"{WHERE}.word_weight, span_weight: both are 0; raise one")


@OBJECTIVES.register(name="grpo")
class GRPO(Objective):
    """-sum over answers of advantage * (log p(words) + log p(times)) / number of answers."""

    Options = GRPOOptions
    answers = False

    def __init__(self, options: GRPOOptions):
        super().__init__(options)
        self.rewards = Rewards.named(options.rewards, f"{WHERE}.rewards")
        self.together = options.answers
        self.logged = (*TOLD, *(f"reward_{name}" for name in options.rewards), "mismatch")
        self.rollouts: RollOuts | None = None
        self.output: Path | None = None
        self.reference: VideoLLM | None = None
        self.held: int | None = None  # what tells the reference from another
        self.flat = 0  # roll-outs in a row
        self.kept: list[Batch] = []  # of the newest roll-out
        self.redrawn: Redrawn | None = None

    # ---- before the run --------------------------------------------------------------------------------------------

    def check(self, records: Sequence[Record], settings: Settings) -> None:
        """Also refuses records that no reward says anything about, and what changes what is drawn."""
        super().check(records, settings)
        lacking = [(record, what) for record in records if (what := self.rewards.lacking(record))]
        if lacking:
            record, what = lacking[0]
            names = ", ".join(name for name, weight in self.options.rewards.items() if weight)
            raise ConfigError(
                f"{record.where}: no {what} in its answer, of which {WHERE}.rewards ({names}) could say anything "
                f"({len(lacking)} of {len(records)} records); leave those out, or add a reward for them"
            )
        updates, every = self.options.updates, settings.train.save_every
        need(
            not every or every % updates == 0,
            f"train.save_every: {every} is no multiple of {WHERE}.updates={updates}, so that a resumed run would draw "
            "other answers; give one",
        )
        for key in ("group_by_length", "max_tokens_per_batch") if self.options.redraw else ():
            need(
                not getattr(settings.train, key), f"train.{key}: not with {WHERE}.redraw, which has an order of its own"
            )
        need(not settings.data.pack, "data.pack: each question has its own answers here; set it to false")
        kl, reference = self.options.kl, self.options.reference
        start = reference or settings.model.checkpoint
        need(start or not kl, f"{WHERE}.kl: from what? Name a {WHERE}.reference, or a model.checkpoint")
        need(kl or not reference, f"{WHERE}.reference: nothing is held against it where {WHERE}.kl is 0; give one")

    def prepare(self, bundle: Bundle, settings: Settings) -> None:
        """Makes the roll-outs; refuses a head that cannot draw. Switches dropout off: it would change what is drawn."""
        own, head, model = self.options, bundle.model.head, bundle.model
        name, words = bundle.config.head["name"], head.span_tokens or own.word_weight
        need(head.draws, f"{WHERE}.name: the {name} head {NO_DRAW}, or choose another objective")
        need(words, f"{WHERE}.word_weight: 0, but the times of the {name} head are words; raise it")
        no_dropout(model)
        options = GenerateOptions(
            max_new_tokens=settings.generate.max_new_tokens, do_sample=True, draw_spans=True,
            temperature=own.temperature, seed=settings.train.seed,
        )  # fmt: skip
        self.rollouts = RollOuts(bundle, options, self.rewards, own.answers, own.scale, own.skip_flat)
        self.output = Path(settings.train.output)
        if own.kl:
            folder, attention = own.reference or settings.model.checkpoint, settings.model.attention
            features = bool(settings.data.features) or model.frozen_tower  # that of roll-outs makes some
            self.reference = load_reference(folder, bundle, attention, f"{WHERE}.reference", features)
            self.held = digest(self.reference)

    def collator(self, bundle: Bundle, settings: Settings) -> Callable:
        """Items as they are: their batches come after the roll-outs."""
        return Gather(bundle.collator().split_prefix)

    def order(self, dataset: VideoDataset, settings: Settings) -> Redrawn | None:
        """That of ``redraw``."""
        if self.options.redraw is not None:
            self.redrawn = Redrawn(self.options.redraw, dataset, settings.train.seed)
        return self.redrawn

    def state(self) -> dict:
        """Roll-outs in a row with flat groups only, what is known of the questions, and which reference there is."""
        return {"flat": self.flat, "known": self.redrawn and self.redrawn.known, "held": self.held}

    def resume(self, state: dict) -> None:
        """As ``Objective``; of a run that drew nothing anew nothing is known. ConfigError for another reference."""
        self.flat = state.get("flat", 0)
        same = state.get("held") in (None, self.held)  # None: older code kept none
        need(same, f"{WHERE}.reference: not the model that the run began with; name that, here or as model.checkpoint")
        if self.redrawn is not None and state.get("known"):
            self.redrawn.known = state["known"]

    # ---- a step ----------------------------------------------------------------------------------------------------

    def made(self, batches: list[Questions], step: int) -> list[Batch]:
        """Roll-outs of the step's questions, or the newest once more. RewardError, AllFlat."""
        if self.kept and step % self.options.updates:
            return self.kept
        made, groups = [], []
        for questions in batches:
            made.append(self.rollouts.batch(questions, step))
            groups += self.rollouts.last
        if step % self.options.show_every == 0 and this_rank() == 0:
            with open(self.output / ROLLOUTS, "a", encoding="utf-8") as out:
                out.writelines(json.dumps({"step": step} | shown(group)) + "\n" for group in groups)
        if self.reference is not None:
            for batch in made:
                batch.draws.reference = self.by_reference(batch)
        self.stop_if_flat(groups, made[0].input_ids.device)
        if self.redrawn is not None:
            own = [(group.item.ids[0], float(group.rewards.mean()), group.flat) for group in groups]
            self.redrawn.note(own)
        self.kept = made if self.options.updates > 1 else []
        return made

    def stop_if_flat(self, groups: Sequence[Group], device: torch.device) -> None:
        """AllFlat after ``patience`` roll-outs in which all groups of all ranks were flat."""
        some = any(not group.flat for group in groups)
        if dist.is_initialized():
            found = torch.tensor(float(some), device=device)
            dist.all_reduce(found)
            some = bool(found)
        self.flat = 0 if some else self.flat + 1
        if self.flat >= self.options.patience:
            raise AllFlat(
                f"{WHERE}: in the last {self.flat} roll-outs all answers to a question earned the same ({ROLLOUTS} "
                "shows some): nothing is left to learn, or rewards cannot tell answers apart; choose other questions "
                "or rewards, or raise the temperature, answers or patience"
            )

    def validated(self, metric: str) -> None:
        """A warning where the drawn reward rises while greedy answers get worse, by the run's log."""
        if this_rank() == 0 and (found := drift(self.output / LOG, metric)):
            logger.warning("%s", found)

    def counts(self, model: VideoLLM, batch: Batch) -> Sums:
        """Answers, or all their decisions; for what is only logged, what it is a mean of."""
        device = batch.input_ids.device
        words, spans = len(batch.label_ids), len(batch.pairs.answer_refs)
        own = words + spans if self.options.average == "decisions" else len(batch.draws.advantage)
        counts = {"grpo": own, "mismatch": words + spans}
        counts |= {"kl": words + spans} if self.options.kl else {}
        counts |= {name: count for name, (_, count) in batch.draws.told.items()}
        return {name: torch.full((), float(count), device=device) for name, count in counts.items()}

    def sums(self, model: VideoLLM, batch: Batch, reading: Reading) -> tuple[Sums, Sums]:
        """``grpo``; what is told of the draws, and ``mismatch``: by how much log-probabilities differ from those with
        which the answers were drawn."""
        words, spans = self.log_probs(model, batch, reading)
        draws, device = batch.draws, batch.input_ids.device
        word_of, span_of = self.samples(batch, reading)
        weights = self.weights(batch, word_of, span_of)
        earned = self.options.word_weight * self.earned(words, draws.words_log_prob, weights[word_of])
        earned = earned + self.options.span_weight * self.earned(spans, draws.spans_log_prob, weights[span_of])
        apart = (words - draws.words_log_prob).abs().sum() + (spans - draws.spans_log_prob).abs().sum()
        logged = {"mismatch": apart}
        losses = {"grpo": -earned}
        if draws.reference is not None:
            losses["kl"] = self.options.kl * divergence(torch.cat([words, spans]), draws.reference)
        logged |= {name: torch.full((), total, device=device) for name, (total, _) in draws.told.items()}
        return losses, {name: value.detach() for name, value in logged.items()}

    def earned(self, now: Tensor, drawn: Tensor, advantage: Tensor) -> Tensor:
        """Sum of advantage x log-probability of decisions [N]. Where a roll-out is used again, of advantage x the ratio
        of the probability to the one ``drawn`` with, as far as that may count (PPO); the gradient begins the same."""
        if self.options.updates == 1:
            return (advantage * now).sum()
        ratio, low = (now - drawn).exp(), self.options.clip
        high = low if self.options.clip_high is None else self.options.clip_high
        return torch.minimum(advantage * ratio, advantage * ratio.clamp(1 - low, 1 + high)).sum()

    def log_probs(self, model: VideoLLM, batch: Batch, reading: Reading) -> tuple[Tensor, Tensor]:
        """Log-probability of every word [M] and of every span [K] of the answers, as they were drawn."""
        heat, answers = self.options.temperature, batch.pairs.answer_refs
        label = (batch.label_index, batch.label_ids)
        words = -token_cross_entropy(model.language_model, reading.states, *label, heat)
        spans = reading.spans.select(answers)
        queries = reading.queries[answers]
        return words, model.head.draw_log_prob(queries, spans.raw, spans.owner, reading.frames, heat)

    @torch.no_grad()
    def by_reference(self, batch: Batch) -> Tensor:
        """Log-probability of every word and every span of the answers by the reference. [M + K]."""
        model = self.reference.to(batch.input_ids.device, self.rollouts.bundle.model.dtype)
        return torch.cat(self.log_probs(model, batch, model.read(batch)))

    def planned(self, batch: Batch) -> Batch:
        """With draws of nothing in particular."""
        words, spans = len(batch.label_ids), len(batch.pairs.answer_refs)
        advantage = torch.zeros(batch.num_samples)
        reference = torch.zeros(words + spans) if self.options.kl else None
        said = told([], list(self.rewards.terms))
        batch.draws = Draws(advantage, torch.zeros(words), torch.zeros(spans), said, reference)
        place_draws(batch, torch.zeros(spans, 2))
        return batch

    def samples(self, batch: Batch, reading: Reading) -> tuple[Tensor, Tensor]:
        """The answer of every word [M] and of every span [K]."""
        return batch.pairs.label_sample, reading.spans.sample[batch.pairs.answer_refs]

    def weights(self, batch: Batch, word_of: Tensor, span_of: Tensor) -> Tensor:
        """What the log-probability of a decision counts for, by its answer. [S]."""
        advantage = batch.draws.advantage
        if self.options.average != "mean":
            return advantage
        each = torch.cat([word_of, span_of])
        return advantage / torch.zeros_like(advantage).index_add(0, each, torch.ones_like(each, dtype=torch.float))


def no_dropout(model: VideoLLM) -> None:
    """Switch dropout off for good, in layers and in what attention does by a number of its own."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in SHARES:
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


def divergence(now: Tensor, reference: Tensor) -> Tensor:
    """What k3 estimates of the divergence from a reference, summed over decisions of these log-probabilities [N]:
    r - log r - 1, where r is the reference's probability over the model's."""
    ratio = reference - now
    return (ratio.exp() - ratio - 1).sum()


def drift(log: Path, metric: str) -> str | None:
    """What to say where validations by ``metric`` are below the best of them for ``FALLING`` times in a row, while
    answers drawn before each earned more than before the best; else None."""
    stretches, rewards = [], []  # (validation, mean reward since the one before)
    for _, entry in json_lines(log):
        if "reward" in entry:
            rewards.append(entry["reward"])
        elif metric in entry and rewards:
            stretches.append((entry[metric], sum(rewards) / len(rewards)))
            rewards = []
    if len(stretches) <= FALLING:
        return None
    best, earned = max(stretches[:-FALLING])
    if not all(value < best and reward > earned for value, reward in stretches[-FALLING:]):
        return None
    value, reward = stretches[-1]
    return (
        f"{WHERE}: drawn answers earn more ({earned:.3f}, now {reward:.3f}) while validation gets worse ({metric} "
        f"{best:.3f}, now {value:.3f}): what is rewarded is not what greedy answers need; stop, take train.best, or "
        "choose another reward, a lower train.lr, or a kl"
    )


def shown(group: Group) -> dict:
    """A group for people: the question, the right answer, and each answer with what it earned."""
    (record,) = group.item.records
    each = zip(group.lines, group.found, group.rewards.tolist(), strict=True)
    answers = [
        {"text": line.text, "spans": line.spans, "reward": total, "by": by, "ends": line.finish_reason}
        for line, by, total in each
    ]
    return {"id": record.id, "question": record.question, "right": true_text(record), "answers": answers}
