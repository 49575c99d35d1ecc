"""The interface every temporal head implements, and the registry that finds a head by its name.

A head decides how frames stand in the prompt, how spans are written, what embeds in their place, and how the hidden
state before a span token becomes ``[start, end]`` seconds. It sees the types of this room only: no files, no tokenizer
state, no trainer. A head named ``foo`` lives in a package ``foo`` whose import registers it, so that a new head is one
new folder and one config (docs/heads.md).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from videollm.common.answers import span_text
from videollm.common.config import ConfigError, build, need, unknown
from videollm.common.registry import new_registry, registered
from videollm.data.conversation import FrameSlot, Part, SpanMark, Turn
from videollm.heads.types import Answer, FrameBatch, Prediction, SpanRefs

HEADS = new_registry("heads")
NO_DRAW = "does not say how likely a span is; give it draw and draw_log_prob (docs/heads.md)"
COMPATIBILITY = ("default", "published")


@dataclass
class HeadOptions:
    """Options of a head without any; a head with options names its own dataclass as ``Options``."""


class TemporalHead(nn.Module):
    """Turns span tokens into seconds and back. Subclass, register with ``HEADS.register(name=...)``, override.

    Layers count as in ``FrameBatch.states``. ``query_layer`` is the layer whose state *before* a span token is its
    query; ``frame_layers`` are the layers whose frame states ``predict`` and ``loss`` read; ``inject_layer`` is the
    layer whose frame states ``embed`` reads for answer spans, or None if it reads none (then no prefix pass is made).
    """

    Options: ClassVar[type] = HeadOptions
    wording: ClassVar[str] = "plain"  # of a benchmark's questions: which system's, where they are published
    published: ClassVar[dict] = {}  # config values under which all is as in the published system (presets.py)
    span_tokens: ClassVar[tuple[str, ...]] = ()  # empty: times are written as text
    extra_tokens: ClassVar[tuple[str, ...]] = ()
    query_layer: int = -1
    frame_layers: tuple[int, ...] = ()
    inject_layer: int | None = None

    def __init__(self, options: HeadOptions, hidden_size: int):
        super().__init__()
        self.options = options
        self.hidden_size = hidden_size

    def reset_parameters(self) -> None:
        """Initialise the head's own parameters; called when a model is made without a checkpoint of this head."""

    @classmethod
    def wording_with(cls, options: Mapping[str, Any]) -> str:
        """``wording`` of a model whose head has these ``options``, those of its config."""
        return cls.wording

    # ---- wording -------------------------------------------------------------------------------------------------

    def layout(self, num_frames: int) -> list[Part]:
        """How a video's frames stand in the prompt; by default one after the other, nothing between them."""
        return [FrameSlot(i) for i in range(num_frames)]

    def compose(self, turns: Sequence[Turn], spans_s: Sequence[Sequence[float]], duration_s: float) -> list[Turn]:
        """Neutral turns -> turns in this head's wording: every ``SpanMark`` becomes text or ``SpanSlot`` parts."""
        raise NotImplementedError

    def read(
        self, token_ids: list[int], prediction: Prediction | None, tokenizer: PreTrainedTokenizerBase, duration_s: float
    ) -> Answer:
        """Generated ids (stop token removed) -> answer. ``prediction`` holds one row per span token, in order.

        Span tokens are recognised by id and position, never by their spelling in the decoded text.
        """
        span_ids = set(tokenizer.convert_tokens_to_ids(list(self.span_tokens)))
        start = self.answer_start(token_ids, tokenizer)
        texts, piece = [], []
        answer, evidence, scores, k = [], [], [], 0
        for place, token in enumerate(token_ids):
            if token not in span_ids:
                if place >= start:
                    piece.append(token)
                continue
            seconds = prediction.seconds[k].tolist()
            if place >= start:
                texts += [tokenizer.decode(piece, skip_special_tokens=True), span_text(*seconds)]
                answer.append(seconds)
                scores.append(prediction.score[k].item())
                piece = []
            else:
                evidence.append(seconds)
            k += 1
        texts.append(tokenizer.decode(piece, skip_special_tokens=True))
        text = " ".join(t.strip() for t in texts if t.strip())
        return Answer(text, tokenizer.decode(token_ids), answer, evidence, scores)

    def read_so_far(
        self, token_ids: list[int], prediction: Prediction | None, tokenizer: PreTrainedTokenizerBase, duration_s: float
    ) -> Answer:
        """As ``read``, of an answer that goes on: without the end of its text that further tokens may change."""
        return self.read(token_ids, prediction, tokenizer, duration_s)

    def answer_start(self, token_ids: list[int], tokenizer: PreTrainedTokenizerBase) -> int:
        """Index of the first token of the answer proper; a head with an evidence stage overrides it."""
        return 0

    # ---- embeddings ----------------------------------------------------------------------------------------------

    def embed(self, token_embeds: Tensor, refs: SpanRefs, frames: FrameBatch) -> Tensor:
        """What the tokens at ``refs`` (QUESTION, EVIDENCE, ANSWER, FRAME; N >= 0) look like. [N, D] -> [N, D]."""
        return token_embeds

    def embed_predicted(
        self, token_embeds: Tensor, prediction: Prediction, owner: Tensor, frames: FrameBatch
    ) -> Tensor:
        """Generation: what a just produced span token looks like at the next step, from ``prediction.raw``. [N, D]."""
        return token_embeds

    # ---- time ----------------------------------------------------------------------------------------------------

    def predict(self, queries: Tensor, owner: Tensor, frames: FrameBatch) -> Prediction:
        """Query states [N, D] of rows ``owner`` [N] -> seconds, score, raw."""
        raise NotImplementedError

    def counts(self, refs: SpanRefs) -> dict[str, Tensor]:
        """What the core divides each loss term by, after summing over ranks and accumulation steps. Scalars."""
        return {}

    def loss(self, queries: Tensor, refs: SpanRefs, frames: FrameBatch) -> dict[str, Tensor]:
        """Weighted sums of each loss term, same keys as ``counts``; attached to the graph even for N = 0."""
        return {}

    def log_prob(self, queries: Tensor, refs: SpanRefs, frames: FrameBatch) -> Tensor:
        """Log-probability of the true times, one a span [N], for preference training."""
        raise NotImplementedError

    def draw(
        self, queries: Tensor, owner: Tensor, frames: FrameBatch, temperature: float, noise: Callable[[int], Tensor]
    ) -> Prediction:
        """A span drawn from the head's own distribution, where ``predict`` gives its best one.

        ``noise(n)`` is fresh standard Gumbel noise [N, n] float64: the highest of scores + noise is drawn from their
        softmax. ``raw`` says all of what was drawn; ``temperature`` divides scores, 1 leaves them as they are.
        """
        raise NotImplementedError

    def draw_log_prob(
        self, queries: Tensor, raw: Tensor, owner: Tensor, frames: FrameBatch, temperature: float
    ) -> Tensor:
        """The exact log-probability with which ``draw`` gives ``raw`` [N, 2]. [N] float32, on the graph."""
        raise NotImplementedError

    def draw_entropy(
        self, queries: Tensor, raw: Tensor, owner: Tensor, frames: FrameBatch, temperature: float
    ) -> Tensor:
        """Entropy of what ``draw`` draws from, in nats. [N] float32. Here as the drawn ``raw`` tell it, in the mean."""
        return -self.draw_log_prob(queries, raw, owner, frames, temperature)

    @property
    def draws(self) -> bool:
        """Whether spans can be drawn: the head does it, or has no span tokens, its times being words."""
        return not self.span_tokens or type(self).draw is not TemporalHead.draw


def replace_marks(turn: Turn, slot) -> Turn:
    """``turn`` with every ``SpanMark`` replaced by ``slot(mark)``."""
    return Turn(turn.role, tuple(slot(p) if isinstance(p, SpanMark) else p for p in turn.parts))


def head_class(name: str) -> type[TemporalHead]:
    """The head class registered as ``name``; imports the package of that name if it is not registered yet.

    Raises:
        ConfigError: there is no such head.
    """
    return registered(HEADS, name, "model.head.name")


def build_head(config: dict, hidden_size: int) -> TemporalHead:
    """Make the head that ``config`` (``name`` and the head's options) describes.

    ``compatibility: published`` among them sets every flag that the class lists as published and ``config`` does not
    give; a flag that is null is not given.

    Raises:
        ConfigError: unknown head or option.
    """
    options = dict(config)
    if "name" not in options:
        raise ConfigError("model.head.name is missing: name a head (docs/heads.md)")
    cls = head_class(options.pop("name"))
    flags = cls.published.get("model", {}).get("head", {})
    preset = options.pop("compatibility", "default")
    need(preset in COMPATIBILITY, unknown("model.head.compatibility", preset, COMPATIBILITY))
    options = {key: value for key, value in options.items() if value is not None or key not in flags}
    if preset == "published":
        options = flags | options
    return cls(build(cls.Options, options, "model.head"), hidden_size)
