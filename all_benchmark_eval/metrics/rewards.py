"""Rewards of reinforcement learning that need a model of sentences: an answer and its record in, a number out.

A config names them by their place, ``all_benchmark_eval.metrics.rewards:meaning``. What a reward is, and which need no
model, stands in ``videollm/grpo/rewards.py``. Knows no training.
"""

from all_benchmark_eval.metrics.sentences import sentence_model
from videollm.common.answers import AnswerLine
from videollm.data import Record
from videollm.grpo.rewards import described, reward


@reward("meaning", needs="spans")
def meaning(answer: AnswerLine, record: Record, duration_s: float) -> float:
    """As ``captions``, by the likeness of what the texts mean (all-MiniLM-L6-v2, 0 to 1), not of their words."""
    return described(answer, record, duration_s, likeness)


def likeness(told: list[str], asked: list[str]) -> list[list[float]]:
    """Cosines of sentence vectors, those below 0 as 0. [P, T]."""
    vectors = sentence_model().encode([*told, *asked])
    return (vectors[: len(told)] @ vectors[len(told) :].T).clip(0).tolist()
