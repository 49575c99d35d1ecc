"""From settings to a model ready to train: build or load the parts, add the tokens, freeze, wrap in LoRA.

Knows the config tree and the parts' builders; nothing of data or training loops.
"""

import difflib
from dataclasses import replace
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedTokenizerBase

from videollm.batches.collate import MOST_ASKED
from videollm.batches.prompt import PromptEncoder, VisualTokenSettings
from videollm.batches.templates import TEMPLATES
from videollm.checkpoint import (
    Bundle,
    check_frames,
    check_plain,
    load,
    load_tokenizer,
    local,
    read_config,
    read_tokenizer,
)
from videollm.checkpoint.start import align_words, center_features, load_start, load_tower, read_start, scale_residuals
from videollm.common.config import ConfigError, UserError, build, merge, need, read_yaml, to_dict, unusable
from videollm.common.files import maybe_on_hub
from videollm.common.spread import Spread, fill, misfits
from videollm.heads import head_class
from videollm.heads.presets import lay_preset
from videollm.inference.options import kept_generate
from videollm.inference.plan import room_for_question
from videollm.model.attention import check_context, check_heads, check_installed
from videollm.model.backbones import published_sampler
from videollm.model.lora import add_adapters
from videollm.model.towers import check_numbers
from videollm.model.tying import check_tie
from videollm.model.videollm import VideoLLM, VideoLLMConfig
from videollm.training.optimizer import set_trainable, warn_frozen
from videollm.training.preflight import FROM_THE_RUN, check_attention, read_deepspeed, stage_of
from videollm.training.saving import checkpoint_folders
from videollm.training.settings import ModelSettings, Settings
from videollm.video.preprocess import Preprocess
from videollm.video.sampling import Sampler


def read_settings(values: dict) -> Settings:
    """The settings of a config, over the preset that its ``compatibility`` names, over how its checkpoint is asked.

    Raises:
        ConfigError: an unknown key or value; the checkpoint's own error where the preset needs its head and it is none.
    """
    plain = build(Settings, {key: value for key, value in values.items() if key != "compatibility"}).model
    head, vision, folder, kept = plain.head.get("name"), plain.vision, plain.checkpoint, {}
    there = bool(folder) and ((Path(folder) / "config.json").is_file() or maybe_on_hub(folder))
    if there or (folder and "compatibility" in values):
        config = read_config(folder)  # where it is not needed, ``assemble`` says what is missing
        head, vision, kept = head or config.head.get("name"), config.vision, kept_generate(config)
    return build(
        Settings, merge({"generate": kept} if kept else {}, lay_preset(values, head, published_sampler(vision)))
    )


def assemble(settings: Settings, spread: Spread | None = None) -> Bundle:
    """The bundle that ``settings`` describe, on the CPU; or, with ``spread``, each rank's share of it where it trains.

    Raises:
        ConfigError: a part that is missing or unknown, or a file that cannot be read.
    """
    bundle = (from_checkpoint if settings.model.checkpoint else from_parts)(settings, spread)
    lora = settings.train.lora
    if lora is not None and not bundle.config.lora:
        bundle.config.lora = to_dict(lora)
        add_adapters(bundle.model, bundle.config.lora)
    elif lora is not None and bundle.config.lora != to_dict(lora):
        raise ConfigError(f"train.lora: the checkpoint has other adapters, {bundle.config.lora}; give the same")
    check_frames(bundle.model)
    if settings.data.pack and bundle.model.connector.reads_question:
        raise ConfigError(
            "data.pack: this connector reads the question, so questions cannot share one encoding; set it to false"
        )
    if spread is not None:
        spread.rest(bundle.model)
    return bundle


def spreading(settings: Settings) -> Spread | None:
    """Under ZeRO-3, what spreads the model over the ranks; a tower whose features are to be kept comes last."""
    train = settings.train
    zero = read_deepspeed(train.deepspeed, train.precision) if train.deepspeed else None
    if stage_of(zero) != 3:
        return None
    half = train.precision == "bf16"
    given = {key: value for key, value in zero.items() if key not in FROM_THE_RUN}
    given |= {"train_micro_batch_size_per_gpu": train.batch_size, "bf16": {**zero.get("bf16", {}), "enabled": half}}
    return Spread(given, torch.bfloat16 if half else torch.float32, "vision_tower." if settings.data.features else None)


BESIDE_CHECKPOINT = ("checkpoint", "head", "template", "bidirectional_frames", "attention")  # all else it has already


def from_checkpoint(settings: Settings, spread: Spread | None) -> Bundle:
    """Load a checkpoint and lay over it what the config gives for data and template."""
    given = settings.model
    planned_config(settings)
    check_installed(given.attention)
    torch.manual_seed(settings.train.seed)  # of what starts fresh: the head of a base, adapters
    held = held_precision(settings)
    bundle = load(given.checkpoint, given.attention, held, head=given.head, fresh_head=True, spread=spread)
    lay_over(bundle.config, settings)
    bundle.model.preprocess = build(Preprocess, bundle.config.preprocess, "data.preprocess")  # its own were others
    return bundle


def held_precision(settings: Settings) -> torch.dtype:
    """In what the weights of a checkpoint are read: DeepSpeed would round them to bf16 anyway, but only once every rank
    held all of them in float32. Features kept in files are computed before that, in float32."""
    train = settings.train
    half = train.deepspeed and train.precision == "bf16" and not settings.data.features
    return torch.bfloat16 if half else torch.float32


def checkpoint_config(given: ModelSettings) -> VideoLLMConfig:
    """The checkpoint's config with the given options of its head; ConfigError for what a checkpoint has already."""
    for name, value in vars(given).items():
        if value and name not in BESIDE_CHECKPOINT:
            raise ConfigError(f"model.{name}: cannot be changed for model.checkpoint; leave it out")
    config = read_config(given.checkpoint)
    own = config.head.get("name")
    if given.head.get("name", own) != own:
        raise ConfigError(
            f"model.head.name: the checkpoint has a {own} head, the config asks for {given.head['name']}; leave it "
            f"out, or convert a released checkpoint with --head {given.head['name']}"
        )
    config.head = config.head | given.head
    return config


def lay_over(config: VideoLLMConfig, settings: Settings) -> None:
    """Write into the model's config what ``settings`` give for template, frames, sampling and preprocessing, and how it
    is asked."""
    given, data = settings.model, settings.data
    if given.template and given.template not in TEMPLATES:
        raise ConfigError(f"model.template: no template {given.template!r}; there are {', '.join(TEMPLATES)}")
    config.template = given.template or config.template
    if given.bidirectional_frames is not None:
        config.bidirectional_frames = given.bidirectional_frames
    if data.sampler is not None:
        config.sampler = to_dict(replace(data.sampler, pick="midpoint"))  # a model is asked with fixed frames
    elif config.head.get("compatibility") == "published":
        config.sampler = config.sampler | published_sampler(config.vision)
    if data.preprocess is not None:
        config.preprocess = to_dict(replace(data.preprocess, random_crop=False))
    if data.max_length is not None:
        config.context_length = data.max_length
        if not (settings.train.resume and checkpoint_folders(Path(settings.train.output))):  # what began so may go on
            check_context(config.text_config, data.max_length, "data.max_length")
    if data.max_tiles is not None:
        config.max_tiles = data.max_tiles
    config.generate, config.precision = to_dict(settings.generate), settings.train.precision
    room_for_question(config, settings.generate)


def planned_config(settings: Settings) -> VideoLLMConfig:
    """The config of the model that ``assemble`` makes; no weights are read. Errors as of ``assemble``."""
    if settings.model.checkpoint:
        config = checkpoint_config(settings.model)
        lay_over(config, settings)
    else:
        config = parts_config(settings)[0]
    if settings.train.lora is not None and not config.lora:
        config.lora = to_dict(settings.train.lora)
    check_attention(config, settings)
    return config


def planned_encoder(model: Path) -> tuple[PromptEncoder, int, bool]:
    """Prompts as a checkpoint folder or the model of a config reads them, the tokens of its context, and whether the
    config reads spans raw; no weights are read. Errors as of reading either; of a config ``warn_frozen`` warns."""
    settings = None
    if model.suffix in (".yaml", ".yml"):
        settings = read_settings(read_yaml(model))
        folder, config = settings.model.checkpoint, planned_config(settings)
        tokenizer = read_tokenizer(folder) if folder else parts_config(settings)[1]
    else:
        config, tokenizer = read_config(model), read_tokenizer(model)
    with torch.device("meta"):
        planned = VideoLLM(config)
    if settings is not None:
        set_trainable(planned, settings.train)
        warn_frozen(planned, settings)
    raw_spans = settings is not None and settings.data.raw_spans
    return Bundle(planned, tokenizer).encoder(), config.context_length, raw_spans


def parts_config(settings: Settings) -> tuple[VideoLLMConfig, PreTrainedTokenizerBase]:
    """The config of a model of parts, and its tokenizer with all tokens."""
    given = settings.model
    need(given.head, "model.head.name is missing: name a head (docs/heads.md)")
    tokens = given.visual_tokens or VisualTokenSettings()
    tokenizer = load_tokenizer(given.tokenizer or given.language_weights, "model.tokenizer")
    head = head_class(given.head.get("name", ""))
    needed = [tokens.token, tokens.image, tokens.start, tokens.end, *head.span_tokens, *head.extra_tokens]
    tokenizer.add_special_tokens({"extra_special_tokens": [t for t in needed if t]}, replace_extra_special_tokens=False)
    text = language_config(given, tokenizer)
    config = VideoLLMConfig(
        text_config=text,
        vision=given.vision,
        connector=given.connector,
        head=given.head,
        visual_tokens=to_dict(tokens),
        token_ids={t: tokenizer.convert_tokens_to_ids(t) for t in (*head.span_tokens, *head.extra_tokens)},
        sampler=to_dict(Sampler()),
        preprocess=to_dict(Preprocess()),
        context_length=min(4096, getattr(text, "max_position_embeddings", 4096)),
        attn_implementation=given.attention,
    )
    lay_over(config, settings)
    return config, tokenizer


def from_parts(settings: Settings, spread: Spread | None) -> Bundle:
    """Put a model together from a tower, a connector, a language model and a head."""
    given, (config, tokenizer) = settings.model, parts_config(settings)
    check_attention(config, settings)
    check_installed(given.attention)
    torch.manual_seed(settings.train.seed)
    model = VideoLLM(config, empty_language=bool(given.language_weights))
    model.head.reset_parameters()
    load_parts(model, given, tokenizer, spread)
    question = None
    if model.connector.reads_question:
        question = load_tokenizer(given.question_tokenizer, "model.question_tokenizer")
        question.truncation_side = "left"  # as published: the end of a long question is kept
        model.connector.check_question(len(question), MOST_ASKED)
    model.eval()
    return Bundle(model, tokenizer, question)


def language_config(given: ModelSettings, tokenizer: PreTrainedTokenizerBase):
    """The language model's transformers config, with rows for all tokens."""
    fields = dict(given.language)
    if given.language_weights:
        where = local(given.language_weights, weights=False, key="model.language_weights")
        try:
            default = AutoConfig.from_pretrained(where)
            check_plain(default.to_dict(), f"model.language_weights: {given.language_weights}")
            check_language_keys(default, fields)
            text = AutoConfig.from_pretrained(where, **fields)
        except UserError:
            raise
        except (OSError, ValueError, StrictDataclassError) as error:
            where = f"model.language_weights: no language model at {given.language_weights!r}"
            raise ConfigError(f"{where} ({str(error).splitlines()[0]})") from None
    else:
        kind = fields.pop("model_type", None)
        try:
            default = AutoConfig.for_model(kind)
        except (ValueError, TypeError) as error:
            raise ConfigError(f"model.language.model_type: {kind!r}: {str(error).splitlines()[0][:200]}") from None
        check_language_keys(default, fields)
        try:
            text = AutoConfig.for_model(kind, **fields)
        except Exception as error:  # of any kind
            raise unusable("model.language", f"a {kind}", error) from error
        for role in ("bos", "eos", "pad"):  # the class's defaults are ids of another vocabulary
            setattr(text, f"{role}_token_id", getattr(tokenizer, f"{role}_token_id"))
    check_heads(text)
    if text.model_type == "phi3" and given.language.get("sliding_window"):
        raise ConfigError("model.language.sliding_window: a phi3 sees all before it, as published; leave the key out")
    vocabulary = len(tokenizer)
    if "vocab_size" not in given.language:
        text.vocab_size = max(vocabulary, text.vocab_size if given.language_weights else 0)
    if text.vocab_size < vocabulary:
        raise ConfigError(f"model.language.vocab_size: {text.vocab_size}, but the tokenizer has {vocabulary} tokens")
    return text


def check_language_keys(default: PretrainedConfig, fields: dict) -> None:
    """ConfigError for a field that the language model's config has not; transformers would keep and ignore it."""
    unknown = [key for key in fields if not hasattr(default, key)]
    if unknown:
        near = difflib.get_close_matches(unknown[0], default.to_dict(), n=1)
        hint = f"did you mean {near[0]}?" if near else f"the fields are those of {type(default).__name__}"
        raise ConfigError(f"model.language.{unknown[0]}: unknown key; {hint}")
    check_numbers("model.language", fields)


def load_parts(
    model: VideoLLM, given: ModelSettings, tokenizer: PreTrainedTokenizerBase, spread: Spread | None
) -> None:
    """Copy pretrained weights into the tower, the head, the language model and single words."""
    language = model.language_model
    if given.language_weights:
        language = AutoModelForCausalLM.from_pretrained(local(given.language_weights), dtype="auto")
        check_tie(language, model.config.text_config, given.language_weights)
        for part in (language.get_input_embeddings(), language.get_output_embeddings()):
            part.to(torch.float32)  # in which new rows are made, whatever the weights were released in
        language.resize_token_embeddings(model.config.text_config.vocab_size)
    if given.scale_residuals:
        pretrained = "model.scale_residuals: for new weights, but model.language_weights has pretrained ones"
        need(not given.language_weights, pretrained)
        scale_residuals(model)
    if given.vision_weights:
        load_tower(model, given.vision_weights)
    if given.head_weights:
        load_start(model.head, given.head_weights, "model.head_weights")
    if given.feature_mean:
        center_features(model, given.feature_mean)
    if given.word_vectors:
        words = read_start(given.word_vectors, "model.word_vectors")
        align_words(language.get_input_embeddings().weight.data, tokenizer, words)
    if given.language_weights:
        fill_language(model, language.state_dict(), given, spread)


def fill_language(model: VideoLLM, state: dict[str, Tensor], given: ModelSettings, spread: Spread | None) -> None:
    """Give the language model the weights ``state``; ConfigError if they do not fit."""
    if odd := misfits(model.language_model, state):
        raise ConfigError(
            f"model.language_weights: {given.language_weights} does not fit the language model that model.language "
            f"makes of it ({odd[0]}, {len(odd)} such); leave out of model.language what changes its shape"
        )
    fill(model.language_model, state, spread)
