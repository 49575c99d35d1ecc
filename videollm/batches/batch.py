"""One batch of tensors: where every token, frame and span stands, as flat indices made on the CPU.

B rows of L columns (places), N span places, M labels, V frames, U and U' frames that differ, k tokens a frame, P pairs.
Of towers that take frames of any size, V counts groups, T their tokens, and k is not one number.
A row is a *prefix* (up to the last visual token) and, behind it, one or more *segments*: conversations that see the
prefix and themselves but not each other. A flat index is row * L + column. Knows no items and no network.
"""

from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from videollm.heads import SpanRefs

PAD, PREFIX = -1, 0  # segments that are none


@dataclass
class Pairs:
    """Which answers of a preference batch are compared, and what belongs to which."""

    chosen: Tensor  # [P] int64, samples
    rejected: Tensor  # [P] int64, samples
    label_sample: Tensor  # [M] int64, of each label; ``num_samples`` in a prefix, which answers share
    answer_refs: Tensor  # int64 indices into ``Batch.span_refs``: spans of the answers that are compared
    chosen_refs: Tensor  # int64 indices into ``Batch.span_refs``: those of chosen answers and of their questions


@dataclass
class Draws:
    """Of a batch of answers that the model has drawn itself: what they earned, and how probable they were when drawn.

    K counts ``Pairs.answer_refs``. ``told`` are sums and counts for the log, over all answers of the questions, those
    included that are not in the batch.
    """

    advantage: Tensor  # [S] float32, of each sample
    words_log_prob: Tensor  # [M] float32, of each label
    spans_log_prob: Tensor  # [K] float32
    told: dict[str, tuple[float, float]]
    reference: Tensor | None = None  # [M + K] float32, the log-probability of each by a reference, words first


@dataclass
class Batch:
    """What ``Collator`` makes of items and ``VideoLLM`` takes."""

    # tokens
    input_ids: Tensor  # [B, L] int64
    position_ids: Tensor  # [B, L] int64, or [3, B, L] on the axes time, row and column
    segment_ids: Tensor  # [B, L] int64: -1 padding, 0 prefix, 1.. segments
    block_ids: Tensor  # [B, L] int64: run of frame tokens that see each other, -1 elsewhere
    last: Tensor  # [B] int64, column of each row's last token
    prefix_columns: int  # columns that hold all prefixes; 0 where they are not aligned
    plain_causal: bool  # a place sees all of its row before it
    needs_mask: bool  # but for that: unseen places
    # labels
    label_index: Tensor  # [M] int64, the place whose state predicts the label
    label_ids: Tensor  # [M] int64
    label_weight: Tensor  # [M] float32
    # spans
    refs: SpanRefs  # N places, those of frame times among them
    early_refs: Tensor  # int64 indices into ``refs``: of questions and frames
    late_refs: Tensor  # int64 indices into ``refs``: of answers, evidence among them
    span_refs: Tensor  # int64 indices into ``refs``: all but frame times
    keep_prefix: bool  # no answered span stands in a prefix
    # frames; each frame of each visual is there once, as pixels or as features of a frozen tower
    visual_index: Tensor  # [V * k] or [T] int64
    frame_row: Tensor  # [V] int64
    frame_col: Tensor  # [V] int64, -1 for image tiles
    times_s: Tensor  # [B, F] float32, seconds
    frame_mask: Tensor  # [B, F] bool
    duration_s: Tensor  # [B] float32, seconds
    pixel_values: Tensor | None = None  # [U, C, S, S] float32, or bytes that ``Preprocess.on_device`` makes that of
    features: Tensor | None = None  # [U', P, Dv]
    frame_source: Tensor | None = None  # [V] int64: which of them (pixels first) a frame is; None: in order
    # of frames of any size, ``pixel_values`` are patches [N, W], ``features`` [T', X], ``frame_source`` [T] of tokens
    grids: np.ndarray | None = None  # [G, 2] int64, on the CPU: rows and columns of patches of each group of pixels
    runs: list[tuple[int, int]] | None = None  # (frames, tokens of each), adjacent ones of V; None: all have k
    # for a connector that reads the question
    question_ids: Tensor | None = None  # [B, Lq] int64
    question_mask: Tensor | None = None  # [B, Lq] int64
    # for preferences
    pairs: Pairs | None = None
    # for answers that the model has drawn
    draws: Draws | None = None
    # for people and counts; the model does not look at them
    ids: list[str] = field(default_factory=list)  # of the questions
    bad: list[str] = field(default_factory=list)  # what could not be read, and why
    thinned: int = 0  # items that lost frames to fit the context
    padded: tuple[int, int] = (0, 0)  # padded places, all places

    def __len__(self) -> int:
        """B."""
        return len(self.input_ids)

    @property
    def num_samples(self) -> int:
        """Conversations of the batch; a packed row holds several."""
        return self.refs.num_samples

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Batch":
        """The batch with all its tensors on ``device``."""
        return moved(self, lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Batch":
        """The batch in memory that a GPU reads from while it works; torch's loader calls it."""
        return moved(self, Tensor.pin_memory)


def moved(value: Any, move) -> Any:
    """A copy of a dataclass with ``move`` applied to every tensor in it; other values are shared."""
    if isinstance(value, Tensor):
        return move(value)
    if is_dataclass(value):
        return type(value)(**{f.name: moved(getattr(value, f.name), move) for f in fields(value)})
    return value
