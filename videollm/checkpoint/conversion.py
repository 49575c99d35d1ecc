"""Released checkpoints -> ours and back: the order of the work, the report of keys, and the folder that is written.

A ``Converter`` knows one family: which config.json it reads, and what becomes of names, config and tokenizer. It gives
a ``Conversion``, in which every tensor is made when it is asked for; names and shapes are compared on the meta device
before anything is written. A head's package brings converters of its own published checkpoints as ``CONVERTERS`` in its
module ``convert``.
"""

import argparse
import importlib
import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from videollm.checkpoint.bundle import QUESTION_TOKENIZER
from videollm.checkpoint.hub import local
from videollm.checkpoint.load import some
from videollm.checkpoint.tensors import CheckpointError, KeyReport, LazyTensors, check_plain, read_json, write_tensors
from videollm.common.config import ConfigError
from videollm.common.files import new_folder
from videollm.heads import head_class
from videollm.model.tying import EMBEDDINGS, OUTPUT, stored
from videollm.model.videollm import VideoLLM, VideoLLMConfig

HEAD_FILE = "head.safetensors"  # beside a released layout: what only we know how to read


@dataclass
class Conversion:
    """A checkpoint that is to be written, how its keys compare with those it should have, and remarks to print.

    ``weights`` are read when asked for; ``config`` is ours, or the JSON mapping of a released one. ``files`` are
    further JSON files by name.
    """

    config: VideoLLMConfig | dict
    tokenizer: PreTrainedTokenizerBase
    weights: Mapping[str, Tensor]
    report: KeyReport
    notes: list[str] = field(default_factory=list)
    question_tokenizer: PreTrainedTokenizerBase | None = None
    files: dict[str, dict] = field(default_factory=dict)
    head: Mapping[str, Tensor] = field(default_factory=dict)  # beside a released layout, in a file of its own,
    told: dict[str, str] = field(default_factory=dict)  # with these metadata

    def write(self, target: Path) -> None:
        """Print remarks and keys, then write the folder; its config comes last, as nothing is read without it."""
        for note in self.notes:
            print(note)
        self.report.print()
        write_tensors(target, self.weights.items())
        if self.head:
            save_file({name: tensor.contiguous() for name, tensor in self.head.items()}, target / HEAD_FILE, self.told)
        self.tokenizer.save_pretrained(target)
        if self.question_tokenizer is not None:
            self.question_tokenizer.save_pretrained(target / QUESTION_TOKENIZER)
        ours = isinstance(self.config, VideoLLMConfig)
        for name, fields in (self.files if ours else self.files | {"config.json": self.config}).items():
            (target / name).write_text(json.dumps(fields, indent=2, ensure_ascii=False), encoding="utf-8")
        if ours:
            self.config.save_pretrained(target)


class Converter:
    """A family of released checkpoints; ``name`` tells users of it."""

    name: ClassVar[str]

    def options(self, parser: argparse.ArgumentParser) -> None:
        """Add the family's own options to the command."""

    def reads(self, fields: dict) -> bool:
        """Whether this is the ``config.json`` of such a checkpoint."""
        raise NotImplementedError

    def writes(self, config: VideoLLMConfig) -> bool:
        """Whether one of our checkpoints goes back to such a one."""
        raise NotImplementedError

    def read(self, folder: Path, args: argparse.Namespace) -> Conversion:
        """A released folder as one of ours; raises CheckpointError or ConfigError."""
        raise NotImplementedError

    def back(self, folder: Path, args: argparse.Namespace) -> Conversion:
        """One of our folders in the released layout; raises CheckpointError or ConfigError."""
        raise NotImplementedError


def plugged(head: str) -> list[Converter]:
    """The converters that the package of a head brings. Raises ConfigError where there is no such head."""
    package = head_class(head).__module__.partition(".")[0]
    if package == __name__.partition(".")[0] or not importlib.util.find_spec(f"{package}.convert"):
        return []
    return list(getattr(importlib.import_module(f"{package}.convert"), "CONVERTERS", ()))


def convert(args: argparse.Namespace, converters: list[Converter]) -> None:
    """Carry out the command with the first of the ``converters`` that knows the checkpoint; a lone one is asked anyway.

    Raises:
        CheckpointError: nobody knows it, or what the converter refuses; nothing is left then.
    """
    target = Path(args.target)
    source = local(args.source)
    if len(converters) > 1:
        fields = read_json(source / "config.json")
        if args.back and (head := (fields.get("head") or {}).get("name")):
            converters = [*plugged(head), *converters]
        known = [converter for converter in converters if knows(converter, fields, args.back)]
        converters = known or refuse(source, fields, args.back, converters)
    if not args.back:
        check_plain(read_json(source / "config.json"), source / "config.json")
    conversion = (converters[0].back if args.back else converters[0].read)(source, args)
    with new_folder(target) as fresh:
        conversion.write(fresh)
    print(f"{target}: {'in the released layout' if args.back else 'one of our checkpoints'}")


def knows(converter: Converter, fields: dict, back: bool) -> bool:
    """Whether a converter has to do with a checkpoint of ``config.json`` ``fields``."""
    own = fields.get("model_type") == VideoLLMConfig.model_type
    if own != back:
        return False
    return converter.writes(VideoLLMConfig.from_dict(fields)) if own else converter.reads(fields)


def refuse(source: Path, fields: dict, back: bool, converters: list[Converter]) -> list[Converter]:
    """Raise the CheckpointError of a checkpoint that no converter knows."""
    kind, own = fields.get("model_type"), fields.get("model_type") == VideoLLMConfig.model_type
    if own and not back:
        raise CheckpointError(f"{source}: already a checkpoint of this project; use it as it is, or add --back")
    if own:
        raise CheckpointError(f"{source}: no released layout is known for it; only a converted model can go back")
    if back:
        raise CheckpointError(f"{source}: model_type is {kind!r}, so it is in a released layout; leave --back out")
    raise CheckpointError(
        f"{source}: model_type is {kind!r}; known are {', '.join(c.name for c in converters)}, and what the package "
        "of a head reads: name it with --head"
    )


# ---- what converters share -------------------------------------------------------------------------------------------


def compared(outlines: Mapping[str, Tensor], config: VideoLLMConfig, folder: Path, has_head: bool) -> KeyReport:
    """Our keys in ``outlines`` against those of the model that ``config`` describes.

    Raises:
        CheckpointError: a key is missing (but for a whole head), or has another shape.
    """
    try:
        with torch.device("meta"):
            whole = VideoLLM(config).state_dict()
    except ConfigError as error:
        raise CheckpointError(f"{folder}: {error}") from None
    wanted = {name: whole[name] for name in stored(whole, config.text_config)}
    report = KeyReport.compare(outlines, wanted)
    lost = [name for name in report.missing if has_head or not name.startswith("head.")]
    if lost or report.reshaped:
        report.print()
        shapes = [f"{name} {list(found)}, not {list(right)}" for name, found, right in report.reshaped]
        what = f"missing: {some(lost)}" if lost else f"of another shape: {some(shapes)}"
        raise CheckpointError(f"{folder}: its weights do not fit its config.json; {what}; fetch both again")
    return report


def only(weights: Mapping[str, Tensor], report: KeyReport) -> Mapping[str, Tensor]:
    """``weights`` without the unexpected ones."""
    return LazyTensors.of(weights, {name: name for name in weights if name not in report.unexpected})


def with_more_tokens(state: Mapping[str, Tensor], rows: int) -> Mapping[str, Tensor]:
    """Our weights with the vocabulary grown to ``rows``: embeddings normal(0, 0.02), output rows the mean row.

    The new rows of a matrix that is both get the mean, as in DisTime's code, which fills the output last.
    """

    def embeddings() -> Tensor:
        old = state[EMBEDDINGS]
        generator = torch.Generator().manual_seed(0)
        new = torch.randn(rows - old.shape[0], old.shape[1], generator=generator) * 0.02
        return torch.cat([old, new.to(old)])

    def output(name: str) -> Tensor:
        old = state[name]
        mean = old.float().mean(0, keepdim=True).to(old.dtype)
        return torch.cat([old, mean.expand(rows - old.shape[0], -1)])

    kept = LazyTensors.of(state, {name: name for name in state}).makers
    grown = {EMBEDDINGS: embeddings, OUTPUT: lambda: output(OUTPUT)}
    return LazyTensors(kept | (grown if OUTPUT in state else {EMBEDDINGS: lambda: output(EMBEDDINGS)}))
