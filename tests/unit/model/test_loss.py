"""The language model's loss: only supervised places cost anything, in any number of pieces."""

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModelForCausalLM

from videollm.model import loss
from videollm.model.loss import logits_of, supervised_cross_entropy


@pytest.fixture(params=["qwen2", "gemma2"])
def language_model(request):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
    config = AutoConfig.for_model(request.param, **sizes, intermediate_size=16, vocab_size=20, head_dim=8)
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager")


def test_logits_are_those_of_the_language_model_itself(language_model):
    out = language_model(torch.tensor([[1, 2, 3]]), output_hidden_states=True)
    torch.testing.assert_close(logits_of(language_model, out.hidden_states[-1]), out.logits)


def test_pieces_and_weights_give_the_weighted_sum_and_its_gradient(language_model, monkeypatch):
    torch.manual_seed(1)
    states = torch.randn(9, 16, requires_grad=True)
    index, labels, weight = torch.tensor([8, 0, 3, 3, 5]), torch.tensor([1, 2, 3, 4, 19]), torch.rand(5)
    expected = cross_entropy(logits_of(language_model, states)[index], labels, reduction="none") @ weight
    (wanted,) = torch.autograd.grad(expected, states)
    for chunk in (2, 5, 512):
        monkeypatch.setattr(loss, "CHUNK", chunk)
        got = supervised_cross_entropy(language_model, states, index, labels, weight)
        torch.testing.assert_close(got, expected)
        torch.testing.assert_close(torch.autograd.grad(got, states)[0], wanted)


def test_under_zero3_every_rank_calls_the_output_layer_once(language_model, monkeypatch):
    calls = []
    language_model.get_output_embeddings().register_forward_hook(lambda *_: calls.append(1))
    monkeypatch.setattr(loss, "is_deepspeed_zero3_enabled", lambda: True)
    for count in (0, 3, 700):
        index = torch.arange(count)
        supervised_cross_entropy(language_model, torch.randn(900, 16), index, index % 20, torch.ones(count))
    assert len(calls) == 3


def test_without_labels_the_loss_is_zero_on_the_graph(language_model):
    states, none = torch.randn(4, 16, requires_grad=True), torch.zeros(0, dtype=torch.long)
    value = supervised_cross_entropy(language_model, states, none, none, torch.zeros(0))
    value.backward()
    assert value == 0 and not states.grad.any()
    assert language_model.get_output_embeddings().weight.grad is not None


def test_logits_exist_for_supervised_places_only(language_model):
    seen = []
    language_model.get_output_embeddings().register_forward_hook(lambda _m, inputs, _o: seen.append(len(inputs[0])))
    index = torch.arange(700) % 900
    states = torch.randn(900, 16)
    supervised_cross_entropy(language_model, states, index, index % 20, torch.ones(700))
    assert sum(seen) == 700 and max(seen) == loss.CHUNK
