"""The published systems at their real sizes, and each small enough for a test: configs and recipes, without weights.

In: a system's name. Out: the settings of its shipped recipe over a folder that holds just a ``config.json``, which is
all that planning a run needs. Knows no device.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from videollm.common.config import override, read_yaml
from videollm.model.videollm import VideoLLMConfig
from videollm.training.assemble import read_settings
from videollm.training.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
INTERNVIT = {
    "type": "internvl", "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16,
    "intermediate_size": 4096, "image_size": [448, 448], "patch_size": [14, 14], "attention_bias": True,
}  # fmt: skip
D2VLM = {
    "vision": {"type": "instructblip"},
    "connector": {"type": "qformer", "vocab_size": 30523},
    "text_config": {
        "model_type": "phi3", "vocab_size": 32064, "hidden_size": 3072, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 32, "intermediate_size": 8192, "pad_token_id": 32000,
    },
    "token_ids": {"<evi>": 32011, "</evi>": 32012},
}  # fmt: skip
DISTIME_1B = {
    "vision": INTERNVIT,
    "connector": {"type": "mlp"},
    "text_config": {
        "model_type": "qwen2", "vocab_size": 151676, "hidden_size": 896, "num_hidden_layers": 24,
        "num_attention_heads": 14, "num_key_value_heads": 2, "intermediate_size": 4864, "tie_word_embeddings": False,
    },
    "token_ids": {"<TIME_STAMP>": 151674, "<FRAME_TIME_REF>": 151675},
}  # fmt: skip
DISTIME_8B = DISTIME_1B | {
    "text_config": {
        "model_type": "llama", "vocab_size": 92555, "hidden_size": 4096, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 14336, "tie_word_embeddings": False,
    },
    "token_ids": {"<TIME_STAMP>": 92553, "<FRAME_TIME_REF>": 92554},
}  # fmt: skip
SMALL = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64, "num_hidden_layers": 2}


@dataclass(frozen=True)
class System:
    """A published system: ``sizes`` are fields of its config, ``recipe`` and ``preferences`` its shipped trainings.

    ``asked`` is of its config what no recipe says; ``frames`` are those of a video of a usual length.
    """

    sizes: dict[str, Any]
    recipe: str
    asked: dict[str, Any]
    frames: int
    preferences: str | None = None

    def small(self) -> dict[str, Any]:
        """``sizes`` with the same parts, as small as they can be."""
        text = {**self.sizes["text_config"], **SMALL, "num_key_value_heads": 2, "num_hidden_layers": 4}
        side = {"image_size": 56} if self.sizes["vision"]["type"] == "instructblip" else {"image_size": [56, 56]}
        vision = {**self.sizes["vision"], **SMALL, **side}
        words = {"num_query_tokens": 4} if self.sizes["connector"]["type"] == "qformer" else {}
        connector = {**self.sizes["connector"], **(SMALL if words else {}), **words}
        ids = dict(zip(self.sizes["token_ids"], (100, 101), strict=True))
        text |= {"vocab_size": 200, "pad_token_id": 0}
        return {"text_config": text, "vision": vision, "connector": connector, "token_ids": ids}


IMAGES = {"token": "<IMG_CONTEXT>", "start": "<img>", "end": "</img>", "after": "\n"}
FPS, SEGMENTS = {"rule": "fps", "fps": 1.0}, {"rule": "segments", "num_frames": 16, "pick": "midpoint"}
SYSTEMS = {
    "D2VLM 3.8B": System(
        D2VLM, "configs/d2vlm/sft_etchat_phi3.yaml",
        {"head": {"name": "d2vlm"}, "template": "phi3", "visual_tokens": {"token": "<frame>"}, "sampler": FPS,
         "bidirectional_frames": True}, 100, "configs/d2vlm/fpo_etchat_phi3.yaml",
    ),
    "DisTime 1B": System(
        DISTIME_1B, "configs/distime/internvl2_5_1b_lora.yaml",
        {"head": {"name": "distime"}, "template": "internvl2_5", "visual_tokens": IMAGES, "sampler": SEGMENTS}, 16,
    ),
    "DisTime 8B": System(
        DISTIME_8B, "configs/distime/internvl2_5_8b_lora.yaml",
        {"head": {"name": "distime"}, "template": "internvl2_5", "visual_tokens": IMAGES, "sampler": SEGMENTS}, 16,
    ),
}  # fmt: skip


def recipe(name: str, folder: Path, tiny: bool, changes: list[str], preferences: bool = False) -> Settings:
    """The settings of a system's training (or preference training), its sizes written to ``folder/config.json``.

    ``changes`` are ``key=value``, as on a command line.
    """
    system = SYSTEMS[name]
    sizes, kind = system.small() if tiny else system.sizes, "clip" if "d2vlm" in system.recipe else "internvl"
    side = sizes["vision"].get("image_size", 224)
    if tiny and system.asked["head"]["name"] == "d2vlm":
        head = system.asked["head"] | {"inject_layer": 2}  # the published 6 is deeper than this model
    else:
        head = system.asked["head"]
    config = VideoLLMConfig(**sizes, **system.asked | {"head": head}, context_length=4096 if kind == "clip" else 8192)
    config.preprocess = {"kind": kind, "size": side if isinstance(side, int) else side[0]}
    config.save_pretrained(folder)
    own = [f"model.checkpoint={folder}", f"data.preprocess={{kind: {kind}, size: {config.preprocess['size']}}}"]
    values = override(read_yaml(ROOT / (system.preferences if preferences else system.recipe)), [*own, *changes])
    if values["train"].get("deepspeed"):
        values["train"]["deepspeed"] = str(ROOT / values["train"]["deepspeed"])
    return read_settings(values)
