"""What a run will need, told before it runs: compared with what the same step takes when it runs on a CPU."""

import json
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from tests.models import make_bundle, record, settings, turns, write_config
from videollm import memory
from videollm.common.config import ConfigError
from videollm.heads.text import TextTimeHead
from videollm.training.dry_run import Load, NoEstimate, dry_run, let_go, make_batch
from videollm.training.memory import (
    MASTER,
    MOMENTS,
    Zero,
    assumed_load,
    estimate,
    held_states,
    largest_load,
    planned_model,
)
from videollm.training.optimizer import parameter_groups


def given(backbone="internvl", head="distime", data=None, **train):
    return settings(backbone, head, train, data)


def deepspeed_file(folder, stage, **options):
    auto = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
    values = {"bf16": {"enabled": "auto"}, "zero_optimization": {"stage": stage, **options}}
    path = folder / f"zero{stage}.json"
    path.write_text(json.dumps(dict.fromkeys(auto, "auto") | values), encoding="utf-8")
    return str(path)


# ---- measured --------------------------------------------------------------------------------------------------------


def real_batch(run, load):
    """The batch of the dry run with numbers in it; the last of several rows is a token shorter, as rows mostly are."""
    batch = make_batch(planned_model(run), run, load)
    batch = {k: torch.zeros(v.shape) if isinstance(v, Tensor) and v.is_meta else v for k, v in batch.items()}
    if load.rows > 1:
        batch.segment_ids[-1, -1] = -1
    return batch


def step(model, batch, run):
    with torch.autocast("cpu", torch.bfloat16) if run.train.precision == "bf16" else nullcontext():
        return model(batch).loss


def measured(run, backbone, head, load):
    """(bytes saved for the backward pass, the most that the CPU held) of one step beside weights and batch."""
    model, batch = make_bundle(backbone, head).model.train(), real_batch(run, load)
    if run.train.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    known = [*model.parameters(), *model.buffers(), *(v for v in batch.values() if isinstance(v, Tensor))]
    known, saved = {t.untyped_storage().data_ptr() for t in known}, {}

    def note(tensor):
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = step(model, batch, run)
    kept = sum(size for place, size in saved.items() if place not in known)
    del loss
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(let_go)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        step(model, batch, run).backward()
    now = peak = 0
    for event in watched.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    return kept, peak


@pytest.mark.parametrize(
    "backbone, head, train, load, tolerance",
    [
        ("internvl", "distime", {}, Load(2, 40, 1, 300), 0.01),
        ("internvl", "d2vlm", {"precision": "bf16"}, Load(1, 40, 1, 300), 0.01),
        # The Q-Former's mask: where all questions are equally long transformers leaves it out, here it cannot see that.
        ("etchat", "d2vlm", {}, Load(2, 12, 1, 100), 0.06),
    ],
)
def test_what_is_kept_and_the_peak_are_those_of_a_real_step(backbone, head, train, load, tolerance):
    run = given(backbone, head, **train)
    told, (kept, peak) = dry_run(planned_model(run), run, load), measured(run, backbone, head, load)
    # Saved tensors whose result nobody uses are let go before the forward pass ends, but the hook has seen them.
    assert told.kept == pytest.approx(kept, rel=max(0.03, tolerance))
    assert told.peak - told.batch == pytest.approx(peak, rel=tolerance)
    assert {"vision tower", "connector", "language model", "backward"} < told.stages.keys()


def test_gradient_checkpointing_saves_what_it_saves_in_a_real_step():
    run, load = given(gradient_checkpointing=True), Load(2, 40, 1, 300)
    told, (kept, peak) = dry_run(planned_model(run), run, load), measured(run, "internvl", "distime", load)
    assert told.peak - told.batch == pytest.approx(peak, rel=0.03)
    plain = dry_run(planned_model(given()), given(), load)
    assert kept < told.kept < plain.kept / 5  # layers' inputs wait too, which no hook on saved tensors sees


def test_weights_gradients_and_optimizer_are_those_of_a_real_step():
    run, bundle = given(), make_bundle("internvl", "distime")
    optimizer = torch.optim.AdamW(parameter_groups(bundle.model, run))
    step(bundle.model.train(), real_batch(run, Load(1, 4, 1, 60)), run).backward()
    optimizer.step()
    parts, host = held_states(planned_model(run), Zero(), 1)
    states = (v for state in optimizer.state.values() for v in state.values() if v.ndim)
    held = {
        "weights": bundle.model.parameters(),
        "gradients": (p.grad for p in bundle.model.parameters() if p.grad is not None),
        "optimizer": states,
    }
    for name, tensors in held.items():
        assert sum(getattr(part, name) for part in parts.values()) == sum(t.numel() * 4 for t in tensors), name
    assert host == 0


# ---- DeepSpeed -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage, ranks", [(0, 1), (1, 1), (2, 8), (3, 8)])
def test_zero_spreads_what_its_stage_spreads(tmp_path, stage, ranks):
    run = given(precision="bf16", deepspeed=deepspeed_file(tmp_path, stage))
    model = planned_model(run).to(torch.bfloat16)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = sum(p.numel() for p in model.parameters())
    parts, _ = held_states(model, Zero.read(run), 8)
    held = {n: sum(getattr(p, n) for p in parts.values()) for n in ("weights", "gradients", "optimizer")}
    assert held["weights"] == pytest.approx(2 * total / (8 if stage == 3 else 1), abs=100)
    assert held["gradients"] == pytest.approx(2 * trained / ranks, abs=100)
    assert held["optimizer"] == pytest.approx((MASTER + MOMENTS) * trained / (8 if stage else 1), abs=100)


def test_a_deepspeed_file_says_how_large_buffers_are_and_what_is_offloaded(tmp_path):
    options = {"offload_optimizer": {"device": "cpu"}, "overlap_comm": True, "reduce_bucket_size": 1000}
    run = given(precision="bf16", deepspeed=deepspeed_file(tmp_path, 2, **options))
    zero = Zero.read(run)
    parts, host = held_states(planned_model(run), zero, 2)
    assert host > 0 and not any(part.optimizer + part.gradients for part in parts.values())
    assert memory.passing(zero, parts, 2, 2) == {"gradients on their way": 2 * 2 * 1000}
    run.train.deepspeed = deepspeed_file(tmp_path, 3)
    total = sum(part.parameters for part in parts.values())
    assert memory.passing(Zero.read(run), parts, 2, 2)["gathered weights, at most"] == 2 * total


def test_without_deepspeed_only_several_processes_pass_gradients():
    parts, _ = held_states(planned_model(given()), Zero(), 2)
    trained = sum(part.trained for part in parts.values())
    assert memory.passing(Zero(), parts, 1, 4) == {}
    assert memory.passing(Zero(), parts, 2, 4) == {"gradients on their way": 4 * trained}


# ---- what a batch holds ----------------------------------------------------------------------------------------------


def test_a_batch_is_as_large_as_the_settings_let_it_be():
    fixed = given(data={"sampler": {"rule": "segments", "num_frames": 7}}, batch_size=3)
    assert assumed_load(fixed, planned_model(fixed)) == Load(3, 7, 1, 256)
    open_end = given(data={"sampler": {"rule": "fps"}, "max_length": 600})
    load = assumed_load(open_end, planned_model(open_end))
    assert dry_run(planned_model(open_end), open_end, load).columns in range(597, 601)
    budget = given(data={"sampler": {"rule": "segments", "num_frames": 7}}, max_tokens_per_batch=2000)
    load = assumed_load(budget, planned_model(budget))
    assert load.rows > 1 and load.rows * dry_run(planned_model(budget), budget, load).columns <= 2000


def test_the_largest_batch_of_the_data_has_its_longest_video_and_text():
    bundle, run = make_bundle("internvl", "text"), given(head="text", data={"sampler": {"rule": "fps", "fps": 2.0}})
    lines = [
        {"video": "a.mp4", "duration": 30, "conversations": turns("<video>\nwhen?", "now")},
        {"video": "b.mp4", "duration": 5, "conversations": turns("<video>\nwhen?", "n" * 100)},
        {"video": "c.mp4", "conversations": turns("<video>\nwhen?", "now")},
    ]
    load = largest_load(run, bundle, [record(line) for line in lines])
    assert load.frames == 60 and 100 <= load.text <= 120 and (load.rows, load.questions) == (1, 1)


# ---- telling ---------------------------------------------------------------------------------------------------------


def test_the_command_prints_what_a_config_needs(tmp_path, capsys):
    config = str(write_config(tmp_path, "d2vlm"))
    assert memory.main(["--config", config, "--gpus", "2", "--frames", "9"]) == 0
    printed = capsys.readouterr().out
    assert "1 x 4 frames" not in printed and "1 x 9 frames" in printed and "at most at once" in printed
    assert memory.main(["--config", config, "--gpus", "0"]) == 2
    assert "--gpus: 0" in capsys.readouterr().err
    assert memory.main(["--config", config, "model.checkpoint=nowhere"]) == 2


def test_a_head_that_looks_at_numbers_is_named(monkeypatch):
    def loss(self, queries, refs, frames):
        return {"odd": queries.sum() * float(queries.sum().item() > 0)}

    monkeypatch.setattr(TextTimeHead, "loss", loss)
    run = given(head="text")
    with pytest.raises(NoEstimate):
        dry_run(planned_model(run), run, Load(1, 4, 1, 60))


def test_a_deepspeed_file_that_a_run_would_refuse_is_refused(tmp_path):
    run = given(deepspeed=str(tmp_path / "none.json"))
    with pytest.raises(ConfigError, match=r"train\.deepspeed"):
        estimate(planned_model(run), run, Load(1, 4, 1, 60))
