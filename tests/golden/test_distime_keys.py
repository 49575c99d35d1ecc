"""The released 1B and 8B models at their real sizes, without weights: every name and shape, both ways, and what trains.

Everything is built on the meta device. The configs are those of the released models.
"""

import pytest
import torch

from distime.names import BINS, merge_lora, to_official, to_ours
from distime.official_config import layout_of, official_config, our_config, our_layout
from tests.golden.distime_model import existing, read
from videollm.checkpoint.tensors import KeyReport
from videollm.common.config import build, read_yaml, to_dict
from videollm.model.lora import add_lora
from videollm.model.videollm import VideoLLM
from videollm.training.optimizer import part_of, set_trainable
from videollm.training.settings import Settings

VISION = {
    "image_size": 448, "patch_size": 14, "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
    "num_attention_heads": 16, "norm_type": "layer_norm", "hidden_act": "gelu", "layer_norm_eps": 1e-6,
    "qkv_bias": True, "qk_normalization": False,
}  # fmt: skip
TEXT = {
    "1B": {
        "architectures": ["Qwen2ForCausalLM"], "vocab_size": 151676, "hidden_size": 896, "intermediate_size": 4864,
        "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2, "rms_norm_eps": 1e-6,
        "max_position_embeddings": 32768, "rope_theta": 1e6, "hidden_act": "silu",
    },
    "8B": {
        "architectures": ["InternLM2ForCausalLM"], "vocab_size": 92555, "hidden_size": 4096,
        "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5, "max_position_embeddings": 32768, "rope_theta": 1e6, "hidden_act": "silu",
        "rope_scaling": {"type": "dynamic", "factor": 2.0},
    },
}  # fmt: skip
TIME_IDS = {"1B": (151674, 151675), "8B": (92553, 92554)}
TRAINABLE = {  # the 8B has 37,748,736 where q, k, v share one adapter (published_systems.md#distime-training)
    "1B": {"lora": 8_798_208, "embeddings + lm_head": 271_803_392, "head": 3_334_082},
    "8B": {"lora": 41_943_040, "embeddings + lm_head": 758_210_560, "head": 67_670_082},
}


@pytest.fixture(params=TEXT)
def size(request):
    return request.param


@pytest.fixture
def published(golden_dir, size):
    """{official name: tensor on the meta device}"""
    shapes = read(existing(golden_dir / "distime") / "checkpoint_keys")[size]["shapes"]
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def built(size):
    official = {"llm_config": TEXT[size], "vision_config": VISION, "template": "internvl2_5", "dec_reg": 32}
    config = our_config(official, "config.json")
    config.token_ids = dict(zip(("<TIME_STAMP>", "<FRAME_TIME_REF>"), TIME_IDS[size], strict=True))
    with torch.device("meta"):
        return VideoLLM(config), layout_of(official, "config.json")


def shapes(state):
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def test_every_released_tensor_has_its_place_and_shape(size, published):
    model, layout = built(size)
    report = KeyReport.compare(dict(to_ours(published, layout)), model.state_dict())
    assert report.lines() == []


def test_every_tensor_goes_back_to_its_released_name_and_shape(size, published):
    model, layout = built(size)
    config = model.config
    assert our_layout(config) == layout
    again = our_config(official_config(config, "config.json"), "config.json")
    assert again.text_config.to_dict() == config.text_config.to_dict() and again.vision == config.vision
    back = shapes(to_official(model.state_dict(), layout))
    assert back | {BINS: (config.head["reg_max"] + 1,)} == shapes(published)


def test_unmerged_names_fold_into_the_merged_ones(golden_dir, size, published):
    keys = read(existing(golden_dir / "distime") / "checkpoint_keys")[f"{size}_lora"]
    excerpt = {name: torch.empty(shape, device="meta") for name, shape in keys["shapes"].items()}
    merged = shapes(merge_lora(excerpt, 2.0))
    assert merged.items() <= shapes(published).items()
    assert sum("lora_A" in name for name in excerpt) > 0


def test_the_recipe_trains_as_many_parameters_as_published(golden_dir, repository, size):
    model, _ = built(size)
    train = build(Settings, read_yaml(repository / f"configs/distime/internvl2_5_{size.lower()}_lora.yaml")).train
    with torch.device("meta"):
        add_lora(model.language_model, to_dict(train.lora))
    set_trainable(model, train)
    trained = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            trained[part_of(name)] = trained.get(part_of(name), 0) + parameter.numel()
    trained["embeddings + lm_head"] = trained.pop("embeddings") + trained.pop("lm_head")
    assert trained == TRAINABLE[size]
    told = read(existing(golden_dir / "distime") / "checkpoint_keys")[f"{size}_lora"]["trainable"]
    assert (told["embed/head"], told["time"]) == (trained["embeddings + lm_head"], trained["head"])
    assert told["lora"] == (trained["lora"] if size == "1B" else 37_748_736)
