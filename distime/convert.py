"""Official InternVL2.5 and DisTime checkpoints -> ours: ``python -m distime.convert SRC DST``; ``--back`` returns.

``videollm convert --head distime`` is the same command, and reads all other families too. SRC is a folder or
a hub name; its weights may be sharded, safetensors or .bin, with adapters merged or not. Names and shapes are compared
on the meta device before anything is written, and every missing, unexpected and re-shaped key is printed. A checkpoint
without a time head becomes a base: training starts a head on it, evaluation refuses it.
"""

import sys
from argparse import Namespace
from collections import ChainMap
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from distime.names import BINS, merge_lora, to_official, to_ours
from distime.official_config import LANGUAGE, layout_of, official_config, our_config, our_layout
from distime.tokenizer import TIME_TOKENS, add_time_tokens
from distime.tokenizer import read_tokenizer as read_official_tokenizer
from videollm.checkpoint import conversion, need, read_config, read_tokenizer, tensors
from videollm.checkpoint.conversion import Conversion, Converter, compared, only, with_more_tokens
from videollm.checkpoint.load import some
from videollm.checkpoint.tensors import KeyReport, LazyTensors, TensorSource
from videollm.convert import main as command
from videollm.model.tying import EMBEDDINGS, OUTPUT, settle, stored, tied
from videollm.model.videollm import VideoLLMConfig


def from_official(folder: Path) -> Conversion:
    """An official checkpoint as one of ours.

    Raises:
        CheckpointError: another architecture, a missing file, keys or shapes that do not fit, a tokenizer that lacks
            the time tokens of a checkpoint that has a time head, or adapters of unknown scale.
    """
    where = folder / "config.json"
    official = tensors.read_json(where)
    layout, config = layout_of(official, str(where)), our_config(official, str(where))
    source = TensorSource(folder)
    weights, outlines, notes = source, source.outlines(), []
    if adapters := tensors.adapted_layers(outlines):
        scale = lora_scale(official, {outlines[h["A"]].shape[0] for h in adapters.values() if "A" in h}, where)
        weights, outlines = merge_lora(weights, scale), merge_lora(outlines, scale)
        notes.append(f"merged the adapters of {len(adapters)} layers (W + {scale:g} B A)")
    weights, outlines = to_ours(weights, layout), dict(to_ours(outlines, layout))
    if OUTPUT in outlines:  # the official code has two matrices, whatever its config says
        config.text_config.tie_word_embeddings = False
    tokenizer = read_official_tokenizer(folder)
    has_head = any(name.startswith("head.") for name in outlines)
    rows = vocabulary(folder, outlines, config.text_config.vocab_size, tokenizer, has_head)
    reshaped = []
    if rows != config.text_config.vocab_size:
        weights, grown = with_more_tokens(weights, rows), dict(with_more_tokens(outlines, rows))
        reshaped, outlines = KeyReport.compare(outlines, grown).reshaped, grown
        config.text_config.vocab_size = rows
    config.token_ids = {name: tokenizer.convert_tokens_to_ids(name) for name in TIME_TOKENS}
    config.dtype = source[next(iter(source))].dtype
    report = compared(outlines, config, folder, has_head)
    report.reshaped = reshaped
    config.headless = not has_head
    if not has_head:
        notes.append("no time head: a base, on which training starts a new one; infer and ask will refuse it")
    return Conversion(config, tokenizer, only(weights, report), report, notes)


def lora_scale(official: dict, ranks: set[int], where: Path) -> float:
    """alpha / r of un-merged adapters: the official code has alpha = 2 r, and r in the config."""
    rank, found = official.get("use_llm_lora"), some(sorted(map(str, ranks)))
    remedy = "write the rank there, or give a merged checkpoint"
    need(rank, f"{where}: use_llm_lora is {rank}, but the weights hold adapters of rank {found}; {remedy}")
    need(ranks == {rank}, f"{where}: use_llm_lora is {rank}, the adapters have rank {found}; correct it")
    return 2.0


def vocabulary(
    folder: Path, outlines: Mapping[str, Tensor], told: int, tokenizer: PreTrainedTokenizerBase, has_head: bool
) -> int:
    """Rows that embeddings and output need; a base's tokenizer gets the time tokens it lacks.

    Raises:
        CheckpointError: embeddings, config and tokenizer do not belong together.
    """
    there = EMBEDDINGS in outlines
    need(there, f"{folder}: no token embeddings among its weights; is the checkpoint complete?")
    stored, known = outlines[EMBEDDINGS].shape[0], len(tokenizer)
    differ = f"embeddings of {stored} tokens, but llm_config.vocab_size in config.json is {told}"
    need(stored == told, f"{folder}: {differ}; take both files from one checkpoint")
    more = f"its tokenizer has {known} tokens, the weights {stored}"
    need(known <= stored, f"{folder}: {more}; take both from one checkpoint")
    added = add_time_tokens(tokenizer)
    lacks = f"has a time head, but its tokenizer lacks {' and '.join(added)}"
    need(not (added and has_head), f"{folder}: {lacks}; copy the tokenizer files that were saved with these weights")
    return max(stored, len(tokenizer))


def to_official_folder(folder: Path) -> Conversion:
    """One of our DisTime checkpoints in the official layout; InternLM2's projections are fused again.

    A tied matrix is written twice: the official code has two, whatever its config says.

    Raises:
        CheckpointError: not one of ours, or one that has no official layout.
    """
    config = read_config(folder)
    official = official_config(config, str(folder / "config.json"))
    source, layout, text = TensorSource(folder, ["model"]), our_layout(config), config.text_config
    has_head = any(name.startswith("head.") for name in source)
    settle(text, source, folder)
    outlines = source.outlines()
    report = compared({name: outlines[name] for name in stored(source, text)}, config, folder, has_head)
    ours = only(source, report)
    if tied(text):
        ours = ChainMap(LazyTensors({OUTPUT: lambda: source[EMBEDDINGS].clone()}), ours)  # no file stores views
    weights = to_official(ours, layout)
    if has_head:
        bins = torch.arange(official["dec_reg"] + 1).to(source[next(iter(source))])
        weights = ChainMap({BINS: bins}, weights)
    return Conversion(official, read_tokenizer(folder), weights, report, [])


class DisTime(Converter):
    """InternVL2.5 as a base of the time head, and DisTime, in their official layout."""

    name = "InternVL2.5, DisTime"

    def reads(self, fields: dict) -> bool:
        llm = fields.get("llm_config", {}) if fields.get("model_type") == "internvl_chat" else {}
        return not {*(llm.get("architectures") or ())}.isdisjoint(LANGUAGE)

    def writes(self, config: VideoLLMConfig) -> bool:
        return config.head.get("name") == "distime" and not hasattr(config, "published")

    def read(self, folder: Path, args: Namespace | None = None) -> Conversion:
        return from_official(folder)

    def back(self, folder: Path, args: Namespace | None = None) -> Conversion:
        return to_official_folder(folder)


CONVERTERS = (DisTime(),)


def convert(source: str, target: str, back: bool = False) -> None:
    """Convert ``source`` (a folder or hub name) into the new folder ``target``; raises CheckpointError."""
    conversion.convert(Namespace(source=source, target=target, back=back), [DisTime()])


def main(argv: Sequence[str] | None = None) -> int:
    """``videollm convert --head distime`` for this layout alone; returns the exit status."""
    return command(argv, DisTime(), "python -m distime.convert")


if __name__ == "__main__":
    sys.exit(main())
