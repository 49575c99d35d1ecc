"""Roll-outs: a step's questions are answered several times by the model that is trained, and become its batch.

In: items as the loader reads them, each a question. Out: a ``Batch`` in which a question's answers stand behind one
encoding of it, with what each is better than the others by. The answers come from the generation that every question
is answered with, in this process, from the same frames, prompt, positions and precision as the step that follows;
which are drawn follows from seed, record, step and number alone. Knows the model's bundle; no trainer and no file.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from videollm.batches.batch import Batch, Draws
from videollm.batches.dataset import Item
from videollm.batches.prompt import Prompt, Ref
from videollm.checkpoint import Bundle
from videollm.common.answers import AnswerLine
from videollm.data.conversation import Role
from videollm.grpo.rewards import Rewards, first_iou, has
from videollm.inference.answer import answer_line
from videollm.model.generate import Drawn, GenerateOptions
from videollm.model.videollm import VideoLLM
from videollm.video.patching import Grid

EQUAL = 1e-6  # rewards of a group that differ by no more are equal
FIFTHS = ("tiou_0.0", "tiou_0.2", "tiou_0.4", "tiou_0.6", "tiou_0.8")  # of the log's histogram, by their lower ends
TOLD = ("reward", "reward_spread", "flat_groups", "answer_tokens", "cut_off", "entropy_words", "entropy_spans", *FIFTHS)


@dataclass
class Questions:
    """What the loader gives: items without an answer."""

    items: list[Item]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Questions":
        """The same on a device; what items share, they share there."""
        return self._moved(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Questions":
        """The same in memory that a GPU reads from while it works; torch's loader calls it."""
        return self._moved(Tensor.pin_memory)

    def _moved(self, move) -> "Questions":
        tensors = {id(t): t for item in self.items for t in (item.pixels, item.features) if t is not None}
        moved = {key: move(tensor) for key, tensor in tensors.items()}
        return Questions([with_visual(item, lambda tensor: moved[id(tensor)]) for item in self.items])


def with_visual(item: Item, change) -> Item:
    """A copy of an item with ``change`` applied to its pixels and features."""
    found = {name: getattr(item, name) for name in ("pixels", "features")}
    return replace(item, **{name: tensor if tensor is None else change(tensor) for name, tensor in found.items()})


@dataclass(frozen=True)
class Gather:
    """Items as they are; ``split_prefix`` as of the ``Collator`` that comes behind the roll-outs."""

    split_prefix: bool

    def __call__(self, items: Sequence[Item]) -> Questions:
        return Questions(list(items))


@dataclass
class Group:
    """The answers to one question: G of them."""

    item: Item
    drawn: list[Drawn]
    lines: list[AnswerLine]
    found: list[dict[str, float]]  # of each answer, its rewards by name
    rewards: np.ndarray  # [G]

    @property
    def flat(self) -> bool:
        """Whether all earned the same, so that none is better than the others."""
        return bool(np.ptp(self.rewards) <= EQUAL)

    @property
    def fifths(self) -> list[int]:
        """Of every answer, in which fifth the tIoU of its first span is; empty where the record has no span."""
        (record,) = self.item.records
        if not has(record, "spans"):
            return []
        ious = [first_iou(line, record, self.item.duration_s) for line in self.lines]
        return [min(int(iou * len(FIFTHS)), len(FIFTHS) - 1) for iou in ious]

    def advantages(self, scale: bool) -> np.ndarray:
        """By how much each is better than the mean of all, in the rewards' own unit or in standard deviations. [G]."""
        better = self.rewards - self.rewards.mean()
        return better / max(self.rewards.std(), EQUAL) if scale else better


class RollOuts:
    """Answers questions and makes batches of the answers; ``last`` are the groups of the newest batch."""

    def __init__(
        self, bundle: Bundle, options: GenerateOptions, rewards: Rewards, answers: int, scale: bool, skip_flat: bool
    ):
        """``options`` say how answers are drawn, ``answers`` how many to a question; ``scale`` as of ``Group``;
        ``skip_flat`` whether flat groups are left out."""
        self.bundle, self.options, self.rewards, self.answers = bundle, options, rewards, answers
        self.scale, self.skip_flat = scale, skip_flat
        self.ask, self.collate = bundle.collator(asked=True), bundle.collator(rank=True)
        self.last: list[Group] = []

    @torch.no_grad()
    def batch(self, questions: Questions, step: int) -> Batch:
        """The questions' answers of optimisation step ``step``, those of flat groups left out."""
        model = self.bundle.model
        device, training = next(model.parameters()).device, model.training
        model.eval()
        items = self.encoded(questions.items)
        good = [item for item in items if not item.bad]
        asked = self.ask(good).to(device)
        asked.ids = [f"{item.ids[0]} step {step}" for item in good] or [f"nothing in step {step}"]
        drawn = model.drawn(asked, self.bundle.tokenizer, self.bundle.stop_id, self.options, self.answers)
        model.train(training)
        self.last = [self.group(item, drawn[k * self.answers :][: self.answers]) for k, item in enumerate(good)]
        kept = [group for group in self.last if not (group.flat and self.skip_flat)]
        batch = self.collate([*(item for item in items if item.bad), *map(self.answered, kept)])
        batch.draws = self.draws(kept)
        raw = [one.raw.float() for group in kept for one in group.drawn]
        place_draws(batch, torch.cat([torch.zeros(0, 2), *raw]))
        return batch.to(device)

    def encoded(self, items: Sequence[Item]) -> list[Item]:
        """The items with a frozen tower's features in place of pixels, each visual through it once."""
        model = self.bundle.model
        if not model.frozen_tower:
            return list(items)
        seen = {id(item.pixels): (item.pixels, item.grids) for item in items if item.pixels is not None}
        made = dict(zip(seen, features_of(model, list(seen.values())), strict=True))
        return [
            item if item.pixels is None else replace(item, pixels=None, features=made[id(item.pixels)])
            for item in items
        ]

    def group(self, item: Item, drawn: list[Drawn]) -> Group:
        """The answers to one question with what they earn; RewardError."""
        (record,) = item.records
        lines = [answer_line(record, one.answer, one.reason, item) for one in drawn]
        device = next(self.bundle.model.parameters()).device
        with torch.autocast(device.type, enabled=False):  # a reward's own model is as precise as elsewhere
            found = [self.rewards.of(line, record, item.duration_s) for line in lines]
        return Group(item, drawn, lines, found, np.asarray([self.rewards.total(one) for one in found]))

    def answered(self, group: Group) -> Item:
        """The question with all of its answers behind it."""
        (question,), (asked_s,), item = group.item.prompts, group.item.spans_s, group.item
        prompts = [self.prompt(question, one, len(asked_s)) for one in group.drawn]
        spans = [np.concatenate([asked_s, one.seconds.double().numpy().reshape(-1, 2)]) for one in group.drawn]
        return replace(item, prompts=prompts, spans_s=spans, ids=[f"{item.ids[0]} {k}" for k in range(len(prompts))])

    def prompt(self, question: Prompt, drawn: Drawn, spans: int) -> Prompt:
        """A question of ``spans`` spans and an answer to it, as one conversation."""
        start, ids, head = len(question), drawn.ids, self.bundle.model.head
        before = head.answer_start(ids, self.bundle.tokenizer)
        places = [place for place, token in enumerate(ids) if token in self.bundle.model.span_ids]
        roles = [Role.EVIDENCE if place < before else Role.ANSWER for place in places]
        refs = [Ref(start + p, role, span=spans + k) for k, (p, role) in enumerate(zip(places, roles, strict=True))]
        position = question.position
        if position is not None:  # goes on by one on all axes, as in generation
            position = np.concatenate([position, position[:, -1:] + np.arange(1, len(ids) + 1)], 1)
        return Prompt(
            position=position,
            ids=question.ids + ids,
            supervised=[False] * start + [True] * len(ids),
            block=question.block + [-1] * len(ids),
            visual=question.visual,
            refs=question.refs + refs,
            prefix_length=start,
        )

    def draws(self, kept: Sequence[Group]) -> Draws:
        """What the batch of the groups ``kept`` has beside its tokens, and what is told of all of them."""
        drawn = [one for group in kept for one in group.drawn]
        advantage = [torch.as_tensor(group.advantages(self.scale)) for group in kept]
        empty = torch.zeros(0)
        return Draws(
            advantage=torch.cat([empty, *advantage]).float(),
            words_log_prob=torch.cat([empty, *(one.words_log_prob for one in drawn)]),
            spans_log_prob=torch.cat([empty, *(one.spans_log_prob for one in drawn)]),
            told=told(self.last, list(self.rewards.terms)),
        )


def told(groups: Sequence[Group], names: Sequence[str]) -> dict[str, tuple[float, float]]:
    """Sums and counts for the log: the reward, each of its terms, its spread in a group, flat groups, tokens, cut-off
    answers, entropies of words and spans, and in how many answers the first span's tIoU is in each fifth."""
    lines = [line for group in groups for line in group.lines]
    drawn = [one for group in groups for one in group.drawn]
    found = [one for group in groups for one in group.found]
    fifths = Counter(fifth for group in groups for fifth in group.fifths)
    sums = {
        "reward": (sum(float(group.rewards.sum()) for group in groups), len(lines)),
        "reward_spread": (sum(float(group.rewards.std()) for group in groups), len(groups)),
        "flat_groups": (sum(group.flat for group in groups), len(groups)),
        "answer_tokens": (sum(len(one.ids) for one in drawn), len(lines)),
        "cut_off": (sum(line.finish_reason == "length" for line in lines), len(lines)),
        "entropy_words": (sum(float(one.words_entropy.sum()) for one in drawn), sum(len(one.ids) for one in drawn)),
        "entropy_spans": (sum(float(one.spans_entropy.sum()) for one in drawn), sum(len(one.raw) for one in drawn)),
    }
    sums |= {name: (fifths[k], fifths.total()) for k, name in enumerate(FIFTHS)}
    for name in names:
        values = [one[name] for one in found if name in one]
        sums[f"reward_{name}"] = (sum(values), len(values))
    return {name: (float(total), float(count)) for name, (total, count) in sums.items()}


def features_of(model: VideoLLM, visuals: Sequence[tuple[Tensor, Sequence[Grid]]]) -> list[Tensor]:
    """A frozen tower's features of each visual, as ``pixels`` and ``grids`` of an ``Item``; one after the other.

    Under ZeRO-3 ranks wait for each other in every call of a module, whatever they ask about: there all visuals are in
    one call, a blank frame where there is none.
    """
    each = [(pixels, np.asarray(grids) if grids else None) for pixels, grids in visuals]
    if not is_deepspeed_zero3_enabled():
        return [model.encode_frames(*one) for one in each]
    pixels, grids = zip(*(each or [model.blank(next(model.parameters()).device)]), strict=True)
    found = model.encode_frames(torch.cat(pixels), None if grids[0] is None else np.concatenate(grids))
    rows, units = len(found), sum(map(len, pixels))  # a row a frame, or of any size a row for several patches
    return list(found.split([len(part) * rows // units for part in pixels]))[: len(visuals)]


def place_draws(batch: Batch, raw: Tensor) -> None:
    """Tell the batch's places of answered spans what the head drew there: ``raw`` [K, 2], in order."""
    refs, answered = batch.refs, batch.span_refs[batch.pairs.answer_refs]
    refs.raw = torch.zeros(len(refs), 2).index_copy(0, answered, raw)
    refs.drawn = torch.zeros(len(refs), dtype=torch.bool).index_fill(0, answered, True)
