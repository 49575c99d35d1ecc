"""Batched generation: left-padded prompts, greedy or sampled, every span token turned into seconds as it is produced.

Built on transformers' own loop through two of its hooks: after each step the state that predicts the next token is
kept; before each step a span token just produced gets the embedding that the head makes of its prediction. Answers
come out in neutral form. Knows batches of the collator; no files.
"""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from transformers import (
    DynamicCache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedTokenizerBase,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from videollm.batches.batch import Batch
from videollm.common.config import ConfigError
from videollm.data.conversation import Role
from videollm.heads import Answer, FrameBatch, Prediction, TemporalHead
from videollm.model.draws import Draw, row_keys
from videollm.model.loss import logits_of
from videollm.model.passes import LayerTap, VideoLLMOutput

MOST_TOKENS = 512  # of an answer, by default


@dataclass
class GenerateOptions:
    """How answers are produced; the defaults are greedy and therefore reproducible."""

    max_new_tokens: int | None = None  # by default 512; where the context has no room for so many, a quarter of it
    do_sample: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0  # of sampling; with the question's id it decides on every draw
    repetition_penalty: float = 1.0  # of words in prompt and answer; never of span tokens: an answer may hold many
    encode_spans: bool = True  # span tokens of question and history stand for their times; published DisTime: do not

    def __post_init__(self):
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise ConfigError(f"generate.max_new_tokens: {self.max_new_tokens}, but it must be at least 1")
        for name in ("temperature", "repetition_penalty"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"generate.{name}: {getattr(self, name)}, but it must be above 0")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"generate.top_p: {self.top_p} is not in (0, 1]")

    def within(self, context: int) -> "GenerateOptions":
        """The options for a model that takes ``context`` tokens."""
        if self.max_new_tokens is not None:
            return self
        return replace(self, max_new_tokens=MOST_TOKENS if context > MOST_TOKENS else max(1, context // 4))


@dataclass
class SpanState:
    """What one call of ``generate`` knows about time: the frames, and the prediction of every span token so far."""

    head: TemporalHead
    span_ids: Tensor  # [S]
    owner: Tensor  # [B]
    frames: FrameBatch | None = None
    batch: Batch | None = None
    query: Tensor | None = None  # [B, D], the state that predicts the next token
    steps: list[Prediction | None] = field(default_factory=list)

    def record(self, ids: Tensor) -> Prediction | None:
        """Take note of the tokens [B] just produced; the prediction of all rows if any of them is a span token."""
        is_span = torch.isin(ids, self.span_ids)
        found = self.head.predict(self.query, self.owner, self.frames) if bool(is_span.any()) else None
        self.steps.append(found)
        return found


class SpanPenalty(LogitsProcessor):
    """Repetition penalty over prompt and answer that leaves span tokens alone (D2VLM spec section 5).

    ``prompt`` [B, V] is true for the tokens of each row's prompt; frames are none.
    """

    def __init__(self, penalty: float, span_ids: Tensor, prompt: Tensor):
        self.penalty, self.span_ids, self.prompt = penalty, span_ids, prompt

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        seen = self.prompt.scatter(1, input_ids, True)
        seen[:, self.span_ids] = False
        penalised = torch.where(scores < 0, scores * self.penalty, scores / self.penalty)
        return torch.where(seen, penalised, scores)


class SpanGeneration:
    """The generating half of ``VideoLLM``, over transformers' ``GenerationMixin``."""

    @torch.no_grad()
    def answer(
        self, batch: Batch, tokenizer: PreTrainedTokenizerBase, stop_id: int, options: GenerateOptions
    ) -> list[tuple[Answer, str]]:
        """Answers and finish reasons (``stop`` or ``length``) for a left-padded batch, in order."""
        sequences, state = self.generate_ids(batch, tokenizer.pad_token_id, stop_id, options)
        return [self._read(row, b, state, batch, tokenizer, stop_id) for b, row in enumerate(sequences.tolist())]

    def generate_ids(
        self, batch: Batch, pad_id: int | None, stop_id: int, options: GenerateOptions
    ) -> tuple[Tensor, SpanState]:
        """Generated ids [B, S] (stop token included, then padding) and the state with every prediction."""
        options = options.within(self.config.context_length)
        tokens = self.frame_tokens(batch)
        frames = self.frame_batch(batch, tokens)
        refs = batch.refs
        refs = refs if options.encode_spans else refs.select(refs.role == Role.FRAME)
        embeds = self.embed(batch, tokens)
        if self.head.inject_layer is not None and options.encode_spans and len(batch.late_refs):
            embeds = self.embed_refs(embeds, refs.select(batch.early_refs), frames)
            # The prompt itself holds answered spans (earlier turns): one pass for the frame states that they stand for.
            layer = self.head.inject_layer
            states = self.run(batch, embeds, slice(0, embeds.shape[1]), {layer})
            frames.states[layer] = self.states_of_frames(batch, states[layer])
            embeds = self.embed_refs(embeds, refs.select(batch.late_refs), frames)
        else:
            embeds = self.embed_refs(embeds, refs, frames)
        span_ids, rows = batch.input_ids.new_tensor(self.span_ids), batch.frame_row.new_tensor(range(len(embeds)))
        state = SpanState(self.head, span_ids, rows, frames, batch)
        ends = {"eos_token_id": stop_id, "pad_token_id": stop_id if pad_id is None else pad_id}
        sequences = self.generate(
            inputs_embeds=embeds,
            attention_mask=(batch.segment_ids >= 0).long(),
            position_ids=batch.position_ids,
            past_key_values=DynamicCache(),
            generation_config=GenerationConfig(max_new_tokens=options.max_new_tokens, do_sample=False, **ends),
            logits_processor=self._processors(options, state),
            span_state=state,
        )
        if len(state.steps) < sequences.shape[1]:
            state.record(sequences[:, -1])
        return sequences, state

    def _processors(self, options: GenerateOptions, state: SpanState) -> LogitsProcessorList:
        """What happens to the scores before the highest is taken; to sample, noise is added last."""
        found, batch = LogitsProcessorList(), state.batch
        if options.repetition_penalty != 1.0:
            ids, words = batch.input_ids, batch.segment_ids >= 0  # [B, L]
            words = words.flatten().index_fill(0, batch.visual_index, False).view_as(ids)
            count = torch.zeros(len(ids), self.config.text_config.vocab_size, device=ids.device)
            prompt = count.scatter_add(1, ids, words.float()) > 0  # [B, V]
            found.append(SpanPenalty(options.repetition_penalty, state.span_ids, prompt))
        if options.do_sample:
            found += [TemperatureLogitsWarper(options.temperature)] if options.temperature != 1.0 else []
            found += [TopPLogitsWarper(options.top_p)] if options.top_p < 1.0 else []
            found.append(Draw(row_keys(batch.ids, options.seed, batch.input_ids.device)))
        return found

    def _read(
        self, ids: list[int], row: int, state: SpanState, batch: Batch, tokenizer: PreTrainedTokenizerBase, stop_id: int
    ) -> tuple[Answer, str]:
        """One row's answer: its ids up to the stop token, and the predictions of its span tokens."""
        stopped = stop_id in ids
        ids = ids[: ids.index(stop_id)] if stopped else ids
        found = [state.steps[step] for step, token in enumerate(ids) if token in self.span_ids]
        parts = [Prediction(p.seconds[row, None], p.score[row, None], p.raw[row, None]) for p in found]
        prediction = Prediction.cat(parts) if parts else None
        duration_s = float(batch.duration_s[row])
        answer = self.head.read(ids, prediction, tokenizer, duration_s)
        answer.tokens = len(ids) + stopped
        return answer, "stop" if stopped else "length"

    # ---- hooks of transformers' loop -------------------------------------------------------------------------------

    def prepare_inputs_for_generation(
        self, input_ids, next_sequence_length=None, past_key_values=None, attention_mask=None, inputs_embeds=None,
        is_first_iteration=False, position_ids=None, span_state=None, **kwargs,
    ):  # fmt: skip
        """First the prompt's embeddings; then the last token's, which for a span token the head makes."""
        inputs = {"past_key_values": past_key_values, "attention_mask": attention_mask, "span_state": span_state}
        if is_first_iteration:
            return inputs | {"inputs_embeds": inputs_embeds, "position_ids": position_ids}
        ids = input_ids[:, -1]
        embeds = self.get_input_embeddings()(ids)  # [B, D]
        prediction = span_state.record(ids)
        if prediction is not None:
            new = self.head.embed_predicted(embeds, prediction, span_state.owner, span_state.frames)
            is_span = torch.isin(ids, span_state.span_ids)
            embeds = torch.where(is_span[:, None], new.to(embeds.dtype), embeds)
        return inputs | {"inputs_embeds": embeds[:, None], "position_ids": position_ids[:, -1:]}

    def decode_step(
        self, input_ids, inputs_embeds, attention_mask, position_ids, past_key_values: DynamicCache, state: SpanState
    ):
        """One forward of transformers' loop: logits of the last place only, and the next token's query state."""
        prefill = state.query is None
        head, batch = self.head, state.batch
        layers = {-1, head.query_layer}
        if prefill:
            layers |= {*head.frame_layers} | ({head.inject_layer} if head.inject_layer is not None else set())
            if not batch.plain_causal:
                attention_mask = self.masks(batch, slice(0, inputs_embeds.shape[1]), inputs_embeds.dtype)
        with LayerTap(self.decoder, layers) as tap:
            out = self.decoder(
                inputs_embeds=inputs_embeds,
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=past_key_values,
                use_cache=True,
            )
            states = tap.finish(inputs_embeds, out.last_hidden_state)
        if prefill:
            for layer in layers - {-1, head.query_layer} | set(head.frame_layers):
                state.frames.states[layer] = self.states_of_frames(batch, states[layer])
        state.query = states[head.query_layer][:, -1]
        logits = logits_of(self.language_model, states[-1][:, -1:])
        return VideoLLMOutput(logits=logits, past_key_values=out.past_key_values)
