"""The fields of an official config.json (InternVL2.5, DisTime) -> our model's config, and back.

In: the JSON mapping of either side. Out: the other side's. What the official code can be told and ours cannot is
refused by name, never dropped. It reads no file and knows no weights.
"""

from typing import Any

from transformers import AutoConfig, InternVLVisionConfig, PretrainedConfig

from distime.names import Layout
from videollm.batches.templates import TEMPLATES
from videollm.checkpoint import CheckpointError, need
from videollm.model.towers import build_config
from videollm.model.videollm import VideoLLMConfig

LANGUAGE = {"Qwen2ForCausalLM": "qwen2", "InternLM2ForCausalLM": "internlm2"}  # architecture -> Layout.llm
NATIVE = {"qwen2": "qwen2", "internlm2": "llama"}  # Layout.llm -> transformers' model_type
TEMPLATE = "internvl2_5"
NUM_FRAMES, MAX_LENGTH = 16, 8192  # of the released scripts (spec §3, §2); no config holds them
SAME_TEXT = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "rms_norm_eps", "max_position_embeddings", "hidden_act",
)  # fmt: skip
SAME_VISION = (
    "image_size", "patch_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "norm_type", "hidden_act", "layer_norm_eps",
)  # fmt: skip
FIXED: dict[str, Any] = {"select_layer": -1, "ps_version": "v2", "template": TEMPLATE}


def field(config: dict, key: str, where: str) -> Any:
    """``config[key]``; CheckpointError where it is missing."""
    need(key in config, f"{where}: no {key}; fetch the file again")
    return config[key]


def layout_of(official: dict, where: str) -> Layout:
    """Which language model an official config describes.

    Raises:
        CheckpointError: another architecture than InternVL's chat model with Qwen2 or InternLM2.
    """
    foreign = official.get("model_type") != VideoLLMConfig.model_type
    need(foreign, f"{where}: already a checkpoint of this project; load it, or turn it back with --back")
    if not isinstance(official.get("llm_config"), dict) or not isinstance(official.get("vision_config"), dict):
        native = " (the -hf layout: give the one without -hf)" if "text_config" in official else ""
        raise CheckpointError(
            f"{where}: model_type {official.get('model_type')!r} without llm_config and vision_config is neither "
            f"InternVL2.5 nor DisTime{native}; give OpenGVLab/InternVL2_5-1B or -8B, or a DisTime checkpoint"
        )
    text = official["llm_config"]
    name = (text.get("architectures") or [None])[0]
    need(name in LANGUAGE, f"{where}: the language model is {name}; this converter reads {' and '.join(LANGUAGE)}")
    heads = field(text, "num_attention_heads", f"{where}: llm_config")
    return Layout(LANGUAGE[name], heads, text.get("num_key_value_heads", heads))


def our_layout(config: VideoLLMConfig) -> Layout:
    """The layout that one of our models has on the official side."""
    text = config.text_config
    llm = next(name for name, native in NATIVE.items() if native == text.model_type)
    return Layout(llm, text.num_attention_heads, text.num_key_value_heads)


def our_config(official: dict, where: str) -> VideoLLMConfig:
    """Our config, without token ids. ``time head`` options are the official ones, or the released models' (spec §6).

    Raises:
        CheckpointError: a field is missing, or has a value that our model has no place for.
    """
    layout = layout_of(official, where)
    for key, value in FIXED.items():
        own = official.get(key, value)
        need(own == value, f"{where}: {key} is {own!r}; InternVL2.5 and DisTime have {value!r}")
    usual = official.get("system_message") in (None, TEMPLATES[TEMPLATE].system_message)
    need(usual, f"{where}: a system_message of its own; the template's is used here, so take it out")
    text = official["llm_config"]
    usual = not (text.get("bias") or text.get("use_sliding_window"))
    need(usual, f"{where}: llm_config has bias or use_sliding_window set; no released model has")
    vision = official["vision_config"]
    size = field(vision, "image_size", f"{where}: vision_config")
    forced = official.get("force_image_size", size)
    differ = f"force_image_size {forced} and vision_config.image_size {size} differ"
    need(forced == size, f"{where}: {differ}; the tower has positions for one size only: make them equal")
    head = {"reg_max": "dec_reg", "sigma": "enc_sigma", "num_layers": "layer_num"}
    return VideoLLMConfig(
        text_config=text_config(text, layout, f"{where}: llm_config"),
        vision=tower_fields(vision, f"{where}: vision_config"),
        connector={"type": "mlp", "downsample": official.get("downsample_ratio", 0.5)},
        head={"name": "distime"} | {ours: official[key] for ours, key in head.items() if key in official},
        template=TEMPLATE,
        visual_tokens={"token": "<IMG_CONTEXT>", "start": "<img>", "end": "</img>", "after": "\n"},
        preprocess={"kind": "internvl", "size": size},
        sampler={"rule": "segments", "num_frames": NUM_FRAMES, "pick": "midpoint", "min_duration_s": 1.0},
        max_tiles=official.get("max_dynamic_patch", 1) if official.get("dynamic_image_size") else 1,
        context_length=min(MAX_LENGTH, field(text, "max_position_embeddings", f"{where}: llm_config")),
        precision={"bfloat16": "bf16"}.get(official.get("torch_dtype")),
    )


def text_config(text: dict, layout: Layout, where: str) -> PretrainedConfig:
    """The language model's config in transformers' own class; InternLM2 is a Llama."""
    fields = {key: field(text, key, where) for key in SAME_TEXT}
    scaling = dict(text.get("rope_scaling") or {})
    kind = scaling.pop("type", scaling.pop("rope_type", "default"))
    rope = {"rope_type": kind, "rope_theta": field(text, "rope_theta", where), **scaling}
    ids = {key: text.get(key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    one = bool(text.get("tie_word_embeddings"))
    return AutoConfig.for_model(NATIVE[layout.llm], **fields, **ids, rope_parameters=rope, tie_word_embeddings=one)


def tower_fields(vision: dict, where: str) -> dict:
    """The ``vision`` mapping of our config from the official ``vision_config``."""
    bias, norm = field(vision, "qkv_bias", where), field(vision, "qk_normalization", where)
    same = {key: field(vision, key, where) for key in SAME_VISION}
    return {"type": "internvl", **same, "attention_bias": bias, "use_qk_norm": norm}


def official_tower(fields: dict) -> dict:
    """The official ``vision_config`` of the ``vision`` mapping of our config, which may leave defaults out."""
    tower = build_config(InternVLVisionConfig, {k: v for k, v in fields.items() if k != "type"}, "model.vision")
    same = {key: getattr(tower, key) for key in SAME_VISION}
    same |= {key: value[0] for key, value in same.items() if isinstance(value, list | tuple)}  # squares
    flags = {"qkv_bias": tower.attention_bias, "qk_normalization": tower.use_qk_norm}
    return {"architectures": ["InternVisionModel"], "model_type": "intern_vit_6b", **same, **flags}


def official_config(config: VideoLLMConfig, where: str) -> dict:
    """The official config.json of one of our DisTime models.

    Raises:
        CheckpointError: a model that the official code cannot be (another tower, connector, head or language model).
    """
    text = config.text_config
    parts = (config.vision.get("type"), config.connector.get("type"), config.head.get("name"), config.template)
    if parts != ("internvl", "mlp", "distime", TEMPLATE) or text.model_type not in NATIVE.values():
        raise CheckpointError(
            f"{where}: made of {', '.join(map(str, (*parts, text.model_type)))}; an official layout has only what is "
            f"made of internvl tower, mlp connector, distime head and {TEMPLATE} template on qwen2 or llama"
        )
    need(not config.lora, f"{where}: holds adapters that are not merged; python -m videollm.checkpoint SRC DST")
    llm = our_layout(config).llm
    rope = dict(text.rope_parameters)
    kind, theta = rope.pop("rope_type"), rope.pop("rope_theta")
    architecture = next(name for name, value in LANGUAGE.items() if value == llm)
    tower = official_tower(config.vision)
    own = {"bias": False} if llm == "internlm2" else {"use_sliding_window": False}
    llm_config = {
        "architectures": [architecture], "model_type": llm,
        **{key: getattr(text, key) for key in (*SAME_TEXT, "bos_token_id", "eos_token_id", "pad_token_id")},
        "rope_theta": theta, "rope_scaling": None if kind == "default" else {"type": kind, **rope},
        "tie_word_embeddings": False, **own,
    }  # fmt: skip
    head = config.head
    return {
        "architectures": ["InternVLChatModel"], "model_type": "internvl_chat", "llm_config": llm_config,
        "vision_config": tower, **FIXED, "downsample_ratio": config.connector.get("downsample", 0.5),
        "force_image_size": tower["image_size"],
        "dec_reg": head.get("reg_max", 32), "enc_sigma": head.get("sigma", 1.0), "layer_num": head.get("num_layers", 3),
        "use_llm_lora": 0, "use_backbone_lora": 0,
        "pad2square": False, "dynamic_image_size": True, "use_thumbnail": True,
        "min_dynamic_patch": 1, "max_dynamic_patch": config.max_tiles,
    }  # fmt: skip
