"""The quickstart's commands: what is run with which options, one after the other or at once, and what each cost."""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from rich.console import Console

from quickstart.clips import COLORS, MOTIONS, SHAPES, SPLITS
from quickstart.progress import Progress
from videollm.common.files import json_lines, json_text, write_text

HEADS = ("d2vlm", "distime", "text")
# How d2vlm's model goes on, as it is shown: with preferences, as before on their right answers, on its own answers.
FURTHER = {"d2vlm_sft_more": "d2vlm + SFT", "d2vlm_fpo": "d2vlm + FPO", "d2vlm_grpo": "d2vlm + GRPO"}
PAIRED = ("d2vlm_sft_more", "d2vlm_fpo")
PAIR_CLIPS = 400  # training clips whose questions the model goes on with
# Pairs to train on are the model's own mistakes. In pairs to rank, only what they say gives rejected answers away:
# words that the model knows, times as fine as the true ones, no second span behind an "and" that no right answer has.
RANKED = (
    f"attributes={json.dumps([list(COLORS), list(SHAPES), list(MOTIONS.values())])}",
    "severity.step_s=0.25", "mix.repeated=0", "mix.spurious=0",
)  # fmt: skip
PAIRS = {"train": ("pairs/questions.jsonl", ("per_record=0",)), "val": ("data/val.jsonl", RANKED)}
CONSOLE = Console()


@dataclass
class Stage:
    """A command with what it cost; ``first`` is done before it starts."""

    name: str
    command: list[str]
    log: Path
    first: Callable[[], None] = lambda: None
    wall_s: float = 0.0
    cpu_s: float = 0.0
    process: subprocess.Popen | None = field(default=None, repr=False)
    started: float = 0.0

    def start(self) -> None:
        """Run the command; it and its output go into the log."""
        self.first()
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.started = time.monotonic()
        with open(self.log, "w", encoding="utf-8") as log:
            log.write(f"$ {shlex.join(self.command)}\n")
            log.flush()
            self.process = subprocess.Popen(self.command, stdout=log, stderr=subprocess.STDOUT)

    def poll(self) -> bool:
        """Whether it has ended; SystemExit with the end of its log if it failed."""
        pid, status, usage = os.wait4(self.process.pid, os.WNOHANG)
        if pid == 0:
            return False
        self.process.returncode = os.waitstatus_to_exitcode(status)
        self.wall_s = time.monotonic() - self.started
        self.cpu_s = usage.ru_utime + usage.ru_stime
        if self.process.returncode:
            tail = self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:]
            raise SystemExit(f"{self.name} failed (whole log: {self.log}):\n" + "\n".join(tail))
        return True


def run_stages(stages: Sequence[Stage], slots: int, progress: Progress) -> None:
    """Run the commands, at most ``slots`` at a time; if one fails, the others are ended."""
    waiting, running = list(stages), []
    progress.group()
    try:
        while waiting or running:
            while waiting and len(running) < slots:
                running.append(waiting.pop(0))
                running[-1].start()
            ended = [stage for stage in running if stage.poll()]
            running = [stage for stage in running if stage not in ended]
            for stage in ended:
                progress.end(stage.name, stage.wall_s, running)
            progress.show(running)
            time.sleep(0.2)
    finally:
        for stage in running:
            if stage.process is not None and stage.process.returncode is None:
                stage.process.terminate()


def launcher(processes: int) -> list[str]:
    """Plain python for one process, torchrun for more."""
    torchrun = ["torch.distributed.run", "--standalone", "--nproc_per_node", str(processes), "-m"]
    return [sys.executable, "-u", "-m", *torchrun * (processes > 1)]


def command(module: str, *words: object, processes: int = 1) -> list[str]:
    """The command line of a module; paths and numbers as text."""
    return [*launcher(processes), module, *map(str, words)]


def prepare_stages(args: argparse.Namespace) -> list[Stage]:
    """Data, tokenizer and tower, one after the other."""
    out, seed, workers = args.output, ("--seed", args.seed), os.cpu_count() or 1
    counts = [f"--{split}={getattr(args, split)}" for split in SPLITS]
    data = command("quickstart.clips", "--output", out / "data", *counts, *seed, "--workers", workers)
    folders = ("--data", out / "data", "--output", out / "tower")
    more = ("--steps", args.tower_steps, "--tokenizer", out / "tokenizer")
    tower = command("quickstart.tower", *folders, *seed, *more)
    return [Stage("make clips", data, out / "logs/data.txt"), Stage("prepare tower", tower, out / "logs/tower.txt")]


def overrides(args: argparse.Namespace, run: str) -> list[str]:
    """Where this run's files are, for its config."""
    out = args.output
    parts = {
        "model.vision_weights": out / "tower",
        "model.tokenizer": out / "tokenizer",
        "model.word_vectors": out / "tower/attributes.safetensors",
        "model.feature_mean": out / "tower/feature_mean.safetensors",
    }
    annotations = out / ("pairs" if run in PAIRED else "data")
    values = ({"model.checkpoint": out / "d2vlm/final"} if run in FURTHER else parts) | {
        "data.train": f"[{annotations / 'train.jsonl'}]",
        "data.validation": f"[{annotations / 'val.jsonl'}]",
        "data.videos": out / "data/videos",
        "data.features": out / "features",
        "train.output": out / run,
        "train.seed": args.seed,
    }
    if run == "d2vlm_sft_more":
        values["train.objective"] = "{name: supervised}"
    if args.steps:
        values["train.steps"] = args.steps
    return [f"{key}={value}" for key, value in values.items()]


def train_stage(args: argparse.Namespace, run: str) -> Stage:
    """Train one head, or go on with one, with DeepSpeed; what an earlier quickstart left of it is removed."""
    config = args.configs / f"{'d2vlm_fpo' if run in PAIRED else run}.yaml"
    train = command("videollm.train", "--config", config, *overrides(args, run), processes=args.processes)
    first = partial(shutil.rmtree, args.output / run, ignore_errors=True)
    return Stage(f"train {run}", train, args.output / f"logs/train_{run}.txt", first)


def infer_stage(args: argparse.Namespace, run: str, split: str) -> Stage:
    """Answer the questions of one split."""
    out = args.output
    return answer_stage(args, run, f"{split} {run}", [out / f"data/{split}.jsonl"], out / run / f"{split}.jsonl")


def answer_stage(
    args: argparse.Namespace, run: str, name: str, annotations: Sequence[Path], answers: Path, *more: str
) -> Stage:
    """Answer questions with the model of one run."""
    files = ("--model", args.output / run / "final", "--videos", args.output / "data/videos", "--output", answers)
    words = (*files, "--annotations", *annotations, "--batch-size", 64, *more)
    infer = command("videollm.infer", *words, processes=args.processes)
    return Stage(f"answer {name}", infer, args.output / f"logs/{name.replace(' ', '_')}.txt")


def own_answers_stage(args: argparse.Namespace) -> Stage:
    """Let the evidence head's model answer, by sampling, what pairs are made for: its own mistakes are among them."""
    pairs = args.output / "pairs"
    sampled = ("generate.do_sample=true", f"generate.seed={args.seed}")
    asked = (pairs / "questions.jsonl", args.output / "data/val.jsonl")
    stage = answer_stage(args, "d2vlm", "own d2vlm", asked, pairs / "own.jsonl", *sampled)
    return replace(stage, first=partial(choose_questions, args.output / "data/train.jsonl", pairs))


def choose_questions(annotations: Path, pairs: Path) -> None:
    """Make the folder ``pairs`` anew, with the questions of the first clips."""
    shutil.rmtree(pairs, ignore_errors=True)
    pairs.mkdir()
    lines = [line for _, line in json_lines(annotations)]
    clips = list(dict.fromkeys(line["video"] for line in lines))[:PAIR_CLIPS]
    write_text(pairs / "questions.jsonl", json_text(line for line in lines if line["video"] in clips))


def pair_stages(args: argparse.Namespace) -> list[Stage]:
    """Make pairs to train on, and pairs of validation clips to rank."""
    out, stages = args.output, []
    for split, (annotations, options) in PAIRS.items():
        files = ("--annotations", out / annotations, "--answers", out / "pairs/own.jsonl")
        words = (*files, "--output", out / f"pairs/{split}.jsonl", f"seed={args.seed}", *options)
        make = command("d2vlm.preference", *words)
        stages.append(Stage(f"make {split} pairs", make, out / f"logs/pairs_{split}.txt"))
    return stages


def rank_stage(args: argparse.Namespace) -> Stage:
    """Rank the held-out pairs with the supervised model and with both that went on from it."""
    out = args.output
    models = [out / run / "final" for run in ("d2vlm", *FURTHER)]
    files = ("--annotations", out / "pairs/val.jsonl", "--output", out / "pairs/ranks.json")
    rank = command("d2vlm.rank", "--model", *models, "--videos", out / "data/videos", *files)
    return Stage("rank held-out pairs", rank, out / "logs/rank.txt")
