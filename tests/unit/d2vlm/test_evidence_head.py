"""The evidence head: wording, best run of frames, embeddings, losses that add up."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

import d2vlm  # noqa: F401  registers the head
from d2vlm.runs import best_run, frame_position, run_seconds
from videollm.data.conversation import Role, SpanMark, SpanSlot, Token, Turn
from videollm.heads import FrameBatch, Prediction, SpanRefs, build_head

WIDTH, FRAMES = 8, [7, 4, 1]
TERMS = ("grounding", "consistency")


@pytest.fixture
def head():
    torch.manual_seed(0)
    return build_head({"name": "d2vlm"}, WIDTH)


def make_frames(padding: float = 0.0) -> FrameBatch:
    """Rows of 7, 4 and 1 frames, 2 s apart; ``padding`` fills the padded places."""
    generator = torch.Generator().manual_seed(1)
    mask = torch.arange(max(FRAMES)) < torch.tensor(FRAMES)[:, None]

    def features() -> torch.Tensor:
        values = torch.randn(len(FRAMES), max(FRAMES), WIDTH, generator=generator)
        return values.masked_fill(~mask[..., None], padding)

    times = (2.0 * torch.arange(max(FRAMES)).expand(len(FRAMES), -1)).masked_fill(~mask, padding)
    return FrameBatch(times, mask, 2.0 * torch.tensor(FRAMES), features(), {6: features(), -2: features()})


def make_refs(rows: list[tuple], num_samples: int) -> SpanRefs:
    """rows of (owner, sample, role, event, start_s, end_s)."""
    owner, sample, role, event = (torch.tensor([r[i] for r in rows], dtype=torch.int64) for i in range(4))
    index = torch.arange(1, len(rows) + 1)
    seconds = torch.tensor([r[4:] for r in rows]).reshape(-1, 2)
    return SpanRefs(index, index - 1, owner, sample, role, event, torch.full_like(owner, -1), seconds, num_samples)


ROWS = [
    (0, 0, Role.QUESTION, 0, 0.0, 2.0),
    (0, 0, Role.EVIDENCE, 1, 2.0, 6.0),
    (0, 0, Role.EVIDENCE, 2, 8.0, 12.0),
    (0, 0, Role.ANSWER, 1, 2.0, 6.0),
    (0, 0, Role.ANSWER, 2, 8.0, 12.0),
    (0, 1, Role.QUESTION, 0, 4.0, 4.0),
    (1, 2, Role.EVIDENCE, 0, 0.0, 6.0),
    (1, 2, Role.ANSWER, 0, 0.0, 6.0),
    (2, 3, Role.EVIDENCE, 0, 0.0, 1.0),
    (2, 3, Role.ANSWER, 0, 0.0, 1.0),
]


@pytest.fixture
def refs() -> SpanRefs:
    return make_refs(ROWS, 4)


@pytest.fixture
def queries() -> torch.Tensor:
    return torch.randn(len(ROWS), WIDTH, generator=torch.Generator().manual_seed(2))


# ---- wording ---------------------------------------------------------------------------------------------------------


def test_an_answer_grounds_before_it_speaks(head):
    turns = [
        Turn("user", ("When after ", SpanMark(0), "?")),
        Turn("assistant", ("At ", SpanMark(1), " and ", SpanMark(2))),
    ]
    question, answer = head.compose(turns, [[0, 1]] * 3, 9.0)
    assert question.parts == ("When after ", SpanSlot("<evi>", Role.QUESTION, 0), "?")
    assert answer.parts == (
        SpanSlot("<evi>", Role.EVIDENCE, 1),
        SpanSlot("<evi>", Role.EVIDENCE, 2),
        Token("</evi>"),
        " ",
        "At ",
        SpanSlot("<evi>", Role.ANSWER, 1),
        " and ",
        SpanSlot("<evi>", Role.ANSWER, 2),
    )


def test_an_answer_without_spans_begins_with_the_end_of_evidence(head):
    (turn,) = head.compose([Turn("assistant", ("Yes.",))], [], 9.0)
    assert turn.parts == (Token("</evi>"), " ", "Yes.")


def test_the_answer_begins_after_the_last_end_of_evidence(head):
    class Tokenizer:
        @staticmethod
        def convert_tokens_to_ids(token):
            return {"</evi>": 7}[token]

    assert head.answer_start([1, 7, 1, 7, 2], Tokenizer()) == 4
    assert head.answer_start([1, 2], Tokenizer()) == 0


# ---- runs of frames --------------------------------------------------------------------------------------------------


def plain_best_run(values: list[float], keep_ratio: float) -> list[int]:
    """The published rule (published_systems.md#d2vlm-evidence-head), frame by frame."""
    ratio = torch.tensor(keep_ratio, dtype=torch.float32)
    peak = torch.tensor(max(values), dtype=torch.float32)
    kept = [torch.tensor(v, dtype=torch.float32) >= ratio * peak for v in values]
    runs, start = [], None
    for i, keep in enumerate([*kept, False]):
        if keep and start is None:
            start = i
        if not keep and start is not None:
            runs.append((start, i - 1))
            start = None
    means = [float(torch.tensor(sum(values[a : b + 1]) / (b + 1 - a), dtype=torch.float32)) for a, b in runs]
    best = [run for run, mean in zip(runs, means, strict=True) if mean == max(means)]
    return [best[0][0], best[-1][1]]


@given(
    st.lists(
        st.lists(st.sampled_from([0.0, 0.125, 0.25, 0.5, 0.59, 0.625, 0.75, 0.8125, 1.0]), min_size=1, max_size=9)
    ),
    st.sampled_from([0.5, 0.6, 1.0]),
)
@settings(max_examples=150, deadline=None)
def test_best_run_of_a_padded_batch_equals_the_rule_row_by_row(rows, keep_ratio):
    rows = rows or [[1.0]]
    values = torch.nn.utils.rnn.pad_sequence([torch.tensor(r) for r in rows], batch_first=True, padding_value=2.0)
    mask = torch.arange(values.shape[1]) < torch.tensor([len(r) for r in rows])[:, None]
    run, score = best_run(values, mask, keep_ratio)
    assert run.tolist() == [plain_best_run(values[i][mask[i]].tolist(), keep_ratio) for i in range(len(rows))]
    assert (score <= values.masked_fill(~mask, 0).amax(-1)).all()


def test_a_vector_without_a_peak_means_the_whole_video():
    values = torch.tensor([[0.0, 0.0, 0.0, 9.0], [0.5, float("nan"), 0.4, 9.0]])
    run, score = best_run(values, torch.tensor([[True] * 3 + [False]] * 2), 0.6)
    assert run.tolist() == [[0, 2], [0, 2]] and score.tolist() == [0, 0]


def test_equal_runs_tie_whatever_the_order_of_their_values():
    values = torch.tensor([[0.7, 0.9, 0.8, 0.1, 0.8, 0.7, 0.9]])
    run, _ = best_run(values, torch.ones_like(values, dtype=torch.bool), 0.6)
    assert run.tolist() == [[0, 6]]


def test_a_run_lasts_half_a_gap_longer_at_each_side_inside_the_video():
    frames = FrameBatch(
        torch.tensor([[1.0, 3.0, 7.0, 0.0], [2.0, 0.0, 0.0, 0.0]]),
        torch.tensor([[True, True, True, False], [True, False, False, False]]),
        torch.tensor([8.0, 5.0]),
    )
    run, owner = torch.tensor([[0, 0], [1, 1], [2, 2], [0, 2], [0, 0]]), torch.tensor([0, 0, 0, 0, 1])
    wide = run_seconds(run, owner, frames, "half_gap")
    assert wide.tolist() == [[0, 2], [2, 5], [5, 8], [0, 8], [0, 5]]
    exact = run_seconds(run, owner, frames, "frame_times")
    assert exact.tolist() == [[1, 1], [3, 3], [7, 7], [1, 7], [2, 2]]


def test_frame_position_interpolates_and_extrapolates_true_frame_times():
    frames = FrameBatch(
        torch.tensor([[0.0, 2.0, 6.0, 0.0]]), torch.tensor([[True, True, True, False]]), torch.tensor([8.0])
    )
    seconds = torch.tensor([[0.0, 1.0], [2.0, 4.0], [-1.0, 10.0]])
    position = frame_position(seconds, torch.zeros(3, dtype=torch.int64), frames)
    assert position.tolist() == [[0, 0.5], [1, 1.5], [-0.5, 3]]


def test_predict_points_at_the_frames_that_resemble_the_query(head):
    frames = make_frames()
    torch.nn.init.zeros_(head.evi_head[3].weight)
    direction = head.frm_head(frames.states[-2][0, 3]).detach()
    with torch.no_grad():
        head.evi_head[3].bias.copy_(100 * direction)
    prediction = head.predict(torch.randn(1, WIDTH), torch.tensor([0]), frames)
    start, end = prediction.raw[0].tolist()
    assert start <= 3 <= end
    assert prediction.seconds.tolist() == [[2 * start - 1 if start else 0, 2 * end + 1]]
    assert 0.5 < prediction.score.item() <= 1


def test_predictions_are_ordered_and_inside_the_video(head, queries, refs):
    frames = make_frames()
    seconds = head.predict(queries, refs.owner, frames).seconds
    assert (seconds[:, 0] <= seconds[:, 1]).all() and (seconds >= 0).all()
    assert (seconds <= frames.duration_s[refs.owner, None]).all()


# ---- embeddings ------------------------------------------------------------------------------------------------------


def test_questions_read_the_connector_and_answers_read_the_language_model(head, refs):
    frames, words = make_frames(), torch.randn(len(ROWS), WIDTH)
    embedded = head.embed(words, refs, frames)
    torch.testing.assert_close(embedded[0], words[0] + frames.embeds[0, 0:2].mean(0))
    torch.testing.assert_close(embedded[4], words[4] + frames.states[6][0, 4:7].mean(0))
    torch.testing.assert_close(embedded[6], words[6] + frames.states[6][1, 0:4].mean(0))


@given(st.integers(0, 6), st.integers(0, 6))
@settings(max_examples=30, deadline=None)
def test_a_predicted_span_looks_like_the_same_true_span(a, b):
    head, frames, words = build_head({"name": "d2vlm"}, WIDTH), make_frames(), torch.randn(1, WIDTH)
    start, end = sorted((a, b))
    true = make_refs([(0, 0, Role.ANSWER, 0, 2.0 * b, 2.0 * a)], 1)
    raw = torch.tensor([[start, end]])
    predicted = Prediction(2.0 * raw, torch.ones(1), raw)
    torch.testing.assert_close(
        head.embed(words, true, frames), head.embed_predicted(words, predicted, true.owner, frames)
    )


def test_missing_frame_features_are_named(head, refs):
    frames = replace(make_frames(), states={})
    with pytest.raises(RuntimeError, match=r"states\[inject_layer\]"):
        head.embed(torch.zeros(len(ROWS), WIDTH), refs, frames)
    only_question = refs.select(refs.role == Role.QUESTION)
    assert head.embed(torch.zeros(2, WIDTH), only_question, frames).shape == (2, WIDTH)


# ---- losses ----------------------------------------------------------------------------------------------------------


def test_without_spans_the_losses_are_zero_and_reach_every_parameter(head):
    refs = make_refs([], 2)
    loss = head.loss(torch.zeros(0, WIDTH), refs, make_frames())
    assert all(loss[t].item() == 0 and head.counts(refs)[t].item() == 0 for t in TERMS)
    sum(loss.values()).backward()
    assert all(p.grad is not None and not p.grad.any() for p in head.parameters())
    assert head.log_prob(torch.zeros(0, WIDTH), refs, make_frames()).shape == (0,)


def test_question_spans_take_no_part(head, refs, queries):
    frames = make_frames()
    answers = refs.role != Role.QUESTION
    without = head.loss(queries[answers], refs.select(answers), frames)
    loss = head.loss(queries, refs, frames)
    for term in TERMS:
        torch.testing.assert_close(loss[term], without[term])
        assert head.counts(refs)[term] == 3
    assert (head.log_prob(queries, refs, frames)[~answers] == 0).all()


def test_losses_of_a_batch_are_the_sums_over_its_samples(head, refs, queries):
    frames = make_frames()
    together = head.loss(queries, refs, frames)
    alone = dict.fromkeys(TERMS, 0.0)
    log_prob = []
    for sample in range(4):
        own = refs.sample == sample
        row = refs.owner[own][0].item()
        part = refs.select(own)
        part = replace(part, owner=part.owner * 0, sample=part.sample * 0, num_samples=1)
        count, cut = FRAMES[row], slice(row, row + 1)
        single = FrameBatch(
            frames.times_s[cut, :count],
            frames.mask[cut, :count],
            frames.duration_s[cut],
            frames.embeds[cut, :count],
            {k: v[cut, :count] for k, v in frames.states.items()},
        )
        loss = head.loss(queries[own], part, single)
        alone = {t: alone[t] + loss[t] for t in TERMS}
        log_prob.append(head.log_prob(queries[own], part, single))
    for term in TERMS:
        torch.testing.assert_close(together[term], alone[term])
    torch.testing.assert_close(head.log_prob(queries, refs, frames), torch.cat(log_prob))


def test_the_losses_are_means_of_bce_and_l1(head, queries):
    refs, frames = make_refs(ROWS[6:8], 3), make_frames()
    evidence, keys = head.evi_head(queries[:2]), head.frm_head(frames.states[-2][1, :4])
    logits = evidence @ keys.T / WIDTH**0.5
    bce = torch.nn.functional.binary_cross_entropy_with_logits(logits, torch.ones(2, 4))
    loss = head.loss(queries[:2], replace(refs, sample=torch.tensor([2, 2])), frames)
    torch.testing.assert_close(loss["grounding"], 10 * bce)
    torch.testing.assert_close(loss["consistency"], 10 * (evidence[0] - evidence[1]).abs().mean())


def test_events_are_paired_by_sample_and_event_not_by_position(head, refs, queries):
    frames, order = make_frames(), torch.randperm(len(ROWS), generator=torch.Generator().manual_seed(3))
    loss, shuffled = head.loss(queries, refs, frames), head.loss(queries[order], refs.select(order), frames)
    for term in TERMS:
        torch.testing.assert_close(loss[term], shuffled[term])


def test_padded_frames_never_matter(head, refs, queries):
    words, results = torch.zeros(len(ROWS), WIDTH), []
    for frames in (make_frames(), make_frames(padding=50.0)):
        prediction = head.predict(queries, refs.owner, frames)
        log_prob, embedded = head.log_prob(queries, refs, frames), head.embed(words, refs, frames)
        results.append((head.loss(queries, refs, frames), log_prob, embedded, *vars(prediction).values()))
    torch.testing.assert_close(*results)


def test_targets_fall_with_the_distance_in_frames(head):
    target = head.targets(make_refs([(0, 0, Role.ANSWER, 0, 4.9, 6.2)], 1), make_frames(), rounded=True)
    assert target.tolist() == [[0.25, 0.5, 1, 1, 0.5, 0.25, 0.125]]


def test_only_the_published_targets_keep_a_reversed_span():
    refs, frames = make_refs([(0, 0, Role.ANSWER, 0, 8.0, 4.0)], 1), make_frames()
    default = build_head({"name": "d2vlm"}, WIDTH).targets(refs, frames, rounded=True)
    published = build_head({"name": "d2vlm", "compatibility": "published"}, WIDTH).targets(refs, frames, rounded=True)
    assert default[0, 2:5].tolist() == [1, 1, 1]
    assert published[0, 2:5].tolist() == [1, 0.5, 1]


def test_log_prob_is_highest_for_the_span_that_the_similarities_show(head):
    frames, direction = make_frames(), torch.ones(WIDTH)
    torch.nn.init.zeros_(head.evi_head[3].weight)
    head.evi_head[3].bias.data.copy_(direction)
    signs = torch.tensor([-1.0, 1.0, 1.0, -1.0, 0, 0, 0])
    frames.once("keys", lambda: 20 * signs[:, None] * direction.expand(3, 7, -1))
    spans = [(a, b) for a in range(4) for b in range(a, 4)]
    refs = make_refs([(1, i, Role.ANSWER, 0, 2.0 * a, 2.0 * b) for i, (a, b) in enumerate(spans)], len(spans))
    log_prob = head.log_prob(torch.zeros(len(spans), WIDTH), refs, frames)
    assert spans[log_prob.argmax()] == (1, 2)
    assert log_prob.max().item() == pytest.approx(2 * math.log(0.5), abs=1e-4)  # the soft frames beside it


def test_no_step_looks_at_a_value_so_that_nothing_waits_for_the_device(head, refs, queries):
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        queries = fake.from_tensor(queries)
        refs = replace(refs, **{k: fake.from_tensor(v) for k, v in vars(refs).items() if isinstance(v, torch.Tensor)})
        prediction = head.predict(queries, refs.owner, make_frames())
        assert head.embed_predicted(queries, prediction, refs.owner, make_frames()).shape == queries.shape
        assert head.embed(queries, refs, make_frames()).shape == queries.shape
        assert head.loss(queries, refs, make_frames())["grounding"].shape == head.counts(refs)["grounding"].shape == ()
        with pytest.raises(DataDependentOutputException):
            prediction.score.max().item()


def test_gradients_flow_to_queries_and_to_frame_states(head, refs, queries):
    frames = make_frames()
    queries.requires_grad_(), frames.states[-2].requires_grad_()
    sum(head.loss(queries, refs, frames).values()).backward()
    assert queries.grad[refs.role != Role.QUESTION].abs().sum(-1).min() > 0
    assert not queries.grad[refs.role == Role.QUESTION].any()
    assert frames.states[-2].grad[frames.mask].abs().sum(-1).min() > 0


def test_similarities_are_float32_under_autocast(head, refs, queries):
    frames = make_frames()
    exact = head.similarity(queries, refs.owner, frames)
    with torch.autocast("cpu", torch.bfloat16):
        cast = head.similarity(queries, refs.owner, make_frames())
    assert cast.dtype == torch.float32
    torch.testing.assert_close(cast, exact, atol=0.05, rtol=0.05)


def test_frame_keys_are_computed_once(head, refs, queries):
    frames, calls = make_frames(), []
    head.frm_head.register_forward_hook(lambda *_: calls.append(1))
    head.predict(queries, refs.owner, frames)
    head.loss(queries, refs, frames)
    assert len(calls) == 1


# ---- options ---------------------------------------------------------------------------------------------------------


def test_published_is_a_preset_that_single_flags_override():
    options = build_head({"name": "d2vlm", "compatibility": "published", "raw_targets": False}, WIDTH).options
    assert (options.run_edges, options.raw_targets) == ("frame_times", False)


def test_layers_follow_the_options():
    head = build_head({"name": "d2vlm", "inject_layer": 2, "query_layer": 3}, WIDTH)
    assert (head.inject_layer, head.query_layer, head.frame_layers) == (2, 3, (3,))
