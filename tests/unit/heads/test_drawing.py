"""A head draws spans from a distribution that sums to one, with the log-probability that it says."""

import pytest
import torch

from videollm.heads import HEADS, FrameBatch, TemporalHead, build_head
from videollm.model.draws import SpanNoise, row_keys

WIDTH, FRAMES = 16, (5, 3)  # frames of two rows
OPTIONS = {"d2vlm": {"inject_layer": 1}, "distime": {"reg_max": 4, "drawing": "bins"}}
CPU = torch.device("cpu")


def a_head(name):
    torch.manual_seed(3)
    head = build_head({"name": name, **OPTIONS[name]}, WIDTH)
    head.reset_parameters()
    for parameter in head.parameters():  # a start whose distributions are not flat
        parameter.data = parameter.data * 2 + 0.3 * torch.randn_like(parameter)
    return head


def a_video(padding=0):
    """Two rows of frames at odd times; ``padding`` more columns change nothing."""
    most = max(FRAMES)
    times = torch.tensor([[0.5, 1.0, 2.5, 3.0, 5.0], [1.0, 2.0, 4.0, 0.0, 0.0]])
    states = torch.randn(2, most, WIDTH, generator=torch.Generator().manual_seed(1))
    mask = torch.arange(most) < torch.tensor(FRAMES)[:, None]
    more = (0, padding)
    states = torch.nn.functional.pad(states, (0, 0, *more), value=9.0)
    times, mask = torch.nn.functional.pad(times, more), torch.nn.functional.pad(mask, more)
    return FrameBatch(times, mask, torch.tensor([6.0, 5.0]), states={-2: states, 1: states})


def every(name, row):
    """All that the head can draw in a row, as ``raw`` [K, 2]."""
    if name == "distime":
        return torch.cartesian_prod(torch.arange(5.0), torch.arange(5.0))
    return torch.tensor([[a, b] for a in range(FRAMES[row]) for b in range(a, FRAMES[row])])


def log_prob(head, query, raw, row, frames, temperature=1.0):
    owner = torch.full((len(raw),), row)
    return head.draw_log_prob(query.expand(len(raw), -1), raw, owner, frames, temperature)


@pytest.fixture(params=list(OPTIONS))
def name(request):
    return request.param


@pytest.mark.parametrize("row", [0, 1])
@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_the_probabilities_of_all_spans_sum_to_one(name, row, temperature):
    head, query = a_head(name), torch.randn(1, WIDTH, generator=torch.Generator().manual_seed(row))
    found = log_prob(head, query, every(name, row), row, a_video(), temperature)
    assert found.exp().sum().item() == pytest.approx(1, abs=1e-5) and found.std() > 0.1
    padded = log_prob(head, query, every(name, row), row, a_video(padding=3), temperature)
    torch.testing.assert_close(padded, found, rtol=0, atol=1e-5)


@pytest.mark.parametrize("row", [0, 1])
@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_the_entropy_is_that_of_all_spans(name, row, temperature):
    head, raws = a_head(name), every(name, row)
    query = torch.randn(1, WIDTH, generator=torch.Generator().manual_seed(row))
    likely = log_prob(head, query, raws, row, a_video(), temperature)
    with torch.no_grad():
        found = head.draw_entropy(query, raws[:1], torch.tensor([row]), a_video(padding=3), temperature)
    assert found.item() == pytest.approx(-(likely.exp() * likely).sum().item(), rel=1e-4) and found > 0.01


def test_where_a_head_knows_no_entropy_what_was_drawn_tells_it():
    head, raws = a_head("d2vlm"), every("d2vlm", 0)
    given = (torch.randn(1, WIDTH), raws[:1], torch.tensor([0]), a_video(), 1.0)
    torch.testing.assert_close(TemporalHead.draw_entropy(head, *given), -head.draw_log_prob(*given))


def test_the_entropy_of_times_is_that_of_their_density():
    head = build_head({"name": "distime", "reg_max": 4}, WIDTH)
    at, owner, query = torch.linspace(-30, 34, 20001), torch.zeros(20001).long(), torch.zeros(1, WIDTH)
    likely = head.draw_log_prob(query, torch.stack([at, at], -1), owner, a_video(), 2.0) / 2  # both ends are as likely
    one = -torch.trapezoid(likely * likely.exp(), at).item()
    found = head.draw_entropy(query, torch.zeros(1, 2), owner[:1], a_video(), 2.0)
    assert found.item() == pytest.approx(2 * one, rel=1e-3)


def test_a_run_of_frames_is_as_likely_as_the_sum_of_its_logits_says():
    head, frames, query = a_head("d2vlm"), a_video(), torch.randn(1, WIDTH)
    runs, owner = every("d2vlm", 0), torch.zeros(1, dtype=torch.long)
    logits = head.similarity(query, owner, frames)[0]
    sums = torch.stack([logits[a : b + 1].sum() for a, b in runs.tolist()]) / 0.7
    wanted = sums.log_softmax(0)
    torch.testing.assert_close(log_prob(head, query, runs, 0, frames, 0.7), wanted, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_spans_are_drawn_as_often_as_they_are_likely(name, temperature):
    head, frames, count = a_head(name), a_video(), 4000
    query = torch.randn(1, WIDTH, generator=torch.Generator().manual_seed(5)).expand(count, -1)
    keys = row_keys([f"q{k}" for k in range(count)], [0] * count, CPU)
    noise = SpanNoise(keys, torch.zeros_like(keys))
    with torch.no_grad():
        drawn = head.draw(query, torch.zeros(count, dtype=torch.long), frames, temperature, noise)
        raws = every(name, 0)
        likely = log_prob(head, query[:1], raws, 0, frames, temperature).exp()
    same = (drawn.raw[:, None].float() == raws[None].float()).all(-1)  # [count, K]
    shares = same.float().mean(0)
    assert same.any(1).all(), "something else was drawn"
    assert ((shares - likely).abs() < 5 * (likely * (1 - likely) / count).sqrt() + 1e-3).all()
    seconds = drawn.seconds
    assert (seconds[:, 0] <= seconds[:, 1]).all() and (seconds >= 0).all() and (seconds <= 6).all()
    assert (drawn.score >= 0).all() and (drawn.score <= 1).all()


def test_a_draw_depends_on_its_own_row_alone(name):
    head, query = a_head(name), torch.randn(2, WIDTH)
    keys, step = row_keys(["a", "b"], [7, 7], CPU), torch.tensor([3, 5])
    together = head.draw(query, torch.tensor([0, 1]), a_video(padding=2), 1.0, SpanNoise(keys, step))
    alone = head.draw(query[1:], torch.tensor([1]), a_video(), 1.0, SpanNoise(keys[1:], step[1:]))
    assert together.raw[1:].equal(alone.raw)


def test_drawing_keeps_the_best_span_the_likeliest_when_it_is_cold(name):
    head, frames, query = a_head(name), a_video(), torch.randn(1, WIDTH)
    raws, owner = every(name, 0), torch.zeros(1, dtype=torch.long)
    best = raws[log_prob(head, query, raws, 0, frames).argmax()]
    noise = SpanNoise(row_keys(["q"], [0], CPU), torch.zeros(1, dtype=torch.long))
    assert head.draw(query, owner, frames, 1e-4, noise).raw[0].tolist() == best.tolist()


def test_a_row_without_frames_gives_numbers_and_gradients_are_finite(name):
    head, query = a_head(name), torch.randn(2, WIDTH, requires_grad=True)
    frames = a_video(padding=1)
    frames.mask[1] = False
    keys = row_keys(["a", "b"], [0, 0], CPU)
    drawn = head.draw(query, torch.tensor([0, 1]), frames, 1.0, SpanNoise(keys, torch.zeros_like(keys)))
    found = head.draw_log_prob(query, drawn.raw, torch.tensor([0, 1]), frames, 1.0)
    found.sum().backward()
    assert found.isfinite().all() and drawn.score.isfinite().all() and drawn.seconds.isfinite().all()
    assert query.grad.isfinite().all() and query.grad[0].any()


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_times_around_the_expected_one_have_the_density_that_is_said(temperature):
    torch.manual_seed(2)
    head, count = build_head({"name": "distime", "reg_max": 4}, WIDTH), 4000
    query, frames = torch.randn(1, WIDTH), a_video()
    axis = torch.linspace(-14, 18, 641)  # bins
    raws = torch.cartesian_prod(axis, axis)
    density = log_prob(head, query, raws, 0, frames, temperature).exp().view(len(axis), -1) * (axis[1] - axis[0]) ** 2
    assert density.sum().item() == pytest.approx(1, abs=1e-3)
    keys = row_keys([f"q{k}" for k in range(count)], [0] * count, CPU)
    noise = SpanNoise(keys, torch.zeros_like(keys))
    drawn = head.draw(query.expand(count, -1), torch.zeros(count, dtype=torch.long), frames, temperature, noise)
    for end, marginal in ((0, density.sum(1)), (1, density.sum(0))):
        below = torch.searchsorted(marginal.cumsum(0), torch.tensor([0.1, 0.5, 0.9]))
        shares = [(drawn.raw[:, end] <= axis[k]).float().mean().item() for k in below]
        assert shares == pytest.approx([0.1, 0.5, 0.9], abs=0.03)
    assert (drawn.seconds[:, 0] <= drawn.seconds[:, 1]).all() and drawn.seconds.min() >= 0 and drawn.seconds.max() <= 6
    best = head.predict(query, torch.zeros(1, dtype=torch.long), frames)
    torch.testing.assert_close(drawn.raw.median(0).values, best.raw[0].detach(), rtol=0, atol=0.1)


def test_which_heads_draw():
    class Silent(TemporalHead):
        span_tokens = ("<when>",)

    assert all(build_head({"name": one}, WIDTH).draws for one in ("d2vlm", "distime", "text"))
    assert not Silent(None, WIDTH).draws and "text" in HEADS
