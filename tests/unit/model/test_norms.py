"""Norms of a language model are torch's own where they compute the same, by the formula and not by the name."""

import copy

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextRMSNormGated

from tests.models import _language
from videollm.model.attention import is_rms_norm
from videollm.model.videollm import build_language

OURS = {"phi3": 9, "qwen2": 9, "llama": 9, "mistral": 9, "qwen3": 17}  # norms of 4 layers and of the end
OTHERS = ["gemma2", "gemma3_text", "cohere2", "starcoder2"]  # (1 + weight), LayerNorm


def config_of(kind: str):
    fields = _language(kind, vocab_size=50, head_dim=8)
    return AutoConfig.for_model(fields.pop("model_type"), **fields)


def norms(model: nn.Module) -> list[nn.RMSNorm]:
    return [module for module in model.modules() if isinstance(module, nn.RMSNorm)]


@pytest.mark.parametrize("kind", OURS)
def test_torch_norms_stand_in_for_those_that_compute_the_same(kind):
    """The same names, the same numbers."""
    theirs = AutoModelForCausalLM.from_config(config_of(kind)).eval()
    for name, weight in theirs.named_parameters():
        if "norm" in name:
            nn.init.uniform_(weight, -1, 2)
    ours = build_language(config_of(kind), "sdpa").eval()
    ours.load_state_dict(theirs.state_dict())
    assert len(norms(ours)) == OURS[kind] and not norms(theirs)
    ids = torch.arange(12).view(2, 6)
    for dtype, limit in ((torch.float32, 1e-5), (torch.bfloat16, 0.05)):
        wanted = theirs.to(dtype)(ids).logits
        assert (ours.to(dtype)(ids).logits - wanted).norm() < limit * wanted.norm()


@pytest.mark.parametrize("kind", OTHERS)
def test_norms_of_another_formula_stay(kind):
    assert not norms(build_language(config_of(kind), "sdpa"))


def test_a_norm_is_told_by_what_it_computes():
    norm = LlamaRMSNorm(8, eps=1e-3)
    assert is_rms_norm(norm)
    changed = copy.deepcopy(norm)
    changed.forward = lambda states: norm.weight * states * torch.rsqrt(states.square().mean(-1, keepdim=True) + 1e-6)
    assert not is_rms_norm(changed), "another eps than it says"
    assert not is_rms_norm(Gemma2RMSNorm(8)), "1 + weight"
    assert not is_rms_norm(Qwen3NextRMSNormGated(8)), "without its gate it would compute the same"
    assert not is_rms_norm(nn.LayerNorm(8, bias=False)) and not is_rms_norm(nn.Linear(8, 8))


def test_a_model_without_memory_has_the_same_norms():
    with torch.device("meta"):
        model = build_language(config_of("qwen2"), "sdpa")
    assert len(norms(model)) == OURS["qwen2"] and {p.device.type for p in model.parameters()} == {"meta"}


def test_one_rounding_is_nearer_to_float32_than_two():
    states, norm = torch.randn(64, 256), LlamaRMSNorm(256)
    nn.init.uniform_(norm.weight, -1, 2)
    norm.weight.data = norm.weight.bfloat16().float()
    states = states.bfloat16().float()
    exact = norm(states)
    theirs = norm.bfloat16()(states.bfloat16())
    ours = torch.rms_norm(states.bfloat16(), (256,), norm.weight, norm.variance_epsilon)
    assert (ours - exact).norm() < (theirs - exact).norm()
