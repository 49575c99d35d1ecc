"""Which factor of FPO does what, on moving shapes: text only, grounding only, both, as configured, or none.

Needs folders that the quickstart has made: each holds a supervised model of the evidence head, its pairs and its data.
From every model and for every seed each kind (SFT: supervised steps) trains once; answers to unseen clips are by free
greedy generation, pairs are of validation clips. Prints the table of docs/fpo.md: means and spread over all runs.

    python -m benchmarks.fpo_ablation --quickstart runs/quickstart --seeds 0 1 2 --output runs/fpo_ablation
"""

import argparse
import itertools
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from all_benchmark_eval.benchmark import read_answers
from all_benchmark_eval.moving_shapes import task
from quickstart.progress import Progress
from quickstart.stages import CONSOLE, Stage, command, overrides, run_stages
from videollm.common.command import Parser, ended

FROZEN = ("connector", "language_model", "embeddings", "lm_head")  # by the config
ALL_PARTS = [f"train.parts.{part}.train=true" for part in FROZEN]
ALL = [*ALL_PARTS, "train.lr=1e-4"]
KINDS = {  # over the config's objective
    "SFT": ["train.objective={name: supervised}", *ALL],
    "text": ["train.objective.grounding_weight=0", "train.objective.text_weight=1", *ALL],
    "grounding": ["train.objective.grounding_weight=1", "train.objective.text_weight=0", *ALL],
    "both": ["train.objective.grounding_weight=1", "train.objective.text_weight=1", *ALL],
    "both, 1 to 0.2": ["train.objective.grounding_weight=1", "train.objective.text_weight=0.2", *ALL],
    "config": [],
}
MEASURES = {  # module, annotations, end of the output's name, further options
    "answer": ("videollm.infer", "data/test.jsonl", ".test.jsonl", "--batch-size", "64", "generate.max_new_tokens=48"),
    "own": ("videollm.infer", "data/train.jsonl", ".own.jsonl", "--batch-size", "64", "generate.max_new_tokens=48"),
    "rank": ("d2vlm.rank", "pairs/val.jsonl", ".ranks.json"),
}
METRICS = ("mIoU", "R@1 0.5", "dense_F1", "dense_caption_F1", "mc_accuracy", "accuracy", "margin")


def train_stage(args: argparse.Namespace, folder: Path, run: Path, kind: str, seed: int) -> Stage:
    """Train one kind from the supervised model of ``folder``."""
    given = overrides(argparse.Namespace(output=folder, seed=seed, steps=None), "d2vlm_fpo")
    words = ("--config", args.config, *given, f"train.output={run}", *KINDS[kind], *args.overrides)
    return Stage(f"train {run.name}", command("videollm.train", *words), run.with_suffix(".train.txt"))


def measure_stage(kind: str, folder: Path, run: Path, model: Path) -> Stage:
    """Answer the questions about unseen clips, or rank the held-out pairs (``kind`` of ``MEASURES``)."""
    module, annotations, end, *more = MEASURES[kind]
    files = ("--annotations", folder / annotations, "--output", run.with_suffix(end))
    words = ("--model", model, "--videos", folder / "data/videos", *files, *more)
    return Stage(f"{kind} {run.name}", command(module, *words), run.with_suffix(f".{kind}.txt"))


def run_all(stages: Sequence[Stage], slots: int) -> None:
    """Run the commands, of which none is known to take longer than another."""
    with Progress([stage.name for stage in stages], CONSOLE, {"": 1}) as progress:
        run_stages(stages, slots, progress)


def answers_of(folder: Path, run: Path) -> dict[str, float]:
    """All scores of one run's answers, each threshold's under a name of its own."""
    items = task.load(folder / "data/test.jsonl")
    answers = read_answers(run.with_suffix(".test.jsonl"))
    found = task.score(items, [task.to_prediction(item, answers.get(item["id"])) for item in items])
    return found | {f"R@1 {threshold}": value for threshold, value in found["R@1"].items()}


def scores(folder: Path, run: Path) -> dict[str, float]:
    """``METRICS`` of one run."""
    (ranks,) = json.loads(run.with_suffix(".ranks.json").read_text(encoding="utf-8"))["models"].values()
    found = answers_of(folder, run) | {"accuracy": ranks["accuracy"], "margin": ranks["margin"]}
    by_factor = {f"accuracy on {factor}": of["accuracy"] for factor, of in ranks["by_factor"].items()}
    return {name: found[name] for name in METRICS} | by_factor


def report(args: argparse.Namespace, file: str, results: dict[str, list[dict]], metrics: Sequence[str], **of) -> None:
    """Write all figures to ``file``, with what they are ``of``, and ``tell`` them."""
    settings = {"quickstart": list(map(str, args.quickstart)), "seeds": args.seeds, "overrides": args.overrides}
    text = json.dumps({**of, "settings": settings, "results": results}, indent=1)
    (args.output / file).write_text(text + "\n", encoding="utf-8")
    tell(results, metrics)


def tell(results: dict[str, list[dict]], metrics: Sequence[str] = METRICS) -> None:
    """A row a kind: mean and spread (standard deviation) over its runs, in Markdown for the documents."""
    print("| |", " | ".join(metrics), "|")
    print("|" + "---|" * (len(metrics) + 1))
    for kind, runs in results.items():
        cells = []
        for name in metrics:
            values = [run[name] for run in runs]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            cells.append(f"{statistics.mean(values):.3f} ± {spread:.3f}")
        print(f"| {kind} |", " | ".join(cells), "|")


def options(doc: str, output: str, seeds: list[int]) -> Parser:
    """What both scripts that train kinds are asked with."""
    parser = Parser(description=doc.split("\n")[0])
    parser.add_argument("--quickstart", type=Path, nargs="+", default=[Path("runs/quickstart")], metavar="DIR")
    parser.add_argument("--seeds", type=int, nargs="+", default=seeds)
    parser.add_argument("--output", type=Path, default=Path(output))
    parser.add_argument("--slots", type=int, default=2, help="commands at a time")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="over the config: train.steps=200 ...")
    return parser


def main() -> None:
    """Train, answer, rank, score, print."""
    parser = options(__doc__, "runs/fpo_ablation", [0, 1, 2])
    parser.add_argument("--config", type=Path, default=Path("configs/tiny/d2vlm_fpo.yaml"))
    args = parser.parse_intermixed_args()
    args.output.mkdir(parents=True, exist_ok=True)
    starts = {folder: args.output / f"{k}_before" for k, folder in enumerate(args.quickstart)}
    every = itertools.product(enumerate(args.quickstart), KINDS, args.seeds)
    runs = [(kind, folder, args.output / f"{k}_{kind}_{seed}", seed) for (k, folder), kind, seed in every]
    fresh = [one for one in runs if not (one[2] / "final").is_dir()]  # the same command again goes on
    run_all([train_stage(args, folder, run, kind, seed) for kind, folder, run, seed in fresh], args.slots)
    models = [(folder, run, folder / "d2vlm/final") for folder, run in starts.items()]
    models += [(folder, run, run / "final") for _, folder, run, _ in runs]
    stages = [measure_stage("answer", *model) for model in models]  # what is answered is not asked again
    stages += [measure_stage("rank", *model) for model in models if not model[1].with_suffix(".ranks.json").is_file()]
    run_all(stages, args.slots)
    results = {"before": [scores(folder, run) for folder, run in starts.items()]}
    for kind, folder, run, _ in runs:
        results.setdefault(kind, []).append(scores(folder, run))
    report(args, "results.json", results, METRICS)


if __name__ == "__main__":
    sys.exit(ended(main))
