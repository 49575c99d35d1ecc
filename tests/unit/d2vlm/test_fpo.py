"""Preference optimization: chosen and rejected behind one prompt score as they would alone, for every head."""

import math
from dataclasses import replace

import pytest
import torch

from d2vlm.fpo import FPO, FPOOptions
from tests.models import NoiseReader, gradients, make_bundle, record, settings, turns
from videollm.batches.dataset import VideoDataset
from videollm.common.config import ConfigError
from videollm.data.conversation import Role, span_marks
from videollm.heads import FrameBatch, SpanRefs, build_head
from videollm.model.objective import Supervised, build_objective
from videollm.training.validation import held_out

WORSE = [
    {"factor": "shift", "value": "at <span> and <span>.", "tgt": [2, 3, 0, 1]},
    {"factor": "missing", "value": "at <span>, that is all there is to say.", "tgt": [0, 2]},
    {"factor": "wording", "value": "a cat sleeps."},
]
LINES = {
    "two_spans": {
        "video": "a.mp4", "duration": 4, "tgt": [0, 2, 1, 3], "rejected": WORSE,
        "conversations": turns("<video>\nwhen is it?", "at <span> and <span>."),
    },
    "asked": {
        "video": "b.mp4", "duration": 6, "src": [1, 2], "tgt": [2, 4.5],
        "conversations": turns("<video>\nwhat happens in <span>?", "a dog <span> runs."),
        "rejected": [{"factor": "wording", "value": "a cow <span> flies.", "tgt": [2, 4.5]}],
    },
    "turns": {
        "video": "c.mp4", "duration": 5, "tgt": [1, 3, 0, 5],
        "conversations": turns("<video>\nwhen?", "<span>", "and then?", "in <span>, too"),
        "rejected": [{"factor": "shift", "value": "in <span>, too", "tgt": [4, 5]}],
    },
    "text_only": {
        "video": "b.mp4", "conversations": turns("<video>\nwhat is it?", "a dog"),
        "rejected": [{"factor": "wording", "value": "a cat or a cow", "text_only": True}],
    },
    "no_video": {"conversations": turns("hi", "hello"), "rejected": [{"factor": "wording", "value": "bye"}]},
}  # fmt: skip
BROKEN = {"video": "broken.mp4", "conversations": turns("<video>\nx?", "y"), "rejected": WORSE[2:]}
BUNDLES = [("etchat", "d2vlm"), ("internvl", "distime"), ("internvl", "text"), ("qwen3_vl", "d2vlm")]
CLOSE = {"rtol": 2e-4, "atol": 1e-4}


@pytest.fixture(scope="module", params=BUNDLES, ids="-".join)
def bundle(request):
    bundle = make_bundle(*request.param)
    bundle.model.objective = FPO(FPOOptions())
    return bundle


def records(names):
    lines = [LINES[n] if isinstance(n, str) else n for n in names]
    return [record({**line, "id": f"r{k}"}) for k, line in enumerate(lines)]


def reader_of(bundle):
    return NoiseReader(any_size=bundle.model.patching is not None)


def make_dataset(bundle, names, **options):
    return VideoDataset(records(names), reader_of(bundle), bundle.encoder(), max_length=1024, **options)


def collated(bundle, dataset, **options):
    return bundle.collator(**options)([dataset[k] for k in range(len(dataset))])


def ranked(bundle, names, rejected="all"):
    return collated(bundle, make_dataset(bundle, names, rejected=rejected), rank=True)


@pytest.fixture
def objective(bundle, monkeypatch):
    """Gives the model another objective for one test: ``objective(beta=0.2)``."""

    def replaced(**options) -> FPO:
        monkeypatch.setattr(bundle.model, "objective", FPO(FPOOptions(**options)))
        return bundle.model.objective

    return replaced


def factors_of(bundle, batch):
    with torch.no_grad():
        return bundle.model.objective.factors(bundle.model, batch, bundle.model.read(batch))[1]


def scored_alone(bundle, alone):
    """(grounding, text) of one record's last answer: an ordinary sequence of its own, from the logits."""
    dataset = VideoDataset([alone], reader_of(bundle), bundle.encoder(), max_length=1024)
    batch, (prompt,), model = collated(bundle, dataset), dataset[0].prompts, bundle.model
    with torch.no_grad():
        reading = model.read(batch)
        logp = model.get_output_embeddings()(reading.states[batch.label_index]).log_softmax(-1)
        text = logp.gather(-1, batch.label_ids[:, None])[:, 0]
        position = torch.arange(batch.input_ids.shape[1])  # of the only row
        start = prompt.answer_start - 1
        times = model.head.log_prob(reading.queries, reading.spans, reading.frames)
        own = position[reading.spans.query_index] >= start
        return times[own].sum().item(), text[position[batch.label_index] >= start].sum().item()


@pytest.mark.parametrize("name", ["two_spans", "asked", "turns", "no_video"])
def test_each_answer_scores_as_a_sequence_of_its_own(bundle, name):
    (whole,) = records([name])
    alone = [replace(whole, rejected=()), *map(whole.answered_by, whole.rejected)]
    found = factors_of(bundle, ranked(bundle, [name]))
    wanted = torch.tensor([scored_alone(bundle, one) for one in alone])
    torch.testing.assert_close(found, wanted, **CLOSE)
    spans = [bool(span_marks(one.turns[-1]) and bundle.model.head.span_tokens) for one in alone]
    assert (found[:, 0] != 0).tolist() == spans


def test_a_batch_is_its_rows(bundle):
    names = ["two_spans", "asked", "turns", "text_only", "no_video"]
    batch, apart = ranked(bundle, names), [ranked(bundle, [n]) for n in names]
    torch.testing.assert_close(
        factors_of(bundle, batch)[torch.cat([batch.pairs.chosen.unique(), batch.pairs.rejected])],
        torch.cat([torch.cat([factors_of(bundle, b)[:1] for b in apart]), *[factors_of(bundle, b)[1:] for b in apart]]),
        **CLOSE,
    )
    counts, model = bundle.model.counts(batch), bundle.model
    each = [model.counts(b) for b in apart]
    assert {n: sum(c[n] for c in each).item() for n in counts} == {n: c.item() for n, c in counts.items()}
    assert counts["fpo"] == 7  # two_spans has three rejected answers
    whole, singles = model(batch, counts=counts), [model(b, counts=counts) for b in apart]
    assert whole.loss.item() == pytest.approx(sum(s.loss.item() for s in singles), rel=1e-5)
    for name, term in whole.terms.items():
        assert term.item() == pytest.approx(sum(s.terms[name].item() for s in singles), rel=1e-4, abs=1e-5), name


def test_supervised_terms_are_those_of_the_chosen_answers_alone(bundle, monkeypatch):
    names = ["two_spans", "asked", "turns"]
    found = bundle.model(ranked(bundle, names)).terms
    monkeypatch.setattr(bundle.model, "objective", Supervised(None))
    wanted = bundle.model(collated(bundle, make_dataset(bundle, names))).terms
    for name, term in wanted.items():
        assert found[name].item() == pytest.approx(term.item(), rel=1e-4), name


def test_loss_margin_and_accuracy_follow_from_the_factors(bundle, objective):
    objective(beta=0.05, grounding_weight=0.5, text_weight=2.0)
    batch = ranked(bundle, ["two_spans", "asked"])
    factors = factors_of(bundle, batch).tolist()
    terms = {name: value.item() for name, value in bundle.model(batch).terms.items()}
    gaps = [
        0.05 * (0.5 * (c[0] - r[0]) + 2.0 * (c[1] - r[1]))
        for c, r in [(factors[0], factors[k]) for k in (1, 2, 3)] + [(factors[4], factors[5])]
    ]
    assert terms["fpo"] == pytest.approx(sum(math.log1p(math.exp(-g)) for g in gaps) / 4, rel=1e-4)
    assert terms["margin"] == pytest.approx(sum(gaps) / 4, rel=1e-4, abs=1e-5)
    assert terms["preference_accuracy"] == sum(g > 0 for g in gaps) / 4
    assert terms["logp_rejected_text"] == pytest.approx(sum(factors[k][1] for k in (1, 2, 3, 5)) / 4, rel=1e-4)
    assert set(bundle.model.objective.logged) <= set(terms)


def test_the_preference_alone_reaches_every_parameter_and_is_learnt(bundle, objective):
    objective(supervised_weight=0.0)
    names, model = ["two_spans", "asked", "turns"], bundle.model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    batch = ranked(bundle, names)
    model(batch).loss.backward()
    grads = gradients(model)
    assert not [name for name, grad in grads.items() if grad is None]
    assert not [name for name, grad in grads.items() if name.startswith("head.") and not grad.any()]
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=4e-3)
    terms = []
    for _ in range(12):
        out = model(batch)
        out.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        terms.append(out.terms)
    assert terms[-1]["fpo"] < terms[0]["fpo"] / 2 and terms[-1]["preference_accuracy"] == 1
    model.load_state_dict(before)


def test_without_weight_on_times_the_heads_own_parameters_get_no_preference(bundle, objective):
    objective(grounding_weight=0.0, supervised_weight=0.0)
    bundle.model(ranked(bundle, ["two_spans"])).loss.backward()
    grads = gradients(bundle.model)
    decoders = [name for name in grads if name.startswith(("head.evi_head", "head.frm_head", "head.time_gen"))]
    assert not any(grads[name].any() for name in decoders)
    assert grads["language_model.lm_head.weight"].any()


def test_text_only_pairs_share_their_first_token_and_train_no_end(bundle):
    dataset = make_dataset(bundle, ["text_only"], rejected="all")
    chosen, rejected = dataset[0].prompts
    batch = collated(bundle, dataset, rank=True)
    stop = bundle.encoder().stop_id
    assert stop not in batch.label_ids
    shared = chosen.ids[chosen.prefix_length - 1]
    assert shared == rejected.ids[rejected.prefix_length - 1] and chosen.supervised[chosen.prefix_length - 1]
    # The shared token is learnt as a part of the chosen answer, and compared in neither.
    assert batch.label_ids[0] == shared and batch.label_weight[0] == 1
    assert batch.pairs.label_sample[0] == batch.num_samples
    assert (batch.pairs.label_sample == 0).sum() == sum(chosen.supervised) - 1
    normal = LINES["text_only"] | {"rejected": [{"factor": "wording", "value": "a cat or a cow"}]}
    ends = ranked(bundle, [normal]).label_ids == stop
    assert ends.sum() == 2


def test_normalised_factors_are_means_over_tokens_and_spans(bundle, objective):
    batch = ranked(bundle, ["two_spans", "turns"])
    total = factors_of(bundle, batch)
    objective(normalise=True)
    tokens = torch.bincount(batch.pairs.label_sample, minlength=batch.num_samples + 1)[:-1]
    roles = batch.refs.role[batch.span_refs][batch.pairs.answer_refs]
    assert set(roles.tolist()) <= {Role.EVIDENCE, Role.ANSWER}
    spans = torch.bincount(batch.refs.sample[batch.span_refs][batch.pairs.answer_refs], minlength=batch.num_samples)
    wanted = total / torch.stack([spans.clamp(min=1), tokens], -1)
    torch.testing.assert_close(factors_of(bundle, batch), wanted, **CLOSE)


def test_a_reference_takes_its_own_preference_off(bundle, objective, tmp_path):
    bundle.save(tmp_path / "reference")
    batch = ranked(bundle, ["two_spans", "asked"])
    plain = bundle.model(batch).terms["margin"]
    own = objective(reference=str(tmp_path / "reference"))
    own.prepare(bundle, settings("internvl", "text"))
    out = bundle.model(batch)
    assert out.terms["margin"].item() == pytest.approx(0.0, abs=1e-4)
    assert out.terms["fpo"].item() == pytest.approx(math.log(2), abs=1e-4)
    out.loss.backward()
    assert any(grad is not None and grad.any() for grad in gradients(bundle.model).values())
    assert all(p.grad is None for p in own.reference.parameters())
    with torch.no_grad():
        own.reference.get_output_embeddings().weight.mul_(0.0)  # every token alike: longer is less probable
    moved = bundle.model(batch).terms["margin"].item()
    flat = -math.log(bundle.config.text_config.vocab_size)
    lengths = torch.bincount(batch.pairs.label_sample, minlength=batch.num_samples)
    gap = flat * (lengths[batch.pairs.chosen] - lengths[batch.pairs.rejected]).float().mean().item()
    times = factors_of(bundle, batch)[:, 0]
    times = (times[batch.pairs.chosen] - times[batch.pairs.rejected]).mean().item()
    assert moved == pytest.approx(plain.item() - 0.1 * (gap + times), rel=1e-3, abs=1e-3)
    assert "reference" not in " ".join(bundle.model.state_dict())


def test_a_reference_of_another_kind_is_refused(bundle, objective, tmp_path):
    make_bundle("llama", "text" if bundle.config.head["name"] != "text" else "distime").save(tmp_path / "other")
    own = objective(reference=str(tmp_path / "other"))
    with pytest.raises(ConfigError, match=r"train\.objective\.reference.*differs .* head, .*tokens"):
        own.prepare(bundle, settings("internvl", "text"))


def test_unreadable_pairs_leave_a_zero_that_reaches_every_parameter(bundle):
    batch = collated(bundle, make_dataset(bundle, [BROKEN], rejected="one"), rank=True)
    out = bundle.model(batch)
    out.loss.backward()
    assert out.loss == 0 and bundle.model.counts(batch)["fpo"] == 0
    assert all(grad is not None and torch.isfinite(grad).all() for grad in gradients(bundle.model).values())


def test_held_out_pairs_give_the_means_of_the_logged_numbers(bundle):
    found = held_out(
        bundle,
        bundle.model.objective,
        [*records(["two_spans", "asked"]), record({**BROKEN, "id": "b"})],
        reader_of(bundle),
        size=2,
    )
    wanted = bundle.model(ranked(bundle, ["two_spans", "asked"])).terms
    assert found == pytest.approx({n: wanted[n].item() for n in bundle.model.objective.logged}, rel=1e-4, abs=1e-5)


# ---- what does not depend on a head ----------------------------------------------------------------------------------


def test_records_without_rejected_answers_are_named_and_counted():
    lacking = [record(LINES["two_spans"]), *(record({**LINES["asked"], "rejected": None}) for _ in range(2))]
    with pytest.raises(ConfigError, match=r"lines\.jsonl:1: no rejected answer.*2 of 3 records.*d2vlm\.preference"):
        FPO(FPOOptions()).check(lacking, settings("internvl", "text"))
    with pytest.raises(ConfigError, match=r"data\.pack"):
        FPO(FPOOptions()).check(lacking[:1], settings("internvl", "text", data={"pack": True}))


@pytest.mark.parametrize(
    "config, message",
    [
        ({"name": "d2vlm.fpo", "beta": 0}, r"train\.objective\.beta: 0"),
        ({"name": "d2vlm.fpo", "text_weight": -1}, r"train\.objective\.text_weight: -1"),
        ({"name": "d2vlm.fpo", "text_weight": 0, "grounding_weight": 0}, r"grounding_weight, text_weight: both"),
        ({"name": "d2vlm.fpo", "bta": 1}, r"train\.objective\.bta: unknown key; did you mean train\.objective\.beta"),
        ({"name": "d2vlm.fop"}, r"train\.objective\.name: no objective 'd2vlm\.fop'.*d2vlm\.fpo, grpo, supervised"),
        ({"name": 3}, r"train\.objective\.name: no objective 3"),
        ({"name": "supervised", "beta": 1}, r"train\.objective\.beta: unknown key"),
    ],
)
def test_wrong_options_are_told_by_their_key(config, message):
    with pytest.raises(ConfigError, match=message):
        build_objective(config)


def test_an_objective_is_found_by_its_module_and_supervised_is_the_default():
    assert isinstance(build_objective({"name": "d2vlm.fpo", "beta": 0.2}), FPO)
    assert type(build_objective({})) is Supervised


def test_one_rejected_answer_is_drawn_for_every_epoch_by_the_seed():
    bundle = make_bundle("internvl", "text")
    dataset, again = (make_dataset(bundle, ["two_spans"], rejected="one", seed=s) for s in (5, 5))
    seen = []
    for epoch in range(12):
        for one in (dataset, again):
            one.set_epoch(epoch)
        seen.append(tuple(dataset[0].prompts[1].ids))
        assert seen[-1] == tuple(again[0].prompts[1].ids) and len(dataset[0].prompts) == 2
    assert len(set(seen)) == len(WORSE)
    assert len(make_dataset(bundle, ["two_spans"], rejected="all")[0].prompts) == 1 + len(WORSE)


def test_a_bernoulli_likelihood_is_highest_at_the_target_and_a_mixtures_is_not():
    """For a soft target of 0.5 the published mixture is log 0.5 whatever the similarity (docs/d2vlm.md, surprise 9)."""
    zeros = torch.zeros(7, dtype=torch.long)
    refs = SpanRefs(zeros, zeros, zeros, zeros, zeros + Role.ANSWER, zeros, zeros - 1, torch.zeros(7, 2), 1)
    frames = FrameBatch(torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.bool), torch.ones(1))
    found = {}
    for likelihood in ("mixture", "bernoulli"):
        head = build_head({"name": "d2vlm", "likelihood": likelihood}, 8)
        head.similarity = lambda *_: torch.linspace(-3, 3, 7)[:, None]  # [N, F]
        head.targets = lambda *_, **__: torch.full((7, 1), 0.5)
        found[likelihood] = head.log_prob(torch.zeros(7, 8), refs, frames)
    torch.testing.assert_close(found["mixture"], torch.full((7,), math.log(0.5)))
    assert found["bernoulli"].argmax() == 3 and found["bernoulli"][3] == pytest.approx(math.log(0.5))
