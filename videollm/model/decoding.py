"""The loop behind the prompt: the states that predict a token become tokens, spans, and what is fed for them.

In: hidden states of the last place of every row, again and again, from a function that feeds one token a row. Out: ids
and predictions in buffers of fixed size. No step waits for the device or asks what a token is: stopping, finding span
tokens and decoding their times are done for all rows alike, and only every few steps the host looks whether all rows
have ended. Knows no batch, no tokenizer and no attention.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count

import torch
from torch import Tensor, nn
from torch.distributed import ReduceOp, all_reduce, get_world_size, is_initialized
from transformers import LogitsProcessorList
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from videollm.heads import FrameBatch, Prediction, TemporalHead
from videollm.model.draws import Draw, SpanNoise
from videollm.model.loss import logits_of

LOOK = 8  # steps between two looks on a device that works while the host goes on; on a CPU a look costs nothing


@dataclass
class Decoding:
    """All that is known of the answers of one batch: R rows, up to T tokens."""

    head: TemporalHead
    frames: FrameBatch
    owner: Tensor  # [R] int64, each answer's row of ``frames``
    span_ids: Tensor  # [S] int64
    stop_ids: Tensor  # [E] int64
    pad_id: int
    ids: Tensor  # [R, T] int64, ``pad_id`` behind an answer's stop token
    done: Tensor  # [R] bool
    length: int = 0  # tokens that were decided, a row's padding among them
    query: Tensor | None = None  # [R, D], the state that predicted the last token
    found: Prediction | None = None  # [R, T, ...]: of every token, as if it were a span token
    processors: LogitsProcessorList = field(default_factory=LogitsProcessorList)
    draw: Draw | None = None  # samples words
    span_keys: Tensor | None = None  # [R] int64, of the noise with which spans are drawn; None: the best ones are taken
    temperature: float = 1.0  # of drawn spans
    log_probs: Tensor | None = None  # [R, T, 2] float32: of each token, and of its span if it is one; with span_keys

    @classmethod
    def start(
        cls, head: TemporalHead, frames: FrameBatch, owner: Tensor, span_ids: Tensor, stop_ids: Tensor, pad_id: int,
        tokens: int,
    ) -> "Decoding":  # fmt: skip
        """Before the first of at most ``tokens`` tokens."""
        ids = torch.full((len(owner), tokens), pad_id, device=owner.device)
        return cls(head, frames, owner, span_ids, stop_ids, pad_id, ids, torch.zeros_like(owner, dtype=torch.bool))

    def take(self, language_model: nn.Module, embedding: nn.Module, last: Tensor, query: Tensor) -> Tensor:
        """Decide the next token of every row and give what is fed for it. [R, D], [R, D] -> [R, D].

        For a span token the head makes that of its prediction. Behind the last token nothing is decided any more.

        Args:
            last: the last place's state after the final norm.
            query: its state in the head's query layer.
        """
        self.query = query
        so_far = self.ids[:, : self.length]
        scores = self.processors(so_far, logits_of(language_model, last).float())
        chosen = scores if self.draw is None else self.draw(so_far, scores)
        new = torch.where(self.done, self.pad_id, chosen.argmax(-1))
        self.note(0, lambda: scores.log_softmax(-1).gather(1, new[:, None])[:, 0])
        embeds = embedding(new)
        if len(self.span_ids):
            prediction = self.span(query)
            spans = self.head.embed_predicted(embeds, prediction, self.owner, self.frames)
            embeds = torch.where(one_of(new, self.span_ids)[:, None], spans.to(embeds.dtype), embeds)
            self.keep(prediction)
        if not self.full:
            self.ids[:, self.length] = new
            self.done |= one_of(new, self.stop_ids)
            self.length += 1
        return embeds

    def span(self, query: Tensor) -> Prediction:
        """What the head says of the token that is being decided, or draws for it. [R, D]."""
        if self.span_keys is None:
            return self.head.predict(query, self.owner, self.frames)
        noise = SpanNoise(self.span_keys, torch.full_like(self.span_keys, self.length))
        drawn = self.head.draw(query, self.owner, self.frames, self.temperature, noise)
        where = (self.owner, self.frames, self.temperature)
        self.note(1, lambda: self.head.draw_log_prob(query, drawn.raw, *where))
        return drawn

    def note(self, which: int, log_prob: Callable[[], Tensor]) -> None:
        """Keep the log-probability [R] of what was drawn for the token that is being decided: a word 0 or a span 1."""
        if self.span_keys is None or self.full:
            return
        if self.log_probs is None:
            self.log_probs = torch.zeros(*self.ids.shape, 2, device=self.ids.device)
        self.log_probs[:, self.length, which] = log_prob()

    def keep(self, prediction: Prediction) -> None:
        """Take note of what the head says of the token that is being decided."""
        if self.found is None:
            rows, steps = self.ids.shape
            parts = (prediction.seconds, prediction.score, prediction.raw)
            self.found = Prediction(*(part.new_zeros(rows, steps, *part.shape[1:]) for part in parts))
        if not self.full:
            for name in ("seconds", "score", "raw"):
                getattr(self.found, name)[:, self.length] = getattr(prediction, name)

    @property
    def full(self) -> bool:
        """Whether there is no room for another token."""
        return self.length == self.ids.shape[1]

    def ended(self) -> bool:
        """Whether all rows have ended; waits for the device, and for the other ranks where all go on together."""
        if not together():
            return self.full or bool(self.done.all())
        flag = (self.done.all() | self.full).int()
        all_reduce(flag, op=ReduceOp.MIN)
        return bool(flag)

    def sequences(self) -> Tensor:
        """The ids [R, S] up to the last row's end."""
        ids = self.ids[:, : self.length]
        stops = one_of(ids, self.stop_ids).int()
        behind = stops.cumsum(1) - stops  # [R, length], stop tokens before a place
        return ids[:, : int((behind == 0).any(0).sum())]


def one_of(ids: Tensor, wanted: Tensor) -> Tensor:
    """Where ``ids`` [...] is one of ``wanted`` [N]. [...] bool."""
    return (ids[..., None] == wanted).any(-1)


def together() -> bool:
    """Whether ranks wait for each other in every pass, so that one that has ended has to go on."""
    return is_deepspeed_zero3_enabled() and is_initialized() and get_world_size() > 1


def decode(
    state: Decoding, states: tuple[Tensor, Tensor], take: Callable[[Tensor, Tensor], Tensor],
    feed: Callable[[Tensor], tuple[Tensor, Tensor]], look: int,
) -> Iterator[int]:  # fmt: skip
    """Go on until all rows have ended; after every look, the number of tokens that are decided.

    Args:
        states: the last place's, from the prompt: what ``take`` needs for the first token.
        take: decides a token a row and gives its embeddings, [R, D].
        feed: runs the language model on them and gives the next ``states``.
        look: steps between two looks.
    """
    for step in count(1):
        embeds = take(*states)
        if step % look == 0 or (state.full and not together()):
            yield state.length
            if state.ended():
                return
        states = feed(embeds)
