"""Keys and values of R rows in which answers are made, one buffer a layer: prompts are put in, tokens follow.

In: the keys and values of a prompt, or of what stands behind a prefix that another row holds; then of one token a row
and step. Out: what attention reads of them, and the masks of a step. Every row is at a place of its own. Places and the
seen ones are tensors of fixed size, so that no step looks at a value on the device or makes a buffer anew; only a
prompt that is longer than all before it makes the buffers longer. Knows no head, no batch and no language model.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import Cache, PretrainedConfig
from transformers.cache_utils import StaticLayer

STRIDE = 64  # places by which buffers and the part that attention reads grow: few shapes, and rows that kernels like


class Layer(StaticLayer):
    """One layer's buffers [R, H, T, D] of the cache ``room``."""

    def __init__(self, room: "RowCache"):
        super().__init__(room.size)
        self.room = room

    def update(self, key_states: Tensor, value_states: Tensor, *_args, **_kwargs) -> tuple[Tensor, Tensor]:
        """A prompt's [B, H, L, D] go into the rows that are being filled, else a token's [R, H, 1, D] into all; back
        comes what attention reads. What lies behind a row's last token is hidden by a mask."""
        given, room = (key_states, value_states), self.room
        if not self.is_initialized:
            self.keys, self.values = (new.new_zeros(room.rows, new.shape[1], room.size, new.shape[3]) for new in given)
            self.is_initialized = True
        return tuple(room.exchange(*pair) for pair in zip((self.keys, self.values), given, strict=True))

    def lengthen(self, size: int) -> None:
        """Make room for ``size`` places."""
        if self.is_initialized:
            self.keys, self.values = (pad(buffer, (0, 0, 0, size - buffer.shape[2])) for buffer in self.kept)

    @property
    def kept(self) -> tuple[Tensor, Tensor]:
        """Keys and values."""
        return self.keys, self.values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """How many keys a pass of ``query_length`` tokens reads, and the first one's place."""
        return self.get_seq_length() + query_length if self.room.filling else self.room.reach, 0

    def get_seq_length(self) -> int:
        """The tokens before this pass."""
        return self.room.start if self.room.filling else self.room.reach - 1


class RowCache(Cache):
    """The cache of R rows, behind the interface of transformers.

    ``size`` T is the number of places, ``reach`` how many of them attention reads in a step.
    """

    def __init__(self, depth: int, rows: int, exact: bool, device: torch.device):
        """``exact``: attention takes no masks of ours, so nothing may lie behind the last row's token of a step."""
        self.rows, self.exact, self.size = rows, exact, 0
        self.used = [0] * rows  # places up to a row's last token, as far as the host knows; 0: nobody asks in it
        self.prompt = torch.zeros(rows, dtype=torch.long, device=device)  # each prompt's last place
        self.place = torch.zeros_like(self.prompt)  # of this step's token
        self.seen = torch.zeros(rows, 0, dtype=torch.bool, device=device)  # [R, T]
        self.row, self.column = torch.arange(rows, device=device), torch.arange(0, device=device)
        self.filling: Tensor | None = None  # the rows [B] that a pass over prompts fills
        self.start, self.stop = 0, 0  # the places that it fills
        super().__init__(layers=[Layer(self) for _ in range(depth)])

    @property
    def reach(self) -> int:
        """The places that attention reads in a step."""
        return max(self.used) if self.exact else min(self.size, up(max(self.used)))

    # ---- prompts ---------------------------------------------------------------------------------------------------

    def hold(self, places: int) -> None:
        """See that a row has at least so many places."""
        if places <= self.size:
            return
        self.size = up(places)
        for layer in self.layers:
            layer.lengthen(self.size)
        self.seen = pad(self.seen, (0, self.size - self.seen.shape[1]))
        self.column = torch.arange(self.size, device=self.column.device)

    def copy(self, source: int, rows: Sequence[int], places: int) -> None:
        """Give ``rows`` the first ``places`` of the row ``source``."""
        rows = [row for row in rows if row != source]
        for buffer in [buffer for layer in self.layers for buffer in layer.kept] if rows else ():
            for row in rows:
                buffer[row, :, :places] = buffer[source, :, :places]

    @contextmanager
    def filled(self, rows: Tensor, places: slice) -> Iterator[None]:
        """A pass within it is one over prompts: their keys and values go to ``places`` of ``rows`` [B * G].

        Of B prompts each goes to G rows, one behind the other. Where ``places`` do not begin with 0, the pass also
        sees what stands before them in the rows (B of them).
        """
        self.filling, self.start, self.stop = rows, places.start, places.stop
        try:
            yield
        finally:
            self.filling = None

    def exchange(self, buffer: Tensor, new: Tensor) -> Tensor:
        """Put ``new`` into ``buffer`` and give what this pass reads."""
        if self.filling is None:
            buffer[self.row, :, self.place] = new[:, :, 0]
            return buffer[:, :, : self.reach]
        answers = len(self.filling) // len(new)
        fanned = new.repeat_interleave(answers, 0) if answers > 1 else new
        buffer[:, :, self.start : self.stop].index_copy_(0, self.filling, fanned)
        return buffer[:, :, : self.stop].index_select(0, self.filling) if self.start else new

    def begin(self, rows: Sequence[int], where: Tensor, known: Tensor, last: Tensor) -> None:
        """Answers begin in ``rows`` (``where`` [N] on the device) behind prompts whose places are ``known`` [N, L]
        bool; their last tokens stand at ``last`` [N]."""
        self.seen[where] = pad(known, (0, self.size - known.shape[1]))
        self.prompt[where] = last
        for row in rows:
            self.used[row] = known.shape[1]

    def only(self, live: Tensor) -> None:
        """From now on only the rows ``live`` [N] take steps."""
        self.used = [self.used[row] for row in live.tolist()]
        self.rows, self.row = len(live), self.row[: len(live)]
        self.prompt, self.seen = self.prompt[live], self.seen[live]
        for layer in self.layers:
            layer.keys, layer.values = (buffer[live] for buffer in layer.kept)

    def end(self, row: int) -> None:
        """Nobody asks in the row any more."""
        self.used[row] = 0

    # ---- steps -----------------------------------------------------------------------------------------------------

    def advance(self) -> None:
        """Count the next token of every row, on the host."""
        self.used = [min(used + 1, self.size) if used else 0 for used in self.used]

    def go_to(self, steps: Tensor) -> None:
        """Go to the place of the next token of rows that have ``steps`` [R] tokens."""
        self.place = self.prompt + steps
        self.seen[self.row, self.place] = True

    def masks(self, windows: Mapping[str, int | None], dtype: torch.dtype) -> Tensor | dict[str, Tensor]:
        """What the decoder takes as ``attention_mask`` in this step: [R, 1, 1, reach], for each kind of layers one.

        ``windows``: of each kind, how many tokens a token sees, itself among them. Where attention takes no such mask,
        [R, reach] bool.
        """
        seen = self.seen[:, : self.reach]
        if self.exact:
            return seen
        reach = {kind: window if window and window < self.size else None for kind, window in windows.items()}
        made = {window: self.mask(seen, window, dtype) for window in set(reach.values())}
        return {kind: made[window] for kind, window in reach.items()} if len(made) > 1 else made.popitem()[1]

    def mask(self, seen: Tensor, window: int | None, dtype: torch.dtype) -> Tensor:
        """The additive mask [R, 1, 1, reach] of layers that see the last ``window`` places, or all of them."""
        if window:
            seen = seen & (self.column[: self.reach] > (self.place - window)[:, None])
        hidden = torch.full(seen.shape, torch.finfo(dtype).min, dtype=dtype, device=seen.device)
        return hidden.masked_fill_(seen, 0)[:, None, None]


def up(places: int) -> int:
    """The next multiple of ``STRIDE``."""
    return -(-places // STRIDE) * STRIDE


def row_bytes(text: PretrainedConfig, places: int, dtype: torch.dtype) -> int:
    """What the keys and values of ``places`` tokens take of a language model ``text``."""
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return 2 * text.num_hidden_layers * heads * width * dtype.itemsize * up(places)
