"""Official weight names of the vision side -> ours: what a converter has to know, and nothing else.

Each function takes a whole official state dict and gives the part it is about, named as ``build_tower`` or
``build_connector`` want it. Tables: golden/d2vlm/README.md ("Parameter table") and DISTIME.md section 10.
"""

import re

import torch
from torch import Tensor

D2VLM_TOWER = [
    (r"^cls_token$", "embeddings.class_embedding"),
    (r"^pos_embed$", "embeddings.position_embedding"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embedding."),
    (r"^blocks\.", "encoder.layers."),
    (r"\.norm([12])\.", r".layer_norm\1."),
    (r"\.attn\.qkv\.", ".self_attn.qkv."),
    (r"\.attn\.proj\.", ".self_attn.projection."),
]
D2VLM_CONNECTOR = [
    (r"^qformer_query$", "query_tokens"),
    (r"^qformer_ln\.", "cross_norm."),
    (r"^qformer_proj\.", "state_proj."),
    (r"^qformer_q_proj\.", "attend_query."),
    (r"^qformer_k_proj\.", "attend_key."),
    (r"^qformer_v_proj\.", "token_proj."),
    (r"^qformer_bert\.bert\.", "qformer."),
    (r"\.embeddings\.LayerNorm\.", ".embeddings.layernorm."),
    (r"attention\.self\.", "attention.attention."),
]
DISTIME_TOWER = [
    (r"^embeddings\.class_embedding$", "embeddings.cls_token"),
    (r"^embeddings\.position_embedding$", "embeddings.position_embeddings"),
    (r"^embeddings\.patch_embedding\.", "embeddings.patch_embeddings.projection."),
    (r"^encoder\.layers\.", "encoder.layer."),
    (r"\.attn\.([qk])_norm\.", r".attention.\1_norm."),
    (r"\.attn\.proj\.", ".attention.projection_layer."),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.ls([12])$", r".lambda_\1"),
]
DISTIME_CONNECTOR = [(r"^0\.", "layer_norm."), (r"^1\.", "linear_1."), (r"^3\.", "linear_2.")]


def rename(name: str, rules: list[tuple[str, str]]) -> str:
    """``name`` after every rule, in order."""
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def below(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The entries that start with ``prefix``, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def d2vlm_tower(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """EVA ViT-g -> ``instructblip``. The key bias, which EVA does not have, becomes 0."""
    state = below(state, "model.vision_tower.vision_tower.")
    for name in [n for n in state if n.endswith(".q_bias")]:
        query, value = state.pop(name), state.pop(name.replace(".q_bias", ".v_bias"))
        state[name.replace(".q_bias", ".qkv.bias")] = torch.cat([query, torch.zeros_like(query), value])
    return {rename(name, D2VLM_TOWER): tensor for name, tensor in state.items()}


def d2vlm_connector(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """E.T. Chat's frame compressor -> ``qformer``. ``position_ids`` is a constant and is left out."""
    parts = {name: tensor for name, tensor in below(state, "model.").items() if name.startswith("qformer_")}
    parts = {name: tensor for name, tensor in parts.items() if not name.endswith(".position_ids")}
    return {rename(name, D2VLM_CONNECTOR): tensor for name, tensor in parts.items()}


def distime_tower(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """InternViT -> ``internvl``. The fused query, key and value are split."""
    renamed = {}
    for name, tensor in below(state, "vision_model.").items():
        if ".attn.qkv." in name:
            for letter, part in zip("qkv", tensor.chunk(3), strict=True):
                key = rename(name.replace(".attn.qkv.", f".attention.{letter}_proj."), DISTIME_TOWER)
                renamed[key] = part.contiguous()
        else:
            renamed[rename(name, DISTIME_TOWER)] = tensor
    return renamed


def distime_connector(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """InternVL's ``mlp1`` -> ``mlp``."""
    return {rename(name, DISTIME_CONNECTOR): tensor for name, tensor in below(state, "mlp1.").items()}
