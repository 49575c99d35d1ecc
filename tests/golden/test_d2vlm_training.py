"""D2VLM's supervised stage: the published losses and every gradient, single samples and batches.

Tolerances (README): 1e-4 relative on losses, 1e-3 relative on gradient norms above 1e-5; 1e-4 of the largest entry on
whole gradients. The published trainer runs the language model twice; so does ours under gradient checkpointing.
"""

import json
import shutil

import pytest
import torch

from d2vlm.convert import convert, read_published
from d2vlm.names import official
from tests.golden.d2vlm_model import (
    SFT_CASES,
    case_files,
    golden_bundle,
    padded_rows,
    parts,
    read_config,
    sft_batch,
    tokenizers,
)
from videollm.checkpoint import load

TERMS = ("lm", "grounding", "consistency")


@pytest.fixture(scope="module", params=["kept prefix", "checkpointed"])
def bundle(request, folder):
    bundle = golden_bundle(folder)
    if request.param == "checkpointed":
        bundle.model.gradient_checkpointing_enable({"use_reentrant": False})
    bundle.model.train()
    return bundle


def gradients(model) -> dict[str, torch.Tensor]:
    """Gradients by official name; zero where there is none."""
    own = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in model.named_parameters()}
    return dict(official(own))


@pytest.mark.parametrize("name", SFT_CASES)
def test_losses_and_gradients_equal_the_published_ones(bundle, folder, name):
    info, arrays = case_files(folder, name)
    if padded_rows(arrays):
        pytest.skip(f"{name}: the published code pads in the middle of a row, see the next test")
    bundle.model.zero_grad(set_to_none=True)
    out = bundle.model(sft_batch(bundle, folder, info["samples"]))
    for term in TERMS:
        assert out.terms[term].item() == pytest.approx(info["losses"][term], rel=1e-4), term
    assert out.loss.item() == pytest.approx(info["losses"]["total"], rel=1e-4)
    out.loss.backward()
    found = gradients(bundle.model)
    assert set(info["grad"]) <= set(found)
    for key, wanted in info["grad"].items():
        if wanted is None or wanted["norm"] <= 1e-5:
            assert found[key].norm() <= 1e-5, key
        else:
            assert found[key].norm().item() == pytest.approx(wanted["norm"], rel=1e-3), key
            assert found[key].abs().max().item() == pytest.approx(wanted["absmax"], rel=1e-3), key
    for key in (k for k in arrays if k.startswith("grad:")):
        close = {"rtol": 1e-3, "atol": 1e-4 * max(arrays[key].abs().max().item(), 1e-3)}
        torch.testing.assert_close(found[key.removeprefix("grad:")], arrays[key], **close)


@pytest.mark.parametrize("name", [name for name in SFT_CASES if "batch" in name])
def test_a_sample_loses_the_same_alone_and_in_unequal_company(bundle, folder, name):
    info, arrays = case_files(folder, name)
    head, samples = bundle.model.head.options, info["samples"]
    grounded = [row for row in range(len(samples)) if info["tgt"][row]]
    with torch.no_grad():
        together = bundle.model(sft_batch(bundle, folder, samples)).terms
        alone = [bundle.model(sft_batch(bundle, folder, [k])).terms for k in samples]
    weights = {"grounding": head.grounding_weight, "consistency": head.consistency_weight}
    raw = {"grounding": "grounding_bce_per_sample_unscaled", "consistency": "consistency_l1_per_sample_unscaled"}
    for term, weight in weights.items():
        mean = sum(alone[row][term] for row in grounded) / len(grounded)
        assert together[term].item() == pytest.approx(mean.item(), rel=1e-5)
        for k, row in enumerate(grounded):
            if row in padded_rows(arrays):
                single, _ = case_files(folder, f"sft_single_{samples[row]}")
                wanted = single["losses"][raw[term]][0]
            else:
                wanted = info["losses"][raw[term]][k]
            assert alone[row][term].item() / weight == pytest.approx(wanted, rel=1e-4)


def test_a_converted_checkpoint_has_the_published_losses(folder, tmp_path):
    """Through files: official folder -> ours -> loaded, with SDPA in place of eager attention."""
    shutil.copy(folder / "model.safetensors", tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(read_config(folder)["llm"]))
    vision, connector = parts(folder)
    published = read_published(tmp_path)
    convert(published, tmp_path, tmp_path / "ours", tokenizers(folder), vision=vision, connector=connector)
    again = load(tmp_path / "ours", head={"compatibility": "published"})
    for name in (name for name in SFT_CASES if (folder / f"{name}.json").is_file()):
        info, arrays = case_files(folder, name)
        if not padded_rows(arrays):
            with torch.no_grad():
                loss = again.model(sft_batch(again, folder, info["samples"])).loss
            assert loss.item() == pytest.approx(info["losses"]["total"], rel=1e-4), name
