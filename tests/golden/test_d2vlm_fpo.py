"""Preference optimization against the published implementation: both of its packings, single and in a batch.

Chosen and rejected stand behind one prompt in a row here; the published code packs them into one sequence with a
special mask, or shares their first token and trains no end (published_systems.md#d2vlm-preference-loss). The
numbers are the same.
"""

import pytest
import torch

from d2vlm.fpo import FPO, FPOOptions
from d2vlm.names import NAMES
from tests.golden.d2vlm_model import FPO_CASES, case_files, golden_bundle, preference_batch

RELATIVE, GRADIENT, LEAST_NORM = 1e-4, 1e-3, 1e-5


@pytest.fixture(scope="module")
def bundle(folder):
    bundle = golden_bundle(folder)
    bundle.model.objective = FPO(FPOOptions())
    return bundle


@pytest.mark.parametrize("run", FPO_CASES)
def test_factors_and_every_loss_equal_the_published_ones(folder, bundle, run):
    info, _ = case_files(folder, run)
    batch, objective = preference_batch(bundle, folder, info["samples"]), bundle.model.objective
    with torch.no_grad():
        reading = bundle.model.read(batch)
        _, factors = objective.factors(bundle.model, batch, reading)
        sums, _ = objective.sums(bundle.model, batch, reading)
        total = bundle.model(batch).loss.item()
    for pair, wanted in enumerate(info["losses"]["logps"]):
        for which in ("chosen", "reject"):
            sample = (batch.pairs.chosen if which == "chosen" else batch.pairs.rejected)[pair]
            grounding, text = factors[sample].tolist()
            assert grounding == pytest.approx(wanted[which].get("grounding", 0.0), rel=RELATIVE)
            assert text == pytest.approx(wanted[which]["text"], rel=RELATIVE)
            assert grounding + text == pytest.approx(wanted[which]["total"], rel=RELATIVE)
    counts = bundle.model.counts(batch)
    assert counts["fpo"] == len(info["samples"]) and counts["grounding"] == info["losses"]["avg_factor"]
    for term in ("lm", "grounding", "consistency", "fpo"):
        found = (sums[term] / counts[term].clamp(min=1)).item()
        # A log-sigmoid near 0 keeps the absolute error of two sums of log-probabilities.
        assert found == pytest.approx(info["losses"][term], rel=RELATIVE, abs=1e-5 if term == "fpo" else 0), term
    assert total == pytest.approx(info["losses"]["total"], rel=RELATIVE)


@pytest.mark.parametrize("run", FPO_CASES)
def test_every_gradient_equals_the_published_one(folder, bundle, run):
    info, arrays = case_files(folder, run)
    bundle.model.zero_grad(set_to_none=True)
    bundle.model(preference_batch(bundle, folder, info["samples"])).loss.backward()
    found = {name: parameter.grad for name, parameter in bundle.model.named_parameters()}
    compared = 0
    for name, wanted in info["grad"].items():
        if wanted is None:  # the tower, which is frozen; its names are not one to one
            continue
        grad = found[NAMES.ours(name)]
        norm = 0.0 if grad is None else grad.norm().item()
        if wanted["norm"] > LEAST_NORM:
            assert norm == pytest.approx(wanted["norm"], rel=GRADIENT), name
            compared += 1
        else:
            assert norm < 10 * LEAST_NORM, name
        if f"grad:{name}" in arrays:
            torch.testing.assert_close(grad, arrays[f"grad:{name}"], rtol=GRADIENT, atol=GRADIENT * wanted["absmax"])
    assert compared, f"{run}.json has no gradient of a parameter of ours"
    bundle.model.zero_grad(set_to_none=True)


@pytest.mark.parametrize("run", FPO_CASES)
def test_the_same_tokens_are_predicted_at_the_same_positions(folder, bundle, run):
    info, _ = case_files(folder, run)
    batch = preference_batch(bundle, folder, info["samples"])
    positions = batch.position_ids.flatten()[batch.label_index]
    for pair, (event,) in enumerate(info["conflict_events"]):
        at = [*info["pos_id"][pair], -1]  # index -1 is the last token of the prompt
        for which, samples in (("chosen", batch.pairs.chosen), ("reject", batch.pairs.rejected)):
            mine, text = batch.pairs.label_sample == samples[pair], event[which]["text"]
            assert batch.label_ids[mine].tolist() == text["logit_token_id"]
            assert positions[mine].tolist() == [info["relative_offset"][pair] + at[i] for i in text["input_index"]]
