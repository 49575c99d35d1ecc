"""Every tensor of the released D2VLM has a place in our model and finds its way back, by name and shape.

Names and shapes of the real model: golden/d2vlm/real_config_keys.json; of the tiny one's forms: checkpoint_keys.json.
All of it happens on the meta device: nothing of the real size is ever allocated.
"""

import json

import pytest
import torch
from safetensors.torch import load_file

from d2vlm.names import official, official_fields, our_config, ours
from tests.golden.d2vlm_model import parts, read_config
from videollm.checkpoint.tensors import KeyReport, TensorSource, adapted_layers
from videollm.model.videollm import VideoLLM

PHI3 = {"num_hidden_layers": 32, "hidden_size": 3072, "intermediate_size": 8192, "num_attention_heads": 32}
IDS = {"<evi>": 32011, "</evi>": 32012}  # published_systems.md#d2vlm-language-model


def read(folder, name):
    if not (folder / name).is_file():
        pytest.skip(f"{name} is not in this golden folder")
    return json.loads((folder / name).read_text())


@pytest.fixture(scope="module")
def real(folder):
    """The released model's tensors on the meta device, and our model of its config."""
    shapes = {name: tuple(shape) for name, shape in read(folder, "real_config_keys.json")["state_dict"].items()}
    fields = {
        "model_type": "etchat_phi3",
        "arch_module": "d2vlm_arch",
        "vocab_size": 32064,
        "max_position_embeddings": 4096,
    }
    config = our_config(fields | PHI3 | {"num_key_value_heads": 32, "pad_token_id": 32000}, shapes, IDS)
    with torch.device("meta"):
        model = VideoLLM(config)
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}, model


def test_every_tensor_of_the_released_model_has_a_place_of_its_shape(real):
    released, model = real
    report = KeyReport.compare(ours(released), model.state_dict())
    assert report.lines() == []


def test_the_released_dropout_is_the_default(real):
    """docs/d2vlm.md, surprise 17: BERT's dropout of 0.1 is on in training, the language model has none."""
    qformer, text = real[1].connector.qformer.config, real[1].config.text_config
    assert qformer.hidden_dropout_prob == qformer.attention_probs_dropout_prob == 0.1
    assert text.attention_dropout == text.resid_pdrop == text.embd_pdrop == 0.0


def test_every_tensor_of_ours_goes_back_under_its_released_name(real):
    released, model = real
    assert KeyReport.compare(official(model.state_dict()), released).lines() == []
    again = ours(official(model.state_dict()))
    assert KeyReport.compare(again, model.state_dict()).lines() == []


def test_the_real_model_has_the_released_number_of_parameters(real, folder):
    expected = read(folder, "real_config_keys.json")["total_params"]
    # The key biases of 39 blocks are parameters of ours only (zeros), the constant position_ids of neither.
    blocks, width = len(real[1].vision_tower.encoder.layers), real[1].vision_tower.hidden_size
    assert sum(p.numel() for p in real[1].parameters()) == expected + blocks * width


def test_adapters_of_the_released_recipe_sit_on_layers_of_ours(real, folder):
    trainable = read(folder, "real_config_keys.json")["trainable"]
    layers = adapted_layers(name.removeprefix("base_model.model.") for name in trainable["lora"])
    state = ours({f"{layer}.weight": torch.empty(0) for layer in layers})
    assert len(state) * 2 == trainable["lora_count"] and set(state) <= set(real[1].state_dict())


def test_a_tiny_model_goes_there_and_back_bit_for_bit(folder):
    state = load_file(folder / "model.safetensors")
    back = official(ours(state))
    assert set(back) == set(state)
    assert all(torch.equal(back[name], tensor) for name, tensor in state.items())


def test_the_settings_go_there_and_back(folder):
    golden = read_config(folder)
    shapes = {name: tuple(tensor.shape) for name, tensor in load_file(folder / "model.safetensors").items()}
    ids = {"<evi>": golden["evidence_token_id"], "</evi>": golden["evidence_end_token_id"]}
    back = official_fields(our_config(golden["llm"], shapes, ids, *parts(folder)))
    differing = {k: (v, golden["llm"][k]) for k, v in back.items() if k in golden["llm"] and golden["llm"][k] != v}
    assert differing == {}
    again = our_config(back, shapes, ids, *parts(folder))
    assert official_fields(again) == back


def test_the_published_files_hold_the_names_that_the_converter_expects(folder):
    keys, state = read(folder, "checkpoint_keys.json"), load_file(folder / "model.safetensors")
    if not (folder / "adapter_ckpt").is_dir():
        pytest.skip(f"adapter_ckpt is not in {folder}")
    assert set(keys["full_checkpoint_keys"]) == set(state)
    lora = TensorSource(folder / "adapter_ckpt", ["adapter_model"])
    trained = TensorSource(folder / "adapter_ckpt", ["pytorch_model"])
    assert {n: list(lora.shape(n)) for n in lora} == keys["adapter_keys"]
    assert {n: list(trained.shape(n)) for n in trained} == keys["partial_keys"]
