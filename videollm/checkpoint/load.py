"""Loading a checkpoint by its folder or hub name alone; what is missing, unexpected or of another shape is named.

A folder without a head's weights is refused, unless it is a base and a fresh head is asked for. No pickled
file is read.
"""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from videollm.batches.templates import TEMPLATES
from videollm.checkpoint.adapters import has_adapters, read_adapters
from videollm.checkpoint.bundle import QUESTION_TOKENIZER, Bundle
from videollm.checkpoint.hub import local
from videollm.checkpoint.tensors import CheckpointError, LazyTensors, TensorSource, check_index, need
from videollm.common.command import without_bars
from videollm.common.config import ConfigError, at_least, convert, unusable
from videollm.common.files import A_MODEL
from videollm.common.registry import registered
from videollm.common.spread import Spread, fill, misfits, without_weights
from videollm.heads import TemporalHead, build_head, head_class
from videollm.model.connectors import CONNECTORS
from videollm.model.towers import TOWERS
from videollm.model.tying import settle, stored, tied
from videollm.model.videollm import VideoLLM, VideoLLMConfig

logger = logging.getLogger(__name__)
COUNTS = {"context_length": None, "max_tiles": None}
KINDS = {  # of what stands beside the parts in config.json, where it does
    "template": Literal[*TEMPLATES], "visual_tokens": dict | None, "token_ids": dict[str, int] | None,
    "bidirectional_frames": bool | None, "preprocess": dict | None, "sampler": dict | None,
    "context_length": int, "max_tiles": int, "lora": dict | None, "headless": bool, "generate": dict | None,
    "precision": Literal["fp32", "bf16"] | None, "base": str | None,
}  # fmt: skip


def load(
    folder: str | Path,
    attention: str = "sdpa",
    dtype: torch.dtype | None = None,
    head: dict | None = None,
    fresh_head: bool = False,
    spread: Spread | None = None,
) -> Bundle:
    """Load a checkpoint folder (or hub name), in evaluation mode on the CPU; ``head`` options are laid over its own.

    With ``fresh_head``, a base (``config.headless``) gets a new head (logged as a warning). With ``spread``, weights
    are spread over the ranks one by one, but for such a head.

    Raises:
        CheckpointError: not a checkpoint of this project, without tokenizer or head, or with other keys or shapes.
    """
    config = read_config(folder)
    folder = local(folder)
    config.head = config.head | (head or {})
    unknown = [name for name in named_parts(folder, config).span_tokens if name not in config.token_ids]
    if unknown:
        raise CheckpointError(f"{folder}/config.json: token_ids lacks {unknown[0]}; copy it from the run that made it")
    if not list(folder.glob("tokenizer*.json")):
        raise CheckpointError(f"{folder}: no tokenizer (tokenizer.json); copy it from the run that made the checkpoint")
    if not has_adapters(folder) and not list(folder.glob("model*.safetensors")):
        raise CheckpointError(f"{folder}: no weights (model.safetensors); is the checkpoint complete?")
    if not (folder / "model.safetensors").is_file():
        check_index(folder)
    model, report = read_model(folder, config, attention, dtype or torch.float32, spread)
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
    return Bundle(model, tokenizer, read_tokenizer(question) if question.is_dir() else None)


def named_parts(folder: Path, config: VideoLLMConfig) -> type[TemporalHead]:
    """The head's class; modules of the parts that a checkpoint names are imported from here on.

    Before any weights are left out: that changes functions of torch which such a module may take up.

    Raises:
        CheckpointError: a part that is not there.
    """
    try:
        for registry, part, key in ((TOWERS, config.vision, "vision"), (CONNECTORS, config.connector, "connector")):
            registered(registry, part.get("type"), f"{key}.type")
        return head_class(config.head.get("name", ""))
    except ConfigError as error:
        raise CheckpointError(f"{folder}/config.json: {error}") from None


def read_model(
    folder: Path, config: VideoLLMConfig, attention: str, dtype: torch.dtype, spread: Spread | None
) -> tuple[VideoLLM, dict[str, set]]:
    """The model and transformers' report of its keys, from whole weights or from adapters and their base.

    What cannot be spread as it is, transformers reads whole: it knows older names, and reports what does not fit.
    """
    options = {"use_safetensors": True, "local_files_only": True}
    source = folder
    if has_adapters(folder):
        whole = read_adapters(folder, getattr(config, "base", None), config.text_config)
        source, options = None, {"state_dict": whole}
        config.base = None  # in memory the model is whole, and is saved so
    elif tied(config.text_config):
        settle(config.text_config, TensorSource(folder, ["model"]), folder)
    if spread is not None:
        state = options["state_dict"] if source is None else TensorSource(folder, ["model"])
        found = read_spread(config, attention, state, spread)
        if found is not None:
            return found
        logger.warning("%s: its names are not those of the model; every rank reads it whole", folder)
    said = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # its table of keys; check_report tells them in a line
    try:
        with without_bars():
            return VideoLLM.from_pretrained(
                source, config=config, attn_implementation=attention, dtype=dtype, output_loading_info=True,
                ignore_mismatched_sizes=True,  # check_report refuses them, with the others
                **options,
            )  # fmt: skip
    except (OSError, SafetensorError, RuntimeError) as error:
        why = " ".join(str(error).split())
        raise CheckpointError(
            f"{folder}: cannot read the weights ({why}); copy them again from a complete checkpoint"
        ) from None
    finally:
        transformers_logging.set_verbosity(said)


def read_spread(
    config: VideoLLMConfig, attention: str, state: Mapping[str, Tensor], spread: Spread
) -> tuple[VideoLLM, dict[str, set]] | None:
    """As ``read_model``, from the tensors ``state`` of the model, spread one by one; None where they do not fit."""
    config._attn_implementation, config.text_config.dtype = attention, spread.dtype  # as transformers notes them
    with without_weights():
        model = VideoLLM(config)
    model.language_model.tie_weights()
    values = LazyTensors.of(state, {name: name for name in stored(state, config.text_config)})
    lacks = misfits(model, values)
    if lacks and not (config.headless and all(name.startswith("head.") for name in lacks)):
        return None
    fill(model, values, spread)
    return model, {"missing_keys": set(lacks), "unexpected_keys": set(), "mismatched_keys": set()}


def read_tokenizer(folder: str | Path, config: PretrainedConfig | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or hub name, or of a model of ``config``; CheckpointError where it cannot be read."""
    folder = local(folder, weights=False)
    try:
        return AutoTokenizer.from_pretrained(folder, config=config, local_files_only=True)
    except Exception as error:  # the tokenizers library raises plain Exception for a damaged file
        raise CheckpointError(
            f"{folder}: cannot read its tokenizer ({' '.join(str(error).split())[:200]}); copy it from the run that "
            "made the checkpoint"
        ) from None


def read_config(folder: str | Path) -> VideoLLMConfig:
    """The config of a checkpoint folder or hub name; CheckpointError if it is none of ours."""
    folder = local(folder, weights=False)
    path = folder / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{folder}: no config.json; {A_MODEL}")
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
    odd = [key for key in ("text_config", "vision", "connector", "head") if not isinstance(fields[key], dict)]
    if odd:
        raise CheckpointError(
            f"{path}: {', '.join(odd)} is no object; copy the file from the run that made the checkpoint"
        )
    try:
        for key, kind in KINDS.items():
            if key in fields:
                convert(fields[key], kind, key)
        lacks = [name for name in ("r", "alpha", "dropout", "targets") if name not in (fields.get("lora") or {name: 0})]
        need(not lacks, f"lora: has no {', '.join(lacks)}")
        at_least("config", SimpleNamespace(**COUNTS | fields), 1, *COUNTS)
        return VideoLLMConfig.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # of any kind: transformers builds the config of the language model
        said = str(unusable("text_config", "a language model's config", error))
        raise CheckpointError(f"{path}: {said}; copy the file from the run that made the checkpoint") from None


def start_head(folder: Path, model: VideoLLM, report: dict) -> None:
    """Initialise a base's head and take it off the report; what is saved from now on has one."""
    with torch.random.fork_rng(devices=[]):
        fresh = build_head(model.config.head, model.config.text_config.hidden_size)
    fresh.reset_parameters()  # in float32, whatever the checkpoint is read in
    with torch.no_grad():
        for own, new in zip(model.head.parameters(), fresh.parameters(), strict=True):
            own.copy_(new)
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


def load_tokenizer(name: str | None, key: str) -> PreTrainedTokenizerBase:
    """A tokenizer by folder or hub name; ConfigError naming ``key``."""
    if not name:
        raise ConfigError(f"{key} is missing: give a folder or hub name with a tokenizer")
    folder = local(name, weights=False, key=key)
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{key}: no tokenizer at {name!r} ({str(error).splitlines()[0]})") from None
