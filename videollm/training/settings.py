"""The options of a training run, as one tree of dataclasses; ``configs/*.yaml`` fill it.

Every field has a one-line comment. Paths are as the user writes them (relative to the working folder). What a head,
a tower or a connector can be told is checked by that part, not here. Whether a resumed run may have another value
stands in a field's type: ``Free``, ``OfAStep`` or ``OfTheBest``; a field that is none of these may not change, for the
reason that stands at its section in ``Settings``. ``resuming.py`` holds runs to it.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from videollm.batches.templates import VisualTokenSettings
from videollm.common.config import (
    ConfigError,
    at_least,
    build,
    later,
    nearest,
    need,
    needs,
    override,
    read_yaml,
    together,
    unknown,
)  # fmt: skip
from videollm.common.files import A_MODEL, check_file, check_folder, check_model, check_writable, maybe_on_hub, ours
from videollm.data.options import GenerateOptions
from videollm.video.decode import BACKENDS
from videollm.video.preprocess import Preprocess
from videollm.video.sampling import Sampler

T = TypeVar("T")
FREE, STEP, BEST = "free", "step", "best"
Free = Annotated[T, FREE]  # a resumed run may have another value: it continues the same training
OfAStep = Annotated[T, STEP]  # it may change as long as a step has the same items
OfTheBest = Annotated[T, BEST]  # it may change as long as no best model has been chosen by it

TEXT = 256  # tokens of a question with its answer, where the memory of a run is told without its data
SECTIONS = ("model", "data", "train")
PARTS = ("vision_tower", "connector", "language_model", "embeddings", "lm_head", "lora", "head")


@dataclass
class ModelSettings:
    """What the model is made of. With ``checkpoint``, everything that is not given comes from there."""

    checkpoint: Free[str | None] = None  # folder or hub name of a VideoLLM to start from
    vision: dict = field(default_factory=dict)  # {type: internvl | instructblip | conv, ...fields of its config}
    vision_weights: Free[str | None] = None  # folder or hub name with the tower's weights
    connector: dict = field(default_factory=dict)  # {type: mlp | qformer | linear, ...}
    language: dict = field(default_factory=dict)  # {model_type: qwen2 | llama | phi3 | gemma2, ...fields}
    language_weights: Free[str | None] = None  # folder or hub name; then ``language`` holds overrides only
    scale_residuals: Free[bool] = False  # new weights: what a layer adds starts 1 / sqrt(2 layers) smaller (GPT-2)
    head: dict = field(default_factory=dict)  # {name: d2vlm | distime | text | yours, ...its options}
    head_weights: Free[str | None] = None  # safetensors with all weights that the head starts from
    tokenizer: Free[str | None] = None  # folder or hub name; by default that of the checkpoint or language_weights
    question_tokenizer: Free[str | None] = None  # for a connector that reads the question
    word_vectors: Free[str | None] = None  # safetensors {word: [Dv]}: initial embeddings of these words (tiny models)
    feature_mean: Free[str | None] = None  # safetensors {mean: [Dv]}: the linear connector starts by taking it out
    template: str | None = None  # chat template, see templates.py
    visual_tokens: VisualTokenSettings | None = None
    bidirectional_frames: bool | None = None  # frames of a video see each other (E.T. Chat, D2VLM)
    attention: Free[Literal["sdpa", "eager", "flash_attention_2"]] = "sdpa"


@dataclass
class DataSettings:
    """Annotations and how their videos are read."""

    train: Free[list[str]] = field(
        default_factory=list
    )  # annotation files, or InternVL's lists of data sets (meta json)
    validation: Free[list[str]] = field(default_factory=list)  # annotation files, answered by free generation
    videos: Free[str] = "."  # root of all relative video and image paths
    duration_s: tuple[float, ...] | None = None  # [shortest, longest] of training videos; published D2VLM: [5, 350]
    max_answer_words: int | None = None  # training answers with more are left out; published D2VLM: 200
    sampler: Sampler | None = None  # frame sampling; a checkpoint keeps its own
    preprocess: Preprocess | None = None
    backend: Free[str] = "pyav"  # a name of ``video.decode.BACKENDS``
    raw_spans: bool = False  # published: spans neither ordered nor cut, evidence stages to the letter
    unseen_id: int | None = None  # published DisTime: 0, places with this token id are seen by no other in training
    pack: bool = False  # all questions of a video behind one prefix (not for connectors that read the question)
    max_questions: int = 16  # of one packed row
    max_length: int | None = None  # tokens of one conversation; frames are dropped uniformly to fit
    max_tiles: int | None = None  # of an image; a checkpoint keeps its own, else 1
    workers: Free[int] = 0  # processes that read videos
    max_bad_fraction: Free[float] = 0.0  # share of unreadable videos that is tolerated; they are skipped and named
    decode_timeout_s: Free[float | None] = 300.0  # a video that takes a worker longer is unreadable; null: no limit
    frames: Free[str | None] = None  # store of decoded frames to read instead of videos (videollm.frames)
    features: Free[str | None] = None  # folder for the frozen tower's features, computed once

    def __post_init__(self):
        limits, bad = self.duration_s and list(self.duration_s), self.max_bad_fraction
        ordered = limits is None or (len(limits) == 2 and 0 <= limits[0] <= limits[1])
        together(
            lambda: need(self.backend in BACKENDS, unknown("data.backend", self.backend, list(BACKENDS))),
            lambda: at_least("data", self, 1, "max_questions", "max_length", "max_tiles", "max_answer_words"),
            lambda: at_least("data", self, 0, "workers", "max_bad_fraction", "decode_timeout_s", "unseen_id"),
            lambda: need(ordered, f"data.duration_s: {limits} is not [shortest, longest] in seconds"),
            lambda: need(not bad > 1, f"data.max_bad_fraction: {bad} is no share; give 0 to 1"),
        )


@dataclass
class PartSettings:
    """Of one part of the model; None means the run's own value."""

    train: bool | None = None
    only: list[str] | None = None  # regular expressions: what in a trained part learns, by name; the rest is frozen
    lr: float | None = None
    weight_decay: float | None = None


def check_part(part: str, given: PartSettings) -> None:
    """ConfigError for what cannot be said of a part of the model."""
    need(part in PARTS, f"train.parts.{part}: no such part; {nearest(part, PARTS, 'train.parts', 'parts')}")
    at_least(f"train.parts.{part}", given, 0, "lr", "weight_decay")
    need(given.only != [], f"train.parts.{part}.only: it is empty; leave it out, or set {part}.train=false")
    for pattern in given.only or ():
        try:
            re.compile(pattern)
        except re.error as error:
            why = f"{pattern!r} is no regular expression ({error}); correct it"
            raise ConfigError(f"train.parts.{part}.only: {why}") from None


@dataclass
class LoraSettings:
    """Low-rank adapters on layers of the language model (``targets``), and of other parts where they are named."""

    r: int = 16
    alpha: float = 32.0
    dropout: float = 0.05
    targets: list[str] = field(default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj"])
    connector: list[str] | None = later(None)
    vision_tower: list[str] | None = later(None)

    def __post_init__(self):
        together(
            lambda: at_least("train.lora", self, 1, "r"),
            lambda: at_least("train.lora", self, 0, "alpha"),
            lambda: need(0 <= self.dropout < 1, f"train.lora.dropout: {self.dropout} is not in [0, 1)"),
        )


@dataclass
class TrainSettings:
    """The optimisation. ``batch_size`` counts dataset items (packed videos) on one process."""

    objective: dict = field(default_factory=lambda: {"name": "supervised"})  # or {name: d2vlm.fpo, ...its options}
    output: Free[str] = "runs/train"  # folder of checkpoints and logs
    steps: Free[int | None] = None  # optimisation steps; or
    epochs: Free[float] = 1.0  # passes over the data
    batch_size: OfAStep[int] = 1
    accumulation: OfAStep[int] = 1
    global_batch: OfAStep[int | None] = None  # items of one step over all processes; sets ``accumulation``
    group_by_length: bool = False  # batches of similar length: less padding, ranks wait less for each other
    max_tokens_per_batch: int | None = None  # of one process, padding included; in place of ``batch_size``
    lr: float = 2e-5
    weight_decay: float = 0.0
    decay_all: bool = False  # published DisTime: weight decay on biases and norms too
    betas: tuple[float, ...] = (0.9, 0.999)
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    min_lr_ratio: float = 0.0  # of the cosine's end
    warmup: float = 0.03  # steps if 1 or more, else share of all steps
    clip: float = 1.0  # gradient norm
    seed: int = 42
    deterministic: Free[bool] = False  # the same numbers on a GPU in every run, at some cost in speed
    precision: Literal["fp32", "bf16"] = "fp32"
    gradient_checkpointing: Free[bool] = False
    deepspeed: Free[str | None] = None  # DeepSpeed JSON file; one of configs/ is found from any folder
    parts: dict[str, PartSettings] = field(default_factory=dict)  # by part, see PARTS
    lora: LoraSettings | None = None
    merge_lora: Free[bool] = True  # fold the adapters into the final model
    loss_average: Literal["tokens", "samples"] = "tokens"  # what the language-model loss is a mean over
    log_every: Free[int] = 10  # steps
    save_every: Free[int | None] = None  # steps; by default once, at the end
    keep: Free[int] = 2  # checkpoints
    resume: Free[bool | Literal["auto"]] = (
        False  # go on from the last good checkpoint in ``output``; auto: if there is one
    )
    validate_every: Free[int | None] = None  # steps; None: no validation
    validation_size: OfTheBest[int] = 200  # at most so many records of data.validation
    metric: OfTheBest[str] = "videollm.common.spans:grounding_scores"  # (predicted spans, true spans) -> {name: value}
    best: OfTheBest[str | None] = None  # validation metric that chooses the best checkpoint (higher is better)
    report_to: Free[list[Literal["tensorboard", "wandb"]]] = field(default_factory=lambda: ["tensorboard"])

    def __post_init__(self):
        self.deepspeed = self.deepspeed and str(ours(self.deepspeed))
        one, packed = (1, None), self.max_tokens_per_batch is not None
        counts = ("steps", "batch_size", "accumulation", "global_batch", "max_tokens_per_batch", "validation_size")
        together(
            *(partial(check_part, part, given) for part, given in self.parts.items()),
            lambda: at_least("train", self, 1, *counts, "keep", "log_every", "save_every", "validate_every"),
            lambda: at_least(
                "train", self, 0, "epochs", "lr", "weight_decay", "warmup", "clip", "min_lr_ratio", "seed"
            ),
            lambda: needs(
                (
                    self.global_batch is None or self.accumulation == 1,
                    "train.accumulation: follows from train.global_batch; give one of the two",
                ),
                (
                    not packed or (self.batch_size, self.global_batch) == one,
                    "train.max_tokens_per_batch: decides how many items a batch holds; leave train.batch_size and "
                    "train.global_batch out (or set them to 1 and null)",
                ),
                (
                    not packed or not self.group_by_length,
                    "train.max_tokens_per_batch: groups by length itself; set train.group_by_length=false",
                ),
                (
                    len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas),
                    f"train.betas: {list(self.betas)} is not two numbers in [0, 1)",
                ),
                (
                    not self.min_lr_ratio > 1,
                    f"train.min_lr_ratio: {self.min_lr_ratio} is no share of train.lr; give 0 to 1",
                ),
                (
                    self.steps is not None or self.epochs,
                    "train.epochs: 0, so nothing would be trained; give more, or train.steps",
                ),
                (self.seed < 2**32, f"train.seed: {self.seed}, but it must be below 2**32"),
                (self.output, "train.output: it is empty; name a folder"),
                (
                    not self.best or self.validate_every,
                    "train.best: needs train.validate_every, the steps between validations",
                ),
            ),
        )


@dataclass
class Settings:
    """A whole run."""

    model: Annotated[ModelSettings, "the weights of the checkpoint are those of the model as it was"]
    data: Annotated[DataSettings, "the model would see other data than so far"]
    train: Annotated[TrainSettings, "it would be another training"] = field(default_factory=TrainSettings)
    generate: OfTheBest[GenerateOptions] = field(default_factory=GenerateOptions)


def read_values(config: str, overrides: Sequence[str]) -> dict:
    """The values of a config file with ``key=value`` words over them; one of ``configs/`` is found from any folder.

    Raises:
        ConfigError: the file cannot be read, or a word is no such assignment.
    """
    return override(read_yaml(ours(config)), list(overrides))


def check_values(values: dict, config: str, sections: Sequence[str] = SECTIONS) -> None:
    """What can be said of the values of ``config`` without its checkpoint, its head and torch: all of it.

    Of the ``sections`` paths are looked at, too. Names that may be of the hub are left alone.

    Raises:
        ConfigError: unknown keys, wrong values, and what is not there or cannot be written.
    """
    keys = {key: value for key, value in values.items() if key != "compatibility"}
    given = [value if key in sections and isinstance(value := values.get(key), dict) else {} for key in SECTIONS]
    together(lambda: build(Settings, keys), *places(*given, config))


def places(model: dict[str, Any], data: dict[str, Any], train: dict[str, Any], config: str) -> Iterator[partial]:
    """A check for each path of the three sections; keys and types may be wrong."""
    for key in ("train", "validation"):
        given = data.get(key)
        for path in given if isinstance(given, list) else ():
            yield partial(check_file, path, f"data.{key}")
    if data:
        yield partial(check_folder, data.get("videos", "."), "data.videos")
    if folder := model.get("checkpoint"):
        yield partial(check_model, folder, "model.checkpoint", made_by(folder, config) or A_MODEL)
    for key in ("tokenizer", "question_tokenizer", "language_weights", "vision_weights"):
        if name := model.get(key):
            there = Path(name).exists() or "/" not in name or maybe_on_hub(name)
            yield partial(need, there, f"model.{key}: nothing is at {name}; give a folder or a hub name")
    for key in ("head_weights", "word_vectors", "feature_mean"):
        if model.get(key):
            yield partial(check_file, model[key], f"model.{key}")
    if train.get("deepspeed"):
        yield partial(check_file, ours(train["deepspeed"]), "train.deepspeed")
    if train.get("output"):
        yield partial(check_writable, Path(train["output"]) / "config.yaml", "train.output")


def made_by(folder: str, config: str) -> str:
    """The command that makes the checkpoint ``folder``, where a comment of ``config`` gives it; else nothing."""
    lines = (line.strip("# ") for line in ours(config).read_text(encoding="utf-8").splitlines() if line[:1] == "#")
    found = next((line for line in lines if "convert " in line and folder in line.split()), None)
    return f"make it first: {found}" if found else ""
