"""What every converter of foreign checkpoints shares: tensors by name, names both ways, a report of keys, the files.

In: a folder with safetensors or .bin files, whole or in shards. Out: tensors one at a time, so that a
checkpoint larger than the memory can be converted, and a folder of safetensors. A mapping name -> tensor is all that
a conversion sees; on the meta device the same code tells names and shapes before anything is written. It knows no
model and no head; which names mean what stands in the head's own ``convert.py``.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from videollm.common import config

SHARD_BYTES = 4 << 30


class CheckpointError(config.UserError, ValueError):
    """A folder that cannot be loaded; the message names the folder, what is wrong and the remedy."""


need = partial(config.need, error=CheckpointError)  # need(holds, message)


def read_json(path: Path) -> dict:
    """A JSON mapping; CheckpointError where the file is missing or none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise CheckpointError(f"{path}: no such file; is the checkpoint complete?") from None
    except ValueError as error:
        raise CheckpointError(f"{path}: not valid JSON ({error}); fetch it again") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: must be a mapping; fetch it again")
    return found


def check_index(folder: Path) -> None:
    """CheckpointError for a folder with shards of weights and no file that says what is in which."""
    shards = sorted(path.name for end in ("safetensors", "bin") for path in folder.glob(f"*-of-*.{end}"))
    if shards and not list(folder.glob("*.index.json")):
        name = f"{shards[0].split('-')[0]}.{shards[0].rpartition('.')[2]}.index.json"
        told = f"its weights are in {len(shards)} shards, such as {shards[0]}, but {name} is missing"
        raise CheckpointError(f"{folder}: {told}; fetch it from where the shards are from")


def check_plain(fields: Mapping, where: str | Path) -> None:
    """CheckpointError where a released config, ``fields`` of the file or name ``where``, says: quantised.

    Such weights stand as scales and packed integers, of which most names and shapes are another model's.
    """
    said = fields.get("quantization_config") or (fields.get("text_config") or {}).get("quantization_config")
    method = (said or {}).get("quant_method")
    need(
        not said,
        f"{where}: quantization_config says that its weights are quantised ({getattr(method, 'value', method)}), and "
        "only plain ones can be converted or trained; take the release in bf16, or where they are dequantised already, "
        "take that key out of config.json",
    )


class TensorSource(Mapping[str, Tensor]):
    """The tensors of a checkpoint folder by name, read from disk when asked for.

    Looked for, in this order, for every stem: ``<stem>.safetensors``, ``<stem>.safetensors.index.json``,
    ``<stem>.bin``, ``<stem>.bin.index.json``; the first that exists is read. Of a .bin only tensors are unpickled.

    Raises:
        CheckpointError: no such file, a shard is missing or damaged, or an index names tensors its shards lack.
    """

    def __init__(self, folder: str | Path, stems: Iterable[str] = ("model", "pytorch_model")):
        self.folder = Path(folder)
        names = [f"{stem}.{end}" for stem in stems for end in
                 ("safetensors", "safetensors.index.json", "bin", "bin.index.json")]  # fmt: skip
        found = next((self.folder / name for name in names if (self.folder / name).is_file()), None)
        if found is None:
            check_index(self.folder)
            absent = f"{self.folder}: no weights; there is none of {', '.join(names)}"
            raise CheckpointError(f"{absent}; fetch one (of shards an .index.json too)")
        self._file_of: dict[str, Path] = {}
        self._pickled: dict[Path, dict[str, Tensor]] = {}
        index = read_json(found).get("weight_map") if found.suffix == ".json" else None
        if found.suffix == ".json" and not index:
            raise CheckpointError(f"{found}: no weight_map; fetch it again")
        paths = [self.folder / name for name in sorted(set(index.values()))] if index else [found]
        if lost := [path.name for path in paths if not path.is_file()]:
            raise CheckpointError(f"{self.folder}: no {', '.join(lost)}, which {found.name} names; fetch the shard")
        for path in paths:
            self._file_of |= dict.fromkeys(self._names(path), path)
        if lost := sorted(set(index or ()) - set(self._file_of)):
            raise CheckpointError(f"{found}: {lost[0]} ({len(lost)} such) is in none of its shards; fetch them again")

    def _names(self, path: Path) -> list[str]:
        """The names of the tensors of a file."""
        try:
            if path.suffix == ".safetensors":
                with safe_open(path, framework="pt") as file:
                    return list(file.keys())
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:  # torch raises UnpicklingError, RuntimeError, EOFError; safetensors its own
            raise CheckpointError(
                f"{path}: cannot be read as tensors ({' '.join(str(error).split())[:200]}); fetch it again, as "
                "safetensors where there is a choice"
            ) from None
        if odd := [name for name, value in found.items() if not isinstance(value, Tensor)]:
            raise CheckpointError(f"{path}: {odd[0]} is no tensor; give the file of weights, not of a training state")
        self._pickled[path] = found
        return list(found)

    def __getitem__(self, name: str) -> Tensor:
        path = self._file_of[name]
        if path in self._pickled:
            return self._pickled[path][name]
        try:
            with safe_open(path, framework="pt") as file:  # anew: an open file keeps in memory all that was read of it
                return file.get_tensor(name)
        except SafetensorError as error:
            raise CheckpointError(f"{path}: cannot read {name} ({error}); fetch it again") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._file_of)

    def __len__(self) -> int:
        return len(self._file_of)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one tensor, without reading it."""
        path = self._file_of[name]
        if path in self._pickled:
            return tuple(self._pickled[path][name].shape)
        with safe_open(path, framework="pt") as file:
            return tuple(file.get_slice(name).get_shape())

    def outlines(self) -> dict[str, Tensor]:
        """Every tensor on the meta device: names and shapes, no numbers."""
        return {name: torch.empty(self.shape(name), device="meta") for name in self}


class LazyTensors(Mapping[str, Tensor]):
    """Tensors that are made when asked for: name -> a function without arguments."""

    def __init__(self, makers: Mapping[str, Callable[[], Tensor]]):
        self.makers = makers

    @classmethod
    def of(cls, state: Mapping[str, Tensor], names: Mapping[str, str]) -> "LazyTensors":
        """Tensors of ``state`` under other names: new name -> name there."""
        return cls({new: (lambda old=old: state[old]) for new, old in names.items()})

    def __getitem__(self, name: str) -> Tensor:
        return self.makers[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self.makers)

    def __len__(self) -> int:
        return len(self.makers)


class NameTable:
    """Two spellings of the same names, one table for both directions.

    Rows are (official, ours). ``{i}`` stands for a number and ``{x}`` for any rest of a name; a placeholder stands in
    both columns or in none. The first row that fits decides.
    """

    def __init__(self, rows: Iterable[tuple[str, str]]):
        rows = list(rows)
        self._ours = [(pattern(official), ours) for official, ours in rows]
        self._official = [(pattern(ours), official) for official, ours in rows]

    def ours(self, official: str) -> str | None:
        """Our name, or None where no row fits."""
        return first_fit(self._ours, official)

    def official(self, ours: str) -> str | None:
        """The official name, or None where no row fits."""
        return first_fit(self._official, ours)


def pattern(template: str) -> re.Pattern:
    """A template of ``NameTable`` as a regular expression with named groups."""
    escaped = re.escape(template).replace(r"\{i\}", r"(?P<i>\d+)").replace(r"\{x\}", r"(?P<x>.+)")
    return re.compile(escaped)


def first_fit(rows: list[tuple[re.Pattern, str]], name: str) -> str | None:
    """The right side of the first row whose left side is ``name``."""
    for left, right in rows:
        if match := left.fullmatch(name):
            return right.format(**match.groupdict())
    return None


LORA = re.compile(r"(.+)\.lora_([AB])(?:\.\w+)?\.weight")


def adapted_layers(names: Iterable[str]) -> dict[str, dict[str, str]]:
    """Layers with peft adapters among ``names``: layer -> {"A": name, "B": name}."""
    layers: dict[str, dict[str, str]] = {}
    for name in names:
        if match := LORA.fullmatch(name):
            layers.setdefault(match[1], {})[match[2]] = name
    return layers


def fold_adapters(state: Mapping[str, Tensor], scale: float) -> Mapping[str, Tensor]:
    """``state`` with every peft adapter folded into its layer, W + scale * B A, computed in float32.

    The plain weight stands as ``layer.base_layer.weight`` (a wrapped model) or ``layer.weight`` (base beside adapter);
    further tensors of ``base_layer`` (a bias) lose that step of their name.

    Raises:
        CheckpointError: an adapter without its other half or without its layer.
    """
    layers = adapted_layers(state)
    adapters = {name for halves in layers.values() for name in halves.values()}
    plain = {name.replace(".base_layer.", "."): name for name in state if name not in adapters}
    makers = LazyTensors.of(state, plain).makers
    for layer, halves in layers.items():
        weight = f"{layer}.weight"
        if lacks := [half for half in "AB" if half not in halves]:
            raise CheckpointError(f"{layer}: its adapter has no lora_{lacks[0]}; fetch the checkpoint again")
        if weight not in plain:
            raise CheckpointError(f"{layer}: an adapter, but no {weight} that it belongs to; give the base as well")
        names = (plain[weight], halves["A"], halves["B"])
        makers[weight] = lambda names=names: fold(*(state[name] for name in names), scale)
    return LazyTensors(makers)


def fold(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """[out, in], [r, in], [out, r] -> the merged weight, as precise as ``weight``."""
    return (weight.float() + scale * (b.float() @ a.float())).to(weight.dtype)


@dataclass
class KeyReport:
    """Where a converted checkpoint and the model it is for differ.

    ``missing`` in the checkpoint, ``unexpected`` in it (unused), ``reshaped`` (name, shape before, shape after).
    """

    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    reshaped: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = field(default_factory=list)

    @classmethod
    def compare(cls, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> "KeyReport":
        """``found`` against what a model wants, by name and shape."""
        shapes = [(n, tuple(found[n].shape), tuple(wanted[n].shape)) for n in wanted if n in found]
        return cls(
            sorted(set(wanted) - set(found)),
            sorted(set(found) - set(wanted)),
            sorted(row for row in shapes if row[1] != row[2]),
        )

    def lines(self) -> list[str]:
        """One line for every key."""
        shaped = [f"re-shaped: {name} {list(before)} -> {list(after)}" for name, before, after in self.reshaped]
        return [f"missing: {n}" for n in self.missing] + [f"unexpected: {n}" for n in self.unexpected] + shaped

    def print(self) -> None:
        """Print every key, then how many of each kind."""
        for line in self.lines():
            print(line)
        print(f"{len(self.missing)} missing, {len(self.unexpected)} unexpected, {len(self.reshaped)} re-shaped keys")


def write_tensors(folder: str | Path, tensors: Iterable[tuple[str, Tensor]], shard_bytes: int = SHARD_BYTES) -> int:
    """Write tensors into ``folder`` as ``model*.safetensors``, a shard at a time; several shards get an index.

    Returns the bytes written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    shards: list[list[str]] = []
    shard: dict[str, Tensor] = {}
    size = total = 0

    def flush() -> None:
        nonlocal shard, size
        save_file(shard, folder / f"shard-{len(shards)}.part", metadata={"format": "pt"})
        shards.append(list(shard))
        shard, size = {}, 0

    for name, tensor in tensors:
        if shard and size + tensor.nbytes > shard_bytes:
            flush()
        shard[name] = tensor.contiguous()
        size, total = size + tensor.nbytes, total + tensor.nbytes
    flush()
    files = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    files = files if len(files) > 1 else ["model.safetensors"]
    for i, name in enumerate(files):
        (folder / f"shard-{i}.part").rename(folder / name)
    if len(files) > 1:
        where = {name: file for file, names in zip(files, shards, strict=True) for name in names}
        index = {"metadata": {"total_size": total}, "weight_map": where}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")
    return total
