"""Where the types of turns and of heads were. They are in ``videollm.heads``."""

# ruff: noqa: F401
from videollm.heads import (
    Answer,
    FrameBatch,
    FrameSlot,
    FrameTimeSlot,
    Part,
    Prediction,
    Role,
    SpanMark,
    SpanRefs,
    SpanSlot,
    Token,
    Turn,
    VisualMark,
)
