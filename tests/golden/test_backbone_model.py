"""Golden models of current backbones: our towers, positions, passes, losses and answers are those of the release."""

import pytest
import torch

from tests.golden.backbone_model import (
    CASES,
    FEATURES,
    LOGITS,
    LOSS,
    NORMS,
    RULED,
    RULES,
    arrays,
    by_rule,
    golden_batch,
    golden_bundle,
    our_name,
    padded_in_front,
    settings,
    text_bundle,
    told,
    visuals_of,
)
from videollm.model.generate import GenerateOptions
from videollm.model.loss import logits_of

trained = [(family, case) for family, case in CASES if case in "ab"]


@pytest.mark.parametrize(("family", "case", "rule"), RULED)
def test_backbone_pixels_ids_and_positions(family, case, rule):
    bundle, data = text_bundle(family, rule), arrays(family, case)
    batch = golden_batch(bundle, family, case)
    known = data["attention_mask"].bool()
    own = batch.segment_ids >= 0
    assert torch.equal(padded_in_front(batch, own), known)
    assert torch.equal(batch.input_ids[own], data["input_ids"][known])
    if bundle.model.patching is None:
        rows = zip(batch.position_ids, own, strict=True)
        assert all(torch.equal(row[here], torch.arange(here.sum())) for row, here in rows)
        return
    assert torch.equal(batch.position_ids[:, own], data[by_rule(family, "position_ids", rule)][:, known])
    processor = bundle.model.preprocess
    for kind, name in (("video", "pixel_values_videos"), ("image", "pixel_values")):
        found = [pixels for visual, pixels in visuals_of(bundle, family, case) if visual.kind == kind]
        if found:
            made = bundle.model.patching.normalised(torch.cat(found), processor.mean, processor.std)
            torch.testing.assert_close(made, data[name], atol=1e-6, rtol=0)


@pytest.mark.parametrize(("family", "case"), CASES)
@torch.no_grad()
def test_backbone_tower_and_connector(family, case):
    bundle, data = text_bundle(family), arrays(family, case)
    batch = golden_batch(bundle, family, case)
    tokens = bundle.model.frame_tokens(batch)
    if bundle.model.patching is None:
        torch.testing.assert_close(tokens, data["image_embeds"], **FEATURES)
        return
    ids = batch.input_ids.flatten()[batch.visual_index]
    for kind in ("video", "image"):
        if f"{kind}_embeds" not in data:
            continue
        own = tokens[ids == settings(family)[f"{kind}_token_id"]]
        torch.testing.assert_close(own[:, 0], data[f"{kind}_embeds"], **FEATURES)
        deep = [data[name] for name in sorted(data) if name.startswith(f"{kind}_deepstack.")]
        assert len(deep) == own.shape[1] - 1
        for i, maps in enumerate(deep, 1):
            torch.testing.assert_close(own[:, i], maps, **FEATURES)


@pytest.mark.parametrize(("family", "case", "rule"), RULED)
@torch.no_grad()
def test_backbone_states_and_logits(family, case, rule):
    bundle, data = text_bundle(family, rule), arrays(family, case)
    model, batch = bundle.model, golden_batch(bundle, family, case)
    tokens, depth = model.frame_tokens(batch), len(model.decoder.layers)
    states = model.run(
        batch, model.embed(batch, tokens), slice(0, batch.input_ids.shape[1]), {*range(depth), -1},
        maps=model.maps(tokens),
    )  # fmt: skip
    known, states = data["attention_mask"].bool(), {k: padded_in_front(batch, part) for k, part in states.items()}
    for layer in range(depth):  # what layer k receives: DeepStack is in it
        if f"layer_input.{layer}" in data:
            torch.testing.assert_close(states[layer][known], data[f"layer_input.{layer}"][known], **LOGITS)
    if "final_norm" in data:
        torch.testing.assert_close(states[-1][known], data["final_norm"][known], **LOGITS)
    columns = slice(*told(family, case)["logits_positions"])
    logits = logits_of(model.language_model, states[-1][:, columns])
    golden = data.get(by_rule(family, "logits", rule), data["logits"])
    torch.testing.assert_close(logits[known[:, columns]], golden[known[:, columns]], **LOGITS)


@pytest.mark.parametrize(("family", "case"), CASES)
def test_backbone_answers(family, case):
    """As 4.57.6 gives them, whose rule of positions cuts seconds to whole ones."""
    bundle, data = text_bundle(family, "4.52" if family in RULES else ""), arrays(family, case)
    golden = data["generated_ids"]
    stop = next(i for i in range(golden.max() + 2) if i not in golden)
    options = GenerateOptions(max_new_tokens=golden.shape[1])
    ids, _ = bundle.model.generate_ids(golden_batch(bundle, family, case), None, stop, options)
    assert torch.equal(ids, golden)


@pytest.mark.parametrize(("family", "case"), trained)
def test_backbone_loss_and_gradients(family, case):
    bundle, info = golden_bundle(family), told(family, case)
    model = bundle.model
    model.frozen_tower = False
    output = model(golden_batch(bundle, family, case, asked=False))
    assert output.loss.item() == pytest.approx(info["loss"], rel=LOSS)
    output.loss.backward()
    found = {name: p.grad.norm().item() for name, p in model.named_parameters()}
    golden = {our_name(family, name): norm for name, norm in info["grad_norms_per_parameter"].items()}
    assert found.keys() == golden.keys()
    total = info["grad_norm_total"]
    assert found == pytest.approx(golden, rel=NORMS, abs=1e-6 * total)  # some are 0 but for rounding
