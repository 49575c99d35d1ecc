"""The loss follows from what answers earned and how probable they are; what cannot be trained on is said in a line."""

import json

import numpy as np
import pytest
import torch

from tests.models import make_bundle, record, settings, turns
from tests.unit.grpo.test_rollout import LINES, objective, questions, warm
from videollm.checkpoint import load
from videollm.common.config import ConfigError
from videollm.grpo import GRPO, GRPOOptions
from videollm.grpo.difficulty import RedrawOptions
from videollm.grpo.objective import AllFlat
from videollm.grpo.rewards import first_iou
from videollm.heads import HEADS, TemporalHead
from videollm.model.generate import GenerateOptions
from videollm.model.objective import build_objective

NAMES, REWARD = ["two_spans", "asked"], "tests.unit.grpo.test_rollout:worth"


@pytest.fixture(scope="module")
def bundle():
    return warm(make_bundle("etchat", "d2vlm"))


def rolled(bundle, tmp_path, **options):
    """The objective, a batch of roll-outs, and the log-probabilities of its decisions by answer: words, spans."""
    own = objective(bundle, tmp_path, **options)
    (batch,) = own.made([questions(bundle, NAMES)], step=0)
    with torch.no_grad():
        words, spans = own.log_probs(bundle.model, batch, bundle.model.read(batch))
    of = batch.refs.select(batch.span_refs).sample[batch.pairs.answer_refs]
    zeros = torch.zeros(batch.num_samples)
    sums = [zeros.index_add(0, batch.pairs.label_sample, words), zeros.index_add(0, of, spans)]
    counts = torch.bincount(torch.cat([batch.pairs.label_sample, of]), minlength=len(zeros))
    return own, batch, sums, counts


def loss_of(bundle, own, batch):
    sums = own.sums(bundle.model, batch, bundle.model.read(batch))[0]["grpo"]
    return (sums / own.counts(bundle.model, batch)["grpo"]).item()


def entropies(bundle, batch):
    """Those of every word and every span of a batch, by a pass of training."""
    reading, head, answers = bundle.model.read(batch), bundle.model.head, batch.pairs.answer_refs
    likely = bundle.model.get_output_embeddings()(reading.states[batch.label_index]).float().log_softmax(-1)
    spans = reading.spans.select(answers)
    found = head.draw_entropy(reading.queries[answers], spans.raw, spans.owner, reading.frames, 1.0)
    return -(likely.exp() * likely).sum(-1), found


@pytest.mark.parametrize("average", ["sum", "mean", "decisions"])
@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.0, 2.0)])
def test_the_loss_is_minus_advantage_times_log_probability(bundle, tmp_path, average, weights):
    given = {"average": average, "word_weight": weights[0], "span_weight": weights[1]}
    own, batch, (words, spans), counts = rolled(bundle, tmp_path, **given)
    earned = weights[0] * words + weights[1] * spans
    advantage = batch.draws.advantage
    wanted = {
        "sum": -(advantage * earned).mean(),
        "mean": -(advantage * earned / counts).mean(),
        "decisions": -(advantage * earned).sum() / counts.sum(),
    }[average]
    assert loss_of(bundle, own, batch) == pytest.approx(wanted.item(), rel=1e-4)


def test_a_roll_out_that_is_used_again_counts_ratios_as_far_as_they_may(tmp_path):
    """By hand: ratios 2, 1.1, 0.5 and 0.5 with advantages 1, 1, 1 and -1; of the last the loss counts 0.8."""
    ratio, advantage = torch.tensor([2.0, 1.1, 0.5, 0.5]), torch.tensor([1.0, 1.0, 1.0, -1.0])
    drawn = torch.tensor([-1.0, -2.0, -0.5, -3.0])
    for high, wanted in ((None, 1.2 + 1.1 + 0.5 - 0.8), (0.28, 1.28 + 1.1 + 0.5 - 0.8)):
        own = GRPO(GRPOOptions(updates=2, clip_high=high))
        now = (drawn + ratio.log()).requires_grad_()
        found = own.earned(now, drawn, advantage)
        assert found.item() == pytest.approx(wanted)
        (gradient,) = torch.autograd.grad(found, now)
        torch.testing.assert_close(gradient, torch.tensor([0.0, 1.1, 0.5, 0.0]))


def test_the_second_update_trains_on_the_same_roll_out(bundle, tmp_path):
    own = objective(bundle, tmp_path, updates=2)
    first, again, anew = (own.made([questions(bundle, NAMES)], step) for step in range(3))
    assert again is first and anew[0] is not first[0]
    grads = []
    for updates in (1, 2):
        own.options.updates = updates
        loss = own.sums(bundle.model, first[0], bundle.model.read(first[0]))[0]["grpo"]
        grads.append(torch.autograd.grad(loss, [p for p in bundle.model.head.parameters() if p.requires_grad]))
    for one, two in zip(*grads, strict=True):  # where nothing has changed yet, a ratio's gradient is the logarithm's
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-5)


def test_advantages_are_rewards_less_their_groups_mean_or_in_its_spread(bundle, tmp_path):
    own, batch, *_ = rolled(bundle, tmp_path)
    rewards = torch.stack([torch.as_tensor(group.rewards) for group in own.rollouts.last]).float()
    torch.testing.assert_close(batch.draws.advantage.view(2, 3), rewards - rewards.mean(1, keepdim=True))
    own, batch, *_ = rolled(bundle, tmp_path, scale=True)
    found = batch.draws.advantage.view(2, 3)
    torch.testing.assert_close(found.mean(1), torch.zeros(2), rtol=0, atol=1e-5)
    torch.testing.assert_close(found.std(1, correction=0), torch.ones(2))


def test_what_is_logged_are_means_over_all_answers(bundle, tmp_path):
    own, batch, *_ = rolled(bundle, tmp_path)
    bundle.model.objective = own
    terms = bundle.model(batch).terms
    rewards = [group.rewards.mean() for group in own.rollouts.last]
    assert set(own.logged) <= set(terms)
    assert terms["reward"].item() == pytest.approx(sum(rewards) / 2, rel=1e-5)
    words, spans = entropies(bundle, batch)
    assert terms["entropy_words"].item() == pytest.approx(words.mean().item(), rel=1e-4)
    assert terms["entropy_spans"].item() == pytest.approx(spans.mean().item(), rel=1e-4)
    fifths = [terms[f"tiou_0.{k}"].item() for k in (0, 2, 4, 6, 8)]
    ious = [first_iou(line, group.item.records[0], 0) for group in own.rollouts.last for line in group.lines]
    assert fifths == pytest.approx((np.histogram(ious, np.linspace(0, 1, 6))[0] / 6).tolist(), rel=1e-6)
    assert terms["mismatch"] < 1e-5 and terms["flat_groups"] == 0
    assert terms["answer_tokens"].item() == pytest.approx(len(batch.label_ids) / 6)


def test_what_earns_more_becomes_more_probable(tmp_path):
    """Answers that begin early earn more: a few steps move the head's drawn spans to the front."""
    bundle = warm(make_bundle("etchat", "d2vlm"))
    own = objective(bundle, tmp_path, answers=8)
    name = next(iter(own.rewards.terms))
    own.rewards.terms[name] = (1.0, lambda answer, *_: -sum(end for _, end in answer.scored_spans[:1]))
    optimizer = torch.optim.AdamW([p for p in bundle.model.parameters() if p.requires_grad], lr=3e-3)
    bundle.model.objective, earned = own, []
    for step in range(14):
        (batch,) = own.made([questions(bundle, NAMES)], step)
        out = bundle.model(batch)
        out.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        earned.append(out.terms["reward"].item())
    assert sum(earned[-3:]) / 3 > sum(earned[:3]) / 3 + 0.3


def test_roll_outs_are_shown_for_people(bundle, tmp_path):
    own = objective(bundle, tmp_path, show_every=2)
    for step in range(3):
        own.made([questions(bundle, NAMES)], step)
    lines = [json.loads(line) for line in (tmp_path / "rollouts.jsonl").read_text().splitlines()]
    assert [(line["step"], line["id"]) for line in lines] == [(s, f"r-{n}") for s in (0, 2) for n in NAMES]
    assert lines[0]["right"] == "at [0.0 s - 2.0 s] and [1.0 s - 3.0 s] ."
    assert [set(one) for one in lines[0]["answers"]] == [{"text", "spans", "reward", "by", "ends"}] * 3


def test_a_run_that_learns_nothing_stops(bundle, tmp_path, monkeypatch):
    own = objective(bundle, tmp_path, patience=3)
    monkeypatch.setattr(type(own.rewards), "of", lambda *_: {next(iter(own.rewards.terms)): 1.0})
    own.made([questions(bundle, NAMES)], 0)
    own.made([questions(bundle, NAMES)], 1)
    state, own = own.state(), objective(bundle, tmp_path, patience=3)
    own.resume(state)
    with pytest.raises(AllFlat, match=r"train\.objective: in the last 3 roll-outs .* earned the same .*choose other"):
        own.made([questions(bundle, NAMES)], 2)


RISING = [(0.5, 0.70), (0.6, 0.75), (0.7, 0.74), (0.8, 0.73)]  # reward, then validation


@pytest.mark.parametrize(
    "stretches, warns",
    [
        (RISING, True),
        (RISING[:3], False),  # once may be chance
        ([*RISING, (0.9, 0.80)], False),  # the newest is the best
        ([*RISING[:2], (0.55, 0.74), (0.55, 0.73)], False),  # what is drawn earns less, too
    ],
)
def test_a_reward_that_rises_while_validation_falls_is_told(bundle, tmp_path, caplog, stretches, warns):
    own = objective(bundle, tmp_path)
    with open(tmp_path / "log.jsonl", "w") as log:
        for reward, value in stretches:
            entries = [{"reward": reward - 0.1}, {"reward": reward + 0.1}, {"eval_mIoU": value}]
            log.writelines(json.dumps(entry) + "\n" for entry in entries)
    own.validated("eval_mIoU")
    told = "drawn answers earn more (0.600, now 0.800) while validation gets worse (eval_mIoU 0.750, now 0.730)"
    assert (told in caplog.text) == bool(caplog.text) == warns


def test_dropout_is_off_in_what_is_trained(tmp_path):
    lora = {"r": 4, "dropout": 0.5, "targets": ["q_proj", "v_proj"]}
    bundle = warm(make_bundle("internvl", "distime", {"lora": lora}))
    attention = [m for m in bundle.model.decoder.modules() if hasattr(m, "attention_dropout")]
    for module in attention:
        module.attention_dropout = 0.5
    assert attention
    own = objective(bundle, tmp_path)
    (batch,) = own.made([questions(bundle, NAMES)], step=0)
    bundle.model.train()
    words, _ = own.log_probs(bundle.model, batch, bundle.model.read(batch))
    torch.testing.assert_close(words, batch.draws.words_log_prob, rtol=0, atol=1e-5)


@pytest.fixture
def held(bundle, tmp_path):
    """Makes an objective with a divergence from the model in a folder, by default from the bundle's own."""

    def make(folder=None, **options):
        if folder is None:
            folder = tmp_path / "start"
            bundle.save(folder)
        own = GRPO(GRPOOptions(answers=3, rewards=dict.fromkeys([REWARD], 1.0), kl=0.5, **options))
        given = settings("internvl", "text", {"output": str(tmp_path), "seed": 5})
        given.generate, given.model.checkpoint = GenerateOptions(max_new_tokens=10), str(folder)
        own.prepare(bundle, given)
        return own

    return make


def test_the_divergence_from_the_start_begins_with_nothing_and_holds_on(bundle, held):
    own = held()
    (batch,) = own.made([questions(bundle, NAMES)], step=0)
    bundle.model.objective = own
    assert bundle.model(batch).terms["kl"].abs() < 1e-6
    with torch.no_grad():
        own.reference.get_output_embeddings().weight.mul_(0.9)
        (batch,) = own.made([questions(bundle, NAMES)], step=0)
        words, spans = own.log_probs(bundle.model, batch, bundle.model.read(batch))
        before = torch.cat(own.log_probs(own.reference, batch, own.reference.read(batch)))
    out = bundle.model(batch)
    ratio = before - torch.cat([words, spans])
    assert out.terms["kl"].item() == pytest.approx(0.5 * (ratio.exp() - ratio - 1).mean().item(), rel=1e-3)
    assert out.loss.item() == pytest.approx((out.terms["kl"] + out.terms["grpo"]).item())
    assert all(p.grad is None and not p.requires_grad for p in own.reference.parameters())
    assert "reference" not in " ".join(bundle.model.state_dict())


def test_the_reference_reads_a_roll_out_once_in_the_precision_of_what_is_trained(held, monkeypatch):
    bundle, reads = warm(make_bundle("etchat", "d2vlm")), []
    own = held(updates=2)
    own.rollouts.bundle = bundle
    bundle.model.to(torch.bfloat16)
    read = own.reference.read
    monkeypatch.setattr(own.reference, "read", lambda batch: reads.append(own.reference.dtype) or read(batch))
    bundle.model.objective = own
    for step in range(2):
        (batch,) = own.made([questions(bundle, NAMES)], step)
        assert bundle.model(batch).terms["kl"].isfinite()
    assert reads == [torch.bfloat16]


def test_a_reference_that_sees_other_features_is_refused(bundle, held, tmp_path):
    """Roll-outs have the features of the frozen tower that is trained with."""
    held()
    other = load(tmp_path / "start")
    with torch.no_grad():
        next(other.model.vision_tower.parameters()).mul_(0.5)
    other.save(tmp_path / "other")
    with pytest.raises(ConfigError, match=r"train\.objective\.reference: .*differs .* weights of the vision tower"):
        held(tmp_path / "other")


def test_a_run_goes_on_with_the_reference_that_it_began_with(bundle, held, tmp_path):
    state = held().state()
    held(tmp_path / "start").resume(state)
    held(tmp_path / "start").resume({"flat": 0, "known": None})  # of older code
    other = load(tmp_path / "start")
    with torch.no_grad():
        other.model.get_output_embeddings().weight.mul_(0.5)
    other.save(tmp_path / "other")
    with pytest.raises(ConfigError, match=r"train\.objective\.reference: not the model that the run began with; name"):
        held(tmp_path / "other").resume(state)


# ---- what cannot be trained on ---------------------------------------------------------------------------------------


def test_records_that_no_reward_speaks_of_are_named_and_counted():
    plain = {"video": "b.mp4", "conversations": turns("<video>\nwhat is it?", "a dog")}
    records = [record(LINES["asked"]), record(plain), record(plain)]
    with pytest.raises(
        ConfigError, match=r"lines\.jsonl:1: no spans in its answer.*\(f1\).*2 of 3 records.*add a reward"
    ):
        GRPO(GRPOOptions()).check(records, settings("internvl", "text"))
    with pytest.raises(ConfigError, match=r"lines\.jsonl:1: no spans in its answer.*\(f1\).*2 of 3 records"):
        GRPO(GRPOOptions(rewards={"f1": 1.0, "format": 0.0})).check(records, settings("internvl", "text"))
    GRPO(GRPOOptions(rewards={"f1": 1.0, "format": 0.1})).check(records, settings("internvl", "text"))
    with pytest.raises(ConfigError, match=r"train\.objective\.kl: from what\?"):
        GRPO(GRPOOptions(kl=0.1)).check(records[:1], settings("internvl", "text"))
    with pytest.raises(ConfigError, match=r"train\.objective\.reference: nothing is held against it .*kl is 0"):
        GRPO(GRPOOptions(reference="start")).check(records[:1], settings("internvl", "text"))
    with pytest.raises(ConfigError, match=r"train\.save_every: 5 is no multiple of train\.objective\.updates=2"):
        GRPO(GRPOOptions(updates=2)).check(records[:1], settings("internvl", "text", {"save_every": 5}))
    for key, value in {"group_by_length": True, "max_tokens_per_batch": 999}.items():
        with pytest.raises(ConfigError, match=rf"train\.{key}: not with train\.objective\.redraw"):
            GRPO(GRPOOptions(redraw=RedrawOptions())).check(records[:1], settings("internvl", "text", {key: value}))
    with pytest.raises(ConfigError, match=r"data\.pack"):
        GRPO(GRPOOptions()).check(records[:1], settings("internvl", "text", data={"pack": True}))


def test_a_head_that_does_not_draw_is_refused(bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(HEADS.get("d2vlm"), "draw", TemporalHead.draw)
    with pytest.raises(ConfigError, match=r"train\.objective\.name: the d2vlm head does not say how likely.*heads\.md"):
        objective(bundle, tmp_path)


def test_words_without_a_weight_are_refused_where_times_are_words(tmp_path):
    bundle = make_bundle("internvl", "text")
    with pytest.raises(ConfigError, match=r"train\.objective\.word_weight: 0, but the times of the text head"):
        objective(bundle, tmp_path, word_weight=0.0)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"answers": 1}, r"train\.objective\.answers: 1, but it must be at least 2"),
        ({"temperature": 0}, r"train\.objective\.temperature: 0\.0, but it must be at least 0\.01"),
        ({"temperature": float("inf")}, r"train\.objective\.temperature: inf, but it must be finite"),
        ({"rewards": {}}, r"train\.objective\.rewards: {} names none"),
        ({"rewards": {1: 1.0}}, r"train\.objective\.rewards, a key: expected str, got 1"),
        (
            {"rewards": {"f2": 1}},
            r"train\.objective\.rewards\.f2: no reward 'f2'; known: .*package\.module:function",
        ),
        ({"rewards": {"f1": "much"}}, r"train\.objective\.rewards\.f1: expected a number"),
        ({"word_weight": 0, "span_weight": 0}, r"word_weight, span_weight: both are 0"),
        ({"average": "median"}, r"train\.objective\.average: 'median' is unknown; did you mean mean?"),
        ({"kl": -0.1}, r"train\.objective\.kl: -0\.1"),
        ({"clip": 1.0}, r"train\.objective\.clip: 1\.0"),
        ({"clip_high": 0}, r"train\.objective\.clip_high: 0"),
        ({"group": 8}, r"train\.objective\.group: unknown key"),
    ],
)
def test_wrong_options_are_told_by_their_key(options, message):
    with pytest.raises(ConfigError, match=message):
        build_objective({"name": "grpo", **options})
