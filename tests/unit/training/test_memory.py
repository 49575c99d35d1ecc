"""What a run will need, told before it runs: compared with what the same step takes when it runs on a CPU."""

import json
from contextlib import nullcontext

import pytest
import torch
import yaml
from torch.profiler import ProfilerActivity, profile

from tests.models import make_bundle, settings, write_config
from videollm import memory
from videollm.common.config import ConfigError
from videollm.heads import TextTimeHead
from videollm.training.assemble import read_settings
from videollm.training.memory import (
    MASTER,
    MOMENTS,
    STATES,
    Load,
    Zero,
    assumed_load,
    dry_run,
    estimate,
    held_states,
    make_batch,
    planned_model,
    read_zero,
    tensors_of,
)
from videollm.training.optimizer import parameter_groups, set_trainable


def given(backbone="internvl", head="distime", data=None, **train):
    return settings(backbone, head, train, data)


TOWER = {"parts": {"vision_tower": {"train": True}}}


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
    batch.pixel_values = torch.zeros(batch.pixel_values.shape, dtype=batch.pixel_values.dtype)
    if load.rows > 1:
        batch.segment_ids[-1, -1] = -1
    return batch


def told(run, load):
    model = planned_model(run)
    return dry_run(model, run, make_batch(model, run, load))


def columns(run, load):
    return make_batch(planned_model(run), run, load).input_ids.shape[1]


def step(model, batch, run):
    with torch.autocast("cpu", torch.bfloat16) if run.train.precision == "bf16" else nullcontext():
        return model(batch).loss


def measured(run, backbone, head, load):
    """(bytes saved for the backward pass, the most that the CPU held) of one step beside weights and batch."""
    bundle, batch = make_bundle(backbone, head), real_batch(run, load)
    set_trainable(bundle.model, run.train)
    model = bundle.model.train()
    if run.train.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    known = [*model.parameters(), *model.buffers(), *tensors_of(batch)]
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
            parameter.register_post_accumulate_grad_hook(lambda full: setattr(full, "grad", None))
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        step(model, batch, run).backward()
    now = peak = 0
    for event in watched.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    return kept, peak


@pytest.mark.parametrize(
    "backbone, head, train, data, load, tolerance",
    [
        ("internvl", "distime", {}, {}, Load(2, 40, 1, 300), 0.01),
        ("internvl", "distime", {}, {"unseen_id": 0}, Load(2, 40, 1, 300), 0.01),  # every layer keeps a mask
        ("internvl", "d2vlm", {"precision": "bf16"}, {}, Load(1, 40, 1, 300), 0.01),
        ("internvl", "d2vlm", {}, {"pack": True}, Load(1, 40, 3, 100), 0.01),
        # The Q-Former's mask: where all questions are equally long transformers leaves it out, here it cannot see that.
        ("etchat", "d2vlm", {}, {}, Load(2, 12, 1, 100), 0.06),
        # Of any size: patches, windows, DeepStack; a tower that learns, and a frozen one that takes few at a time.
        ("qwen3_vl", "distime", TOWER, {}, Load(2, 12, 1, 60), 0.01),
        ("qwen3_vl", "d2vlm", {}, {"pack": True}, Load(1, 12, 2, 60), 0.01),
        ("qwen2_5_vl", "distime", TOWER, {}, Load(2, 12, 1, 60), 0.01),
    ],
)
def test_what_is_kept_and_the_peak_are_those_of_a_real_step(backbone, head, train, data, load, tolerance):
    run = given(backbone, head, data, **train)
    live, (kept, peak) = told(run, load), measured(run, backbone, head, load)
    # Saved tensors whose result nobody uses are let go before the forward pass ends, but the hook has seen them.
    left = sum(count for part, count in live.kept.items() if part != "backward")
    assert left == pytest.approx(kept, rel=max(0.03, tolerance))
    assert max(live.highest.values()) == pytest.approx(peak, rel=tolerance)
    assert {"vision tower", "connector", "language model", "backward"} < live.highest.keys()


def test_gradient_checkpointing_saves_what_it_saves_in_a_real_step():
    run, load = given(gradient_checkpointing=True), Load(2, 40, 1, 300)
    live, (kept, peak) = told(run, load), measured(run, "internvl", "distime", load)
    assert max(live.highest.values()) == pytest.approx(peak, rel=0.03)
    saved, plain = (sum(found.kept.values()) - found.kept["backward"] for found in (live, told(given(), load)))
    assert kept < saved < plain / 5  # layers' inputs wait too, which no hook on saved tensors sees


def test_each_row_of_a_batch_has_frames_of_its_own():
    one, two = (told(given(), Load(rows, 40, 1, 300)) for rows in (1, 2))
    for part in ("connector", "language model"):
        assert two.kept[part] == pytest.approx(2 * one.kept[part], rel=0.01)
    assert make_batch(planned_model(given()), given(), Load(2, 40, 1, 300)).pixel_values.shape[0] == 80


@pytest.mark.parametrize(
    "kind, difference, channels, width",
    [("plain", False, 3, 1), ("internvl", True, 6, 1), ("clip", False, 3, 4), ("clip", True, 6, 4)],
)
def test_frames_count_as_they_travel(kind, difference, channels, width):
    """As bytes, but for those of the CLIP kind, which are float32."""
    vision = {"type": "conv", "image_size": 32, "num_channels": channels, "channels": [4]}
    data = {"preprocess": {"kind": kind, "size": 32, "frame_difference": difference}}
    run = settings("internvl", "distime", data=data, vision=vision, connector={"type": "linear"})
    model = planned_model(run)
    batch = make_batch(model, run, Load(2, 5, 1, 60))
    assert batch.pixel_values.nbytes == 2 * 5 * 32 * 32 * channels * width
    dry_run(model, run, batch)


def test_frames_of_any_size_count_as_patches_or_as_features_where_these_are_stored():
    frames = {"sampler": {"rule": "segments", "num_frames": 6}}
    for data, shape in (({}, (3 * 100, 96)), ({"features": "here"}, (3 * 25, 4 * 128))):
        run = given("qwen3_vl", "distime", {**frames, **data})
        batch = make_batch(planned_model(run), run, Load(1, 6, 1, 60))
        held = batch.pixel_values if batch.features is None else batch.features
        assert held.shape == shape, "40 x 40 pixels are 100 patches, which are 25 tokens"


def test_frames_that_the_tower_does_not_take_are_refused_as_by_training():
    with pytest.raises(ConfigError, match=r"data\.preprocess: makes frames of \(3, 14, 14\)"):
        planned_model(given(data={"preprocess": {"kind": "plain", "size": 14}}))


def test_weights_gradients_and_optimizer_are_those_of_a_real_step():
    run, bundle = given(), make_bundle("internvl", "distime")
    optimizer = torch.optim.AdamW(parameter_groups(bundle.model, run))
    step(bundle.model.train(), real_batch(run, Load(1, 4, 1, 60)), run).backward()
    optimizer.step()
    parts = held_states(planned_model(run), Zero())
    states = (v for state in optimizer.state.values() for v in state.values() if v.ndim)
    held = {
        "weights": bundle.model.parameters(),
        "gradients": (p.grad for p in bundle.model.parameters() if p.grad is not None),
        "optimizer": states,
    }
    for name, tensors in held.items():
        assert sum(part[name] for part in parts.values()) == sum(t.numel() * 4 for t in tensors), name


# ---- DeepSpeed -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage, ranks", [(0, 1), (1, 1), (2, 8), (3, 8)])
def test_zero_spreads_what_its_stage_spreads(tmp_path, stage, ranks):
    run = given(precision="bf16", deepspeed=deepspeed_file(tmp_path, stage))
    model = planned_model(run)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = sum(p.numel() for p in model.parameters())
    parts = held_states(model, read_zero(run, 8))
    held = {name: sum(part[name] for part in parts.values()) for name in STATES}
    assert held["weights"] == pytest.approx(2 * total / (8 if stage == 3 else 1), abs=100)
    assert held["gradients"] == pytest.approx(2 * trained / ranks, abs=100)
    assert held["optimizer"] == pytest.approx((MASTER + MOMENTS) * trained / (8 if stage else 1), abs=100)


def terms_of(run, world):
    return estimate(planned_model(run), run, Load(1, 4, 1, 60), world)


def test_a_deepspeed_file_says_how_large_buffers_are_and_what_is_offloaded(tmp_path):
    options = {"offload_optimizer": {"device": "cpu"}, "overlap_comm": True, "reduce_bucket_size": 1000}
    run = given(precision="bf16", deepspeed=deepspeed_file(tmp_path, 2, **options))
    found = terms_of(run, 2)
    trained, total = (sum(part[key] for part in found.parts.values()) for key in ("trained", "parameters"))
    assert found.offloaded == pytest.approx((2 + MASTER + MOMENTS) * trained / 2, rel=0.001)
    assert not {"gradients", "optimizer"} & found.terms.keys() and found.terms["weights"] == 2 * total
    assert found.terms["gradients on their way"] == 2 * 2 * 1000
    run.train.deepspeed = deepspeed_file(tmp_path, 3)
    assert terms_of(run, 2).terms["gathered weights, at most"] == 2 * total


def test_without_deepspeed_only_several_processes_pass_gradients():
    one, two = (terms_of(given(), world) for world in (1, 2))
    trained = sum(part["trained"] for part in two.parts.values())
    assert one.terms["gradients on their way"] == 0
    assert two.terms["gradients on their way"] == 4 * trained


def test_a_further_term_is_counted_and_told(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(STATES, "cache", lambda parameter, zero: 2**20 * (parameter.ndim == 1))
    found = terms_of(given(), 1)
    assert found.terms["cache"] == 2**20 * sum(p.ndim == 1 for p in planned_model(given()).parameters())
    assert memory.main(["--config", str(write_config(tmp_path, "distime")), "--frames", "4"]) == 0
    printed = capsys.readouterr().out
    assert f"{found.terms['cache'] / 2**20:,.1f}" in printed and printed.count("cache") == 2


# ---- what a batch holds ----------------------------------------------------------------------------------------------


def test_a_batch_is_as_large_as_the_settings_let_it_be():
    fixed = given(data={"sampler": {"rule": "segments", "num_frames": 7}}, batch_size=3)
    assert assumed_load(fixed, planned_model(fixed), None, None, None) == Load(3, 7, 1, 256)
    open_end = given(data={"sampler": {"rule": "fps"}, "max_length": 600})
    assert columns(open_end, assumed_load(open_end, planned_model(open_end), None, None, None)) in range(597, 601)
    budget = given(data={"sampler": {"rule": "segments", "num_frames": 7}}, max_tokens_per_batch=2000)
    load = assumed_load(budget, planned_model(budget), None, None, None)
    assert load.rows > 1 and load.rows * columns(budget, load) <= 2000


# ---- telling ---------------------------------------------------------------------------------------------------------


def test_the_command_prints_what_a_config_needs(tmp_path, capsys):
    config = str(write_config(tmp_path, "d2vlm"))
    assert memory.main(["--config", config, "--gpus", "2", "--frames", "9"]) == 0
    printed = capsys.readouterr().out
    assert "1 x 4 frames" not in printed and "1 x 9 frames" in printed and "at most at once" in printed
    with pytest.raises(SystemExit, match="2"):
        memory.main(["--config", config, "--gpus", "0"])
    assert "argument --gpus: '0' is not" in capsys.readouterr().err
    assert memory.main(["--config", config, "model.checkpoint=nowhere"]) == 2


def test_a_head_that_looks_at_numbers_is_named(monkeypatch):
    def loss(self, queries, refs, frames):
        return {"odd": queries.sum() * float(queries.sum().item() > 0)}

    monkeypatch.setattr(TextTimeHead, "loss", loss)
    run = given(head="text")
    with pytest.raises(ConfigError, match=r"model\.head"):
        told(run, Load(1, 4, 1, 60))


def test_a_deepspeed_file_that_a_run_would_refuse_is_refused(tmp_path):
    run = given(deepspeed=str(tmp_path / "none.json"))
    with pytest.raises(ConfigError, match=r"train\.deepspeed"):
        estimate(planned_model(run), run, Load(1, 4, 1, 60))


# ---- answers that are drawn ------------------------------------------------------------------------------------------


def test_drawn_answers_take_their_rows_and_their_keys_and_values():
    found = {}
    for answers in (2, 8):
        run = given(objective={"name": "grpo", "answers": answers})
        run.generate.max_new_tokens = 400
        found[answers] = estimate(planned_model(run), run, Load(rows=1, frames=4, questions=1, text=40))
        batch = found[answers].batch
        asked = int((batch.segment_ids == 0).sum())
        kept = answers * (asked + 400) * 2 * 4 * 2 * 8 * 4  # keys and values, layers, heads, width, bytes
        beyond = max(0, kept - found[answers].terms["activations"])
        assert found[answers].terms["beyond that, while answers are drawn"] == beyond
        assert batch.num_samples == answers
    assert found[8].terms["activations"] > found[2].terms["activations"]
    alone = estimate(planned_model(given()), given(), Load(rows=1, frames=4, questions=1, text=40))
    assert alone.terms["beyond that, while answers are drawn"] == 0


def test_a_text_of_any_length_counts_up_to_the_context(tmp_path):
    given = read_settings(yaml.safe_load(write_config(tmp_path, "text").read_text()))
    model = planned_model(given)
    longest, absurd = (assumed_load(given, model, 2, text, None) for text in (1024, 10**9))
    assert longest == absurd and longest.text == 1024
