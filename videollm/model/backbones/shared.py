"""What the families have in common: attention by pictures, cells of patches, text models with an output layer, plans.

Knows no family.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.utils.generic import is_flash_attention_requested

from videollm.video.patching import Patching

SEGMENTS = "flash_free_segments"  # sdpa by pictures; transformers hands whole sequences to what is called flash
QWEN_TOKENS = {  # ``visual_tokens`` of all Qwen-VL
    "token": "<|video_pad|>", "image": "<|image_pad|>", "start": "<|vision_start|>", "end": "<|vision_end|>",
    "after": "",
}  # fmt: skip


def attend_segments(
    _module: nn.Module, query: Tensor, key: Tensor, value: Tensor, _mask: None = None, *, cu_seq_lens_q: Tensor,
    scaling: float, **_others: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """Attention within segments that end at ``cu_seq_lens_q``, a CPU tensor. [1, H, N, d] each -> [1, N, H, d].

    All segments of one length are computed together: transformers computes them one after the other, which for windows
    of many frames is thousands of small calls.
    """
    order, back, shapes = by_length(tuple(cu_seq_lens_q.tolist()), query.device)
    parts = [states[0] if order is None else states[0].index_select(1, order) for states in (query, key, value)]
    found, start = [], 0
    for count, length in shapes:
        own = slice(start, start := start + count * length)
        cut = [part[:, own].unflatten(1, (count, length)).transpose(0, 1) for part in parts]  # [count, H, length, d]
        found.append(scaled_dot_product_attention(*cut, scale=scaling).transpose(1, 2).flatten(0, 1))
    out = torch.cat(found)  # [N, H, d]
    return (out if back is None else out.index_select(0, back))[None], None


@lru_cache(maxsize=8)
def by_length(
    ends: tuple[int, ...], device: torch.device
) -> tuple[Tensor | None, Tensor | None, list[tuple[int, int]]]:
    """Segments sorted by length: the order of their places, the way back, and (segments, length) of each stretch.

    Both orders are None where all are of one length.
    """
    lengths = np.diff(ends)
    shapes = [(int(count), int(length)) for length, count in zip(*np.unique(lengths, return_counts=True), strict=True)]
    if len(shapes) == 1:
        return None, None, shapes
    order = np.argsort(np.repeat(lengths, lengths), kind="stable")
    both = (torch.from_numpy(places).to(device, non_blocking=True) for places in (order, np.argsort(order)))
    return *both, shapes


AttentionInterface.register(SEGMENTS, attend_segments)


class Unmerged(nn.Module):
    """In the place of a tower's merger, which the connector has: the patches of a cell, side by side."""

    def __init__(self, merge: int):
        super().__init__()
        self.cell = merge**2

    def forward(self, states: Tensor) -> Tensor:
        """[N, C] -> [N / merge^2, merge^2 * C]."""
        return states.reshape(len(states) // self.cell, -1)


class TextModel(PreTrainedModel):
    """A family's text model with an output layer, under the names of every causal language model of transformers."""

    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _supports_sdpa = _supports_flash_attn = _supports_attention_backend = True
    _tied_weights_keys: ClassVar[dict] = {"lm_head.weight": "model.embed_tokens.weight"}
    bare: ClassVar[type[PreTrainedModel]]

    def __init__(self, config: PreTrainedConfig):
        super().__init__(config)
        self.model = self.bare(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()


def register_text(decoder_class: type[PreTrainedModel]) -> None:
    """Let transformers find ``decoder_class`` with an output layer as the causal language model of its config."""
    config_class = decoder_class.config_class
    name = decoder_class.__name__.replace("Model", "ForCausalLM")
    made = type(name, (TextModel,), {"config_class": config_class, "bare": decoder_class})
    AutoModelForCausalLM.register(config_class, made, exist_ok=True)


def patching_of(config: PreTrainedConfig, **more: Any) -> Patching:
    """How frames become what a tower with the Qwens' fields takes."""
    return Patching(config.patch_size, config.spatial_merge_size, config.temporal_patch_size, **more)


def as_rows(grids: np.ndarray) -> Tensor:
    """Grids [G, 2] as transformers takes them, a group a picture: [G, 3] on the CPU, so that no step waits."""
    return torch.as_tensor(np.insert(grids, 0, 1, axis=1), dtype=torch.long)


def by_segments(config: PreTrainedConfig) -> None:
    """Let a tower whose attention would be sdpa compute it as ``attend_segments``."""
    if config._attn_implementation == "sdpa":
        config._attn_implementation = SEGMENTS


def planned(config: PreTrainedConfig, rows: Tensor, plan: Mapping[str, Tensor], device: torch.device) -> dict[str, Any]:
    """What transformers' towers take ready-made, on ``device``; grids ``rows`` (``as_rows``) stay on the CPU.

    Ends of segments stay on the CPU, where sequences are cut by them; to flash attention they go along. It is told the
    longest in any case.
    """
    moved = {name: value.to(device, non_blocking=True) for name, value in plan.items() if "seqlens" not in name}
    moved["grid_thw"] = rows
    for name in plan.keys() - moved.keys():
        ends = moved[name] = plan[name]
        moved[name.replace("cu_", "max_").replace("seqlens", "seqlen")] = int(ends.diff().max())
        if config._attn_implementation == SEGMENTS:
            by_length(tuple(ends.tolist()), device)  # made here, where also an estimate of memory has numbers
        elif is_flash_attention_requested(config):
            moved[name] = ends.to(device, non_blocking=True)
    return moved


def text_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """``model.language`` of a released config; older ones have the text model's fields beside their own."""
    text = config.get("text_config", config)
    return {**text, "tie_word_embeddings": config.get("tie_word_embeddings", text.get("tie_word_embeddings", False))}


def known_fields(config_class: type[PreTrainedConfig], fields: Mapping[str, Any]) -> dict[str, Any]:
    """Those of ``fields`` that the config has; released files also hold some that nothing reads."""
    known = config_class().to_dict().keys() - {"model_type", "dtype", "transformers_version"}
    return {key: value for key, value in fields.items() if key in known}
