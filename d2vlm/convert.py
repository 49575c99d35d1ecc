"""Checkpoints of E.T. Chat and D2VLM -> ours, and ours -> the published form, with a report of every key.

    python -m d2vlm.convert SRC DST                  # a whole model: E.T. Chat stage 2, D2VLM with its LoRA merged
    python -m d2vlm.convert SRC DST --base BASE      # an adapter (LoRA + the other trained tensors) on its base
    python -m d2vlm.convert LLM DST --vision eva_vit_g.pth --qformer instruct_blip.pth      # the raw parts
    python -m d2vlm.convert SRC DST --back           # one of ours, for the official code

SRC, BASE and LLM are folders or hub names. ``videollm convert --head d2vlm`` is the same command. Files and
messages are handled here; names and settings in ``names.py``.
"""

import sys
from argparse import ArgumentParser, Namespace
from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from d2vlm.evidence import EVIDENCE, EVIDENCE_END
from d2vlm.names import (
    FRAME,
    NAMES,
    TOWER,
    count,
    is_base,
    official,
    official_fields,
    our_config,
    ours,
    size,
    text_config,
    tower_fields,
)
from videollm.checkpoint import CheckpointError, load_tokenizer, local, need, read_config, tensors
from videollm.checkpoint.conversion import Conversion, Converter
from videollm.checkpoint.tensors import KeyReport, LazyTensors, TensorSource, read_json
from videollm.convert import main as command
from videollm.model.connectors import build_connector
from videollm.model.tying import EMBEDDINGS, OUTPUT, differ, settle, stored, tied
from videollm.model.videollm import VideoLLM, VideoLLMConfig

WRAPPED = "base_model.model."  # what peft puts before every name
TEMPLATE_OF = {"phi3": "phi3", "llama": "llama3", "qwen2": "qwen2", "gemma2": "gemma2"}
VOCABULARY = (EMBEDDINGS, OUTPUT)


@dataclass
class Published:
    """An official checkpoint: fields of its config.json, its tensors by official name, what it lacks by nature."""

    fields: dict
    state: Mapping[str, Tensor]
    outlines: Mapping[str, Tensor]  # the same on the meta device: names and shapes
    base: bool = False  # has no evidence head: to train from, not to evaluate
    fresh: bool = False  # the connector's projections are to be drawn: raw parts


# ---- reading ---------------------------------------------------------------------------------------------------------


def read_published(folder: Path, base: Path | None = None) -> Published:
    """A whole checkpoint, or an adapter merged into ``base``.

    Raises:
        CheckpointError: the checkpoint is of another architecture or form, incomplete, or an adapter without base.
    """
    fields = read_json(folder / "config.json")
    check_kind(folder, fields)
    adapter = (folder / "adapter_config.json").is_file()
    if adapter and base is None:
        named = fields.get("model_name_or_path") or "the E.T. Chat stage 2 or SFT checkpoint that it was trained from"
        raise CheckpointError(f"{folder}: an adapter; give the model it belongs to with --base ({named})")
    needless = base is not None and not adapter
    need(not needless, f"{folder}: no adapter_config.json, so this is no adapter; leave --base out")
    if adapter:
        return merged(folder, fields, read_published(base))
    source = TensorSource(folder)
    wrapped = next((name for name in source if name.startswith(WRAPPED)), None)
    part = f"{wrapped} is part of an adapter checkpoint, but there is no adapter_config.json"
    need(wrapped is None, f"{folder}: {part}; fetch it again")
    names = one_name(fields, source)
    state, outlines = (LazyTensors.of(part, names) for part in (source, source.outlines()))
    if not is_base(fields) or any(name.startswith("evi_head.") for name in source):
        return Published(fields, state, outlines)
    # E.T. Chat's own frm_head reads another layer and would be a false start.
    state, outlines = (set_aside(tensors, ["frm_head."]) for tensors in (state, outlines))
    return Published(fields, state, outlines, base=True)


def one_name(fields: dict, source: TensorSource) -> dict[str, str]:
    """{name: name} of ``source``, without the second name of a tied matrix: beside an adapter's it would be stale."""
    text = text_config(fields["model_type"].removeprefix("etchat_"), fields)
    second = NAMES.official(OUTPUT) if tied(text) and not differ(ours(source)) else None
    return {name: name for name in source if name != second}


def check_kind(folder: Path, fields: dict) -> None:
    """CheckpointError unless config.json is that of an official model of this family."""
    kind = str(fields.get("model_type"))
    own = kind == VideoLLMConfig.model_type
    need(not own, f"{folder}: already one of our checkpoints; use it as it is, or add --back")
    if kind.startswith("etchat_"):
        return
    remedy = "python -m distime.convert reads it" if kind == "internvl_chat" else "give an E.T. Chat or D2VLM model"
    if kind in TEMPLATE_OF:
        remedy = "a language model alone needs --vision and --qformer beside it"
    raise CheckpointError(f"{folder}: model_type is {kind!r}, not etchat_phi3 or similar; {remedy}")


def merged(folder: Path, fields: dict, base: Published) -> Published:
    """The adapter in ``folder`` on ``base``: LoRA folded in, the other trained tensors in place of the base's."""
    options = read_json(folder / "adapter_config.json")
    odd = [key for key in ("use_rslora", "use_dora", "rank_pattern", "alpha_pattern") if options.get(key)]
    known = options.get("peft_type") == "LORA" and not odd
    need(known, f"{folder}/adapter_config.json: {', '.join(odd) or 'peft_type'}: not the published LoRA")
    scale, plain = options["lora_alpha"] / options["r"], lambda name: name.removeprefix(WRAPPED)
    own = [TensorSource(folder, [stem]) for stem in ("adapter_model", "pytorch_model")]
    state, outlines = (
        tensors.fold_adapters(ChainMap(*(renamed(part, plain) for part in parts), rest), scale)
        for parts, rest in ((own, base.state), ([part.outlines() for part in own], base.outlines))
    )
    return Published(fields, state, outlines)


def renamed(state: Mapping[str, Tensor], rename: Callable[[str], str]) -> LazyTensors:
    """``state`` with other names."""
    return LazyTensors.of(state, {rename(name): name for name in state})


def set_aside(state: Mapping[str, Tensor], prefixes: Sequence[str]) -> LazyTensors:
    """``state`` with the tensors of ``prefixes`` named as ``unused``, so that the report has them and no part does."""
    return renamed(state, lambda name: f"unused.{name}" if name.startswith(tuple(prefixes)) else name)


def read_parts(language: Path, vision: Path, qformer: Path) -> Published:
    """The raw parts that E.T. Chat starts from: EVA-CLIP-g, InstructBLIP's Q-Former, a language model."""
    fields = read_json(language / "config.json")
    kind = fields.get("model_type")
    need(kind in TEMPLATE_OF, f"{language}: model_type is {kind!r}; give one of {', '.join(TEMPLATE_OF)}")
    eva = {TOWER + name: tensor for name, tensor in read_pickle(vision).items()}
    bert = renamed(read_pickle(qformer), official_part)
    for path, state, wanted in ((vision, eva, TOWER + "pos_embed"), (qformer, bert, "model.qformer_query")):
        name = wanted.removeprefix(TOWER)
        need(wanted in state, f"{path}: lacks {name}; is it the file that its option names?")
    pixels = tower_fields({name: tuple(tensor.shape) for name, tensor in eva.items()})["image_size"]
    fields |= {"model_type": f"etchat_{kind}", "conv_type": TEMPLATE_OF[kind]}
    fields["vision_processor"] = f"clip_center_{pixels}"
    # The published tower ends before the file's last block.
    eva = set_aside(eva, [f"{TOWER}blocks.{count(eva, TOWER + 'blocks.') - 1}."])
    words = TensorSource(language)
    outlines = [{name: part[name].to("meta") for name in part} for part in (eva, bert)]
    return Published(fields, ChainMap(eva, bert, words), ChainMap(*outlines, words.outlines()), base=True, fresh=True)


def official_part(name: str) -> str:
    """A name of InstructBLIP's Q-Former file as E.T. Chat calls it."""
    rows = {"Qformer.": "model.qformer_bert.", "query_tokens": "model.qformer_query", "ln_vision.": "model.qformer_ln."}
    old = next((old for old in rows if name.startswith(old)), "")
    return rows.get(old, "") + name.removeprefix(old)


def read_pickle(path: Path) -> dict[str, Tensor]:
    """The tensors of a .pth file, also of one below ``model``; nothing but tensors is unpickled."""
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except Exception as error:  # UnpicklingError, RuntimeError, EOFError
        what = f"{path}: cannot be read as tensors ({str(error).splitlines()[0]})"
        raise CheckpointError(f"{what}; fetch it again") from None
    loaded = loaded.get("model", loaded) if isinstance(loaded, dict) else {}
    return {name: value for name, value in loaded.items() if isinstance(value, Tensor)}


# ---- to ours ---------------------------------------------------------------------------------------------------------


def add_tokens(folder: Path, tokenizer: PreTrainedTokenizerBase, fields: dict) -> dict[str, int]:
    """Give the tokenizer ``<evi>``, ``</evi>`` and our ``<frame>``; the ids of the first two.

    Raises:
        CheckpointError: the checkpoint was trained with other ids.
    """
    added = {"extra_special_tokens": [EVIDENCE, EVIDENCE_END, FRAME]}
    tokenizer.add_special_tokens(added, replace_extra_special_tokens=False)
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in (EVIDENCE, EVIDENCE_END)}
    for name, key in ((EVIDENCE, "evidence_token_id"), (EVIDENCE_END, "evidence_end_token_id")):
        trained, remedy = fields.get(key, ids[name]), "give the checkpoint's own tokenizer with --tokenizer"
        other = f"trained with {name} as token {trained}, its tokenizer has it as {ids[name]}"
        need(trained == ids[name], f"{folder}: {other}; {remedy}")
    return ids


def fitted(where: Path, published: Published, tokens: int, token_ids: dict[str, int], **parts: dict | None):
    """(our config, our tensors on the meta device, the report before rows are added) for an official checkpoint."""
    shapes = {name: tuple(tensor.shape) for name, tensor in published.outlines.items()}
    config = our_config(published.fields, shapes, token_ids, **parts)
    config.headless = published.base
    text = config.text_config
    text.vocab_size = max(size(shapes, "model.embed_tokens.weight")[0], tokens)
    settle(text, ours(published.state), where)
    with torch.device("meta"):
        found, wanted = (kept(state, text) for state in (ours(published.outlines), VideoLLM(config).state_dict()))
    return config, wanted, KeyReport.compare(found, wanted)


def kept(state: Mapping[str, Tensor], text: PretrainedConfig) -> LazyTensors:
    """Our tensors without the second name of a tied matrix."""
    return LazyTensors.of(state, {name: name for name in stored(state, text)})


def check(where: Path, published: Published, report: KeyReport) -> None:
    """CheckpointError where the report holds more than such a checkpoint explains."""
    fresh = ("connector.",) * published.fresh + ("head.",) * published.base
    missing = [name for name in report.missing if not name.startswith(fresh)] if fresh else report.missing
    reshaped = [row[0] for row in report.reshaped if row[0] not in VOCABULARY or row[1][0] > row[2][0]]
    if missing or reshaped:
        report.print()
        raise CheckpointError(
            f"{where}: {len(missing)} tensors are missing and {len(reshaped)} of another shape, first "
            f"{(missing + reshaped)[0]} (all of them above); is the checkpoint complete, and config.json its own?"
        )


def made(published: Published, where: Path, tokenizers: tuple, **parts: dict | None) -> Conversion:
    """An official checkpoint as one of ours.

    Args:
        published: what was read from ``where``.
        tokenizers: of the language model and of the Q-Former.
        parts: fields laid over those of the ``vision`` tower and the ``connector``.

    Raises:
        CheckpointError: keys or shapes that no part of the model explains.
    """
    tokenizer, question = tokenizers
    token_ids = add_tokens(where, tokenizer, published.fields)
    question.truncation_side = "left"  # as published: the end of a long question is kept
    question.add_special_tokens({"bos_token": "[DEC]"})
    config, wanted, report = fitted(where, published, len(tokenizer), token_ids, **parts)
    check(where, published, report)
    words = config.connector["vocab_size"]
    known = len(question) <= words
    need(known, f"{where}: its Q-Former knows {words} words, --question-tokenizer {len(question)}")
    end = "a base, without evidence head: train from it (model.checkpoint); it cannot be evaluated"
    notes = [f"{where}: {end}"] if published.base else []
    return Conversion(config, tokenizer, filled(published, config, wanted), report, notes, question)


def convert(published: Published, where: Path, output: Path, tokenizers: tuple, **parts: dict | None) -> KeyReport:
    """Write an official checkpoint as one of ours into the new folder ``output``; all else as of ``made``."""
    conversion = made(published, where, tokenizers, **parts)
    conversion.write(output)
    return conversion.report


def filled(published: Published, config: VideoLLMConfig, wanted: Mapping[str, Tensor]) -> LazyTensors:
    """The tensors of our checkpoint; rows and projections that it lacks are made here."""
    found = ours(published.state)
    drawn = {}
    if published.fresh:
        torch.manual_seed(0)
        own = build_connector(config.connector, config.vision["hidden_size"], config.text_config.hidden_size)
        drawn = {f"connector.{name}": tensor for name, tensor in own.state_dict().items()}

    def grown(name: str) -> Tensor:
        tensor, lack = found[name], 0
        if name in VOCABULARY:
            lack = len(wanted[name]) - len(tensor)
        return torch.cat([tensor, tensor.mean(0, keepdim=True).expand(lack, -1)]) if lack else tensor

    makers = {name: (lambda name=name: grown(name)) for name in wanted if name in found}
    makers |= {name: (lambda name=name: drawn[name]) for name in wanted if name not in found and name in drawn}
    return LazyTensors({name: makers[name] for name in wanted if name in makers})


# ---- back ------------------------------------------------------------------------------------------------------------


def back(folder: Path) -> Conversion:
    """One of our checkpoints in the published, whole form; adapters are folded in.

    Raises:
        CheckpointError: the folder is none of ours, or incomplete.
        ConfigError: it has a part or an option that the published code has not.
    """
    kind = read_json(folder / "config.json").get("model_type")
    published = str(kind).startswith("etchat_")
    need(not published, f"{folder}: already in the published form; leave --back out to convert it to ours")
    config = read_config(folder)
    fields = official_fields(config)
    source, text = TensorSource(folder, ["model"]), config.text_config
    settle(text, source, folder)
    fields["tie_word_embeddings"] = tied(text)
    scale = config.lora["alpha"] / config.lora["r"] if config.lora else 1.0
    state, found = (official(kept(tensors.fold_adapters(s, scale), text)) for s in (source, source.outlines()))
    with torch.device("meta"):
        plain = VideoLLMConfig.from_dict(config.to_dict() | {"lora": None})
        wanted = official(kept(VideoLLM(plain).state_dict(), text))
    report = KeyReport.compare(found, wanted)
    if report.missing or report.unexpected or report.reshaped:
        report.print()
        raise CheckpointError(f"{folder}: its weights do not fit its config.json (see above); is the run complete?")
    kind = config.text_config.model_type
    fields["architectures"] = [f"ETChat{kind.capitalize()}ForCausalLM"]
    sampling = {"temperature": None, "top_k": None, "top_p": None, "repetition_penalty": None}  # as published
    tokenizer = load_tokenizer(str(folder), "SRC")
    return Conversion(fields, tokenizer, state, report, files={"generation_config.json": sampling})


# ---- command ---------------------------------------------------------------------------------------------------------


class D2VLM(Converter):
    """E.T. Chat and D2VLM, whole, as adapters or in raw parts."""

    name = "E.T. Chat, D2VLM"

    def options(self, parser: ArgumentParser) -> None:
        parser.add_argument("--base", help="folder or hub name of the model that an adapter belongs to")
        parser.add_argument("--vision", help="raw parts (SRC is the language model): eva_vit_g.pth")
        parser.add_argument("--qformer", help="raw parts: InstructBLIP's Q-Former, .pth")
        parser.add_argument("--tokenizer", help="folder or hub name; by default that of SRC, or of BASE")
        told = "of the Q-Former (default: %(default)s)"
        parser.add_argument("--question-tokenizer", default="bert-base-uncased", help=told)

    def reads(self, fields: dict) -> bool:
        kind = str(fields.get("model_type"))
        return kind.startswith("etchat_") or kind in TEMPLATE_OF

    def writes(self, config: VideoLLMConfig) -> bool:
        return config.head.get("name") == "d2vlm" and not hasattr(config, "published")

    def read(self, folder: Path, args: Namespace) -> Conversion:
        both = bool(args.vision) == bool(args.qformer)
        need(both, "raw parts: give --vision and --qformer, and the language model as SRC")
        need(not (args.vision and args.base), "--base: raw parts have none; leave it out")
        base = local(args.base) if args.base else None
        raw = bool(args.vision)
        published = read_parts(folder, Path(args.vision), Path(args.qformer)) if raw else read_published(folder, base)
        own = next((f for f in (folder, base) if f and list(f.glob("tokenizer*"))), folder)
        tokenizer = load_tokenizer(args.tokenizer or str(own), "--tokenizer")
        question = load_tokenizer(args.question_tokenizer, "--question-tokenizer")
        return made(published, folder, (tokenizer, question))

    def back(self, folder: Path, args: Namespace) -> Conversion:
        others = [f"--{name}" for name in ("base", "vision", "qformer") if getattr(args, name, None)]
        need(not others, f"--back: {', '.join(others)} cannot be given with it; leave them out")
        return back(folder)


CONVERTERS = (D2VLM(),)


def main(arguments: Sequence[str] | None = None) -> int:
    """``videollm convert --head d2vlm`` for these checkpoints alone; returns the exit status."""
    return command(arguments, D2VLM(), "python -m d2vlm.convert")


if __name__ == "__main__":
    sys.exit(main())
