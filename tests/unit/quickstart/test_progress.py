"""The quickstart says what it does, how far it is and how long the rest takes; commands stand in the logs."""

import io
import sys
from pathlib import Path

import pytest
from rich.console import Console

from quickstart import progress as shown
from quickstart.progress import Progress, share
from quickstart.stages import Stage, run_stages


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("", 0), ("reading\n", 0), (" 12%|█ | 1/8\r 37%|███ | 3/8", 0.37), ("100%|██| 8/8\n  0%| | 0/4\r 50%|", 0.5)],
)
def test_the_newest_bar_of_a_log_is_how_far_a_command_is(tmp_path, text, wanted):
    log = tmp_path / "log.txt"
    assert share(log) == 0
    log.write_text(text, encoding="utf-8")
    assert share(log) == wanted


def test_the_rest_is_told_by_the_pace_of_what_runs_now(tmp_path, monkeypatch):
    clock, log = [0.0], tmp_path / "log.txt"
    monkeypatch.setattr(shown.time, "monotonic", lambda: clock[0])
    told = Progress(["make clips", "train d2vlm", "train text"], Console(file=io.StringIO()))
    whole = sum(map(told.cost_s, told.names))
    assert told.left(()) == f"about {whole * shown.PACE / 60:.0f} min left"
    clock[0] = 70.0  # twice the 35 seconds that it takes elsewhere
    told.end("make clips", 70.0, ())
    assert told.left(()) == f"about {2 * (whole - 35) / 60:.0f} min left"
    told.group()  # two beside each other
    log.write_text("40%|", encoding="utf-8")
    clock[0] += 81.0
    running = [Stage(name, [], log) for name in told.names[1:]]
    assert told.left(running) == f"about {0.6 * (185 + 220) * 0.5 / 60:.0f} min left"
    assert told.left([]) == f"about {0.5 * (185 + 220) / 60:.0f} min left", "the newest pace that is known"


def test_every_stage_has_its_line_and_its_command_is_in_its_log(tmp_path):
    page = io.StringIO()
    names = ["make clips", "train d2vlm"]
    say = [sys.executable, "-c", "print('100%|')"]
    stages = [Stage(name, say, tmp_path / f"{name}.txt") for name in names]
    with Progress(names, Console(file=page, width=200)) as progress:
        run_stages(stages, 2, progress)
    first, last = page.getvalue().splitlines()
    assert first.startswith("[1/2] ") and " left" in first
    assert last.startswith("[2/2] ") and last.endswith(" s")
    assert {line.split("] ")[1].split(":")[0] for line in (first, last)} == set(names)
    assert Path(stages[0].log).read_text(encoding="utf-8").startswith(f"$ {sys.executable} -c ")
