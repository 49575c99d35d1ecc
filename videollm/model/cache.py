"""Keys and values of all layers, allocated once: for the prompt and for all tokens that an answer may get.

In: the keys and values of the prompt, then of one token a row and step. Out: what attention reads of them, and the
masks of a step. A step's place and the seen places are tensors of fixed size, so that no step looks at a value on the
device or makes the buffers anew. Knows no head, no batch and no language model.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import StaticLayer

STRIDE = 64  # places by which the part that attention reads grows: few shapes, and rows that kernels like


class Layer(StaticLayer):
    """One layer's buffers [B * G, H, T, D] of the cache ``room``."""

    def __init__(self, room: "AnswerCache"):
        super().__init__(room.size)
        self.room = room

    def update(self, key_states: Tensor, value_states: Tensor, *_args, **_kwargs) -> tuple[Tensor, Tensor]:
        """The prompt's [B, H, L, D], given back as they are; then a token's [B * G, H, 1, D], for all up to ``reach``.

        What lies behind the token is 0, which a mask hides.
        """
        given, room = (key_states, value_states), self.room
        if not self.is_initialized:
            self.keys, self.values = (allocated(states, room.size, room.repeats) for states in given)
            self.is_initialized = True
            return given
        for buffer, new in zip((self.keys, self.values), given, strict=True):
            buffer.index_copy_(2, room.place, new)
        return self.keys[:, :, : room.reach], self.values[:, :, : room.reach]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """How many keys a pass of ``query_length`` tokens reads, and the first one's place."""
        return self.room.reach if self.is_initialized else query_length, 0

    def get_seq_length(self) -> int:
        """The tokens before this pass."""
        return self.room.filled if self.is_initialized else 0


def allocated(prompt: Tensor, size: int, repeats: int) -> Tensor:
    """A buffer [B * G, H, T, D] that begins with ``prompt`` [B, H, L, D], every row ``repeats`` (G) times."""
    rows, heads, length, width = prompt.shape
    buffer = prompt.new_zeros(rows, repeats, heads, size, width)
    buffer[:, :, :, :length] = prompt[:, None]
    return buffer.flatten(0, 1)


class AnswerCache(Cache):
    """The cache of a batch of B prompts of L places with G answers each, behind the interface of transformers.

    ``size`` T is the number of places, ``filled`` those before the token of this step, ``reach`` those that attention
    reads in it. Rows are padded in front, so that the tokens of a step stand in one place.
    """

    def __init__(self, depth: int, known: Tensor, tokens: int, repeats: int, exact: bool):
        """For ``tokens`` passes behind a prompt whose places are ``known`` [B, L] bool.

        ``exact``: attention takes no masks of ours, so nothing may lie behind the token of a step.
        """
        self.prompt, self.repeats, self.exact = known.shape[1], repeats, exact
        self.last = self.prompt + max(tokens, 1) - 1
        self.size = -(-(self.last + 1) // STRIDE) * STRIDE
        self.filled = self.prompt - 1
        self.place = torch.full((1,), self.filled, device=known.device)
        self.seen = known.new_zeros(len(known) * repeats, self.size)  # [B * G, T] bool
        self.seen[:, : self.prompt] = known.repeat_interleave(repeats, 0)
        self.column = torch.arange(self.size, device=known.device)
        super().__init__(layers=[Layer(self) for _ in range(depth)])

    @property
    def reach(self) -> int:
        """The places that attention reads."""
        return self.filled + 1 if self.exact else min(self.size, -(-(self.filled + 1) // STRIDE) * STRIDE)

    def advance(self) -> None:
        """Make the next place the one of this step; the last one is taken again and again."""
        if self.filled < self.last:
            self.filled += 1
            self.place += 1
        self.seen.index_fill_(1, self.place, True)

    def masks(self, windows: Mapping[str, int | None], dtype: torch.dtype) -> Tensor | dict[str, Tensor]:
        """What the decoder takes as ``attention_mask`` in this step: [B * G, 1, 1, reach], for each kind of layers one.

        ``windows``: of each kind, how many tokens a token sees, itself among them. Where attention takes no such mask,
        [B * G, reach] bool.
        """
        seen = self.seen[:, : self.reach]
        if self.exact:
            return seen
        reach = {kind: window if window and window < self.size else None for kind, window in windows.items()}
        made = {window: self.mask(seen, window, dtype) for window in set(reach.values())}
        return {kind: made[window] for kind, window in reach.items()} if len(made) > 1 else made.popitem()[1]

    def mask(self, seen: Tensor, window: int | None, dtype: torch.dtype) -> Tensor:
        """The additive mask [B * G, 1, 1, reach] of layers that see the last ``window`` places, or all of them."""
        if window:
            seen = seen & (self.column[: self.reach] > self.place - window)
        hidden = torch.full(seen.shape, torch.finfo(dtype).min, dtype=dtype, device=seen.device)
        return hidden.masked_fill_(seen, 0)[:, None, None]
