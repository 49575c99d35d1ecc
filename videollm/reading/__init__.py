"""What the text of an answer says: spans, timed captions, a choice, each with the rule that read it."""

from videollm.reading.choice import read_choice
from videollm.reading.part import Reading
from videollm.reading.spans import measured_spans, read_moment, read_spans, span_beside
from videollm.reading.steps import read_steps

__all__ = ["Reading", "measured_spans", "read_choice", "read_moment", "read_spans", "read_steps", "span_beside"]
