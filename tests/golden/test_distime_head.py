"""The time head and its losses against tensors of the published implementation."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import distime  # noqa: F401  registers the head
from distime.losses import dfl, diou, gaussian
from tests.golden.distime_model import GENERATED, SAMPLES
from videollm.data.conversation import Role
from videollm.heads import FrameBatch, Prediction, SpanRefs, build_head


def load(path: Path) -> tuple[dict, dict]:
    """json and tensors of one golden case, which a folder may lack."""
    if not path.with_suffix(".safetensors").is_file():
        pytest.skip(f"{path} is not in this golden folder")
    return json.loads(path.with_suffix(".json").read_text()), load_file(path.with_suffix(".safetensors"))


def make_head(folder: Path, llm: str, **options):
    config = json.loads((folder / llm / "config.json").read_text())
    weights = load_file(folder / llm / "model.safetensors")
    own = {k: v for k, v in weights.items() if k.startswith(("time_gen.", "time_enc."))}
    settings = {"reg_max": config["dec_reg"], "sigma": config["enc_sigma"], "num_layers": config["layer_num"]}
    width = config["llm_config"]["hidden_size"]
    fp32 = {"gaussians_bf16": False, "expectation_bf16": False}  # as the golden numbers were made
    head = build_head({"name": "distime", "compatibility": "published", **fp32, **settings, **options}, width)
    head.load_state_dict(own, strict=True)
    return head.eval(), config["token_ids"]


def frame_batch(times: list[float], duration: float) -> FrameBatch:
    mask = torch.ones(1, len(times), dtype=torch.bool)
    return FrameBatch(torch.tensor(times).reshape(1, -1), mask, torch.tensor([float(duration)]))


def span_refs(places: torch.Tensor, roles: torch.Tensor, seconds: torch.Tensor, frame: torch.Tensor) -> SpanRefs:
    zeros = torch.zeros_like(places)
    return SpanRefs(places, places - 1, zeros, zeros, roles, zeros, frame, seconds, 1)


def stamps(info: dict, ids: torch.Tensor, token: int) -> SpanRefs:
    places = (ids == token).nonzero().squeeze(-1)
    seconds = torch.tensor(info["time_gt"] or [], dtype=torch.float32).reshape(-1, 2)
    assert len(seconds) == len(places)
    return span_refs(places, torch.full_like(places, Role.ANSWER), seconds, torch.full_like(places, -1))


def frame_refs(count: int) -> SpanRefs:
    frame = torch.arange(count)
    return span_refs(frame, torch.full_like(frame, Role.FRAME), torch.zeros(count, 2), frame)


def test_gaussians_equal_the_published_ones_and_bf16_bit_for_bit(folder):
    info, arrays = load(folder / "unit" / "gaussian")
    for case in info:
        i, peaks = case["index"], arrays[f"{case['index']}.peaks"]
        exact = gaussian(peaks, case["reg_max"], case["sigma"])
        torch.testing.assert_close(exact, arrays[f"{i}.fp32"], atol=1e-5, rtol=0)
        rounded = gaussian(peaks, case["reg_max"], case["sigma"], bf16=True)
        assert torch.equal(rounded, arrays[f"{i}.bf16"].to(torch.bfloat16))
        assert torch.equal(gaussian(peaks.bfloat16(), case["reg_max"], case["sigma"], bf16=True), rounded)


def test_seconds_become_the_published_bins(folder):
    info = json.loads((folder / "unit" / "time_norm.json").read_text())
    head = build_head({"name": "distime", "compatibility": "published", "reg_max": info["reg_max"]}, 8)
    for case in info["cases"]:
        frames = frame_batch([], case["duration"])
        seconds = torch.tensor(case["tgt"], dtype=torch.float32).reshape(-1, 2)
        zeros = torch.zeros(len(seconds), dtype=torch.int64)
        refs = span_refs(zeros, zeros, seconds, zeros)
        duration = frames.duration_s[zeros]
        clamped = head._true_seconds(refs, frames)
        torch.testing.assert_close(clamped.flatten(), torch.tensor(case["clamped"]))
        bins = head._bins(clamped, duration).flatten()
        torch.testing.assert_close(bins, torch.tensor(case["stamp_bins"]), atol=1e-5, rtol=0)
        bins = head._bins(seconds, duration).flatten()
        torch.testing.assert_close(bins, torch.tensor(case["frame_bins_unclamped"]), atol=1e-5, rtol=0)


def test_dfl_and_its_gradient_equal_the_published_ones(folder):
    info, arrays = load(folder / "unit" / "dfl")
    for case in info:
        i, reg_max = case["index"], case["reg_max"]
        logits = arrays[f"{i}.logits"].clone().requires_grad_()
        loss = dfl(logits, arrays[f"{i}.target"])
        torch.testing.assert_close(loss, arrays[f"{i}.elementwise"], atol=1e-5, rtol=1e-5)
        total = loss.sum() / reg_max
        torch.testing.assert_close(total, arrays[f"{i}.loss_avg_factor_reg_max"], atol=1e-5, rtol=1e-5)
        (gradient,) = torch.autograd.grad(total, logits)
        torch.testing.assert_close(gradient, arrays[f"{i}.grad_logits"], atol=1e-5, rtol=0)
        # The published cross-entropy of bf16 logits is rounded to bf16 as well; ours is float32 inside.
        rounded = dfl(arrays[f"{i}.logits"].bfloat16(), arrays[f"{i}.target"]).sum() / reg_max
        torch.testing.assert_close(rounded, arrays[f"{i}.loss_bf16_logits"], atol=0, rtol=2**-9)
        below = dfl(arrays[f"{i}.logits"], torch.full((len(loss),), float(reg_max)))
        assert below.isfinite().all()  # where the published code raises IndexError


def test_expected_bins_equal_the_published_ones(folder):
    info, arrays = load(folder / "unit" / "dfl")
    for case in info:
        i, reg_max = case["index"], case["reg_max"]
        head = build_head({"name": "distime", "reg_max": reg_max}, 8)
        p = arrays[f"{i}.logits"].softmax(-1).unflatten(0, (-1, 2))
        torch.testing.assert_close(head._expected(p), arrays[f"{i}.expected_bins"], atol=1e-4, rtol=0)


def test_diou_and_its_gradient_equal_the_published_ones(folder):
    _, arrays = load(folder / "unit" / "diou")
    pred = arrays["pred"].clone().requires_grad_()
    loss = diou(pred, arrays["target"], ordered=False)
    torch.testing.assert_close(loss, arrays["loss"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(loss.mean(), arrays["loss_mean"], atol=1e-5, rtol=1e-5)
    (gradient,) = torch.autograd.grad(loss.mean(), pred)
    # Where two spans touch, or have no length, the gradient is not unique (README); it is elsewhere.
    (start, end), (true_start, true_end) = arrays["pred"].unbind(-1), arrays["target"].unbind(-1)
    smooth = torch.minimum(end, true_end) != torch.maximum(start, true_start)
    assert smooth.sum() > len(smooth) / 2
    torch.testing.assert_close(gradient[smooth], arrays["grad_of_mean"][smooth], atol=1e-5, rtol=1e-4)
    nan = diou(arrays["nan_pred"], arrays["nan_target"], ordered=False)
    torch.testing.assert_close(nan, arrays["nan_loss"])


def test_ordered_diou_differs_from_the_published_one_only_for_reversed_predictions(folder):
    _, arrays = load(folder / "unit" / "diou")
    ordered = arrays["pred"][:, 0] <= arrays["pred"][:, 1]
    loss = diou(arrays["pred"], arrays["target"], ordered=True)
    torch.testing.assert_close(loss[ordered], arrays["loss"][ordered], atol=1e-5, rtol=1e-5)
    assert (loss[~ordered] < arrays["loss"][~ordered]).any()


@pytest.mark.parametrize("sample", SAMPLES)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_training_equals_the_published_one(folder, llm, sample, precision):
    info, arrays = load(folder / "train" / llm / sample)
    head, tokens = make_head(folder, llm, gaussians_bf16=precision == "bf16")
    refs = stamps(info, arrays["input_ids"][0], tokens["TIME_STAMP"])
    frames = frame_batch(info["frame_times_doubled"][::2], info["duration"])
    queries = arrays["last_hidden"][0, refs.query_index]
    losses = info["losses"]
    if precision == "bf16":
        arrays = {**arrays, **load_file(folder / "train" / llm / f"{sample}.bf16.safetensors")}
        losses = json.loads((folder / "train" / "losses.json").read_text())[f"{llm}/{sample}/bf16"]

    count = len(info["frame_times_doubled"]) // 2
    encoded = head.embed(torch.ones(count, head.hidden_size), frame_refs(count), frames)
    torch.testing.assert_close(encoded, arrays["frame_time_embeds"], atol=3e-5, rtol=1e-4)
    if not len(refs):
        zero = head.loss(queries, refs, frames)
        assert zero["dfl"] == losses["loss_time_dfl"] == 0 and zero["diou"] == losses["loss_iou"] == 0
        return
    encoded = head.embed(torch.ones(len(refs), head.hidden_size), refs, frames)
    torch.testing.assert_close(encoded, arrays["stamp_embeds"], atol=3e-5, rtol=1e-4)
    if precision == "bf16":  # its hidden states are not stored; the decoder is checked in fp32
        return
    logits = head._logits(queries)
    torch.testing.assert_close(logits.flatten(1), arrays["time_logits"], atol=1e-4, rtol=1e-4)
    true_s = head._true_seconds(refs, frames)
    torch.testing.assert_close(true_s, arrays["iou_target_seconds"], atol=1e-4, rtol=0)
    duration = frames.duration_s[refs.owner]
    torch.testing.assert_close(head._bins(true_s, duration).flatten(), arrays["dfl_target"], atol=1e-5, rtol=0)
    focal = head._dfl(logits, true_s, duration)
    torch.testing.assert_close(focal, arrays["dfl_elementwise"].reshape(-1, 2).sum(-1), atol=1e-4, rtol=1e-4)
    predicted = head._seconds(head._expected(logits.softmax(-1)), duration.unsqueeze(-1))
    torch.testing.assert_close(predicted, arrays["pred_seconds"], atol=2e-3, rtol=0)
    torch.testing.assert_close(diou(predicted, true_s, ordered=False), arrays["diou_elementwise"], atol=0, rtol=4e-4)
    loss, counts = head.loss(queries, refs, frames), head.counts(refs)
    assert (loss["dfl"] / counts["dfl"]).item() == pytest.approx(losses["loss_time_dfl"], rel=3e-5)
    assert (loss["diou"] / counts["diou"]).item() == pytest.approx(losses["loss_iou"], rel=4e-4)
    torch.testing.assert_close(head.log_prob(queries, refs, frames), -focal)


@pytest.mark.parametrize("case", GENERATED)
def test_generation_equals_the_published_one(folder, llm, case):
    info, arrays = load(folder / "generate" / llm / case)
    head, tokens = make_head(folder, llm, gaussians_bf16=info["gaussian"] == "bf16")
    video = json.loads((folder / "generate" / f"video_{info['video']}.json").read_text())
    steps = (arrays["generated_ids"][0] == tokens["TIME_STAMP"]).nonzero().squeeze(-1)
    if not len(steps):  # a case without a stamp stores no such tensors
        assert info["pred_time_bins"] == [] and "stamp_logits" not in arrays
        return
    queries = arrays["step_hidden"][steps]
    frames = frame_batch([], info["duration"])
    owner = torch.zeros(len(steps), dtype=torch.int64)
    torch.testing.assert_close(head._logits(queries).flatten(1), arrays["stamp_logits"], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(head._logits(queries).softmax(-1), arrays["stamp_probs"], atol=1e-5, rtol=1e-4)
    prediction = head.predict(queries, owner, frames)
    torch.testing.assert_close(prediction.raw, arrays["stamp_pred_bins"], atol=1e-4, rtol=0)
    seconds = torch.tensor(info["seconds_demo"], dtype=torch.float32).reshape(-1, 2)
    torch.testing.assert_close(prediction.seconds, seconds.sort(-1).values, atol=2e-3, rtol=0)
    raw = Prediction(prediction.seconds, prediction.score, arrays["stamp_pred_bins"])
    embeds = head.embed_predicted(torch.ones(len(steps), head.hidden_size), raw, owner, frames)
    torch.testing.assert_close(embeds, arrays["stamp_embeds"], atol=3e-5, rtol=1e-4)
    times = torch.tensor(video["frame_times"])
    encoded = head.embed(
        torch.ones(len(times), head.hidden_size), frame_refs(len(times)), frame_batch(times.tolist(), info["duration"])
    )
    torch.testing.assert_close(encoded, arrays["frame_time_embeds"], atol=3e-5, rtol=1e-4)
