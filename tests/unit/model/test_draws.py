"""Draws follow from seed, question, place and token alone, and follow the probabilities they are drawn by."""

import math

import pytest
import torch

from videollm.model.draws import Draw, gumbel, row_keys

# The first numbers of SplitMix64 from the seed 1234567, as its published test vector has them.
SPLITMIX = (6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821)


def test_the_noise_is_made_of_the_numbers_of_splitmix64():
    uniform = [((number >> 12) + 0.5) / 2**52 for number in SPLITMIX]
    wanted = [-math.log(-math.log(u)) for u in uniform]
    assert gumbel(torch.tensor([1234567]), torch.tensor([0]), 5)[0].tolist() == pytest.approx(wanted, rel=1e-12)
    # The same numbers, as steps of a vocabulary of one.
    steps = [gumbel(torch.tensor([1234567]), torch.tensor([step]), 1).item() for step in range(5)]
    assert steps == pytest.approx(wanted, rel=1e-12)


def test_tokens_are_drawn_as_often_as_they_are_likely():
    scores = torch.tensor([2.0, 0.0, 1.0, -3.0, -torch.inf])
    count = 20_000
    keys = row_keys([f"q{i}" for i in range(count)], [0] * count, torch.device("cpu"))
    drawn = Draw(keys, torch.full_like(keys, 3))(None, scores.expand(count, -1)).argmax(-1)
    shares = torch.bincount(drawn, minlength=5) / count
    likely = scores.softmax(-1)
    assert ((shares - likely).abs() < 5 * (likely * (1 - likely) / count).sqrt() + 1e-12).all()


def test_rows_steps_and_seeds_draw_apart_and_rows_do_not_move_each_other():
    where, names = torch.device("cpu"), ["a", "b", "c"]
    keys = row_keys(names, [3] * 3, where)
    step = torch.tensor([0, 4, 9])
    noise = gumbel(keys, step, 50)
    for row in range(3):
        assert torch.equal(noise[row], gumbel(keys[row : row + 1], step[row : row + 1], 50)[0])
    others = (
        gumbel(keys, step + 1, 50),
        gumbel(keys.flip(0), step, 50)[:1],
        gumbel(row_keys(names, [4] * 3, where), step, 50),
    )
    assert all(not (noise[: len(other)] == other).any() for other in others)
    assert gumbel(keys, step, 10**5).isfinite().all()
