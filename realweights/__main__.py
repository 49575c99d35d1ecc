"""Real weights and real pictures on a CPU: from package registries to a scored comparison of three heads.

``bash scripts/realweights.sh`` calls this. Every step is a command that a user could type (stages.py); this file orders
them, and what is measured is written to ``report.json``, ``scores.png`` and ``timelines.png``. Ended at any time, it
goes on where it was. Nothing here is needed to train or evaluate anything else.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from all_benchmark_eval.moving_shapes import task
from quickstart.pictures import score_table
from quickstart.progress import Progress
from quickstart.report import first_asked, predictions, timelines, write_timelines
from quickstart.stages import CONSOLE, run_stages
from realweights.clips import DEFAULT_COUNTS
from realweights.packages import fetch
from realweights.stages import (
    ASKED,
    GRPO,
    HEADS,
    answer_stage,
    costs,
    prepare_stages,
    runs,
    train_settings,
    train_stage,
)
from videollm.common.code import code
from videollm.common.command import Parser, ended, whole
from videollm.common.files import json_lines, write_text

SHOWN = ("grounding",) * 2  # tasks of each split's questions in the picture of timelines


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line; the environment variables SEED and GPUS give the defaults."""
    parser = Parser(prog="realweights", description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("runs/realweights"))
    parser.add_argument("--configs", type=Path, default=Path("configs/realweights"))
    parser.add_argument("--packages", type=Path, help="packages laid out already (default: fetched into the output)")
    parser.add_argument("--heads", nargs="+", choices=HEADS, default=list(HEADS))
    parser.add_argument("--seed", type=whole(0), default=os.environ.get("SEED", "0"))
    processes = os.environ.get("GPUS") or str(max(1, torch.cuda.device_count()))
    parser.add_argument("--processes", type=whole(1), default=processes)
    for split, count in DEFAULT_COUNTS.items():
        parser.add_argument(f"--{split}", type=whole(0), default=count, help=f"clips in {split}")
    parser.add_argument("--size", type=whole(32), default=160, help="pixels a side at which the tower sees a frame")
    parser.add_argument("--views", type=whole(1), default=16, help="frames of every thing to align the tower with")
    parser.add_argument("--align-steps", type=whole(1), default=600)
    parser.add_argument("--steps", type=whole(1), help="steps of every training (default: the configs' own)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of every head's training: train.lr=5e-4 ...")
    return parser.parse_intermixed_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; a user's error is one line and exit status 2."""
    args = arguments(argv)
    return ended(lambda: run(args))


def run(args: argparse.Namespace) -> None:
    """Run all of it."""
    made = runs(args.heads)
    questions = {run: asked_for(args, run) for run in made}
    if args.packages is None:
        args.packages = args.output / "packages"
        fetch(args.packages)
    first = prepare_stages(args)
    groups = (
        *([stage] for stage in first),
        [train_stage(args, head) for head in args.heads],
        [*(train_stage(args, run) for run in made if run == GRPO), *(answer_stage(args, head) for head in args.heads)],
        [answer_stage(args, run) for run in made if run == GRPO],
    )
    ran = [stage for group in groups for stage in group]
    cost = costs(args, questions)
    slots = 1 if args.processes > 1 or torch.cuda.is_available() else os.cpu_count() or 1
    with Progress([stage.name for stage in ran], CONSOLE, cost) as progress:
        before = sum(progress.cost_s(stage.name) for stage in first) / 60
        each = [f"{run} {(cost[f'train {run}'] + cost[f'answer {run}']) / 60:.0f}" for run in made]
        CONSOLE.print(f"about {before:.0f} CPU-minutes before training; {', '.join(each)}", highlight=False)
        for group in groups:
            run_stages(group, slots, progress)
    report = score_all(args) | {"seed": args.seed, "commit": code()[0], "torch": torch.__version__}
    report["validation_mIoU"] = {run: validated(args, run) for run in made}
    report["cpu_s"] = {stage.name: round(stage.cpu_s, 1) for stage in ran}
    write_text(args.output / "report.json", json.dumps(report, indent=1) + "\n")
    columns, rows = table(report)
    score_table(args.output / "scores.png", rows, columns)
    draw_timelines(args)
    for row in (columns, *rows):
        CONSOLE.print("  ".join(f"{c:.3f}" if isinstance(c, float) else str(c) for c in row), highlight=False)
    told = [f"{run} {value:.3f}" for run, value in report["validation_mIoU"].items() if value is not None]
    if told:
        CONSOLE.print(f"mIoU of validation: {', '.join(told)}", highlight=False)


def asked_for(args: argparse.Namespace, run: str) -> int:
    """How many questions a training goes through, by its config."""
    train = train_settings(args, run)
    return (args.steps or train.steps) * (train.global_batch or train.batch_size)


def validated(args: argparse.Namespace, run: str) -> float | None:
    """mIoU of the trained run on validation questions, by which one is chosen; None where its config has it not."""
    entries = [entry for _, entry in json_lines(args.output / run / "log.jsonl")]
    return next((entry["eval_mIoU"] for entry in reversed(entries) if "eval_mIoU" in entry), None)


def score_all(args: argparse.Namespace) -> dict:
    """Every run's scores on every split, what guessing and perfection earn there, and the skill between them."""
    train, found = task.load(args.output / "data/train.jsonl"), {}
    for split in ASKED:
        items = task.load(args.output / f"data/{split}.jsonl")
        guesses, oracle = task.baselines(items, train, args.seed), task.oracle(items)
        best = max(guess["mIoU"] for guess in guesses.values())
        heads = {}
        for run in runs(args.heads):
            scores = task.score(items, predictions(args, run, "answers", items))
            scores.pop("per_sample")
            heads[run] = scores | {"skill": (scores["mIoU"] - best) / (oracle["mIoU"] - best)}
        found[split] = {"heads": heads, "baselines": guesses, "oracle": oracle}
    return {"splits": found}


def draw_timelines(args: argparse.Namespace) -> None:
    """The first question about a moment of each of the first clips of every split, with what every run answered."""
    panels = []
    for split in ASKED:
        first = first_asked(task.load(args.output / f"data/{split}.jsonl"), SHOWN)
        drawn = timelines(args, first, {run: run for run in runs(args.heads)}, "answers")
        panels += [panel | {"title": f"{split}: {panel['title']}"} for panel in drawn]
    write_timelines(args.output / "timelines.png", panels)


def table(report: dict) -> tuple[list[str], list[list]]:
    """The score table: every head on every split, with the best guess and the oracle of that split."""
    columns = ["split", "head", "mIoU", "R@1 0.5", "skill", "dense F1", "choice accuracy", "best guess", "oracle"]
    rows = []
    for split, found in report["splits"].items():
        best = max(guess["mIoU"] for guess in found["baselines"].values())
        for head, s in found["heads"].items():
            more = [s["skill"], s["dense_F1"], s["mc_accuracy"], best, found["oracle"]["mIoU"]]
            rows.append([split, head, s["mIoU"], s["R@1"]["0.5"], *more])
    return columns, rows


if __name__ == "__main__":
    sys.exit(main())
