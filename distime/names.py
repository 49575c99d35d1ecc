"""The weights of DisTime and InternVL2.5 under their official names and under ours (spec DISTIME §10).

In and out: mappings name -> tensor, lazy, both ways. Fused projections are split and joined: query, key and value of
the vision tower, and InternLM2's ``wqkv``, which is stored group by group of query heads. It reads no file and knows
neither configs nor tokenizers; on the meta device it tells names and shapes.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from videollm.checkpoint.tensors import LazyTensors, NameTable, fold_adapters
from videollm.model.tying import EMBEDDINGS, OUTPUT

BINS = "time_project.project"  # official only: the constant 0, 1, ... R
_VIT, _OUR_VIT = "vision_model.encoder.layers.{i}", "vision_tower.encoder.layer.{i}"
_LAYER = "language_model.model.layers.{i}"
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
    *((f"time_{part}.{{x}}", f"head.time_{part}.{{x}}") for part in ("gen", "enc")),
]
TABLES = {
    "qwen2": NameTable([*SHARED, ("language_model.{x}", "language_model.{x}")]),
    "internlm2": NameTable(
        [
            *SHARED,
            ("language_model.output.{x}", "language_model.lm_head.{x}"),
            ("language_model.model.tok_embeddings.{x}", "language_model.model.embed_tokens.{x}"),
            ("language_model.model.norm.{x}", "language_model.model.norm.{x}"),
            *((f"{_LAYER}.attention.w{p}.{{x}}", f"{_LAYER}.self_attn.{p}_proj.{{x}}") for p in "qkvo"),
            (f"{_LAYER}.feed_forward.w1.{{x}}", f"{_LAYER}.mlp.gate_proj.{{x}}"),
            (f"{_LAYER}.feed_forward.w2.{{x}}", f"{_LAYER}.mlp.down_proj.{{x}}"),
            (f"{_LAYER}.feed_forward.w3.{{x}}", f"{_LAYER}.mlp.up_proj.{{x}}"),
            (f"{_LAYER}.attention_norm.{{x}}", f"{_LAYER}.input_layernorm.{{x}}"),
            (f"{_LAYER}.ffn_norm.{{x}}", f"{_LAYER}.post_attention_layernorm.{{x}}"),
        ]
    ),
}
FUSED = re.compile(r"(?P<stem>vision_model\..+\.attn\.|language_model\..+\.attention\.w)qkv\.(?P<end>\w+)")
SPLIT = re.compile(r"(?P<stem>vision_model\..+\.attn\.|language_model\..+\.attention\.w)(?P<part>[qkv])\.(?P<end>\w+)")
WRAPPER = "language_model.base_model.model."  # what peft puts in front of an un-merged language model


@dataclass(frozen=True)
class Layout:
    """What the shapes alone do not tell: the language model (a key of ``TABLES``) and its numbers of heads."""

    llm: str
    heads: int
    kv_heads: int


def to_ours(state: Mapping[str, Tensor], layout: Layout) -> Mapping[str, Tensor]:
    """Official weights, merged -> ours. A name that means nothing to us keeps its spelling."""
    makers = {}
    for name in state:
        if name == BINS:
            continue
        if match := FUSED.fullmatch(name):
            for p, part in enumerate("qkv"):
                official = f"{match['stem']}{part}.{match['end']}"
                makers[official] = lambda name=name, p=p: split_fused(name, state[name], layout)[p]
        else:
            makers[name] = lambda name=name: state[name]
    table = TABLES[layout.llm]
    return LazyTensors({table.ours(name) or name: make for name, make in makers.items()})


def to_official(state: Mapping[str, Tensor], layout: Layout) -> Mapping[str, Tensor]:
    """Our weights -> the official ones, without ``time_project``, which is none of the weights."""
    table = TABLES[layout.llm]
    ours = {table.official(name) or name: name for name in state}
    makers = {}
    for official, name in ours.items():
        match = SPLIT.fullmatch(official)
        if match is None:
            makers[official] = lambda name=name: state[name]
        elif match["part"] == "q":
            fused = f"{match['stem']}qkv.{match['end']}"
            parts = [ours[f"{match['stem']}{part}.{match['end']}"] for part in "qkv"]
            makers[fused] = lambda fused=fused, parts=parts: join_fused(fused, [state[p] for p in parts], layout)
    return LazyTensors(makers)


def split_fused(name: str, fused: Tensor, layout: Layout) -> list[Tensor]:
    """Query, key and value out of one tensor; the vision tower stacks them, InternLM2 interleaves them by group."""
    if name.startswith("vision_model."):
        return list(fused.chunk(3))
    groups = layout.heads // layout.kv_heads
    rows = fused.unflatten(0, (layout.kv_heads, groups + 2, -1))  # [n_kv, g + 2, d, ...]
    parts = rows[:, :groups], rows[:, groups : groups + 1], rows[:, groups + 1 :]
    return [part.flatten(0, 2) for part in parts]


def join_fused(name: str, parts: list[Tensor], layout: Layout) -> Tensor:
    """The inverse of ``split_fused``."""
    if name.startswith("vision_model."):
        return torch.cat(parts)
    width = parts[1].shape[0] // layout.kv_heads  # of a head
    rows = [part.unflatten(0, (layout.kv_heads, -1, width)) for part in parts]  # [n_kv, g | 1 | 1, d, ...]
    return torch.cat(rows, 1).flatten(0, 2)


def merge_lora(state: Mapping[str, Tensor], scale: float) -> Mapping[str, Tensor]:
    """Official un-merged weights -> official merged ones. A LoRA on ``wqkv`` has to be folded before that is split."""
    unwrapped = {name.replace(WRAPPER, "language_model.", 1): name for name in state}
    return fold_adapters(LazyTensors.of(state, unwrapped), scale)


def with_more_tokens(state: Mapping[str, Tensor], rows: int) -> Mapping[str, Tensor]:
    """Our weights with the vocabulary grown to ``rows``: embeddings normal(0, 0.02), output rows the mean row (§2).

    The official code fills the output last, so the new rows of a matrix that is both get the mean.
    """

    def embeddings() -> Tensor:
        old = state[EMBEDDINGS]
        generator = torch.Generator().manual_seed(0)
        new = torch.randn(rows - old.shape[0], old.shape[1], generator=generator) * 0.02
        return torch.cat([old, new.to(old)])

    def output(name: str) -> Tensor:
        old = state[name]
        mean = old.float().mean(0, keepdim=True).to(old.dtype)
        return torch.cat([old, mean.expand(rows - old.shape[0], -1)])

    kept = LazyTensors.of(state, {name: name for name in state}).makers
    grown = {EMBEDDINGS: embeddings, OUTPUT: lambda: output(OUTPUT)}
    return LazyTensors(kept | (grown if OUTPUT in state else {EMBEDDINGS: lambda: output(EMBEDDINGS)}))
