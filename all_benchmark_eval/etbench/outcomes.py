"""What scoring the samples of one task and source gives, under either protocol."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from all_benchmark_eval.etbench.samples import Sample

THRESHOLDS = (0.1, 0.3, 0.5, 0.7)
EVIDENCE_VARIANTS = ("d2vlm", "d2vlm_looser")  # of the published scripts: they score the evidence as well


@dataclass
class Outcome:
    """``numbers`` has the names of the official table. ``per_sample``: {metric: {id: value}}. ``states``: {id: "scored"
    or "unparsed"}. ``stops``: ids at which the published script would stop; they count as failed."""

    numbers: dict[str, float | None]
    per_sample: dict[str, dict[str, float]] = field(default_factory=dict)
    states: dict[str, str] = field(default_factory=dict)
    stops: list[str] = field(default_factory=list)
    clipped: int = 0


def by_id(samples: Sequence[Sample], values: Iterable[Any]) -> dict[str, float]:
    """{id: value}, for ``Outcome.per_sample``."""
    return {sample.id: float(value) for sample, value in zip(samples, values, strict=True)}


def states_of(samples: Sequence[Sample], good: Iterable[object]) -> dict[str, str]:
    """For ``Outcome.states``, from whether each answer could be read."""
    return {sample.id: "scored" if read else "unparsed" for sample, read in zip(samples, good, strict=True)}


def at_each(name: str, values: Iterable[float], suffix: str = "", mean: str | None = None) -> dict[str, float]:
    """``name@t`` for each threshold and their mean, under ``mean`` or the same name."""
    numbers = {f"{name}{suffix}@{t}": float(value) for t, value in zip(THRESHOLDS, values, strict=True)}
    return numbers | {f"{mean or name}{suffix}": sum(numbers.values()) / len(THRESHOLDS)}
