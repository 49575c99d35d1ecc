"""Train and compare three heads on a laptop: moving shapes from mp4 files to a scored, pictured report.

The evidence head's model then goes on with preferences, by reinforcement learning and, for comparison, as before.
``bash scripts/quickstart.sh`` calls this. Every step is a command that a user could type (stages.py); this file only
orders them, and report.py turns their outputs into ``report.json``, ``report.html`` and pictures. Nothing here is
needed to train or evaluate anything else.
"""

import argparse
import os
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from quickstart import stages
from quickstart.clips import DEFAULT_COUNTS
from quickstart.progress import Progress
from quickstart.report import SPLITS, draw, score_all, write_report
from videollm.common.code import code
from videollm.common.command import Parser, a_path, ended, whole


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line; the environment variables SEED and GPUS give the defaults."""
    parser = Parser(prog="videollm quickstart", description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=a_path, default=Path("runs/quickstart"))
    parser.add_argument("--configs", type=a_path, default=Path("configs/tiny"))
    parser.add_argument("--seed", type=whole(0), default=os.environ.get("SEED", "0"))
    processes = os.environ.get("GPUS") or str(
        max(1, torch.cuda.device_count())
    )  # text: a bad one is said as an option's
    parser.add_argument("--processes", type=whole(1), default=processes)
    for split, count in DEFAULT_COUNTS.items():
        parser.add_argument(f"--{split}", type=whole(0), default=count, help=f"clips in {split}")
    parser.add_argument("--steps", type=whole(1), help="training steps of every head (default: the configs' own)")
    parser.add_argument("--tower-steps", type=whole(1), default=600)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; a user's error is one line and exit status 2."""
    args = arguments(argv)
    return ended(lambda: run(args))


def run(args: argparse.Namespace) -> None:
    """Run all of it."""
    start, usage = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF)
    # One job a core where every job is one CPU process; on GPUs, or with several processes a job, one after the other.
    alone = args.processes > 1 or torch.cuda.is_available()
    slots = 1 if alone else len(stages.HEADS)
    again = [stages.infer_stage(args, head, split) for head in stages.HEADS for split in SPLITS]
    groups = (
        *([stage] for stage in stages.prepare_stages(args)),
        [stages.train_stage(args, head) for head in stages.HEADS],
        [stages.own_answers_stage(args), *again],
        stages.pair_stages(args),
        [stages.train_stage(args, run) for run in stages.FURTHER],
        [stages.rank_stage(args), *(stages.infer_stage(args, run, "test") for run in stages.FURTHER)],
    )
    done = [stage for group in groups for stage in group]
    with Progress([stage.name for stage in done], stages.CONSOLE) as progress:
        for group in groups:
            stages.run_stages(group, slots, progress)
    report = score_all(args)
    report |= {"seed": args.seed, "commit": code()[0], "processes": args.processes, "torch": torch.__version__}
    draw(args, report)
    own = resource.getrusage(resource.RUSAGE_SELF)
    own_s = own.ru_utime + own.ru_stime - usage.ru_utime - usage.ru_stime
    report["wall_s"] = {s.name: s.wall_s for s in done} | {"total": time.monotonic() - start}
    report["cpu_s"] = {s.name: s.cpu_s for s in done} | {"total": sum(s.cpu_s for s in done) + own_s}
    write_report(args, report)


if __name__ == "__main__":
    sys.exit(main())
