"""How a model is asked: as its checkpoint says, the command line over it, and where every value came from.

In: a checkpoint's config, ``key=value`` words, the device. Out: ``Options``. A checkpoint keeps what its training knew
(``VideoLLMConfig.generate``, ``sampler``, ``precision``); one without that record is asked with the defaults.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch

from videollm.common.config import ConfigError, build, override, to_dict
from videollm.heads.presets import lay_preset
from videollm.model.backbones import published_sampler
from videollm.model.generate import GenerateOptions
from videollm.model.videollm import VideoLLMConfig
from videollm.video.sampling import Sampler

OVERRIDES = ("sampler", "generate", "head", "compatibility")  # keys of the command line
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}  # of weights and states
GIVEN, PRESET, KEPT, DEFAULT = "command line", "compatibility", "checkpoint", "default"  # where a value comes from


@dataclass(frozen=True)
class Options:
    """How to ask a model. ``head`` is laid over its head's own options; ``sources`` is {full key: where from}.

    With ``raw_spans`` questions are read as published code reads them.
    """

    generate: GenerateOptions
    sampler: Sampler
    head: dict
    precision: str
    raw_spans: bool
    sources: dict[str, str]


def read_options(
    overrides: Sequence[str], config: VideoLLMConfig, device: torch.device, precision: str | None = None
) -> Options:
    """The checkpoint's options with the command line's over them; ``precision`` if that gives one.

    Raises:
        ConfigError: an unknown key or value, or a ``compatibility`` that its head has not.
    """
    given = override({}, list(overrides))
    for key in given:
        if key not in OVERRIDES:
            raise ConfigError(f"{key}: unknown key; known keys: {', '.join(OVERRIDES)}")
        if key != "compatibility" and not isinstance(given[key], dict):
            raise ConfigError(f"{key}: expected a mapping, got {given[key]!r}; write {key}.OPTION=VALUE")
    sampling, head = (given.pop(key, {}) for key in ("sampler", "head"))
    even = published_sampler(config.vision)
    laid = lay_preset(given | {"model": {"head": head}}, config.head.get("name"), even)
    asked, preset = given.get("generate", {}), laid.get("generate", {})
    wanted = build(GenerateOptions, kept_generate(config) | preset, "generate")
    generate = wanted.within(config.context_length)
    layers = {GIVEN: asked, PRESET: preset, KEPT: kept_generate(config)}
    sources = {f"generate.{key}": source_of(key, layers, to_dict(wanted)) for key in to_dict(generate)}
    even = even if "compatibility" in laid["model"]["head"] else {}
    sampler = build(Sampler, config.sampler | even | sampling, "sampler")
    layers = {GIVEN: sampling, PRESET: even, KEPT: config.sampler}
    sources |= {f"sampler.{key}": source_of(key, layers, to_dict(sampler)) for key in to_dict(sampler)}
    own = KEPT if config.precision and device.type == "cuda" else DEFAULT
    sources["precision"] = GIVEN if precision else own
    chosen, raw_spans = precision or own_precision(config, device), laid.get("data", {}).get("raw_spans", False)
    return Options(generate, sampler, laid["model"]["head"], chosen, raw_spans, sources)


def source_of(key: str, layers: dict[str, dict], values: dict) -> str:
    """The first of the ``layers`` that holds ``key``; null means the default, wherever it stands."""
    found = (name for name, layer in layers.items() if key in layer)
    return next(found, DEFAULT) if values[key] is not None else DEFAULT


def kept_generate(config: VideoLLMConfig) -> dict:
    """How the checkpoint was trained to be asked; an option that is none any more is left out."""
    known = {field.name for field in fields(GenerateOptions)}
    return {key: value for key, value in config.generate.items() if key in known}


def own_precision(config: VideoLLMConfig, device: torch.device) -> str:
    """What a model computes in unless told otherwise: on a GPU what it was trained in, elsewhere fp32."""
    return (config.precision if device.type == "cuda" else None) or "fp32"


def what_absence_means(config: VideoLLMConfig) -> dict[str, dict]:
    """Values of the options that a meta file of an older version does not name, by its keys."""
    generate = GenerateOptions().within(config.context_length)
    return {"sampler": to_dict(Sampler()), "decoding": to_dict(generate) | {"precision": "fp32", "head": {}}}
