"""Adapters and head without the model they sit on: ``adapters.safetensors``, beside a config that names the base.

In: a model, or such a folder, and the checkpoint folder it started from. Out: the tensors in which the two differ, or
all tensors of the model again. The head is always stored whole and never taken from the base. It builds no model.
"""

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor
from transformers import PretrainedConfig

from videollm.checkpoint.hub import local
from videollm.checkpoint.tensors import CheckpointError, TensorSource, adapted_layers
from videollm.model.tying import settle, stored

STEM = "adapters"


def has_adapters(folder: Path) -> bool:
    """Whether ``folder`` holds adapters in place of whole weights."""
    return (folder / f"{STEM}.safetensors").is_file()


def read_base(base: str | Path) -> TensorSource:
    """The tensors of a base.

    Raises:
        CheckpointError: no such base, or one that has adapters itself.
    """
    found = TensorSource(local(base), ["model"])
    if adapted_layers(found):
        raise CheckpointError(f"{base}: has adapters itself; merge them first (videollm checkpoint)")
    return found


def base_names(base: TensorSource, adapted: Mapping[str, dict], text: PretrainedConfig) -> dict[str, str]:
    """Names of a base's tensors as a model with adapters on the layers ``adapted`` has them -> names in the base.

    ``text`` is the config of the model's language model.
    """
    names = {}
    for name in stored(base, text):
        layer, _, end = name.rpartition(".")
        names[f"{layer}.base_layer.{end}" if layer in adapted else name] = name
    return {name: old for name, old in names.items() if not name.startswith("head.")}


def write_adapters(state: Mapping[str, Tensor], folder: Path, base: str | Path, text: PretrainedConfig) -> list[str]:
    """Store what ``state`` has and ``base`` has not: adapters, the whole head, other trained weights; gives the names.

    ``text`` is the config of the model's language model.

    Raises:
        CheckpointError: see ``read_base``; or a tensor of the base that the model has not.
    """
    there, state = read_base(base), {name: state[name] for name in stored(state, text)}
    names = base_names(there, adapted_layers(state), text)
    if lost := sorted(set(names) - set(state)):
        raise CheckpointError(f"{base}: is not what this model was trained on; it has {lost[0]}, which the model lacks")
    new = {n: t.contiguous() for n, t in state.items() if n not in names or not there[names[n]].to(t).equal(t)}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(new, folder / f"{STEM}.safetensors", metadata={"format": "pt"})
    return sorted(new)


def read_adapters(folder: Path, base: str | None, text: PretrainedConfig) -> dict[str, Tensor]:
    """All tensors of the model that ``folder`` and its ``base`` make together, but for a head the folder lacks.

    ``text`` is the config of the model's language model; see ``settle``.

    Raises:
        CheckpointError: no base is named, or see ``read_base``.
    """
    if not base:
        path = folder / "config.json"
        raise CheckpointError(f"{path}: no `base`, the checkpoint folder that its adapters belong to; add it")
    own, there = TensorSource(folder, [STEM]), read_base(base)
    settle(text, there, base)  # by itself: beside embeddings that were trained, its second name is stale
    names = base_names(there, adapted_layers(own), text)
    whole = {n: there[old] for n, old in names.items() if n not in own} | dict(own)
    settle(text, whole, folder)
    return {name: whole[name] for name in stored(whole, text)}
