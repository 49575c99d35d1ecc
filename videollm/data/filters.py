"""Training records that are left out for what they are: a video too short or too long, an answer too wordy.

In: records, and ``data.duration_s`` and ``data.max_answer_words`` (the published D2VLM filters: 5 to 350 s, 200 words;
spec D2VLM 2.1). Out: the others, in order, and every one left out by name. It opens no video.
"""

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from videollm.common.config import ConfigError
from videollm.common.files import json_text
from videollm.data.record import Record, as_annotated

logger = logging.getLogger(__name__)

FILE = "left_out.jsonl"  # in the output folder of a run


def wanted(
    records: Sequence[Record], duration_s: Sequence[float] | None = None, max_answer_words: int | None = None
) -> tuple[list[Record], list[dict]]:
    """The records that pass, and ``{"id", "where", "reason"}`` of the others.

    A record without ``duration`` passes the first filter: its length is not known before its video is opened.

    Raises:
        ConfigError: none passes.
    """
    kept, left_out = [], []
    for record in records:
        key = reason(record, duration_s, max_answer_words)
        if key is None:
            kept.append(record)
        else:
            left_out.append({"id": record.id, "where": record.where, "reason": key})
    if records and not kept:
        raise ConfigError(f"data.duration_s, data.max_answer_words: no record passes ({told(left_out)}); loosen them")
    return kept, left_out


def reason(record: Record, duration_s: Sequence[float] | None, max_answer_words: int | None) -> str | None:
    """The setting that leaves a record out, or None."""
    if duration_s is not None and record.duration_s is not None and record.video is not None:
        low, high = duration_s
        if not low <= record.duration_s <= high:
            return "data.duration_s"
    # Pieces between blanks, as published; of a record to the letter those of the evidence stage too.
    answer = as_annotated(record.turns[-1]).split(" ") if record.has_answer else []
    if max_answer_words is not None and len(answer) > max_answer_words:
        return "data.max_answer_words"
    return None


def told(left_out: Sequence[dict]) -> str:
    """How many records each setting leaves out."""
    return ", ".join(f"{key}: {count}" for key, count in Counter(line["reason"] for line in left_out).items())


def tell(left_out: Sequence[dict], output: Path) -> None:
    """Name them in the output folder, and count them in a warning."""
    (output / FILE).write_text(json_text(left_out), encoding="utf-8")
    logger.warning("%d records left out (%s): %s", len(left_out), told(left_out), output / FILE)
