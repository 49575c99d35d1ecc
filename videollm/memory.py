"""What a run will need on every device before it runs: ``python -m videollm.memory --config FILE [key=value ...]``.

In: the settings of a run, the number of processes and how much one batch holds. Out: bytes of weights, gradients,
optimizer (under the ZeRO stage of the run's DeepSpeed file), buffers and activations, as a table. Weights are counted
on the meta device from the model's config, activations by a dry run of the real passes; no weights and no videos are
read. Not counted: the CUDA context (about 0.5 GB), NCCL, and what the allocator loses to fragmentation.
"""

import argparse
import copy
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from rich.console import Console
from rich.table import Table

from videollm.annotations import AnnotationError, Record
from videollm.assemble import part_of, planned_config, set_trainable
from videollm.checkpoint import Bundle, CheckpointError
from videollm.config import ConfigError, build, override, read_yaml
from videollm.dataset import pack_by_video
from videollm.dry_run import DryRun, Load, NoEstimate, dry_run, prompts_of, word_bundle
from videollm.errors import tell
from videollm.grouping import frames_of
from videollm.model import VideoLLM, VideoLLMConfig
from videollm.objectives import build_objective
from videollm.preflight import read_deepspeed, stage_of, world_size
from videollm.settings import Settings
from videollm.video import Sampler

TEXT = 256  # tokens of a question with its answer, where nothing is known about the data
MOMENTS = 8  # bytes of AdamW's two averages, float32
MASTER = 4  # bytes of a weight in float32


@dataclass(frozen=True)
class Zero:
    """How DeepSpeed spreads a run: the stage (None: no DeepSpeed), where states are, and sizes in elements."""

    stage: int | None = None
    optimizer_on_cpu: bool = False
    weights_on_cpu: bool = False
    bucket: int = 0  # of gradients on their way
    gathered: int = 0  # weights that are whole at a time, at most (ZeRO-3)

    @staticmethod
    def read(settings: Settings) -> "Zero":
        """Of the run's DeepSpeed file; errors as of ``preflight.read_deepspeed``."""
        if not settings.train.deepspeed:
            return Zero()
        found = read_deepspeed(settings.train.deepspeed, settings.train.precision)
        options = found.get("zero_optimization", {})

        def number(key: str, default: float) -> int:
            return int(default if options.get(key, "auto") == "auto" else options[key])  # DeepSpeed's own defaults

        def offloaded(key: str) -> bool:
            return (options.get(key) or {}).get("device", "none") != "none"

        stage = stage_of(found)
        contiguous = stage and options.get("contiguous_gradients", True)
        buffers = (1 + bool(options.get("overlap_comm", stage == 3))) * bool(contiguous)
        return Zero(
            stage,
            offloaded("offload_optimizer"),
            offloaded("offload_param"),
            buffers * number("reduce_bucket_size", 5e8),
            number("stage3_max_live_parameters", 1e9) if stage == 3 else 0,
        )


@dataclass
class Part:
    """One part of the model on one device: counts of all its parameters, bytes of what is held there."""

    parameters: int = 0
    trained: int = 0
    dtype: str = ""
    weights: int = 0
    gradients: int = 0
    optimizer: int = 0


@dataclass
class Estimate:
    """Bytes on one device (``host``: in the machine's memory, where states are offloaded)."""

    load: Load
    world: int
    zero: Zero
    run: DryRun
    parts: dict[str, Part]
    host: int
    checkpointing: bool = False
    buffers: dict[str, int] = field(default_factory=dict)
    step: int = 0  # only while the optimizer steps, when no activations live

    @property
    def states(self) -> int:
        """Weights, gradients and optimizer."""
        return sum(part.weights + part.gradients + part.optimizer for part in self.parts.values())

    @property
    def total(self) -> int:
        """The most that is held at once."""
        return self.states + max(self.run.peak + sum(self.buffers.values()), self.step)


def estimate(model: VideoLLM, settings: Settings, load: Load, world: int = 1) -> Estimate:
    """What one of ``world`` processes needs to train a ``planned_model`` on batches of ``load``; uses ``model`` up.

    Raises:
        ConfigError: a DeepSpeed file that the run would not take.
        NoEstimate: a head or an objective that looks at numbers.
    """
    zero, half = Zero.read(settings), settings.train.precision == "bf16" and bool(settings.train.deepspeed)
    if half:
        model.to(torch.bfloat16)
    parts, host = held_states(model, zero, world)
    trained = sum(part.trained for part in parts.values())
    found = Estimate(load, world, zero, dry_run(model, settings, load, zero.stage or 0), parts, host=host)
    found.checkpointing = settings.train.gradient_checkpointing
    found.buffers = passing(zero, parts, world, 2 if half else 4)
    if zero.stage and not zero.optimizer_on_cpu:
        found.step = MASTER * trained // world  # gradients in float32
    return found


def passing(zero: Zero, parts: dict[str, Part], world: int, width: int) -> dict[str, int]:
    """Bytes of what passes between processes, by name: gradients, and whole weights under ZeRO-3. ``width`` of one."""
    trained, total = sum(part.trained for part in parts.values()), sum(part.parameters for part in parts.values())
    gradients = zero.bucket if zero.stage else trained * (world > 1)
    sizes = {"gradients on their way": gradients, "gathered weights, at most": min(zero.gathered, total)}
    return {name: width * count for name, count in sizes.items() if count}


def planned_model(settings: Settings, config: VideoLLMConfig | None = None) -> VideoLLM:
    """The model that the run trains, on the meta device; ``config`` if it is known. Errors as of assembling it."""
    config = copy.deepcopy(config) if config is not None else planned_config(settings)
    config._attn_implementation = "sdpa"  # what flash_attention_2 keeps for the backward pass is the same
    with torch.device("meta"):
        model = VideoLLM(config)
    set_trainable(model, settings.train)
    model.objective = build_objective(settings.train.objective)
    if settings.train.gradient_checkpointing:
        # transformers has the new name since 5.23, and warns of the old one since then.
        getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)({"use_reentrant": False})
    return model.train()


def held_states(model: VideoLLM, zero: Zero, world: int) -> tuple[dict[str, Part], int]:
    """Weights, gradients and optimizer by part, and the bytes that offloading moves into the machine's memory."""
    parts: dict[str, Part] = {}
    stage = zero.stage or 0
    for name, parameter in model.named_parameters():
        part = parts.setdefault(part_of(name), Part(dtype=str(parameter.dtype).removeprefix("torch.")))
        size = parameter.numel() * parameter.element_size()
        part.parameters += parameter.numel()
        part.weights += size // world if stage == 3 else size
        if parameter.requires_grad:
            part.trained += parameter.numel()
            part.gradients += size // world if stage >= 2 else size
            # DeepSpeed steps a copy in float32, also where the weights are float32 themselves.
            own = MASTER if zero.stage is not None and (stage or size < MASTER * parameter.numel()) else 0
            part.optimizer += (own + MOMENTS) * parameter.numel() // (world if stage else 1)
    host = 0
    for part in parts.values():
        if zero.optimizer_on_cpu:
            host, part.optimizer, part.gradients = host + part.optimizer + part.gradients, 0, 0
        if zero.weights_on_cpu:
            host, part.weights = host + part.weights, 0
    return parts, host


# ---- what a batch holds ----------------------------------------------------------------------------------------------


def assumed_load(
    settings: Settings,
    model: VideoLLM,
    frames: int | None = None,
    text: int | None = None,
    questions: int | None = None,
) -> Load:
    """A batch of the largest items that the settings let through; what is given counts.

    Frames follow from the sampler (``fps`` without ``max_frames``: as many as the context holds), and never exceed the
    context.
    """
    config = model.config
    sampler = settings.data.sampler or build(Sampler, config.sampler, "sampler")
    text = text or min(TEXT, config.context_length // 4)
    questions = questions or (settings.data.max_questions if settings.data.pack else 1)
    bundle = word_bundle(model)
    one, three = (len(prompts_of(bundle, Load(1, count, 1, text))[0]) for count in (1, 3))
    step = (three - one) // 2
    most = max(1, (config.context_length - one) // step + 1)
    given = frames or (sampler.num_frames if sampler.rule == "segments" else sampler.max_frames) or most
    frames = min(given, most)
    row = one + (frames - 1) * step + (questions - 1) * text
    budget = settings.train.max_tokens_per_batch
    return Load(max(1, budget // row) if budget else settings.train.batch_size, frames, questions, text)


def largest_load(settings: Settings, bundle: Bundle, records: Sequence[Record]) -> Load:
    """A batch of items with the most frames, the longest text and the most questions that any of ``records`` has."""
    sampler = settings.data.sampler or build(Sampler, bundle.config.sampler, "sampler")
    known = [r for r in records if r.video is None or sampler.rule == "segments" or r.duration_s is not None]
    frames = max((frames_of(r, sampler, bundle.config.max_tiles, "") for r in known), default=None)
    texts = (" ".join(p for turn in r.turns for p in turn.parts if isinstance(p, str)) for r in records)
    text = len(bundle.tokenizer(max(texts, key=len, default=""), add_special_tokens=False).input_ids)
    groups = pack_by_video(records, settings.data.max_questions) if settings.data.pack else [[0]]
    return assumed_load(settings, bundle.model, frames, text, max(map(len, groups), default=1))


# ---- printing --------------------------------------------------------------------------------------------------------


def size(count: float) -> str:
    """Bytes as a number to read."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"


def tables(found: Estimate) -> list[Table]:
    """What each part holds, and the sum."""
    held = Table("part", "parameters", "trained", "type", "weights", "gradients", "optimizer", title="Held by a device")
    for name, part in found.parts.items():
        count = f"{part.parameters:,}", f"{part.trained:,}", part.dtype
        held.add_row(name, *count, *map(size, (part.weights, part.gradients, part.optimizer)))
    load, how = found.load, "with" if found.checkpointing else "without"
    batch = f"{load.rows} x {load.frames} frames, {found.run.columns} tokens"
    run = Table("", "highest", "kept for backward", title=f"One batch: {batch}; {how} gradient checkpointing")
    for name, stage in found.run.stages.items():
        run.add_row(name, size(stage.peak), "" if name == "backward" else size(max(0, stage.kept)))
    zero = "no DeepSpeed" if found.zero.stage is None else f"ZeRO-{found.zero.stage}"
    total = Table("", "bytes", title=f"One device of {found.world}, {zero}", show_footer=True)
    rows = {"weights, gradients, optimizer": found.states, "activations": found.run.peak, **found.buffers}
    rows |= {"or, while the optimizer steps": found.step, "offloaded, in the machine's memory": found.host}
    for name, count in rows.items():
        if count:
            total.add_row(name, size(count))
    total.columns[0].footer, total.columns[1].footer = "at most at once", size(found.total)
    return [held, run, total]


def show(found: Sequence[Table]) -> None:
    """Print tables."""
    console = Console(width=110)
    for table in found:
        console.print(table)


def show_for_run(settings: Settings, bundle: Bundle, records: Sequence[Record]) -> None:
    """Print what the run's largest batch needs beside the weights, or why that is not known."""
    try:
        model = planned_model(settings, bundle.config)
        show(tables(estimate(model, settings, largest_load(settings, bundle, records), world_size()))[1:])
    except NoEstimate as error:
        print(f"memory: no estimate, the head or the objective looks at numbers ({error})")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; a user's error is one line and exit status 2."""
    parser = argparse.ArgumentParser(prog="videollm.memory", description="What a training run needs, before it runs.")
    parser.add_argument("--config", required=True, help="YAML file, see configs/")
    parser.add_argument("--gpus", type=int, default=1, help="processes over which DeepSpeed spreads the run")
    parser.add_argument("--frames", type=int, help="of a video; by default the most that the settings let through")
    parser.add_argument("--text", type=int, help=f"tokens of a question with its answer; default {TEXT}")
    parser.add_argument("--questions", type=int, help="of a video, with data.pack; default data.max_questions")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="train.batch_size=4 ...")
    args = parser.parse_intermixed_args(argv)
    from videollm.train import read_settings  # imported here: training prints an estimate itself

    try:
        for name in ("gpus", "frames", "text", "questions"):
            if getattr(args, name) is not None and getattr(args, name) < 1:
                raise ConfigError(f"--{name}: {getattr(args, name)}, but it must be at least 1")
        settings = read_settings(override(read_yaml(args.config), args.overrides))
        model = planned_model(settings)
        load = assumed_load(settings, model, args.frames, args.text, args.questions)
        show(tables(estimate(model, settings, load, args.gpus)))
    except (AnnotationError, CheckpointError, ConfigError) as error:
        return tell(error)
    except NoEstimate as error:
        return tell(NoEstimate(f"no estimate: the head or the objective looks at numbers ({error})"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
