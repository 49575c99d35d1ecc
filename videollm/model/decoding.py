"""What is decided behind the prompts: the states that predict a token become tokens, spans, and what is fed for them.

In: hidden states of the last place of every row, again and again. Out: ids and predictions in buffers of fixed size.
Every row is at a step of its own: answers begin and end in rows while others go on. No step waits for a device or
asks what a token is: stopping, finding span tokens and decoding their times are done for all rows alike, and only
every few steps the host looks which rows have ended; where it looks in each step, no head runs for nothing. Knows no
batch, no tokenizer and no attention.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor, nn
from torch.distributed import ReduceOp, all_reduce, get_world_size, is_initialized
from torch.nn.functional import pad
from torch.special import entr
from transformers import LogitsProcessor, LogitsProcessorList
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from videollm.heads import FrameBatch, Prediction, TemporalHead
from videollm.model.draws import Draw, SpanNoise
from videollm.model.loss import logits_of

LOOK = 8  # steps between two looks on a device that works while the host goes on; on a CPU a look costs nothing


@dataclass
class Decoding:
    """All that is known of the answers in R rows, up to T tokens each; a row in which nobody asks is ``done``.

    ``ids`` and ``found`` have a column more, into which goes what is decided in rows that are done. Of the rows L take
    steps: all, or those that ``only`` has left.
    """

    head: TemporalHead
    span_ids: Tensor  # [S] int64
    stop_ids: Tensor  # [E] int64
    ids: Tensor  # [R, T + 1] int64
    row: Tensor  # [L] int64, the numbers of the rows
    done: Tensor  # [L] bool
    steps: Tensor  # [L] int64, tokens that are decided
    limit: Tensor  # [L] int64, the most tokens
    least: Tensor  # [L] int64, the tokens before which no answer stops
    keys: Tensor  # [L] int64, from which sampled rows draw
    left: Tensor  # [R] int64, the tokens of rows that take no step any more
    words: Tensor | None = None  # [L, V] bool, the tokens of prompt and answer, where anybody asks for them
    frames: FrameBatch | None = None  # of R rows
    length: int = 0  # the most tokens that a row has, as far as the host knows
    query: Tensor | None = None  # [L, D], the state that predicted the last token
    found: Prediction | None = None  # [R, T + 1, ...]: of span tokens, and of others as if they were, or 0
    processors: LogitsProcessorList = field(default_factory=LogitsProcessorList)
    draw: Draw | None = None  # samples words
    draws_spans: bool = False  # else the head's best ones are taken
    temperature: float = 1.0  # of drawn spans
    looks: bool = False  # whether the host sees in each step if there is a span token, and leaves out the head if not
    # Where spans are drawn, [R, T + 1, ...]: the state that each token's span was drawn by, D; and of the token, and of
    # its span, the log-probability and the entropy of what it was drawn from, 2 x 2 float32.
    queries: Tensor | None = None
    drawn: Tensor | None = None

    @classmethod
    def start(
        cls, head: TemporalHead, rows: int, tokens: int, span_ids: Sequence[int], stop_ids: Sequence[int], pad_id: int,
        device: torch.device,
    ) -> "Decoding":  # fmt: skip
        """Before the first of at most ``tokens`` tokens; ids that are not decided are ``pad_id``."""
        row = torch.arange(rows, device=device)
        span_ids, stop_ids = (torch.tensor(ids, dtype=torch.long, device=device) for ids in (span_ids, stop_ids))
        ids = torch.full((rows, tokens + 1), pad_id, device=device)
        none = [torch.zeros_like(row) for _ in range(5)]
        return cls(head, span_ids, stop_ids, ids, row, torch.ones_like(row, dtype=torch.bool), *none)

    def begin(
        self, where: Tensor, frames: FrameBatch, limit: Tensor, least: Tensor, keys: Tensor | None,
        words: Tensor | None,
    ) -> None:  # fmt: skip
        """Answers begin in the rows ``where`` [N], which ``frames`` are about; see the fields for the rest."""
        self.frames = frames_with(self.frames, where, frames, len(self.ids))
        self.done[where], self.steps[where], self.limit[where], self.least[where] = False, 0, limit, least
        if keys is not None:
            self.keys[where] = keys
        if words is not None:
            self.words[where] = words

    def only(self, live: Tensor) -> None:
        """From now on only the rows ``live`` [N], of those that did, take steps."""
        self.left[self.row] = self.steps
        for name in ("row", "done", "steps", "limit", "least", "keys", "words"):
            part = getattr(self, name)
            setattr(self, name, None if part is None else part[live])

    def take(self, language_model: nn.Module, embedding: nn.Module, last: Tensor, query: Tensor) -> Tensor:
        """Decide the next token of every row that is not done and give what is fed for it. [L, D], [L, D] -> [L, D].

        For a span token the head makes that of its prediction.

        Args:
            last: the last place's state after the final norm.
            query: its state in the head's query layer.
        """
        self.query = query
        scores = self.processors(self.ids, logits_of(language_model, last).float())
        new = (scores if self.draw is None else self.draw(self.ids, scores)).argmax(-1)
        place = self.steps.masked_fill(self.done, self.ids.shape[1] - 1)
        if self.draws_spans:
            self.note(scores.log_softmax(-1), new, query, place)
        embeds = embedding(new)
        picked = one_of(new, self.span_ids)
        asked = (picked & ~self.done).nonzero()[:, 0] if self.looks else slice(None)
        if len(self.span_ids) and len(self.row[asked]):
            prediction = self.span(query, asked)
            spans = self.head.embed_predicted(embeds[asked], prediction, self.row[asked], self.frames)
            embeds[asked] = torch.where(picked[asked, None], spans.to(embeds.dtype), embeds[asked])
            self.keep(prediction, asked, place)
        self.ids[self.row, place] = new
        if self.words is not None:
            self.words.scatter_(1, new[:, None], True)
        self.steps += ~self.done
        self.done |= one_of(new, self.stop_ids) | (self.steps >= self.limit)
        return embeds

    def advance(self) -> None:
        """Count a token more, on the host."""
        self.length = min(self.length + 1, self.ids.shape[1] - 1)

    def span(self, query: Tensor, asked: Tensor | slice) -> Prediction:
        """What the head says of the tokens that are being decided in the rows ``asked``, or draws for them. [L, D]."""
        given = query[asked], self.row[asked], self.frames
        if not self.draws_spans:
            return self.head.predict(*given)
        return self.head.draw(*given, self.temperature, SpanNoise(self.keys[asked], self.steps[asked]))

    def note(self, log_probs: Tensor, new: Tensor, query: Tensor, place: Tensor) -> None:
        """Keep what is to be known of the tokens ``new`` [L] that are drawn from ``log_probs`` [L, V]."""
        if self.drawn is None:
            self.drawn = torch.zeros(*self.ids.shape, 2, 2, device=self.ids.device)
            self.queries = query.new_zeros(*self.ids.shape, query.shape[1])
        own = log_probs.gather(1, new[:, None])[:, 0], entr(log_probs.exp()).sum(-1)
        self.drawn[self.row, place, 0] = torch.stack(own, -1)
        self.queries[self.row, place] = query

    def weigh_spans(self) -> None:
        """Note log-probability and entropy of all drawn spans, once all answers have ended: of span tokens alone."""
        if self.found is None:
            return
        row, step = one_of(self.ids[:, :-1], self.span_ids).nonzero(as_tuple=True)
        given = (self.queries[row, step], self.found.raw[row, step], row, self.frames, self.temperature)
        own = self.head.draw_log_prob(*given), self.head.draw_entropy(*given)
        self.drawn[row, step, 1] = torch.stack(own, -1)

    def keep(self, prediction: Prediction, asked: Tensor | slice, place: Tensor) -> None:
        """Take note of what the head says of the tokens that are being decided in the rows ``asked``, which go to
        ``place`` [L]."""
        parts = (prediction.seconds, prediction.score, prediction.raw)
        if self.found is None:
            self.found = Prediction(*(part.new_zeros(*self.ids.shape, *part.shape[1:]) for part in parts))
        for buffer, part in zip((self.found.seconds, self.found.score, self.found.raw), parts, strict=True):
            buffer[self.row[asked], place[asked]] = part

    def ended(self) -> bool:
        """Whether all rows have ended; waits for the device, and for the other ranks where all go on together."""
        if not together():
            return bool(self.done.all())
        flag = self.done.all().int()
        all_reduce(flag, op=ReduceOp.MIN)
        return bool(flag)

    @property
    def counts(self) -> Tensor:
        """The tokens of every row. [R]."""
        return self.left.index_copy(0, self.row, self.steps)

    def sequences(self) -> Tensor:
        """The ids [R, S] up to the last row's end, of rows in which one answer was made."""
        return self.ids[:, : int(self.counts.max())]

    def answers(self, rows: Sequence[int]) -> list[tuple[list[int], Prediction | None]]:
        """Ids and predictions of the rows' answers so far, on the host."""
        where = torch.tensor(rows, device=self.ids.device)
        counts, ids = self.counts[where].tolist(), self.ids[where, : self.length].tolist()
        parts = () if self.found is None else (self.found.seconds, self.found.score, self.found.raw)
        parts = [part[where, : self.length].cpu() for part in parts]
        return [
            (ids[k][:count], Prediction(*(part[k, :count] for part in parts)) if parts else None)
            for k, count in enumerate(counts)
        ]


class SpanPenalty(LogitsProcessor):
    """Repetition penalty over prompt and answer that leaves span tokens alone (as D2VLM's does).

    ``words`` [R, V] is true for the tokens that each row has had; frames are none.
    """

    def __init__(self, penalty: float, span_ids: Tensor, words: Tensor):
        self.penalty, self.span_ids, self.words = penalty, span_ids, words

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        penalised = torch.where(scores < 0, scores * self.penalty, scores / self.penalty)
        return torch.where(self.words.index_fill(1, self.span_ids, False), penalised, scores)


class NotYet(LogitsProcessor):
    """No stop token (``stops`` [V] bool) before a row has ``least`` [R] tokens; ``steps`` [R] are those it has."""

    def __init__(self, stops: Tensor, least: Tensor, steps: Tensor):
        self.stops, self.least, self.steps = stops, least, steps

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return scores.masked_fill((self.steps < self.least)[:, None] & self.stops, -torch.inf)


def frames_with(old: FrameBatch | None, where: Tensor, new: FrameBatch, rows: int) -> FrameBatch:
    """The frames of R ``rows`` with those of ``where`` [N] replaced; what a head has derived from them is dropped."""
    found = {}
    for part in fields(FrameBatch):
        before, now = (getattr(frames, part.name, None) for frames in (old, new))
        if part.name == "states":
            before = before or {}
            found["states"] = {name: rows_with(before.get(name), where, now[name], rows) for name in now}
        elif part.name != "memo":
            found[part.name] = now if now is None else rows_with(before, where, now, rows)
    return FrameBatch(**found)


def rows_with(old: Tensor | None, where: Tensor, new: Tensor, rows: int) -> Tensor:
    """[R, ...] with the rows ``where`` [N] replaced by ``new`` [N, F, ...], filled up with 0 to the larger F; in place
    where ``old`` has it."""
    old = new.new_zeros(rows, *new.shape[1:]) if old is None else old
    if new.ndim > 1:
        width, rest = max(old.shape[1], new.shape[1]), (0, 0) * (new.ndim - 2)
        old, new = (
            part if part.shape[1] == width else pad(part, (*rest, 0, width - part.shape[1])) for part in (old, new)
        )
    return old.index_copy_(0, where, new)


def one_of(ids: Tensor, wanted: Tensor) -> Tensor:
    """Where ``ids`` [...] is one of ``wanted`` [N]. [...] bool."""
    return (ids[..., None] == wanted).any(-1)


def together() -> bool:
    """Whether ranks wait for each other in every pass, so that one that has ended has to go on."""
    return is_deepspeed_zero3_enabled() and is_initialized() and get_world_size() > 1
