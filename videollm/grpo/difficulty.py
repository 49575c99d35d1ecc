"""Which questions are worth asking: a model's own answers say how hard each is, and a subset is drawn by that.

In: records, and lines of ``videollm.infer`` (several to a question allowed). Out: a score of each question, the mean of
what its answers earn, and a subset whose scores lie around a wanted one or between two quantiles. What is drawn follows
from seed and ids, not from the order. Knows no model.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from videollm.common.answers import AnswerLine
from videollm.common.config import ConfigError, need
from videollm.common.files import json_lines
from videollm.data import Record
from videollm.data.filters import DifficultyOptions
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
    """Index of each record that has an answer -> mean of what its answers earn; ConfigError where none has."""
    found = {}
    for index, record in enumerate(records):
        if rewards.lacking(record) is None and answers.get(record.id):
            earned = [
                rewards.total(rewards.of(line, record, line.duration or record.duration_s or 0.0))
                for line in answers[record.id]
            ]
            found[index] = float(np.mean(earned))
    need(found, "--answers: none is to a question of --annotations that a reward says anything about")
    return found


def subset(records: Sequence[Record], scores: dict[int, float], options: DifficultyOptions) -> list[int]:
    """Indices of the records drawn, in order: without repetition, each by its weight."""
    values = np.asarray(list(scores.values()))
    low, high = np.quantile(values, options.quantiles)
    log_weight = np.where((values >= low) & (values <= high), 0.0, -math.inf)
    if options.mean is not None:
        log_weight -= ((values - options.mean) / options.spread) ** 2 / 2
    keys = row_keys([records[index].id for index in scores], [options.seed] * len(scores), torch.device("cpu"))
    # The highest of log-weight + Gumbel noise are drawn one after the other, by weight.
    order = np.argsort(-(log_weight + gumbel(keys, torch.zeros_like(keys), 1)[:, 0].numpy()), kind="stable")
    chosen = [int(place) for place in order if log_weight[place] > -math.inf][: options.count]
    return sorted(list(scores)[place] for place in chosen)


def tenths(scores: Sequence[float]) -> list[int]:
    """How many scores lie in each tenth from 0 to 1; what is outside counts at its end."""
    return np.histogram(np.clip(scores, 0, 1), bins=10, range=(0, 1))[0].tolist()
