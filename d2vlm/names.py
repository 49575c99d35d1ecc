"""Names, shapes and settings of published E.T. Chat and D2VLM checkpoints -> ours, and back.

In: a mapping official name -> tensor (lazy, or on the meta device) and the fields of an official config.json. Out: the
same for one of our models. It reads and writes no file; that is ``convert.py``.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import AutoConfig, PretrainedConfig

from d2vlm.evidence import EVIDENCE, EVIDENCE_END
from videollm.batches.templates import TEMPLATES
from videollm.checkpoint.tensors import LazyTensors, NameTable
from videollm.common.config import ConfigError, need
from videollm.model.videollm import VideoLLMConfig

FRAME = "<frame>"  # our placeholder of a frame's token; the published code inserts frames without one
TOWER, QFORMER = "model.vision_tower.vision_tower.", "model.qformer_bert.bert."
OUR_BLOCK, OUR_LAYER = "vision_tower.encoder.layers.{i}.", "connector.qformer.encoder.layer.{i}."
NAMES = NameTable(
    [
        (TOWER + "cls_token", "vision_tower.embeddings.class_embedding"),
        (TOWER + "pos_embed", "vision_tower.embeddings.position_embedding"),
        (TOWER + "patch_embed.proj.{x}", "vision_tower.embeddings.patch_embedding.{x}"),
        *((TOWER + f"blocks.{{i}}.norm{n}.{{x}}", OUR_BLOCK + f"layer_norm{n}.{{x}}") for n in (1, 2)),
        (TOWER + "blocks.{i}.attn.qkv.weight", OUR_BLOCK + "self_attn.qkv.weight"),
        (TOWER + "blocks.{i}.attn.proj.{x}", OUR_BLOCK + "self_attn.projection.{x}"),
        (TOWER + "blocks.{i}.mlp.{x}", OUR_BLOCK + "mlp.{x}"),
        ("model.qformer_query", "connector.query_tokens"),
        ("model.qformer_ln.{x}", "connector.cross_norm.{x}"),
        ("model.qformer_proj.{x}", "connector.state_proj.{x}"),
        ("model.qformer_q_proj.{x}", "connector.attend_query.{x}"),
        ("model.qformer_k_proj.{x}", "connector.attend_key.{x}"),
        ("model.qformer_v_proj.{x}", "connector.token_proj.{x}"),
        (QFORMER + "embeddings.LayerNorm.{x}", "connector.qformer.embeddings.layernorm.{x}"),
        (QFORMER + "encoder.layer.{i}.attention.self.{x}", OUR_LAYER + "attention.attention.{x}"),
        (QFORMER + "encoder.layer.{i}.crossattention.self.{x}", OUR_LAYER + "crossattention.attention.{x}"),
        (QFORMER + "{x}", "connector.qformer.{x}"),
        *((f"model.{part}.{{x}}", f"language_model.model.{part}.{{x}}") for part in ("embed_tokens", "layers", "norm")),
        ("lm_head.{x}", "language_model.lm_head.{x}"),
        *((f"{part}_head.{{x}}", f"head.{part}_head.{{x}}") for part in ("frm", "evi")),
    ]
)
KEY_BIAS = NameTable([(TOWER + "blocks.{i}.attn.q_bias", OUR_BLOCK + "self_attn.qkv.bias")])
POSITIONS = QFORMER + "embeddings.position_ids"  # a constant


def ours(state: Mapping[str, Tensor]) -> LazyTensors:
    """Official tensors under our names; a name of no part of the model keeps itself.

    EVA has no bias of the keys (q_bias | 0 | v_bias); the constant ``position_ids`` is left out.
    """
    makers = {}
    for name in state:
        pair = (name, name.replace(".q_bias", ".v_bias"))
        if name == POSITIONS or (name.endswith(".v_bias") and name.replace(".v_bias", ".q_bias") in state):
            continue
        if (fused := KEY_BIAS.ours(name)) and pair[1] in state:
            makers[fused] = lambda pair=pair: fused_bias(*(state[n] for n in pair))
        else:
            makers[NAMES.ours(name) or name] = lambda name=name: state[name]
    return LazyTensors(makers)


def fused_bias(query: Tensor, value: Tensor) -> Tensor:
    """Bias of the fused query, key and value. [w], [w] -> [3w]."""
    return torch.cat([query, torch.zeros_like(query), value])


def official(state: Mapping[str, Tensor]) -> LazyTensors:
    """Our tensors under the official names, ``position_ids`` included; the inverse of ``ours``."""
    makers = {}
    for name in state:
        if bias := KEY_BIAS.official(name):
            makers[bias] = lambda name=name: state[name].chunk(3)[0]
            makers[bias.replace(".q_bias", ".v_bias")] = lambda name=name: state[name].chunk(3)[2]
        else:
            makers[NAMES.official(name) or name] = lambda name=name: state[name]
    table = "connector.qformer.embeddings.position_embeddings.weight"
    if table in state:
        makers[POSITIONS] = lambda: torch.arange(len(state[table]), device=state[table].device)[None]
    return LazyTensors(makers)


# ---- settings --------------------------------------------------------------------------------------------------------

Shapes = Mapping[str, tuple[int, ...]]  # of tensors, by official name
FIXED = {"mm_projector": "qformer", "vision_tower": "eva_vit", "vision_output_token": "patch", "use_time_tag": False}
EVA_HEAD, BERT_HEAD = 88, 64  # width of one attention head; the number of heads stands in no shape
GENERIC = {*PretrainedConfig().to_dict()} - {"tie_word_embeddings", "bos_token_id", "eos_token_id", "pad_token_id"}


def is_base(fields: dict) -> bool:
    """Whether an official config is E.T. Chat's: a base to train from, without evidence head."""
    return fields.get("arch_module", "etchat_arch") == "etchat_arch"


def our_config(
    fields: dict, shapes: Shapes, token_ids: dict[str, int], vision: dict | None = None, connector: dict | None = None
) -> VideoLLMConfig:
    """Our config for an official one.

    Args:
        fields: of the official config.json.
        shapes: of the official tensors, by official name; they tell the sizes of the tower and the Q-Former.
        token_ids: of ``<evi>`` and ``</evi>`` in the tokenizer.
        vision: fields laid over those of the tower.
        connector: the same for the Q-Former.

    Raises:
        ConfigError: another architecture than E.T. Chat's, or one of its variants that was never released.
    """
    for key, value in FIXED.items():
        own = fields.get(key, value)
        need(own == value, f"config.json: {key} is {own!r}; only {value!r}, as released, can be converted")
    kind = fields["model_type"].removeprefix("etchat_")
    template, crop = fields.get("conv_type", kind), fields.get("vision_processor", "clip_center_224")
    need(template in TEMPLATES, f"config.json: conv_type is {template!r}; there are {', '.join(TEMPLATES)}")
    processor, _, size = crop.rpartition("_")
    known = processor in ("clip_center", "clip_random") and size.isdigit()
    need(known, f"config.json: vision_processor is {crop!r}, not clip_center_SIZE")
    head = {"name": "d2vlm", "alpha": float(fields.get("alpha", 2.0))}
    if not fields.get("consistency_loss", True):
        head["consistency_weight"] = 0.0
    text = text_config(kind, fields)
    vision, connector = tower_fields(shapes) | (vision or {}), qformer_fields(shapes) | (connector or {})
    for part, own in (("tower", vision), ("Q-Former", connector)):
        known = own["num_attention_heads"] is not None
        need(known, f"the {part} is {own['hidden_size']} wide, unlike any released one; is it E.T. Chat's?")
    return VideoLLMConfig(
        text_config=text, vision=vision, connector=connector, head=head, template=template, token_ids=token_ids,
        visual_tokens={"token": FRAME, "start": "", "end": "", "after": "\n"},
        bidirectional_frames=bool(fields.get("bi_attention", True)),
        preprocess={"kind": "clip", "size": int(size)}, sampler={"rule": "fps", "fps": 1.0},
        context_length=min(4096, text.max_position_embeddings),
        precision={"bfloat16": "bf16"}.get(fields.get("torch_dtype")),
    )  # fmt: skip


def text_config(kind: str, fields: dict) -> PretrainedConfig:
    """The language model's own config among the fields of an official one."""
    try:
        known = set(AutoConfig.for_model(kind).to_dict()) - GENERIC | {"rope_theta", "rope_scaling"}
    except ValueError:
        raise ConfigError(f"config.json: model_type is {fields['model_type']!r}, not etchat_phi3 or similar") from None
    own = {key: value for key, value in fields.items() if key in known and value is not None}
    return AutoConfig.for_model(kind, **own)


def size(shapes: Shapes, name: str) -> tuple[int, ...]:
    """The shape of tensor ``name``; ConfigError where there is none, since no model can be made without it."""
    need(name in shapes, f"the checkpoint has no {name}; is it complete, and an E.T. Chat or D2VLM model?")
    return shapes[name]


def tower_fields(shapes: Shapes) -> dict:
    """Fields of the tower ``instructblip`` from the shapes of EVA's weights."""
    width, _, patch, _ = size(shapes, TOWER + "patch_embed.proj.weight")
    side = round((size(shapes, TOWER + "pos_embed")[1] - 1) ** 0.5)
    return {
        "type": "instructblip", "image_size": side * patch, "patch_size": patch, "hidden_size": width,
        "num_hidden_layers": count(shapes, TOWER + "blocks."),
        "num_attention_heads": None if width % EVA_HEAD else width // EVA_HEAD,
        "intermediate_size": size(shapes, TOWER + "blocks.0.mlp.fc1.weight")[0],
    }  # fmt: skip


def qformer_fields(shapes: Shapes) -> dict:
    """Fields of the connector ``qformer`` from the shapes of its weights."""
    _, queries, width = size(shapes, "model.qformer_query")
    return {
        "type": "qformer", "num_query_tokens": queries, "hidden_size": width,
        "num_hidden_layers": count(shapes, QFORMER + "encoder.layer."),
        "num_attention_heads": None if width % BERT_HEAD else width // BERT_HEAD,
        "intermediate_size": size(shapes, QFORMER + "encoder.layer.0.intermediate.dense.weight")[0],
        "vocab_size": size(shapes, QFORMER + "embeddings.word_embeddings.weight")[0],
        "max_position_embeddings": size(shapes, QFORMER + "embeddings.position_embeddings.weight")[0],
    }  # fmt: skip


def count(names: Mapping[str, object], prefix: str) -> int:
    """Number of layers whose names begin with ``prefix``."""
    return len({name.removeprefix(prefix).split(".")[0] for name in names if name.startswith(prefix)})


PUBLISHED = {  # what the published code can do in one way only; a key that is left out is our default, the same
    "head": {"name": "d2vlm", "inject_layer": 6, "query_layer": -2, "grounding_weight": 10.0, "keep_ratio": 0.6},
    "connector": {"type": "qformer"},
    "vision": {"type": "instructblip"},
    "preprocess": {"kind": "clip"},
    "sampler": {"rule": "fps", "fps": 1.0},
}


def official_fields(config: VideoLLMConfig) -> dict:
    """The fields of an official config.json for one of our models; the inverse of ``our_config``.

    Raises:
        ConfigError: the model has an option that the published code has not.
    """
    for part, fixed in PUBLISHED.items():
        for key, value in fixed.items():
            own = getattr(config, part).get(key, value)
            need(own == value, f"config.json: {part}.{key} is {own!r}; the published code has {value!r} only")
    text = config.text_config.to_dict()
    rope = text.pop("rope_parameters", None) or {}
    head = {"alpha": 2.0, "consistency_weight": 10.0, **config.head}
    return {
        **{key: value for key, value in text.items() if key not in GENERIC},
        "rope_theta": rope.get("rope_theta", 10000.0),
        "model_type": f"etchat_{config.text_config.model_type}",
        "language_model": config.text_config.model_type, "arch_module": "d2vlm_arch", "conv_type": config.template,
        "vision_processor": f"clip_center_{config.preprocess['size']}", "vision_output_layer": -2,
        "bi_attention": config.bidirectional_frames, "use_evidence": True, "use_matching": False,
        "consistency_loss": head["consistency_weight"] > 0, "alpha": head["alpha"],
        "evidence_token_id": config.token_ids[EVIDENCE], "evidence_end_token_id": config.token_ids[EVIDENCE_END],
        **FIXED,
    }  # fmt: skip
