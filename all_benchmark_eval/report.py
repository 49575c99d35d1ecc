"""Write one page about many scored runs: ``videollm report RUN [RUN ...] --output DIR [--data ROOT]``.

In: folders of ``evaluate``, or single files of ``score``, each a run. Out: ``DIR/index.html``, which needs no other
file: scores with intervals, paired differences to the first run, IoU histograms, errors by length and place of the true
span and by length of the video, and answers that were not read. It reads what ``score`` wrote, and the annotations that
are named there; no model. With the data's folder all answers are in pages beside it, where they are seen with their
videos (``videollm.view``).
"""

import itertools
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from numpy.typing import NDArray

from all_benchmark_eval.benchmark import data_folder, get, read_answers
from all_benchmark_eval.compare import differences, read_scores
from all_benchmark_eval.items import need
from all_benchmark_eval.metrics.moments import Moments
from all_benchmark_eval.metrics.significance import CONFIDENCE, bootstrap_interval, by_samples
from all_benchmark_eval.score import number
from quickstart.pictures import report_html
from videollm.common.command import Parser, a_path, ended, whole
from videollm.common.config import together
from videollm.common.files import check_folder, check_writable
from videollm.data import load_records
from videollm.inference.timeline import STYLE, colors, save
from videollm.show.viewer import Asked, of_record, write_page

IOU, PROTOCOL = "mIoU", "corrected"  # what is drawn: a metric with an IoU a sample, and whose
BINS = 4  # as many samples in each
UNREAD = 3  # unread answers of a run that are shown
WORST = 5  # answers with the lowest IoU that are linked

Scores = Mapping[str, dict[str, Any]]  # {benchmark: file of ``score``}
Section = dict[str, Any]  # of ``report_html``


@dataclass(frozen=True)
class Report:
    """``runs``: {name: {benchmark: what ``score`` wrote}}; ``output``: the folder of the page; ``data``: as of
    ``evaluate``, and ``folders``: what it wrote, {name: folder}."""

    runs: Mapping[str, Scores]
    output: Path
    resamples: int
    seed: int = 0
    data: Path | None = None
    folders: Mapping[str, Path] = field(default_factory=dict)

    @property
    def benchmarks(self) -> list[str]:
        return list(dict.fromkeys(name for scores in self.runs.values() for name in scores))

    def having(self, benchmark: str) -> dict[str, dict[str, Any]]:
        """The runs that have scores of a benchmark, and those."""
        return {run: scores[benchmark] for run, scores in self.runs.items() if benchmark in scores}


def read_runs(paths: Sequence[Path]) -> dict[str, Scores]:
    """{name: scores}. Raises UserError, a line for each that is neither a folder of ``evaluate`` nor a file of
    ``score``, or is called as another one."""
    names = list(map(_name, paths))
    read = (partial(_read_run, path, taken=names[:n]) for n, path in enumerate(paths))
    return dict(zip(names, together(*read), strict=True))


def _read_run(path: Path, taken: Sequence[str]) -> Scores:
    files = sorted(path.glob("*/scores.json")) if path.is_dir() else [path]
    need(files, f"{path}: no <benchmark>/scores.json in this folder; give the output of all_benchmark_eval.evaluate")
    same = f"{path}: another run is called {_name(path)!r} as well; give folders or files of other names"
    need(_name(path) not in taken, same)
    return {data["benchmark"]: data for data in together(*(partial(read_scores, file) for file in files))}


def _name(path: Path) -> str:
    """What a run is called: the model's folder where the scores are in its folder ``evaluation``."""
    path = path.resolve()
    return path.parent.name if path.name == "evaluation" else path.stem if path.is_file() else path.name


# ---- tables ----------------------------------------------------------------------------------------------------------


def score_sections(report: Report) -> Iterator[Section]:
    """A table a protocol: benchmarks and metrics down, runs across."""
    names = dict.fromkeys(p for scores in report.runs.values() for data in scores.values() for p in data["protocols"])
    for protocol in names:
        rows = []
        for benchmark in report.benchmarks:
            having = {run: data for run, data in report.having(benchmark).items() if protocol in data["protocols"]}
            for metric in _metrics(benchmark, protocol, having):
                cells = [_cell(report, having[run], protocol, metric) if run in having else "" for run in report.runs]
                rows.append([get(benchmark).title, metric, *cells])
        interval = f"{CONFIDENCE:.0%} bootstrap intervals in brackets, of metrics that are means over samples."
        yield {"heading": f"Scores, {protocol}", "columns": ["benchmark", "metric", *report.runs], "rows": rows}
        yield {"caption": interval}


def _metrics(benchmark: str, protocol: str, having: Mapping[str, dict[str, Any]]) -> list[str]:
    """The few that stand for a benchmark, or all."""
    every = list(dict.fromkeys(m for data in having.values() for m in data["protocols"][protocol]["metrics"]))
    return [metric for metric in get(benchmark).headline or every if metric in every]


def _cell(report: Report, data: Mapping[str, Any], protocol: str, metric: str) -> str:
    entry = data["protocols"][protocol]
    scale, digits = (100.0, 2) if entry["unit"] == "percent" else (1.0, 4)
    value = number(entry["metrics"].get(metric), digits)
    for _, _, values in by_samples({metric: data["per_sample"].get(protocol, {}).get(metric, {})}):
        low, high = bootstrap_interval(values * scale, report.resamples, report.seed)[:, 0]
        return f"{value} [{low:.{digits}f}, {high:.{digits}f}]"
    return value


def difference_sections(report: Report) -> Iterator[Section]:
    """Every other run held against the first, sample by sample."""
    first, *others = report.runs
    rows, notes = [], []
    for run, benchmark in itertools.product(others, report.benchmarks):
        a, b = report.runs[first].get(benchmark), report.runs[run].get(benchmark)
        if not a or not b:
            continue
        if a["variant"] != b["variant"]:
            notes.append(f"{run}, {benchmark}: of variant {b['variant']}, {first} of {a['variant']}: not compared.")
            continue
        rows += _differences(report, run, benchmark, a, b)
    if rows or notes:
        interval = f"{CONFIDENCE:.0%} interval"
        columns = ["run", "benchmark", "protocol", "metric", f"minus {first}", interval, "p", "samples"]
        yield {"heading": "Paired differences", "columns": columns, "rows": rows, "caption": " ".join(notes)}


def _differences(report: Report, run: str, benchmark: str, a: Mapping, b: Mapping) -> Iterator[list[str]]:
    for protocol in (p for p in a["protocols"] if p in b["protocols"]):
        percent = a["protocols"][protocol]["unit"] == "percent"
        shown = _metrics(benchmark, protocol, {"a": a, "b": b})
        pair = [{m: t for m, t in x["per_sample"].get(protocol, {}).items() if m in shown} for x in (a, b)]
        if not any(pair[0].get(metric, {}).keys() & pair[1].get(metric, {}).keys() for metric in shown):
            continue
        digits = 2 if percent else 4
        for d in differences(*pair, 100.0 if percent else 1.0, report.resamples, report.seed):
            yield [run, get(benchmark).title, protocol, d.metric, *d.told(digits), str(d.shared)]


def unread_sections(report: Report) -> Iterator[Section]:
    """What was not read or is not there."""
    rows = []
    for benchmark in report.benchmarks:
        for run, data in report.having(benchmark).items():
            entry = data["protocols"].get(PROTOCOL) or next(iter(data["protocols"].values()))
            counts, unread = entry["counts"], itertools.islice(entry.get("unread", {}).items(), UNREAD)
            told = "; ".join(f"{name}: {text!r}" for name, text in unread)
            cells = (str(counts[key]) for key in ("samples", "unparsed", "missing"))
            rows.append([get(benchmark).title, run, *cells, told])
    columns = ["benchmark", "run", "samples", "not read", "missing", "some of them"]
    yield {"heading": "Answers that were not read", "columns": columns, "rows": rows}


# ---- pictures --------------------------------------------------------------------------------------------------------


def iou_sections(report: Report) -> Iterator[Section]:
    """Of each benchmark with an IoU a sample: how they are distributed, and where they are low."""
    for benchmark in report.benchmarks:
        files = report.having(benchmark)
        ious = {run: found for run, x in files.items() if (found := x["per_sample"].get(PROTOCOL, {}).get(IOU))}
        if not ious:
            continue
        title, picture = get(benchmark).title, report.output / f"{benchmark}.png"
        truth, why = _truth(benchmark, files.values())
        panels = {"IoU": _histograms(ious)} | (_errors(truth, ious) if truth else {})
        draw(picture, panels, list(report.runs))
        errors = "; mean IoU by length and place of the true span, by length of the video" if truth else ""
        yield {"heading": title, "image": picture, "caption": f"{PROTOCOL}: share of samples by IoU{errors}.{why}"}


def _truth(benchmark: str, files: Iterable[Mapping[str, Any]]) -> tuple[Moments | None, str]:
    """The ground truth where its spans are known; else why the errors are not broken down."""
    named = next((data["files"]["annotations"]["path"] for data in files if "annotations" in data["files"]), None)
    if named is None or not Path(named).exists():
        return None, f" Errors are not broken down: the annotations ({named}) are not there."
    truth = get(benchmark).load(Path(named))
    return (truth, "") if isinstance(truth, Moments) else (None, "")


Panel = dict[str, tuple[list[str], list[float]]]  # {run: (labels of bins, a value for each)}


def _histograms(ious: Mapping[str, Mapping[str, float]]) -> Panel:
    edges = np.linspace(0, 1, 11)
    labels = [f"{low:.1f}" for low in edges[:-1]]
    shares = {run: np.histogram(list(values.values()), edges)[0] / len(values) for run, values in ious.items()}
    return {run: (labels, share.tolist()) for run, share in shares.items()}


def _errors(truth: Moments, ious: Mapping[str, Mapping[str, float]]) -> dict[str, Panel]:
    """Mean IoU over quarters of the samples, by three measures of the truth."""
    length, middle = truth.spans[:, 1] - truth.spans[:, 0], truth.spans.mean(-1)
    kinds = {"true span (s)": length, "its place in the video": middle / truth.durations, "video (s)": truth.durations}
    return {name: panel for name, values in kinds.items() if (panel := _by(truth, values, ious))}


def _by(truth: Moments, values: NDArray[np.float64], ious: Mapping[str, Mapping[str, float]]) -> Panel:
    known = np.isfinite(values)
    if not known.any():
        return {}
    edges = np.unique(np.quantile(values[known], np.linspace(0, 1, BINS + 1)))
    place = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, max(len(edges) - 2, 0))
    labels = [f"{low:.3g}-{high:.3g}" for low, high in itertools.pairwise(edges)] or [f"{edges[0]:.3g}"]
    found: Panel = {}
    for run, table in ious.items():
        own = np.array([table.get(name, np.nan) for name in truth.ids])
        inside = [own[known & (place == k) & np.isfinite(own)] for k in range(len(labels))]
        found[run] = (labels, [float(some.mean()) if len(some) else np.nan for some in inside])
    return found


def draw(path: Path, panels: Mapping[str, Panel], runs: Sequence[str]) -> None:
    """A small panel for each, with a line a run, to a PNG."""
    color = dict(zip(runs, colors(len(runs)), strict=True))
    with rc_context(STYLE):
        figure = Figure(figsize=(3.4 * len(panels), 2.9), dpi=130, layout="constrained")
        places = figure.subplots(1, len(panels), squeeze=False).flat
        for axes, (title, lines) in zip(places, panels.items(), strict=True):
            for run, (labels, values) in lines.items():
                axes.plot(range(len(labels)), values, marker="o", markersize=3, color=color[run], label=run)
                axes.set_xticks(range(len(labels)), labels, rotation=45)
            axes.set_title(title)
            axes.set_ylim(bottom=0)
        handles = {line.get_label(): line for axes in figure.axes for line in axes.get_lines()}
        figure.legend(handles.values(), handles.keys(), loc="outside upper left", ncols=4)
        save(figure, path)


# ---- answers ---------------------------------------------------------------------------------------------------------


def answer_sections(report: Report) -> Iterator[Section]:
    """Of each benchmark whose answers are there: a page of all of them (of two runs at most), and the worst."""
    for name in report.benchmarks if report.data is not None else ():
        places = {run: report.folders[run] / name for run in report.having(name)}
        places = {run: place for run, place in places.items() if (place / "answers.jsonl").is_file()}
        runs = {run: read_answers(place / "answers.jsonl") for run, place in itertools.islice(places.items(), 2)}
        if not runs:
            continue
        asked = _asked(report, name, places[next(iter(runs))] / "questions.jsonl")
        page, videos = Path("answers", name), data_folder(get(name), report.data) / get(name).layout.videos
        write_page(report.output / page, runs, videos, asked)
        address, links = (page / "index.html").as_posix(), []
        for run in runs:
            ious = report.runs[run][name]["per_sample"].get(PROTOCOL, {}).get(IOU, {})
            links += [(i, f"{i}: IoU {ious[i]:.2f} of {run}") for i in sorted(ious, key=ious.get)[:WORST]]
        worst = [(f"{address}#{urlencode({'id': i})}", text) for i, text in links]
        yield {"heading": f"Answers, {get(name).title}", "links": [(address, f"all of {' and '.join(runs)}"), *worst]}


def _asked(report: Report, name: str, questions: Path) -> dict[str, Asked]:
    """A benchmark's questions as they were asked, with the true spans where those are known."""
    asked = {record.id: of_record(record) for record in load_records(questions)}
    truth, _ = _truth(name, report.having(name).values())
    known = zip(truth.ids, truth.spans.tolist(), strict=True) if truth is not None else ()
    return asked | {i: replace(asked[i], truth=[span]) for i, span in known if i in asked}


# ---- the command -----------------------------------------------------------------------------------------------------


def write(report: Report) -> Path:
    """Write the page; its path."""
    parts = (score_sections, difference_sections, iou_sections, unread_sections, answer_sections)
    sections = [section for part in parts for section in part(report)]
    page = report.output / "index.html"
    report_html(page, f"{', '.join(report.runs)}: {len(report.benchmarks)} benchmarks", sections)
    return page


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; a user's error is one line and exit status 2."""
    parser = Parser(prog="videollm report", description="One page for many runs.")
    parser.add_argument("runs", type=a_path, nargs="+", metavar="RUN", help="folder of evaluate, or a file of score")
    parser.add_argument("--output", type=a_path, required=True, metavar="DIR")
    parser.add_argument("--resamples", type=whole(1), default=1000, metavar="N", help="for intervals and p-values")
    linked = "folder of the data, as of evaluate: all answers are shown beside their videos, in pages of their own"
    parser.add_argument("--data", type=a_path, metavar="ROOT", help=linked)
    args = parser.parse_args(argv)

    def run() -> None:
        runs, *_ = together(
            lambda: read_runs(args.runs),
            lambda: check_writable(args.output / "index.html", "--output"),
            *[lambda: check_folder(args.data, "--data")] * (args.data is not None),
        )
        folders = dict(zip(runs, args.runs, strict=True))
        print(f"written to {write(Report(runs, args.output, args.resamples, data=args.data, folders=folders))}")

    return ended(run)


if __name__ == "__main__":
    sys.exit(main())
