"""What a sampled answer draws: noise that follows from seed, question, place and token alone.

In: the questions' ids and the scores of a step. Out: scores whose highest token is a sample of their softmax (the
Gumbel-max trick), and such noise for whatever a head draws a span from. Nothing is taken from torch's generators, so it
does not matter what else stands in a batch, how large it is, which rank answers it, or what was drawn before. Knows no
model and no prompt.
"""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessor

WEYL = -0x61C8864680B583EB  # 2^64 / golden ratio, as a signed number: the step of SplitMix64 (Steele et al. 2014)
MIXERS = ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15))  # its shifts and factors
BITS = 52  # of a uniform number: that and a half is exact in float64
SPANS = 0x5851F42D4C957F2D  # makes of a row's key another one, for its spans
WIDEST, MOST = 1 << 20, 16  # numbers that a head asks for at once, and how often for one span


def row_keys(ids: Sequence[str], seeds: Sequence[int], device: torch.device) -> Tensor:
    """A number [B] int64 of each question's own, under its seed."""
    digests = (hashlib.sha256(f"{seed} {name}".encode()).digest() for name, seed in zip(ids, seeds, strict=True))
    return torch.tensor([int.from_bytes(d[:8], "big", signed=True) for d in digests], device=device)


def shifted(bits: Tensor, by: int) -> Tensor:
    """int64 shifted right as if it had no sign."""
    return (bits >> by) & ((1 << (64 - by)) - 1)


def gumbel(keys: Tensor, steps: Tensor, count: int, stride: int | None = None) -> Tensor:
    """Standard Gumbel noise [B, V] float64 for rows of ``keys`` [B] at their ``steps`` [B], counted from 0.

    ``count`` V numbers a step; with a ``stride`` above it the first of them are the same, however many are wanted.
    """
    counter = steps[:, None] * (stride or count) + torch.arange(count, device=keys.device)  # [B, V]
    bits = keys[:, None] + WEYL * (counter + 1)
    for by, factor in MIXERS:
        bits = (bits ^ shifted(bits, by)) * factor
    bits = bits ^ shifted(bits, 31)
    uniform = (shifted(bits, 64 - BITS).double() + 0.5) * 2.0**-BITS
    return -(-uniform.log()).log()


class Draw(LogitsProcessor):
    """Adds the noise of each row [R] at its step to its scores, so that taking the highest draws from their softmax.

    ``steps`` [R]: the tokens that each answer has so far; it is looked at anew in every step.
    """

    def __init__(self, keys: Tensor, steps: Tensor):
        self.keys, self.steps = keys, steps

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return scores + gumbel(self.keys, self.steps, scores.shape[1])


class SpanNoise:
    """Noise for the spans that a head draws in one step: called with a number n, it gives fresh [B, n] float64."""

    def __init__(self, keys: Tensor, steps: Tensor):
        """For rows of ``keys`` [B] at their ``steps`` [B]; no number is one that words of the same key are drawn by."""
        self.keys, self.steps, self.calls = keys ^ SPANS, steps, 0

    def __call__(self, count: int) -> Tensor:
        steps = self.steps * MOST + self.calls
        self.calls += 1
        return gumbel(self.keys, steps, count, WIDEST)
