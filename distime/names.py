"""The weights of DisTime and InternVL2.5 under their official names and under ours.

In and out: mappings name -> tensor, lazy, both ways. Beside what all of InternVL has (videollm/checkpoint/internvl.py)
stand the time head, and InternLM2, whose fused ``wqkv`` is stored group by group of query heads. It reads no file and
knows neither configs nor tokenizers; on the meta device it tells names and shapes.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from videollm.checkpoint import internvl
from videollm.checkpoint.tensors import LazyTensors, NameTable, fold_adapters

BINS = "time_project.project"  # official only: the constant 0, 1, ... R
_LAYER = "language_model.model.layers.{i}"
SHARED = [*internvl.SHARED, *((f"time_{part}.{{x}}", f"head.time_{part}.{{x}}") for part in ("gen", "enc"))]
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
FUSED = re.compile(r"(?P<stem>language_model\..+\.attention\.w)qkv\.(?P<end>\w+)")
SPLIT = re.compile(r"(?P<stem>language_model\..+\.attention\.w)(?P<part>[qkv])\.(?P<end>\w+)")
WRAPPER = "language_model.base_model.model."  # what peft puts in front of an un-merged language model


@dataclass(frozen=True)
class Layout:
    """What the shapes alone do not tell: the language model (a key of ``TABLES``) and its numbers of heads."""

    llm: str
    heads: int
    kv_heads: int


def to_ours(state: Mapping[str, Tensor], layout: Layout) -> Mapping[str, Tensor]:
    """Official weights, merged -> ours. A name that means nothing to us keeps its spelling."""
    weights = LazyTensors.of(state, {name: name for name in state if name != BINS})
    split = internvl.taken_apart(weights, FUSED, partial(split_fused, layout=layout))
    return internvl.to_ours(split, TABLES[layout.llm])


def to_official(state: Mapping[str, Tensor], layout: Layout) -> Mapping[str, Tensor]:
    """Our weights -> the official ones, without ``time_project``, which is none of the weights."""
    split = internvl.to_released(state, TABLES[layout.llm])
    return internvl.put_together(split, SPLIT, partial(join_fused, layout=layout))


def split_fused(fused: Tensor, layout: Layout) -> list[Tensor]:
    """Query, key and value out of one tensor, in which InternLM2 interleaves them by group."""
    groups = layout.heads // layout.kv_heads
    rows = fused.unflatten(0, (layout.kv_heads, groups + 2, -1))  # [n_kv, g + 2, d, ...]
    parts = rows[:, :groups], rows[:, groups : groups + 1], rows[:, groups + 1 :]
    return [part.flatten(0, 2) for part in parts]


def join_fused(parts: list[Tensor], layout: Layout) -> Tensor:
    """The inverse of ``split_fused``."""
    width = parts[1].shape[0] // layout.kv_heads  # of a head
    rows = [part.unflatten(0, (layout.kv_heads, -1, width)) for part in parts]  # [n_kv, g | 1 | 1, d, ...]
    return torch.cat(rows, 1).flatten(0, 2)


def merge_lora(state: Mapping[str, Tensor], scale: float) -> Mapping[str, Tensor]:
    """Official un-merged weights -> official merged ones. A LoRA on ``wqkv`` has to be folded before that is split."""
    unwrapped = {name.replace(WRAPPER, "language_model.", 1): name for name in state}
    return fold_adapters(LazyTensors.of(state, unwrapped), scale)
