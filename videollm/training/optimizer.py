"""Which parameters train, and with what learning rate and decay.

In: a model and ``train.parts``. Out: ``requires_grad``, and groups for AdamW in the model's order; a warning of what
cannot be learnt so. Knows no data.
"""

import logging
import re

from torch import nn

from videollm.checkpoint import load_tokenizer, read_config
from videollm.common.config import ConfigError
from videollm.model.tying import tied
from videollm.model.videollm import VideoLLM
from videollm.training.settings import PARTS, PartSettings, Settings, TrainSettings

logger = logging.getLogger(__name__)


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
    """Freeze and unfreeze by part. Default: all but the tower; with LoRA, not the language model and its ends, nor a
    connector with adapters.

    Raises:
        ConfigError: a pattern of ``train.parts.PART.only`` that no parameter of the part has; nothing to train; or see
            ``check_parts``.
    """
    frozen = {"vision_tower"} | ({"language_model", "embeddings", "lm_head"} if train.lora else set())
    frozen |= {"connector"} if train.lora and train.lora.connector else set()
    wanted = {part: part not in frozen for part in PARTS}
    wanted |= {part: s.train for part, s in train.parts.items() if s.train is not None}
    check_parts(model, train, wanted)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(wanted[part_of(name)])
    for part, only in ((part, s.only) for part, s in train.parts.items() if s.only is not None):
        inside = {name: p for name, p in model.named_parameters() if part_of(name) == part}
        for pattern in only:
            if not any(re.search(pattern, name) for name in inside):
                raise ConfigError(f"train.parts.{part}.only: {pattern!r} is in no name of the part's parameters")
        for name, parameter in inside.items():
            parameter.requires_grad_(wanted[part] and any(re.search(pattern, name) for pattern in only))
    model.frozen_tower = not any(parameter.requires_grad for parameter in model.vision_tower.parameters())
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError("train.parts: leaves nothing to train; give a part that has parameters train: true")


def check_parts(model: VideoLLM, train: TrainSettings, wanted: dict[str, bool]) -> None:
    """ConfigError where ``train.parts`` tells something of a part that cannot be true of this model.

    That is a part without parameters, unless it is to stay frozen; and a tied ``lm_head`` with other settings than
    ``embeddings``, of which it is a name. ``wanted``: which parts train.
    """
    present = {part_of(name) for name, _ in model.named_parameters()}
    one = tied(model.config.text_config)
    for part, given in train.parts.items():
        if part == "lm_head" and one:
            other = train.parts.get("embeddings") or PartSettings()
            same = (wanted[part], given.only, rates(train, part)) == (
                wanted["embeddings"], other.only, rates(train, "embeddings"),
            )  # fmt: skip
            if not same:
                raise ConfigError(
                    "train.parts.lm_head: this language model has one matrix for its token embedding and its lm_head; "
                    "say the same of train.parts.embeddings and lm_head, or leave lm_head out (a new model has two "
                    "matrices with model.language.tie_word_embeddings=false)"
                )
        elif part not in present and given != PartSettings(train=False):
            hint = "; train.lora adds them" if part == "lora" else ""
            raise ConfigError(f"train.parts.{part}: this model has no parameters there{hint}; leave it out")


def warn_frozen(model: VideoLLM, settings: Settings) -> None:
    """Warn where the model is to learn to say span tokens that are new to it, and no weight of its output layer learns.

    Their rows there then stay as they were drawn, and in practice no answer ever has one. An adapter on the layer is
    enough. A model that was trained with its head has learnt the tokens, and may well go on without.
    """
    if any(parameter.requires_grad for parameter in model.get_output_embeddings().parameters()):
        return
    given, new = settings.model, list(model.head.span_tokens)
    if given.checkpoint:
        new = new if read_config(given.checkpoint).headless else []
    elif new:
        known = load_tokenizer(given.tokenizer or given.language_weights, "model.tokenizer").get_vocab()
        new = [token for token in new if token not in known]
    if new:
        part = "embeddings" if tied(model.config.text_config) else "lm_head"
        logger.warning(
            "train.parts.%s: is frozen, so that the model will hardly learn to say %s, which is new to it, and answers "
            "will have no times; set train.parts.%s.train=true",
            part, ", ".join(new), part,
        )  # fmt: skip


def rates(train: TrainSettings, part: str) -> tuple[float, float]:
    """Learning rate and weight decay of a part."""
    given = train.parts.get(part) or PartSettings()
    lr = train.lr if given.lr is None else given.lr
    return lr, train.weight_decay if given.weight_decay is None else given.weight_decay


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
        lr, decay = rates(train, part)
        group = groups.setdefault((part, decays), {"params": [], "lr": lr, "weight_decay": decay if decays else 0.0})
        group["params"].append(parameter)
    return list(groups.values())
