"""The quickstart: moving shapes from mp4 files to a scored, pictured comparison of three heads, on a laptop's CPU.

The evidence head's model then goes on in two ways, with preferences and, for comparison, as before.
``bash scripts/quickstart.sh`` calls this. Every step is a command that a user could type (they are printed); this
file only orders them, times them, and turns their outputs into ``report.json``, ``report.html`` and pictures.
Nothing here is needed to train or evaluate anything else.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from all_benchmark_eval.moving_shapes import task
from videollm.common.code import code
from videollm.inference import timeline
from videollm.synthetic import COLORS, MOTIONS, SHAPES
from videollm.video.preprocess import Preprocess
from videollm.video.read import read_video
from videollm.video.sampling import Sampler

HEADS = ("d2vlm", "distime", "text")
SPLITS = ("test", "unseen")  # clips never trained on; `unseen` asks about kinds of event never trained on
SHOWN = 12  # timelines in the picture
FURTHER = {"d2vlm_sft_more": "d2vlm + SFT", "d2vlm_fpo": "d2vlm + FPO"}  # how d2vlm's model goes on, as it is shown
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
    """A command with what it cost."""

    name: str
    command: list[str]
    log: Path
    wall_s: float = 0.0
    cpu_s: float = 0.0
    process: subprocess.Popen | None = field(default=None, repr=False)
    started: float = 0.0

    def start(self) -> None:
        """Run the command, its output in the log."""
        CONSOLE.print(f"{self.name}:  {' '.join(self.command[2:])}", highlight=False, markup=False, soft_wrap=True)
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.started = time.monotonic()
        with open(self.log, "w", encoding="utf-8") as log:
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


def run_stages(stages: Sequence[Stage], slots: int) -> None:
    """Run the commands, at most ``slots`` at a time; if one fails, the others are ended."""
    waiting, running = list(stages), []
    with CONSOLE.status("") as status:
        try:
            while waiting or running:
                while waiting and len(running) < slots:
                    running.append(waiting.pop(0))
                    running[-1].start()
                running = [stage for stage in running if not stage.poll()]
                status.update(escape(" | ".join(f"{s.name}: {last_line(s.log)}" for s in running)))
                time.sleep(0.2)
        finally:
            for stage in running:
                if stage.process is not None and stage.process.returncode is None:
                    stage.process.terminate()


def last_line(log: Path) -> str:
    """The newest piece of a log, where progress bars rewrite their line."""
    with open(log, "rb") as file:
        file.seek(max(0, log.stat().st_size - 400))
        text = file.read().decode("utf-8", "replace").replace("\r", "\n")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:60] if lines else "starting"


# ---- commands ------------------------------------------------------------------------------------------------------


def launcher(processes: int) -> list[str]:
    """Plain python for one process, torchrun for more."""
    if processes == 1:
        return [sys.executable, "-u", "-m"]
    options = ["--standalone", "--nproc_per_node", str(processes), "-m"]
    return [sys.executable, "-u", "-m", "torch.distributed.run", *options]


def prepare_stages(args: argparse.Namespace) -> list[Stage]:
    """Data, tokenizer and tower, one after the other."""
    out, python = args.output, [sys.executable, "-u", "-m"]
    counts = [f"--{split}={getattr(args, split)}" for split in ("train", "val", "test", "unseen")]
    workers, seed = str(os.cpu_count() or 1), str(args.seed)
    data = ["videollm.synthetic", "--output", str(out / "data"), *counts, "--seed", seed, "--workers", workers]
    tower = ["videollm.tiny", "--data", str(out / "data"), "--output", str(out / "tower"), "--seed", seed]
    tower += ["--steps", str(args.tower_steps), "--tokenizer", str(out / "tokenizer")]
    return [
        Stage("make clips", [*python, *data], out / "logs/data.txt"),
        Stage("prepare tower", [*python, *tower], out / "logs/tower.txt"),
    ]


def overrides(args: argparse.Namespace, run: str) -> list[str]:
    """Where this run's files are, for its config."""
    out = args.output
    parts = {
        "model.vision_weights": out / "tower",
        "model.tokenizer": out / "tokenizer",
        "model.word_vectors": out / "tower/attributes.safetensors",
        "model.feature_mean": out / "tower/feature_mean.safetensors",
    }
    annotations = out / ("pairs" if run in FURTHER else "data")
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
    shutil.rmtree(args.output / run, ignore_errors=True)
    config = args.configs / f"{'d2vlm_fpo' if run in FURTHER else run}.yaml"
    command = ["videollm.train", "--config", str(config), *overrides(args, run)]
    return Stage(f"train {run}", [*launcher(args.processes), *command], args.output / f"logs/train_{run}.txt")


def infer_stage(args: argparse.Namespace, run: str, split: str) -> Stage:
    """Answer the questions of one split."""
    out = args.output
    return answer_stage(args, run, f"{split} {run}", [out / f"data/{split}.jsonl"], out / run / f"{split}.jsonl")


def answer_stage(
    args: argparse.Namespace, run: str, name: str, annotations: Sequence[Path], answers: Path, *more: str
) -> Stage:
    """Answer questions with the model of one run."""
    command = ["videollm.infer", "--model", str(args.output / run / "final")]
    command += ["--videos", str(args.output / "data/videos"), "--output", str(answers)]
    command += ["--annotations", *map(str, annotations), "--batch-size", "64", "generate.max_new_tokens=48", *more]
    log = args.output / f"logs/{name.replace(' ', '_')}.txt"
    return Stage(f"answer {name}", [*launcher(args.processes), *command], log)


# ---- preferences ---------------------------------------------------------------------------------------------------


def own_answers_stage(args: argparse.Namespace) -> Stage:
    """Let the evidence head's model answer, by sampling, what pairs are made for: its own mistakes are among them."""
    pairs = args.output / "pairs"
    shutil.rmtree(pairs, ignore_errors=True)
    pairs.mkdir()
    lines = (args.output / "data/train.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    clips = list(dict.fromkeys(json.loads(line)["video"] for line in lines))[:PAIR_CLIPS]
    kept = [line for line in lines if json.loads(line)["video"] in clips]
    (pairs / "questions.jsonl").write_text("".join(kept), encoding="utf-8")
    sampled = ("generate.do_sample=true", f"generate.seed={args.seed}")
    asked = (pairs / "questions.jsonl", args.output / "data/val.jsonl")
    return answer_stage(args, "d2vlm", "own d2vlm", asked, pairs / "own.jsonl", *sampled)


def pair_stages(args: argparse.Namespace) -> list[Stage]:
    """Make pairs to train on, and pairs of validation clips to rank."""
    out, stages = args.output, []
    for split, (annotations, options) in PAIRS.items():
        command = [sys.executable, "-u", "-m", "d2vlm.preference", "--annotations", str(out / annotations)]
        command += ["--answers", str(out / "pairs/own.jsonl"), "--output", str(out / f"pairs/{split}.jsonl")]
        command += [f"seed={args.seed}", *options]
        stages.append(Stage(f"make {split} pairs", command, out / f"logs/pairs_{split}.txt"))
    return stages


def rank_stage(args: argparse.Namespace) -> Stage:
    """Rank the held-out pairs with the supervised model and with both that went on from it."""
    out = args.output
    models = [str(out / run / "final") for run in ("d2vlm", *FURTHER)]
    command = [sys.executable, "-u", "-m", "d2vlm.rank", "--model", *models, "--videos", str(out / "data/videos")]
    command += ["--annotations", str(out / "pairs/val.jsonl"), "--output", str(out / "pairs/ranks.json")]
    return Stage("rank held-out pairs", command, out / "logs/rank.txt")


# ---- report --------------------------------------------------------------------------------------------------------


def score_all(args: argparse.Namespace) -> dict:
    """Scores of every head on every split and of the models that went on, and what guessing and perfection earn."""
    data, train = args.output / "data", task.load(args.output / "data/train.jsonl")
    items = {split: task.load(data / f"{split}.jsonl") for split in SPLITS}

    def scores(run: str, split: str) -> dict:
        found = task.score(items[split], predictions(args, run, split, items[split]))
        return {key: value for key, value in found.items() if key != "per_sample"}

    report = {"heads": {head: scores(head, "test") for head in HEADS}}
    report["unseen_kinds"] = {head: scores(head, "unseen") for head in HEADS}
    report["further"] = {run: scores(run, "test") for run in FURTHER}
    report["baselines"] = task.baselines(items["test"], train, args.seed)
    report["oracle"] = task.oracle(items["test"])
    best = max(b["mIoU"] for b in report["baselines"].values())
    for found in (*report["heads"].values(), *report["further"].values()):
        found["skill"] = (found["mIoU"] - best) / (report["oracle"]["mIoU"] - best)
    ranks = json.loads((args.output / "pairs/ranks.json").read_text(encoding="utf-8"))["models"]
    report["pairs"] = {run: ranks[str(args.output / run / "final")] for run in ("d2vlm", *FURTHER)}
    return report


def predictions(args: argparse.Namespace, head: str, split: str, items: list[dict]) -> list[dict]:
    """A head's predictions for one split."""
    lines = (args.output / head / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    answers = {line["id"]: line for line in map(json.loads, lines)}
    return [task.to_prediction(item, answers.get(item["id"])) for item in items]


def table_rows(report: dict) -> tuple[list[str], list[list]]:
    """The score table: heads first, then what they are compared with."""
    columns = [
        "",
        "mIoU",
        "R@1 0.3",
        "R@1 0.5",
        "R@1 0.7",
        "dense F1",
        "phrase F1",
        "choice acc.",
        "skill",
        "new kinds",
    ]

    def row(name: str, scores: dict, kinds: dict | None = None) -> list:
        recalls = [scores.get("R@1", {}).get(t) for t in ("0.3", "0.5", "0.7")]
        more = [scores.get(k) for k in ("dense_F1", "dense_caption_F1", "mc_accuracy", "skill")]
        return [name, scores["mIoU"], *recalls, *more, kinds["mIoU"] if kinds else None]

    heads = {head: row(head, scores, report["unseen_kinds"][head]) for head, scores in report["heads"].items()}
    further = [row(FURTHER[run], scores) for run, scores in report["further"].items()]
    rows = [heads.pop("d2vlm"), *further, *heads.values()]
    rows += [row(name.replace("_", " "), scores) for name, scores in report["baselines"].items()]
    return columns, [*rows, row("oracle (32 frames)", report["oracle"])]


def pair_rows(report: dict) -> tuple[list[str], list[list]]:
    """How the held-out pairs are ranked before and after: all, then by what is wrong with the rejected answer."""
    ranks = {"d2vlm": report["pairs"]["d2vlm"], **{FURTHER[run]: report["pairs"][run] for run in FURTHER}}
    columns = ["rejected for", "pairs", *(f"{run} {what}" for what in ("accuracy", "margin") for run in ranks)]
    factors = ranks["d2vlm"]["by_factor"]
    rows = [["anything", ranks["d2vlm"]["pairs"], *(of[k] for k in ("accuracy", "margin") for of in ranks.values())]]
    for factor in sorted(factors, key=lambda name: factors[name]["accuracy"]):
        found = [of["by_factor"][factor] for of in ranks.values()]
        rows.append([factor, found[0]["pairs"], *(of[k] for k in ("accuracy", "margin") for of in found)])
    return columns, rows


def draw(args: argparse.Namespace, report: dict) -> None:
    """The pictures: score table, loss curves, timelines."""
    out = args.output
    columns, rows = table_rows(report)
    timeline.score_table(out / "scores.png", rows, columns)
    logs = {head: [json.loads(x) for x in (out / head / "log.jsonl").read_text().splitlines()] for head in HEADS}
    terms = ("step", "loss", "lm", "grounding", "consistency", "dfl", "diou")
    curves = {
        head: [{k: v for k, v in e.items() if k in terms} for e in log if "lm" in e] for head, log in logs.items()
    }
    timeline.loss_curves(out / "losses.png", curves)
    timeline.timeline_grid(out / "timelines.png", timelines(args))


def timelines(args: argparse.Namespace) -> list[dict]:
    """One grounding question of each of the first dozen test clips, every head's answer beside the truth."""
    items = [i for i in task.load(args.output / "data/test.jsonl") if i["task"] == "grounding"]
    first = list({i["video"]: i for i in items}.values())[:SHOWN]
    by_head = {h: {p["id"]: p for p in predictions(args, h, "test", items)} for h in HEADS}
    resize = Preprocess(kind="plain", size=64).while_decoding()
    samples = []
    for item in first:
        sampler = Sampler(rule="segments", num_frames=12)
        frames = read_video(args.output / "data/videos" / item["video"], sampler, resize=resize)
        samples.append(
            {
                "frames": list(frames.pixels.numpy()),
                "frame_times_s": frames.times_s.tolist(),
                "duration_s": item["duration"],
                "truth": {"truth": [item["tgt"][:2]]},
                "predictions": {h: by_head[h][item["id"]]["spans"][:1] for h in HEADS},
                "title": item["conversations"][0]["value"].replace("<video>", "").strip(),
            }
        )
    return samples


def write_report(args: argparse.Namespace, report: dict) -> None:
    """``report.json``, ``report.html`` and a table on the terminal."""
    out = args.output
    (out / "report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    columns, rows = table_rows(report)
    pair_columns, ranked = pair_rows(report)
    wall, cpu = report["wall_s"], report["cpu_s"]
    run = {key: report[key] for key in ("seed", "commit", "processes", "torch")}
    costs = [[name, round(wall[name], 1), round(cpu[name], 1)] for name in wall]
    sections = [
        {"heading": "Scores", "columns": columns, "rows": rows, "text": EXPLANATION},
        {"heading": "Preferences", "columns": pair_columns, "rows": ranked, "text": PREFERENCES},
        {"heading": "Answers on unseen clips", "image": out / "timelines.png"},
        {"heading": "Losses", "image": out / "losses.png"},
        {"heading": "Cost", "columns": ["step", "wall s", "CPU s"], "rows": costs},
        {"heading": "Run", "code": json.dumps(run, indent=1)},
    ]
    timeline.report_html(out / "report.html", "Moving shapes: three ways to say when", sections)
    title = f"unseen clips, free generation, seed {args.seed}"
    table = Table(title=title, box=None, padding=(0, 1, 0, 0), pad_edge=False)  # fits 80 columns
    for i, name in enumerate(columns):
        table.add_column(name.replace(" ", "\n"), justify="right" if i else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(f"{c:.3f}" if isinstance(c, float) else "" if c is None else str(c) for c in row))
    CONSOLE.print(table)
    for run, ranks in report["pairs"].items():
        told = f"ranks {ranks['accuracy']:.3f} of {ranks['pairs']} held-out pairs right, margin {ranks['margin']:.2f}"
        CONSOLE.print(f"{FURTHER.get(run, run)}: {told}", highlight=False)
    CONSOLE.print(
        f"{wall['total']:.0f} s wall, {cpu['total']:.0f} s CPU; report: {out / 'report.html'}", highlight=False
    )


EXPLANATION = (
    "Every model saw the same clips and the same vision tower, which was prepared on the training clips with labels of "
    "colour, shape and motion; then each head was trained with DeepSpeed and answered by free greedy generation.\n\n"
    "random event: the true span of a random event of the clip, whatever was asked; the strongest guess. "
    "skill = (mIoU - best guess) / (oracle - best guess). oracle: the best span made of whole frames. new kinds: "
    "questions about events that combine colour, shape and motion as no training clip does. d2vlm + FPO: d2vlm's "
    "model after further steps with pairs of a right answer and a wrong one of its own; d2vlm + SFT: after as many "
    "with those right answers alone."
)
PREFERENCES = (
    "Pairs of a right and a wrong answer to the same question, of clips never trained on. accuracy: share in which the "
    "right one is more probable; margin: by how much, 0.1 x the difference of the log-probabilities. own-...: the "
    "model's own wrong answers before it went on."
)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line; the environment variables SEED and GPUS give the defaults."""
    parser = argparse.ArgumentParser(prog="videollm.quickstart", description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("runs/quickstart"))
    parser.add_argument("--configs", type=Path, default=Path("configs/tiny"))
    parser.add_argument("--seed", type=int, default=int(os.environ.get("SEED", 0)))
    given = os.environ.get("GPUS")
    parser.add_argument("--processes", type=int, default=int(given) if given else max(1, torch.cuda.device_count()))
    parser.add_argument("--train", type=int, default=1500, help="training clips")
    parser.add_argument("--val", type=int, default=100)
    parser.add_argument("--test", type=int, default=300)
    parser.add_argument("--unseen", type=int, default=100)
    parser.add_argument("--steps", type=int, help="training steps of every head (default: the configs' own)")
    parser.add_argument("--tower-steps", type=int, default=600)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run all of it."""
    args = arguments(argv)
    start, usage = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF)
    # One job a core where every job is one CPU process; on GPUs, or with several processes a job, one after the other.
    alone = args.processes > 1 or torch.cuda.is_available()
    slots = 1 if alone else len(HEADS)
    stages = prepare_stages(args)
    run_stages(stages, 1)
    for group in (
        [train_stage(args, head) for head in HEADS],
        [own_answers_stage(args), *(infer_stage(args, head, split) for head in HEADS for split in SPLITS)],
        pair_stages(args),
        [train_stage(args, run) for run in FURTHER],
        [rank_stage(args), *(infer_stage(args, run, "test") for run in FURTHER)],
    ):
        run_stages(group, slots)
        stages += group
    report = score_all(args)
    report |= {"seed": args.seed, "commit": code()[0], "processes": args.processes, "torch": torch.__version__}
    draw(args, report)
    own = resource.getrusage(resource.RUSAGE_SELF)
    own_s = own.ru_utime + own.ru_stime - usage.ru_utime - usage.ru_stime
    report["wall_s"] = {s.name: s.wall_s for s in stages} | {"total": time.monotonic() - start}
    report["cpu_s"] = {s.name: s.cpu_s for s in stages} | {"total": sum(s.cpu_s for s in stages) + own_s}
    write_report(args, report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
