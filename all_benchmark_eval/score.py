"""Score a prediction file: ``videollm score BENCHMARK --predictions FILE --output FILE.json``.

In: predictions in an official form or from ``videollm.infer``, and the ground truth. Out: a table, and json with every
metric, count and per-sample score, under the published protocol and the corrected one. No model and no GPU. What is
special to a benchmark is in its ``task.py``.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from itertools import chain, islice
from pathlib import Path
from types import MappingProxyType
from typing import Any

from rich.console import Console
from rich.table import Column, Table

from all_benchmark_eval import benchmark
from all_benchmark_eval.answer_forms import INFER, answer_form, official_answers
from all_benchmark_eval.benchmark import PROTOCOLS, WORDINGS, Benchmark, Options, Protocol, Scores, get
from all_benchmark_eval.forms import Content
from all_benchmark_eval.items import Answers, need
from all_benchmark_eval.metrics.significance import CONFIDENCE, bootstrap_interval, by_samples
from videollm.common.code import code
from videollm.common.command import Parser, a_path, ended, whole
from videollm.common.config import nearest, together
from videollm.common.files import check_writable

WIDTH, COLUMN = 110, 24  # characters that a table needs, and a column of many
MANY_UNREAD = 0.02  # share of unparsed answers from which on the table says so
SHOWN = 200  # characters of an unparsed answer
ALL = "all"  # in place of a variant: every one, side by side


def score_file(
    name: str, predictions: Path, annotations: Sequence[Path], output: Path, *,
    protocols: Sequence[Protocol] = PROTOCOLS, variant: str | None = None, wording: str | None = None,
    bootstrap: int = 0, skip_meteor: bool = False, sentence_model: str | None = None, seed: int = 0,
    explain: str | None = None, texts: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, Any]:  # fmt: skip
    """Score ``predictions`` and write the result to ``output``; returns what is written, see :func:`_result`.

    Answers in a model's own words (``answer_forms.ANSWERS``) are turned into the benchmark's own form first, which
    stays beside the output as ``<output>.predictions.json``; of ``infer`` output ``wording`` says how the questions
    were worded. ``annotations``: none, one, or several references. ``variant``: one of the benchmark's, or ``ALL``, for
    which ``protocols`` has "published <variant>" of each. ``explain``: the id of a sample of which is told what was
    read. ``texts``: of answers by the question's id, where ``predictions`` are made from them.

    Raises BenchmarkError for whatever the user can mend; then nothing is written.
    """
    content, _, (task, variant, truth) = together(
        partial(Content.of, predictions),
        partial(check_writable, output, "--output"),
        partial(_truth, name, variant, annotations),
    )
    given = _read(task, content, truth, wording, output.with_name(f"{output.stem}.predictions.json"), texts)
    told = None if explain is None else {"id": explain} | asdict(task.explain(truth, given, explain))
    names = ("annotations", *(f"annotations {number}" for number in range(2, len(annotations) + 1)))
    files = {"predictions": predictions} | dict(zip(names, annotations, strict=False))
    options = {"skip_meteor": skip_meteor, "sentence_model": sentence_model, "seed": seed}
    columns = _columns(task, protocols, variant)
    scores = {key: task.score(truth, given, Options(*column, **options)) for key, column in columns.items()}
    result = _result(task, variant, scores, files, options | {"bootstrap": bootstrap, "wording": wording})
    result |= {} if told is None else {"explained": told}
    benchmark.write_text(output, _dump(result))
    return result


def _truth(name: str, variant: str | None, annotations: Sequence[Path]) -> tuple[Benchmark, str, Any]:
    """The benchmark, its variant, and the ground truth if it is given."""
    task = get(name)
    variant, known = variant or task.variants[0], (*task.variants, ALL)
    other = f"--variant: {name} has no variant {variant!r}; {nearest(variant, known, noun='variants')}"
    none = f"--annotations: {name} needs its ground truth (all_benchmark_eval/{name}/README.md)"
    _, _, *truths = together(
        lambda: need(variant in known, other),
        lambda: need(annotations or task.own_truth, none),
        *(partial(task.load, path) for path in annotations),
    )
    return task, variant, task.joined(truths) if truths else None


def _columns(task: Benchmark, protocols: Sequence[Protocol], variant: str) -> dict[str, tuple[Protocol, str]]:
    """{what it is called: (protocol, variant)}; the corrected protocol is the same for all variants."""
    if variant != ALL:
        return {protocol: (protocol, variant) for protocol in protocols}
    of = {"published": task.variants, "corrected": task.variants[:1]}
    return {f"{p} {v}" if p == "published" else p: (p, v) for p in protocols for v in of[p]}


def _read(
    task: Benchmark, content: Content, truth: Any, wording: str | None, official: Path, texts: Mapping[str, str]
) -> Any:
    """Predictions of whatever form as the task scores them; ``official``: where answers in words are written to."""
    form = answer_form(content, task)
    if form is not None:
        answers = official_answers(content, form, task, truth)
        own = f"{content} is output of {form.name}"
        need(form is not INFER or wording is not None, f"--wording: {own}; say how its questions were worded")
        write_predictions(task, truth, answers, wording or "plain", official)
        content, texts = official, {name: answer.text for name, answer in answers.items()}
    given = task.read(content, truth)
    if texts:
        task.keep_texts(truth, given, texts)
    return given


def write_predictions(task: Benchmark, truth: Any, answers: Answers, wording: str, official: Path) -> None:
    """Write answers by id as a prediction file in the benchmark's own form."""
    data = task.from_answers(truth, answers, wording)
    benchmark.write_text(official, json.dumps(data, ensure_ascii=False, allow_nan=False) + "\n")


def _result(
    task: Benchmark, variant: str, scores: dict[str, Scores], files: dict[str, Path | None], options: dict[str, Any]
) -> dict[str, Any]:
    """What is written: ``protocols`` has metrics, unit, counts and so on of each, ``per_sample`` the single scores."""
    protocols, (commit, changed) = {}, code()
    for protocol, outcome in scores.items():
        entry = asdict(outcome)
        del entry["per_sample"]
        entry["unread"] = {name: text[:SHOWN] for name, text in outcome.unread.items()}
        entry["denominator"] = outcome.denominator or "all samples"
        if options["bootstrap"]:
            entry["intervals"] = _intervals(outcome, options["bootstrap"], options["seed"])
        protocols[protocol] = entry
    return {
        "benchmark": task.name, "title": task.title, "variant": variant, "headline": next(iter(scores)),
        "protocols": protocols,
        "files": {k: {"path": str(f), "sha256": benchmark.sha256(f)} for k, f in files.items() if f is not None},
        "options": options, "commit": f"{commit}-dirty" if changed else commit,
        "per_sample": {protocol: outcome.per_sample for protocol, outcome in scores.items()},
    }  # fmt: skip


def _intervals(scores: Scores, resamples: int, seed: int) -> dict[str, list[float]]:
    """{metric: [low, high]}, in the metric's own unit, of the metrics that are means over samples."""
    found = {}
    for metrics, _, values in by_samples(scores.per_sample):
        low, high = bootstrap_interval(values * (100 if scores.unit == "percent" else 1), resamples, seed)
        found |= {name: [float(a), float(b)] for name, a, b in zip(metrics, low, high, strict=True)}
    return {name: found[name] for name in scores.metrics if name in found}


def _dump(result: dict[str, Any]) -> str:
    """Indented json, but each metric's per-sample scores in one line: files stay short enough to look into."""
    head = json.dumps({k: v for k, v in result.items() if k != "per_sample"}, indent=1, allow_nan=False)
    protocols = []
    for protocol, scores in result["per_sample"].items():
        lines = (f"   {json.dumps(name)}: {json.dumps(values, allow_nan=False)}" for name, values in scores.items())
        protocols.append(f'  "{protocol}": {{\n' + ",\n".join(lines) + "\n  }")
    return head.removesuffix("\n}") + ',\n "per_sample": {\n' + ",\n".join(protocols) + "\n }\n}\n"


def tables(result: dict[str, Any]) -> Table:
    """Metrics down, protocols across; then counts, denominators, and notes."""
    protocols, shown = result["protocols"], [Column("metric", no_wrap=True)]
    for protocol, entry in protocols.items():
        heading = f"{protocol.replace(' ', chr(10))}\n{entry['unit']}"
        shown.append(Column(heading, justify="right", no_wrap=True))
        if "intervals" in entry:
            shown.append(Column(f"{CONFIDENCE:.0%} interval", justify="right", no_wrap=True, style="dim"))
    title = f"{result['title']}, variant {result['variant']}"
    table, entries = Table(*shown, title=title, title_justify="left", min_width=60), protocols.values()
    digits = 2 if all(entry["unit"] == "percent" for entry in entries) else 4
    for name in dict.fromkeys(name for entry in entries for name in entry["metrics"]):
        table.add_row(name, *(cell for entry in entries for cell in _cells(entry, name, digits)))
    table.add_section()
    for name in dict.fromkeys(name for entry in entries for name in entry["counts"]):
        counts = ([str(entry["counts"].get(name, "")), *[""] * ("intervals" in entry)] for entry in entries)
        table.add_row(name, *chain.from_iterable(counts), style="dim")
    return table


def wide_console(columns: int = 1) -> Console:
    """A console on which tables of so many columns are whole, also where the output goes to a file."""
    return Console(width=max(Console().width, WIDTH, COLUMN * columns), highlight=False, soft_wrap=True)


def _cells(entry: dict[str, Any], name: str, digits: int) -> list[str]:
    cells = [number(entry["metrics"].get(name), digits)]
    if "intervals" in entry:
        cells.append(" to ".join(f"{end:.{digits}f}" for end in entry["intervals"].get(name, ())))
    return cells


def number(value: float | None, digits: int) -> str:
    """A metric as a table has it."""
    return "-" if value is None else f"{value:.{digits}f}"


def show(result: dict[str, Any], output: Path, unparsed: int | None = None) -> None:
    """Print the table, what the means are over, the notes, what was not read, and where it all was written.

    ``unparsed``: how many unparsed answers are printed; None: one, where they are many.
    """
    console = wide_console(2 * len(result["protocols"]))
    console.print(tables(result))
    for protocol, entry in result["protocols"].items():
        console.print(f"{protocol}: means over {entry['denominator']}", markup=False)
        for note in entry["notes"]:
            console.print(f"{protocol}: {note}", markup=False)
        for line in _unread(protocol, entry, unparsed):
            console.print(line, markup=False)
    for key, value in result.get("explained", {}).items():
        console.print(f"{key}: {'(the file keeps no text)' if value is None else value}", markup=False)
    console.print(f"headline: {result['headline']}. Written to {output}", markup=False)


def _unread(protocol: str, entry: dict[str, Any], wanted: int | None) -> Iterator[str]:
    """That answers were not read, where they are many or ``wanted``, and some of them."""
    count, samples = entry["counts"]["unparsed"], max(entry["counts"]["samples"], 1)
    if not count or (wanted is None and count <= MANY_UNREAD * samples):
        return
    yield f"{protocol}: {count} answers ({100 * count / samples:.1f} %) could not be read; --show-unparsed N shows N"
    for name, text in islice(entry["unread"].items(), 1 if wanted is None else wanted):
        yield f"  {name}: {text!r}" if text else f"  {name}: empty, or the file keeps no text of it"


def add_options(parser: argparse.ArgumentParser) -> None:
    """How is scored, for every command that does."""
    parser.add_argument("--bootstrap", type=whole(0), default=0, metavar="N", help="resamples for confidence intervals")
    parser.add_argument("--skip-meteor", action="store_true", help="score the rest where there is no Java")
    parser.add_argument("--sentence-model", metavar="PATH", help="all-MiniLM-L6-v2: folder or hub name")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; a user's error is one line and exit status 2."""
    parser = Parser(prog="videollm score", description="Score a prediction file.")
    parser.add_argument("benchmark", metavar="BENCHMARK", help=", ".join(benchmark.names()))
    parser.add_argument("--predictions", type=a_path, required=True, metavar="FILE", help="plain or .gz")
    which = "ground truth; the benchmark's README says which"
    parser.add_argument("--annotations", type=a_path, nargs="+", default=[], metavar="FILE", help=which)
    parser.add_argument("--output", type=a_path, required=True, metavar="FILE.json")
    parser.add_argument("--protocol", choices=PROTOCOLS, help="default: both; published is the headline")
    parser.add_argument("--variant", help=f"whose script (the benchmark's README lists them), or {ALL}")
    parser.add_argument("--wording", choices=WORDINGS, help="of the questions that videollm.infer answered")
    parser.add_argument("--show-unparsed", type=whole(0), metavar="N", help="print N answers that could not be read")
    parser.add_argument("--explain", metavar="ID", help="what was read of the answer of this sample, and by which rule")
    add_options(parser)
    parser.add_argument("--seed", type=whole(0), default=0, help="of random strings and resamples")
    chosen = vars(parser.parse_args(argv))
    name, protocol, unparsed = (chosen.pop(key) for key in ("benchmark", "protocol", "show_unparsed"))

    def run() -> None:
        result = score_file(name, protocols=[protocol] if protocol else PROTOCOLS, **chosen)
        show(result, chosen["output"], unparsed)

    return ended(run)


if __name__ == "__main__":
    sys.exit(main())
