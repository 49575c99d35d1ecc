"""Training records that are left out for what they are: a video too short or too long, words too many.

In: records, and ``data.duration_s`` and ``data.max_answer_words`` (the published D2VLM filters: 5 to 350 s, 200 words;
published_systems.md#d2vlm-data), and which conversations are too long for the model. Out: the others, in order, and
every one left out by name. It opens no video and knows no tokenizer.
"""

import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from videollm.common.config import ConfigError, needs
from videollm.common.files import json_text
from videollm.data.annotations import AnnotationError
from videollm.data.record import Record, as_annotated

logger = logging.getLogger(__name__)

FILE = "left_out.jsonl"  # in the output folder of a run


@dataclass
class DifficultyOptions:
    """What makes a question worth asking, and how many are wanted."""

    count: int | None = None  # questions drawn; null: all that have a chance
    rewards: dict[str, float] = field(default_factory=lambda: {"tiou": 1.0})  # whose sum is the score
    mean: float | None = None  # scores around this one are the likeliest to be drawn (TimeLens: 0.05); null: all alike
    spread: float = 0.2  # standard deviation of that Gaussian
    quantiles: tuple[float, ...] = (0.0, 1.0)  # [lowest, highest] of the scores, as shares of the questions
    seed: int = 0

    def __post_init__(self):
        low_high = self.quantiles
        right = len(low_high) == 2 and 0 <= low_high[0] < low_high[1] <= 1
        needs(
            (self.count is None or self.count >= 1, f"count: {self.count}, but it must be at least 1"),
            *gaussian_needs(self.mean, self.spread),
            (right, f"quantiles: {list(low_high)} is not [lowest, highest], from 0 to 1"),
        )


def gaussian_needs(mean: float | None, spread: float, where: str = "") -> tuple[tuple[bool, str], ...]:
    """What ``needs`` has to ask so that these can weigh scores; ``where`` stands before the keys."""
    return (
        (0 < spread < math.inf, f"{where}spread: {spread}, but it must be above 0 and finite"),
        (mean is None or math.isfinite(mean), f"{where}mean: {mean}, but it must be finite"),
    )


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


def without_long(
    records: Sequence[Record], tokens: Mapping[int, int], max_length: int, allowed: float
) -> tuple[list[Record], list[dict]]:
    """The records without those that have an entry in ``tokens`` (by their place), and these as ``wanted`` names them.

    Raises:
        AnnotationError: they are more than the share ``allowed`` of the records, or all; names every one.
    """
    if exceeds(len(tokens), len(records), allowed):
        share = f"raise data.max_bad_fraction={allowed:g} to leave out {len(tokens)} of {len(records)}"
        raise AnnotationError([f"{long_line(records[i], n, max_length)}, or {share}" for i, n in tokens.items()])
    left_out = [
        {"id": records[i].id, "where": records[i].where, "reason": "data.max_length", "tokens": n}
        for i, n in tokens.items()
    ]
    return [record for i, record in enumerate(records) if i not in tokens], left_out


def exceeds(bad: int, records: int, allowed: float) -> bool:
    """Whether more records are bad than the share ``allowed``, or all of them."""
    return bad > 0 and (bad > allowed * records or bad == records)


def long_line(record: Record, tokens: int, max_length: int) -> str:
    """What is said of a record that is too long."""
    over = f"{tokens} tokens with the fewest frames, over data.max_length={max_length}"
    return f"{record.where}: {over} (conversations) - shorten it, raise data.max_length"


def counts(records: Sequence[Record], left_out: Sequence[dict]) -> dict[str, int]:
    """How many records a run trains on, by what they show, and how many it leaves out."""
    found = {
        "about a video": sum(record.video is not None for record in records),
        "about images": sum(bool(record.images) for record in records),
        "text only": sum(record.text_only for record in records),
        "all": len(records),
        "left out": len(left_out),
    }
    return {name: count for name, count in found.items() if count}


def told(left_out: Sequence[dict]) -> str:
    """How many records each setting leaves out."""
    return ", ".join(f"{key}: {count}" for key, count in Counter(line["reason"] for line in left_out).items())


def tell(left_out: Sequence[dict], output: Path) -> None:
    """Name them in the output folder, and count them in a warning."""
    (output / FILE).write_text(json_text(left_out), encoding="utf-8")
    logger.warning("%d records left out (%s): %s", len(left_out), told(left_out), output / FILE)
