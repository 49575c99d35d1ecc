"""Which questions are worth asking: a model's own answers say how hard each is, and a subset is drawn by that.

In: records, and what their answers earn: lines of ``videollm.infer`` (several to a question allowed) before a run, or
roll-outs within it. Out: a score of each question, the mean of what its answers earn, and a subset whose scores lie
around a wanted one or between two quantiles; of a run one for each epoch. What is drawn follows from seed, ids and
scores, not from the order. Knows no model.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch.utils.data import Sampler as Order

from videollm.batches.dataset import VideoDataset
from videollm.common.answers import AnswerLine
from videollm.common.config import ConfigError, need, needs
from videollm.common.files import json_lines
from videollm.data import Record
from videollm.data.filters import DifficultyOptions, gaussian_needs
from videollm.grpo.rewards import Rewards
from videollm.model.draws import gumbel, row_keys

NEEDED = ("id", "text", "spans")


def read_answers(paths: Sequence[Path]) -> dict[str, list[AnswerLine]]:
    """Answers by the question's id, those left out that could not be asked; ConfigError with FILE:LINE."""
    found = defaultdict(list)
    for path in paths:
        try:
            for _, line in json_lines(path, parse=partial(AnswerLine.from_json, needed=NEEDED)):
                if not line.error:
                    found[line.id].append(line)
        except OSError as error:
            raise ConfigError(f"--answers: {path}: {error}; give an output of videollm.infer") from None
    return found


def scored(records: Sequence[Record], answers: dict[str, list[AnswerLine]], rewards: Rewards) -> dict[int, float]:
    """Index of each record that has an answer -> mean of what its answers earn; ConfigError where none has, or where
    one is to another question of that id."""
    found = {}
    for index, record in enumerate(records):
        if rewards.lacking(record) is None and answers.get(record.id):
            for line in answers[record.id]:
                same = line.question in ("", record.question) and line.video in (None, record.video)
                told = f"--answers: the one to {record.id!r} is about another video or question than {record.where}"
                need(same, f"{told}; give an output of videollm.infer to these questions")
            earned = [
                rewards.total(rewards.of(line, record, line.duration or record.duration_s or 0.0))
                for line in answers[record.id]
            ]
            found[index] = float(np.mean(earned))
    told = "none is to a question of --annotations that a reward says anything about"
    need(found, f"--answers: {told}; give an output of videollm.infer to these questions, or other rewards")
    return found


def subset(records: Sequence[Record], scores: dict[int, float], options: DifficultyOptions) -> list[int]:
    """Indices of the records drawn, in order: without repetition, each by its weight; ConfigError for none."""
    values = np.asarray(list(scores.values()))
    low, high = np.quantile(values, options.quantiles)
    log_weight = np.where((values >= low) & (values <= high), around(values, options.mean, options.spread), -math.inf)
    order = by_weight([records[index].id for index in scores], log_weight, options.seed)
    chosen = [place for place in order if log_weight[place] > -math.inf][: options.count]
    need(chosen, "quantiles, mean, spread: of the questions that have answers none has a chance; widen them")
    return sorted(list(scores)[place] for place in chosen)


def around(scores: np.ndarray, mean: float | None, spread: float) -> np.ndarray:
    """Log-weights [N] by a Gaussian over the ``scores``; None: all alike."""
    return np.zeros(len(scores)) if mean is None else -(((scores - mean) / spread) ** 2) / 2


def by_weight(ids: Sequence[str], log_weight: np.ndarray, seed: int, epoch: int = 0) -> list[int]:
    """The order in which N questions are drawn without repetition, each time by weight: their places. An ``epoch`` has
    an order of its own."""
    keys = row_keys(ids, [seed] * len(ids), torch.device("cpu"))
    noise = gumbel(keys, torch.full_like(keys, epoch), 1)[:, 0].numpy()
    # The highest of log-weight + Gumbel noise are drawn one after the other, by weight.
    return np.argsort(-(log_weight + noise), kind="stable").tolist()


# ---- within a run ----------------------------------------------------------------------------------------------------


@dataclass
class RedrawOptions:
    """``train.objective.redraw``: which questions an epoch asks, by what their newest answers earned."""

    share: float = 0.5  # of the questions, asked in an epoch
    flat: float = 0.25  # weight of a question whose answers all earned the same; of others, and of those not asked, 1
    mean: float | None = None  # weights by a Gaussian around this reward; null: all alike
    spread: float = 0.2

    def __post_init__(self):
        where = "train.objective.redraw"
        needs(
            (0 < self.share < 1, f"{where}.share: {self.share}, but it must be above 0 and below 1"),
            (0 < self.flat <= 1, f"{where}.flat: {self.flat}, but it must be above 0 and at most 1"),
            *gaussian_needs(self.mean, self.spread, f"{where}."),
        )


class Redrawn(Order):
    """The questions of each epoch of a ``VideoDataset``: what all ranks know of them decides, so all draw the same.

    ``known``, for a checkpoint: of the questions ``seen``, by their ids, the mean reward of the newest answers and
    whether all earned the same; that as it was ``before`` the ``epoch``, by which a run that goes on in it draws again.
    """

    def __init__(self, options: RedrawOptions, dataset: VideoDataset, seed: int):
        self.options, self.dataset, self.seed = options, dataset, seed
        self.ids = [record.id for record in dataset.records]
        self.known = {"seen": {}, "before": {}, "epoch": -1}

    def note(self, asked: list[tuple[str, float, bool]]) -> None:
        """Take note of a step's questions, of this rank's the id, the mean reward and whether all answers earned it."""
        every = [asked]
        if dist.is_initialized():
            every = [[] for _ in range(dist.get_world_size())]
            dist.all_gather_object(every, asked)
        for name, *found in chain(*every):  # ranks that ask the same in a step have the same answers
            self.known["seen"][name] = tuple(found)

    def __len__(self) -> int:
        return max(1, round(self.options.share * len(self.ids)))

    def __iter__(self) -> Iterator[int]:
        known, epoch = self.known, self.dataset.epoch
        if known["epoch"] != epoch:
            known |= {"before": dict(known["seen"]), "epoch": epoch}
        scores, flat = np.array([known["before"].get(name, (math.nan, False)) for name in self.ids]).T
        log_weight = np.nan_to_num(around(scores, self.options.mean, self.options.spread))  # 0 of those not asked
        log_weight = log_weight + flat * math.log(self.options.flat)
        drawn = sorted(by_weight(self.ids, log_weight, self.seed, epoch)[: len(self)])
        return iter(np.random.default_rng([self.seed, epoch]).permutation(drawn).tolist())


def tenths(scores: Sequence[float]) -> list[int]:
    """How many scores lie in each tenth from 0 to 1; what is outside counts at its end."""
    return np.histogram(np.clip(scores, 0, 1), bins=10, range=(0, 1))[0].tolist()
