"""The quickstart's line of progress: what is being done, how far it is, about how long the rest takes.

In: the logs of running commands, whose bars of progress rewrite their line, and what the stages cost one machine, in
proportion; how fast this one is shows by itself. Knows the costs of the quickstart.
"""

import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from rich.console import Console

# CPU seconds at seed 0 on two AMD EPYC cores, 2026-11-30; the longest beginning of a name counts.
COSTS_S = {
    "make clips": 35, "prepare tower": 45, "train d2vlm": 185, "train distime": 265, "train text": 220,
    "answer own": 23, "answer test": 16, "answer unseen": 9, "make": 3, "train d2vlm_": 25, "rank": 27,
}  # fmt: skip
PACE = 0.6  # seconds of time for one of these, where nothing is known yet: two cores share them
KNOWN_S = 15  # of these seconds have to be over before the machine's own pace counts


class Running(Protocol):
    """A command that runs: its name and the file that it writes into."""

    name: str
    log: Path


class Progress:
    """``names``: of all stages, in order. Prints a line as each ends, and on a terminal one that moves."""

    def __init__(self, names: Sequence[str], console: Console, costs: Mapping[str, float] = COSTS_S):
        self.names, self.console, self.costs, self.ended = list(names), console, costs, []
        self.pace, self.since, self.before = PACE, time.monotonic(), 0.0
        self.status = console.status("")

    def __enter__(self) -> "Progress":
        self.status.start()
        return self

    def __exit__(self, *_error) -> None:
        self.status.stop()

    def group(self) -> None:
        """Stages begin that run beside each other otherwise than those before: the pace is measured anew."""
        self.since, self.before = time.monotonic(), self.work(())

    def work(self, running: Sequence[Running]) -> float:
        """What is done, in ``costs``."""
        return sum(map(self.cost_s, self.ended)) + sum(self.cost_s(one.name) * share(one.log) for one in running)

    def cost_s(self, name: str) -> float:
        """What the stage ``name`` costs."""
        return self.costs[max((start for start in self.costs if name.startswith(start)), key=len)]

    def left(self, running: Sequence[Running]) -> str:
        """About how long the rest takes."""
        done = self.work(running)
        if done - self.before > KNOWN_S:
            self.pace = (time.monotonic() - self.since) / (done - self.before)
        seconds = (sum(map(self.cost_s, self.names)) - done) * self.pace
        return f"about {seconds / 60:.0f} min left" if seconds > 90 else f"about {max(seconds, 1):.0f} s left"

    def show(self, running: Sequence[Running]) -> None:
        """Move the line."""
        told = ", ".join(f"{one.name} {100 * share(one.log):.0f} %" for one in running)
        self.status.update(f"{len(self.ended)} of {len(self.names)} steps done; now {told}; {self.left(running)}")

    def end(self, name: str, wall_s: float, running: Sequence[Running]) -> None:
        """A stage has ended after ``wall_s`` seconds."""
        self.ended.append(name)
        place = f"[{len(self.ended)}/{len(self.names)}]"
        last = "" if len(self.ended) == len(self.names) else f"; {self.left(running)}"
        self.console.print(f"{place} {name}: {wall_s:.0f} s{last}", highlight=False, markup=False)


def share(log: Path) -> float:
    """How much of a command is done, by the newest bar of progress in its log; 0 where there is none."""
    if not log.exists():
        return 0.0
    with open(log, "rb") as file:
        file.seek(max(0, log.stat().st_size - 400))
        found = re.findall(rb"(\d+)%\|", file.read())
    return min(int(found[-1]), 100) / 100 if found else 0.0
