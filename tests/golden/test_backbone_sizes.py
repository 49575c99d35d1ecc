"""Released models at their real sizes, without weights: every name and shape of transformers' class is ours, and back.

Built on the meta device from transformers' own config classes, with the sizes that the hub's config.json files have;
which names the release has (``visual.``, not ``model.visual.``), the golden checkpoints say.
"""

import json
import re

import pytest
import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForImageTextToText

from videollm.checkpoint.released import LAYOUTS
from videollm.checkpoint.tensors import KeyReport
from videollm.model.tying import stored
from videollm.model.videollm import VideoLLM


def qwen2_5(hidden, layers, heads, kv, inner, vocabulary, tied):
    text = {"hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads, "vocab_size": vocabulary,
            "num_key_value_heads": kv, "intermediate_size": inner, "tie_word_embeddings": tied,
            "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}, "rope_theta": 1e6}  # fmt: skip
    vision = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": hidden}
    # As on the hub: the text model's fields stand beside the vision config.
    return {"model_type": "qwen2_5_vl", **text, "vision_config": vision}


def qwen3(hidden, layers, heads, kv, inner, tied, width, depth, vision_inner, taps):
    text = {"hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads, "head_dim": 128,
            "num_key_value_heads": kv, "intermediate_size": inner, "vocab_size": 151936, "rope_theta": 5e6,
            "model_type": "qwen3_vl_text",
            "rope_scaling": {"mrope_interleaved": True, "mrope_section": [24, 20, 20]}}  # fmt: skip
    vision = {"depth": depth, "hidden_size": width, "intermediate_size": vision_inner, "num_heads": 16,
              "out_hidden_size": hidden, "deepstack_visual_indexes": taps, "num_position_embeddings": 2304}  # fmt: skip
    return {"model_type": "qwen3_vl", "text_config": text, "vision_config": vision, "tie_word_embeddings": tied}


def internvl(kind, hidden, layers, heads, kv, inner, vocabulary):
    text = {"model_type": kind, "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads,
            "num_key_value_heads": kv, "intermediate_size": inner, "vocab_size": vocabulary}  # fmt: skip
    text |= {"head_dim": 128} if kind == "qwen3" else {}
    vision = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096,
              "attention_bias": True, "image_size": [448, 448], "patch_size": [14, 14]}  # fmt: skip
    return {"model_type": "internvl", "text_config": text, "vision_config": vision, "downsample_ratio": 0.5,
            "tie_word_embeddings": False}  # fmt: skip


SIZES = {
    "Qwen2.5-VL-3B": (qwen2_5(2048, 36, 16, 2, 11008, 151936, True), 3.75),
    "Qwen2.5-VL-7B": (qwen2_5(3584, 28, 28, 4, 18944, 152064, False), 8.29),
    "Qwen2.5-VL-32B": (qwen2_5(5120, 64, 40, 8, 27648, 152064, False), 33.45),
    "Qwen3-VL-2B": (qwen3(2048, 28, 16, 8, 6144, True, 1024, 24, 4096, [5, 11, 17]), 2.13),
    "Qwen3-VL-4B": (qwen3(2560, 36, 32, 8, 9728, True, 1024, 24, 4096, [5, 11, 17]), 4.44),
    "Qwen3-VL-8B": (qwen3(4096, 36, 32, 8, 12288, False, 1152, 27, 4304, [8, 16, 24]), 8.77),
    "Qwen3-VL-32B": (qwen3(5120, 64, 64, 8, 25600, False, 1152, 27, 4304, [8, 16, 24]), 33.36),
    "InternVL3-1B": (internvl("qwen2", 896, 24, 14, 2, 4864, 151674), 0.94),
    "InternVL3-8B": (internvl("qwen2", 3584, 28, 28, 4, 18944, 151674), 7.94),
    "InternVL3.5-4B": (internvl("qwen3", 2560, 36, 32, 8, 9728, 151936), 4.73),
    "InternVL3.5-8B": (internvl("qwen3", 4096, 36, 32, 8, 12288, 151936), 8.53),
}


@pytest.mark.parametrize("name", SIZES)
def test_every_tensor_of_a_backbone_at_its_real_size_has_its_place_and_goes_back(name, golden_dir):
    fields, billions = SIZES[name]
    converter = LAYOUTS[fields["model_type"]]()
    written = json.loads(json.dumps(fields))
    with torch.device("meta"):
        theirs = AutoModelForImageTextToText.from_config(AutoConfig.for_model(**fields)).state_dict()
        config = converter.our_config({"config.json": written}, name)
        config.head = {"name": "text"}
        model = VideoLLM(config)
    whole = model.state_dict()
    ours = {key: whole[key] for key in stored(whole, config.text_config)}
    found = converter.to_ours(theirs)
    assert KeyReport.compare({key: found[key] for key in stored(found, config.text_config)}, ours).lines() == []
    assert sum(p.numel() for p in model.parameters()) / 1e9 == pytest.approx(billions, abs=0.01)
    back = converter.to_published(ours, converter.spelling(theirs))
    assert set(back) <= set(theirs) and len(back) == len(ours)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl", "internvl3", "internvl3_5"])
def test_released_names_of_a_backbone_are_those_of_its_golden_checkpoint(family, golden_dir):
    folder = golden_dir / "backbones" / family
    kind = json.loads((folder / "config.json").read_text())["model_type"]
    converter = LAYOUTS[kind]()
    with safe_open(folder / "model.safetensors", "pt") as file:
        names = list(file.keys())
    outlines = dict.fromkeys(names, torch.empty(0, device="meta"))
    ours = converter.to_ours(outlines)
    assert set(converter.to_published(ours, converter.spelling(names))) == set(names)
    assert all(re.match(r"(vision_tower|connector|language_model)\.", name) for name in ours)
