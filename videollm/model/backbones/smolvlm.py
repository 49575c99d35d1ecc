"""SmolVLM2 (Llama text): square frames, a SigLIP tower, and cells of its patches through one linear map.

``visual_tokens`` are ours: the release writes each time as ``00:05``, and a second special token beside ``start``.
"""

import torch
from torch import Tensor, nn
from transformers.models.smolvlm.configuration_smolvlm import SmolVLMVisionConfig
from transformers.models.smolvlm.modeling_smolvlm import SmolVLMVisionTransformer

from videollm.model.backbones.shared import known_fields, text_of
from videollm.model.connectors import CONNECTORS, Connector, merger_options, pixel_shuffle, shuffled_side
from videollm.model.towers import TOWERS, WHERE, build_config, check_frames

NAMES = {  # of the release, and ours; the first that fits counts
    "model.vision_model.": "vision_tower.",
    "model.connector.modality_projection.": "connector.",
    "model.text_model.": "language_model.model.",
    "lm_head.": "language_model.lm_head.",
}


class SmolVLMTower(SmolVLMVisionTransformer):
    """The vision model of the release on whole square frames."""

    def __init__(self, config: SmolVLMVisionConfig):
        super().__init__(config)
        self.hidden_size, self.num_patches = config.hidden_size, self.embeddings.num_patches

    def forward(self, pixel_values: Tensor) -> Tensor:
        """[N, C, S, S] -> [N, P, Dv]. Raises ValueError for frames of another size."""
        check_frames(pixel_values, self.config.num_channels, (self.config.image_size,) * 2)
        side = self.embeddings.num_patches_per_side
        whole = torch.ones(len(pixel_values), side, side, dtype=torch.bool, device=pixel_values.device)
        states = self.encoder(inputs_embeds=self.embeddings(pixel_values, whole), attention_mask=None)
        return self.post_layernorm(states.last_hidden_state)


@CONNECTORS.register(name="smolvlm")
class SmolVLMConnector(Connector):
    """The release's pixel shuffle and linear map; ``merge`` is its ``scale_factor``."""

    def __init__(self, fields: dict, vision_size: int, hidden_size: int):
        super().__init__()
        self.merge = merger_options(fields).merge
        self.proj = nn.Linear(vision_size * self.merge**2, hidden_size, bias=False)

    def tokens_per_frame(self, num_patches: int) -> int:
        return shuffled_side(num_patches, self.merge) ** 2

    def forward(self, features, query_ids=None, query_mask=None, owner=None) -> Tensor:
        return self.proj(pixel_shuffle(features.to(self.proj.weight.dtype), self.merge))  # [V, k, D]


@TOWERS.register(name="smolvlm")
def build_smolvlm(fields: dict) -> nn.Module:
    """The tower of SmolVLM2; ``fields`` of ``SmolVLMVisionConfig``."""
    return SmolVLMTower(build_config(SmolVLMVisionConfig, fields, WHERE))


def parts(config: dict) -> dict:
    """A released config as ``model`` settings: vision, connector, language, visual_tokens."""
    return {
        "vision": {"type": "smolvlm", **known_fields(SmolVLMVisionConfig, config["vision_config"])},
        "connector": {"type": "smolvlm", "merge": config["scale_factor"]},
        "language": text_of(config),
        "visual_tokens": {"token": "<image>", "start": "<fake_token_around_image>", "end": "<fake_token_around_image>"},
    }
