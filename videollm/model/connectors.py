"""Connectors: patch features of V frames ``[V, P, Dv]`` become frame tokens ``[V, k, D]`` of the language model.

Every connector is called alike, ``connector(features, query_ids, query_mask, owner)``; the last three are the question
in the Q-Former's own token ids, one row a video (or a frame), and are read only where ``reads_question`` is true.
``tokens_per_frame(P)`` tells k before anything runs. A connector knows neither times nor the language model.
Behind a tower that takes frames of any size, features [T, Dv] become [T, 1 + d, D]: every token, and what is added to
it behind each of the language model's first d layers.
A further one registers a class taking ``(fields, vision_size, hidden_size)`` with ``@CONNECTORS.register(name=...)``.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import InstructBlipQFormerConfig, InstructBlipQFormerModel
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from videollm.common.config import ConfigError, build, need
from videollm.common.registry import new_registry
from videollm.model.towers import build_config, build_part

CONNECTORS = new_registry("connectors")
WHERE = "model.connector"


def build_connector(config: dict, vision_size: int, hidden_size: int) -> nn.Module:
    """A connector with random weights from ``{"type": name, **fields}``, from width Dv to width D.

    Raises:
        ConfigError: unknown type, or a field that is unknown or of the wrong kind.
    """
    return build_part(CONNECTORS, config, WHERE, vision_size, hidden_size)


class Connector(nn.Module):
    """What the model relies on. A connector that reads the question says so in ``reads_question``.

    One that works on each frame once, however many questions are about it, says so in ``shares_frames``: it gets the
    frames that differ, [U, P, Dv], and ``source`` [V], which of them each is (None: in order, U = V).
    """

    reads_question: ClassVar[bool] = False
    shares_frames: ClassVar[bool] = False

    def tokens_per_frame(self, num_patches: int) -> int:
        """k, the tokens one frame of ``num_patches`` patches becomes."""
        raise NotImplementedError

    def reset_parameters(self) -> None:
        """Initialise the parameters that the connector holds itself; its parts initialise themselves."""

    def check_question(self, words: int, longest: int) -> None:
        """ConfigError where it cannot read questions of up to ``longest`` ids below ``words``."""

    def forward(self, features: Tensor, query_ids=None, query_mask=None, owner=None) -> Tensor:
        """features [V, P, Dv], query_ids and query_mask [B, Lq], owner [V] (row of each frame) -> [V, k, D]."""
        raise NotImplementedError


@dataclass
class MergerOptions:
    """Options of a released model's merger, which its tower gives."""

    merge: int = 2  # patches of a cell's side
    maps: int = 0  # d


def merger_options(fields: dict) -> MergerOptions:
    """``MergerOptions`` of a connector's ``fields``; ConfigError for others."""
    return build(MergerOptions, fields, WHERE)


@dataclass
class LinearOptions:
    """Options of ``linear``."""

    identity_init: bool = False  # start as a copy: feature i becomes dimension i, dimensions beyond Dv are 0
    init_scale: float = 1.0  # of that copy; small, what a head adds to a frame's token is not lost beside it


@CONNECTORS.register(name="linear")
class LinearConnector(Connector):
    """One linear map; every patch stays a token.

    It holds weight and bias itself: transformers would draw those of an ``nn.Linear`` anew when it sets a model up.
    """

    def __init__(self, fields: dict, vision_size: int, hidden_size: int):
        super().__init__()
        self.options = build(LinearOptions, fields, WHERE)
        if self.options.identity_init and hidden_size < vision_size:
            raise ConfigError(
                f"{WHERE}.identity_init: {vision_size} vision features do not fit into the language model's "
                f"{hidden_size} dimensions; set it to false"
            )
        self.weight = nn.Parameter(torch.empty(hidden_size, vision_size))
        self.bias = nn.Parameter(torch.empty(hidden_size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.bias)
        if self.options.identity_init:
            nn.init.eye_(self.weight)
            self.weight.data *= self.options.init_scale
        else:
            nn.init.xavier_uniform_(self.weight)

    def tokens_per_frame(self, num_patches: int) -> int:
        return num_patches

    def forward(self, features, query_ids=None, query_mask=None, owner=None) -> Tensor:
        return F.linear(features.to(self.weight.dtype), self.weight, self.bias)  # [V, P, D]


@dataclass
class MlpOptions:
    """Options of ``mlp``."""

    downsample: float = 0.5  # of the patch grid's side; 1/2, 1/3, ... or 1


@CONNECTORS.register(name="mlp")
class MlpConnector(Connector):
    """InternVL's projector: pixel shuffle, then LayerNorm - Linear - GELU - Linear.

    Official names: ``mlp1.0`` is ``layer_norm``, ``mlp1.1`` ``linear_1``, ``mlp1.3`` ``linear_2``.
    """

    def __init__(self, fields: dict, vision_size: int, hidden_size: int):
        super().__init__()
        downsample = build(MlpOptions, fields, WHERE).downsample
        self.block = round(1 / downsample) if 0 < downsample <= 1 else 0
        if not self.block or not math.isclose(self.block * downsample, 1, rel_tol=1e-3):
            raise ConfigError(f"{WHERE}.downsample: {downsample} is not 1/n for a whole number n, for example 0.5")
        width = vision_size * self.block**2
        self.layer_norm = nn.LayerNorm(width)
        self.linear_1 = nn.Linear(width, hidden_size)
        self.linear_2 = nn.Linear(hidden_size, hidden_size)

    def tokens_per_frame(self, num_patches: int) -> int:
        return shuffled_side(num_patches, self.block) ** 2

    def forward(self, features, query_ids=None, query_mask=None, owner=None) -> Tensor:
        merged = pixel_shuffle(features.to(self.layer_norm.weight.dtype), self.block)  # [V, k, block^2 * Dv]
        return self.linear_2(F.gelu(self.linear_1(self.layer_norm(merged))))  # [V, k, D]


def pixel_shuffle(features: Tensor, block: int) -> Tensor:
    """Each ``block`` x ``block`` square of the patch grid becomes one vector, row by row. InternVL's "v2".

    [V, g * g, C] -> [V, (g / block)^2, block^2 * C]. Raises ValueError as ``shuffled_side``.
    """
    frames, patches, width = features.shape
    side = shuffled_side(patches, block)
    grid = features.reshape(frames, side, block, side, block, width)
    return grid.transpose(2, 3).reshape(frames, side * side, block * block * width)


def shuffled_side(num_patches: int, block: int) -> int:
    """Side of the patch grid after the shuffle. Raises ValueError unless it is square and ``block`` divides it."""
    side = math.isqrt(num_patches)
    if side * side != num_patches or side % block:
        raise ValueError(
            f"{num_patches} patches a frame are not a square grid whose side {block} divides: "
            f"choose another {WHERE}.downsample or model.vision.image_size"
        )
    return side // block


@CONNECTORS.register(name="qformer")
class QFormerConnector(Connector):
    """E.T. Chat's frame compressor: one token a frame, chosen with the question in sight.

    The formulas: published_systems.md#d2vlm-vision.

    With X the raw features: Z = Q-Former(queries, question; cross-attention on LN(X)), U = Linear(Z),
    A = softmax(q(U) k(X)^T / sqrt(Dv)), token = v(mean over the queries of (A X + U)); q, k, v = LayerNorm + Linear.

    Official names (prefix ``model.``): ``qformer_query`` is ``query_tokens``, ``qformer_ln`` ``cross_norm``,
    ``qformer_bert.bert`` ``qformer``, ``qformer_proj`` ``state_proj``, ``qformer_{q,k,v}_proj``
    ``{attend_query,attend_key,token_proj}``. Fields: those of ``InstructBlipQFormerConfig``, and ``num_query_tokens``.
    """

    reads_question = shares_frames = True

    def __init__(self, fields: dict, vision_size: int, hidden_size: int):
        super().__init__()
        fields = {"num_query_tokens": 32, "encoder_hidden_size": vision_size, **fields}
        num_queries = fields.pop("num_query_tokens")
        if type(num_queries) is not int or num_queries < 1:
            raise ConfigError(f"{WHERE}.num_query_tokens: expected a whole number above 0, got {num_queries!r}")
        if fields["encoder_hidden_size"] != vision_size:
            raise ConfigError(
                f"{WHERE}.encoder_hidden_size: {fields['encoder_hidden_size']!r}, but the vision tower's features are "
                f"{vision_size} wide; leave the key out"
            )
        config = build_config(InstructBlipQFormerConfig, fields, WHERE)
        self.query_tokens = nn.Parameter(torch.empty(1, num_queries, config.hidden_size))
        self.cross_norm = nn.LayerNorm(vision_size)
        self.qformer = InstructBlipQFormerModel(config)
        self.state_proj = nn.Linear(config.hidden_size, vision_size)
        self.attend_query = nn.Sequential(nn.LayerNorm(vision_size), nn.Linear(vision_size, vision_size))
        self.attend_key = nn.Sequential(nn.LayerNorm(vision_size), nn.Linear(vision_size, vision_size))
        self.token_proj = nn.Sequential(nn.LayerNorm(vision_size), nn.Linear(vision_size, hidden_size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.query_tokens, std=self.qformer.config.initializer_range)

    def tokens_per_frame(self, num_patches: int) -> int:
        return 1

    def check_question(self, words: int, longest: int) -> None:
        for key, needed in (("vocab_size", words), ("max_position_embeddings", longest)):
            given, what = getattr(self.qformer.config, key), "its tokenizer's size or the longest question's"
            need(given >= needed, f"{WHERE}.{key}: {given}, but questions need at least {needed} ({what})")

    def forward(self, features, query_ids=None, query_mask=None, owner=None, source=None) -> Tensor:
        """As ``Connector.forward``; without ``owner`` the text has one row a frame.

        Raises:
            ValueError: no text, text and mask or text and frames that do not fit, or a text too long for the Q-Former.
        """
        owner = self.check_text(features if source is None else source, query_ids, query_mask, owner)
        features = features.to(self.query_tokens.dtype)
        if not len(features):  # a batch of text only; transformers' attention cannot reshape nothing
            return features.new_zeros(0, 1, self.token_proj[1].out_features)
        source = torch.arange(len(features), device=owner.device) if source is None else source
        states = self.question_states(features, query_ids, query_mask, owner, source)  # [V, Q, h]
        queries = self.state_proj(states)  # [V, Q, Dv]
        norm, linear = self.attend_key
        with self.patches([linear], norm, features, source) as patches:
            keys = linear(patches)
        # The scale is 1 / sqrt(Dv), and the values are the raw features.
        seen = F.scaled_dot_product_attention(self.attend_query(queries), keys, features.index_select(0, source))
        return self.token_proj((seen + queries).mean(1, keepdim=True))  # [V, 1, D]

    def question_states(
        self, features: Tensor, query_ids: Tensor, query_mask: Tensor, owner: Tensor, source: Tensor
    ) -> Tensor:
        """Z: the Q-Former's states of the query tokens. [U, P, Dv], [B, Lq], [B, Lq], [V], [V] -> [V, Q, h].

        The model's own ``forward``, but for the embeddings, which are made once a question and not once a frame, and
        for what reads patches.
        """
        embed, queries = self.qformer.embeddings, self.query_tokens.expand(len(query_ids), -1, -1)  # [B, Q, h]
        places = embed.position_ids[:, : query_ids.shape[1]]
        words = embed.word_embeddings(query_ids) + embed.position_embeddings(places)  # [B, Lq, h]
        embeds = embed.dropout(embed.layernorm(torch.cat([queries, words], 1))[owner])  # [V, Q + Lq, h]
        hidden = torch.cat([query_mask.new_zeros(queries.shape[:2]), 1 - query_mask], 1)[owner]  # [V, Q + Lq]
        # Made here: transformers waits for the device to see whether anything is masked.
        mask = (hidden * torch.finfo(embeds.dtype).min).to(embeds.dtype)[:, None, None]  # [V, 1, 1, Q + Lq]
        with self.patches(self.readers(), self.cross_norm, features, source) as patches:
            output = self.qformer.encoder(
                embeds, attention_mask=mask, encoder_hidden_states=patches, query_length=queries.shape[1]
            )
        return output.last_hidden_state[:, : queries.shape[1]]

    def readers(self) -> list[nn.Module]:
        """The layers of the Q-Former that make keys and values of patches."""
        crossing = [layer.crossattention.attention for layer in self.qformer.encoder.layer if layer.has_cross_attention]
        return [reader for attention in crossing for reader in (attention.key, attention.value)]

    def plain(self) -> bool:
        """Whether layers are to run as they are.

        Under ZeRO-3 a parameter is whole in its own module's call only, under checkpointing the pass is computed again
        later, and an adapter stands in a layer's place.
        """
        again = self.training and any(layer.gradient_checkpointing for layer in self.qformer.encoder.layer)
        return again or is_deepspeed_zero3_enabled() or any(type(m) is not nn.Linear for m in self.readers())

    @contextmanager
    def patches(
        self, readers: Sequence[nn.Module], norm: nn.LayerNorm, features: Tensor, source: Tensor
    ) -> Iterator[Tensor]:
        """What to give ``readers``, [V, P, ...], that they read ``norm(features)``, [U, P, Dv], for ``source`` [V].

        While it lasts they read it once a frame, and not once a question. And they take up the norm's scale and shift,
        which comes to the same: what is left has no parameters, so where the tower is frozen nothing goes back through
        these layers to it, a third of their work.
        """
        if self.plain():
            yield norm(features.index_select(0, source))
            return
        normed = F.layer_norm(features, norm.normalized_shape, eps=norm.eps)

        def read(linear: nn.Linear, _number: Tensor) -> Tensor:
            weight, bias = linear.weight * norm.weight, linear.bias + linear.weight @ norm.bias
            return F.linear(normed, weight, bias).index_select(0, source)  # [V, P, h]

        for reader in readers:
            reader.forward = partial(read, reader)
        try:
            yield features.new_empty(len(source), features.shape[1], 0)  # of which only the number of rows counts
        finally:
            for reader in readers:
                del reader.forward  # that of its class stands behind it

    def check_text(
        self, features: Tensor, query_ids: Tensor | None, query_mask: Tensor | None, owner: Tensor | None
    ) -> Tensor:
        """``owner``, or without one as many rows as frames. [V]."""
        if query_ids is None or query_mask is None:
            raise ValueError("the qformer connector reads the question: pass query_ids and query_mask, [B, Lq] each")
        longest = self.qformer.config.max_position_embeddings
        if query_ids.shape != query_mask.shape or query_ids.ndim != 2 or query_ids.shape[1] > longest:
            raise ValueError(
                f"query_ids {list(query_ids.shape)} and query_mask {list(query_mask.shape)} must both be [B, Lq] with "
                f"Lq <= {longest}; truncate the question (E.T. Chat: to 256 tokens, from the left)"
            )
        rows = len(query_ids) if owner is None else len(owner)
        if rows != len(features):
            name = "query_ids" if owner is None else "owner"
            frames = len(features)
            raise ValueError(f"{name} has {rows} rows for {frames} frames; pass owner [V], the row of each frame")
        return torch.arange(rows, device=features.device) if owner is None else owner
