"""Low-rank adapters on the language model through peft: put in, folded back. Modules keep their classes and names."""

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import nn

from videollm.common.config import ConfigError


def add_lora(language_model: nn.Module, options: dict) -> None:
    """Wrap the target layers of ``language_model`` in place; ``options`` are those of ``settings.LoraSettings``.

    Raises:
        ConfigError: no layer has one of the target names.
    """
    config = LoraConfig(
        r=options["r"],
        lora_alpha=options["alpha"],
        lora_dropout=options["dropout"],
        target_modules=list(options["targets"]),
        bias="none",
    )
    try:
        inject_adapter_in_model(config, language_model)
    except ValueError as error:
        raise ConfigError(f"train.lora.targets: {error}") from None


@torch.no_grad()
def merge_lora(model: nn.Module) -> None:
    """Fold every adapter into its layer and put the plain layer back; the model's config then names no adapters."""
    for name, module in list(model.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge()
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, module.get_base_layer())
    model.config.lora = None
