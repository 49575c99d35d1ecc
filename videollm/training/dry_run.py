"""A training step without numbers: the model's own passes on tensors that have a shape and no memory, bytes counted.

In: a model on the meta device and the shape of a batch. Out: how many bytes of tensors live at once in each part of the
step, and how many wait for the backward pass. Operators only report shapes, so nothing is computed and no GPU is
needed; what a GPU's kernels and its allocator take besides is not seen. No files, no optimizer.
"""

import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import torch
from tokenizers import AddedToken
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from transformers.integrations.deepspeed import HfDeepSpeedConfig

from videollm.batches.batch import Batch, moved
from videollm.batches.dataset import Item, share_prompt
from videollm.batches.prompt import Prompt
from videollm.batches.templates import TEMPLATES
from videollm.checkpoint.bundle import Bundle
from videollm.data.conversation import SpanMark, Turn, VisualMark
from videollm.model.videollm import VideoLLM, tower_shape
from videollm.training.settings import Settings

QUESTION = 32  # of a prompt's words, at most; the others are answered, so that losses are not underestimated
REST = "embeddings, logits, losses"


class NoEstimate(RuntimeError):
    """A part of the model looks at numbers, of which a dry run has none."""


@dataclass(frozen=True)
class Load:
    """What one process has at a time: ``rows`` items of ``frames`` frames and ``questions`` of ``text`` words each."""

    rows: int
    frames: int
    questions: int
    text: int


@dataclass
class Stage:
    """Bytes of one part of the step: the most that live while it runs, and what it leaves for the backward pass."""

    peak: int = 0
    kept: int = 0


@dataclass
class DryRun:
    """Bytes of tensors beside weights, their gradients and the batch itself; ``columns`` is the length of a row."""

    stages: dict[str, Stage] = field(default_factory=dict)
    columns: int = 0
    batch: int = 0  # bytes of the batch

    @property
    def peak(self) -> int:
        """The most that lives at once, batch included."""
        return self.batch + max(stage.peak for stage in self.stages.values())

    @property
    def kept(self) -> int:
        """What the forward pass leaves behind."""
        return sum(stage.kept for name, stage in self.stages.items() if name != "backward")


def dry_run(model: VideoLLM, settings: Settings, load: Load, zero_stage: int = 0) -> DryRun:
    """One forward and backward pass of ``model``, whose weights become shapes; gradients of weights are let go.

    Raises:
        NoEstimate: a head or an objective that looks at numbers.
    """
    found, shapes = DryRun(), FakeTensorMode()
    batch = make_batch(model, settings, load)
    hollow(model, shapes)
    # Autocast is that of the CPU: of the common layers it only runs norms in bf16 that a GPU's runs in fp32.
    half = settings.train.precision == "bf16" and not settings.train.deepspeed
    autocast = torch.autocast("cpu", torch.bfloat16) if half else nullcontext()
    mask = nullcontext() if batch.needs_mask else without_mask(model.decoder)
    with shapes, zero3(zero_stage == 3), mask:
        tensors: list[Tensor] = []
        batch = moved(batch, lambda tensor: tensors.append(as_shape(tensor, shapes)) or tensors[-1])
        found.columns, found.batch = batch.input_ids.shape[1], sum(map(size_of, tensors))
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(let_go)
        parts = {"vision tower": model.vision_tower, "connector": model.connector, "language model": model.decoder}
        try:
            with LiveBytes([*model.parameters(), *model.buffers(), *tensors]) as live:
                with live.watching(parts), autocast:
                    loss = model(batch).loss
                live.enter("backward")
                loss.backward()
        except (RuntimeError, NotImplementedError) as error:
            raise NoEstimate(f"{type(error).__name__}: {str(error).strip().splitlines()[0]}") from error
        live.enter("")
        found.stages = live.stages
    return found


# ---- counting --------------------------------------------------------------------------------------------------------


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages that are made while it is active and still live; ``known`` ones are not counted.

    ``stages`` splits that by what runs: each stage's peak and what it leaves.
    """

    def __init__(self, known: list[Tensor]):
        super().__init__()
        self.counted = {tensor.untyped_storage()._cdata: 0 for tensor in known}
        self.now = self.start = 0
        self.stages: dict[str, Stage] = {}
        self.stage = REST

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        tree_map_only(Tensor, self._count, out)
        return out

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata in self.counted:
            return
        self.counted[storage._cdata] = storage.nbytes()
        self.now += storage.nbytes()
        weakref.finalize(storage, self._drop, storage._cdata)
        current = self.stages.setdefault(self.stage, Stage())
        current.peak = max(current.peak, self.now)

    def _drop(self, key: int) -> None:
        self.now -= self.counted.pop(key, 0)

    def enter(self, stage: str) -> None:
        """From here on ``stage`` runs."""
        self.stages.setdefault(self.stage, Stage()).kept += self.now - self.start
        self.stage, self.start = stage, self.now

    @contextmanager
    def watching(self, parts: dict[str, nn.Module]) -> Iterator[None]:
        """While the forward pass of a part runs, it is the stage."""
        hooks = []
        for name, part in parts.items():
            hooks.append(part.register_forward_pre_hook(lambda *_, stage=name: self.enter(stage)))
            hooks.append(part.register_forward_hook(lambda *_: self.enter(REST)))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def let_go(parameter: Tensor) -> None:
    """Drop a gradient once it is complete; it is counted with the weights."""
    parameter.grad = None


@contextmanager
def without_mask(decoder: nn.Module) -> Iterator[None]:
    """Plain causal attention, for which transformers makes no mask once it has looked at positions; here it cannot."""
    module = sys.modules[type(decoder).__module__]
    made = module.create_causal_mask
    module.create_causal_mask = lambda *_, **__: None
    try:
        yield
    finally:
        module.create_causal_mask = made


def size_of(tensor: Tensor) -> int:
    """Bytes of a tensor."""
    return tensor.numel() * tensor.element_size()


# ---- shapes ----------------------------------------------------------------------------------------------------------


def hollow(model: nn.Module, shapes: FakeTensorMode) -> None:
    """Put tensors without memory in the place of weights and buffers; what is shared or frozen stays so."""
    made: dict[int, tuple[Tensor, Tensor]] = {}
    for module in model.modules():
        for held in (module._parameters, module._buffers):
            for name, old in held.items():
                if old is None:
                    continue
                if id(old) not in made:
                    with shapes:
                        new = torch.empty(old.shape, dtype=old.dtype)
                    if isinstance(old, nn.Parameter):
                        new = nn.Parameter(new, old.requires_grad)
                    made[id(old)] = (old, new)  # the old one too, so that no other takes its id
                held[name] = made[id(old)][1]


def as_shape(value: Tensor, shapes: FakeTensorMode) -> Tensor:
    """A batch's tensor without memory; indices keep nothing but their shape either."""
    return torch.empty(value.shape, dtype=value.dtype) if value.is_meta else shapes.from_tensor(value)


@contextmanager
def zero3(active: bool) -> Iterator[None]:
    """Under ZeRO-3 some parts take all at once what they take in chunks elsewhere; they ask transformers for it."""
    held = HfDeepSpeedConfig({"zero_optimization": {"stage": 3}}) if active else None
    yield
    del held


# ---- a batch ---------------------------------------------------------------------------------------------------------


class Words:
    """Stands in for a tokenizer where only lengths count: a token a word."""

    bos_token_id, pad_token_id = None, 0

    def __init__(self, special: list[str]):
        self.added_tokens_decoder = {i: AddedToken(name, special=True) for i, name in enumerate(special)}

    def __call__(self, text: str | list[str], return_tensors: str | None = None, **_):
        if return_tensors is None:
            return SimpleNamespace(input_ids=[1] * len(text.split()))
        ids = torch.ones(len(text), max(len(t.split()) for t in text), dtype=torch.long)
        return {"input_ids": ids, "attention_mask": ids}


def word_bundle(model: VideoLLM) -> Bundle:
    """The model with stand-ins for its tokenizers."""
    visual = model.config.visual_tokens
    marks = [visual.get(key) for key in ("token", "start", "end")]
    special = [TEMPLATES[model.config.template].stop, *filter(None, marks)]
    words = Words([*dict.fromkeys([*special, *model.head.span_tokens, *model.head.extra_tokens])])
    return Bundle(model, words, words if model.connector.reads_question else None)


def prompts_of(bundle: Bundle, load: Load, answers: int = 0) -> list[Prompt]:
    """The prompts of one row; ``answers`` to one question behind one prompt, if not 0."""
    asked = min(QUESTION, load.text // 2)
    turns = [Turn("user", (VisualMark(0), " w" * asked)), Turn("assistant", ("w " * (load.text - asked), SpanMark(0)))]
    seconds = float(load.frames)
    one = bundle.encoder().encode(turns, [(0.0, seconds)], [("video", load.frames)], seconds)
    if answers:
        prompts = [Prompt(**vars(one)) for _ in range(answers)]
        share_prompt(prompts, text_only=False)
        return prompts
    return [one] * load.questions


def make_batch(model: VideoLLM, settings: Settings, load: Load) -> Batch:
    """A batch of the collator's, its pixels (or features, where they are stored) without memory."""
    bundle, pairs = word_bundle(model), model.objective.rejected is not None
    prompts = prompts_of(bundle, load, answers=2 if pairs else 0)
    if settings.data.features:
        tower = model.vision_tower
        visual = {"features": torch.empty(load.frames, tower.num_patches, tower.hidden_size, device="meta")}
    else:
        visual = {"pixels": torch.empty(load.frames, *tower_shape(model.vision_tower), device="meta")}
    item = Item(
        prompts=prompts,
        spans_s=[np.asarray([[0.0, float(load.frames)]])] * len(prompts),
        times_s=np.arange(load.frames, dtype=np.float64),
        duration_s=float(load.frames),
        question="w " * QUESTION,
        ids=["dry run"] * (1 if pairs else len(prompts)),
        **visual,
    )
    collate = bundle.collator(average=settings.train.loss_average, pack=settings.data.pack, rank=pairs)
    return collate([item] * load.rows)
