"""What a training step asks of a device, at the real depth: as few operations as were reached, and no wait.

Narrow models in bf16, forward and backward, frame tokens or features given, so that neither tower nor file counts.
"""

import argparse

import pytest
import torch

from benchmarks import d2vlm_step
from d2vlm.fpo import FPO, FPOOptions
from tests.models import _language, make_batch, make_bundle
from tests.ops import Operations
from videollm.model.videollm import VideoLLM

D2VLM_LAYERS, DISTIME_LAYERS = 32, 24


@pytest.fixture(scope="module")
def d2vlm():
    """The step of ``benchmarks/d2vlm_step.py``: its settings, and the model."""
    args = argparse.Namespace(
        layers=D2VLM_LAYERS, width=64, vocabulary=300, batch=1, device="cpu", dtype="bfloat16"
    )  # fmt: skip
    return args, d2vlm_step.make_model(args, VideoLLM, "sdpa")


def counted(model, batch) -> Operations:
    """Of a step that is not the first: what is made once is there."""
    for _ in range(2):
        model.zero_grad(set_to_none=True)
        with Operations() as found:
            model(batch).loss.backward()
    return found


def held(found: Operations, most: int) -> None:
    """Within 5 operations of what was reached: what is below is to be written down too."""
    assert not found.waits
    assert most - 5 <= found.total <= most, found.calls.most_common(12)


def test_a_supervised_step_of_d2vlm(d2vlm):
    args, model = d2vlm
    held(counted(model, d2vlm_step.make_batch(args, model, d2vlm_step.make_items(args, 1), rank=False)), 2890)


def test_a_preference_step_of_d2vlm(d2vlm, monkeypatch):
    args, model = d2vlm
    monkeypatch.setattr(model, "objective", FPO(FPOOptions()))
    held(counted(model, d2vlm_step.make_batch(args, model, d2vlm_step.make_items(args, 2), rank=True)), 3084)


@pytest.mark.parametrize(("checkpointing", "most"), [(False, 1974), (True, 2502)])
def test_a_step_of_distime(checkpointing, most):
    bundle = make_bundle("internvl", "distime", language=_language("qwen2", num_hidden_layers=DISTIME_LAYERS))
    model = bundle.model.to(torch.bfloat16).train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    batch = make_batch(bundle, ["two_spans", "asked"])
    held(counted(model, batch), most)


# ---- the counter itself ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "work",
    [
        lambda x: x.sum().item(),
        lambda x: bool((x > 0).any()),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: x.new_tensor([1.0, 2.0]),
        lambda x: x.to("meta"),
    ],
)
def test_what_waits_is_found(work):
    with Operations() as found:
        work(torch.ones(3))
    assert found.waits and all("test_operations.py" in name for name in found.waits)


def test_views_are_no_operations():
    x = torch.ones(2, 3)
    with Operations() as found:
        x.view(3, 2).transpose(0, 1)[:1].unsqueeze(0).expand(2, -1, -1)
    assert not found.total and not found.waits
    with Operations() as found:
        x + x
    assert found.calls == {"aten::add": 1}


def test_a_norm_counts_as_the_one_kernel_that_a_gpu_has():
    """Forward and backward, with the results that torch has without the counter."""
    states, weight = torch.randn(3, 8, requires_grad=True), torch.randn(8, requires_grad=True)

    def norm():
        normed = torch.nn.functional.rms_norm(states, (8,), weight, 1e-5)
        return normed, *torch.autograd.grad(normed, (states, weight), torch.arange(24.0).view(3, 8))

    wanted = norm()
    with Operations() as found:
        seen = norm()
    assert {name: n for name, n in found.calls.items() if "norm" in name} == {
        "aten::_fused_rms_norm": 1,
        "aten::_fused_rms_norm_backward": 1,
    }
    torch.testing.assert_close(seen, wanted)
