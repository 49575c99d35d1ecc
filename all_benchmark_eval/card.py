"""Run a published table again: ``videollm card NAME [MODEL] --data DIR``.

A card, ``cards/NAME.yaml``, says which model with which question, frames, pixels and decoding, on which benchmarks
under whose script, and the published numbers with their source. In: a card, the converted model, a data root. Out: what
``evaluate`` writes, and ``card.json`` with ours beside published. No benchmark and no model is known here.
"""

import argparse
import copy
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.table import Column, Table

from all_benchmark_eval import benchmark
from all_benchmark_eval.benchmark import WORDINGS, Benchmark, get
from all_benchmark_eval.evaluate import Run, evaluate, processes
from all_benchmark_eval.items import need
from all_benchmark_eval.metrics.moments import MomentBenchmark
from all_benchmark_eval.score import number, wide_console
from videollm.common.command import USERS, Parser, a_path, ended, message, whole
from videollm.common.config import build, read_yaml, together
from videollm.common.files import check_writable
from videollm.inference.options import read_overrides

CARDS = Path(__file__).parents[1] / "cards"
DATA = CARDS / "data.yaml"  # of the benchmarks that cards name


@dataclass(frozen=True)
class Origin:
    """Where a model comes from, and the command that makes a checkpoint of ours of it. ``source``: of size, licence."""

    hub: str
    size: str  # to download
    licence: str
    convert: str
    source: str = ""


@dataclass(frozen=True)
class Download:
    """The data of a benchmark: what they are, how large, under which licence, the command that gets them, and the
    ``source`` of what is said here. "unknown" where no source tells."""

    what: str
    size: str
    licence: str
    get: str
    source: str

    def __str__(self) -> str:
        return f"get {self.what} (size: {self.size}; licence: {self.licence}): {self.get}"


@dataclass(frozen=True)
class Row:
    """One benchmark of a card: the variant whose script printed the numbers, and the numbers by metric (none, where
    they are not known here). ``data``: what to get, where ``cards/data.yaml`` has nothing of the benchmark."""

    variant: str
    data: str = ""
    published: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Card:
    """``overrides``: key=value for ``videollm.infer``, over the sampling that the wording has. ``question``: asked for
    a moment in place of the wording's, see ``moments.moment_questions``. ``differs``: what is known to be other than in
    the published run."""

    title: str
    model: Origin
    wording: str
    source: str
    benchmarks: dict[str, Row]
    overrides: list[str] = field(default_factory=list)
    question: str = ""
    differs: list[str] = field(default_factory=list)

    def task(self, name: str) -> Benchmark:
        """A benchmark as this card asks it."""
        task = get(name)
        if self.question and isinstance(task, MomentBenchmark):
            task = copy.copy(task)
            task.wordings = {**task.wordings, self.wording: self.question}
        return task


def names() -> list[str]:
    """Of all cards."""
    return sorted(path.stem for path in CARDS.glob("*.yaml") if path.name != DATA.name)


def downloads() -> dict[str, Download]:
    """What to get, by benchmark. Raises ConfigError for an entry that says something unknown."""
    return {name: build(Download, entry, f"{DATA.name}: {name}") for name, entry in read_yaml(DATA).items()}


def read_card(name: str) -> Card:
    """A card by its name. Raises UserError for an unknown one, or a line for each thing it says that is unknown."""
    need(name in names(), f"NAME: there is no card {name!r}; there are {', '.join(names())}")
    card, known = build(Card, read_yaml(CARDS / f"{name}.yaml"), f"{name}.yaml"), downloads()

    def check(benchmark_name: str, row: Row) -> None:
        variants = get(benchmark_name).variants
        where, other = f"{name}.yaml: {benchmark_name}", f"no variant {row.variant!r}; {', '.join(variants)}"
        need(row.variant in variants, f"{where}: {other}")
        told = f"{where}: {DATA.name} does not say what to get of it; say it there, or here in `data`"
        need(row.data or benchmark_name in known, told)

    wording = f"{name}.yaml: wording {card.wording!r} is not one of {', '.join(WORDINGS)}"
    together(
        partial(need, card.wording in WORDINGS, wording), *(partial(check, *row) for row in card.benchmarks.items())
    )
    return card


def compared(row: Row, result: dict[str, Any]) -> list[dict[str, Any]]:
    """{metric, published, ours, difference} of each number, or where none is known of what stands for the benchmark.

    None stands for a number that is not published, and where the benchmark prints no such metric.
    """
    metrics = result["protocols"]["published"]["metrics"]
    found = []
    for metric, value in (row.published or dict.fromkeys(get(result["benchmark"]).headline or metrics)).items():
        ours = metrics.get(metric)
        difference = None if None in (ours, value) else ours - value
        found.append({"metric": metric, "published": value, "ours": ours, "difference": difference})
    return found


def places(card: Card, names: Sequence[str], root: Path) -> tuple[dict[str, tuple[Path, Path]], dict[str, str]]:
    """(annotations, videos) of each benchmark whose data are there, and of the others what to get.

    Raises UserError where nothing is there: a line for each.
    """
    found, failed = {}, {}
    for name in names:
        told = card.benchmarks[name].data or downloads()[name]
        task, told = get(name), f"{told} (all_benchmark_eval/{name}/README.md)"
        folder = benchmark.data_folder(task, root)
        try:
            found[name] = benchmark.find_annotations(task, folder), folder / task.layout.videos
            need(found[name][1].is_dir(), f"{found[name][1]}: no such folder")
        except benchmark.BenchmarkError as error:
            found.pop(name, None)
            failed[name] = f"{message(error).partition('; where')[0]}; {told}"
    together(*(partial(need, found, f"--data: {name}: {why}") for name, why in failed.items()))
    return found, failed


def prepare(args: argparse.Namespace) -> tuple[Card, Run, dict[str, tuple[Path, Path]], dict[str, str]]:
    """The card, how its benchmarks are run, and ``places``. Raises UserError, with a line for all that is wrong."""
    card = read_card(args.name)
    model = args.model or Path("checkpoints") / args.name
    output = args.output or model / "card"
    origin = card.model
    told = f"get {origin.hub} from the hub (size: {origin.size}; licence: {origin.licence}), then: {origin.convert}"
    chosen = args.benchmarks.split(",") if args.benchmarks else list(card.benchmarks)
    unknown = [name for name in chosen if name not in card.benchmarks]
    of_it = f"--benchmarks: {args.name} has no {', '.join(unknown)}; it has {', '.join(card.benchmarks)}"
    *_, (there, failed) = together(
        lambda: need(model.is_dir(), f"{model}: no such checkpoint; {told}"),
        lambda: need(not unknown, of_it),
        lambda: check_writable(output / "card.json", "--output"),
        lambda: read_overrides(args.overrides),
        lambda: places(card, [name for name in chosen if name not in unknown], args.data),
    )
    options = [part for key in ("batch_size", "device") if (value := getattr(args, key))
               for part in (f"--{key.replace('_', '-')}", str(value))]  # fmt: skip
    run = Run(model, output, card.wording, processes(args.gpus), options, [*card.overrides, *args.overrides])
    return card, run, there, failed


def run(args: argparse.Namespace) -> int:
    """Ask, score and compare; the exit status: 1 if a benchmark failed."""
    card, first, there, failed = prepare(args)
    rows = {}
    for name, where in there.items():
        one = replace(first, score_options={"variant": card.benchmarks[name].variant})
        try:
            rows[name] = compared(card.benchmarks[name], evaluate(card.task(name), one, *where))
        except USERS as error:  # the others go on
            failed[name] = message(error)
    for name, why in failed.items():
        print(f"error: {name}: {why}", file=sys.stderr, flush=True)
    said = {"card": args.name, "title": card.title, "source": card.source, "differs": card.differs}
    text = json.dumps(said | {"rows": rows, "failed": failed}, indent=1, allow_nan=False)
    benchmark.write_text(first.output / "card.json", f"{text}\n")
    if rows:
        show(card, rows, first.output / "card.json")
    return 1 if failed else 0


def show(card: Card, rows: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Print ours beside published."""
    columns = (Column(name, justify="right") for name in ("published", "ours", "difference"))
    table = Table("benchmark", "metric", *columns, title=f"{card.title} ({card.source})", title_justify="left")
    for name, numbers in rows.items():
        for row in numbers:
            digits = 4 if 0 < abs(row["published"] or 0) < 1 else 2
            difference = "-" if row["difference"] is None else f"{row['difference']:+.{digits}f}"
            cells = (number(row[key], digits) for key in ("published", "ours"))
            table.add_row(get(name).title, row["metric"], *cells, difference)
    console = wide_console()
    console.print(table)
    for line in (*card.differs, f"written to {path}"):
        console.print(line, markup=False)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command: 0, 1 if a benchmark failed, 2 for a user's error."""
    parser = Parser(prog="videollm card", description="A published table again.")
    parser.add_argument("name", metavar="NAME", help=", ".join(names()))
    parser.add_argument("model", type=a_path, nargs="?", metavar="MODEL", help="default: checkpoints/NAME")
    parser.add_argument("--data", type=a_path, required=True, metavar="ROOT", help="folder with a folder for each")
    parser.add_argument("--output", type=a_path, metavar="DIR", help="default: MODEL/card")
    parser.add_argument("--benchmarks", metavar="A,B,...", help="of the card (default: all)")
    parser.add_argument("--gpus", type=whole(1), metavar="N", help="processes (default: $GPUS, all GPUs, or 1)")
    parser.add_argument("--batch-size", type=whole(1), metavar="N", help="of videollm.infer, as the next one")
    parser.add_argument("--device")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="over those of the card")
    args = parser.parse_intermixed_args(argv)
    if args.model and "=" in args.model.name:  # an override stands where the model may
        args.overrides, args.model = [str(args.model), *args.overrides], None
    return ended(lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
