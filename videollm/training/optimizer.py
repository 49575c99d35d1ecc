"""Which parameters train, and with what learning rate and decay.

In: a model and ``train.parts``. Out: ``requires_grad``, and groups for AdamW in the model's order. Knows no data.
"""

import re

from torch import nn

from videollm.common.config import ConfigError
from videollm.model.videollm import VideoLLM
from videollm.training.settings import PARTS, Settings, TrainSettings


def part_of(name: str) -> str:
    """The part (see ``settings.PARTS``) that a parameter belongs to."""
    if "lora_" in name:
        return "lora"
    first = name.split(".", 1)[0]
    if first != "language_model":
        return first
    if "embed_tokens" in name:
        return "embeddings"
    return "lm_head" if ".lm_head" in name else "language_model"


def set_trainable(model: VideoLLM, train: TrainSettings) -> None:
    """Freeze and unfreeze by part. Default: all but the tower; with LoRA, not the language model and its ends.

    Raises:
        ConfigError: a pattern of ``train.parts.PART.only`` that no parameter of the part has.
    """
    frozen = {"vision_tower"} | ({"language_model", "embeddings", "lm_head"} if train.lora else set())
    wanted = {part: part not in frozen for part in PARTS}
    wanted |= {part: s.train for part, s in train.parts.items() if s.train is not None}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(wanted[part_of(name)])
    model.frozen_tower = not wanted["vision_tower"]
    for part, only in ((part, s.only) for part, s in train.parts.items() if s.only is not None):
        inside = {name: p for name, p in model.named_parameters() if part_of(name) == part}
        for pattern in only:
            if not any(re.search(pattern, name) for name in inside):
                raise ConfigError(f"train.parts.{part}.only: {pattern!r} is in no name of the part's parameters")
        for name, parameter in inside.items():
            parameter.requires_grad_(wanted[part] and any(re.search(pattern, name) for pattern in only))


def parameter_groups(model: nn.Module, settings: Settings) -> list[dict]:
    """Trainable parameters by part and decay: none on biases and norms, but with ``train.decay_all``.

    Groups keep the model's order, as resuming needs.
    """
    train = settings.train
    groups: dict[tuple[str, bool], dict] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        part, owner = part_of(name), model.get_submodule(name.rpartition(".")[0])
        spared = isinstance(owner, nn.LayerNorm) or re.search("bias|norm", name.lower())
        decays = train.decay_all or not spared
        given = train.parts.get(part)
        lr = train.lr if given is None or given.lr is None else given.lr
        decay = train.weight_decay if given is None or given.weight_decay is None else given.weight_decay
        group = groups.setdefault((part, decays), {"params": [], "lr": lr, "weight_decay": decay if decays else 0.0})
        group["params"].append(parameter)
    return list(groups.values())
