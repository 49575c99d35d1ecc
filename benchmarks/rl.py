"""What reinforcement learning of *when* gains on moving shapes, beside as many supervised steps and preferences.

Needs folders that the quickstart has made. From every folder's model of a head each kind trains once for every seed;
answers to unseen clips are by free greedy generation. Prints the table of docs/rl.md: means and spread over all runs.

    python -m benchmarks.rl --quickstart runs/quickstart --seeds 0 1 2 --output runs/rl
    python -m benchmarks.rl --quickstart runs/quickstart --head distime --kinds before SFT GRPO
"""

import argparse
import itertools
import sys
from pathlib import Path

from benchmarks.fpo_ablation import ALL_PARTS, answers_of, measure_stage, options, report, run_all
from quickstart.stages import Stage, command, overrides
from videollm.common.command import ended

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
    files = ("--answers", run.with_suffix(".own.jsonl"), "--output", run.with_suffix(".hard.jsonl"))
    words = ("--annotations", folder / "data/train.jsonl", *files, "count=480", "mean=0.5", "rewards={f1: 1.0}")
    draw = command("videollm.difficulty", *words)
    return [measure_stage("own", folder, run, model), Stage(f"draw {run.name}", draw, run.with_suffix(".draw.txt"))]


def train_stage(args: argparse.Namespace, folder: Path, run: Path, kind: str, seed: int) -> Stage:
    """Train one kind from the model of ``folder``, or from that of its FPO run."""
    preferences = kind.startswith("FPO") and kind != AFTER_FPO
    start = run.with_name(run.name.replace(kind.replace(" ", "_"), "FPO")) if kind == AFTER_FPO else folder / args.head
    form = "fpo" if preferences else "grpo"
    given = overrides(argparse.Namespace(output=folder, seed=seed, steps=None), f"d2vlm_{form}")
    given += [f"model.checkpoint={start / 'final'}", f"train.output={run}", "train.deepspeed=null"]
    if kind == HARD:
        hard = run.with_name(run.name.replace(f"_{HARD.replace(' ', '_')}_{seed}", ".hard.jsonl"))
        given.append(f"data.train=[{hard}]")
    words = ("--config", f"configs/tiny/{args.head}_{form}.yaml", *given, *KINDS[kind], *args.overrides)
    return Stage(f"train {run.name}", command("videollm.train", *words), run.with_suffix(".train.txt"))


def main() -> None:
    """Train, answer, score, print."""
    parser = options(__doc__, "runs/rl", [0])
    parser.add_argument("--head", choices=("d2vlm", "distime", "text"), default="d2vlm")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=TABLE)
    args = parser.parse_intermixed_args()
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
        found = answers_of(folder, run)
        results.setdefault(kind, []).append({name: found[name] for name in METRICS})
    report(args, f"{args.head}.json", results, METRICS, head=args.head)


if __name__ == "__main__":
    sys.exit(ended(main))
