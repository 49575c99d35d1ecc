"""A second, independent reading of every published rule of moments, and the oddities on which it is held against ours.

Written from the descriptions of the repositories' scripts (docs/evaluation.md has them in tables) by someone who had
not written the scorers. Nothing is computed as there: time is a set of whole seconds, an IoU a fraction of two counts.
"""

import random
from fractions import Fraction

import numpy as np
import pytest

COUNT, LENGTH = 300, 200  # answers; seconds of every video
SEEDS = pytest.mark.parametrize("seed", range(3))
LIMITS = {f"R1@0.{t}": Fraction(t, 10) for t in (3, 5, 7)}


def cells(pair) -> set[int]:
    """The seconds that a pair covers; a reversed one covers none."""
    return set(range(*pair))


def iou(pair, true) -> Fraction:
    either = cells(pair) | cells(true)
    return Fraction(len(cells(pair) & cells(true)), len(either)) if either else Fraction(0)


def areas(pairs, true) -> Fraction:
    """UniTime's: shared seconds over signed lengths, each summed over all pairs."""
    shared = sum(len(cells(pair) & cells(true)) for pair in pairs)
    rest = sum(end - start for start, end in pairs) + true[1] - true[0] - shared
    return Fraction(shared, rest) if rest else Fraction(0)


def single(value: Fraction) -> float:
    """A quotient as single precision has it."""
    return float(np.float32(value.numerator) / np.float32(value.denominator))


def turned(pairs) -> list:
    return [sorted(pair) for pair in pairs]


JUDGES = {  # script -> what it makes of the pairs of an answer
    "timelens": lambda pairs, true: iou(pairs[0], true) if pairs else Fraction(0),
    "lmms_charades": lambda pairs, true: iou(turned(pairs)[0], true) if pairs else Fraction(0),
    "exactly_one": lambda pairs, true: iou(turned(pairs)[0], true) if len(pairs) == 1 else Fraction(0),
    "time_r1": lambda pairs, true: iou(pairs[-1], true) if pairs else Fraction(0),
    "extremewhen": lambda pairs, true: iou(turned(pairs)[-1], true) if pairs else Fraction(0),
    "videomind": lambda pairs, true: iou(pairs[0], true) if pairs else Fraction(0),
    "unitime": lambda pairs, true: areas(pairs, true) if pairs else Fraction(0),
    "default": lambda pairs, true: iou(pairs[0], true) if pairs else Fraction(0),
}
ABOVE, SINGLE, EVERY, RANKS = (
    {"time_r1", "unitime"},
    {"videomind", "unitime"},
    {"extremewhen", "default"},
    {"videomind", "default"},
)


def read_again(script: str, answers: list, truths: list) -> dict[str, float]:
    """Metrics in percent; of each query the pairs of its answer, or None where the file has none."""
    there = [
        (pairs or [], true) for pairs, true in zip(answers, truths, strict=True) if pairs is not None or script in EVERY
    ]
    values = [JUDGES[script](pairs, true) for pairs, true in there]
    hit = (lambda value, limit: value > limit) if script in ABOVE else (lambda value, limit: value >= limit)
    found = {name: [hit(value, limit) for value in values] for name, limit in LIMITS.items()}
    if script in RANKS and any(len(pairs) > 1 for pairs, _ in there):
        best = [max((iou(pair, true) for pair in pairs[:5]), default=Fraction(0)) for pairs, true in there]
        found |= {name.replace("R1", "R5"): [value >= limit for value in best] for name, limit in LIMITS.items()}
    found["mIoU"] = [single(value) if script in SINGLE else float(value) for value in values]
    return {name: 100 * sum(column) / len(column) for name, column in found.items()}


# ---- oddities --------------------------------------------------------------------------------------------------------


def odd_pair(rng: random.Random, true) -> list[int]:
    """Right, at a threshold on either side, reversed, of no length, apart, beyond the video, or anything."""
    start, end = true
    part = (end - start) * rng.choice((3, 5, 7)) // 10
    return rng.choice(
        [
            [start, end], [start, start + part], [end - part, end], [end, start], [start + part, start], [start, start],
            [0, 0], [end, end + 10], [start, LENGTH + 50], rng.sample(range(LENGTH), 2), [rng.randrange(LENGTH)] * 2,
        ]
    )  # fmt: skip


def odd_answers(rng: random.Random, truths: list, most: int = 7) -> list:
    """None (no answer in the file), or up to ``most`` pairs."""
    counts = rng.choices((None, 0, 1, 2, 3, most), (1, 1, 5, 2, 2, 1), k=len(truths))
    return [n if n is None else [odd_pair(rng, true) for _ in range(n)] for n, true in zip(counts, truths, strict=True)]


def odd_truths(rng: random.Random) -> list:
    return [[s, s + 10 * rng.randrange(4)] for s in (rng.randrange(100) for _ in range(COUNT))]
