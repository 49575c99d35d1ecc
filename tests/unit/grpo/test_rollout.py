"""Roll-outs: what is trained is what was drawn, for every backbone and head; draws do not depend on the batch."""

from dataclasses import replace

import pytest
import torch

from tests.models import HEADS, PAIRS, NoiseReader, make_bundle, record, settings, turns
from tests.models import LINES as GIVEN
from videollm.batches.dataset import VideoDataset
from videollm.grpo import GRPO, GRPOOptions
from videollm.grpo.rollout import Questions, features_of
from videollm.heads import Answer
from videollm.model.generate import GenerateOptions, Rows

ASKED = {"conversations": turns("<video>\nwhat happens in <span>?", "a dog <span> runs.")}  # of every head
LINES = {
    "two_spans": GIVEN["two_spans"],
    "asked": GIVEN["asked"] | ASKED,
    "turns": GIVEN["turns"],
    "no_video": {"conversations": turns("hi", "hello")},
}
BROKEN = {"video": "broken.mp4", "tgt": [0, 1], "conversations": turns("<video>\nx?", "<span>")}


def worth(answer, record, duration_s):
    """Differs for nearly every answer."""
    return sum(map(sum, answer.scored_spans)) + 0.01 * sum(map(ord, answer.raw_text)) % 1


def questions(bundle, names):
    records = [record({**(LINES[n] if isinstance(n, str) else n), "id": f"r-{n}"[:12]}) for n in names]
    reader = NoiseReader(any_size=bundle.model.patching is not None)
    dataset = VideoDataset(records, reader, bundle.encoder(), max_length=512, answers=False)
    return Questions([dataset[k] for k in range(len(dataset))])


def objective(bundle, tmp_path, answers=3, **options):
    """The objective of a bundle, ready to roll out."""
    own = GRPO(GRPOOptions(answers=answers, rewards={f"{__name__}:worth": 1.0}, **options))
    given = settings("internvl", "text", {"output": str(tmp_path), "seed": 5})
    given.generate = GenerateOptions(max_new_tokens=10)
    own.prepare(bundle, given)
    return own


def warm(bundle):
    """Make span tokens about as likely as words, so that answers have both; gives the bundle back."""
    rows, spans = bundle.model.get_output_embeddings().weight.data, bundle.model.span_ids
    rows[spans] = rows[spans] * (4 if bundle.model.patching is None else -4)
    return bundle


CASES = [*((*pair, {}) for pair in PAIRS), ("internvl", "distime", {"drawing": "bins"})]


@pytest.mark.parametrize("backbone, head, options", CASES, ids=lambda x: x if isinstance(x, str) else "+".join(x))
def test_log_probabilities_in_training_are_those_drawn(backbone, head, options, tmp_path):
    bundle = warm(make_bundle(backbone, head, head=HEADS[head] | options))
    own, names = objective(bundle, tmp_path, temperature=1.2), list(LINES)
    (batch,) = own.made([questions(bundle, names)], step=0)
    assert len(batch.draws.advantage) == 3 * len(names), "all groups differ"
    bundle.model.train()
    words, spans = own.log_probs(bundle.model, batch, bundle.model.read(batch))
    torch.testing.assert_close(words, batch.draws.words_log_prob, rtol=0, atol=1e-5)
    torch.testing.assert_close(spans, batch.draws.spans_log_prob, rtol=0, atol=1e-5)
    ids = torch.isin(batch.label_ids, torch.tensor(bundle.model.span_ids, dtype=torch.long))
    assert len(spans) == ids.sum() and (len(spans) >= 3 or not bundle.model.span_ids)
    sums, logged = own.sums(bundle.model, batch, bundle.model.read(batch))
    assert logged["mismatch"] / own.counts(bundle.model, batch)["mismatch"] < 1e-5
    sums["grpo"].backward()
    grads = {n: p.grad for n, p in bundle.model.named_parameters() if p.requires_grad}
    assert all(g is None or g.isfinite().all() for g in grads.values()) and any(
        g.any() for g in grads.values() if g is not None
    )


@pytest.fixture(params=["d2vlm", "distime", "text"])
def bundle(request):
    return warm(make_bundle("etchat" if request.param == "d2vlm" else "internvl", request.param))


def drawn_by(own):
    return {f"{g.item.ids[0]} {k}": (d.ids, d.raw.tolist()) for g in own.rollouts.last for k, d in enumerate(g.drawn)}


def test_draws_depend_on_seed_record_step_and_number_alone(bundle, tmp_path):
    own, names = objective(bundle, tmp_path), ["two_spans", "asked", "turns"]
    own.made([questions(bundle, names)], step=4)
    together = drawn_by(own)
    for name in names:
        own.made([questions(bundle, [name])], step=4)
        for key, (ids, raw) in drawn_by(own).items():
            assert ids == together[key][0]
            torch.testing.assert_close(torch.tensor(raw), torch.tensor(together[key][1]), rtol=0, atol=1e-4)
    assert len({str(value) for value in together.values()}) == len(together)
    own.made([questions(bundle, names)], step=5)
    assert not any(together[key] == value for key, value in drawn_by(own).items())


def test_a_question_is_encoded_once_for_all_of_its_answers(bundle, tmp_path, monkeypatch):
    own, model = objective(bundle, tmp_path, answers=4), bundle.model
    asked, seen, shapes = questions(bundle, ["two_spans", "asked"]), [], []
    encode, decoder = model.encode_frames, model.decoder.forward
    monkeypatch.setattr(model, "encode_frames", lambda pixels, *more: seen.append(len(pixels)) or encode(pixels, *more))
    monkeypatch.setattr(
        model.decoder, "forward",
        lambda **k: shapes.append(tuple(k["inputs_embeds"].shape[:2])) or decoder(**k),
    )  # fmt: skip
    (batch,) = own.made([asked], step=0)
    assert seen == [4, 6] and batch.pixel_values is None  # the training step takes the same features
    prompts = [shape for shape in shapes if shape[1] > 1]
    steps = [rows for rows, length in shapes if length == 1]
    assert {rows for rows, _ in prompts} == {2} and steps[0] == 8 and steps == sorted(steps, reverse=True)
    assert len(batch) == 2 and batch.num_samples == 8


@pytest.mark.parametrize("backbone", ["internvl", "qwen2_5_vl"])
def test_under_zero3_one_call_gives_the_features_of_every_visual(backbone, monkeypatch):
    bundle = make_bundle(backbone, "d2vlm")
    model, items = bundle.model, questions(bundle, LINES).items
    visuals = [(item.pixels, item.grids) for item in items if item.pixels is not None]
    alone = features_of(model, visuals)
    monkeypatch.setattr("videollm.grpo.rollout.is_deepspeed_zero3_enabled", lambda: True)
    for one, own in zip(features_of(model, visuals), alone, strict=True):
        torch.testing.assert_close(one, own, rtol=0, atol=1e-5)
    assert len(alone) == 3 and len({len(one) for one in alone}) > 1 and features_of(model, []) == []


def test_the_head_draws_for_span_tokens_of_running_answers_alone(bundle, tmp_path, monkeypatch):
    own, draw, asked = objective(bundle, tmp_path, answers=6), bundle.model.head.draw, []
    monkeypatch.setattr(
        bundle.model.head, "draw", lambda queries, *more: asked.append(len(queries)) or draw(queries, *more)
    )
    (batch,) = own.made([questions(bundle, ["two_spans", "asked"])], step=0)
    assert sum(asked) == len(batch.pairs.answer_refs) == len(batch.draws.spans_log_prob)


def test_what_is_drawn_does_not_depend_on_which_rows_still_take_steps(bundle, tmp_path, monkeypatch):
    own, rows, enter, feed = objective(bundle, tmp_path), [], Rows.enter, Rows.feed
    given = bundle.tokenizer, bundle.stop_id, own.rollouts.options, 8
    batch = own.rollouts.ask(questions(bundle, ["two_spans", "asked"]).items)

    def short(self, *args):
        enter(self, *args)
        self.state.limit[::2], self.state.limit[4:8] = 3, 6

    monkeypatch.setattr(Rows, "enter", short)
    monkeypatch.setattr(Rows, "feed", lambda self: rows.append(len(self.state.row)) or feed(self))
    found = bundle.model.drawn(batch, *given)
    assert rows[0] == 16 and 0 < rows[-1] <= 8
    monkeypatch.setattr(Rows, "thin", lambda self: rows.clear())
    for one, whole in zip(found, bundle.model.drawn(batch, *given), strict=True):
        assert one.ids == whole.ids and one.reason == whole.reason
        for name in ("raw", "seconds", "words_log_prob", "spans_log_prob", "words_entropy", "spans_entropy"):
            torch.testing.assert_close(getattr(one, name), getattr(whole, name), rtol=1e-5, atol=1e-5)
    assert set(rows) <= {16}


def third(answer, record, duration_s):
    """A third, as torch multiplies it."""
    return torch.ones(1, 1) @ torch.full((1, 1), 1 / 3)


def test_a_reward_is_as_precise_as_elsewhere_where_training_is_not(tmp_path):
    bundle = make_bundle("internvl", "text")
    own = GRPO(GRPOOptions(answers=2, rewards={f"{__name__}:third": 1.0}))
    given = settings("internvl", "text", {"output": str(tmp_path)})
    given.generate = GenerateOptions(max_new_tokens=3)
    own.prepare(bundle, given)
    with torch.autocast("cpu", torch.bfloat16):
        own.made([questions(bundle, ["two_spans"])], step=1)
    assert own.rollouts.last[0].rewards.tolist() == [pytest.approx(1 / 3, abs=1e-6)] * 2


def test_flat_groups_are_left_out_and_counted(bundle, tmp_path, monkeypatch):
    own = objective(bundle, tmp_path)
    of = own.rewards.of
    name = next(iter(own.rewards.terms))
    monkeypatch.setattr(
        type(own.rewards), "of", lambda self, a, r, s: {name: 2.0} if r.id == "r-asked" else of(a, r, s)
    )
    (batch,) = own.made([questions(bundle, ["two_spans", "asked"])], step=0)
    assert [i.rpartition(" ")[0] for i in batch.ids] == ["r-two_spans"] * 3 and batch.num_samples == 3
    assert batch.draws.told["flat_groups"] == (1.0, 2.0) and batch.draws.told["reward"][1] == 6


def test_nothing_to_learn_from_still_reaches_every_parameter(bundle, tmp_path, monkeypatch):
    own = objective(bundle, tmp_path)
    monkeypatch.setattr(type(own.rewards), "of", lambda *_: {next(iter(own.rewards.terms)): 0.5})
    model = bundle.model
    model.objective = own
    (batch,) = own.made([questions(bundle, ["two_spans", BROKEN])], step=0)
    out = model(batch)
    out.loss.backward()
    grads = [p.grad for n, p in model.named_parameters() if p.requires_grad]
    assert out.loss == 0 and len(batch.bad) == 1 and "broken.mp4" in batch.bad[0]
    assert sum(g is not None for g in grads) > 0 and all(g is None or g.isfinite().all() for g in grads)


def test_an_answer_that_is_cut_off_has_no_end_among_its_labels(bundle, tmp_path):
    own = objective(bundle, tmp_path)
    own.rollouts.options = replace(own.rollouts.options, max_new_tokens=2)
    (batch,) = own.made([questions(bundle, ["two_spans"])], step=0)
    (group,) = own.rollouts.last
    for one in group.drawn:
        assert isinstance(one.answer, Answer) and len(one.ids) <= 2
        assert (one.ids[-1] == bundle.stop_id) == (one.reason == "stop")
    assert len(batch.label_ids) == sum(len(one.ids) for one in group.drawn)
