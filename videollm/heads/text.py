"""The plain-text head: times are written out in the answer, as percent of the video or as seconds.

A baseline without parameters or span tokens. ``compose`` writes a span as ``28 - 46 percent`` or ``12.3 - 20.1
seconds``; ``parse_spans`` finds such times in an answer again. With a ``style`` (styles.py) it is a vision-language
model as it is released: asked in the model's own words, its answers read in whatever form they tell times. It knows no
frames and no network.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from videollm.common.answers import span_text
from videollm.common.config import ConfigError
from videollm.data.conversation import Turn
from videollm.heads.interface import HEADS, TemporalHead, replace_marks
from videollm.heads.types import Answer, FrameBatch, Prediction, SpanRefs
from videollm.reading.spans import read_spans
from videollm.reading.styles import STYLES

Unit = Literal["percent", "seconds"]

_NUMBER = r"(\d+(?:\.\d+)?)"
_UNIT = {"percent": r"(?:percent\b|%)", "seconds": r"(?:seconds?|secs?|s)\b"}
_TIMES = {
    unit: re.compile(rf"(?<![\d.]){_NUMBER}\s*(?:{name})?\s*(?:-|–|—|to\b|and\b)\s*{_NUMBER}\s*{name}", re.IGNORECASE)
    for unit, name in _UNIT.items()
}
# Of a text that goes on: a span at its end whose last word may go on, and a number from which a span may come.
_ENDED = {unit: re.compile(times.pattern + r"(?<=[a-z])$", re.IGNORECASE) for unit, times in _TIMES.items()}
_BEGUN = re.compile(r"\d[\d.]*\s*(?:%|\w*)\s*(?:-|–|—|to\b|and\b)?\s*[\d.]*\s*\w*[\s\ufffd]*$")


@dataclass
class TextOptions:
    """Options of the plain-text head."""

    unit: Unit = "percent"  # how times are written; percent is of the video's duration
    style: str | None = None  # a released model's own words (styles.py); then unit is seconds

    def __post_init__(self):
        if self.style is not None and (self.style not in STYLES or self.unit != "seconds"):
            raise ConfigError(
                f"model.head.style: {self.style!r} with unit {self.unit}; there are {', '.join(STYLES)}, with seconds"
            )


@HEADS.register(name="text")
class TextTimeHead(TemporalHead):
    """Times as ordinary text."""

    Options = TextOptions

    @classmethod
    def wording_with(cls, options: Mapping[str, Any]) -> str:
        return options.get("style") or cls.wording

    def compose(self, turns: Sequence[Turn], spans_s: Sequence[Sequence[float]], duration_s: float) -> list[Turn]:
        """Every mark becomes text, in questions and answers alike."""
        if self.options.style is not None:
            form = STYLES[self.options.style].span.format
            return [replace_marks(turn, lambda mark: spelled(form, spans_s[mark.span])) for turn in turns]
        return [
            replace_marks(turn, lambda mark: write_span(*spans_s[mark.span], self.options.unit, duration_s))
            for turn in turns
        ]

    def read(
        self, token_ids: list[int], prediction: Prediction | None, tokenizer: PreTrainedTokenizerBase, duration_s: float
    ) -> Answer:
        """Generated ids -> answer, its spans parsed from the decoded text; the score of each is 1.

        With a style the text stays as the model wrote it: it may be JSON.
        """
        text = tokenizer.decode(token_ids, skip_special_tokens=True).strip()
        if self.options.style is not None:
            spans = [sorted(min(end, duration_s) for end in span) for span in read_spans(text, duration_s)]
        else:
            spans, text = parse_spans(text, self.options.unit, duration_s)
        return Answer(text, tokenizer.decode(token_ids), spans, [], [1.0] * len(spans))

    def read_so_far(
        self, token_ids: list[int], prediction: Prediction | None, tokenizer: PreTrainedTokenizerBase, duration_s: float
    ) -> Answer:
        """As ``read``, without numbers at the end that may become a span."""
        if self.options.style is not None:
            return self.read(token_ids, prediction, tokenizer, duration_s)
        text = _ENDED[self.options.unit].sub("", tokenizer.decode(token_ids, skip_special_tokens=True)).strip()
        spans, text = parse_spans(text, self.options.unit, duration_s)
        return Answer(_BEGUN.sub("", text).rstrip(), tokenizer.decode(token_ids), spans, [], [1.0] * len(spans))

    def log_prob(self, queries: Tensor, refs: SpanRefs, frames: FrameBatch) -> Tensor:
        """Zeros [N]: the times are text tokens, whose log-probability the core counts."""
        return queries.new_zeros(len(refs), dtype=torch.float32)

    def draw_log_prob(
        self, queries: Tensor, raw: Tensor, owner: Tensor, frames: FrameBatch, temperature: float
    ) -> Tensor:
        """Zeros [N], for the same reason: what is drawn are words."""
        return queries.new_zeros(len(raw), dtype=torch.float32)


def spelled(form: Callable[..., str], span_s: Sequence[float]) -> str:
    """A span of seconds in the words of a style."""
    return form(start=span_s[0], end=span_s[1])


def write_span(start_s: float, end_s: float, unit: Unit, duration_s: float) -> str:
    """A span in words.

    Raises:
        ValueError: percent of a video without a duration.
    """
    if unit == "seconds":
        return f"{start_s:.1f} - {end_s:.1f} seconds"
    if duration_s <= 0:
        raise ValueError(f"a span in percent needs the video's duration, got {duration_s} s; give it in the record")
    return f"{100 * start_s / duration_s:.0f} - {100 * end_s / duration_s:.0f} percent"


def parse_spans(text: str, unit: Unit, duration_s: float) -> tuple[list[list[float]], str]:
    """Times in ``text`` as ordered [start, end] seconds inside the video, and ``text`` in neutral form.

    "a - b", "a to b" and "a and b" are read, with the unit after both numbers or the last one.
    """
    scale = duration_s / 100 if unit == "percent" else 1.0
    spans: list[list[float]] = []

    def neutral(match: re.Match) -> str:
        spans.append(sorted(min(float(number) * scale, duration_s) for number in match.groups()))
        return span_text(*spans[-1])

    return spans, _TIMES[unit].sub(neutral, text)
