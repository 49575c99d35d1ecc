"""The time head: wording, encoding and decoding of times, losses that add up."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import distime  # noqa: F401  registers the head
from distime.losses import dfl, diou, gaussian
from videollm.data.conversation import FrameSlot, FrameTimeSlot, Role, SpanMark, SpanSlot, Turn
from videollm.heads import FrameBatch, Prediction, SpanRefs, build_head

WIDTH = 16
TERMS = ("dfl", "diou")


def make_head(**options):
    torch.manual_seed(0)
    head = build_head({"name": "distime", "reg_max": 8, **options}, WIDTH)
    head.reset_parameters()
    return head


def make_frames(padding: float = 0.0) -> FrameBatch:
    mask = torch.tensor([[True] * 4, [True] * 2 + [False] * 2])
    times = torch.tensor([[0.0, 5.0, 10.0, 15.0], [1.0, 3.0, 0.0, 0.0]]).masked_fill(~mask, padding)
    return FrameBatch(times, mask, torch.tensor([20.0, 4.0]))


ROWS = [  # owner, sample, role, frame, start_s, end_s
    (0, 0, Role.QUESTION, -1, 1.0, 4.0),
    (0, 0, Role.ANSWER, -1, 3.0, 9.5),
    (0, 1, Role.ANSWER, -1, 12.0, 20.0),
    (1, 2, Role.ANSWER, -1, 0.0, 1.5),
    (1, 2, Role.ANSWER, -1, 2.0, 3.5),
]
FRAME_ROWS = [(0, 0, Role.FRAME, 2, 0.0, 0.0), (1, 2, Role.FRAME, 1, 0.0, 0.0)]


def make_refs(rows: list[tuple], num_samples: int) -> SpanRefs:
    owner, sample, role, frame = (torch.tensor([r[i] for r in rows], dtype=torch.int64) for i in range(4))
    index = torch.arange(1, len(rows) + 1)
    seconds = torch.tensor([r[4:] for r in rows]).reshape(-1, 2)
    return SpanRefs(index, index - 1, owner, sample, role, torch.zeros_like(owner), frame, seconds, num_samples)


@pytest.fixture
def queries() -> torch.Tensor:
    return torch.randn(len(ROWS), WIDTH, generator=torch.Generator().manual_seed(1))


# ---- wording ---------------------------------------------------------------------------------------------------------


def test_every_frame_stands_behind_its_time_on_a_line_of_its_own():
    time, colon = "<FRAME_TIME_REF>", ": "
    assert make_head().layout(2) == [
        FrameTimeSlot(time, 0), colon, FrameSlot(0), "\n", FrameTimeSlot(time, 1), colon, FrameSlot(1)
    ]  # fmt: skip
    assert make_head(frame_time="add").layout(2) == [FrameSlot(0, timed=True), FrameSlot(1, timed=True)]
    assert make_head(frame_time="none").layout(2) == [FrameSlot(0), FrameSlot(1)]
    assert make_head().layout(0) == []


def test_marks_become_stamps_in_their_places():
    turns = [Turn("system", ("S",)), Turn("user", ("After ", SpanMark(0))), Turn("assistant", (SpanMark(1), ", x"))]
    system, user, assistant = make_head().compose(turns, [[0, 1], [2, 3]], 9.0)
    assert system.parts == ("S",)
    assert user.parts == ("After ", SpanSlot("<TIME_STAMP>", Role.QUESTION, 0))
    assert assistant.parts == (SpanSlot("<TIME_STAMP>", Role.ANSWER, 1), ", x")


# ---- times and embeddings --------------------------------------------------------------------------------------------


@given(st.floats(0, 8), st.floats(0, 8))
@settings(max_examples=40, deadline=None)
def test_a_predicted_span_looks_like_the_same_true_span(a, b):
    head, frames, tokens = make_head(), make_frames(), torch.randn(1, WIDTH)
    bins = torch.tensor([[a, b]])
    true = make_refs([(0, 0, Role.ANSWER, -1, *(bins[0] / 8 * 20).tolist())], 1)
    predicted = Prediction(true.seconds, torch.ones(1), bins)
    torch.testing.assert_close(
        head.embed(tokens, true, frames),
        head.embed_predicted(tokens, predicted, true.owner, frames),
        atol=1e-5,
        rtol=1e-4,
    )


@given(st.floats(0, 32), st.floats(0.8, 2))
@settings(max_examples=60, deadline=None)
def test_a_gaussian_decodes_to_the_time_it_encodes(peak, sigma):
    curve = gaussian(torch.tensor([peak]), 32, sigma)
    assert curve.sum().item() == pytest.approx(1, abs=1e-5)
    expected = (curve * torch.arange(33)).sum().item()
    if 4 * sigma <= peak <= 32 - 4 * sigma:  # nearer to an end, the cut tail shifts the mean
        assert expected == pytest.approx(peak, abs=2e-2)
    assert abs(curve.argmax().item() - peak) <= 0.5 + 1e-5


def test_stamps_replace_their_token_and_frames_tell_their_time():
    head, frames = make_head(), make_frames()
    refs = make_refs(FRAME_ROWS + ROWS, 3)
    one, other = head.embed(torch.zeros(7, WIDTH), refs, frames), head.embed(torch.ones(7, WIDTH), refs, frames)
    torch.testing.assert_close(one, other)
    bins = torch.tensor([[10 / 20 * 8] * 2, [3 / 4 * 8] * 2])
    torch.testing.assert_close(one[:2], head.time_enc(gaussian(bins, 8, 1.0).flatten(1)))
    bins = torch.tensor([[1 / 20 * 8, 4 / 20 * 8]])
    torch.testing.assert_close(one[2:3], head.time_enc(gaussian(bins, 8, 1.0).flatten(1)))


def test_added_frame_times_keep_the_visual_token():
    head, frames, refs = make_head(frame_time="add"), make_frames(), make_refs(FRAME_ROWS, 3)
    zero = head.embed(torch.zeros(2, WIDTH), refs, frames)
    torch.testing.assert_close(head.embed(torch.ones(2, WIDTH), refs, frames), 1 + zero)


def test_predictions_are_ordered_and_clipped_but_raw_bins_are_neither(queries):
    head, frames, refs = make_head(), make_frames(), make_refs(ROWS, 3)
    prediction = head.predict(queries, refs.owner, frames)
    raw_s = prediction.raw / 8 * frames.duration_s[refs.owner, None]
    torch.testing.assert_close(prediction.seconds, raw_s.sort(-1).values)
    assert (prediction.raw[:, 0] > prediction.raw[:, 1]).any()  # a random head reverses some
    assert ((prediction.score > 0) & (prediction.score <= 1)).all()


def test_a_sharp_distribution_scores_one_and_predicts_its_bin():
    head, frames = make_head(num_layers=1), make_frames()
    torch.nn.init.zeros_(head.time_gen.layers[0].weight)
    with torch.no_grad():
        head.time_gen.layers[0].bias.view(2, 9)[torch.arange(2), torch.tensor([2, 6])] = 50.0
    prediction = head.predict(torch.randn(1, WIDTH), torch.tensor([0]), frames)
    torch.testing.assert_close(prediction.seconds, torch.tensor([[5.0, 15.0]]))
    assert prediction.score.item() == pytest.approx(1)


@pytest.mark.parametrize(("compatibility", "last"), [("default", 20.0), ("published", 19.0)])
def test_targets_are_clamped_to_the_taught_range(compatibility, last):
    head = make_head(compatibility=compatibility)
    refs = make_refs([(0, 0, Role.ANSWER, -1, -1.0, 30.0), (1, 1, Role.ANSWER, -1, 0.0, 2.0)], 2)
    assert head._true_seconds(refs, make_frames())[0].tolist() == [0, last]
    loss = head.loss(torch.randn(2, WIDTH), refs, make_frames())
    assert all(loss[t].isfinite() for t in TERMS)


# ---- losses ----------------------------------------------------------------------------------------------------------


def test_without_spans_the_losses_are_zero_and_reach_every_parameter():
    head, refs = make_head(), make_refs([], 2)
    loss = head.loss(torch.zeros(0, WIDTH), refs, make_frames())
    assert all(loss[t].item() == 0 for t in TERMS)
    embeds = head.embed(torch.zeros(0, WIDTH), refs, make_frames())
    assert embeds.shape == (0, WIDTH)
    (sum(loss.values()) + embeds.sum()).backward()
    assert all(p.grad is not None and not p.grad.any() for p in head.parameters())
    assert head.log_prob(torch.zeros(0, WIDTH), refs, make_frames()).shape == (0,)


@pytest.mark.parametrize("average", ["published", "mean"])
def test_losses_of_a_batch_are_the_sums_over_its_samples(queries, average):
    head, refs, frames = make_head(dfl_average=average), make_refs(ROWS, 3), make_frames()
    together, counts = head.loss(queries, refs, frames), head.counts(refs)
    parts, part_counts = [], []
    for sample in range(3):
        own = refs.sample == sample
        part = replace(refs.select(own), num_samples=1, sample=refs.sample[own] * 0)
        parts.append(head.loss(queries[own], part, frames))
        part_counts.append(head.counts(part))
    for term in TERMS:
        torch.testing.assert_close(together[term], sum(p[term] for p in parts))
        torch.testing.assert_close(counts[term], sum(c[term] for c in part_counts))
    assert counts["diou"] == 3 and counts["dfl"] == (3 if average == "published" else 10)


def test_question_stamps_are_trained_and_frame_places_are_not(queries):
    head, frames = make_head(), make_frames()
    spans, mixed = make_refs(ROWS, 3), make_refs(ROWS + FRAME_ROWS, 3)
    queries = queries.requires_grad_()
    more = torch.cat([queries, torch.randn(2, WIDTH)])
    loss, same = head.loss(queries, spans, frames), head.loss(more, mixed, frames)
    for term in TERMS:
        torch.testing.assert_close(loss[term], same[term])
    torch.testing.assert_close(head.counts(mixed), head.counts(spans))
    sum(loss.values()).backward()
    assert queries.grad[0].any()
    log_prob = head.log_prob(more, mixed, frames)
    assert log_prob[[0, 5, 6]].tolist() == [0, 0, 0] and (log_prob[1:5] < 0).all()


def test_log_prob_is_minus_dfl_without_the_average(queries):
    head, refs, frames = make_head(), make_refs(ROWS[1:2], 1), make_frames()
    loss = head.loss(queries[1:2], refs, frames)["dfl"]
    torch.testing.assert_close(head.log_prob(queries[1:2], refs, frames)[0], -8 * loss)


def test_losses_are_float32_under_autocast(queries):
    head, refs, frames = make_head(), make_refs(ROWS, 3), make_frames()
    exact = head.loss(queries, refs, frames)
    with torch.autocast("cpu", torch.bfloat16):
        cast = head.loss(queries, refs, frames)
    for term in TERMS:
        assert cast[term].dtype == torch.float32
        torch.testing.assert_close(cast[term], exact[term], atol=0.1, rtol=0.1)


def test_padded_frames_never_matter(queries):
    head, refs = make_head(), make_refs(ROWS + FRAME_ROWS, 3)
    more = torch.cat([queries, queries[:2]])
    results = []
    for frames in (make_frames(), make_frames(padding=99.0)):
        results.append((head.embed(more, refs, frames), head.loss(more, refs, frames)))
    torch.testing.assert_close(*results)


def test_time_head_learns_a_span():
    head, refs, frames = make_head(dfl_average="mean"), make_refs(ROWS[1:3], 2), make_frames()
    queries = torch.randn(2, WIDTH)
    optimizer = torch.optim.Adam(head.parameters(), 1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        sum(head.loss(queries, refs, frames).values()).backward()
        optimizer.step()
    predicted = head.predict(queries, refs.owner, frames).seconds
    torch.testing.assert_close(predicted, refs.seconds, atol=0.4, rtol=0)


@given(st.floats(0, 8))
@settings(max_examples=40, deadline=None)
def test_dfl_is_least_where_its_two_bins_hold_the_target(target):
    low = min(int(target), 7)
    p = torch.full((1, 9), 1e-9)
    p[0, low], p[0, low + 1] = max(low + 1 - target, 1e-9), max(target - low, 1e-9)
    y = torch.tensor([target])
    best = dfl(p.log(), y)
    assert best.item() >= -1e-5
    assert (best <= dfl(torch.randn(1, 9), y) + 1e-5).all()


@given(st.lists(st.tuples(*[st.floats(0, 50)] * 4), min_size=1, max_size=6))
@settings(max_examples=60, deadline=None)
def test_ordered_diou_is_between_zero_and_two_and_ignores_the_order(rows):
    values = torch.tensor(rows)
    pred, target = values[:, :2], values[:, 2:].sort(-1).values
    loss = diou(pred, target, ordered=True)
    assert ((loss >= -1e-5) & (loss <= 2 + 1e-5)).all()
    torch.testing.assert_close(loss, diou(pred.flip(-1), target, ordered=True))


def test_only_the_signed_diou_explodes_for_a_reversed_prediction():
    pred, target = torch.tensor([[100.0, 2.0]]), torch.tensor([[5.0, 6.0]])
    assert diou(pred, target, ordered=False).item() > 100
    assert diou(pred, target, ordered=True).item() < 2


# ---- parameters and options ------------------------------------------------------------------------------------------


def test_modules_have_the_published_names_and_start_with_zero_biases():
    head = make_head(num_layers=2)
    shapes = {k: tuple(v.shape) for k, v in head.state_dict().items()}
    assert shapes["time_gen.layers.1.weight"] == (18, WIDTH) and shapes["time_enc.layers.0.weight"] == (WIDTH, 18)
    assert len(shapes) == 8
    assert not any(v.any() for k, v in head.state_dict().items() if k.endswith("bias"))


def test_published_is_a_preset_that_single_flags_override():
    options = make_head(compatibility="published", order_for_diou=True).options
    assert (options.target_clamp, options.order_for_diou) == ("last_second", True)
    assert make_head().options.order_for_diou
