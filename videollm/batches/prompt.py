"""From a conversation to token ids: template, the head's wording, and where frames and spans stand.

In goes a neutral conversation with its spans and what there is to see of its visuals; out comes a ``Prompt``: ids,
which of them are supervised, the place of every visual token and span token, and positions where they are not a count.
Literal text is tokenised so that it can never become a special token, whatever a user writes. It opens no video and
runs no network.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from videollm.batches.templates import Template, VisualTokenSettings
from videollm.common.config import ConfigError, need
from videollm.data.conversation import FrameSlot, FrameTimeSlot, Part, Role, SpanSlot, Token, Turn, VisualMark
from videollm.heads import TemporalHead
from videollm.video.patching import Grid, Patching, Run


@dataclass
class VisualTokens(VisualTokenSettings):
    """The same, once the model is known."""

    per_frame: int = 1  # how often ``token`` stands for one frame; with frames of any size, for the smallest one


class Visual(NamedTuple):
    """A video or an image, as far as a prompt has to know it: F frames or tiles (or groups of frames)."""

    kind: str  # video, image
    count: int  # F
    times_s: Sequence[float] = ()  # [F]; empty: not known
    grids: Sequence[Grid] = ()  # [F] patches of each; empty: all alike, or not known
    starts_s: Sequence[float] = ()  # [F] of groups


@dataclass(frozen=True)
class GroupSlot(FrameSlot):
    """A frame whose place among the others and size are known: of one video, or of one image."""

    token: str = ""
    grid: Grid | None = None
    start_s: float = 0.0


@dataclass
class Ref:
    """Place of one span token or frame-time token in a prompt."""

    position: int
    role: Role
    span: int = -1
    frame: int = -1


@dataclass
class Prompt:
    """One tokenised conversation of L tokens.

    Other conversations about the same visuals may share the first ``prefix_length`` tokens: by default those up to
    the last visual token, which ask nothing.
    """

    ids: list[int] = field(default_factory=list)
    supervised: list[bool] = field(default_factory=list)
    block: list[int] = field(default_factory=list)  # run of adjacent visual tokens, -1 elsewhere
    visual: list[int] = field(default_factory=list)  # positions of the visual tokens, in order
    refs: list[Ref] = field(default_factory=list)
    prefix_length: int = 0
    position: np.ndarray | None = None  # [3, L] int64 on the axes time, row and column; None: tokens are counted

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def answer_end(self) -> int:
        """Place of the last answer's stop token."""
        return max(i for i, supervised in enumerate(self.supervised) if supervised)

    @property
    def answer_start(self) -> int:
        """Place of the last answer's first token."""
        asked = (i for i, supervised in enumerate(self.supervised[: self.answer_end]) if not supervised)
        return max(asked, default=-1) + 1


class PromptEncoder:
    """Turns conversations into prompts for one tokenizer, template, head and visual layout.

    ``patching``: of a tower that takes frames of any size.

    Raises:
        ConfigError: at construction, if the tokenizer lacks a token that the template or the head needs, or a layout
            gives the frames no time.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, template: Template, head: TemporalHead, visual: VisualTokens,
        patching: Patching | None = None,
    ):  # fmt: skip
        self.tokenizer, self.template, self.head, self.visual = tokenizer, template, head, visual
        self.patching = patching
        if patching is not None and patching.per_second is None:
            told = visual.start and visual.end and "{time" in visual.before
            need(
                told, "model.visual_tokens: this vision tower has no axis of time, so that every group of frames needs "
                'start, end and text before it; set before: "<{time:.1f} seconds>"'
            )  # fmt: skip
        self.special = {t.content: (i, t) for i, t in tokenizer.added_tokens_decoder.items() if t.special}
        names = sorted(self.special, key=len, reverse=True)
        self.split = re.compile("|".join(map(re.escape, names)) or r"(?!)")
        needed = [
            template.stop,
            visual.token,
            visual.image,
            visual.start,
            visual.end,
            *head.span_tokens,
            *head.extra_tokens,
        ]
        for name in filter(None, needed):
            if name not in self.special:
                raise ConfigError(
                    f"tokenizer: no special token {name!r}, which the {template.name} template or the head needs; "
                    "use the tokenizer saved with the checkpoint, or add the token"
                )
        self.stop_id = self.special[template.stop][0]
        empty = tokenizer("").input_ids
        self.bos = empty[:1] if empty and empty[0] == tokenizer.bos_token_id else []

    @property
    def group(self) -> int:
        """Frames of a video that a prompt has as one."""
        return self.patching.temporal if self.patching else 1

    @cached_property
    def tokens_per_frame(self) -> int:
        """Tokens that one more frame of a video, or group of frames, adds to a prompt; of any size, the fewest."""
        turns = [Turn("user", (VisualMark(0), "?"))]
        one, three = (len(self.encode(turns, [], [("video", count)], 1.0)) for count in (1, 3))
        return (three - one) // 2

    def encode(
        self,
        turns: Sequence[Turn],
        spans_s: Sequence[Sequence[float]],
        visuals: Sequence[tuple[str, int]],
        duration_s: float,
        after_video: str | None = None,
    ) -> Prompt:
        """Encode a conversation; one that ends in a user turn is left open for generation.

        Args:
            turns: neutral turns.
            spans_s: [start, end] in seconds for every span mark.
            visuals: ``Visual``, or ``("video" | "image", number of frames or tiles)``, for every visual mark.
            duration_s: of the video; 0 where there is none.
            after_video: text behind a video, in place of the layout's own.
        """
        return self._assemble(self._parts(turns, spans_s, visuals, duration_s, after_video))

    def at_most(self, *conversation, **named) -> int:
        """Tokens that ``encode`` cannot give more of, without tokenising: a token stands for a byte at least.

        A tokenizer that spells characters out (some of compatibility, as ligatures) may still do so.
        """
        parts = [part for part, _ in self._parts(*conversation, **named)]
        frame = self.visual.per_frame + 2  # with the tokens around it
        sizes = {GroupSlot: lambda _: frame, str: lambda text: len(text.encode()) + 1}  # SentencePiece adds a blank
        return len(self.bos) + sum(sizes.get(type(part), lambda _: 1)(part) for part in parts)

    def _parts(
        self,
        turns: Sequence[Turn],
        spans_s: Sequence[Sequence[float]],
        visuals: Sequence[tuple[str, int]],
        duration_s: float,
        after_video: str | None = None,
    ) -> list[tuple[Part, bool]]:
        """All of a conversation, with the template's text; True where supervised."""
        parts: list[tuple[Part, bool]] = []
        composed = self.head.compose(turns, spans_s, duration_s)
        template = self.template
        if template.system and composed[0].role != "system":
            composed = [Turn("system", (template.system_message,)), *composed]
        for i, turn in enumerate(composed):
            parts += self._turn(turn, i == len(composed) - 1, visuals, after_video)
        if composed[-1].role == "user":
            parts += self._template(template.assistant)
        return parts

    def _turn(
        self, turn: Turn, last: bool, visuals: Sequence[tuple[str, int]], after_video: str | None
    ) -> list[tuple[Part, bool]]:
        """Parts of one turn with what the template puts around it; True where supervised."""
        template = self.template
        inner = [p for part in turn.parts for p in self._visual(part, visuals, after_video)]
        if turn.parts and isinstance(turn.parts[-1], VisualMark):
            inner.pop()  # nothing follows that the text behind a visual would part from it
        if turn.role == "assistant":
            tail = template.closing if last else template.between
            body = [(p, True) for p in inner] + [(Token(template.stop), True)]
            return [*self._template(template.assistant), *body, *self._template(tail)]
        if turn.role == "system" and template.system is None:
            return [(p, False) for p in (*inner, "\n")]
        before, after = template.system if turn.role == "system" else template.user
        return [*self._template(before), *((p, False) for p in inner), *self._template(after)]

    def _template(self, text: str) -> list[tuple[Part, bool]]:
        """A template's own string, where the names of special tokens are special tokens."""
        parts, place = [], 0
        for match in self.split.finditer(text):
            parts += [(text[place : match.start()], False), (Token(match.group()), False)]
            place = match.end()
        return [*parts, (text[place:], False)]

    def _visual(self, part: Part, visuals: Sequence[tuple[str, int]], after_video: str | None) -> list[Part]:
        """A visual mark as its frames; any other part as it is."""
        if not isinstance(part, VisualMark):
            return [part]
        visual = Visual(*visuals[part.visual])
        if visual.kind == "image":
            slots = [self._group(FrameSlot(i), visual) for i in range(visual.count)]
            return [*slots, self.visual.after]
        behind = (part.after, after_video, self.visual.after)
        return [*self._frames(visual), next(text for text in behind if text is not None)]

    def _frames(self, visual: Visual) -> list[Part]:
        """A video's frames as the head lays them out, with the layout's own text around each."""
        parts: list[Part] = []
        for part in self.head.layout(visual.count):
            if isinstance(part, FrameSlot):
                time = visual.times_s[part.frame] if len(visual.times_s) else 0.0
                parts += [self.visual.between] if self.visual.between and part.frame else []
                parts += [self.visual.before.format(number=part.frame + 1, time=time)] if self.visual.before else []
                part = self._group(part, visual)
            parts.append(part)
        return parts

    def _group(self, slot: FrameSlot, visual: Visual) -> GroupSlot:
        """A frame of a visual with all that is known of it."""
        i, token = slot.frame, self.visual.image if visual.kind == "image" else ""
        grid = visual.grids[i] if visual.grids else None
        start = visual.starts_s[i] if len(visual.starts_s) else float(i)
        return GroupSlot(i, slot.timed, token or self.visual.token, grid, start)

    def _assemble(self, parts: list[tuple[Part, bool]]) -> Prompt:
        """Tokenise. Adjacent literal text of the same supervision is one string, as byte-pair merges demand."""
        prompt = Prompt(list(self.bos), [False] * len(self.bos), [-1] * len(self.bos))
        text, text_supervised, strip, runs = "", False, False, []
        for i, (part, supervised) in enumerate(parts):
            if isinstance(part, str):
                if text and supervised != text_supervised:
                    self._literal(prompt, text, text_supervised, strip)
                    text, strip = "", strip and not text.strip()  # blanks go on being swallowed in the next turn
                text, text_supervised = text + part, supervised
                continue
            if text:
                lstrip = isinstance(part, Token) and self.special[part.text][1].lstrip
                self._literal(prompt, text.rstrip() if lstrip else text, text_supervised, strip)
                text, strip = "", False
            if isinstance(part, FrameSlot):
                before = i > 0 and isinstance(parts[i - 1][0], FrameSlot)
                behind = i + 1 < len(parts) and isinstance(parts[i + 1][0], FrameSlot)
                runs += [] if before else [[]]
                self._frame(prompt, part, runs, opens=not before, closes=not behind)
            else:
                strip = self._slot(prompt, part, supervised)
        if text:
            self._literal(prompt, text, text_supervised, strip)
        if self.patching is not None:
            prompt.position = self.patching.positions(len(prompt), [joined(run) for run in runs])
        return prompt

    def _literal(self, prompt: Prompt, text: str, supervised: bool, strip: bool) -> None:
        """Append ordinary text; ``strip`` if the special token before it swallows white space."""
        text = text.lstrip() if strip else text
        ids = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids if text else []
        self._append(prompt, ids, supervised)

    def _append(self, prompt: Prompt, ids: list[int], supervised: bool, block: int = -1) -> None:
        prompt.ids += ids
        prompt.supervised += [supervised] * len(ids)
        prompt.block += [block] * len(ids)

    def _slot(self, prompt: Prompt, part: Token | SpanSlot | FrameTimeSlot, supervised: bool) -> bool:
        """Append one special token; returns whether it swallows the white space behind it."""
        name = part.text if isinstance(part, Token) else part.token
        if name not in self.special:
            raise ConfigError(f"tokenizer: no special token {name!r}; use the tokenizer saved with the checkpoint")
        if isinstance(part, SpanSlot):
            prompt.refs.append(Ref(len(prompt), part.role, span=part.span))
        elif isinstance(part, FrameTimeSlot):
            prompt.refs.append(Ref(len(prompt), Role.FRAME, frame=part.frame))
        token_id, token = self.special[name]
        self._append(prompt, [token_id], supervised)
        return token.rstrip

    def _frame(self, prompt: Prompt, part: GroupSlot, runs: list[list[Run]], opens: bool, closes: bool) -> None:
        """Append the visual tokens of one frame, wrapped at the ends of a run of frames (``runs``, the last is its)."""
        visual, count = self.visual, self.visual.per_frame
        grid = part.grid
        if self.patching is not None:
            grid = grid or (self.patching.merge,) * 2
            count = self.patching.tokens(grid)
        if opens and visual.start:
            self._append(prompt, [self.special[visual.start][0]], False)
        places = range(len(prompt), len(prompt) + count)
        runs[-1].append(Run(len(prompt), grid, [part.start_s]))
        prompt.visual += places
        if part.timed:
            prompt.refs += [Ref(p, Role.FRAME, frame=part.frame) for p in places]
        self._append(prompt, [self.special[part.token][0]] * count, False, block=len(runs) - 1)
        if closes and visual.end:
            self._append(prompt, [self.special[visual.end][0]], False)
        prompt.prefix_length = len(prompt)


def joined(run: Sequence[Run]) -> Run:
    """Adjacent groups of one video as one run. Raises ValueError where their grids differ: none have one size."""
    if any(one.grid != other.grid for one, other in pairwise(run)):
        raise ValueError(f"groups of several sizes in one run: {[one.grid for one in run]}")
    starts = [one.starts_s[0] for one in run]
    return Run(run[0].place, run[0].grid, np.asarray(starts, type(starts[0])))
