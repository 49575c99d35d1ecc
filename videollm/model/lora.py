"""Low-rank adapters through peft: put in, folded back. Modules keep their classes and names.

Of an embedding that the output layer shares, see ``tying``.
"""

from collections.abc import Sequence

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import nn

from videollm.common.config import ConfigError
from videollm.model.tying import tied, untie


def add_adapters(model: nn.Module, options: dict) -> None:
    """``add_lora`` for a whole model; ``options`` may name layers of the connector and the vision tower too."""
    add_lora(model.language_model, options)
    for part in ("connector", "vision_tower"):
        if options.get(part):
            inject(getattr(model, part), options, options[part], f"train.lora.{part}")


def add_lora(language_model: nn.Module, options: dict) -> None:
    """Wrap the target layers of ``language_model`` in place; ``options`` are those of ``settings.LoraSettings``.

    Raises:
        ConfigError: no layer has one of the target names; or the output layer has, and shares its matrix.
    """
    check_output(language_model, options["targets"])
    inject(language_model, options, options["targets"], "train.lora.targets")


def inject(part: nn.Module, options: dict, targets: Sequence[str], key: str) -> None:
    """Wrap the layers of ``part`` whose names end in one of ``targets``; ConfigError, naming ``key``, for none."""
    sizes = {"r": options["r"], "lora_alpha": options["alpha"], "lora_dropout": options["dropout"]}
    try:
        inject_adapter_in_model(LoraConfig(**sizes, target_modules=list(targets), bias="none"), part)
    except ValueError as error:
        raise ConfigError(f"{key}: {error}") from None


def check_output(language_model: nn.Module, targets: list[str]) -> None:
    """ConfigError where an adapter is to be put on an output layer that has no matrix of its own."""
    output = language_model.get_output_embeddings()
    name = next(name for name, module in language_model.named_modules() if module is output)
    if tied(language_model.config) and any(f".{name}".endswith(f".{target}") for target in targets):
        raise ConfigError(
            f"train.lora.targets: {name} shares its matrix with the token embedding in this language model, so it "
            "cannot have an adapter; leave it out (a new model has two matrices with "
            "model.language.tie_word_embeddings=false)"
        )


@torch.no_grad()
def merge_lora(model: nn.Module) -> None:
    """Fold every adapter into its layer and put the plain layer back; the model's config then names no adapters.

    An adapter on a token embedding that the output layer shares unties the two: it is of the embedding alone.
    """
    if tied(model.config.text_config) and isinstance(model.get_input_embeddings(), LoraLayer):
        untie(model)
    for name, module in list(model.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge()
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, module.get_base_layer())
    model.config.lora = None
