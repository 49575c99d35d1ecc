"""Generation in rows: prompts enter them at any time, every span token is turned into seconds as it is produced.

A prompt is embedded and run here, once for all of its answers; of one whose beginning a row has already, only the rest.
``decoding.py`` goes on from the last states, and ``cache.py`` keeps keys and values. Answers come out in neutral form.
Which question enters when is decided elsewhere (``inference/rows.py``; ``stream`` has all enter at once). Knows batches
of the collator; no files.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count

import torch
from torch import Tensor
from transformers import LogitsProcessorList, PreTrainedTokenizerBase, TemperatureLogitsWarper, TopPLogitsWarper
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from videollm.batches.batch import Batch
from videollm.common.config import need
from videollm.common.replay import Replay, Step, cuda_graph
from videollm.data.conversation import Role
from videollm.data.options import NO_GRAPHS, GenerateOptions
from videollm.heads import NO_DRAW, Answer, FrameBatch, Prediction, SpanRefs
from videollm.model.attention import FLASH
from videollm.model.cache import RowCache
from videollm.model.decoding import LOOK, Decoding, NotYet, SpanPenalty, together
from videollm.model.draws import Draw, row_keys
from videollm.model.passes import LayerTap

HALF = "\ufffd"  # what a tokenizer shows of a character whose bytes are not all there yet
DRAWING = -1  # stands for generation among the modules that use a weight, whose numbers count from 0


@dataclass
class Drawn:
    """A sampled answer as the n decisions on its tokens (the stop token among them) and the k on its spans.

    Log-probabilities are those with which they were drawn, under the temperature of the drawing; entropies, in nats,
    those of what they were drawn from.
    """

    answer: Answer
    reason: str  # ``stop`` or ``length``
    ids: list[int]  # n
    raw: Tensor  # [k, 2], of the head's own unit
    seconds: Tensor  # [k, 2]
    words_log_prob: Tensor  # [n]
    spans_log_prob: Tensor  # [k]
    words_entropy: Tensor  # [n]
    spans_entropy: Tensor  # [k]


class SpanGeneration:
    """The generating half of ``VideoLLM``."""

    def answer(
        self, batch: Batch, tokenizer: PreTrainedTokenizerBase, stop_id: int, options: GenerateOptions, answers: int = 1
    ) -> list[tuple[Answer, str]]:
        """Answers and finish reasons (``stop`` or ``length``) for a batch of questions, in order.

        ``answers`` of each prompt, one behind the other; they differ where they are sampled.
        """
        _, state = self.generate_ids(batch, tokenizer.pad_token_id, stop_id, options, answers)
        durations = batch.duration_s.repeat_interleave(answers).tolist()
        found = zip(state.answers(range(len(durations))), durations, strict=True)
        return [self.read_answer(*made, tokenizer, stop_id, duration_s) for made, duration_s in found]

    def drawn(
        self, batch: Batch, tokenizer: PreTrainedTokenizerBase, stop_id: int, options: GenerateOptions, answers: int
    ) -> list[Drawn]:
        """As ``answer``, with every decision; ``options`` sample, and draw spans."""
        _, state = self.generate_ids(batch, tokenizer.pad_token_id, stop_id, options, answers)
        durations, numbers = batch.duration_s.repeat_interleave(answers).tolist(), state.drawn.cpu()
        drawn = []
        for (ids, found), duration_s, own in zip(state.answers(range(len(durations))), durations, numbers, strict=True):
            answer, reason = self.read_answer(ids, found, tokenizer, stop_id, duration_s)
            steps = [step for step, token in enumerate(ids) if token in self.span_ids]
            raw, seconds = (torch.zeros(0, 2),) * 2 if found is None else (found.raw[steps], found.seconds[steps])
            words, spans = own[: len(ids), 0], own[steps, 1]
            parts = (words[:, 0], spans[:, 0], words[:, 1], spans[:, 1])
            drawn.append(Drawn(answer, reason, ids, raw, seconds, *parts))
        return drawn

    def generate_ids(
        self, batch: Batch, pad_id: int | None, stop_id: int, options: GenerateOptions, answers: int = 1
    ) -> tuple[Tensor, Decoding]:
        """Generated ids [B * answers, S] (stop token included, then padding) and the state with every prediction."""
        *_, state = self.stream(batch, pad_id, stop_id, options, answers)
        return state.sequences(), state

    @torch.no_grad()
    def stream(
        self, batch: Batch, pad_id: int | None, stop_id: int, options: GenerateOptions, answers: int = 1,
        look: int | None = None,
    ) -> Iterator[Decoding]:  # fmt: skip
        """The answers so far, every ``look`` steps: a row's ``counts`` tokens in ``ids``, their times in ``found``.

        It is one object that goes on. On a CPU by default every step, elsewhere every ``LOOK``.
        """
        number, device = len(batch) * answers, batch.input_ids.device
        options = options.within(self.config.context_length)
        with Rows(self, number, options, stop_id, pad_id, device) as rows:
            rows.look = look or rows.look
            rows.enter(batch, range(number), answers)
            for step in count(1):
                rows.decide()
                if step % rows.look == 0 or (step == options.max_new_tokens and not together()):
                    yield rows.state
                    if rows.state.ended():
                        if options.draw_spans:
                            rows.state.weigh_spans()
                        return
                    rows.thin()
                rows.feed()

    def prompt(self, batch: Batch, options: GenerateOptions) -> tuple[Tensor, FrameBatch, Tensor | None]:
        """The prompts' embeddings [B, L, D], spans in place, what a head sees of the frames, and what the first layers
        add to them."""
        tokens = self.frame_tokens(batch)
        frames, maps = self.frame_batch(batch, tokens), self.maps(tokens)
        refs = shown(batch.refs, options)
        embeds, layer = self.embed(batch, tokens), self.head.inject_layer
        if layer is None or not options.encode_spans or not (len(batch.late_refs) or together()):
            return self.embed_refs(embeds, refs, frames), frames, maps
        embeds = self.embed_refs(embeds, refs.select(batch.early_refs), frames)
        # A pass for the frame states that answered spans in the prompt (earlier turns) stand for; of all ranks or none.
        states = self.run(batch, embeds, slice(0, embeds.shape[1]), {layer}, maps=maps)
        frames.states[layer] = self.states_of_frames(batch, states[layer])
        return self.embed_refs(embeds, refs.select(batch.late_refs), frames), frames, maps

    def processors(self, options: GenerateOptions, state: Decoding) -> LogitsProcessorList:
        """What happens to the scores before the highest is taken, or one is drawn."""
        found, device, words = LogitsProcessorList(), state.ids.device, self.config.text_config.vocab_size
        if options.min_new_tokens:
            stops = torch.isin(torch.arange(words, device=device), state.stop_ids)
            found.append(NotYet(stops, state.least, state.steps))
        if options.repetition_penalty != 1.0:
            if state.words is None:
                state.words = torch.zeros(len(state.row), words, dtype=torch.bool, device=device)
            found.append(SpanPenalty(options.repetition_penalty, state.span_ids, state.words))
        if options.do_sample:
            found += [TemperatureLogitsWarper(options.temperature)] if options.temperature != 1.0 else []
            found += [TopPLogitsWarper(options.top_p)] if options.top_p < 1.0 else []
        return found

    def read_answer(
        self, ids: list[int], found: Prediction | None, tokenizer: PreTrainedTokenizerBase, stop_id: int,
        duration_s: float, goes_on: bool = False,
    ) -> tuple[Answer, str]:  # fmt: skip
        """One row's answer and finish reason, from its ids and what the head said of every one of them.

        Of one that ``goes_on``, what is certain of it, and no reason.
        """
        tokens, stopped = len(ids), ids[-1:] == [stop_id]
        ids = ids[:-1] if stopped else ids
        steps = [step for step, token in enumerate(ids) if token in self.span_ids]
        own = Prediction(*(part[steps] for part in (found.seconds, found.score, found.raw))) if steps else None
        answer = (self.head.read_so_far if goes_on else self.head.read)(ids, own, tokenizer, duration_s)
        answer.tokens = tokens
        if goes_on:
            answer.text = answer.text.rstrip(HALF)
            return answer, ""
        return answer, "stop" if stopped else "length"


class Rows:
    """R rows in which a model makes answers: questions enter, all rows take a step, ended ones are read and left.

    A step is ``decide`` (a token of every row) and ``feed`` (the language model's pass over it). Questions enter where
    no token waits to be fed: at the beginning or behind ``feed``.
    """

    def __init__(
        self, model: SpanGeneration, number: int, options: GenerateOptions, stop_id: int, pad_id: int | None,
        device: torch.device,
    ):  # fmt: skip
        """``options`` are those of all answers (complete, ``within``), with the most tokens that one of them may have;
        with ``min_new_tokens`` where any has."""
        self.model, self.options, self.head = model, options, model.head
        self.look = 1 if device.type == "cpu" else LOOK  # steps between two looks
        exact = model.language_model.config._attn_implementation == FLASH
        self.shares = not exact  # whether a question can follow another's prefix: that needs a mask of ours
        pad_id = stop_id if pad_id is None else pad_id
        self.state = Decoding.start(
            self.head, number, options.max_new_tokens, model.span_ids, [stop_id], pad_id, device
        )
        self.choose_by()
        if options.draw_spans:
            need(self.head.draws, f"generate.draw_spans: the {model.config.head['name']} head {NO_DRAW}")
            self.state.draws_spans, self.state.temperature = True, options.temperature
        self.cache = RowCache(len(model.decoder.layers), number, exact, device)
        self.layers = {-1, self.head.query_layer, *self.head.frame_layers, self.head.inject_layer} - {None}
        self.tap = LayerTap(model.decoder, self.layers)
        self.prompt_end: Tensor | None = None  # [..., R, 1], the position of each prompt's last token
        self.states: tuple[Tensor, Tensor] | None = None  # of each row's last place: final, and of the query layer
        self.fed: Tensor | None = None  # [R, D], what is fed next
        self.memo: dict[str, Tensor] | None = None  # derived from frames before questions entered; None: none did
        self.graphs = options.graphs  # all tensors of a step stay where they are
        record = recorder(self.shares, device) if self.graphs else None
        self.choosing, self.going_on = Replay(self.choose, record), Replay(self.go_on, record)

    def __enter__(self) -> "Rows":
        self.inside = ExitStack()
        self.inside.enter_context(whole_weights(self.model))
        self.inside.enter_context(self.tap)
        return self

    def __exit__(self, *error) -> None:
        self.inside.__exit__(*error)

    # ---- prompts ---------------------------------------------------------------------------------------------------

    def enter(
        self, batch: Batch, rows: Sequence[int], answers: int = 1, own: Sequence[GenerateOptions] | None = None
    ) -> None:
        """The questions of ``batch`` enter ``rows``, each ``answers`` of them, one behind the other.

        ``own``: how each question is answered, where they differ in what may (``GenerateOptions.of_all``).
        """
        model, length = self.model, batch.input_ids.shape[1]
        embeds, frames, maps = model.prompt(batch, self.options)
        states = self.pass_over(batch, embeds, slice(0, length), rows, maps)
        for layer in {*self.head.frame_layers, self.head.inject_layer} - {None}:
            frames.states[layer] = model.states_of_frames(batch, states[layer])
        self.begin(batch, frames, states, 0, rows, answers, own)

    def follow(
        self, batch: Batch, rows: Sequence[int], source: int, start: int, own: Sequence[GenerateOptions] | None = None
    ) -> None:
        """As ``enter`` for questions whose first ``start`` tokens, all frames among them, are those of the question
        that was the last to enter row ``source``. Only what stands behind them runs."""
        model, length = self.model, batch.input_ids.shape[1]
        frames = rows_of(self.state.frames, torch.full((len(rows),), source, device=batch.input_ids.device))
        embeds = model.get_input_embeddings()(batch.input_ids)
        embeds = model.embed_refs(embeds, shown(batch.refs, self.options), frames)
        self.cache.copy(source, rows, start)
        states = self.pass_over(batch, embeds, slice(start, length), rows)
        self.begin(batch, frames, states, start, rows, 1, own)

    def pass_over(
        self, batch: Batch, embeds: Tensor, columns: slice, rows: Sequence[int], maps: Tensor | None = None
    ) -> dict[int, Tensor]:
        """The states of a pass over ``columns`` of the prompts, whose keys and values go into ``rows``."""
        self.cache.hold(columns.stop + self.options.max_new_tokens)
        with self.cache.filled(torch.tensor(rows, device=embeds.device), columns):
            return self.model.run(batch, embeds, columns, self.layers, self.cache, maps)

    def begin(
        self, batch: Batch, frames: FrameBatch, states: dict[int, Tensor], start: int, rows: Sequence[int],
        answers: int, given: Sequence[GenerateOptions] | None,
    ) -> None:  # fmt: skip
        """The answers begin behind the prompts, of which ``states`` has the columns from ``start`` on."""
        device, number = batch.input_ids.device, len(self.state.row)
        where = torch.tensor(rows, device=device)
        own = torch.arange(len(batch), device=device).repeat_interleave(answers)  # the prompt of each of ``rows``
        how = [options for options in given or [self.options] * len(batch) for _ in range(answers)]
        numbers = torch.tensor([[options.max_new_tokens, options.min_new_tokens] for options in how], device=device)
        keys = words = None
        if self.options.do_sample:
            names = [f"{name} {k}" if k else name for name in batch.ids for k in range(answers)]
            keys = row_keys(names, [options.seed for options in how], device)
        if self.state.words is not None:
            words = words_of(batch, self.state.words.shape[1])[own]
        self.memo = {} if self.state.frames is None else self.state.frames.memo
        self.state.begin(where, rows_of(frames, own), *numbers.unbind(1), keys, words)
        self.cache.begin(rows, where, (batch.segment_ids >= 0)[own], batch.last[own])
        first = [states[layer][own, batch.last[own] - start] for layer in (-1, self.head.query_layer)]
        ends = batch.position_ids.gather(-1, batch.last[:, None].expand(*batch.position_ids.shape[:-1], 1))
        ends = ends.index_select(-2, own)
        if self.states is None:
            self.states = tuple(part.new_zeros(number, part.shape[1]) for part in first)
            self.fed = torch.zeros_like(self.states[0])
            self.prompt_end = ends.new_zeros(*ends.shape[:-2], number, 1)
        for old, new in zip(self.states, first, strict=True):
            old.index_copy_(0, where, new)
        self.prompt_end.index_copy_(-2, where, ends)

    # ---- steps -----------------------------------------------------------------------------------------------------

    def decide(self) -> None:
        """The next token of every row."""
        frames, before, self.memo = self.state.frames, self.memo, None
        if before is None:
            self.choosing(frames.times_s.shape)
        else:  # what the head derives from frames is made anew, and stays where it was
            self.choose()
            if self.graphs:
                frames.memo |= {k: old.copy_(frames.memo[k]) for k, old in before.items() if same(old, frames.memo[k])}
        self.state.advance()

    def choose(self) -> None:
        """What ``decide`` does on the device."""
        model = self.model
        # What is recorded is the same in every step, and under ZeRO-3 a rank alone would skip the head.
        self.state.looks = self.look == 1 and not self.graphs and not together()
        self.fed = self.put(self.fed, self.state.take(model.language_model, model.get_input_embeddings(), *self.states))

    def put(self, old: Tensor, new: Tensor) -> Tensor:
        """``new``, where ``old`` stood if tensors have to stay."""
        return old.copy_(new) if self.graphs else new

    def feed(self) -> None:
        """The states behind the token of every row."""
        self.cache.advance()
        self.going_on((self.cache.size, self.cache.reach))

    def go_on(self) -> None:
        """What ``feed`` does on the device."""
        state, cache = self.state, self.cache
        cache.go_to(state.steps)
        out = self.model.decoder(
            inputs_embeds=self.fed[:, None],
            attention_mask=cache.masks(self.model.windows, self.fed.dtype),
            position_ids=self.prompt_end + state.steps[:, None],
            past_key_values=cache,
            use_cache=True,
        )
        states = self.tap.finish(self.fed[:, None], out.last_hidden_state)
        new = states[-1][:, -1], states[self.head.query_layer][:, -1]
        self.states = tuple(self.put(*pair) for pair in zip(self.states, new, strict=True))

    def thin(self) -> None:
        """Once half of the rows that take steps have ended, only the others do; no question may enter any more."""
        thins = self.options.draw_spans and not self.graphs and not together()  # as in ``choose``
        live = (~self.state.done).nonzero()[:, 0] if thins else self.state.row
        if 2 * len(live) > len(self.state.row):
            return
        self.state.only(live)
        self.cache.only(live)
        self.choose_by()
        self.fed, self.states = self.fed[live], tuple(part[live] for part in self.states)
        self.prompt_end = self.prompt_end.index_select(-2, live)

    def choose_by(self) -> None:
        """How tokens are chosen in the rows that take steps."""
        self.state.processors = self.model.processors(self.options, self.state)
        self.state.draw = Draw(self.state.keys, self.state.steps) if self.options.do_sample else None

    def leave(self, row: int) -> None:
        """Nobody asks in the row any more."""
        self.state.done[row] = True
        self.cache.end(row)


def recorder(masked: bool, device: torch.device) -> Callable[[Step], Step]:
    """What records the steps of generation.

    Raises:
        ConfigError: they are not always the same operations, or there is nothing that could record them.
    """
    key = "generate.graphs: true, but"
    need(device.type == "cuda", NO_GRAPHS)
    need(masked, f"{key} flash attention takes another length in every step; set model.attention=sdpa")
    need(not together(), f"{key} ZeRO-3 gathers weights in every step; use ZeRO-2, or leave it out")
    return cuda_graph


def same(old: Tensor, new: Tensor) -> bool:
    """Whether ``new`` can be written into ``old``."""
    return old.shape == new.shape and old.dtype == new.dtype


@contextmanager
def whole_weights(model: SpanGeneration) -> Iterator[None]:
    """Under ZeRO-3 every rank has all weights, gathered once, not again for every token; else nothing happens."""
    spread = [p for p in model.parameters() if hasattr(p, "ds_status")] if is_deepspeed_zero3_enabled() else []
    if not spread:
        yield
        return
    import deepspeed  # takes seconds, and only ZeRO-3 needs it

    # Small ones that DeepSpeed keeps whole are left to it.
    with deepspeed.zero.GatheredParameters([p for p in spread if p.ds_status.name == "NOT_AVAILABLE"]):
        for parameter in spread:  # else the hook behind a module gives its weights up again
            parameter.ds_active_sub_modules.add(DRAWING)
        try:
            yield
        finally:
            for parameter in spread:
                parameter.ds_active_sub_modules.discard(DRAWING)


def shown(refs: SpanRefs, options: GenerateOptions) -> SpanRefs:
    """The places whose times the model is shown."""
    return refs if options.encode_spans else refs.select(refs.role == Role.FRAME)


def rows_of(frames: FrameBatch, which: Tensor) -> FrameBatch:
    """The rows ``which`` [N] of the frames."""
    states = {layer: part[which] for layer, part in frames.states.items()}
    embeds = None if frames.embeds is None else frames.embeds[which]
    return FrameBatch(frames.times_s[which], frames.mask[which], frames.duration_s[which], embeds, states)


def words_of(batch: Batch, vocabulary: int) -> Tensor:
    """The tokens of each prompt, frames left out. [B, V] bool."""
    words = (batch.segment_ids >= 0).flatten().index_fill(0, batch.visual_index, False).view_as(batch.input_ids)
    count = torch.zeros(len(batch), vocabulary, device=words.device)
    return count.scatter_add(1, batch.input_ids, words.float()) > 0
