"""Adapters and head without the model they sit on: ``adapters.safetensors``, beside a config that names the base.

In: a model, or such a folder, and the checkpoint folder it started from. Out: the tensors in which the two differ, or
all tensors of the model again. The head is always stored whole and never taken from the base. It builds no model.
"""

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from videollm.checkpoint.tensors import CheckpointError, TensorSource, adapted_layers

STEM = "adapters"


def has_adapters(folder: Path) -> bool:
    """Whether ``folder`` holds adapters in place of whole weights."""
    return (folder / f"{STEM}.safetensors").is_file()


def base_weights(base: str | Path, adapted: Mapping[str, dict]) -> dict[str, str]:
    """Names of a base's tensors as a model with adapters on the layers ``adapted`` has them -> names in the base.

    Raises:
        CheckpointError: no such base, or one that has adapters itself.
    """
    if not Path(base).is_dir():
        raise CheckpointError(f"{base}: no such folder, but adapters name it as their base; put it there")
    stored = TensorSource(base, ["model"])
    if adapted_layers(stored):
        raise CheckpointError(f"{base}: has adapters itself; merge them first (python -m videollm.checkpoint)")
    names = {}
    for name in stored:
        layer, _, end = name.rpartition(".")
        names[f"{layer}.base_layer.{end}" if layer in adapted else name] = name
    return {name: old for name, old in names.items() if not name.startswith("head.")}


def write_adapters(state: Mapping[str, Tensor], folder: Path, base: str | Path) -> list[str]:
    """Store what ``state`` has and ``base`` has not: adapters, the whole head, other trained weights; gives the names.

    Raises:
        CheckpointError: see ``base_weights``; or a tensor of the base that the model has not.
    """
    names, stored = base_weights(base, adapted_layers(state)), TensorSource(base, ["model"])
    if lost := sorted(set(names) - set(state)):
        raise CheckpointError(f"{base}: is not what this model was trained on; it has {lost[0]}, the model has not")
    new = {n: t for n, t in state.items() if n not in names or not stored[names[n]].to(t).equal(t)}
    first = {t.data_ptr(): n for n, t in reversed(new.items())}  # tied weights are one tensor under two names
    new = {n: t for n, t in new.items() if first[t.data_ptr()] == n}
    folder.mkdir(parents=True, exist_ok=True)
    save_file({n: t.contiguous() for n, t in new.items()}, folder / f"{STEM}.safetensors", metadata={"format": "pt"})
    return sorted(new)


def read_adapters(folder: Path, base: str | None) -> dict[str, Tensor]:
    """All tensors of the model that ``folder`` and its ``base`` make together, but for a head the folder lacks.

    Raises:
        CheckpointError: no base is named, or see ``base_weights``.
    """
    if not base:
        path = folder / "config.json"
        raise CheckpointError(f"{path}: no `base`, the checkpoint folder that its adapters belong to; add it")
    own = TensorSource(folder, [STEM])
    names, stored = base_weights(base, adapted_layers(own)), TensorSource(base, ["model"])
    return {n: stored[old] for n, old in names.items() if n not in own} | dict(own)
