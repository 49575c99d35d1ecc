"""The time head of DisTime (arXiv 2505.24329): one ``<TIME_STAMP>`` is a distribution over time bins.

In: the hidden state before each ``<TIME_STAMP>``. Out: two distributions over the bins 0..R of the video's length,
whose expectations are start and end; and back, seconds as gaussians over the bins, encoded as the token's embedding.
The same encoder tells the language model the time of every frame. It knows no video, no tokenizer and no trainer.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from distime.losses import dfl, diou, gaussian
from videollm.common.config import ConfigError
from videollm.heads import (
    HEADS,
    FrameBatch,
    FrameSlot,
    FrameTimeSlot,
    Part,
    Prediction,
    Role,
    SpanRefs,
    SpanSlot,
    TemporalHead,
    Turn,
    replace_marks,
)

SPREAD = 0.5  # of a drawn time around the expected one, in bins: the scale of a logistic distribution
STAMP, FRAME_TIME = "<TIME_STAMP>", "<FRAME_TIME_REF>"


@dataclass
class TimeOptions:
    """Options of the time head. The last are flags: where published code has a surprise, the default has not."""

    reg_max: int = 32  # R: the video's length is cut into R + 1 bins
    sigma: float = 1.0  # width of the encoding gaussian, in bins
    drawing: Literal["expectation", "bins"] = "expectation"  # a time around the expected one, or a bin, for each end
    num_layers: int = 3  # linear layers of the encoder and of the decoder
    frame_time: Literal["token", "add", "none"] = "token"  # own token before a frame, added to its tokens, or not told
    dfl_weight: float = 1.0  # weight of the distribution focal loss
    diou_weight: float = 1.0  # weight of the DIoU loss
    dfl_average: Literal["published", "mean"] = "published"  # sum over a sample's ends / R, or mean over all ends
    gaussians_bf16: bool = False  # round the gaussians of the encoder as published, bit for bit
    expectation_bf16: bool = False  # round expected times as published: a grid of up to 1/8 bin
    target_clamp: Literal["video", "last_second"] = "video"  # true times end at duration, or 1 s before (published)
    order_for_diou: bool = True  # order predicted ends before the DIoU; published: signed lengths

    def __post_init__(self):
        for name, least in (("reg_max", 1), ("num_layers", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"model.head.{name}: must be at least {least}, got {getattr(self, name)}")
        if self.sigma <= 0:
            raise ConfigError(f"model.head.sigma: must be above 0, got {self.sigma}")


class TimeMLP(nn.Module):
    """Linear layers with ReLU between them, ``width`` wide inside."""

    def __init__(self, inputs: int, width: int, outputs: int, num_layers: int):
        super().__init__()
        sizes = [inputs, *[width] * (num_layers - 1), outputs]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(sizes, sizes[1:], strict=False))

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] -> [..., outputs], in the layers' own precision."""
        x = x.to(self.layers[0].weight.dtype)
        for layer in self.layers[:-1]:
            x = layer(x).relu()
        return self.layers[-1](x)


@HEADS.register(name="distime")
class TimeHead(TemporalHead):
    """Time as a distribution over bins (published_systems.md#distime-time-head)."""

    Options = TimeOptions
    wording = "distime"
    published = {  # noqa: RUF012 - as the base class declares it
        "model": {
            "head": {
                "gaussians_bf16": True,
                "expectation_bf16": True,
                "target_clamp": "last_second",
                "order_for_diou": False,
            }
        },
        "data": {"raw_spans": True, "unseen_id": 0, "sampler": {"spare_last": True}},
        "generate": {"encode_spans": False},
    }
    span_tokens = (STAMP,)
    extra_tokens = (FRAME_TIME,)

    def __init__(self, options: TimeOptions, hidden_size: int):
        super().__init__(options, hidden_size)
        values = 2 * (options.reg_max + 1)  # start and end
        self.time_gen = TimeMLP(hidden_size, hidden_size, values, options.num_layers)
        self.time_enc = TimeMLP(values, hidden_size, hidden_size, options.num_layers)

    def reset_parameters(self) -> None:
        """Xavier-uniform weights and zero biases, as published."""
        for layer in (*self.time_gen.layers, *self.time_enc.layers):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    # ---- wording -------------------------------------------------------------------------------------------------

    def layout(self, num_frames: int) -> list[Part]:
        """``<FRAME_TIME_REF>: <frame>`` line by line; with "add" and "none" the frames alone."""
        if self.options.frame_time != "token":
            return [FrameSlot(i, timed=self.options.frame_time == "add") for i in range(num_frames)]
        lines = [(FrameTimeSlot(FRAME_TIME, i), ": ", FrameSlot(i), "\n") for i in range(num_frames)]
        return [part for line in lines for part in line][:-1]

    def compose(self, turns: Sequence[Turn], spans_s: Sequence[Sequence[float]], duration_s: float) -> list[Turn]:
        """Every mark becomes a ``<TIME_STAMP>`` in its place."""

        def stamped(turn: Turn) -> Turn:
            role = Role.ANSWER if turn.role == "assistant" else Role.QUESTION
            return replace_marks(turn, lambda mark: SpanSlot(STAMP, role, mark.span))

        return [stamped(turn) for turn in turns]

    # ---- embeddings ----------------------------------------------------------------------------------------------

    def embed(self, token_embeds: Tensor, refs: SpanRefs, frames: FrameBatch) -> Tensor:
        """Encoded time in place of the token; added to it for frames under ``frame_time: add``."""
        framed = (refs.role == Role.FRAME).unsqueeze(-1)  # [N, 1]
        frame_s = frames.times_s[refs.owner, refs.frame.clamp(min=0)].unsqueeze(-1)  # [N, 1]
        seconds = torch.where(framed, frame_s, self._true_seconds(refs, frames))  # [N, 2]
        encoded = self._encode(self._bins(seconds, frames.duration_s[refs.owner])).to(token_embeds.dtype)
        if self.options.frame_time == "add":
            return torch.where(framed, token_embeds + encoded, encoded)
        return encoded

    def embed_predicted(
        self, token_embeds: Tensor, prediction: Prediction, owner: Tensor, frames: FrameBatch
    ) -> Tensor:
        """Encoded ``prediction.raw``: the expected bins, neither ordered nor clipped."""
        return self._encode(prediction.raw).to(token_embeds.dtype)

    def _encode(self, bins: Tensor) -> Tensor:
        """Start and end in bins -> one embedding. [..., 2] -> [..., D]."""
        options = self.options
        curves = gaussian(bins, options.reg_max, options.sigma, options.gaussians_bf16)  # [..., 2, K]
        return self.time_enc(curves.flatten(-2))

    def _bins(self, seconds: Tensor, duration_s: Tensor) -> Tensor:
        """seconds [N, ...] of videos of ``duration_s`` [N] -> bins; a row without a video has time 0 only."""
        return seconds / duration_s.unsqueeze(-1).clamp(min=1e-6) * self.options.reg_max

    def _true_seconds(self, refs: SpanRefs, frames: FrameBatch) -> Tensor:
        """The spans inside the range that the head is taught. [N, 2]."""
        limit = frames.duration_s[refs.owner].unsqueeze(-1)  # [N, 1]
        if self.options.target_clamp == "last_second":
            limit = (limit - 1).clamp(min=0)
        return torch.minimum(refs.seconds.clamp(min=0), limit)

    # ---- time ----------------------------------------------------------------------------------------------------

    def predict(self, queries: Tensor, owner: Tensor, frames: FrameBatch) -> Prediction:
        """Expected start and end; the score is the mean height of the two distributions' highest bins."""
        p = self._logits(queries).softmax(-1)  # [N, 2, K]
        bins = self._expected(p).float()
        return Prediction(self._inside(bins, owner, frames), p.amax(-1).mean(-1), bins)

    def _inside(self, bins: Tensor, owner: Tensor, frames: FrameBatch) -> Tensor:
        """Bins [N, 2] as ordered seconds inside the video. [N, 2]."""
        duration = frames.duration_s[owner].unsqueeze(-1)  # [N, 1]
        return torch.minimum(self._seconds(bins, duration).clamp(min=0), duration).sort(-1).values

    def draw(
        self, queries: Tensor, owner: Tensor, frames: FrameBatch, temperature: float, noise: Callable[[int], Tensor]
    ) -> Prediction:
        """A time for each end, as ``drawing`` says; the score as of ``predict``."""
        logits = self._logits(queries)  # [N, 2, K]
        p = logits.softmax(-1)
        if self.options.drawing == "bins":
            ends = [(end / temperature + noise(end.shape[-1])).argmax(-1) for end in logits.unbind(1)]
            bins = torch.stack(ends, -1).float()
        else:  # the difference of two Gumbel variables is logistic
            bins = (self._expected(p).float() + SPREAD * temperature * (noise(2) - noise(2))).float()
        return Prediction(self._inside(bins, owner, frames), p.amax(-1).mean(-1), bins)

    def draw_log_prob(
        self, queries: Tensor, raw: Tensor, owner: Tensor, frames: FrameBatch, temperature: float
    ) -> Tensor:
        """Log-probability of the bins ``raw`` of both ends; of times, the log of its density, in bins. [N]."""
        logits = self._logits(queries)  # [N, 2, K]
        if self.options.drawing == "bins":
            return (logits / temperature).log_softmax(-1).gather(-1, raw.long().unsqueeze(-1)).sum((1, 2))
        width = SPREAD * temperature
        z = (raw.float() - self._expected(logits.softmax(-1)).float()) / width
        return (-z - 2 * softplus(-z) - math.log(width)).sum(-1)

    def draw_entropy(
        self, queries: Tensor, raw: Tensor, owner: Tensor, frames: FrameBatch, temperature: float
    ) -> Tensor:
        """Exactly, of both ends together; of times, of their density, in bins. [N]."""
        if self.options.drawing == "bins":
            return torch.special.entr((self._logits(queries) / temperature).softmax(-1)).sum((1, 2))
        return torch.full_like(raw[:, 0], 2 * (2 + math.log(SPREAD * temperature)))  # logistic

    def _logits(self, queries: Tensor) -> Tensor:
        """Query states -> float32 logits of start and end. [N, D] -> [N, 2, K]."""
        return self.time_gen(queries).float().unflatten(-1, (2, -1))

    def _expected(self, p: Tensor) -> Tensor:
        """Expectation in bins. [N, 2, K] -> [N, 2]; bfloat16 with ``expectation_bf16``."""
        dtype = torch.bfloat16 if self.options.expectation_bf16 else p.dtype
        return (p.to(dtype).float() * torch.arange(p.shape[-1], device=p.device)).sum(-1).to(dtype)

    def _seconds(self, bins: Tensor, duration_s: Tensor) -> Tensor:
        """Bins of videos of ``duration_s`` as seconds, in the precision of the bins."""
        return bins / self.options.reg_max * duration_s.to(bins.dtype)

    def counts(self, refs: SpanRefs) -> dict[str, Tensor]:
        """Samples for ``diou`` and the published ``dfl``; span ends for ``dfl_average: mean``."""
        samples = torch.full((), float(refs.num_samples), device=refs.index.device)
        ends = 2 * (refs.role != Role.FRAME).sum().float()
        return {"dfl": samples if self.options.dfl_average == "published" else ends, "diou": samples}

    def loss(self, queries: Tensor, refs: SpanRefs, frames: FrameBatch) -> dict[str, Tensor]:
        """DFL summed over ends (published: / R), and DIoU averaged within a sample, summed over samples.

        Spans in questions count too, as published (published_systems.md#distime-losses). Computed in float32.
        """
        # No early return for N = 0: every rank runs the same operations, so gradients arrive in the same order.
        spans = (refs.role != Role.FRAME).float()  # [N]
        true_s, duration = self._true_seconds(refs, frames), frames.duration_s[refs.owner].unsqueeze(-1)
        logits = self._logits(queries)  # [N, 2, K]
        focal = self._dfl(logits, true_s, frames.duration_s[refs.owner])  # [N]
        if self.options.dfl_average == "published":
            focal = focal / self.options.reg_max
        predicted_s = self._seconds(self._expected(logits.softmax(-1)), duration)
        overlap = diou(predicted_s, true_s, self.options.order_for_diou)  # [N]
        in_sample = spans.new_zeros(refs.num_samples).index_add(0, refs.sample, spans)  # [S]
        return {
            "dfl": self.options.dfl_weight * (focal * spans).sum(),
            "diou": self.options.diou_weight * (overlap * spans / in_sample[refs.sample].clamp(min=1)).sum(),
        }

    def _dfl(self, logits: Tensor, true_s: Tensor, duration_s: Tensor) -> Tensor:
        """Sum of the start's and the end's DFL. [N, 2, K], [N, 2], [N] -> [N]."""
        bins = self._bins(true_s, duration_s)
        return dfl(logits.flatten(0, 1), bins.flatten()).unflatten(0, (-1, 2)).sum(-1)

    def log_prob(self, queries: Tensor, refs: SpanRefs, frames: FrameBatch) -> Tensor:
        """Minus the start's and the end's DFL; 0 for question and frame places. [N] float32."""
        focal = self._dfl(self._logits(queries), self._true_seconds(refs, frames), frames.duration_s[refs.owner])
        return -focal * ((refs.role == Role.EVIDENCE) | (refs.role == Role.ANSWER))
