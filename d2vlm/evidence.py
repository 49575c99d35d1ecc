"""The evidence head of D2VLM (ICCV 2025): an ``<evi>`` token points at the frames that show an event.

In: the hidden state before each ``<evi>`` and one state per frame. Out: their similarities, the best run of frames as
seconds, the losses of the true spans, and the embedding of ``<evi>``: its word embedding plus the mean state of the
frames it stands for. An answer grounds first (``<evi>`` per event, then ``</evi>``) and names the events again in its
text. Frame indices live only in here and in ``FrameBatch``; it knows no video, no tokenizer state and no trainer.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from transformers import PreTrainedTokenizerBase

from d2vlm.runs import NEVER, best_run, frame_position, mean_over_run, ordered, run_entropy, run_seconds, run_weights
from videollm.common.config import ConfigError
from videollm.heads import (
    HEADS,
    Answer,
    FrameBatch,
    Prediction,
    Role,
    SpanMark,
    SpanRefs,
    SpanSlot,
    TemporalHead,
    Token,
    Turn,
    replace_marks,
    span_marks,
)

EVIDENCE, EVIDENCE_END = "<evi>", "</evi>"
LACKING = (
    "evidence head: a span needs frame features that FrameBatch lacks (embeds for questions, states[inject_layer] for "
    "answers)"
)


@dataclass
class EvidenceOptions:
    """Options of the evidence head. The last are flags: where published code has a surprise, the default has not."""

    alpha: float = 2.0  # target of a frame is alpha^-distance to the span, in frames
    inject_layer: int = 6  # layer whose frame states are added to an answer's <evi>
    query_layer: int = -2  # layer of the query states and of the frame states they are compared with
    grounding_weight: float = 10.0  # weight of the soft-target BCE
    consistency_weight: float = 10.0  # weight of the L1 between the two <evi> of an event
    init_gain: float = 1.0  # factor on the projections' starting weights; published: torch's own start, hence 1
    likelihood: Literal["mixture", "bernoulli"] = "mixture"  # of a span, for preference training; published: mixture
    keep_ratio: float = 0.6  # frames with at least this share of the highest similarity form the runs
    run_edges: Literal["half_gap", "frame_times"] = "half_gap"  # a run lasts half a frame gap more at each side, or not
    raw_targets: bool = False  # published: loss targets of reversed or outside spans are used as they are

    def __post_init__(self):
        if self.alpha <= 1:
            raise ConfigError(f"model.head.alpha: must be above 1, got {self.alpha}")
        if not 0 < self.keep_ratio <= 1:
            raise ConfigError(f"model.head.keep_ratio: must be in (0, 1], got {self.keep_ratio}")
        if not 0 < self.init_gain < math.inf:
            raise ConfigError(f"model.head.init_gain: must be a number above 0, got {self.init_gain}")


@HEADS.register(name="d2vlm")
class EvidenceHead(TemporalHead):
    """Similarity of the query state with every frame's state (published_systems.md#d2vlm-evidence-head)."""

    Options = EvidenceOptions
    wording = "d2vlm"
    published = {  # noqa: RUF012 - as the base class declares it
        "model": {"head": {"run_edges": "frame_times", "raw_targets": True}},
        "data": {"raw_spans": True},
    }
    span_tokens = (EVIDENCE,)
    extra_tokens = (EVIDENCE_END,)

    def __init__(self, options: EvidenceOptions, hidden_size: int):
        super().__init__(options, hidden_size)
        self.query_layer = options.query_layer
        self.frame_layers = (options.query_layer,)
        self.inject_layer = options.inject_layer
        self.frm_head = projection(hidden_size)
        self.evi_head = projection(hidden_size)

    def reset_parameters(self) -> None:
        """Torch's own initialisation of LayerNorm and Linear, as published; times ``init_gain`` for the weights."""
        for module in (*self.frm_head, *self.evi_head):
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
            if isinstance(module, nn.Linear):
                module.weight.data *= self.options.init_gain

    # ---- wording -------------------------------------------------------------------------------------------------

    def compose(self, turns: Sequence[Turn], spans_s: Sequence[Sequence[float]], duration_s: float) -> list[Turn]:
        """An answer with n marks becomes n ``<evi>``, ``</evi>``, and itself with an ``<evi>`` per mark."""
        return [composed(turn) for turn in turns]

    def read_so_far(
        self, token_ids: list[int], prediction: Prediction | None, tokenizer: PreTrainedTokenizerBase, duration_s: float
    ) -> Answer:
        """As ``read``; what begins with ``<evi>`` has evidence alone up to ``</evi>``."""
        answer = self.read(token_ids, prediction, tokenizer, duration_s)
        if token_ids[:1] == [tokenizer.convert_tokens_to_ids(EVIDENCE)] and not self.answer_start(token_ids, tokenizer):
            return Answer("", answer.raw_text, [], answer.spans)
        return answer

    def answer_start(self, token_ids: list[int], tokenizer: PreTrainedTokenizerBase) -> int:
        """Index after the last ``</evi>``; 0 if there is none."""
        end = tokenizer.convert_tokens_to_ids(EVIDENCE_END)
        return max((i + 1 for i, token in enumerate(token_ids) if token == end), default=0)

    # ---- embeddings ----------------------------------------------------------------------------------------------

    def embed(self, token_embeds: Tensor, refs: SpanRefs, frames: FrameBatch) -> Tensor:
        """Word embedding plus the mean over the span's frames: connector output for questions, else layer states.

        Raises:
            RuntimeError: ``frames`` lacks the features that a span in ``refs`` needs.
        """
        if not len(refs):
            return token_embeds
        run = ordered(frames.seconds_to_frames(refs.seconds, refs.owner))  # [N, 2]
        asked = refs.role == Role.QUESTION
        sources = ((frames.embeds, asked), (frames.states.get(self.inject_layer), ~asked))
        result = token_embeds
        for states, wanted in sources:
            if states is not None:
                mean = mean_over_run(states, run, refs.owner, frames.mask)  # [N, D]
                result = result + torch.where(wanted.unsqueeze(-1), mean, 0).to(result.dtype)
            else:  # found out on the device, for which the host does not wait
                torch._assert_async(~wanted.any(), LACKING)
        return result

    def embed_predicted(
        self, token_embeds: Tensor, prediction: Prediction, owner: Tensor, frames: FrameBatch
    ) -> Tensor:
        """Word embedding plus the mean state of the predicted run of frames (``prediction.raw``)."""
        states = frames.once("injected", lambda: frames.states[self.inject_layer].float())
        mean = mean_over_run(states, prediction.raw, owner, frames.mask)
        return token_embeds + mean.to(token_embeds.dtype)

    # ---- time ----------------------------------------------------------------------------------------------------

    def predict(self, queries: Tensor, owner: Tensor, frames: FrameBatch) -> Prediction:
        """Best run of frames; its mean similarity is the score, its first and last frame are ``raw``."""
        similarity = self.similarity(queries, owner, frames).sigmoid()  # [N, F]
        run, score = best_run(similarity, frames.mask[owner], self.options.keep_ratio)
        return Prediction(run_seconds(run, owner, frames, self.options.run_edges), score, run)

    def similarity(self, queries: Tensor, owner: Tensor, frames: FrameBatch) -> Tensor:
        """Similarity logits <evi_head(query), frm_head(frame)> / sqrt(D) in float32. [N, D] -> [N, F]."""
        return self.compare(project(self.evi_head, queries), owner, frames)

    def compare(self, evidence: Tensor, owner: Tensor, frames: FrameBatch) -> Tensor:
        """``similarity`` of already projected queries. [N, D] -> [N, F]."""
        keys = frames.once("keys", lambda: project(self.frm_head, frames.states[self.query_layer]).float())  # [B, F, D]
        with torch.autocast(evidence.device.type, enabled=False):
            # Against every row's frames, then each query's own row: no [N, F, D] copy of the keys.
            logits = evidence.float() @ keys.flatten(0, 1).mT  # [N, B * F]
        rows = logits.unflatten(-1, keys.shape[:2])  # [N, B, F]
        return rows.gather(1, owner[:, None, None].expand(-1, 1, keys.shape[1]))[:, 0] / self.hidden_size**0.5

    def targets(self, refs: SpanRefs, frames: FrameBatch, rounded: bool) -> Tensor:
        """alpha^-distance of every frame to the span, in frames. [N, F], float32.

        By default the span is ordered and inside the video; ``raw_targets`` leaves it as it is, so that a reversed
        span has two separate peaks and one outside the video has none (docs/d2vlm.md, surprise 3).
        """
        frame = torch.arange(frames.mask.shape[1], device=refs.seconds.device)  # [F]
        if rounded and not self.options.raw_targets:
            ends = frames.seconds_to_frames(refs.seconds, refs.owner)  # [N, 2]
        else:
            ends = frame_position(refs.seconds, refs.owner, frames)
            ends = ends.round() if rounded else ends
        if not self.options.raw_targets:
            last = frames.mask[refs.owner].sum(-1, keepdim=True) - 1  # [N, 1]
            ends = ordered(torch.minimum(ends.clamp(min=0), last))
        start, end = ends.unsqueeze(-1).unbind(1)  # [N, 1] each
        distance = torch.minimum((frame - start).abs(), (frame - end).abs()).float()  # [N, F]
        inside = (frame >= start) & (frame <= end)
        return self.options.alpha ** -distance.masked_fill(inside, 0)

    def counts(self, refs: SpanRefs) -> dict[str, Tensor]:
        """Number of samples that ground anything, for both terms."""
        samples = (per_sample(grounds(refs), refs) > 0).sum().float()
        return {"grounding": samples, "consistency": samples}

    def loss(self, queries: Tensor, refs: SpanRefs, frames: FrameBatch) -> dict[str, Tensor]:
        """Sums over samples of the mean BCE over rows and frames, and of the mean L1 within events."""
        # No early return for N = 0: ZeRO-2 fills its buffer in the order in which gradients come, on every rank.
        evidence = project(self.evi_head, queries)  # [N, D]
        mask = frames.mask[refs.owner]  # [N, F]
        logits = self.compare(evidence, refs.owner, frames)
        element = binary_cross_entropy_with_logits(logits, self.targets(refs, frames, rounded=True), reduction="none")
        row = torch.where(mask, element, 0).sum(-1) / mask.sum(-1).clamp(min=1)  # [N]
        partner, paired = pair_events(refs)
        gap = (evidence - evidence[partner]).float().abs().mean(-1)  # [N]
        return {
            "grounding": self.options.grounding_weight * sum_of_means(row, grounds(refs), refs),
            "consistency": self.options.consistency_weight * sum_of_means(gap, paired, refs),
        }

    def log_prob(self, queries: Tensor, refs: SpanRefs, frames: FrameBatch) -> Tensor:
        """Log-likelihood of the target y, summed over frames; 0 for question spans. [N].

        Of a mixture y s + (1 - y)(1 - s) as published, whose best s for a soft y is 0 or 1; or of
        a Bernoulli variable, y log s + (1 - y) log(1 - s), whose best s is y.
        """
        logits, target = self.similarity(queries, refs.owner, frames), self.targets(refs, frames, rounded=False)
        if self.options.likelihood == "bernoulli":
            element = -binary_cross_entropy_with_logits(logits, target, reduction="none")  # [N, F]
        else:
            similarity = logits.sigmoid()
            element = (target * similarity + (1 - target) * (1 - similarity) + 1e-10).log()
        return torch.where(frames.mask[refs.owner], element, 0).sum(-1) * grounds(refs)

    # ---- drawing ---------------------------------------------------------------------------------------------------

    def draw(
        self, queries: Tensor, owner: Tensor, frames: FrameBatch, temperature: float, noise: Callable[[int], Tensor]
    ) -> Prediction:
        """One of all runs of frames, p ~ exp(sum of the run's logits / temperature): its start, then its end.

        ``raw`` is its first and last frame, the score as of ``predict``.
        """
        logits, mask = self.similarity(queries, owner, frames), frames.mask[owner]  # [N, F]
        starts, ends, begin = run_weights(logits, mask, temperature)
        frame = torch.arange(mask.shape[1], device=mask.device)
        first = (begin + noise(len(frame))).argmax(-1, keepdim=True)  # [N, 1]
        behind = ends.masked_fill(frame < first, NEVER)
        last = (behind + noise(len(frame))).argmax(-1, keepdim=True)
        run = torch.cat([first, last], -1)
        inside = (frame >= first) & (frame <= last)
        score = torch.where(inside, logits.sigmoid(), 0).sum(-1) / inside.sum(-1)
        return Prediction(run_seconds(run, owner, frames, self.options.run_edges), score, run)

    def draw_log_prob(
        self, queries: Tensor, raw: Tensor, owner: Tensor, frames: FrameBatch, temperature: float
    ) -> Tensor:
        """Log-probability of the runs ``raw`` among all runs of frames. [N]."""
        starts, ends, begin = run_weights(self.similarity(queries, owner, frames), frames.mask[owner], temperature)
        first, last = raw.long().unbind(-1)
        chosen = starts.gather(1, first[:, None]) + ends.gather(1, last[:, None])  # [N, 1]
        return (chosen.squeeze(-1) - begin.logsumexp(-1)).float()

    def draw_entropy(
        self, queries: Tensor, raw: Tensor, owner: Tensor, frames: FrameBatch, temperature: float
    ) -> Tensor:
        """Exactly, over all runs of frames. [N]."""
        return run_entropy(self.similarity(queries, owner, frames), frames.mask[owner], temperature).float()


# ---- wording ---------------------------------------------------------------------------------------------------------


def question_slot(mark) -> SpanSlot:
    """An ``<evi>`` in a question or system turn."""
    return SpanSlot(EVIDENCE, Role.QUESTION, mark.span)


def composed(turn: Turn) -> Turn:
    """One turn with its tokens: to the letter where it is known."""
    if turn.written is not None:
        return compose_written(turn)
    return compose_answer(turn) if turn.role == "assistant" else replace_marks(turn, question_slot)


def compose_written(turn: Turn) -> Turn:
    """A turn to the letter: of an answer's two marks of an event the first grounds, the second answers."""
    if turn.role != "assistant":
        return replace_marks(Turn(turn.role, turn.written), question_slot)
    grounded = set()

    def slot(mark: SpanMark) -> SpanSlot:
        role = Role.ANSWER if mark.span in grounded else Role.EVIDENCE
        grounded.add(mark.span)
        return SpanSlot(EVIDENCE, role, mark.span)

    return replace_marks(Turn(turn.role, turn.written), slot)


def compose_answer(turn: Turn) -> Turn:
    """One assistant turn: evidence stage, ``</evi>``, a blank, answer; adjacent marks have nothing between them."""
    stage = [SpanSlot(EVIDENCE, Role.EVIDENCE, m.span) for m in span_marks(turn)]
    answer = replace_marks(turn, lambda m: SpanSlot(EVIDENCE, Role.ANSWER, m.span))
    return Turn(turn.role, (*stage, Token(EVIDENCE_END), " ", *answer.parts))


# ---- projections -----------------------------------------------------------------------------------------------------


def projection(width: int) -> nn.Sequential:
    """LayerNorm, Linear, GELU, Linear, in the published order (names 0, 1, 3)."""
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width // 2), nn.GELU(), nn.Linear(width // 2, width))


def project(head: nn.Sequential, states: Tensor) -> Tensor:
    """``head(states)`` in the head's own precision, which may differ from the language model's."""
    return head(states.to(head[0].weight.dtype))


# ---- sums over samples -----------------------------------------------------------------------------------------------


def grounds(refs: SpanRefs) -> Tensor:
    """1.0 for evidence and answer spans, 0.0 for question spans. [N]."""
    return ((refs.role == Role.EVIDENCE) | (refs.role == Role.ANSWER)).float()


def per_sample(values: Tensor, refs: SpanRefs) -> Tensor:
    """Sum of ``values`` [N] within each sample. [S]."""
    return values.new_zeros(refs.num_samples).index_add(0, refs.sample, values)


def sum_of_means(values: Tensor, weight: Tensor, refs: SpanRefs) -> Tensor:
    """Sum over samples of the mean of ``values`` [N] over the sample's rows of ``weight`` 1. Scalar."""
    rows = per_sample(weight, refs).clamp(min=1)  # [S]
    return (values * weight / rows[refs.sample]).sum()


def pair_events(refs: SpanRefs) -> tuple[Tensor, Tensor]:
    """For every EVIDENCE place the ANSWER place of its event (in order, should an event occur twice in a sample).

    Returns:
        Partner's index [N] int64 (of no meaning where there is none), and 1.0 where there is one [N].
    """
    if not len(refs):
        return refs.index, refs.seconds.new_zeros(0)
    same = (refs.sample == refs.sample[:, None]) & (refs.span == refs.span[:, None])  # [N, N]
    rank = (same & (refs.role == refs.role[:, None])).tril(-1).sum(-1)  # [N]
    match = same & (rank == rank[:, None]) & (refs.role[:, None] == Role.EVIDENCE) & (refs.role == Role.ANSWER)
    return match.int().argmax(-1), match.any(-1).float()
