"""Qwen3-VL: a tower of dynamic resolution whose middle layers are heard too (DeepStack), times told in words.

Frames go in by groups of two; the tower's features are the patches of each cell side by side, of the last block and of
the ``deepstack_visual_indexes``. The connector has the mergers, so that they may learn behind a frozen tower or stored
features; it gives every token and what the language model's first layers add to it. Positions are those of pictures:
only the text before a group, ``<0.5 seconds>``, tells its time.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import Qwen3VLTextModel, Qwen3VLVisionConfig, Qwen3VLVisionModel
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionPatchMerger
from transformers.vision_utils import (
    get_vision_cu_seqlens,
    get_vision_interpolation_indices_and_weights,
    get_vision_position_ids,
)

from videollm.model.backbones import shared
from videollm.model.connectors import CONNECTORS, Connector, merger_options
from videollm.model.towers import TOWERS, WHERE, build_config

NAMES = {  # of the release, and ours; the first that fits counts
    "model.visual.merger.": "connector.merger.",
    "model.visual.deepstack_merger_list.": "connector.deepstack.",
    "model.visual.": "vision_tower.",
    "model.language_model.": "language_model.model.",
    "lm_head.": "language_model.lm_head.",
}
SAMPLER = {"even_times": True}


class Qwen3VLTower(Qwen3VLVisionModel):
    """The vision model of the release without its mergers."""

    def __init__(self, config: Qwen3VLVisionConfig):
        super().__init__(config)
        shared.by_segments(config)
        self.merger = shared.Unmerged(config.spatial_merge_size)
        self.deepstack_merger_list = nn.ModuleList(shared.Unmerged(config.spatial_merge_size) for _ in self.taps)
        self.patching = shared.patching_of(config)
        self.connects = {"merge": config.spatial_merge_size, "maps": len(self.taps)}
        self.hidden_size = (1 + len(self.taps)) * config.spatial_merge_size**2 * config.hidden_size

    @property
    def taps(self) -> list[int]:
        """The blocks that are heard beside the last one."""
        return list(self.config.deepstack_visual_indexes)

    def plan(self, grids: np.ndarray, device: torch.device) -> dict[str, Any]:
        """What the forward pass takes beside patches, made of grids [G, 2] on the CPU."""
        rows, config = shared.as_rows(grids), self.config
        index, weights = get_vision_interpolation_indices_and_weights(
            rows, self.num_grid_per_side, self.interpolation_mode, self.interpolation_align_corners,
            config.spatial_merge_size,
        )  # fmt: skip
        plan = {
            "interp_indices": index,
            "interp_weights": weights,
            "position_ids": get_vision_position_ids(rows, config.spatial_merge_size),
            "cu_seqlens": get_vision_cu_seqlens(rows),
        }
        return shared.planned(config, rows, plan, device)

    def forward(self, patches: Tensor, grids: np.ndarray) -> Tensor:
        """[N, W], [G, 2] -> [T, (1 + d) * merge^2 * C]."""
        out = super().forward(patches, **self.plan(grids, patches.device))
        return torch.cat([out.pooler_output, *out.deepstack_features], 1)


@CONNECTORS.register(name="qwen3_vl")
class Qwen3VLMergers(Connector):
    """The release's mergers: of the last block, and of each block that DeepStack hears."""

    def __init__(self, fields: dict, vision_size: int, hidden_size: int):
        super().__init__()
        options = merger_options(fields)
        self.cell = vision_size // (1 + options.maps)
        config = Qwen3VLVisionConfig(
            hidden_size=self.cell // options.merge**2, spatial_merge_size=options.merge, out_hidden_size=hidden_size
        )
        self.width = config.hidden_size
        self.merger = Qwen3VLVisionPatchMerger(config)
        deep = (Qwen3VLVisionPatchMerger(config, use_postshuffle_norm=True) for _ in range(options.maps))
        self.deepstack = nn.ModuleList(deep)

    def forward(self, features, query_ids=None, query_mask=None, owner=None) -> Tensor:
        """[T, (1 + d) * merge^2 * C] -> [T, 1 + d, D]."""
        last, *deep = features.to(self.merger.linear_fc1.weight.dtype).split(self.cell, 1)
        tokens = [self.merger(last.reshape(-1, self.width))]
        return torch.stack([*tokens, *(merge(cells) for merge, cells in zip(self.deepstack, deep, strict=True))], 1)


@TOWERS.register(name="qwen3_vl")
def build_qwen3_vl(fields: dict) -> nn.Module:
    """The tower of Qwen3-VL; ``fields`` of ``Qwen3VLVisionConfig``."""
    return Qwen3VLTower(build_config(Qwen3VLVisionConfig, fields, WHERE))


def parts(config: dict) -> dict:
    """A released config as ``model`` settings: vision, connector, language, visual_tokens."""
    return {
        "vision": {"type": "qwen3_vl", **shared.known_fields(Qwen3VLVisionConfig, config["vision_config"])},
        "connector": {"type": "qwen3_vl"},
        "language": shared.text_of(config),
        "visual_tokens": {**shared.QWEN_TOKENS, "before": "<{time:.1f} seconds>"},
    }


shared.register_text(Qwen3VLTextModel)
