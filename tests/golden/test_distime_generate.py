"""Greedy generation against the published implementation: prompt, every step's logits and state, times, embeddings.

All cases go through ``generate_ids``, the loop that ``infer`` and ``ask`` use; a forced schedule is a logits processor.
"""

import json
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from transformers import LogitsProcessorList

from tests.golden.distime_model import (
    GENERATED,
    ROOT,
    arrays,
    assert_times_near,
    bf16_limit,
    golden_bundle,
    golden_question,
    read,
)
from tests.golden.test_d2vlm_generate import Forced, Recorded
from videollm.model.generate import GenerateOptions

LATE = {"atol": 3e-3, "rtol": 0}  # steps late in a generation (README)


@pytest.fixture(scope="module")
def bundles(folder, llm, tmp_path_factory):
    """By the gaussians' precision."""
    return {
        kind: golden_bundle(folder, llm, tmp_path_factory.mktemp(llm), head={"gaussians_bf16": kind == "bf16"})
        for kind in ("fp32", "bf16")
    }


@pytest.fixture
def generated(monkeypatch):
    """Runs a case; gives ids [S], the state, and what went through every step."""

    def run(bundle, batch, schedule, stop_id, most):
        model, recorded, inputs = bundle.model, [], []

        def recording(_options, state, *_rest):
            recorded.append(Recorded(state))
            return LogitsProcessorList([recorded[0], Forced(schedule)])

        monkeypatch.setattr(model, "processors", recording)
        fed = model.decoder.register_forward_pre_hook(
            lambda _module, _args, given: inputs.append(given["inputs_embeds"][0]), with_kwargs=True
        )
        ids, state = model.generate_ids(batch, None, stop_id, GenerateOptions(max_new_tokens=most))
        fed.remove()
        monkeypatch.undo()
        return ids[0], state, list(zip(inputs, recorded[0].logits, recorded[0].queries, strict=True))

    return run


@pytest.mark.parametrize("case", GENERATED)
def test_every_step_is_the_published_one(folder, llm, bundles, generated, case):
    info, expected = read(folder / "generate" / llm / case), arrays(folder / "generate" / llm / case)
    bundle = bundles[info["gaussian"]]
    batch = golden_question(bundle, folder, info)
    assert batch.input_ids.equal(expected["prompt_ids"])
    ids, state, steps = generated(bundle, batch, info["forced_schedule"], info["eos_token_id"], info["max_new_tokens"])
    assert ids.tolist() == info["generated_ids"]
    embeds, logits, hidden = zip(*steps, strict=True)
    torch.testing.assert_close(embeds[0][None], expected["prompt_embeds"], atol=3e-5, rtol=0)
    torch.testing.assert_close(torch.stack(logits), expected["step_logits"], **LATE)
    torch.testing.assert_close(torch.stack(hidden), expected["step_hidden"], **LATE)
    stamps = [step for step, token in enumerate(ids.tolist()) if token == bundle.model.span_ids[0]]
    assert len(stamps) == len(info["pred_time_bins"])
    if not stamps:
        return
    queries = torch.stack([hidden[s] for s in stamps])
    torch.testing.assert_close(bundle.model.head._logits(queries).flatten(1), expected["stamp_logits"], **LATE)
    bins = state.found.raw[0, stamps]
    torch.testing.assert_close(bins, expected["stamp_pred_bins"], atol=2e-3, rtol=0)
    seconds = state.found.seconds[0, stamps]
    published = torch.tensor(info["seconds_demo"], dtype=torch.float32).sort(-1).values  # ours are in order
    torch.testing.assert_close(seconds, published, atol=2e-3, rtol=0)
    fed = [(k, embeds[s + 1][0]) for k, s in enumerate(stamps) if s + 1 < len(embeds)]
    assert fed
    for k, embed in fed:
        torch.testing.assert_close(embed, expected["stamp_embeds"][k], atol=3e-4, rtol=0)


def test_a_batch_of_cases_gives_each_the_answer_it_has_alone(folder, llm, bundles):
    """Padding, several videos of other lengths, stamps at other steps."""
    bundle = bundles["fp32"]
    free = [c for c in GENERATED if (folder / "generate" / llm / f"{c}.json").is_file()]
    infos = [info for c in free if not (info := read(folder / "generate" / llm / c))["forced_schedule"]]
    infos = [info for info in infos if info["gaussian"] == "fp32"]
    if len(infos) < 2:
        pytest.skip("fewer than two free cases")
    batch = golden_question(bundle, folder, *infos)
    most = max(info["max_new_tokens"] for info in infos)
    with torch.no_grad():
        ids, state = bundle.model.generate_ids(batch, None, infos[0]["eos_token_id"], GenerateOptions(most))
    for row, info in enumerate(infos):
        own = info["generated_ids"]
        assert ids[row, : len(own)].tolist() == own
        stamps = [step for step, token in enumerate(own) if token == bundle.model.span_ids[0]]
        bins = state.found.raw[row, stamps].tolist()
        assert bins == [pytest.approx(pair, abs=2e-3) for pair in info["pred_time_bins"]]


BF16 = ROOT / "bf16_model.json"
BF16_TIMES = {"gaussians_bf16": True, "expectation_bf16": True}
WHOLE = json.loads(BF16.read_text())["results"] if BF16.is_file() else {}


def common_steps(one: list[int], other: list[int]) -> int:
    """Length of the beginning that two answers share."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def feed_times(monkeypatch, head, published: Sequence[list[float]]) -> list:
    """Feeds the published bins [start, end] of each stamp, which alone the head is asked about on a CPU; gives the list
    of (time logits [2, K], bins [2]) found there.

    A stamp's bins are encoded for the next step, where half a bin is far more than bf16's error elsewhere.
    """
    predict, found, times = head.predict, [], iter(published)

    def fed(queries, owner, frames):
        prediction = predict(queries, owner, frames)
        found.append((head._logits(queries)[0], prediction.raw[0]))
        return replace(prediction, raw=torch.tensor([next(times)]))

    monkeypatch.setattr(head, "predict", fed)
    return found


@pytest.mark.parametrize("name", sorted({c.split("/")[1] for c in WHOLE if "/generate_" in c} or {"generate_moment"}))
def test_the_whole_model_in_bf16_generates_near_the_published_one(folder, llm, generated, monkeypatch, name, tmp_path):
    """With the published bf16 answer fed: near the fp32 logits while both answers agree, its tokens always likely."""
    case = read(folder / "bf16_model")["results"].get(f"{llm}/{name}")
    if case is None:
        pytest.skip(f"bf16_model.json has no {llm}/{name}")
    below = folder / "generate" / llm / name.removeprefix("generate_")
    info, expected, limit = read(below), arrays(below), bf16_limit(folder, llm)
    bundle = golden_bundle(folder, llm, tmp_path, dtype=torch.bfloat16, head=BF16_TIMES)
    answer, stamp = case["generated_ids"], bundle.model.span_ids[0]
    common = common_steps(answer, info["generated_ids"])
    shared = answer[:common].count(stamp)
    times = info["pred_time_bins"][:shared] + case["pred_time_bins"][shared:]
    found = feed_times(monkeypatch, bundle.model.head, times)
    ids, _, steps = generated(
        bundle, golden_question(bundle, folder, info), dict(enumerate(answer)), info["eos_token_id"], len(answer)
    )
    assert ids.tolist() == answer and len(found) == answer.count(stamp) == len(case["pred_time_bins"])
    assert steps[0][2].dtype == torch.bfloat16
    logits = torch.stack([step[1] for step in steps]).float()
    theirs = expected["step_logits"][: common + 1]  # a step's logits hang on the tokens before it
    errors = (logits[: len(theirs)] - theirs[: len(logits)]).norm(dim=-1) / theirs[: len(logits)].norm(dim=-1)
    assert (errors <= limit).all(), (errors, limit)
    free = [step for step in range(len(answer)) if str(step) not in case["forced_schedule"]]
    gaps = (logits.amax(-1) - logits[range(len(answer)), answer]) / logits.square().mean(-1).sqrt()
    assert (gaps[free] <= 2 * limit).all(), gaps  # two logits in two runs: four errors, sqrt(4)
    own = [logits for logits, _ in found[shared:]]  # no fp32 to compare with: the answers differ before
    fp32 = [*expected["stamp_logits"][:shared].unflatten(-1, (2, -1)), *own] if shared else own
    assert_times_near(found, fp32, torch.tensor(case["pred_time_bins"]), limit)
