"""InternVL3 (Qwen2 text) and InternVL3.5 (Qwen3 text): square frames, as the tower ``internvl`` and connector ``mlp``.

All parts stand already; this file tells how transformers' layout of the released checkpoints (``-hf``) is read.
"""

from transformers import InternVLVisionConfig

from videollm.model.backbones.shared import known_fields, text_of

NAMES = {  # of the release and of later transformers, and ours; the first that fits counts
    "vision_tower.": "vision_tower.",
    "multi_modal_projector.": "connector.",
    "language_model.": "language_model.",
    "model.vision_tower.": "vision_tower.",
    "model.multi_modal_projector.": "connector.",
    "model.language_model.": "language_model.model.",
    "lm_head.": "language_model.lm_head.",
}
TOKENS = {  # ``visual_tokens``
    "token": "<IMG_CONTEXT>", "start": "<img>", "end": "</img>", "before": "Frame{number}: ", "between": "\n",
}  # fmt: skip


def parts(config: dict) -> dict:
    """A released config as ``model`` settings: vision, connector, language, visual_tokens."""
    return {
        "vision": {"type": "internvl", **known_fields(InternVLVisionConfig, config["vision_config"])},
        "connector": {"type": "mlp", "downsample": config["downsample_ratio"]},
        "language": text_of(config),
        "visual_tokens": TOKENS,
    }
