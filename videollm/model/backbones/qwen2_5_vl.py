"""Qwen2.5-VL: a tower of dynamic resolution that mostly looks through windows, times laid on the axis of positions.

Frames go in by groups of two; the tower's features are the patches of each cell side by side, and the connector has the
merger. A video is one run between one pair of tokens: its groups lie ``tokens_per_second`` position units a second
apart. Of ``model.vision``, ``positions`` says by which rule (``Patching.rule``), ``even_times`` whether by the released
even spacing in place of the times at which frames are shown.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import Qwen2_5_VLTextModel
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VisionTransformerPretrainedModel,
    Qwen2_5_VLPatchMerger,
)
from transformers.vision_utils import get_vision_cu_seqlens, get_vision_position_ids, get_vision_window_index

from videollm.model.backbones import shared
from videollm.model.connectors import CONNECTORS, Connector, merger_options
from videollm.model.towers import TOWERS, WHERE, build_config

NAMES = {  # of the release and of later transformers, and ours; the first that fits counts
    "visual.merger.": "connector.merger.",
    "visual.": "vision_tower.",
    "model.visual.merger.": "connector.merger.",
    "model.visual.": "vision_tower.",
    "model.language_model.": "language_model.model.",
    "model.": "language_model.model.",
    "lm_head.": "language_model.lm_head.",
}
SAMPLER = {"even_times": True}


class Qwen2_5VLTower(Qwen2_5_VisionTransformerPretrainedModel):
    """The vision model of the release without its merger; ``positions`` and ``even_times`` as in ``Patching``."""

    def __init__(self, config: Qwen2_5_VLVisionConfig, positions: str = "4.49", even_times: bool = False):
        super().__init__(config)
        shared.by_segments(config)
        self.merger = shared.Unmerged(config.spatial_merge_size)
        time = {"per_second": config.tokens_per_second, "rule": positions, "even": even_times}
        self.patching = shared.patching_of(config, **time)
        self.connects = {"merge": config.spatial_merge_size}
        self.hidden_size = config.spatial_merge_size**2 * config.hidden_size

    def plan(self, grids: np.ndarray, device: torch.device) -> dict[str, Any]:
        """What the forward pass takes beside patches, made of grids [G, 2] on the CPU."""
        rows, config = shared.as_rows(grids), self.config
        index, windows = get_vision_window_index(rows, config.spatial_merge_size, config.window_size, config.patch_size)
        plan = {
            "position_ids": get_vision_position_ids(rows, config.spatial_merge_size),
            "cu_seqlens": get_vision_cu_seqlens(rows),
            "window_index": index,
            "cu_window_seqlens": windows,
        }
        return shared.planned(config, rows, plan, device)

    def forward(self, patches: Tensor, grids: np.ndarray) -> Tensor:
        """[N, W], [G, 2] -> [T, merge^2 * C]."""
        return super().forward(patches, **self.plan(grids, patches.device)).pooler_output


@CONNECTORS.register(name="qwen2_5_vl")
class Qwen2_5VLMerger(Connector):
    """The release's merger."""

    def __init__(self, fields: dict, vision_size: int, hidden_size: int):
        super().__init__()
        merge = merger_options(fields).merge
        self.width = vision_size // merge**2
        self.merger = Qwen2_5_VLPatchMerger(hidden_size, self.width, merge)

    def forward(self, features, query_ids=None, query_mask=None, owner=None) -> Tensor:
        """[T, merge^2 * C] -> [T, 1, D]."""
        patches = features.to(self.merger.mlp[0].weight.dtype).reshape(-1, self.width)
        return self.merger(patches)[:, None]


@TOWERS.register(name="qwen2_5_vl")
def build_qwen2_5_vl(fields: dict) -> nn.Module:
    """The tower of Qwen2.5-VL; ``fields`` of ``Qwen2_5_VLVisionConfig``, ``positions`` and ``even_times``."""
    ours = {key: fields.pop(key) for key in ("positions", "even_times") if key in fields}
    return Qwen2_5VLTower(build_config(Qwen2_5_VLVisionConfig, fields, WHERE), **ours)


def parts(config: dict) -> dict:
    """A released config as ``model`` settings: vision, connector, language, visual_tokens."""
    return {
        "vision": {"type": "qwen2_5_vl", **shared.known_fields(Qwen2_5_VLVisionConfig, config["vision_config"])},
        "connector": {"type": "qwen2_5_vl"},
        "language": {**shared.text_of(config), "model_type": Qwen2_5_VLTextModel.config_class.model_type},
        "visual_tokens": shared.QWEN_TOKENS,
    }


shared.register_text(Qwen2_5_VLTextModel)
