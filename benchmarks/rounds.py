"""Kinds of a step take turns in one process, so that whatever else the machine does meets all of them alike."""

import time
from collections.abc import Callable

import torch


def seconds(step: Callable[[], object], device: str) -> float:
    """Wall time of one step; on a CPU the time of its cores, which other jobs on them hardly change."""
    clock = time.perf_counter if device == "cuda" else time.process_time
    start = clock()
    step()
    if device == "cuda":
        torch.cuda.synchronize()
    return clock() - start


def rounds(kinds: dict[str, Callable[[], object]], repeats: int, device: str) -> dict[str, list[float]]:
    """Seconds of every kind in every round; one more round before them warms up."""
    times: dict[str, list[float]] = {name: [] for name in kinds}
    for k in range(repeats + 1):
        for name, step in kinds.items():
            spent = seconds(step, device)
            times[name] += [spent] if k else []
    return times
