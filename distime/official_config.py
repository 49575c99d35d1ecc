"""The fields of an official config.json (InternVL2.5, DisTime) -> our model's config, and back.

In: the JSON mapping of either side. Out: the other side's; what all of InternVL has stands in
videollm/checkpoint/internvl.py. What the official code can be told and ours cannot is refused by name, never dropped.
It reads no file and knows no weights.
"""

from distime.names import Layout
from videollm.batches.templates import TEMPLATES
from videollm.checkpoint import CheckpointError, internvl, need
from videollm.model.videollm import VideoLLMConfig

LANGUAGE = {"Qwen2ForCausalLM": "qwen2", "InternLM2ForCausalLM": "internlm2"}  # architecture -> Layout.llm
NATIVE = {"qwen2": "qwen2", "internlm2": "llama"}  # Layout.llm -> transformers' model_type
NUM_FRAMES = 16  # of the released scripts; no config holds it
HEAD = {"reg_max": ("dec_reg", 32), "sigma": ("enc_sigma", 1.0), "num_layers": ("layer_num", 3)}  # ours: theirs, usual


def layout_of(official: dict, where: str) -> Layout:
    """Which language model an official config describes.

    Raises:
        CheckpointError: another architecture than InternVL's chat model with Qwen2 or InternLM2.
    """
    foreign = official.get("model_type") != VideoLLMConfig.model_type
    need(foreign, f"{where}: already a checkpoint of this project; load it, or turn it back with --back")
    if not isinstance(official.get("llm_config"), dict) or not isinstance(official.get("vision_config"), dict):
        native = (
            " (the -hf layout: give the one without -hf, or use videollm convert)" if "text_config" in official else ""
        )
        raise CheckpointError(
            f"{where}: model_type {official.get('model_type')!r} without llm_config and vision_config is neither "
            f"InternVL2.5 nor DisTime{native}; give OpenGVLab/InternVL2_5-1B or -8B, or a DisTime checkpoint"
        )
    text = official["llm_config"]
    name = (text.get("architectures") or [None])[0]
    need(name in LANGUAGE, f"{where}: the language model is {name}; this converter reads {' and '.join(LANGUAGE)}")
    heads = internvl.value(text, "num_attention_heads", f"{where}: llm_config")
    return Layout(LANGUAGE[name], heads, text.get("num_key_value_heads", heads))


def our_layout(config: VideoLLMConfig) -> Layout:
    """The layout that one of our models has on the official side."""
    text = config.text_config
    llm = next(name for name, native in NATIVE.items() if native == text.model_type)
    return Layout(llm, text.num_attention_heads, text.num_key_value_heads)


def our_config(official: dict, where: str) -> VideoLLMConfig:
    """Our config, without token ids. ``time head`` options are the official ones, or the released models'.

    Raises:
        CheckpointError: a field is missing, or has a value that our model has no place for.
    """
    native = NATIVE[layout_of(official, where).llm]
    config = internvl.our_config(official, native, where, TEMPLATES[internvl.CHAT_TEMPLATE].system_message)
    config.head = {"name": "distime"} | {ours: official[name] for ours, (name, _) in HEAD.items() if name in official}
    config.sampler = {"rule": "segments", "num_frames": NUM_FRAMES, "pick": "midpoint", "min_duration_s": 1.0}
    return config


def official_config(config: VideoLLMConfig, where: str) -> dict:
    """The official config.json of one of our DisTime models.

    Raises:
        CheckpointError: a model that the official code cannot be (another tower, connector, head or language model).
    """
    head, kind = config.head, config.text_config.model_type
    parts = (config.vision.get("type"), config.connector.get("type"), head.get("name"), config.template)
    if parts != ("internvl", "mlp", "distime", internvl.CHAT_TEMPLATE) or kind not in NATIVE.values():
        raise CheckpointError(
            f"{where}: made of {', '.join(map(str, (*parts, kind)))}; an official layout has only what is made of "
            f"internvl tower, mlp connector, distime head and {internvl.CHAT_TEMPLATE} template on qwen2 or llama"
        )
    need(not config.lora, f"{where}: holds adapters that are not merged; videollm checkpoint SRC DST")
    llm = our_layout(config).llm
    own = {"bias": False} if llm == "internlm2" else {"use_sliding_window": False}
    architecture = next(name for name, value in LANGUAGE.items() if value == llm)
    fields = internvl.chat_config(config, {"architectures": [architecture], "model_type": llm, **own})
    return fields | {name: head.get(ours, usual) for ours, (name, usual) in HEAD.items()}
