"""Checkpoints: one folder with config, weights (safetensors), tokenizer(s) and head, loadable by path alone.

``Bundle`` is a model with everything that is needed to ask it something. Loading is strict: what is missing,
unexpected or of another shape is named, and a folder without a head's weights is refused. No pickled file is read.
``python -m videollm.checkpoint SRC DST`` merges adapters; with ``--adapters BASE`` it stores them and the head alone.
"""

import argparse
import copy
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from videollm.adapters import has_adapters, read_adapters, write_adapters
from videollm.batches.collate import Collator
from videollm.batches.prompt import PromptEncoder, VisualTokens, VisualTokenSettings
from videollm.batches.reader import VisualReader
from videollm.batches.templates import TEMPLATES
from videollm.common.command import tell
from videollm.common.config import ConfigError, build
from videollm.convert import CheckpointError
from videollm.model.lora import merge_lora
from videollm.model.videollm import VideoLLM, VideoLLMConfig
from videollm.video.preprocess import Preprocess
from videollm.video.sampling import Sampler

logger = logging.getLogger(__name__)
QUESTION_TOKENIZER = "question_tokenizer"


@dataclass
class Bundle:
    """A model, its tokenizers, and the settings they share."""

    model: VideoLLM
    tokenizer: PreTrainedTokenizerBase
    question_tokenizer: PreTrainedTokenizerBase | None = None

    @property
    def config(self) -> VideoLLMConfig:
        """The model's config."""
        return self.model.config

    def encoder(self) -> PromptEncoder:
        """Prompts as this model reads them."""
        config, tokens = self.config, build(VisualTokenSettings, self.config.visual_tokens, "visual_tokens")
        per_frame = self.model.connector.tokens_per_frame(self.model.vision_tower.num_patches)
        visual = VisualTokens(tokens.token, per_frame, tokens.start, tokens.end, tokens.after)
        return PromptEncoder(self.tokenizer, TEMPLATES[config.template], self.model.head, visual)

    def reader(self, videos: str | Path, sampler: Sampler | None = None, **options) -> VisualReader:
        """Frames as this model sees them, below the folder ``videos``."""
        sampler = sampler or build(Sampler, self.config.sampler, "sampler")
        options = {"max_tiles": self.config.max_tiles} | options
        return VisualReader(Path(videos), sampler, build(Preprocess, self.config.preprocess, "preprocess"), **options)

    def collator(
        self,
        *,
        left: bool = False,
        average: str = "tokens",
        pack: bool = False,
        rank: bool = False,
        unseen_id: int | None = None,
    ) -> Collator:
        """Batches as this model takes them; ``left`` for generation, ``rank`` for chosen and rejected answers."""
        split = (self.model.head.inject_layer is not None or pack) and not left
        pad = self.tokenizer.pad_token_id
        return Collator(
            pad_id=0 if pad is None else pad,
            split_prefix=split,
            bidirectional=self.config.bidirectional_frames,
            average=average,
            left=left,
            question_tokenizer=self.question_tokenizer,
            rank=rank,
            unseen_id=unseen_id,
        )

    def save(self, folder: str | Path, state_dict: dict | None = None) -> None:
        """Write everything into ``folder``."""
        self.model.save_pretrained(folder, state_dict=state_dict)
        self.save_tokenizers(folder)

    def save_adapters(self, folder: str | Path, base: str | Path) -> list[str]:
        """Write only what differs from the checkpoint folder ``base``: adapters, head, other trained weights.

        ``load`` takes the folder as long as ``base`` stays where it is. Returns the names of the tensors.
        """
        names = write_adapters(self.model.state_dict(), Path(folder), base)
        config = copy.deepcopy(self.config)
        config.base = str(Path(base).resolve())
        config.save_pretrained(folder)
        self.save_tokenizers(folder)
        return names

    def save_tokenizers(self, folder: str | Path) -> None:
        """Write the tokenizers into ``folder``."""
        self.tokenizer.save_pretrained(folder)
        if self.question_tokenizer is not None:
            self.question_tokenizer.save_pretrained(Path(folder) / QUESTION_TOKENIZER)


def load(
    folder: str | Path,
    attention: str = "sdpa",
    dtype: torch.dtype | None = None,
    head: dict | None = None,
    fresh_head: bool = False,
) -> Bundle:
    """Load a checkpoint folder, in evaluation mode on the CPU; ``head`` options are laid over its own.

    With ``fresh_head``, a base (``config.headless``) gets a new head (logged as a warning).

    Raises:
        CheckpointError: not a checkpoint of this project, without tokenizer or head, or with other keys or shapes.
    """
    folder = Path(folder)
    config = read_config(folder)
    config.head = config.head | (head or {})
    if not list(folder.glob("tokenizer*.json")):
        raise CheckpointError(f"{folder}: no tokenizer (tokenizer.json); copy it from the run that made the checkpoint")
    if not has_adapters(folder) and not list(folder.glob("model*.safetensors")):
        raise CheckpointError(f"{folder}: no weights (model.safetensors); is the checkpoint complete?")
    model, report = read_model(folder, config, attention, dtype or torch.float32)
    if fresh_head and config.headless:
        start_head(folder, model, report)
    check_report(folder, report, config.head.get("name"))
    question = folder / QUESTION_TOKENIZER
    if model.connector.reads_question and not question.is_dir():
        raise CheckpointError(f"{folder}: no {QUESTION_TOKENIZER}/, which its connector needs; copy it from the run")
    model.eval()
    tokenizer = read_tokenizer(folder)
    for name, token_id in config.token_ids.items():
        if tokenizer.convert_tokens_to_ids(name) != token_id:
            raise CheckpointError(
                f"{folder}: its tokenizer does not have {name} as token {token_id}, as config.json says; "
                "copy the tokenizer from the run that made the checkpoint"
            )
    return Bundle(
        model,
        tokenizer,
        read_tokenizer(question) if question.is_dir() else None,
    )


def read_model(
    folder: Path, config: VideoLLMConfig, attention: str, dtype: torch.dtype
) -> tuple[VideoLLM, dict[str, set]]:
    """The model and transformers' report of its keys, from whole weights or from adapters and their base."""
    options = {"use_safetensors": True, "local_files_only": True}
    source = folder
    if has_adapters(folder):
        source, options = None, {"state_dict": read_adapters(folder, getattr(config, "base", None))}
        config.base = None  # in memory the model is whole, and is saved so
    try:
        return VideoLLM.from_pretrained(
            source, config=config, attn_implementation=attention, dtype=dtype, output_loading_info=True,
            ignore_mismatched_sizes=True,  # check_report refuses them, with the others
            **options,
        )  # fmt: skip
    except (OSError, SafetensorError, RuntimeError) as error:
        raise CheckpointError(f"{folder}: cannot read the weights: {' '.join(str(error).split())}") from None


def read_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder; CheckpointError where its files cannot be read."""
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the tokenizers library raises plain Exception for a damaged file
        raise CheckpointError(
            f"{folder}: cannot read its tokenizer ({' '.join(str(error).split())[:200]}); copy it from the run that "
            "made the checkpoint"
        ) from None


def read_config(folder: Path) -> VideoLLMConfig:
    """The config of a checkpoint folder; CheckpointError if it is none of ours."""
    path = folder / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{folder}: no config.json; give the folder of a trained model, such as runs/NAME/final")
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path}: not valid JSON ({error})") from None
    kind = fields.get("model_type") if isinstance(fields, dict) else None
    if kind != VideoLLMConfig.model_type:
        raise CheckpointError(f"{path}: model_type is {kind!r}, not {VideoLLMConfig.model_type!r}; convert it first")
    absent = [key for key in ("text_config", "vision", "connector", "head") if not fields.get(key)]
    if absent:
        raise CheckpointError(f"{path}: no {', '.join(absent)}; copy the file from the run that made the checkpoint")
    return VideoLLMConfig.from_pretrained(folder, local_files_only=True)


def start_head(folder: Path, model: VideoLLM, report: dict) -> None:
    """Initialise a base's head and take it off the report; what is saved from now on has one."""
    model.head.reset_parameters()
    model.config.headless = False
    report["missing_keys"] = {key for key in report["missing_keys"] if not key.startswith("head.")}
    logger.warning("%s: a base without a %s head; its head starts fresh", folder, model.config.head["name"])


def check_report(folder: Path, report: dict, head: str) -> None:
    """Refuse a checkpoint whose keys or shapes are not the model's."""
    missing, unexpected = sorted(report["missing_keys"]), sorted(report["unexpected_keys"])
    wrong = sorted(str(key[0] if isinstance(key, tuple) else key) for key in report["mismatched_keys"])
    heads = [key for key in missing if key.startswith("head.")]
    if heads:
        raise CheckpointError(
            f"{folder}: holds no weights of its {head} head ({len(heads)} missing, first {heads[0]}); "
            "it is a base model: train the head first, or load a checkpoint that has it"
        )
    if missing or unexpected or wrong:
        parts = [f"{n}: {some(keys)}" for n, keys in
                 (("missing", missing), ("unexpected", unexpected), ("of another shape", wrong)) if keys]  # fmt: skip
        raise CheckpointError(f"{folder}: its weights do not fit its config.json; {'; '.join(parts)}")


def some(keys: list[str], most: int = 5) -> str:
    """The first few of many keys, and how many there are."""
    return f"{', '.join(keys[:most])}{', ...' if len(keys) > most else ''} ({len(keys)})"


def template_named(name: str) -> str:
    """``name`` if there is such a chat template, else ConfigError."""
    if name not in TEMPLATES:
        raise ConfigError(f"model.template: no template {name!r}; there are {', '.join(TEMPLATES)}")
    return name


def main(argv: Sequence[str] | None = None) -> int:
    """The command: adapters folded into whole weights, or taken out of them; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m videollm.checkpoint", description="Merge or extract adapters.")
    parser.add_argument("source", metavar="SRC", help="checkpoint folder with adapters")
    parser.add_argument("target", metavar="DST", help="folder to write")
    parser.add_argument("--adapters", metavar="BASE", help="store only adapters and head, beside this checkpoint")
    args = parser.parse_args(argv)
    try:
        bundle = load(args.source)
        if not bundle.config.lora:
            raise CheckpointError(f"{args.source}: has no adapters; nothing is to be done")
        if args.adapters:
            print(f"{len(bundle.save_adapters(args.target, args.adapters))} tensors that {args.adapters} has not")
        else:
            merge_lora(bundle.model)
            bundle.save(args.target)
    except (CheckpointError, ConfigError) as error:
        return tell(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
