"""Lines of answers for tests that are not about how they were made."""

from videollm.common.answers import AnswerLine


def answer_line(name, text="", spans=(), evidence=(), error=None, **keys) -> AnswerLine:
    """An answer to the question ``name``."""
    return AnswerLine(
        id=name, text=text, raw_text=text, spans=list(spans), evidence_spans=list(evidence),
        finish_reason="error" if error else "stop", error=error, **keys,
    )  # fmt: skip
