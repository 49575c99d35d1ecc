"""What the families have in common: cells of patches as one row, a text model with its output layer, plans, configs.

Knows no family.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.utils.generic import is_flash_attention_requested

from videollm.video.patching import Patching

QWEN_TOKENS = {  # ``visual_tokens`` of all Qwen-VL
    "token": "<|video_pad|>", "image": "<|image_pad|>", "start": "<|vision_start|>", "end": "<|vision_end|>",
    "after": "",
}  # fmt: skip


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


def planned(config: PreTrainedConfig, plan: Mapping[str, Tensor], device: torch.device) -> dict[str, Any]:
    """What transformers' towers take ready-made, on ``device``.

    Lengths of sequences stay on the CPU, where attention that knows none of them cuts by them; to flash attention they
    go along, with the longest of them.
    """
    moved = {name: value.to(device, non_blocking=True) for name, value in plan.items() if "seqlens" not in name}
    for name in plan.keys() - moved.keys():
        lengths = moved[name] = plan[name]
        if is_flash_attention_requested(config):
            moved[name] = lengths.to(device, non_blocking=True)
            moved[name.replace("cu_", "max_").replace("seqlens", "seqlen")] = int(lengths.diff().max())
    return moved


def text_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """``model.language`` of a released config; older ones have the text model's fields beside their own."""
    text = config.get("text_config", config)
    return {**text, "tie_word_embeddings": config.get("tie_word_embeddings", text.get("tie_word_embeddings", False))}


def known_fields(config_class: type[PreTrainedConfig], fields: Mapping[str, Any]) -> dict[str, Any]:
    """Those of ``fields`` that the config has; released files also hold some that nothing reads."""
    known = config_class().to_dict().keys() - {"model_type", "dtype", "transformers_version"}
    return {key: value for key, value in fields.items() if key in known}
