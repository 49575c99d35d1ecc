"""Run a published table again: ``videollm card NAME [MODEL] --data DIR``.

A card, ``cards/NAME.yaml``, says which model with which wording, frames and decoding, on which benchmarks under whose
script, and the published numbers with their source. In: a card, the converted model, a data root. Out: what
``evaluate`` writes, and ``card.json`` with ours beside published. No benchmark and no model is known here.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.table import Column, Table

from all_benchmark_eval import benchmark
from all_benchmark_eval.benchmark import WORDINGS, get
from all_benchmark_eval.evaluate import Run, evaluate, processes
from all_benchmark_eval.items import need
from all_benchmark_eval.score import number, wide_console
from videollm.common.command import USERS, ended, message, whole
from videollm.common.config import build, read_yaml
from videollm.common.files import check_writable

CARDS = Path(__file__).parents[1] / "cards"


@dataclass(frozen=True)
class Origin:
    """Where a model comes from, and the command that makes a checkpoint of ours of it."""

    hub: str
    licence: str
    convert: str


@dataclass(frozen=True)
class Row:
    """One benchmark of a card: the variant whose script printed the numbers, and the numbers by metric."""

    variant: str
    published: dict[str, float]


@dataclass(frozen=True)
class Card:
    """``overrides``: key=value for ``videollm.infer``, over the sampling that the wording has."""

    title: str
    model: Origin
    wording: str
    source: str
    benchmarks: dict[str, Row]
    overrides: list[str] = field(default_factory=list)


def names() -> list[str]:
    """Of all cards."""
    return sorted(path.stem for path in CARDS.glob("*.yaml"))


def read_card(name: str) -> Card:
    """A card by its name. Raises BenchmarkError, ConfigError for an unknown one, or one that says something unknown."""
    need(name in names(), f"NAME: there is no card {name!r}; there are {', '.join(names())}")
    card = build(Card, read_yaml(CARDS / f"{name}.yaml"), f"{name}.yaml")
    need(card.wording in WORDINGS, f"{name}.yaml: wording {card.wording!r} is not one of {', '.join(WORDINGS)}")
    for benchmark_name, row in card.benchmarks.items():
        known = get(benchmark_name).variants
        need(row.variant in known, f"{name}.yaml: {benchmark_name}: no variant {row.variant!r}; {', '.join(known)}")
    return card


def compared(row: Row, result: dict[str, Any]) -> list[dict[str, Any]]:
    """{metric, published, ours, difference} of each number; ours is None where the benchmark prints no such metric."""
    metrics = result["protocols"]["published"]["metrics"]
    found = []
    for metric, value in row.published.items():
        ours = metrics.get(metric)
        found.append({"metric": metric, "published": value, "ours": ours})
        found[-1]["difference"] = None if ours is None else ours - value
    return found


def run(args: argparse.Namespace) -> int:
    """Ask, score and compare; the exit status: 1 if a benchmark failed."""
    card = read_card(args.name)
    model = args.model or Path("checkpoints") / args.name
    told = f"get {card.model.hub} from the hub (licence: {card.model.licence}), then: {card.model.convert}"
    need(model.is_dir(), f"{model}: no such checkpoint; {told}")
    chosen = args.benchmarks.split(",") if args.benchmarks else list(card.benchmarks)
    unknown = [name for name in chosen if name not in card.benchmarks]
    need(not unknown, f"--benchmarks: {args.name} has no {', '.join(unknown)}; it has {', '.join(card.benchmarks)}")
    output = args.output or model / "card"
    check_writable(output / "card.json", "--output")
    options = [part for key in ("batch_size", "device") if (value := getattr(args, key))
               for part in (f"--{key.replace('_', '-')}", value)]  # fmt: skip
    overrides = [*card.overrides, *args.overrides]
    first = Run(model, output, card.wording, processes(args.gpus), options, overrides)
    rows, failed = {}, {}
    for name in chosen:
        task = get(name)
        folder = benchmark.data_folder(task, args.data)
        one = replace(first, score_options={"variant": card.benchmarks[name].variant})
        try:
            result = evaluate(task, one, benchmark.find_annotations(task, folder), folder / task.layout.videos)
            rows[name] = compared(card.benchmarks[name], result)
        except USERS as error:  # the others go on
            failed[name] = message(error)
            print(f"error: {name}: {failed[name]}", file=sys.stderr, flush=True)
    written = {"card": args.name, "title": card.title, "source": card.source, "rows": rows, "failed": failed}
    benchmark.write_text(output / "card.json", json.dumps(written, indent=1, allow_nan=False) + "\n")
    show(card, rows, output / "card.json")
    return 1 if failed else 0


def show(card: Card, rows: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Print ours beside published."""
    columns = (Column(name, justify="right") for name in ("published", "ours", "difference"))
    table = Table("benchmark", "metric", *columns, title=f"{card.title} ({card.source})", title_justify="left")
    for name, numbers in rows.items():
        for row in numbers:
            digits = 4 if 0 < abs(row["published"]) < 1 else 2
            difference = "-" if row["difference"] is None else f"{row['difference']:+.{digits}f}"
            cells = (number(row[key], digits) for key in ("published", "ours"))
            table.add_row(get(name).title, row["metric"], *cells, difference)
    console = wide_console()
    console.print(table)
    console.print(f"written to {path}", markup=False)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command: 0, 1 if a benchmark failed, 2 for a user's error."""
    parser = argparse.ArgumentParser(prog="videollm card", description="A published table again.")
    parser.add_argument("name", metavar="NAME", help=", ".join(names()))
    parser.add_argument("model", type=Path, nargs="?", metavar="MODEL", help="default: checkpoints/NAME")
    parser.add_argument("--data", type=Path, required=True, metavar="ROOT", help="folder with a folder for each")
    parser.add_argument("--output", type=Path, metavar="DIR", help="default: MODEL/card")
    parser.add_argument("--benchmarks", metavar="A,B,...", help="of the card (default: all)")
    parser.add_argument("--gpus", type=whole(1), metavar="N", help="processes (default: $GPUS, all GPUs, or 1)")
    parser.add_argument("--batch-size", metavar="N", help="of videollm.infer, as the next one")
    parser.add_argument("--device")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="over those of the card")
    args = parser.parse_intermixed_args(argv)
    if args.model and "=" in args.model.name:  # an override stands where the model may
        args.overrides, args.model = [str(args.model), *args.overrides], None
    return ended(lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
