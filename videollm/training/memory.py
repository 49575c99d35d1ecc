"""What a run needs on every device: named terms in bytes, whose sum is the most that a device holds at once.

In: the settings of a run, the number of processes, how much one batch holds. Out: an ``Estimate`` and its tables. What
parameters need are the terms of ``STATES``; ``estimate`` adds those of a step, in which activations are counted in the
model's own passes on tensors that have a shape and no memory. Reads no weights and no videos.

Two documented tools of PyTorch stand behind an underscore: ``FakeTensorMode`` (plain meta tensors know no autocast and
no fused attention) and ``TorchDispatchMode`` (hooks on saved tensors see neither what the backward pass makes nor what
gradient checkpointing keeps).
"""

import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import wraps
from typing import Any

import numpy as np
import torch
from rich.table import Table
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedTokenizerFast
from transformers.integrations.deepspeed import HfDeepSpeedConfig

from videollm.batches.batch import PREFIX, Batch, moved
from videollm.batches.dataset import Item, share_prompt
from videollm.batches.lengths import BY_TIME
from videollm.batches.lengths import video_of as largest_video
from videollm.batches.prompt import Prompt, Visual
from videollm.batches.templates import TEMPLATES
from videollm.checkpoint import Bundle, check_frames
from videollm.common.config import ConfigError, build
from videollm.data.conversation import SpanMark, Turn, VisualMark
from videollm.model.objective import build_objective
from videollm.model.videollm import VideoLLM
from videollm.training.assemble import planned_config
from videollm.training.optimizer import part_of, set_trainable
from videollm.training.preflight import read_deepspeed, stage_of
from videollm.training.settings import TEXT, Settings
from videollm.video.sampling import Sampler

QUESTION = 32  # of these the question's, at most; the others are answered, so that losses are not underestimated
MOMENTS = 8  # bytes of AdamW's two averages, float32
MASTER = 4  # bytes of a weight in float32
MIB = 2**20
WORD = 0  # id of all words
REST = "embeddings, logits, losses"
SHAPES = FakeTensorMode(allow_non_fake_inputs=True)  # one for all: tensors of two do not mix


@dataclass(frozen=True)
class Zero:
    """How DeepSpeed spreads a run over ``world`` processes; stage None is a run without it."""

    world: int = 1
    stage: int | None = None
    offloaded: tuple[str, ...] = ()  # names of ``STATES`` that are in the machine's memory
    bucket: int = 0  # elements of gradients on their way
    gathered: int = 0  # elements of weights that are whole at a time, at most

    def share(self, count: int, least: int) -> int:
        """What one process holds of ``count`` bytes that are spread from stage ``least`` on."""
        return count // self.world if (self.stage or 0) >= least else count


def read_zero(settings: Settings, world: int) -> Zero:
    """What the run's DeepSpeed file says, or DeepSpeed's defaults; errors as of ``preflight.read_deepspeed``."""
    if not settings.train.deepspeed:
        return Zero(world)
    found = read_deepspeed(settings.train.deepspeed, settings.train.precision)
    stage, given = stage_of(found), {k: v for k, v in found.get("zero_optimization", {}).items() if v != "auto"}
    keys = {"gradients": "offload_optimizer", "optimizer": "offload_optimizer", "weights": "offload_param"}
    offloaded = tuple(n for n, key in keys.items() if (given.get(key) or {}).get("device", "none") != "none")
    buffers = 1 + bool(given.get("overlap_comm", stage == 3)) if given.get("contiguous_gradients", True) else 0
    bucket = buffers * int(given.get("reduce_bucket_size", 5e8)) if stage else 0
    gathered = int(given.get("stage3_max_live_parameters", 1e9)) if stage == 3 else 0
    return Zero(world, stage, offloaded, bucket, gathered)


def weights(parameter: Tensor, zero: Zero) -> int:
    """The weight as the passes use it."""
    return zero.share(parameter.nbytes, least=3)


def gradients(parameter: Tensor, zero: Zero) -> int:
    """Its gradient, if it is trained."""
    return zero.share(parameter.nbytes, least=2) if parameter.requires_grad else 0


def optimizer(parameter: Tensor, zero: Zero) -> int:
    """AdamW's averages, and the float32 copy that DeepSpeed steps, from stage 1 on of float32 weights too."""
    copied = zero.stage is not None and (zero.stage > 0 or parameter.element_size() < MASTER)
    return zero.share((MOMENTS + MASTER * copied) * parameter.numel(), least=1) if parameter.requires_grad else 0


STATES = {"weights": weights, "gradients": gradients, "optimizer": optimizer}


def held_states(model: VideoLLM, zero: Zero) -> dict[str, Counter]:
    """Of each part of the model: the number of ``parameters``, of ``trained`` ones, and bytes of ``STATES``."""
    parts: dict[str, Counter] = {}
    for name, parameter in model.named_parameters():
        count = parameter.numel()
        states = {state: held(parameter, zero) for state, held in STATES.items()}
        part = parts.setdefault(part_of(name), Counter())
        part.update(parameters=count, trained=count * parameter.requires_grad, **states)
    return parts


@dataclass(frozen=True)
class Load:
    """What one process has at a time: ``rows`` items of ``frames`` frames and ``questions`` of ``text`` words each."""

    rows: int
    frames: int
    questions: int
    text: int


class LiveBytes(TorchDispatchMode):
    """While active, counts bytes of new storages, none of which a ``known`` tensor has: all that live (``now``), and
    by the part of the step that runs the most that lived (``highest``) and what it leaves (``kept``)."""

    def __init__(self, known: list[Tensor]):
        super().__init__()
        self.seen = weakref.WeakSet(tensor.untyped_storage() for tensor in known)
        self.now, self.part, self.highest, self.kept = 0, REST, Counter(), Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, Tensor) and (storage := tensor.untyped_storage()) not in self.seen:
                self.seen.add(storage)
                self._add(storage.nbytes())
                weakref.finalize(storage, self._add, -storage.nbytes())
        return out

    def _add(self, count: int) -> None:
        self.now += count
        self.kept[self.part] += count
        self.highest[self.part] = max(self.highest[self.part], self.now)


def dry_run(model: VideoLLM, settings: Settings, batch: Batch, zero3: bool = False) -> LiveBytes:
    """Bytes of one forward and backward pass of a ``planned_model``, beside weights, their gradients and the batch.

    Uses the model up. Raises ConfigError where its head or objective looks at numbers.
    """
    batch = moved(batch, SHAPES.from_tensor)
    live = LiveBytes([*model.parameters(), *model.buffers(), *tensors_of(batch)])
    # Under ZeRO-3 some parts take all at once what they take in chunks elsewhere: they ask whether this object lives.
    told = HfDeepSpeedConfig({"zero_optimization": {"stage": 3}}) if zero3 else None
    if model.patching is not None:
        model.vision_tower.plan = with_numbers(model.vision_tower.plan)
    # Autocast is that of the CPU: of the common layers it only runs norms in bf16 that a GPU's runs in fp32.
    half = settings.train.precision == "bf16" and settings.train.deepspeed is None
    parts = {"vision tower": model.vision_tower, "connector": model.connector, "language model": model.decoder}
    for name, part in parts.items():
        part.register_forward_pre_hook(lambda *_, name=name: setattr(live, "part", name))
        part.register_forward_hook(lambda *_: setattr(live, "part", REST))
    for parameter in model.parameters():
        if parameter.requires_grad:  # its gradient is counted with the weights
            parameter.register_post_accumulate_grad_hook(lambda complete: setattr(complete, "grad", None))
    try:
        with SHAPES, live:
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                loss = model(batch).loss
            live.part = "backward"
            loss.backward()
    except RuntimeError as error:
        reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
        raise ConfigError(f"model.head or train.objective looks at numbers: no estimate ({reason})") from error
    del told
    return live


def with_numbers(plan: Callable[..., dict]) -> Callable[..., dict]:
    """``plan`` of a tower, whose tensors have memory: sequences are cut by what they say, which shapes do not."""

    @wraps(plan)
    def made(*args: Any) -> dict:
        with unset_fake_temporarily():
            return plan(*args)

    return made


def tensors_of(batch: Batch) -> list[Tensor]:
    """All tensors of a batch."""
    found: list[Tensor] = []
    moved(batch, found.append)
    return found


def word_bundle(model: VideoLLM) -> Bundle:
    """The model with a tokenizer where only lengths count: a token a word, and the special ones."""
    stop = TEMPLATES[model.config.template].stop
    marks = [model.config.visual_tokens.get(key) for key in ("token", "image", "start", "end")]
    special = dict.fromkeys([stop, *filter(None, marks), *model.head.span_tokens, *model.head.extra_tokens])
    raw = Tokenizer(models.WordLevel({"w": WORD}, unk_token="w"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token=stop, extra_special_tokens=list(special))
    return Bundle(model, words, words if model.connector.reads_question else None)


def video_of(model: VideoLLM, frames: int) -> Visual:
    """A video of ``frames``, one a second; of any size, the largest."""
    if model.patching is None:
        return Visual("video", frames, np.arange(frames, dtype=float))
    return largest_video(model.patching, model.preprocess, frames)


def make_prompt(bundle: Bundle, frames: int, text: int) -> Prompt:
    """A video of ``frames`` and one question with its answer."""
    asked = min(QUESTION, text // 2)
    turns = [Turn("user", (VisualMark(0), " w" * asked)), Turn("assistant", ("w " * (text - asked), SpanMark(0)))]
    video = video_of(bundle.model, frames)
    return bundle.encoder().encode(turns, [(0.0, float(frames))], [video], float(frames))


def make_batch(model: VideoLLM, settings: Settings, load: Load) -> Batch:
    """A batch of the collator's; frames, as pixels or features where they are stored, are shapes."""
    bundle, together = word_bundle(model), model.objective.together
    prompt = make_prompt(bundle, load.frames, load.text)
    prompts = [replace(prompt) for _ in range(together or load.questions)]
    if together:
        share_prompt(prompts, text_only=False)
    video, kind = video_of(model, load.frames), "features" if settings.data.features else "pixels"
    spans_s = [np.asarray([[0.0, float(load.frames)]])] * len(prompts)
    one = Item(prompts, spans_s, times_s=video.times_s, duration_s=float(load.frames), question="w " * QUESTION)
    one.grids = list(video.grids)
    count = load.frames
    if model.patching is not None:
        count = len(prompt.visual) if kind == "features" else sum(rows * columns for rows, columns in video.grids)
    with SHAPES:  # a tensor a row: the collator takes one of several rows only once
        items = [replace(one, **{kind: frames_of(model, kind, count)}) for _ in range(load.rows)]
    data, unseen = settings.data, None if settings.data.unseen_id is None else WORD
    rank = together is not None
    collate = bundle.collator(average=settings.train.loss_average, pack=data.pack, rank=rank, unseen_id=unseen)
    return model.objective.planned(collate(items))


def frames_of(model: VideoLLM, kind: str, count: int) -> Tensor:
    """``count`` frames of a video (of any size: patches, or features of tokens) as they travel to the device."""
    tower, made = model.vision_tower, model.preprocess
    if kind == "features":
        patches = () if model.patching else (tower.num_patches,)
        return torch.empty(count, *patches, tower.hidden_size)
    if model.patching:
        return torch.empty(count, model.patching.width, dtype=torch.uint8)
    side = (made.size, made.size)
    decoded = torch.empty(count, 3, *side) if made.kind == "clip" else torch.empty(count, *side, 3, dtype=torch.uint8)
    return made.before_device(decoded)


def planned_model(settings: Settings) -> VideoLLM:
    """The model that the run trains, as shapes in ``SHAPES``. Errors as of assembling it."""
    config = planned_config(settings)
    if settings.model.attention != "eager":
        config._attn_implementation = "sdpa"  # what flash_attention_2 keeps is the same
    with torch.device("meta"):
        model = VideoLLM(config)
    check_frames(model)
    if settings.train.precision == "bf16" and settings.train.deepspeed:
        model.to(torch.bfloat16)  # DeepSpeed's way; without it, autocast makes copies
    with SHAPES:
        model.to_empty(device="cpu")
    model.tie_weights()
    set_trainable(model, settings.train)
    model.objective = build_objective(settings.train.objective)
    if settings.train.gradient_checkpointing:
        # The first name is that of transformers 5.23, where the second warns.
        getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)({"use_reentrant": False})
    return model.train()


def assumed_load(settings: Settings, model: VideoLLM, frames: int | None, text: int | None, asked: int | None) -> Load:
    """A batch of the largest items that settings and context let through; what is given counts, up to the context."""
    config, budget = model.config, settings.train.max_tokens_per_batch
    sampler = settings.data.sampler or build(Sampler, config.sampler, "sampler")
    text = min(text or min(TEXT, config.context_length // 4), config.context_length)
    asked = asked or (settings.data.max_questions if settings.data.pack else 1)
    chosen = frames or (sampler.max_frames if sampler.rule in BY_TIME else sampler.num_frames)
    frames, prompt = frames_that_fit(word_bundle(model), chosen, text)
    row = prompt + (asked - 1) * text
    return Load(max(1, budget // row) if budget else settings.train.batch_size, frames, asked, text)


def frames_that_fit(bundle: Bundle, frames: int | None, text: int) -> tuple[int, int]:
    """Of ``frames`` (None: of any number) those that the context has room for, and the tokens of their prompt."""
    context = bundle.config.context_length
    if bundle.model.patching is None:
        one, three = (len(make_prompt(bundle, count, text)) for count in (1, 3))
        most = max(1, (context - one) // ((three - one) // 2) + 1)
        frames = min(frames or most, most)
        return frames, one + (frames - 1) * ((three - one) // 2)
    frames = frames or context  # of any size: the fewer, the larger each may be
    while (tokens := len(make_prompt(bundle, frames, text))) > context and frames > 1:
        frames = frames * 3 // 4
    return frames, tokens


@dataclass
class Estimate:
    """``terms`` are bytes on one device by name, ``offloaded`` bytes in the machine's memory."""

    batch: Batch
    zero: Zero
    parts: dict[str, Counter]
    live: LiveBytes
    terms: dict[str, int]
    offloaded: int


def estimate(model: VideoLLM, settings: Settings, load: Load, world: int = 1) -> Estimate:
    """What each of ``world`` processes needs to train a ``planned_model``; errors of ``read_zero`` and ``dry_run``."""
    zero, width = read_zero(settings, world), model.dtype.itemsize
    parts, batch = held_states(model, zero), make_batch(model, settings, load)
    live = dry_run(model, settings, batch, zero3=zero.stage == 3)
    states = sum(parts.values(), Counter())
    sent = zero.bucket if zero.stage else states["trained"] * (world > 1)
    most = max(live.highest.values())
    step = {
        "batch": sum(tensor.nbytes for tensor in tensors_of(batch)),
        "activations": most,
        "beyond that, while answers are drawn": max(0, drawing(model, settings, batch, zero) - most),
        "gradients on their way": width * sent,
        "gathered weights, at most": width * min(zero.gathered, states["parameters"]),
    }
    # While DeepSpeed steps, gradients in float32 live, and nothing of the above.
    own = MASTER * states["trained"] // world if zero.stage and "optimizer" not in zero.offloaded else 0
    step["beyond that, while the optimizer steps"] = max(0, own - sum(step.values()))
    terms = {name: states[name] for name in STATES if name not in zero.offloaded} | step
    return Estimate(batch, zero, parts, live, terms, sum(states[name] for name in zero.offloaded))


def drawing(model: VideoLLM, settings: Settings, batch: Batch, zero: Zero) -> int:
    """Bytes of the keys and values of the answers that an objective draws before a step, and under ZeRO-3 of the other
    ranks' weights; 0 where it draws none."""
    objective, text = model.objective, model.config.text_config
    if objective.answers:
        return 0
    asked = int((batch.segment_ids == PREFIX).sum(1).max())
    places = asked + settings.generate.within(model.config.context_length).max_new_tokens
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    each = 2 * text.num_hidden_layers * text.num_key_value_heads * width * model.dtype.itemsize
    whole = sum(parameter.nbytes - weights(parameter, zero) for parameter in model.parameters())
    return whole + len(batch) * objective.together * places * each


def tables(found: Estimate) -> list[Table]:
    """What each part of the model holds, what one batch takes, and the sum."""
    held = Table("part", "parameters", "trained", *STATES, title="Held by a process, MiB")
    for name, part in found.parts.items():
        counts = f"{part['parameters']:,}", f"{part['trained']:,}"
        held.add_row(name, *counts, *(f"{part[state] / MIB:,.1f}" for state in STATES))
    (rows, columns), frames = found.batch.input_ids.shape, found.batch.times_s.shape[1]
    title = f"One batch, {rows} x {frames} frames, {columns} tokens, MiB"
    run = Table("", "highest", "kept for backward", title=title)
    for name, most in found.live.highest.items():
        kept = "" if name == "backward" else f"{max(0, found.live.kept[name]) / MIB:,.1f}"
        run.add_row(name, f"{most / MIB:,.1f}", kept)
    zero = "no DeepSpeed" if found.zero.stage is None else f"ZeRO-{found.zero.stage}"
    total = Table("", "MiB", title=f"One device of {found.zero.world}, {zero}")
    terms = found.terms | {"at most at once": sum(found.terms.values()), "in the machine's memory": found.offloaded}
    for name, count in terms.items():
        if count:
            total.add_row(name, f"{count / MIB:,.1f}")
    return [held, run, total]
