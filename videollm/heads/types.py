"""The types between a head and the model: frames, places of spans, predictions, answers.

They know nothing of files, tokenizers or networks. All times are seconds from the start of the video; of frame indices
only ``FrameBatch`` knows.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor


@dataclass
class FrameBatch:
    """What a head may look at. B rows, F frames (padded), D the language model's width.

    ``embeds`` is the connector's output and ``states[layer]`` the language model's hidden state (0 = input
    embeddings, k = output of layer k, -1 = after the final norm), one vector a frame: the mean where a frame has
    several tokens. ``memo`` keeps what a head derives from them, so that generation derives it once, and again when a
    question enters.
    """

    times_s: Tensor  # [B, F] float32, seconds
    mask: Tensor  # [B, F] bool
    duration_s: Tensor  # [B] float32, seconds
    embeds: Tensor | None = None  # [B, F, D]
    states: dict[int, Tensor] = field(default_factory=dict)  # layer -> [B, F, D]
    memo: dict[str, Tensor] = field(default_factory=dict, repr=False)

    def once(self, name: str, compute: Callable[[], Tensor]) -> Tensor:
        """``compute()`` the first time, its kept result afterwards."""
        if name not in self.memo:
            self.memo[name] = compute()
        return self.memo[name]

    def seconds_to_frames(self, seconds: Tensor, owner: Tensor) -> Tensor:
        """Nearest frame of each time, ties to the even frame. seconds [N, 2], owner [N] (row) -> [N, 2] int64."""
        times, mask = self.times_s[owner].unsqueeze(1), self.mask[owner].unsqueeze(1)  # [N, 1, F]
        # Into the video first: far behind it float32 cannot tell one frame's distance from the next one's.
        first, last = times.masked_fill(~mask, torch.inf).amin(-1), times.masked_fill(~mask, -torch.inf).amax(-1)
        inside = torch.minimum(torch.maximum(seconds.to(times.dtype), first), last)  # [N, 2]
        distance = (times - inside.unsqueeze(-1)).abs()  # [N, 2, F]
        distance = distance.masked_fill(~mask, torch.inf)
        near = distance <= distance.amin(-1, keepdim=True) + 1e-6
        frame = torch.arange(times.shape[-1], device=times.device)
        odd_last = torch.where(near, frame + frame % 2 * times.shape[-1], torch.iinfo(torch.int64).max)
        return odd_last.argmin(-1)


@dataclass
class SpanRefs:
    """Every place in the batch where a span (or a frame's time) stands: N of them, in order of row and position.

    ``index`` is the place in the flattened batch (row * L + position). ``query_index`` is the place before it, whose
    hidden state predicts it. ``sample`` counts conversations over the batch (a packed row holds several);
    ``span`` counts a conversation's spans; the EVIDENCE and ANSWER places of one event share it. ``frame`` is the frame
    for FRAME places, else -1. In answers that a model has drawn itself, ``raw`` is the head's own of what it drew there
    (``Prediction.raw``), which seconds may not give back to the bit; it has no meaning where ``drawn`` is false.
    """

    index: Tensor  # [N] int64
    query_index: Tensor  # [N] int64
    owner: Tensor  # [N] int64, row
    sample: Tensor  # [N] int64
    role: Tensor  # [N] int64, a Role
    span: Tensor  # [N] int64, -1 for FRAME places
    frame: Tensor  # [N] int64
    seconds: Tensor  # [N, 2] float32
    num_samples: int = 0
    raw: Tensor | None = None  # [N, 2]
    drawn: Tensor | None = None  # [N] bool; None: no place

    def __len__(self) -> int:
        return self.index.shape[0]

    def select(self, keep: Tensor) -> "SpanRefs":
        """The places where ``keep`` (bool [N] or int64 indices) holds."""
        names = ["index", "query_index", "owner", "sample", "role", "span", "frame", "seconds"]
        names += ["raw", "drawn"] if self.drawn is not None else []
        return replace(self, **{name: getattr(self, name)[keep] for name in names})


@dataclass
class Prediction:
    """What a head says about N span tokens.

    ``seconds`` [N, 2] is ordered and inside the video, ``score`` [N] in [0, 1], ``raw`` [N, 2] is in the head's own
    unit (bins, frames) and is what the head re-encodes for the next step.
    """

    seconds: Tensor
    score: Tensor
    raw: Tensor

    @staticmethod
    def cat(items: "list[Prediction]") -> "Prediction":
        """Join predictions along N; ``items`` must not be empty."""
        return Prediction(*(torch.cat([getattr(p, name) for p in items]) for name in ("seconds", "score", "raw")))


@dataclass
class Answer:
    """One generated answer in neutral form: ``text`` has its times written as ``[12.0 s - 15.5 s]``."""

    text: str
    raw_text: str
    spans: list[list[float]] = field(default_factory=list)  # [[start_s, end_s], ...] of the answer
    evidence_spans: list[list[float]] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)  # one a span of the answer
    tokens: int = 0  # that were generated, the stop token among them
