"""All that a temporal head imports (docs/heads.md), under one name. Importing it registers the head ``text``."""

from videollm.common.answers import span_text
from videollm.data.conversation import (
    FrameSlot,
    FrameTimeSlot,
    Part,
    Role,
    SpanMark,
    SpanSlot,
    Token,
    Turn,
    VisualMark,
    span_marks,
)
from videollm.heads.interface import HEADS, NO_DRAW, HeadOptions, TemporalHead, build_head, head_class, replace_marks
from videollm.heads.text import TextTimeHead
from videollm.heads.types import Answer, FrameBatch, Prediction, SpanRefs

marks = span_marks  # its earlier name

__all__ = [
    "HEADS", "NO_DRAW", "Answer", "FrameBatch", "FrameSlot", "FrameTimeSlot", "HeadOptions", "Part", "Prediction",
    "Role", "SpanMark", "SpanRefs", "SpanSlot", "TemporalHead", "TextTimeHead", "Token", "Turn", "VisualMark",
    "build_head", "head_class", "marks", "replace_marks", "span_marks", "span_text",
]  # fmt: skip
