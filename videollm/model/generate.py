"""Batched generation: left-padded prompts, greedy or sampled, every span token turned into seconds as it is produced.

The prompt is embedded and run here, once for all of its answers; ``decoding.py`` goes on from its last states, and
``cache.py`` keeps keys and values. Answers come out in neutral form. Knows batches of the collator; no files.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    PreTrainedTokenizerBase,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from videollm.batches.batch import Batch
from videollm.common.config import ConfigError
from videollm.data.conversation import Role
from videollm.heads import Answer, FrameBatch, Prediction
from videollm.model.attention import FLASH
from videollm.model.cache import AnswerCache
from videollm.model.decoding import LOOK, Decoding, decode
from videollm.model.draws import Draw, row_keys
from videollm.model.passes import LayerTap

MOST_TOKENS = 512  # of an answer, by default


@dataclass
class GenerateOptions:
    """How answers are produced; the defaults are greedy and therefore reproducible."""

    max_new_tokens: int | None = None  # by default 512; where the context has no room for so many, a quarter of it
    min_new_tokens: int = 0  # before them an answer does not stop
    do_sample: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0  # of sampling; with the question's id it decides on every draw
    repetition_penalty: float = 1.0  # of words in prompt and answer; never of span tokens: an answer may hold many
    encode_spans: bool = True  # span tokens of question and history stand for their times; published DisTime: do not

    def __post_init__(self):
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise ConfigError(f"generate.max_new_tokens: {self.max_new_tokens}, but it must be at least 1")
        if self.min_new_tokens < 0 or self.min_new_tokens > (self.max_new_tokens or self.min_new_tokens):
            raise ConfigError(
                f"generate.min_new_tokens: {self.min_new_tokens}, but it must be from 0 to generate.max_new_tokens"
            )
        for name in ("temperature", "repetition_penalty"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"generate.{name}: {getattr(self, name)}, but it must be above 0 and finite")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"generate.top_p: {self.top_p} is not in (0, 1]")

    def within(self, context: int) -> "GenerateOptions":
        """The options for a model that takes ``context`` tokens."""
        if self.max_new_tokens is not None:
            return self
        return replace(self, max_new_tokens=MOST_TOKENS if context > MOST_TOKENS else max(1, context // 4))


class SpanPenalty(LogitsProcessor):
    """Repetition penalty over prompt and answer that leaves span tokens alone (D2VLM spec section 5).

    ``prompt`` [B, V] is true for the tokens of each row's prompt; frames are none.
    """

    def __init__(self, penalty: float, span_ids: Tensor, prompt: Tensor):
        self.penalty, self.span_ids, self.prompt = penalty, span_ids, prompt

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        seen = self.prompt.scatter(1, input_ids, True).index_fill_(1, self.span_ids, False)
        penalised = torch.where(scores < 0, scores * self.penalty, scores / self.penalty)
        return torch.where(seen, penalised, scores)


class SpanGeneration:
    """The generating half of ``VideoLLM``."""

    def answer(
        self, batch: Batch, tokenizer: PreTrainedTokenizerBase, stop_id: int, options: GenerateOptions, answers: int = 1
    ) -> list[tuple[Answer, str]]:
        """Answers and finish reasons (``stop`` or ``length``) for a left-padded batch, in order.

        ``answers`` of each prompt, one behind the other; they differ where they are sampled.
        """
        sequences, state = self.generate_ids(batch, tokenizer.pad_token_id, stop_id, options, answers)
        durations, found = batch.duration_s.repeat_interleave(answers).tolist(), state.found
        if found is not None:
            found = Prediction(found.seconds.cpu(), found.score.cpu(), found.raw.cpu())
        return [
            self._read(ids, row, found, tokenizer, stop_id, durations[row])
            for row, ids in enumerate(sequences.tolist())
        ]

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
        """The answers so far, every ``look`` steps: ``length`` tokens in ``ids``, their times in ``found``.

        It is one object that goes on. On a CPU by default every step, elsewhere every ``LOOK``.
        """
        options = options.within(self.config.context_length)
        head, device = self.head, batch.input_ids.device
        embeds, frames, maps = self.prompt(batch, options)
        owner = torch.arange(len(batch), device=device).repeat_interleave(answers)
        span_ids, stop_ids = batch.input_ids.new_tensor(self.span_ids), batch.input_ids.new_tensor([stop_id])
        pad_id = stop_id if pad_id is None else pad_id
        state = Decoding.start(head, frames, owner, span_ids, stop_ids, pad_id, options.max_new_tokens)
        state.processors = self._processors(options, state, batch, answers)
        known, most = batch.segment_ids >= 0, options.max_new_tokens - 1
        exact = self.language_model.config._attn_implementation == FLASH
        cache = AnswerCache(len(self.decoder.layers), known, most, answers, exact)
        position = batch.position_ids[..., -1:].repeat_interleave(answers, -2)

        def run(embeds: Tensor, mask: Tensor | dict[str, Tensor], positions: Tensor) -> dict[int, Tensor]:
            out = self.decoder(
                inputs_embeds=embeds, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
            )
            return tap.finish(embeds, out.last_hidden_state)

        def last(states: dict[int, Tensor]) -> tuple[Tensor, Tensor]:
            return states[-1][:, -1], states[head.query_layer][:, -1]

        def feed(embeds: Tensor) -> tuple[Tensor, Tensor]:
            cache.advance()
            position.add_(1)
            return last(run(embeds[:, None], cache.masks(self.windows, embeds.dtype), position))

        layers = {-1, head.query_layer, *head.frame_layers, head.inject_layer} - {None}
        with LayerTap(self.decoder, layers) as tap:
            whole = slice(0, embeds.shape[1])
            mask = known.long() if batch.plain_causal else self.masks(batch, whole, embeds.dtype)
            with self.added(batch, maps, whole.stop):
                states = run(embeds, mask, batch.position_ids)
            for layer in {*head.frame_layers, head.inject_layer} - {None}:
                frames.states[layer] = self.states_of_frames(batch, states[layer])
            first = [part.repeat_interleave(answers, 0) for part in last(states)]
            take = partial(state.take, self.language_model, self.get_input_embeddings())
            for _ in decode(state, first, take, feed, look or (1 if device.type == "cpu" else LOOK)):
                yield state

    def prompt(self, batch: Batch, options: GenerateOptions) -> tuple[Tensor, FrameBatch, Tensor | None]:
        """The prompts' embeddings [B, L, D], spans in place, what a head sees of the frames, and what the first layers
        add to them."""
        tokens = self.frame_tokens(batch)
        frames, maps = self.frame_batch(batch, tokens), self.maps(tokens)
        refs = batch.refs
        refs = refs if options.encode_spans else refs.select(refs.role == Role.FRAME)
        embeds, layer = self.embed(batch, tokens), self.head.inject_layer
        if layer is None or not options.encode_spans or not len(batch.late_refs):
            return self.embed_refs(embeds, refs, frames), frames, maps
        embeds = self.embed_refs(embeds, refs.select(batch.early_refs), frames)
        # The prompt itself holds answered spans (earlier turns): one pass for the frame states that they stand for.
        states = self.run(batch, embeds, slice(0, embeds.shape[1]), {layer}, maps=maps)
        frames.states[layer] = self.states_of_frames(batch, states[layer])
        return self.embed_refs(embeds, refs.select(batch.late_refs), frames), frames, maps

    def _processors(self, options: GenerateOptions, state: Decoding, batch: Batch, answers: int) -> LogitsProcessorList:
        """What happens to the scores before the highest is taken; to sample, noise is added last."""
        found, device = LogitsProcessorList(), batch.input_ids.device
        if options.min_new_tokens:
            least, stops = options.min_new_tokens, state.stop_ids
            found.append(MinNewTokensLengthLogitsProcessor(0, least, stops, device=device))
        if options.repetition_penalty != 1.0:
            ids, words = batch.input_ids, batch.segment_ids >= 0  # [B, L]
            words = words.flatten().index_fill(0, batch.visual_index, False).view_as(ids)
            count = torch.zeros(len(ids), self.config.text_config.vocab_size, device=device)
            prompt = count.scatter_add(1, ids, words.float()) > 0  # [B, V]
            prompt = prompt.repeat_interleave(answers, 0)
            found.append(SpanPenalty(options.repetition_penalty, state.span_ids, prompt))
        if options.do_sample:
            found += [TemperatureLogitsWarper(options.temperature)] if options.temperature != 1.0 else []
            found += [TopPLogitsWarper(options.top_p)] if options.top_p < 1.0 else []
            names = [f"{name} {k}" if k else name for name in batch.ids for k in range(answers)]
            found.append(Draw(row_keys(names, options.seed, device)))
        return found

    def _read(
        self, ids: list[int], row: int, found: Prediction | None, tokenizer: PreTrainedTokenizerBase, stop_id: int,
        duration_s: float,
    ) -> tuple[Answer, str]:  # fmt: skip
        """One row's answer: its ids up to the stop token, and the predictions of its span tokens."""
        stopped = stop_id in ids
        ids = ids[: ids.index(stop_id)] if stopped else ids
        steps = [step for step, token in enumerate(ids) if token in self.span_ids]
        own = [part[row, steps] for part in (found.seconds, found.score, found.raw)] if steps else None
        answer = self.head.read(ids, own and Prediction(*own), tokenizer, duration_s)
        answer.tokens = len(ids) + stopped
        return answer, "stop" if stopped else "length"
