"""Plain vision-language models in the layouts in which they are published: Qwen2.5-VL, Qwen3-VL, InternVL (two of it).

A layout is names both ways and our config for a published one. What stands in the folder beside (config.json, the
processor's files) is kept in our config as ``published``, as text, so that a model that was trained goes back to the
layout it came from. The head is asked for by name; its weights go into a file beside, and come back from there.
"""

import json
from argparse import Namespace
from collections import ChainMap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from safetensors import safe_open
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from videollm.batches.templates import TEMPLATES
from videollm.checkpoint import internvl
from videollm.checkpoint.adapters import has_adapters
from videollm.checkpoint.conversion import HEAD_FILE, Conversion, Converter, compared, with_more_tokens
from videollm.checkpoint.load import read_config, read_tokenizer
from videollm.checkpoint.tensors import (
    CheckpointError,
    KeyReport,
    LazyTensors,
    TensorSource,
    fold_adapters,
    need,
    read_json,
)
from videollm.common.config import ConfigError, build
from videollm.heads import head_class
from videollm.model.backbones import FAMILIES
from videollm.model.backbones.internvl import TOKENS
from videollm.model.tying import EMBEDDINGS, OUTPUT, settle, stored, tied
from videollm.model.videollm import VideoLLMConfig
from videollm.reading.styles import STYLES
from videollm.video.preprocess import Preprocess

KEPT = (
    "config.json", "generation_config.json", "preprocessor_config.json", "video_preprocessor_config.json",
    "processor_config.json", "chat_template.json",
)  # fmt: skip
INTERNVL_FRAMES = {"rule": "internvl", "num_frames": 32}
MAX_LENGTH = 32768  # tokens of a conversation with a video; no published file says


class Layout(Converter):
    """One published layout; ``name`` is the ``model_type`` of its config.json."""

    template: ClassVar[str]
    sampler: ClassVar[dict]
    two_matrices: ClassVar[bool] = False  # whether its code never ties the output layer, whatever the config says

    def to_ours(self, state: Mapping[str, Tensor]) -> LazyTensors:
        """Published names -> ours; a name that means nothing to us keeps its spelling."""
        raise NotImplementedError

    def spelling(self, names: Iterable[str]) -> list[tuple[str, str]]:
        """Which of several spellings the published ``names`` are in: what ``to_published`` needs to give them back."""
        return []

    def to_published(self, state: Mapping[str, Tensor], spelling: Sequence[Sequence[str]]) -> LazyTensors:
        """Our names -> published ones."""
        raise NotImplementedError

    def our_config(self, files: dict[str, dict], where: str) -> VideoLLMConfig:
        """Our config, without head, for the JSON files of a published folder."""
        raise NotImplementedError

    def tokenizer(self, folder: Path) -> PreTrainedTokenizerBase:
        """The folder's tokenizer. Raises CheckpointError where it cannot be read."""
        return read_tokenizer(folder)

    def reads(self, fields: dict) -> bool:
        return fields.get("model_type") == self.name

    def writes(self, config: VideoLLMConfig) -> bool:
        kept = getattr(config, "published", {}).get("files", {})
        return json.loads(kept.get("config.json", "{}")).get("model_type") == self.name

    def read(self, folder: Path, args: Namespace) -> Conversion:
        files = {name: read_json(folder / name) for name in KEPT if (folder / name).is_file()}
        source, (head, told) = TensorSource(folder), read_head(folder)
        texts = {name: json.dumps(fields) for name, fields in files.items()}  # before configs change mappings
        config = self.our_config(files, str(folder / "config.json"))
        check_pixels(config.preprocess, folder)
        config.published = {"files": texts, "names": self.spelling(source)}
        kept = told.get("head")
        fits = not kept or args.head in (None, kept["name"])
        need(fits, f"{folder / HEAD_FILE}: of a {kept and kept['name']} head; leave --head out, or take the file away")
        config.head = kept or head_options(args.head or "text", self.name)
        if self.two_matrices and OUTPUT in self.to_ours(source):
            config.text_config.tie_word_embeddings = False
        settle(config.text_config, self.to_ours(source), folder)
        weights, outlines = (
            LazyTensors.of(state, {name: name for name in stored(state, config.text_config)})
            for state in (
                ChainMap(head, self.to_ours(source)),
                ChainMap({name: tensor.to("meta") for name, tensor in head.items()}, self.to_ours(source.outlines())),
            )
        )
        tokenizer = self.tokenizer(folder)
        rows, reshaped = vocabulary(folder, outlines, config, tokenizer), []
        if rows != config.text_config.vocab_size:
            weights, grown = with_more_tokens(weights, rows), dict(with_more_tokens(outlines, rows))
            reshaped, outlines = KeyReport.compare(outlines, grown).reshaped, grown
            config.text_config.vocab_size = rows
        config.dtype = source[next(iter(source))].dtype
        report = compared(outlines, config, folder, bool(head))
        report.reshaped = reshaped
        config.headless = any(name.startswith("head.") for name in report.missing)
        weights = LazyTensors.of(weights, {name: name for name in weights if name not in report.unexpected})
        notes = []
        if "preprocessor_config.json" not in files:
            lacks = "no preprocessor_config.json: limits of pixels and tiles are the family's own"
            notes.append(f"{folder}: {lacks}; fetch it too, or set data.preprocess and data.max_tiles")
        if config.headless:
            notes.append(f"a base, without {config.head['name']} head: training starts one; infer and ask refuse it")
        return Conversion(config, tokenizer, weights, report, notes)

    def back(self, folder: Path, args: Namespace) -> Conversion:
        config = read_config(folder)
        need(not has_adapters(folder), f"{folder}: adapters without their base; first videollm checkpoint")
        files = {name: json.loads(text) for name, text in config.published["files"].items()}
        source, text = TensorSource(folder, ["model"]), config.text_config
        settle(text, source, folder)
        scale = config.lora["alpha"] / config.lora["r"] if config.lora else 1.0
        config.lora = None
        state, outlines = (
            LazyTensors.of(made, {name: name for name in stored(made, text)})
            for made in (fold_adapters(source, scale), fold_adapters(source.outlines(), scale))
        )
        report = compared(outlines, config, folder, has_head=not config.headless)
        heads = [name for name in state if name.startswith("head.") or name in report.unexpected]
        plain = LazyTensors.of(state, {name: name for name in state if name not in heads})
        plain = self.to_published(plain, config.published["names"])
        fields = files.pop("config.json")
        fields.setdefault("tie_word_embeddings", tied(text))
        now = {"vocab_size": text.vocab_size, "tie_word_embeddings": tied(text)}
        for part in (fields, fields.get("text_config", {}), fields.get("llm_config", {})):
            part |= {key: value for key, value in now.items() if key in part}
        told = {"head": json.dumps({"head": config.head, "token_ids": config.token_ids})}
        head = {name: state[name] for name in heads if name not in report.unexpected}
        notes = [f"the {config.head['name']} head is in {HEAD_FILE}"] if head else []
        return Conversion(fields, read_tokenizer(folder), plain, report, notes, files=files, head=head, told=told)


def read_head(folder: Path) -> tuple[dict[str, Tensor], dict]:
    """The head that ``back`` wrote beside a published layout: its weights by our names, and what is told of it."""
    if not (folder / HEAD_FILE).is_file():
        return {}, {}
    with safe_open(folder / HEAD_FILE, "pt") as file:
        told = json.loads((file.metadata() or {}).get("head", "{}"))
        return {name: file.get_tensor(name) for name in list(file.keys())}, told


def head_options(name: str, kind: str) -> dict:
    """The ``head`` mapping of a model that has none yet; the text head writes times as the model does by itself."""
    if name != "text":
        return {"name": name}
    return {"name": name, "unit": "seconds"} | ({"style": kind} if kind in STYLES else {})


def vocabulary(
    folder: Path, outlines: Mapping[str, Tensor], config: VideoLLMConfig, tokenizer: PreTrainedTokenizerBase
) -> int:
    """Rows that embeddings and output need; the tokenizer gets the head's tokens that it lacks.

    Raises:
        CheckpointError: embeddings, config and tokenizer do not belong together.
    """
    need(EMBEDDINGS in outlines, f"{folder}: no token embeddings among its weights; is the checkpoint complete?")
    rows, told = outlines[EMBEDDINGS].shape[0], config.text_config.vocab_size
    need(rows == told, f"{folder}: embeddings of {rows} tokens, but config.json says {told}; take both from one place")
    known = tokenizer.get_vocab()
    need(len(tokenizer) <= rows, f"{folder}: its tokenizer has {len(tokenizer)} tokens, the weights {rows}")
    visual = config.visual_tokens
    wanted = {TEMPLATES[config.template].stop, *(visual.get(key) for key in ("token", "image", "start", "end"))}
    lacks = sorted(name for name in wanted if name and name not in known)
    need(not lacks, f"{folder}: its tokenizer lacks {', '.join(lacks)}; copy the tokenizer files that belong to it")
    head = head_class(config.head["name"])
    tokens = [*head.span_tokens, *head.extra_tokens]
    tokenizer.add_special_tokens({"extra_special_tokens": tokens}, replace_extra_special_tokens=False)
    config.token_ids = {name: tokenizer.convert_tokens_to_ids(name) for name in tokens}
    return max(rows, len(tokenizer))


class Native(Layout):
    """A layout that differs from ours in the beginnings of names: that of transformers, for a family of backbones."""

    def to_ours(self, state: Mapping[str, Tensor]) -> LazyTensors:
        names = FAMILIES[self.name].NAMES.items()
        return LazyTensors.of(state, {exchanged(name, names): name for name in state})

    def spelling(self, names: Iterable[str]) -> list[tuple[str, str]]:
        rows = FAMILIES[self.name].NAMES.items()
        used = {next((row for row in rows if name.startswith(row[0])), None) for name in names}
        return [row for row in rows if row in used]

    def to_published(self, state: Mapping[str, Tensor], spelling: Sequence[Sequence[str]]) -> LazyTensors:
        rows = sorted(((ours, theirs) for theirs, ours in spelling), key=lambda row: -len(row[0]))
        return LazyTensors.of(state, {exchanged(name, rows): name for name in state})

    def our_config(self, files: dict[str, dict], where: str) -> VideoLLMConfig:
        fields = files["config.json"]
        need(isinstance(fields.get("vision_config"), dict), f"{where}: no vision_config; fetch the file again")
        parts = FAMILIES[self.name].parts(fields)
        language = {key: value for key, value in parts["language"].items() if value is not None}
        image = files.get("preprocessor_config.json", {})
        return VideoLLMConfig(
            text_config=language, vision=parts["vision"], connector=parts["connector"], template=self.template,
            visual_tokens=parts["visual_tokens"], sampler=dict(self.sampler),
            preprocess=self.preprocess(parts["vision"], files), precision=precision(fields),
            max_tiles=image.get("max_patches", 1) if image.get("crop_to_patches") else 1,
            context_length=min(MAX_LENGTH, language.get("max_position_embeddings", MAX_LENGTH)),
        )  # fmt: skip

    def preprocess(self, vision: dict, files: dict[str, dict]) -> dict:
        """The ``preprocess`` mapping of our config."""
        factor = vision.get("patch_size", 14) * vision.get("spatial_merge_size", 2)
        return {"kind": self.name, "factor": factor, **limits(files)}


def exchanged(name: str, rows: Iterable[Sequence[str]]) -> str:
    """``name`` with the first beginning of ``rows`` (old, new) that fits exchanged."""
    return next((new + name.removeprefix(old) for old, new in rows if name.startswith(old)), name)


def precision(fields: dict) -> str | None:
    """bf16 where a published config says so, at its top or below."""
    said = (part.get(key) for part in (fields, fields.get("text_config", {})) for key in ("dtype", "torch_dtype"))
    return "bf16" if "bfloat16" in said else None


def check_pixels(preprocess: dict, folder: Path) -> None:
    """CheckpointError where what the processor's files say of pixels cannot be done; it names the file."""
    try:
        build(Preprocess, preprocess, "preprocess")
    except ConfigError as error:
        of_images = any(f".{key}" in str(error) for key in ("image_", "mean", "std"))
        name = f"{'' if of_images else 'video_'}preprocessor_config.json"
        raise CheckpointError(f"{folder / name}: {error}; fetch the file again") from None


def limits(files: dict[str, dict]) -> dict:
    """Mean, deviation and limits of pixels, as far as the processor's files give them."""
    image, video = (files.get(f"{name}preprocessor_config.json", {}) for name in ("", "video_"))
    found = {"mean": image.get("image_mean"), "std": image.get("image_std")}
    for prefix, told in (("image_", image), ("", video)):
        size = told.get("size") or {}
        found[f"{prefix}min_pixels"] = told.get("min_pixels") or size.get("shortest_edge")
        found[f"{prefix}max_pixels"] = told.get("max_pixels") or size.get("longest_edge")
    return {key: value for key, value in found.items() if value is not None}


class Qwen25VL(Native):
    """Qwen2.5-VL, and what is tuned from it."""

    name, template = "qwen2_5_vl", "qwen2"
    sampler: ClassVar[dict] = {"rule": "qwen2_5_vl", "fps": 2.0, "max_frames": 768}


class Qwen3VL(Native):
    """Qwen3-VL, dense, and what is tuned from it."""

    name, template = "qwen3_vl", "qwen3_vl"
    sampler: ClassVar[dict] = {"rule": "qwen3_vl", "fps": 2.0, "max_frames": 768}


class InternVL(Native):
    """transformers' own layout (``-hf``) of InternVL3 and 3.5."""

    name, template = "internvl", internvl.CHAT_TEMPLATE
    sampler: ClassVar[dict] = INTERNVL_FRAMES

    def preprocess(self, vision: dict, files: dict[str, dict]) -> dict:
        size = vision.get("image_size", 448)
        return {"kind": "internvl", "size": size[0] if isinstance(size, list | tuple) else size}


class InternVLChat(Layout):
    """OpenGVLab's own layout of InternVL2.5 to 3.5 on Qwen2 and Qwen3."""

    name, template = "internvl_chat", internvl.CHAT_TEMPLATE
    sampler: ClassVar[dict] = INTERNVL_FRAMES
    two_matrices = True

    def tokenizer(self, folder: Path) -> PreTrainedTokenizerBase:
        return read_tokenizer(folder, PretrainedConfig())  # one of its own: transformers does not know the folder's

    def to_ours(self, state: Mapping[str, Tensor]) -> LazyTensors:
        return internvl.to_ours(state)

    def to_published(self, state: Mapping[str, Tensor], spelling: Sequence[Sequence[str]]) -> LazyTensors:
        return internvl.to_released(state)

    def our_config(self, files: dict[str, dict], where: str) -> VideoLLMConfig:
        fields = files["config.json"]
        whole = isinstance(fields.get("llm_config"), dict) and isinstance(fields.get("vision_config"), dict)
        need(whole, f"{where}: no llm_config or no vision_config; fetch the file again")
        name = (fields["llm_config"].get("architectures") or [None])[0]
        known = internvl.ARCHITECTURES
        need(name in known, f"{where}: the language model is {name}; read are {', '.join(known)}")
        config = internvl.our_config(fields, known[name], where, TEMPLATES[self.template].system_message)
        config.sampler, config.visual_tokens = dict(self.sampler), TOKENS
        return config


LAYOUTS = {layout.name: layout for layout in (Qwen25VL, Qwen3VL, InternVL, InternVLChat)}
