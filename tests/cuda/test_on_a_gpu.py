"""What only a GPU can show: bf16 near the published numbers, flash attention, exact resume, no waits in a step."""

import os
import shutil
import subprocess
import sys
import warnings

import pytest
import torch

from benchmarks.stand_ins import missing

pytestmark = pytest.mark.cuda


@pytest.mark.golden
@pytest.mark.parametrize("place", range(2))
@torch.no_grad()
def test_a_model_in_bf16_gives_nearly_the_published_logits(device, golden_dir, tmp_path, place):
    from tests.golden import distime_model as golden
    from videollm.model.loss import logits_of

    folder, llm = golden_dir / "distime", golden.LLMS[place]
    bundle, limit = golden.golden_bundle(folder, llm, tmp_path, dtype=torch.bfloat16), golden.bf16_limit(folder, llm)
    bundle.model.to(device)
    for sample in golden.SAMPLES:
        batch = golden.golden_batch(bundle, folder, [sample]).to(device)
        expected = golden.arrays(folder / "train" / llm / sample)
        states = bundle.model.read(batch).states[expected["logit_positions"].to(device)]
        found, wanted = logits_of(bundle.model.language_model, states).float().cpu(), expected["logits_at_positions"]
        errors = (found - wanted).norm(dim=-1) / wanted.norm(dim=-1)
        assert (errors <= limit).all(), (sample, errors.max(), limit)


@pytest.mark.golden
@torch.no_grad()
def test_the_losses_of_the_evidence_head_are_the_published_ones(device, golden_dir):
    from tests.golden.d2vlm_model import case_files, golden_bundle, sft_batch

    folder = golden_dir / "d2vlm"
    bundle = golden_bundle(folder)
    bundle.model.to(device)
    for sample in range(3):
        info, _ = case_files(folder, f"sft_single_{sample}")
        loss = bundle.model(sft_batch(bundle, folder, info["samples"]).to(device)).loss
        assert loss.item() == pytest.approx(info["losses"]["total"], rel=1e-4)


@pytest.mark.parametrize("padded", [False, True])
@torch.no_grad()
def test_flash_attention_gives_what_sdpa_gives(device, padded):
    if missing("flash_attn"):
        pytest.skip("flash_attn is not installed")
    from tests.models import make_batch, make_bundle

    found = []
    for attention in ("sdpa", "flash_attention_2"):
        bundle = make_bundle("internvl", "text", {"precision": "bf16"}, attention=attention)
        batch = make_batch(bundle, ["no_spans", "text"][: 1 + padded]).to(device)
        model = bundle.model.to(device, torch.bfloat16)
        found.append(model.read(batch).states.float()[batch.label_index])
    error = (found[0] - found[1]).norm() / found[0].norm()
    assert error < 0.02, error  # a few roundings of bf16


def test_a_training_that_was_broken_off_goes_on_bit_for_bit(device, repository, tmp_path):
    if lacking := missing("av", "nncore"):
        pytest.skip(f"not installed: {', '.join(lacking)}")
    from safetensors.torch import load_file

    from tests.models import write_config

    config = write_config(tmp_path, "d2vlm", steps=4, save_every=2, keep=9, deterministic=True, precision="bf16")

    def trained(*values: str) -> dict[str, torch.Tensor]:
        command = [sys.executable, "-m", "videollm.train", "--config", str(config), *values]
        environment = os.environ | {"CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]}
        done = subprocess.run(command, cwd=repository, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        return load_file(tmp_path / "run/final/model.safetensors")

    whole = trained()
    for name in ("checkpoint-4", "final"):
        shutil.rmtree(tmp_path / "run" / name)
    again = trained("train.resume=true")
    assert whole.keys() == again.keys() and [name for name in whole if not whole[name].equal(again[name])] == []


@pytest.mark.parametrize("head", ["text", "distime", "d2vlm"])
def test_steps_replayed_as_a_graph_give_the_tokens_of_steps_that_run(device, head):
    from tests.models import make_batch, make_bundle
    from videollm.model.generate import GenerateOptions

    bundle = make_bundle("internvl", head)
    model, batch = bundle.model.to(device), make_batch(bundle, ["two_spans", "turns"], asked=True).to(device)
    found = []
    for graphs in (False, True):
        ids, state = model.generate_ids(batch, 0, -1, GenerateOptions(max_new_tokens=100, graphs=graphs))
        found.append((ids, state.found))
    (ids, spans), (others, replayed) = found
    assert ids.equal(others)
    if spans is not None:
        torch.testing.assert_close(replayed.seconds, spans.seconds, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("head", ["text", "distime", "d2vlm"])
def test_a_training_step_does_not_wait_for_the_device(device, head):
    """Forward, backward and AdamW; what is read before and behind the step may wait."""
    from tests.models import make_batch, make_bundle

    bundle = make_bundle("internvl", head)
    model = bundle.model.to(device).train()
    batch = make_batch(bundle, ["no_spans" if head == "text" else "two_spans"]).to(device)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], fused=True)

    def step() -> None:
        model(batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    step()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits = [f"{one.filename}:{one.lineno}" for one in said if "synchroniz" in str(one.message)]
    assert not waits, waits
