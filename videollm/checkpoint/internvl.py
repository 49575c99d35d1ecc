"""InternVL in the layout of OpenGVLab's own code (``internvl_chat``): names, fused projections and fields, both ways.

In: tensors by name, lazy or on the meta device, and the JSON mapping of a config. Out: the same of the other side. What
that code can be told and ours cannot is refused by name. It reads no file; heads with published checkpoints in this
layout bring rows of names of their own.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, InternVLVisionConfig, PretrainedConfig

from videollm.checkpoint.tensors import LazyTensors, NameTable, need
from videollm.model.towers import build_config
from videollm.model.videollm import VideoLLMConfig

_VIT, _OUR_VIT = "vision_model.encoder.layers.{i}", "vision_tower.encoder.layer.{i}"
SHARED = [
    ("vision_model.embeddings.class_embedding", "vision_tower.embeddings.cls_token"),
    ("vision_model.embeddings.position_embedding", "vision_tower.embeddings.position_embeddings"),
    ("vision_model.embeddings.patch_embedding.{x}", "vision_tower.embeddings.patch_embeddings.projection.{x}"),
    *((f"{_VIT}.attn.{p}.{{x}}", f"{_OUR_VIT}.attention.{p}_proj.{{x}}") for p in "qkv"),
    *((f"{_VIT}.attn.{p}_norm.{{x}}", f"{_OUR_VIT}.attention.{p}_norm.{{x}}") for p in "qk"),
    (f"{_VIT}.attn.proj.{{x}}", f"{_OUR_VIT}.attention.projection_layer.{{x}}"),
    (f"{_VIT}.norm1.{{x}}", f"{_OUR_VIT}.layernorm_before.{{x}}"),
    (f"{_VIT}.norm2.{{x}}", f"{_OUR_VIT}.layernorm_after.{{x}}"),
    *((f"{_VIT}.ls{n}", f"{_OUR_VIT}.lambda_{n}") for n in (1, 2)),
    (f"{_VIT}.mlp.{{x}}", f"{_OUR_VIT}.mlp.{{x}}"),
    ("mlp1.0.{x}", "connector.layer_norm.{x}"),
    ("mlp1.1.{x}", "connector.linear_1.{x}"),
    ("mlp1.3.{x}", "connector.linear_2.{x}"),
]
QWEN = NameTable([*SHARED, ("language_model.{x}", "language_model.{x}")])
FUSED = re.compile(r"(?P<stem>vision_model\..+\.attn\.)qkv\.(?P<end>\w+)")
SPLIT = re.compile(r"(?P<stem>vision_model\..+\.attn\.)(?P<part>[qkv])\.(?P<end>\w+)")


def to_ours(state: Mapping[str, Tensor], table: NameTable = QWEN) -> LazyTensors:
    """The layout's tensors -> ours. A name that means nothing to us keeps its spelling."""
    split = taken_apart(state, FUSED, lambda fused: fused.chunk(3))
    return LazyTensors.of(split, {table.ours(name) or name: name for name in split})


def to_released(state: Mapping[str, Tensor], table: NameTable = QWEN) -> LazyTensors:
    """Our tensors -> the layout's; the inverse of ``to_ours``."""
    ours = {table.official(name) or name: name for name in state}
    return put_together(LazyTensors.of(state, ours), SPLIT, torch.cat)


def taken_apart(
    state: Mapping[str, Tensor], fused: re.Pattern, split: Callable[[Tensor], Sequence[Tensor]]
) -> LazyTensors:
    """``state`` with three tensors, ``q``, ``k`` and ``v``, in place of each whose name is ``fused``."""
    makers = {}
    for name in state:
        if match := fused.fullmatch(name):
            for p, part in enumerate("qkv"):
                makers[f"{match['stem']}{part}.{match['end']}"] = lambda name=name, p=p: split(state[name])[p]
        else:
            makers[name] = lambda name=name: state[name]
    return LazyTensors(makers)


def put_together(state: Mapping[str, Tensor], split: re.Pattern, join: Callable[[list[Tensor]], Tensor]) -> LazyTensors:
    """The inverse of ``taken_apart``; ``split`` are names of ``q``, ``k`` and ``v``."""
    makers = {}
    for name in state:
        match = split.fullmatch(name)
        if match is None:
            makers[name] = lambda name=name: state[name]
        elif match["part"] == "q":
            parts = [f"{match['stem']}{part}.{match['end']}" for part in "qkv"]
            makers[f"{match['stem']}qkv.{match['end']}"] = lambda parts=parts: join([state[part] for part in parts])
    return LazyTensors(makers)


# ---- fields ----------------------------------------------------------------------------------------------------------

CHAT_TEMPLATE = "internvl2_5"
ARCHITECTURES = {"Qwen2ForCausalLM": "qwen2", "Qwen3ForCausalLM": "qwen3"}
MAX_LENGTH = 8192  # of the released scripts; no config holds it
SAME_TEXT = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "rms_norm_eps", "max_position_embeddings", "hidden_act",
)  # fmt: skip
SAME_VISION = (
    "image_size", "patch_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "norm_type", "hidden_act", "layer_norm_eps",
)  # fmt: skip
FIXED: dict[str, Any] = {"select_layer": -1, "ps_version": "v2", "template": CHAT_TEMPLATE}
IMAGE = {"token": "<IMG_CONTEXT>", "start": "<img>", "end": "</img>", "after": "\n"}


def value(fields: dict, key: str, where: str) -> Any:
    """``fields[key]``; CheckpointError where it is missing."""
    need(key in fields, f"{where}: no {key}; fetch the file again")
    return fields[key]


def text_config(text: dict, native: str, where: str) -> PretrainedConfig:
    """The language model's config in transformers' own class ``native``; InternLM2 is a Llama."""
    fields = {key: value(text, key, where) for key in SAME_TEXT}
    scaling = dict(text.get("rope_scaling") or {})
    kind = scaling.pop("type", scaling.pop("rope_type", "default"))
    rope = {"rope_type": kind, "rope_theta": value(text, "rope_theta", where), **scaling}
    ids = {key: text.get(key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    ids |= {key: text[key] for key in ("head_dim", "attention_bias") if key in text and native == "qwen3"}
    one = bool(text.get("tie_word_embeddings"))
    return AutoConfig.for_model(native, **fields, **ids, rope_parameters=rope, tie_word_embeddings=one)


def tower_fields(vision: dict, where: str) -> dict:
    """The ``vision`` mapping of our config from the layout's ``vision_config``."""
    bias, norm = value(vision, "qkv_bias", where), value(vision, "qk_normalization", where)
    same = {key: value(vision, key, where) for key in SAME_VISION}
    return {"type": "internvl", **same, "attention_bias": bias, "use_qk_norm": norm}


def chat_tower(fields: dict) -> dict:
    """The layout's ``vision_config`` of the ``vision`` mapping of our config, which may leave defaults out."""
    tower = build_config(InternVLVisionConfig, {k: v for k, v in fields.items() if k != "type"}, "model.vision")
    same = {key: getattr(tower, key) for key in SAME_VISION}
    same |= {key: value[0] for key, value in same.items() if isinstance(value, list | tuple)}  # squares
    flags = {"qkv_bias": tower.attention_bias, "qk_normalization": tower.use_qk_norm}
    return {"architectures": ["InternVisionModel"], "model_type": "intern_vit_6b", **same, **flags}


def our_config(fields: dict, native: str, where: str, system_message: str) -> VideoLLMConfig:
    """Our config, without head and sampler, for the ``fields`` of config.json; ``native`` is the language model's type.

    Raises:
        CheckpointError: a field is missing, or has a value that our model has no place for.
    """
    for key, fixed in FIXED.items():
        own = fields.get(key, fixed)
        need(own == fixed, f"{where}: {key} is {own!r}; what is read here has {fixed!r}")
    usual = fields.get("system_message") in (None, system_message)
    need(usual, f"{where}: a system_message of its own; the template's is used here, so take it out")
    text, vision = fields["llm_config"], fields["vision_config"]
    usual = not (text.get("bias") or text.get("use_sliding_window"))
    need(usual, f"{where}: llm_config has bias or use_sliding_window set; no released model has")
    size = value(vision, "image_size", f"{where}: vision_config")
    forced = fields.get("force_image_size", size)
    differ = f"force_image_size {forced} and vision_config.image_size {size} differ"
    need(forced == size, f"{where}: {differ}; the tower has positions for one size only: make them equal")
    return VideoLLMConfig(
        text_config=text_config(text, native, f"{where}: llm_config"),
        vision=tower_fields(vision, f"{where}: vision_config"),
        connector={"type": "mlp", "downsample": fields.get("downsample_ratio", 0.5)},
        template=CHAT_TEMPLATE, visual_tokens=IMAGE, preprocess={"kind": "internvl", "size": size},
        max_tiles=fields.get("max_dynamic_patch", 1) if fields.get("dynamic_image_size") else 1,
        context_length=min(MAX_LENGTH, value(text, "max_position_embeddings", f"{where}: llm_config")),
        precision={"bfloat16": "bf16"}.get(fields.get("torch_dtype") or fields.get("dtype")),
    )  # fmt: skip


def chat_config(config: VideoLLMConfig, llm: dict) -> dict:
    """config.json of one of our models in this layout; ``llm``: what it says of the language model beside the usual."""
    text = config.text_config
    rope = dict(text.rope_parameters)
    kind, theta = rope.pop("rope_type"), rope.pop("rope_theta")
    tower = chat_tower(config.vision)
    llm_config = {
        **llm, **{key: getattr(text, key) for key in (*SAME_TEXT, "bos_token_id", "eos_token_id", "pad_token_id")},
        "rope_theta": theta, "rope_scaling": None if kind == "default" else {"type": kind, **rope},
        "tie_word_embeddings": False,
    }  # fmt: skip
    return {
        "architectures": ["InternVLChatModel"], "model_type": "internvl_chat", "llm_config": llm_config,
        "vision_config": tower, **FIXED, "downsample_ratio": config.connector.get("downsample", 0.5),
        "force_image_size": tower["image_size"], "use_llm_lora": 0, "use_backbone_lora": 0,
        "pad2square": False, "dynamic_image_size": True, "use_thumbnail": True,
        "min_dynamic_patch": 1, "max_dynamic_patch": config.max_tiles,
    }  # fmt: skip
