"""One table of what a GPU makes of the published systems: training, answers, the tower, decoding, ZeRO, its tests.

Every part runs in a process of its own under a time limit, with random weights and nothing to download. A part whose
packages are missing is skipped by name; one that fails or takes too long is a row with the reason, and the cases that
it had measured are kept. The table (``gpu_check.md``) and the numbers (``gpu_check.json``) are written after each part.

    python -m benchmarks.gpu_check --output gpu_check
    python -m benchmarks.gpu_check --tiny --device cpu --output gpu_check
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUDGET_S = 470.0  # of all parts together
LEAST_S = 15.0  # a part that would have less is not begun
TESTS = "tests marked cuda"
Row = dict


@dataclass(frozen=True)
class Part:
    """``work`` is a function of ``gpu_parts``; ``needs`` are packages without which it is skipped."""

    name: str
    work: str
    system: str = ""
    limit_s: float = 60.0
    needs: tuple[str, ...] = ()
    again: bool = False  # what another part does, of another size: --tiny leaves it out


PARTS = (
    Part("machine", "machine", limit_s=45),
    Part("SFT, D2VLM 3.8B", "sft", "D2VLM 3.8B", 75),
    Part("answers, D2VLM 3.8B", "generation", "D2VLM 3.8B"),
    Part("SFT, DisTime 1B", "sft", "DisTime 1B"),
    Part("answers, DisTime 1B", "generation", "DisTime 1B"),
    Part(TESTS, "", limit_s=90, needs=("pytest",)),
    Part("FPO, D2VLM 3.8B", "fpo", "D2VLM 3.8B"),
    Part("frames, D2VLM 3.8B", "frames", "D2VLM 3.8B"),
    Part("frames, DisTime 1B", "frames", "DisTime 1B", again=True),
    Part("ZeRO, DisTime 1B", "zero", "DisTime 1B", needs=("deepspeed",)),
    Part("SFT, DisTime 8B", "sft", "DisTime 8B", again=True),
    Part("ZeRO, D2VLM 3.8B", "zero", "D2VLM 3.8B", needs=("deepspeed",), again=True),
)


def row(part: str, case: str, status: str, note: str = "") -> Row:
    """A row without figures."""
    return {"part": part, "case": case, "status": status, "figures": {}, "note": note}


def work(part: Part, options: argparse.Namespace, folder: Path, file: Path) -> None:
    """The part in its own process: rows go to ``file``, and what it says to a log beside it."""
    os.setsid()  # data workers end with it
    with open(folder / "log", "w", encoding="utf-8") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    try:
        parts = import_module("benchmarks.gpu_parts")
        run = parts.Run(part.name, part.system, options.device, options.tiny, folder, file)
        getattr(parts, part.work)(run)
    except Exception as error:
        traceback.print_exc()
        lines = str(error).strip().splitlines() or ["no words"]
        line = row(part.name, "whole", "failed", f"{type(error).__name__}: {lines[0][:300]}")
        with open(file, "a", encoding="utf-8") as out:
            out.write(json.dumps(line) + "\n")


def measured(part: Part, options: argparse.Namespace, folder: Path, limit_s: float) -> list[Row]:
    """The rows of a part; one more where it ended by a signal or ran out of time."""
    file = folder / "rows.jsonl"
    kind = "spawn" if options.device == "cuda" else "fork"  # CUDA is not there in a fork
    process = multiprocessing.get_context(kind).Process(target=work, args=(part, options, folder, file))
    process.start()
    process.join(limit_s)
    late = process.is_alive()
    if late:
        with contextlib.suppress(ProcessLookupError):  # before it has a group of its own
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.join()
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    rows = []
    for line in lines:
        with contextlib.suppress(ValueError):  # cut off by the end of its time
            rows.append(json.loads(line))
    if late:
        rows.append(row(part.name, "the rest", "failed", f"more than {limit_s:.0f} s"))
    elif process.exitcode:
        rows.append(row(part.name, "the rest", "failed", f"ended with status {process.exitcode}"))
    return rows


def tested(part: Part, options: argparse.Namespace, limit_s: float) -> list[Row]:
    """A row for each outcome of the tests marked cuda."""
    if options.tiny:
        return [row(part.name, "whole", "skipped", "--tiny: scripts/test.sh runs them")]
    command = [sys.executable, "-m", "pytest", "-q", "-m", "cuda", "-rfEs", "-p", "no:cacheprovider", "tests/cuda"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=limit_s)
    except subprocess.TimeoutExpired:
        return [row(part.name, "whole", "failed", f"more than {limit_s:.0f} s")]
    lines = [line for line in done.stdout.splitlines() if line.strip()] or done.stderr.splitlines()[-1:] or ["no words"]
    rows = [row(part.name, "whole", "failed" if done.returncode else "ok", lines[-1].strip("= "))]
    for line in lines:
        outcome, _, what = line.partition(" ")
        if outcome in ("FAILED", "ERROR", "SKIPPED"):
            rows.append(row(part.name, "one", "skipped" if outcome == "SKIPPED" else "failed", what[:300]))
    return rows


def rows_of(part: Part, options: argparse.Namespace, folder: Path, left_s: float) -> list[Row]:
    """The rows of a part, whatever happens in it."""
    if lacking := [name for name in part.needs if not find_spec(name)]:
        return [row(part.name, "whole", "skipped", f"not installed: {', '.join(lacking)}")]
    if part.again and options.tiny:
        return [row(part.name, "whole", "skipped", "--tiny: another part does the same")]
    if left_s < LEAST_S:
        return [row(part.name, "whole", "skipped", "the time for all parts is over")]
    limit_s = min(part.limit_s, left_s)
    try:
        folder.mkdir()
        return measured(part, options, folder, limit_s) if part.work else tested(part, options, limit_s)
    except Exception as error:  # of any kind: the next part counts on its own
        return [row(part.name, "whole", "failed", f"{type(error).__name__}: {error}")]


def number(value: float) -> str:
    """With three digits that say something, or all before the point."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def table(rows: list[Row]) -> str:
    """All rows in Markdown."""
    lines = ["| part | case | | figures |", "|---|---|---|---|"]
    for one in rows:
        figures = ", ".join(f"{name} {number(value)}" for name, value in one["figures"].items())
        said = "; ".join(filter(None, (figures, one["note"]))).replace("|", "/")
        lines.append(f"| {one['part']} | {one['case']} | {one['status']} | {said} |")
    return "\n".join(lines) + "\n"


def write(output: Path, options: argparse.Namespace, rows: list[Row], spent_s: float) -> None:
    """Both files, each whole or as it was."""
    told = {"tiny": options.tiny, "device": options.device, "seconds": spent_s, "rows": rows}
    for name, text in (("gpu_check.json", json.dumps(told, indent=1) + "\n"), ("gpu_check.md", table(rows))):
        fresh = output / f"{name}.tmp"
        fresh.write_text(text, encoding="utf-8")
        os.replace(fresh, output / name)


def main() -> int:
    """Measure, write, print; 0 once the table is there, also with failed rows."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="of gpu_check.md and gpu_check.json")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="the smallest sizes: does all of it work?")
    options = parser.parse_args()
    try:
        options.output.mkdir(parents=True, exist_ok=True)
        write(options.output, options, [], 0.0)
    except OSError as error:
        parser.error(f"--output: cannot write to {options.output} ({error.strerror}); choose another folder")
    if options.device == "cpu" and not options.tiny:
        parser.error("--device cpu: the real sizes take hours there; add --tiny")
    start, rows = time.monotonic(), []
    if options.device == "cpu":  # imported once, for all forks; what is wrong with it the parts say
        with contextlib.suppress(Exception):
            import_module("benchmarks.gpu_parts")
    with tempfile.TemporaryDirectory() as scratch:
        for place, part in enumerate(PARTS):
            left_s = BUDGET_S - (time.monotonic() - start)
            found = rows_of(part, options, Path(scratch) / str(place), left_s)
            rows += found
            print(table(found).split("\n", 2)[2], end="", flush=True)
            write(options.output, options, rows, time.monotonic() - start)
    print(f"{options.output / 'gpu_check.md'}: {len(rows)} rows in {time.monotonic() - start:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
