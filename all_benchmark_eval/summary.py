"""The table of many benchmarks: ``results.json`` and ``results.md`` in one folder, rewritten after every benchmark.

In: results of ``score.score_file``, or why there are none. Entries of earlier runs with the same model and wording
stay, so that benchmarks can be added one by one. Knows no model and no file of a benchmark.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Column, Table

from all_benchmark_eval.benchmark import PROTOCOLS, get, need, read_json, write_text
from all_benchmark_eval.score import number, wide_console

COLUMNS = ("benchmark", "metric", *PROTOCOLS, "unit", "scored of")


@dataclass
class Summary:
    """``entries``: by benchmark, {"title", "variant", "protocols": {protocol: {metrics, unit, counts, ...}}, "files"}
    or {"title", "error"}."""

    folder: Path
    model: str
    wording: str
    entries: dict[str, dict]

    @staticmethod
    def open(folder: Path, model: Path, wording: str) -> "Summary":
        """With the entries that are there. Raises BenchmarkError if there are scores of another model or wording."""
        summary, path = Summary(folder, str(model), wording, {}), folder / "results.json"
        if path.is_file():
            old = read_json(path)
            entries = old.get("benchmarks") if isinstance(old, dict) else None
            need(isinstance(entries, dict), f"{path}: not written by evaluate; choose another --output or delete it")
            if any("error" not in entry for entry in entries.values()):  # else nothing is lost
                for key, now in (("model", summary.model), ("wording", wording)):
                    told = f"{path}: {key} was {old.get(key)}, now {now}; choose another --output or delete it"
                    need(old.get(key) == now, told)
                summary.entries = entries
        return summary

    def add(self, name: str, result: dict[str, Any]) -> None:
        """Take note of a scored benchmark."""
        kept = ("title", "variant", "protocols", "files", "options", "commit")
        self._put(name, {key: result[key] for key in kept})

    def fail(self, name: str, message: str) -> None:
        """Take note of one that could not be scored; what an earlier run has scored of it is no longer shown."""
        self._put(name, {"title": get(name).title, "error": message})

    def failed(self, names: Iterable[str]) -> list[str]:
        """Those of ``names`` that have no scores."""
        return [name for name in names if "error" in self.entries[name]]

    def show(self) -> None:
        """Print the table."""
        columns = (Column(name, justify="right" if name in PROTOCOLS else "left") for name in COLUMNS)
        table = Table(*columns, title=f"{self.model}, wording {self.wording}", title_justify="left")
        for row in self._rows():
            table.add_row(*row)
        console = wide_console()
        console.print(table)
        for name in self.failed(self.entries):
            console.print(f"{name}: no scores: {self.entries[name]['error']}", markup=False)
        console.print(f"written to {self.folder / 'results.md'} and results.json", markup=False)

    def _put(self, name: str, entry: dict) -> None:
        self.entries[name] = entry
        data = {"model": self.model, "wording": self.wording, "benchmarks": self.entries}
        write_text(self.folder / "results.json", json.dumps(data, indent=1, allow_nan=False) + "\n")
        write_text(self.folder / "results.md", self._markdown())

    def _markdown(self) -> str:
        rule = ["---:" if column in PROTOCOLS else "---" for column in COLUMNS]
        lead = f"Questions worded for: {self.wording}. *published* is what papers compare with."
        lines = [f"# {self.model}", "", lead]
        lines += ["", *("| " + " | ".join(_escaped(row)) + " |" for row in (COLUMNS, rule, *self._rows()))]
        failed = [f"- {name}: {_escaped([self.entries[name]['error']])[0]}" for name in self.failed(self.entries)]
        lines += ["", "Without scores:", "", *failed] if failed else []
        return "\n".join(lines) + "\n"

    def _rows(self) -> Iterator[tuple[str, ...]]:
        """One row a headline metric; every number is in the benchmark's own ``scores.json``."""
        for name, entry in self.entries.items():
            if "error" in entry:
                yield (entry["title"], "failed", *[""] * (len(COLUMNS) - 2))
                continue
            protocols = entry["protocols"]
            first = protocols[next(iter(protocols))]
            digits, counts = 2 if first["unit"] == "percent" else 4, first["counts"]
            for metric in (m for m in get(name).headline or first["metrics"] if m in first["metrics"]):
                cells = [number(protocols[p]["metrics"].get(metric), digits) for p in PROTOCOLS]
                yield (entry["title"], metric, *cells, first["unit"], f"{counts['scored']} of {counts['samples']}")


def _escaped(cells: Iterable[str]) -> list[str]:
    """Texts as cells of a markdown table."""
    return [" ".join(cell.split()).replace("|", "\\|") for cell in cells]
