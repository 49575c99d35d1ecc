"""An answer as the pages show it: text cut at its spans, times in seconds, what became of it.

In: lines of an answers file, truth where it is known. Out: JSON data for ``assets/show.js``. Knows no file, no page and
no model; IoU is that of ``common/spans.py``.
"""

import math
from collections.abc import Sequence

from videollm.common.answers import AnswerLine, Span, split_spans
from videollm.common.spans import first_span_ious, set_f1

F1_AT = 0.5  # IoU from which on two spans agree
NOTES = {
    "none": "The answer holds no span.",
    "odd": "A span of it ends before it starts, or is no number.",
    "cut": "The answer was cut off before its end.",
}


def answer_json(line: AnswerLine, name: str = "") -> dict:
    """One answer. ``pieces`` are the texts around its spans: one more than spans, or one where it does not spell them.

    ``kind`` is what the viewer filters by: "span", or "none", "odd", "cut", "error" (see ``NOTES``).
    """
    pieces, written = split_spans(line.text)
    if len(written) != len(line.spans):  # times in words of its own, or more than were read
        pieces = [line.text]
    kind = kind_of(line)
    return {
        "name": name, "pieces": pieces, "spans": line.spans, "evidence": line.evidence_spans, "scores": line.scores,
        "raw": line.raw_text, "kind": kind, "note": line.error or NOTES.get(kind, ""), "error": line.error,
    }  # fmt: skip


def kind_of(line: AnswerLine) -> str:
    """What became of a question."""
    if line.error:
        return "error"
    if line.finish_reason in ("length", "time"):
        return "cut"
    if not line.scored_spans:
        return "none"
    return "span" if len(usable(line.scored_spans)) == len(line.scored_spans) else "odd"


def usable(spans: Sequence[Span]) -> list[Span]:
    """Those that can be scored and drawn: finite, and not reversed."""
    return [span for span in spans if all(map(math.isfinite, span)) and span[0] <= span[1]]


def judge(lines: Sequence[AnswerLine | None], truths: Sequence[Sequence[Span]]) -> list[dict]:
    """``iou`` and ``f1`` of each answer, where they are known.

    IoU is that of the first span with the true span that it matches best, as mIoU and R@1 count it, and None where no
    span was read. Where several spans are true, F1 is that of all at IoU 0.5.
    """
    known = [k for k, (line, truth) in enumerate(zip(lines, truths, strict=True)) if line is not None and len(truth)]
    found: list[dict] = [{} for _ in lines]
    spans = [usable(lines[k].scored_spans) for k in known]
    values = first_span_ious(spans, [truths[k] for k in known])
    for k, own, value in zip(known, spans, values.tolist(), strict=True):
        found[k]["iou"] = None if math.isnan(value) else round(value, 4)
        if len(truths[k]) > 1:
            found[k]["f1"] = round(set_f1(own, truths[k], F1_AT), 4)
    return found
