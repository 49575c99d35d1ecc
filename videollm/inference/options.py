"""How a model is asked: as its checkpoint says, the command line over it, and where every value came from.

In: a checkpoint's config, ``key=value`` words, the device. Out: ``Options``. A checkpoint keeps what its training knew
(``VideoLLMConfig.generate``, ``sampler``, ``precision``); one without that record is asked with the defaults.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from videollm.common.config import build, need, override, to_dict, together, typed
from videollm.data.options import GenerateOptions
from videollm.video.decode import VideoError, probe
from videollm.video.picture import is_picture
from videollm.video.preprocess import LIMITS, Preprocess
from videollm.video.sampling import Sampler

if TYPE_CHECKING:  # a wrong word is told before torch is loaded
    import torch

    from videollm.model.videollm import VideoLLMConfig

OVERRIDES = ("sampler", "preprocess", "generate", "head", "compatibility")  # keys of the command line
PRECISIONS = {"fp32": "float32", "bf16": "bfloat16"}  # of weights and states, as torch names them
GIVEN, PRESET, KEPT, DEFAULT = "command line", "compatibility", "checkpoint", "default"  # where a value comes from


@dataclass(frozen=True)
class Options:
    """How to ask a model. ``head`` is laid over its head's own options; ``sources`` is {full key: where from}.

    With ``raw_spans`` questions are read as published code reads them.
    """

    generate: GenerateOptions
    sampler: Sampler
    preprocess: Preprocess
    head: dict
    precision: str
    raw_spans: bool
    sources: dict[str, str]


def read_overrides(overrides: Sequence[str]) -> dict:
    """``key=value`` words as a mapping; what depends on the checkpoint or its head is not looked at.

    Raises:
        ConfigError: keys that are unknown, or values of the wrong type: all of them.
    """
    given = override({}, list(overrides))
    check_overrides(given)
    return given


def check_overrides(given: dict) -> None:
    """As ``read_overrides`` of what those words mean."""
    known = {"sampler": Sampler, "preprocess": Preprocess, "generate": GenerateOptions}

    def one(key: str) -> None:
        need(key in OVERRIDES, f"{key}: unknown key; known keys: {', '.join(OVERRIDES)}")
        if key != "compatibility":
            write = f"write {key}.OPTION=VALUE"
            need(isinstance(given[key], dict), f"{key}: expected a mapping, got {given[key]!r}; {write}")
        if key in known:
            typed(known[key], given[key], key)
        if key == "preprocess":
            names = ", ".join(LIMITS)
            for name in given[key]:
                need(name in LIMITS, f"preprocess.{name}: not to be set for a trained tower; known keys: {names}")

    together(*(partial(one, key) for key in given))


def check_question(question: str) -> None:
    """ConfigError for a question that is empty or no text."""
    need(isinstance(question, str), f"--question: {question!r:.60} is no text; write a question")
    need(question.strip(), "--question: it is empty; write a question")
    whole = question.encode(errors="replace").decode() == question  # else bytes of the command line that are no text
    need(whole, "--question: holds half a character; write it in UTF-8")


def check_video(path: str) -> None:
    """See that a video can be read, before a model is loaded for it. VideoError: it is none, or a picture."""
    refuse_picture(path)
    probe(path)


def refuse_picture(path: str | Path) -> None:
    """VideoError for a picture."""
    if os.path.isfile(path) and is_picture(path):  # False, too, for a name that no file can have
        raise VideoError(
            f"{path}: is a picture, which has no time to ask about; give a video, or ask about pictures with "
            "videollm.infer and an annotation that has `image` (docs/annotations.md)"
        )


def read_options(
    overrides: Sequence[str], config: "VideoLLMConfig", device: "torch.device", precision: str | None = None
) -> Options:
    """The checkpoint's options with the command line's over them; ``precision`` if that gives one.

    Raises:
        ConfigError: an unknown key or value, or a ``compatibility`` that its head has not.
    """
    return options_of(read_overrides(overrides), config, device, precision)


def options_of(given: dict, config: "VideoLLMConfig", device: "torch.device", precision: str | None = None) -> Options:
    """As ``read_options`` of mappings by their key, such as ``{"sampler": {"fps": 2}}``."""
    from videollm.heads.presets import lay_preset
    from videollm.model.backbones import published_sampler

    given = dict(given)
    check_overrides(given)
    sampling, limits, head = (given.pop(key, {}) for key in ("sampler", "preprocess", "head"))
    even = published_sampler(config.vision)
    laid = lay_preset(given | {"model": {"head": head}}, config.head.get("name"), even)
    asked, preset = given.get("generate", {}), laid.get("generate", {})
    gpu = device.type == "cuda"
    kept = {k: value for k, value in kept_generate(config).items() if gpu or k not in ("graphs", "compile_tower")}
    wanted = build(GenerateOptions, kept | preset, "generate")
    wanted.check_machine(gpu)
    generate = wanted.within(config.context_length)
    layers = {GIVEN: asked, PRESET: preset, KEPT: kept}
    sources = {f"generate.{key}": source_of(key, layers, to_dict(wanted)) for key in to_dict(generate)}
    even = even if "compatibility" in laid["model"]["head"] else {}
    sampler = build(Sampler, config.sampler | even | sampling, "sampler")
    layers = {GIVEN: sampling, PRESET: even, KEPT: config.sampler}
    sources |= {f"sampler.{key}": source_of(key, layers, to_dict(sampler)) for key in to_dict(sampler)}
    preprocess = build(Preprocess, config.preprocess | limits, "preprocess")
    layers = {GIVEN: limits, KEPT: config.preprocess}
    sources |= {f"preprocess.{key}": source_of(key, layers, pixels_of(preprocess)) for key in LIMITS}
    own = KEPT if config.precision and device.type == "cuda" else DEFAULT
    sources["precision"] = GIVEN if precision else own
    chosen, raw_spans = precision or own_precision(config, device), laid.get("data", {}).get("raw_spans", False)
    return Options(generate, sampler, preprocess, laid["model"]["head"], chosen, raw_spans, sources)


def source_of(key: str, layers: dict[str, dict], values: dict) -> str:
    """The first of the ``layers`` that holds ``key``; null means the default, wherever it stands."""
    found = (name for name, layer in layers.items() if key in layer)
    return next(found, DEFAULT) if values[key] is not None else DEFAULT


def kept_generate(config: "VideoLLMConfig") -> dict:
    """How the checkpoint was trained to be asked; an option that is none any more is left out."""
    known = {field.name for field in fields(GenerateOptions)}
    return {key: value for key, value in config.generate.items() if key in known}


def own_precision(config: "VideoLLMConfig", device: "torch.device") -> str:
    """What a model computes in unless told otherwise: on a GPU what it was trained in, elsewhere fp32."""
    return (config.precision if device.type == "cuda" else None) or "fp32"


def what_absence_means(config: "VideoLLMConfig") -> dict[str, dict]:
    """Values of the options that a meta file of an older version does not name, by its keys."""
    generate = GenerateOptions().within(config.context_length)
    decoding = to_dict(generate) | {"precision": "fp32", "head": {}}
    pixels = pixels_of(build(Preprocess, config.preprocess, "preprocess"))
    return {"sampler": to_dict(Sampler()), "preprocess": pixels, "decoding": decoding}


def pixels_of(preprocess: Preprocess) -> dict:
    """What may be given of a preprocessing; the rest is that of the tower."""
    return {name: getattr(preprocess, name) for name in LIMITS}
