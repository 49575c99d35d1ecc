"""What reinforcement learning of *when* gains on moving shapes, beside as many supervised steps and preferences.

Needs folders that the quickstart has made. From every folder's model of a head each kind trains once for every seed;
answers to unseen clips are by free greedy generation. Prints the table of docs/rl.md: means and spread over all runs.

    python -m benchmarks.rl --quickstart runs/quickstart --seeds 0 1 2 --output runs/rl
    python -m benchmarks.rl --quickstart runs/quickstart --head distime --kinds before SFT GRPO
"""

import argparse
import itertools
import json
import sys
from pathlib import Path

from all_benchmark_eval.benchmark import read_answers
from all_benchmark_eval.moving_shapes import task
from benchmarks.fpo_ablation import ALL_PARTS, measure_stage, run_all, tell
from quickstart.stages import Stage, launcher
from videollm.common.command import Parser, ended

BEFORE, AFTER_FPO, HARD = "before", "FPO then GRPO", "hard questions"
KINDS = {  # what is laid over configs/tiny/HEAD_grpo.yaml
    BEFORE: None,  # the quickstart's model as it is
    "SFT": ["train.objective={name: supervised}"],
    "FPO": [],  # of its own config
    "GRPO": [],
    AFTER_FPO: [],
    "4 answers": ["train.objective.answers=4"],
    "16 answers": ["train.objective.answers=16"],
    "tiou": ["train.objective.rewards={tiou: 1.0}"],
    "edges": ["train.objective.rewards={edges: 1.0}"],
    "captions": ["train.objective.rewards={captions: 1.0}"],
    "in spreads": ["train.objective.scale=true"],
    "flat groups too": ["train.objective.skip_flat=false"],
    HARD: [],  # drawn by the model's own answers, as many as the steps ask
    "SFT, all parts": ["train.objective={name: supervised}", "train.lr=2e-4", *ALL_PARTS],
    "FPO, all parts": ["train.objective.text_weight=0.2", "train.lr=1e-4", *ALL_PARTS],
    "GRPO, all parts": ["train.lr=2e-4", *ALL_PARTS],
    "captions, all parts": ["train.lr=2e-4", "train.objective.rewards={captions: 1.0}", *ALL_PARTS],
    "divergence, all parts": ["train.lr=2e-4", "train.objective.kl=0.5", *ALL_PARTS],
}
TABLE = (BEFORE, "SFT", "FPO", "GRPO")
METRICS = ("mIoU", "R@1 0.5", "R@1 0.7", "dense_F1", "dense_caption_F1", "mc_accuracy")


def hard_stages(args: argparse.Namespace, k: int, folder: Path) -> list[Stage]:
    """The model of ``folder`` answers the training questions; those that it is about half right about are drawn."""
    run, model = args.output / f"{args.head}_{k}", folder / args.head / "final"
    command = [*launcher(1), "videollm.difficulty", "--annotations", str(folder / "data/train.jsonl")]
    command += ["--answers", str(run.with_suffix(".own.jsonl")), "--output", str(run.with_suffix(".hard.jsonl"))]
    command += ["count=480", "mean=0.5", "rewards={f1: 1.0}"]
    return [measure_stage("own", folder, run, model), Stage(f"draw {run.name}", command, run.with_suffix(".draw.txt"))]


def train_stage(args: argparse.Namespace, folder: Path, run: Path, kind: str, seed: int) -> Stage:
    """Train one kind from the model of ``folder``, or from that of its FPO run."""
    preferences = kind.startswith("FPO") and kind != AFTER_FPO
    start = run.with_name(run.name.replace(kind.replace(" ", "_"), "FPO")) if kind == AFTER_FPO else folder / args.head
    train = folder / ("pairs/train.jsonl" if preferences else "data/train.jsonl")
    if kind == HARD:
        train = run.with_name(run.name.replace(f"_{HARD.replace(' ', '_')}_{seed}", ".hard.jsonl"))
    files = {
        "model.checkpoint": start / "final",
        "data.train": f"[{train}]",
        "data.validation": f"[{folder / ('pairs/val.jsonl' if preferences else 'data/val.jsonl')}]",
        "data.videos": folder / "data/videos",
        "data.features": folder / "features",
        "train.output": run,
        "train.seed": seed,
        "train.deepspeed": "null",
    }
    config = f"configs/tiny/{args.head}_{'fpo' if preferences else 'grpo'}.yaml"
    given = [f"{key}={value}" for key, value in files.items()] + KINDS[kind]
    command = [*launcher(1), "videollm.train", "--config", config, *given, *args.overrides]
    return Stage(f"train {run.name}", command, run.with_suffix(".train.txt"))


def scores(folder: Path, run: Path) -> dict[str, float]:
    """``METRICS`` of one run."""
    items = task.load(folder / "data/test.jsonl")
    answers = read_answers(run.with_suffix(".test.jsonl"))
    found = task.score(items, [task.to_prediction(item, answers.get(item["id"])) for item in items])
    found |= {f"R@1 {threshold}": found["R@1"][threshold] for threshold in ("0.5", "0.7")}
    return {name: found[name] for name in METRICS}


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = Parser(description=__doc__.split("\n")[0])
    parser.add_argument("--quickstart", type=Path, nargs="+", default=[Path("runs/quickstart")], metavar="DIR")
    parser.add_argument("--head", choices=("d2vlm", "distime", "text"), default="d2vlm")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=TABLE)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--output", type=Path, default=Path("runs/rl"))
    parser.add_argument("--slots", type=int, default=2, help="commands at a time")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="over the configs: train.steps=200 ...")
    return parser.parse_intermixed_args()


def main() -> None:
    """Train, answer, score, print."""
    args = arguments()
    args.output.mkdir(parents=True, exist_ok=True)
    runs = []  # (kind, folder, run, seed)
    for (k, folder), kind in itertools.product(enumerate(args.quickstart), args.kinds):
        for seed in args.seeds[:1] if kind == BEFORE else args.seeds:
            runs.append((kind, folder, args.output / f"{args.head}_{k}_{kind.replace(' ', '_')}_{seed}", seed))
    fresh = [one for one in runs if one[0] != BEFORE and not (one[2] / "final").is_dir()]  # again: it goes on
    for k, folder in enumerate(args.quickstart if any(kind == HARD for kind, *_ in fresh) else ()):
        run_all(hard_stages(args, k, folder), 1)
    for late in (False, True):  # what goes on from another run comes behind it
        stages = [
            train_stage(args, folder, run, kind, seed)
            for kind, folder, run, seed in fresh
            if (kind == AFTER_FPO) == late
        ]
        run_all(stages, args.slots)
    models = [(folder, run, (folder / args.head if kind == BEFORE else run) / "final") for kind, folder, run, _ in runs]
    run_all([measure_stage("answer", *model) for model in models], args.slots)
    results: dict[str, list[dict]] = {}
    for kind, folder, run, _ in runs:
        results.setdefault(kind, []).append(scores(folder, run))
    settings = {"quickstart": list(map(str, args.quickstart)), "seeds": args.seeds, "overrides": args.overrides}
    report = json.dumps({"head": args.head, "settings": settings, "results": results}, indent=1)
    (args.output / f"{args.head}.json").write_text(report + "\n", encoding="utf-8")
    tell(results, METRICS)


if __name__ == "__main__":
    sys.exit(ended(main))
