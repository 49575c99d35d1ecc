"""What the measuring scripts share: their command line, kinds of a step in turns, ratios of them, and memory.

Kinds take turns in one process, so that whatever else the machine does meets all of them alike.
"""

import argparse
import json
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from videollm.common.command import whole
from videollm.common.config import UserError

Times = Mapping[str, list[float]]  # seconds of every kind in every round


def command_line(doc: str, *, dtype: str = "", file: bool = False, **options: Any) -> argparse.ArgumentParser:
    """A script's options: ``name=default`` or ``name=(default, help)``, and on request ``--dtype`` and ``--json``."""
    parser = argparse.ArgumentParser(description=doc.split("\n")[0])
    for name, option in options.items():
        default, text = option if isinstance(option, tuple) else (option, None)
        kind = whole(min(1, default)) if type(default) is int else type(default)
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, default=default, help=text)
    if dtype:
        parser.add_argument("--dtype", default=dtype, choices=("float32", "bfloat16"))
    if file:
        parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    return parser


def write_json(path: Path | None, found: Mapping[str, Any]) -> None:
    """Write the figures, if they are asked for."""
    if path:
        path.write_text(json.dumps(found, indent=1, default=str) + "\n", encoding="utf-8")


def run_alone(command: Sequence[str], **options: Any) -> str:
    """What a command of its own process prints; UserError with the last line that it has said where it fails."""
    done = subprocess.run(command, capture_output=True, text=True, **options)
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["nothing"]
        raise UserError(f"{' '.join(command)}: ended with status {done.returncode}, its last words: {said[-1]}")
    return done.stdout


def seconds(step: Callable[[], object], device: str) -> float:
    """Wall time of one step; on a CPU the time of its cores, which other jobs on them hardly change."""
    clock = time.perf_counter if device == "cuda" else time.process_time
    start = clock()
    step()
    if device == "cuda":
        torch.cuda.synchronize()
    return clock() - start


def rounds(kinds: Mapping[str, Callable[[], object]], repeats: int, device: str) -> dict[str, list[float]]:
    """Seconds of every kind in every round; one more round before them warms up."""
    times: dict[str, list[float]] = {name: [] for name in kinds}
    for k in range(repeats + 1):
        for name, step in kinds.items():
            spent = seconds(step, device)
            times[name] += [spent] if k else []
    return times


def ratio(times: Times, slow: str, fast: str, share: float = 1.0) -> dict[str, Any]:
    """How many times faster ``fast`` is, over the rounds; ``share`` of its time counts."""
    found = [a / (share * b) for a, b in zip(times[slow], times[fast], strict=True)]
    low, high = np.percentile(found, [25, 75])
    return {"median": statistics.median(found), "quartiles": [low, high]}


def peak_mib(step: Callable[[], object], device: str) -> float:
    """The most memory that a step has allocated at a time, weights left out."""
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as prof:
        step()
    events = [e for e in prof.profiler.kineto_results.events() if e.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return float(np.cumsum([e.nbytes() for e in events]).max()) / 2**20
