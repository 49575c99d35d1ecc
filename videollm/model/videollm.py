"""VideoLLM: vision tower + connector + language model + temporal head, as one ``PreTrainedModel``.

A batch of ``collate.Collator`` comes in; for training a loss and its terms go out, for generation ``generate.py``
takes over after the prompt is embedded. Frames become tokens, the head decides what stands in the place of spans,
the language model's states before span tokens become seconds. Loss terms are sums that are divided by the counts of
the whole optimisation step, so any split over ranks and accumulation steps gives the same number.
"""

import copy
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, Cache, PreTrainedModel
from transformers.configuration_utils import PretrainedConfig
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from videollm.batches.batch import Batch
from videollm.common.config import build, need, unusable
from videollm.common.spread import without_weights
from videollm.heads import FrameBatch, Prediction, SpanRefs, build_head
from videollm.model import backbones  # noqa: F401 - registers towers, connectors and language models
from videollm.model.attention import causal_alone, implementation, no_mask_made, one_kernel_norms, windows
from videollm.model.connectors import build_connector
from videollm.model.generate import SpanGeneration
from videollm.model.lora import add_adapters
from videollm.model.objective import Objective, ObjectiveOptions, Reading, Supervised
from videollm.model.passes import DeepStack, Joined, LayerTap, PrefixCache, VideoLLMOutput, behind, layer_index, scatter
from videollm.model.towers import CHUNK, build_tower, encode_frames, encode_patches
from videollm.model.tying import filled
from videollm.video.patching import Patching
from videollm.video.preprocess import Preprocess

WINDOWED = (
    "model.language: layers with a window count positions one by one, which this vision tower does not; leave out"
)


class VideoLLMConfig(PretrainedConfig):
    """Everything needed to rebuild a model: parts, template, preprocessing and sampling.

    ``vision``, ``connector``, ``head``, ``preprocess``, ``sampler`` and ``visual_tokens`` are the mappings of the
    training config, kept as they are. ``token_ids`` maps the head's tokens to ids. ``headless``: a base, as converters
    write it, whose head training has to start. ``generate`` and ``precision`` are those of the training, with which the
    model is asked unless told otherwise; empty and None in checkpoints of before 2026-12. A model that was converted
    from a released one has ``published`` too: what ``videollm.convert --back`` needs.
    """

    model_type = "videollm"
    sub_configs = {"text_config": AutoConfig}  # noqa: RUF012 - the base class declares it so

    def __init__(
        self, text_config=None, vision=None, connector=None, head=None, template="plain", visual_tokens=None,
        token_ids=None, bidirectional_frames=False, preprocess=None, sampler=None, context_length=4096, max_tiles=1,
        lora=None, headless=False, generate=None, precision=None, **kwargs,
    ):  # fmt: skip
        if isinstance(text_config, dict):
            fields = dict(text_config)
            text_config = AutoConfig.for_model(fields.pop("model_type"), **fields)
        self.text_config = text_config
        self.vision, self.connector, self.head = vision or {}, connector or {}, head or {}
        self.template, self.visual_tokens, self.token_ids = template, visual_tokens or {}, token_ids or {}
        self.bidirectional_frames = bidirectional_frames
        self.preprocess, self.sampler, self.context_length = preprocess or {}, sampler or {}, context_length
        self.max_tiles = max_tiles  # of an image
        self.lora, self.headless = lora, headless
        self.generate, self.precision = generate or {}, precision  # {option: value}; fp32 or bf16
        super().__init__(**kwargs)


class VideoLLM(SpanGeneration, PreTrainedModel):
    """See the module's docstring. Weights: ``vision_tower.*``, ``connector.*``, ``language_model.*``, ``head.*``."""

    config_class = VideoLLMConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = True
    _supports_sdpa = _supports_flash_attn = _supports_attention_backend = True
    _no_split_modules: list[str] = []  # noqa: RUF012 - the base class declares it so

    def __init__(self, config: VideoLLMConfig, empty_language: bool = False):
        """With ``empty_language`` the language model waits for its weights on the meta device (see ``spread``)."""
        super().__init__(config)
        self.vision_tower = build_tower(config.vision)
        text = copy.deepcopy(config.text_config)
        text.dtype = None  # in which it was released; all parts are built in one precision
        if text.model_type == "phi3":  # published: full attention, whatever the config says (docs/published_systems.md)
            text.sliding_window = None
        self.windows = windows(text)
        with without_weights() if empty_language else nullcontext():
            self.language_model = build_language(text, config._attn_implementation)
        hidden = config.text_config.hidden_size
        self.patching: Patching | None = getattr(self.vision_tower, "patching", None)
        if self.patching and config.head.get("compatibility") == "published":
            self.patching = replace(self.patching, even=True)
        need(not (self.patching and any(self.windows.values())), WINDOWED)
        connector = getattr(self.vision_tower, "connects", {}) | config.connector
        self.connector = build_connector(connector, self.vision_tower.hidden_size, hidden)
        self.head = build_head(config.head, hidden)
        for layer in {self.head.query_layer, self.head.inject_layer, *self.head.frame_layers} - {None, 0, -1}:
            layer_index(self.decoder, layer)
        if config.lora:
            add_adapters(self, config.lora)
        self.span_ids = sorted(config.token_ids[name] for name in self.head.span_tokens)
        self.preprocess = build(Preprocess, config.preprocess, "preprocess")
        self.frozen_tower = True
        self.objective: Objective = Supervised(ObjectiveOptions())  # what ``forward`` computes in training
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Parts bring their own initialisation: transformers' classes theirs, heads ``reset_parameters``."""

    def train(self, mode: bool = True) -> "VideoLLM":
        """Training mode; a frozen tower stays in evaluation mode (no dropout, fixed batch-norm statistics)."""
        super().train(mode)
        if self.frozen_tower:
            self.vision_tower.eval()
        return self

    @property
    def decoder(self) -> nn.Module:
        """The language model without its output layer."""
        return self.language_model.get_decoder()

    def get_input_embeddings(self) -> nn.Module:
        """The token embedding."""
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token embedding."""
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """The output layer."""
        return self.language_model.get_output_embeddings()

    def load_state_dict(self, state_dict: Mapping[str, Tensor], *args, **kwargs):
        """As of every module, also from what files of a tied model hold (``tying.tied``)."""
        return super().load_state_dict(filled(state_dict, self.config.text_config), *args, **kwargs)

    # ---- frames ----------------------------------------------------------------------------------------------------

    def frame_tokens(self, batch: Batch) -> Tensor:
        """Tokens of all frames of a batch, [V, k, D]; a blank frame (V = 1) stands in where it has none.

        The stand-in keeps every module on the graph of every rank; its tokens are used nowhere. Of frames of any size
        [T, 1 + d, D]: each token, and what is added to it behind the first d layers.
        """
        features, pixels, grids = batch.features, batch.pixel_values, batch.grids
        owner = batch.frame_row
        if pixels is None and (features is None or is_deepspeed_zero3_enabled()):
            # Under ZeRO-3 a rank waits for the others in every module, so all run the tower, though some have features.
            blank, grids = self.blank(owner.device)
            if features is None:
                pixels, owner = blank, owner.new_zeros(1)
            else:
                self.encode_frames(blank, grids)
        if pixels is not None:
            fresh = self.encode_frames(pixels, grids)
            features = fresh if features is None else torch.cat([fresh, features.to(fresh.dtype)])
        features = features.to(self.dtype)
        source = slice(None) if batch.frame_source is None else batch.frame_source
        if not self.connector.reads_question:
            return self.connector(features)[source]
        question = {"query_ids": batch.question_ids, "query_mask": batch.question_mask}
        if self.connector.shares_frames:
            return self.connector(features, **question, owner=owner, source=batch.frame_source)
        return self.connector(features[source], **question, owner=owner)

    def blank(self, device: torch.device) -> tuple[Tensor, np.ndarray | None]:
        """One frame without a picture, as the tower takes it, and the grids of frames of any size."""
        if self.patching is None:
            return torch.zeros(1, *tower_shape(self.vision_tower), device=device, dtype=self.dtype), None
        return self.patching.blank(device, self.dtype), np.full((1, 2), self.patching.merge)

    def encode_frames(self, pixels: Tensor, grids: np.ndarray | None = None) -> Tensor:
        """The tower's features; a frozen tower keeps no graph and has few frames at a time. [U, ...] -> [U, P, Dv].

        Patches [N, W] of frames of any size, with their ``grids`` [G, 2] -> [T, Dv].
        """
        if not self.frozen_tower:
            more = () if grids is None else (grids,)
            return self.vision_tower(self.as_the_tower_takes(pixels), *more)
        if grids is not None:
            chunk = len(grids) if is_deepspeed_zero3_enabled() else CHUNK
            return encode_patches(self.vision_tower, pixels, grids, chunk, self.as_the_tower_takes)
        # Under ZeRO-3 ranks wait for each other in every call of a module, so all make one.
        chunk = len(pixels) if is_deepspeed_zero3_enabled() else CHUNK
        return encode_frames(self.vision_tower, pixels, chunk, self.as_the_tower_takes)

    def as_the_tower_takes(self, pixels: Tensor) -> Tensor:
        """Frames as they travel (``Batch.pixel_values``) -> [U, C, S, S] in the model's precision."""
        if self.patching is not None and not pixels.is_floating_point():
            pixels = self.patching.normalised(pixels, self.preprocess.mean, self.preprocess.std)
        return self.preprocess.on_device(pixels).to(self.dtype)

    def frame_batch(self, batch: Batch, tokens: Tensor) -> FrameBatch:
        """Times and connector outputs of the frames, as a head sees them."""
        frames = FrameBatch(batch.times_s, batch.frame_mask, batch.duration_s)
        frames.embeds = self.per_frame(batch, tokens if self.patching is None else tokens[:, 0])
        return frames

    def maps(self, tokens: Tensor) -> Tensor | None:
        """Of ``frame_tokens``, what is added behind the first d layers, [T, d, D]; None where nothing is."""
        return None if self.patching is None or tokens.shape[1] == 1 else tokens[:, 1:]

    def per_frame(self, batch: Batch, tokens: Tensor) -> Tensor:
        """Visual-token states [V, k, D] or [T, D] -> one vector a timed frame [B, F, D]; image tiles are left out."""
        if batch.runs is not None:  # a mean for each stretch of frames of one size: in order, unlike index_add on a GPU
            parts = tokens.split([frames * size for frames, size in batch.runs])
            means = [part.unflatten(0, run).mean(1) for part, run in zip(parts, batch.runs, strict=True)]
            tokens = torch.cat(means)[:, None]
        elif tokens.ndim == 2:  # a stand-in
            tokens = tokens[:, None]
        rows, columns = batch.frame_row, batch.frame_col
        out = tokens.new_zeros(*batch.times_s.shape, tokens.shape[-1])  # [B, F, D]
        count = rows.shape[0]
        # Tiles (column -1) land in a column behind the last one, which is cut off: no boolean mask, no host sync.
        out = torch.cat([out, out[:, :1]], 1)
        column = torch.where(columns < 0, out.shape[1] - 1, columns)
        return out.index_put((rows, column), tokens[:count].mean(1))[:, :-1]

    def states_of_frames(self, batch: Batch, states: Tensor) -> Tensor:
        """Hidden states [B, L', D] of a pass -> one vector a frame [B, F, D]. L' may be the prefix only."""
        length = batch.input_ids.shape[1]
        index = batch.visual_index
        rows, columns = index // length, index % length
        picked = states[rows, columns]  # [V * k, D]
        frames = batch.frame_row.shape[0]
        if self.patching is not None:
            return self.per_frame(batch, picked)
        return self.per_frame(batch, picked.view(frames, -1, picked.shape[-1]) if frames else picked[:, None])

    # ---- embeddings ------------------------------------------------------------------------------------------------

    def embed(self, batch: Batch, tokens: Tensor) -> Tensor:
        """Input embeddings with the frames in place, [B, L, D]."""
        embeds = self.get_input_embeddings()(batch.input_ids)
        visual = tokens.flatten(0, 1) if self.patching is None else tokens
        # A stand-in frame is tied in with weight zero.
        keep = batch.visual_index.shape[0]
        embeds = embeds + 0.0 * visual[keep:].sum() if keep < visual.shape[0] else embeds
        visual = visual if self.patching is None else visual[:, 0]
        return scatter(embeds, batch.visual_index, visual[:keep].to(embeds.dtype))

    def embed_refs(self, embeds: Tensor, refs: SpanRefs, frames: FrameBatch) -> Tensor:
        """``embeds`` with what the head puts at ``refs``; where it has drawn a span, as when it was drawn."""
        old = embeds.flatten(0, 1)[refs.index]  # [N, D]
        new = self.head.embed(old, refs, frames)
        # A prefix, which may come before the states that are injected, holds no drawn span.
        if refs.drawn is not None and self.head.inject_layer in (None, *frames.states):
            span = Prediction(refs.seconds, torch.ones_like(refs.seconds[:, 0]), refs.raw)
            again = self.head.embed_predicted(old, span, refs.owner, frames)
            new = torch.where(refs.drawn[:, None], again.to(new.dtype), new)
        return scatter(embeds, refs.index, new.to(embeds.dtype))

    # ---- passes ----------------------------------------------------------------------------------------------------

    def reach(self, stop: int) -> dict[str, int | None]:
        """The windows of the kinds of layers that are narrower than ``stop`` columns."""
        return {kind: window if window and window < stop else None for kind, window in self.windows.items()}

    def masks(self, batch: Batch, queries: slice, dtype: torch.dtype) -> Tensor | dict[str, Tensor]:
        """What the decoder takes: one ``attention_mask``, or for each kind of its layers one."""
        reach = self.reach(queries.stop)
        made = {window: self.attention_mask(batch, queries, dtype, window) for window in set(reach.values())}
        return {kind: made[window] for kind, window in reach.items()} if len(made) > 1 else made.popitem()[1]

    def attention_mask(self, batch: Batch, queries: slice, dtype: torch.dtype, window: int | None = None) -> Tensor:
        """Additive mask [B, 1, Q, K] for the given query columns and all key columns up to their last.

        A place sees what is not behind it in its own segment or the prefix, and of that the ``window`` last positions,
        its own among them; and all of its own run of frames.
        """
        stop = queries.stop
        segment, block = batch.segment_ids[:, :stop], batch.block_ids[:, :stop]
        column = torch.arange(stop, device=segment.device)
        seg_q, blk_q, col_q = segment[:, queries, None], block[:, queries, None], column[queries, None]
        seg_k, blk_k = segment[:, None], block[:, None]
        # Where a row is one segment, the state of a place that none sees may still predict the next token.
        own = seg_k >= 0 if batch.plain_causal else ((seg_k == 0) | (seg_k == seg_q)) & (seg_k >= 0)
        before = column <= col_q
        if window is not None:  # by position: what stands between a prefix and a packed segment is not of its text
            position = batch.position_ids[:, :stop]
            before = before & (position[:, queries, None] - position[:, None] < window)
        order = before | ((blk_q == blk_k) & (blk_q >= 0))
        allowed = own & order
        allowed = allowed | ((column == col_q) & ~allowed.any(-1, keepdim=True))  # no softmax is empty
        mask = torch.zeros(allowed.shape, dtype=dtype, device=segment.device)
        return mask.masked_fill(~allowed, torch.finfo(dtype).min)[:, None]

    def run(
        self, batch: Batch, embeds: Tensor, columns: slice, layers: set[int], cache: Cache | None = None,
        maps: Tensor | None = None,
    ) -> dict[int, Tensor]:  # fmt: skip
        """One pass of the decoder over ``columns``; the wanted layers' states [B, Q, D], ``maps`` added to them."""
        text, plain = self.decoder.config, batch.plain_causal and not columns.start
        if plain and causal_alone(text, batch.needs_mask, self.reach(columns.stop).values()):
            # Padding behind a row is seen by nothing that counts: attention is faster without a mask.
            mask = (batch.segment_ids[:, columns] >= 0).long() if batch.needs_mask else None
        else:
            mask = self.masks(batch, columns, embeds.dtype)
        added = self.added(batch, maps, columns.stop)
        with added, LayerTap(self.decoder, layers) as tap, no_mask_made(text):
            out = self.decoder(
                inputs_embeds=embeds[:, columns],
                attention_mask=mask,
                position_ids=batch.position_ids[..., columns],
                past_key_values=cache,
                use_cache=cache is not None,
            )
            return tap.finish(embeds[:, columns], out.last_hidden_state)

    def added(self, batch: Batch, maps: Tensor | None, columns: int) -> DeepStack:
        """Within it a pass over the first ``columns`` adds ``maps`` to the visual tokens."""
        return DeepStack(self.decoder, maps, batch.visual_index, batch.input_ids.shape[1], columns)

    def training_states(
        self, batch: Batch, embeds: Tensor, refs: SpanRefs, frames: FrameBatch, maps: Tensor | None = None
    ) -> dict[int, Tensor]:
        """States [B, L, D] of the layers that the loss and the head read, spans embedded.

        A head that injects frame states needs them first: one pass over the prefix, which ends with the injected
        layer. The second pass takes the prefix up from there. Gradient checkpointing drops the first pass's keys and
        values, and answered spans within a prefix outdate them; then the second pass covers the prefix again.
        """
        head, cut = self.head, batch.prefix_columns
        layers, inject = {-1, head.query_layer, *head.frame_layers}, head.inject_layer
        whole = slice(0, embeds.shape[1])
        if inject is None or not cut:
            return self.run(batch, self.embed_refs(embeds, refs, frames), whole, layers, maps=maps)
        embeds = self.embed_refs(embeds, refs.select(batch.early_refs), frames)
        checkpointing = self.training and any(layer.gradient_checkpointing for layer in self.decoder.layers)
        again = checkpointing or not batch.keep_prefix or inject in (0, -1)
        shallow = {inject} | {layer for layer in layers if not again and not behind(self.decoder, layer, inject)}
        cache = None if again else PrefixCache()
        prefix = self.run(batch, embeds, slice(0, cut), shallow, cache, maps=maps)
        frames.states[inject] = self.states_of_frames(batch, prefix[inject])
        embeds = self.embed_refs(embeds, refs.select(batch.late_refs), frames)
        if again:
            # Under ZeRO-3 ranks wait for each other in every layer, back too: on the graph in any case.
            return self.run(batch, embeds + 0.0 * prefix[inject].sum(), whole, layers, maps=maps)
        with Joined(self.decoder, layer_index(self.decoder, inject), prefix[inject], cache):
            states = self.run(batch, embeds, whole, layers, maps=maps)
        return states | {layer: torch.cat([prefix[layer], states[layer]], 1) for layer in layers & shallow - {0}}

    def forward(self, batch: Batch, counts: dict[str, Tensor] | None = None) -> VideoLLMOutput:
        """Loss and terms of a batch of the training.

        ``counts`` are the divisors of the loss terms over the whole optimisation step; by default this batch's own.
        """
        losses, logged = self.objective.sums(self, batch, self.read(batch))
        counts = counts or self.counts(batch)
        terms = {n: value / counts[n].to(value.device).clamp(min=1e-6) for n, value in (losses | logged).items()}
        return VideoLLMOutput(loss=sum(terms[n] for n in losses), terms={n: t.detach() for n, t in terms.items()})

    def read(self, batch: Batch) -> Reading:
        """One pass over a batch of the collator, for an objective."""
        refs = batch.refs
        tokens = self.frame_tokens(batch)
        frames = self.frame_batch(batch, tokens)
        states = self.training_states(batch, self.embed(batch, tokens), refs, frames, self.maps(tokens))
        for layer in self.head.frame_layers:
            frames.states[layer] = self.states_of_frames(batch, states[layer])
        spans = refs.select(batch.span_refs)
        queries = states[self.head.query_layer].flatten(0, 1)[spans.query_index]  # [N, D]
        return Reading(states[-1].flatten(0, 1), queries, spans, frames)

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """What each loss term of this batch is to be divided by; sums over batches are right for several."""
        return self.objective.counts(self, batch)


def build_language(text: PretrainedConfig, attention: str) -> PreTrainedModel:
    """A language model with random weights; ConfigError for a config that transformers cannot build it from."""
    try:
        model = AutoModelForCausalLM.from_config(text, attn_implementation=implementation(text, attention))
    except Exception as error:  # of any kind
        raise unusable("model.language", f"a {text.model_type}", error) from error
    one_kernel_norms(model)
    return model


def tower_shape(tower: nn.Module) -> tuple[int, int, int]:
    """(channels, height, width) of one frame as the tower takes it."""
    size = tower.config.image_size
    height, width = (size, size) if isinstance(size, int) else size
    return getattr(tower.config, "num_channels", 3), height, width


AutoConfig.register(VideoLLMConfig.model_type, VideoLLMConfig, exist_ok=True)
