"""The matrix of README: on every backbone every head learns under every objective, its tower too.

``CELLS`` is what runs: those of ``FAST`` always, all with ``--all``. On one batch the loss falls, and every parameter
that is to learn has a gradient.
"""

from itertools import product

import pytest
import torch

from d2vlm.fpo import FPO, FPOOptions
from tests.models import HEADS, LINES, gradients, make_batch, make_bundle
from tests.unit.d2vlm.test_fpo import ranked
from tests.unit.grpo.test_rollout import objective, questions, warm
from videollm.training.optimizer import set_trainable
from videollm.training.settings import PartSettings, TrainSettings

BACKBONES = ("internvl", "llama", "etchat", "internvl3_5", "smolvlm", "qwen2_5_vl", "qwen3_vl")
FAST = {
    ("qwen3_vl", "d2vlm", "supervised"), ("qwen2_5_vl", "distime", "supervised"), ("internvl3_5", "text", "supervised"),
    ("qwen2_5_vl", "text", "fpo"), ("internvl3_5", "distime", "grpo"),
}  # fmt: skip


def supervised(bundle, _folder):
    return make_batch(bundle, list(LINES))


def fpo(bundle, _folder):
    bundle.model.objective = FPO(FPOOptions())
    return ranked(bundle, ["two_spans", "asked", "turns"])


def grpo(bundle, folder):
    """Answers that are drawn once; the loss falls as those that earn more become likelier."""
    own = bundle.model.objective = objective(warm(bundle), folder)
    (batch,) = own.made([questions(bundle, ["two_spans", "asked", "turns"])], step=0)
    return batch


OBJECTIVES = {"supervised": supervised, "fpo": fpo, "grpo": grpo}
CELLS = list(product(BACKBONES, HEADS, OBJECTIVES))


@pytest.mark.parametrize(
    ("backbone", "head", "name"),
    [pytest.param(*cell, marks=[] if cell in FAST else pytest.mark.slow) for cell in CELLS],
)
def test_every_head_learns_on_every_backbone_under_every_objective(backbone, head, name, tmp_path):
    bundle = make_bundle(backbone, head)
    set_trainable(bundle.model, TrainSettings(parts={"vision_tower": PartSettings(train=True)}))
    batch, model = OBJECTIVES[name](bundle, tmp_path), bundle.model.train()
    optimizer, losses = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 2e-3), []
    for _ in range(30 if name == "supervised" else 8):
        loss = model(batch).loss
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
        grads = gradients(model)
        assert not [parameter for parameter, grad in grads.items() if grad is None]
    fallen = 0.7 * losses[0] if name == "supervised" else losses[0] - 0.01
    assert losses[-1] < fallen, losses
