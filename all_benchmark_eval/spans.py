"""Where the scores of spans were; saved configs name them here. They are in ``videollm.common.spans``."""

from videollm.common.spans import (
    THRESHOLDS,
    SpanList,
    as_spans,
    first_span_ious,
    grounding_scores,
    mean_set_f1,
    set_f1,
    summarise,
    tiou,
    tiou_matrix,
)

__all__ = [
    "THRESHOLDS",
    "SpanList",
    "as_spans",
    "first_span_ious",
    "grounding_scores",
    "mean_set_f1",
    "set_f1",
    "summarise",
    "tiou",
    "tiou_matrix",
]
