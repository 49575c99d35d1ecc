"""Compare two score files sample by sample: is B better than A? ``videollm compare A.json B.json``.

In: two files of ``score``, of one benchmark and variant. Out: for each protocol that both have and each metric with
per-sample scores, B - A over the samples that both scored, its bootstrap interval, and a sign-flip p-value. It knows no
benchmark.
"""

import argparse
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Column, Table

from all_benchmark_eval.forms import Content
from all_benchmark_eval.items import need
from all_benchmark_eval.metrics.significance import CONFIDENCE, bootstrap_interval, by_samples, sign_flip_p
from all_benchmark_eval.score import number, wide_console
from videollm.common.command import Parser, a_path, ended, whole
from videollm.common.config import together

LIKE = ("benchmark", "variant")  # of two files that are compared


@dataclass(frozen=True)
class Difference:
    """B - A of one metric over the ``shared`` samples, in the metric's unit; ``low`` and ``high``: its interval."""

    metric: str
    a: float
    b: float
    low: float
    high: float
    p: float
    shared: int
    only_a: int
    only_b: int

    @property
    def value(self) -> float:
        return self.b - self.a

    def told(self, digits: int) -> tuple[str, str, str]:
        """B - A, its interval and its p-value, as tables have them."""
        return f"{self.value:+.{digits}f}", f"{self.low:+.{digits}f} to {self.high:+.{digits}f}", f"{self.p:.4f}"


def read_scores(path: Path) -> dict[str, Any]:
    """A file of ``score``. Raises BenchmarkError if it is none."""
    data = Content.of(path).object
    keys = ("benchmark", "variant", "protocols", "per_sample", "files")
    good = isinstance(data, dict) and all(key in data for key in keys)
    need(good, f"{path}: no score file (needs {', '.join(keys)}); give what videollm score wrote to its --output")
    return data


def shared_protocols(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """The protocols that both files have. Raises BenchmarkError where two files say nothing about each other."""
    told = {key: f"A is of {key} {a[key]!r}, B of {b[key]!r}: only like is compared with like" for key in LIKE}
    together(*(partial(need, a[key] == b[key], problem) for key, problem in told.items()))
    protocols = [protocol for protocol in a["protocols"] if protocol in b["protocols"]]
    of_a, of_b = (", ".join(x["protocols"]) for x in (a, b))
    need(protocols, f"A has the protocol {of_a}, B {of_b}: score both under the same one")
    return protocols


def differences(
    a: dict[str, dict[str, float]], b: dict[str, dict[str, float]], scale: float, resamples: int, seed: int
) -> Iterable[Difference]:
    """Of every metric in both ``per_sample`` tables, over the ids in both. Raises BenchmarkError if there are none."""
    metrics = [metric for metric in a if metric in b]
    shared = {metric: {key: a[metric][key] for key in a[metric] if key in b[metric]} for metric in metrics}
    need(any(shared.values()), "A and B have no sample of the same id in any metric: nothing can be compared")
    for names, ids, of_a in by_samples(shared):
        of_a = of_a * scale  # [N, M]
        of_b = scale * np.array([[b[name][key] for name in names] for key in ids])
        difference = of_b - of_a
        interval, p = bootstrap_interval(difference, resamples, seed), sign_flip_p(difference, resamples, seed)
        means = [[column.mean() for column in side.T] for side in (of_a, of_b)]
        for name, *numbers in zip(names, *means, *interval.tolist(), p.tolist(), strict=True):
            yield Difference(name, *numbers, len(ids), len(a[name]) - len(ids), len(b[name]) - len(ids))


def table(protocol: str, unit: str, rows: Iterable[Difference]) -> Table:
    """One line a metric."""
    names = ("A", "B", "B - A", f"{CONFIDENCE:.0%} interval", "p", "in both", "A only", "B only")
    columns = (Column(name, justify="right", no_wrap=True) for name in names)
    found = Table(Column("metric", no_wrap=True), *columns, title=f"{protocol}, {unit}", title_justify="left")
    digits = 2 if unit == "percent" else 4
    for row in rows:
        counts = map(str, (row.shared, row.only_a, row.only_b))
        found.add_row(row.metric, number(row.a, digits), number(row.b, digits), *row.told(digits), *counts)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; a user's error is one line and exit status 2."""
    parser = Parser(prog="videollm compare", description="Paired differences of two scores.")
    parser.add_argument("a", type=a_path, metavar="A.json")
    parser.add_argument("b", type=a_path, metavar="B.json")
    parser.add_argument("--resamples", type=whole(1), default=10_000, metavar="N")
    parser.add_argument("--seed", type=whole(0), default=0)
    args = parser.parse_args(argv)
    return ended(lambda: run(args))


def run(args: argparse.Namespace) -> None:
    """Read both, print a table for every protocol."""
    console = wide_console()
    a, b = together(partial(read_scores, args.a), partial(read_scores, args.b))
    protocols = shared_protocols(a, b)
    console.print(f"{a['benchmark']}, variant {a['variant']}\nA: {args.a}\nB: {args.b}", markup=False)
    for protocol in protocols:
        unit = a["protocols"][protocol]["unit"]
        scale = 100.0 if unit == "percent" else 1.0
        pair = a["per_sample"].get(protocol, {}), b["per_sample"].get(protocol, {})
        console.print(table(protocol, unit, differences(*pair, scale, args.resamples, args.seed)))
    truths = [{k: f["sha256"] for k, f in x["files"].items() if k.startswith("annotations")} for x in (a, b)]
    if truths[0] != truths[1]:
        console.print("A and B were scored against different annotation files: check that the ids mean the same")


if __name__ == "__main__":
    sys.exit(main())
