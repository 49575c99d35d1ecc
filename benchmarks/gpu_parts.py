"""The parts that ``gpu_check`` measures, each in a process of its own: one system built once, then its cases.

In: a ``Run``: which system, device, size. Out: rows through ``Run.case``, one as soon as it is measured; a case that
fails is a row with its reason, and the next one is tried. Weights are random and stand on the device in bf16 from the
start. Knows no time limit and no other part.
"""

import contextlib
import json
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

from benchmarks.stand_ins import STANDING_IN, missing  # first: the imports below need what it puts in place

# ruff: isort: split
import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

import distime.time_head  # noqa: F401 - registers the head, as the other two do
from benchmarks.real_sizes import SYSTEMS, recipe
from benchmarks.rounds import seconds
from videollm.batches.batch import Batch
from videollm.batches.dataset import Item
from videollm.common.code import version
from videollm.common.command import message
from videollm.data.conversation import Turn, VisualMark
from videollm.model.generate import GenerateOptions
from videollm.model.lora import merge_lora
from videollm.model.objective import build_objective
from videollm.model.towers import CHUNK, CompiledTower, encode_frames
from videollm.model.videollm import VideoLLM, tower_shape
from videollm.training.assemble import planned_config
from videollm.training.memory import TEXT, Load, estimate, make_batch, planned_model, word_bundle
from videollm.training.optimizer import parameter_groups, set_trainable
from videollm.training.preflight import FROM_THE_RUN, prepare_process, read_deepspeed
from videollm.training.settings import Settings

GIB = 2**30
PEAKS = {(9, 0): 989e12, (8, 0): 312e12}  # dense bf16 operations a second of the datasheet, by compute capability
HALF_STEP = ["train.deepspeed=null", "train.precision=bf16"]
STATES_OF_A_PASS = ("weights", "gradients", "batch", "activations")  # what lives in a step before AdamW's averages


@dataclass
class Run:
    """One part's work; rows go to ``file``, one JSON object a line."""

    part: str
    system: str
    device: str
    tiny: bool
    folder: Path
    file: Path

    def row(self, case: str, status: str, note: str = "", **figures: float) -> None:
        """Write a row; ``status`` is ok, none, skipped or failed."""
        line = {"part": self.part, "case": case, "status": status, "figures": figures, "note": note}
        with open(self.file, "a", encoding="utf-8") as out:
            out.write(json.dumps(line) + "\n")

    @contextlib.contextmanager
    def case(self, case: str) -> Iterator[dict[str, float]]:
        """A mapping to put figures in; a row at the end, also where the case fails."""
        figures: dict[str, float] = {}
        try:
            yield figures
        except Exception as error:  # of any kind: the next case may work
            self.row(case, "failed", reason(error), **figures)
        else:
            self.row(case, "ok", **figures)
        if self.device == "cuda":
            torch.cuda.empty_cache()

    @property
    def frames(self) -> int:
        """Frames of a video."""
        return 4 if self.tiny else SYSTEMS[self.system].frames

    def load(self, rows: int) -> Load:
        """``rows`` videos with a question and its answer each."""
        return Load(rows, self.frames, 1, 64 if self.tiny else TEXT)

    def settings(self, *changes: str, preferences: bool = False) -> Settings:
        """Of the system's shipped training."""
        return recipe(self.system, self.folder, self.tiny, list(changes), preferences)

    def timed(self, step: Callable[[], object]) -> float:
        """Seconds of a step, the median of some behind one that warms up."""
        step()
        return statistics.median(seconds(step, self.device) for _ in range(1 if self.tiny else 3))


def reason(error: BaseException) -> str:
    """The first line of an error, with its kind."""
    lines = message(error).splitlines()
    return f"{type(error).__name__}: {lines[0][:300] if lines else 'no words'}"


def build(run: Run, settings: Settings, trained: bool) -> VideoLLM:
    """The model of ``settings`` with random bf16 weights, made where it is used: no copy in the machine's memory."""
    config = planned_config(settings)
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(run.device):
            model = VideoLLM(config)
    finally:
        torch.set_default_dtype(torch.float32)
    if not trained:
        merge_lora(model)  # as a finished run is asked
        return model.eval()
    set_trainable(model, settings.train)
    model.objective = build_objective(settings.train.objective)
    if settings.train.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model.train()


def product_rate(run: Run) -> float:
    """Operations a second of one large bf16 product."""
    size = 256 if run.tiny else 8192
    a, b = (torch.randn(size, size, device=run.device, dtype=torch.bfloat16) for _ in range(2))

    def products() -> None:
        for _ in range(10):
            a @ b

    return 20 * size**3 / run.timed(products)


def peak_rate(run: Run) -> float:
    """What a device can do, for MFU: the datasheet's number, or of one not known here what one product shows."""
    known = PEAKS.get(torch.cuda.get_device_capability()) if run.device == "cuda" else None
    return known or product_rate(run)


# ---- parts -----------------------------------------------------------------------------------------------------------


def machine(run: Run) -> None:
    """Versions, and what the device can do at best."""
    names = ("torch", "transformers", "peft", "accelerate", "deepspeed", "nncore", "av", "decord", "flash_attn")
    found = ", ".join(f"{name} {version(name) or 'missing'}" for name in names)
    standing = f"; stand-ins for {', '.join(STANDING_IN)}" if STANDING_IN else ""
    run.row("versions", "ok", f"Python {sys.version.split()[0]}, {found}{standing}")
    if run.device == "cuda":
        device = torch.cuda.get_device_properties(0)
        run.row("device", "ok", f"{device.name}, CUDA {torch.version.cuda}", GiB=device.total_memory / GIB)
    with run.case("bf16 product") as found:
        found["TFLOP/s"] = product_rate(run) / 1e12
    with run.case("copy, read and written") as found:
        source = torch.empty((1 << 20) if run.tiny else 1 << 32, dtype=torch.uint8, device=run.device)
        found["GB/s"] = 2 * source.numel() / run.timed(source.clone) / 1e9


def operations(run: Run, *changes: str, preferences: bool = False) -> float:
    """Of one training step on one row, without what gradient checkpointing computes again."""
    settings = run.settings(*changes, "train.gradient_checkpointing=false", preferences=preferences)
    model = planned_model(settings)
    with FlopCounterMode(display=False) as counted:
        estimate(model, settings, run.load(1))
    return counted.get_total_flops()


def real_batch(run: Run, settings: Settings, rows: int) -> Batch:
    """``rows`` videos with a question each, or with a pair of answers; frames are noise."""
    batch = make_batch(planned_model(settings), settings, run.load(rows))
    planned = batch.pixel_values  # as frames travel: bytes, or numbers that the CPU has made of them
    noise = torch.rand(planned.shape) * (255 if planned.dtype == torch.uint8 else 1)
    pixels = noise.to(torch.uint8 if planned.dtype == torch.uint8 else torch.bfloat16)
    batch.pixel_values = None
    batch = batch.to(run.device)
    batch.pixel_values = pixels.to(run.device)
    return batch


def expected(settings: Settings, load: Load) -> float:
    """GiB that the memory estimate gives for a pass of a model in bf16 on one device, without the optimizer."""
    zero = settings.train.deepspeed
    found = estimate(planned_model(settings), settings, load)  # with DeepSpeed's file: weights in bf16
    assert zero, "weights in bf16 are DeepSpeed's way"
    return sum(found.terms[name] for name in STATES_OF_A_PASS) / GIB


def training(run: Run, preferences: bool, rows: tuple[int, ...]) -> None:
    """A LoRA step of the shipped recipe: forward, backward, AdamW."""
    settings = run.settings(preferences=preferences)
    if run.device == "cuda":
        least, there = expected(settings, run.load(1)), torch.cuda.mem_get_info()[0] / GIB
        if least > there:
            return run.row("batch 1", "skipped", f"needs about {least:.0f} GiB, {there:.0f} are free")
    model = build(run, settings, trained=True)
    optimizer = torch.optim.AdamW(parameter_groups(model, settings), fused=run.device == "cuda")
    counted, peak = operations(run, preferences=preferences), peak_rate(run)

    def passes(batch: Batch) -> None:
        optimizer.zero_grad(set_to_none=True)
        model(batch).loss.backward()

    for count in rows:
        with run.case(f"batch {count}") as found:
            batch = real_batch(run, settings, count)
            optimizer.state.clear()
            if run.device == "cuda":
                passes(batch)
                torch.cuda.reset_peak_memory_stats()
                passes(batch)
                found["peak GiB of a pass"] = torch.cuda.max_memory_allocated() / GIB
            found["estimated GiB"] = expected(settings, run.load(count))
            spent = run.timed(lambda batch=batch: (passes(batch), optimizer.step()))
            found["ms a step"] = 1000 * spent
            found["tokens/s"] = int((batch.segment_ids >= 0).sum()) / spent
            found["MFU %"] = 100 * counted * count / spent / peak
            del batch
            optimizer.zero_grad(set_to_none=True)


def sft(run: Run) -> None:
    """The supervised step by batch."""
    training(run, False, (1,) if run.tiny else (1, 2) if run.system == "DisTime 8B" else (1, 4, 8))


def fpo(run: Run) -> None:
    """The preference step: both answers behind one prefix."""
    training(run, True, (1,) if run.tiny else (1, 4))


def asked(run: Run, model: VideoLLM, rows: int) -> Batch:
    """``rows`` questions about one video whose features are there."""
    bundle, tower = word_bundle(model), model.vision_tower
    turns = [Turn("user", (VisualMark(0), " w" * 32))]
    features = torch.randn(run.frames, tower.num_patches, tower.hidden_size).bfloat16()
    items = []
    for row in range(rows):
        prompt = bundle.encoder().encode(turns, [], [("video", run.frames)], float(run.frames))
        times = np.arange(run.frames, dtype=float)
        items.append(
            Item([prompt], [np.zeros((0, 2))], features=features, times_s=times, duration_s=float(run.frames),
                 question="w " * 32, ids=[str(row)])
        )  # fmt: skip
    return bundle.collator(asked=True)(items).to(run.device)


def generation(run: Run) -> None:
    """The prompt (connector and language model; the tower has its own part) and tokens behind it, by batch."""
    model = build(run, run.settings(*HALF_STEP), trained=False)
    weights = sum(p.nbytes for p in model.decoder.parameters())
    long = 8 if run.tiny else 65
    stop = model.config.text_config.vocab_size - 1  # as unlikely as any
    counts, ways = (1, 2) if run.tiny else (1, 8, 32), (False, True) if run.device == "cuda" else (False,)
    for count, graphs in product(counts, ways):
        with run.case(f"batch {count}, {'with' if graphs else 'without'} graphs") as found:
            batch, lengths = asked(run, model, count), {}

            def answer(tokens: int, batch=batch, lengths=lengths, graphs=graphs) -> None:
                options = GenerateOptions(max_new_tokens=tokens, graphs=graphs)
                lengths[tokens] = model.generate_ids(batch, 0, stop, options)[0].shape[1]

            with torch.no_grad():
                prompt, whole = (run.timed(lambda n=n, answer=answer: answer(n)) for n in (1, long))
            steps, prompt_tokens = lengths[long] - 1, int((batch.segment_ids >= 0).sum())
            found |= {"prompt ms": 1000 * prompt, "prompt tokens/s": prompt_tokens / prompt}
            if steps:
                a_step = max(whole - prompt, 1e-9) / steps
                found |= {
                    "ms a token": 1000 * a_step,
                    "tokens/s": count / a_step,
                    "GB/s of weights": weights / a_step / 1e9,
                }
    if len(ways) == 1:
        run.row("with graphs", "skipped", "only a GPU records steps")


def frames(run: Run) -> None:
    """The frozen tower, and decoding in workers beside it."""
    model = build(run, run.settings(*HALF_STEP), trained=False)
    tower, shape, speed = model.vision_tower, tower_shape(model.vision_tower), 0.0
    count = CHUNK if not run.tiny else 4
    for way in ("tower", "compiled tower")[: 1 + (run.device == "cuda")]:
        with run.case(f"{way}, {count} frames at a time") as found:
            pixels = torch.randn(count, *shape, device=run.device, dtype=torch.bfloat16)
            with FlopCounterMode(display=False) as counted:
                encode_frames(tower, pixels[:1], 1)
            own = tower if way == "tower" else CompiledTower(tower)
            here = count / run.timed(partial(encode_frames, own, pixels, count))
            found |= {"frames/s": here, "TFLOP/s": here * counted.get_total_flops() / 1e12}
            speed = max(speed, here)
    for backend in ("pyav", "decord"):
        case = f"decoding by {backend} in workers"
        if lacking := missing("av", *({"decord"} & {backend})):
            run.row(case, "skipped", f"not installed: {', '.join(lacking)}")
            continue
        with run.case(case) as found:
            from benchmarks.gpu_decoding import decoded_frames  # needs PyAV

            workers = decoded_frames(run.folder, word_bundle(model), backend, run.tiny)
            found |= workers | {"of the tower's speed": workers["frames/s"] / speed if speed else 0.0}


def zero_step(run: Run, settings: Settings, model: VideoLLM, batch: Batch) -> dict[str, float]:
    """Milliseconds of a step, and the most memory with the optimizer's states."""
    import deepspeed
    from transformers.integrations.deepspeed import HfDeepSpeedConfig

    prepare_process(settings)
    values = read_deepspeed(settings.train.deepspeed, "bf16")
    values |= dict.fromkeys(FROM_THE_RUN, 1) | {"gradient_clipping": settings.train.clip, "bf16": {"enabled": True}}
    kept = HfDeepSpeedConfig(values)  # the model asks whether it runs under ZeRO-3 as long as this lives
    engine = None
    try:
        optimizer = torch.optim.AdamW(parameter_groups(model, settings), fused=run.device == "cuda")
        engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=values)

        def step() -> None:
            engine.backward(engine(batch).loss)
            engine.step()

        step()
        found = {}
        if run.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        found["ms a step"] = 1000 * run.timed(step)
        if run.device == "cuda":
            found["peak GiB"] = torch.cuda.max_memory_allocated() / GIB
        return found
    finally:
        del kept
        if engine is not None:  # the process group stays: the next engine takes it
            engine.destroy()


def zero(run: Run) -> None:
    """A LoRA step through DeepSpeed's engine, ZeRO-2 and ZeRO-3 on one rank, beside the whole estimate."""
    for stage in (2, 3):
        with run.case(f"ZeRO-{stage}, one rank, batch 1") as found:
            settings = run.settings(f"train.deepspeed=configs/deepspeed/zero{stage}.json")
            told = estimate(planned_model(settings), settings, run.load(1))
            found["estimated GiB"] = sum(told.terms.values()) / GIB
            model, batch = build(run, settings, trained=True), real_batch(run, settings, 1)
            found |= zero_step(run, settings, model, batch)
            del model
