"""DisTime's vision tower and projector give the official numbers, and take the official weights.

Arrays: golden/distime/README.md; limits are 10 times the agreement stated there. All sizes come from config.json.
"""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from distime.names import Layout, to_ours
from tests.golden.distime_model import LLMS, SAMPLES, existing
from videollm.model.connectors import build_connector, pixel_shuffle
from videollm.model.towers import build_tower, encode_frames

FEATURES = {"rtol": 0, "atol": 4e-5}
EMBEDDINGS = {"rtol": 0, "atol": 3e-5}


@pytest.fixture(scope="module", params=LLMS)
def model(request, folder):
    """(name of the language model, tower, connector, tokens per frame) with the official weights."""
    own = existing(folder / request.param)
    config = json.loads((own / "config.json").read_text())
    state = load_file(own / "model.safetensors")
    tower = build_tower(tower_fields(config["vision_config"])).eval()
    tower.load_state_dict(part(state, "vision_tower."))
    fields = {"type": "mlp", "downsample": config["downsample_ratio"]}
    connector = build_connector(fields, tower.hidden_size, config["llm_config"]["hidden_size"]).eval()
    connector.load_state_dict(part(state, "connector."))
    return request.param, tower, connector, config["num_image_token"]


def tower_fields(vision):
    same = ("image_size", "patch_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    same += ("norm_type", "hidden_act", "layer_norm_eps")
    return {
        "type": "internvl",
        "attention_bias": vision["qkv_bias"],
        "use_qk_norm": vision["qk_normalization"],
        **{name: vision[name] for name in same},
    }


@pytest.mark.parametrize("sample", SAMPLES)
def test_pixels_become_the_official_visual_tokens(folder, model, sample):
    name, tower, connector, tokens_per_frame = model
    expected = load_file(existing(folder / "train" / name / f"{sample}.safetensors"))
    pixels = torch.from_numpy(np.load(existing(folder / "data" / f"{sample}.npz"))["pixel_values"])
    features = encode_frames(tower, pixels, chunk=5)
    torch.testing.assert_close(features, expected["vit_last_hidden"][:, 1:], **FEATURES)
    torch.testing.assert_close(pixel_shuffle(features, connector.block), expected["pixel_shuffle_out"], **FEATURES)
    with torch.no_grad():
        tokens = connector(features)
    torch.testing.assert_close(tokens, expected["vit_embeds"], **EMBEDDINGS)
    assert tokens.shape[1] == tokens_per_frame == connector.tokens_per_frame(tower.num_patches)


def test_pixel_shuffle_keeps_the_official_order_exactly(folder):
    data = load_file(existing(folder / "unit" / "pixel_shuffle.safetensors"))
    for name in (n for n in data if n.endswith(".in")):
        wanted = data[name.replace(".in", ".out_v2")].flatten(1, 2)
        assert torch.equal(pixel_shuffle(data[name].flatten(1, 2), 2), wanted), name


@pytest.mark.parametrize("size, hidden_size", [("1B", 896), ("8B", 4096)])
def test_every_vision_weight_of_the_released_models_has_a_place(folder, size, hidden_size):
    shapes = json.loads(existing(folder / "checkpoint_keys.json").read_text())[size]["shapes"]
    official = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    with torch.device("meta"):
        tower = build_tower({"type": "internvl", "attention_bias": True})
        connector = build_connector({"type": "mlp"}, tower.hidden_size, hidden_size)
    assert shapes_of(tower.state_dict()) == shapes_of(part(official, "vision_tower."))
    assert shapes_of(connector.state_dict()) == shapes_of(part(official, "connector."))


def part(state, prefix):
    """The converter's tensors below ``prefix``; the vision side needs nothing of the language model's layout."""
    ours = to_ours(state, Layout("qwen2", heads=1, kv_heads=1))
    return {name.removeprefix(prefix): ours[name] for name in ours if name.startswith(prefix)}


def shapes_of(state):
    return {name: tuple(tensor.shape) for name, tensor in state.items()}
