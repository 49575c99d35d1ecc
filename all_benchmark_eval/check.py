"""Tell what of the benchmarks' data is there: ``videollm check ROOT [--benchmarks a,b]``.

For each: are the annotations there and readable, and of the videos that its questions name how many are present,
missing, unreadable. Every file is read once, its first frame decoded. The expected layout is each task's ``layout``.
No model.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rich.table import Column, Table
from tqdm import tqdm

from all_benchmark_eval import benchmark
from all_benchmark_eval.benchmark import Benchmark, BenchmarkError, get, names
from all_benchmark_eval.items import need
from all_benchmark_eval.score import wide_console
from videollm.common.command import Parser, a_path, ended
from videollm.common.files import check_writable
from videollm.data import AnnotationError, Record, parse_record
from videollm.video.decode import VideoError, probe
from videollm.video.folder import open_folder
from videollm.video.read import safe_join
from videollm.video.view import View

SHOWN = 3  # bad videos that are named on the terminal
COLUMNS = ("benchmark", "annotations", "questions", "videos", "present", "missing", "unreadable", "damaged")


def check(task: Benchmark, root: Path) -> dict[str, Any]:
    """``annotations`` ("present", "missing" or "unreadable") with ``path`` or ``problem``, ``questions``, and
    ``videos``: {"named", "present", "missing": [paths], "unreadable": {path: why}, "damaged": {path: why}}; a damaged
    one (truncated, jumping) is present and can be asked about."""
    folder = benchmark.data_folder(task, root)
    videos = folder / task.layout.videos
    nothing = {"title": task.title, "questions": 0, "folder": str(videos), "videos": _sorted({})}
    try:
        path = benchmark.find_annotations(task, folder)
    except BenchmarkError as error:
        return nothing | {"annotations": "missing", "problem": str(error)}
    try:
        lines = task.questions(task.load(path), "plain")
        records = [parse_record(line, number, task.name) for number, line in enumerate(lines, start=1)]
    except (BenchmarkError, AnnotationError) as error:
        return nothing | {"annotations": "unreadable", "problem": str(error)}
    found = {"annotations": "present", "path": str(path), "questions": len(records)}
    return nothing | found | {"videos": _videos(task.title, records, videos)}


def complete(found: dict[str, Any]) -> bool:
    """Whether nothing is missing, unreadable or damaged."""
    videos = found["videos"]
    return found["annotations"] == "present" and videos["present"] == videos["named"] and not videos["damaged"]


def _videos(title: str, records: Sequence[Record], root: Path) -> dict[str, Any]:
    """What became of each video that the records name; files are read by several threads."""
    named = {record.video: record.asking.view for record in records if record.video}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        problems = pool.map(lambda item: _problem(root, *item), named.items())
        return _sorted(dict(zip(named, tqdm(problems, total=len(named), desc=title, unit="video"), strict=True)))


def _problem(root: Path, name: str, view: View) -> tuple[str, str]:
    """(present, missing, unreadable or damaged; what is wrong)."""
    try:
        path = safe_join(root, name)
        if not path.exists():
            return "missing", ""
        info = open_folder(path, view.frames)[0] if view.frames else probe(path)
    except VideoError as error:
        return "unreadable", str(error)
    return ("damaged", f"{path}: {'; '.join(info.problems.values())}") if info.problems else ("present", "")


def _sorted(problems: dict[str, tuple[str, str]]) -> dict[str, Any]:
    of_kind = {kind: {n: why for n, (k, why) in problems.items() if k == kind} for kind in ("unreadable", "damaged")}
    missing = [name for name, (kind, _) in problems.items() if kind == "missing"]
    present = len(problems) - len(missing) - len(of_kind["unreadable"])
    return {"named": len(problems), "present": present, "missing": missing} | of_kind


def show(found: dict[str, dict]) -> None:
    """Print the table, and below it the first things that are wrong."""
    columns = (Column(c, justify="left" if c in COLUMNS[:2] else "right", no_wrap=True) for c in COLUMNS)
    table, console = Table(*columns, title="data", title_justify="left"), wide_console()
    for name, entry in found.items():
        videos = entry["videos"]
        counts = (entry["questions"], videos["named"], videos["present"], *map(len, list(videos.values())[2:]))
        table.add_row(name, entry["annotations"], *map(str, counts))
    console.print(table)
    for name, entry in found.items():
        if "problem" in entry:
            console.print(f"{name}: {entry['problem']}", markup=False)
        bad = [f"missing: {entry['folder']}/{video}" for video in entry["videos"]["missing"]]
        for kind in (bad, *(list(entry["videos"][kind].values()) for kind in ("unreadable", "damaged"))):
            for line in kind[:SHOWN]:
                console.print(f"{name}: {line}", markup=False)
            if len(kind) > SHOWN:
                console.print(f"{name}: ... and {len(kind) - SHOWN} more (--output lists them)", markup=False)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command: 0 if everything is there, 1 if not, 2 for a user's error."""
    parser = Parser(prog="videollm check", description="What of the data is there.")
    parser.add_argument("root", type=a_path, metavar="ROOT", help="the data root: a folder for each benchmark")
    parser.add_argument("--benchmarks", metavar="A,B,...", help=f"default: all ({', '.join(names())})")
    parser.add_argument("--output", type=a_path, metavar="FILE.json", help="every missing and unreadable video by name")
    args = parser.parse_args(argv)
    return ended(lambda: run(args))


def run(args: argparse.Namespace) -> int:
    """Check, write, print; the exit status."""
    need(args.root.is_dir(), f"{args.root}: not a folder; give the one with a folder for each benchmark")
    if args.output:
        check_writable(args.output, "--output")
    tasks = [get(name) for name in (names() if args.benchmarks is None else args.benchmarks.split(","))]
    found = {task.name: check(task, args.root) for task in tasks}
    if args.output:
        benchmark.write_text(args.output, json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    show(found)
    return 0 if all(map(complete, found.values())) else 1


if __name__ == "__main__":
    sys.exit(main())
