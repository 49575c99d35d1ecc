"""The quickstart's outputs as ``report.json``, ``report.html`` and pictures."""

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from rich.table import Column, Table

from all_benchmark_eval.benchmark import read_answers
from all_benchmark_eval.moving_shapes import task
from quickstart.pictures import loss_curves, report_html, score_table
from quickstart.stages import CONSOLE, FURTHER, HEADS
from videollm.common.files import json_lines
from videollm.data import load_records
from videollm.inference.timeline import timeline_grid
from videollm.show.viewer import of_record, write_page
from videollm.video.preprocess import Preprocess
from videollm.video.read import read_video
from videollm.video.sampling import Sampler

SPLITS = ("test", "unseen")  # clips never trained on; `unseen` asks about kinds of event never trained on
SHOWN = ("grounding",) * 4 + ("dense_caption",) * 2  # tasks of the timelines in the picture, one of each clip
ROWS = {"d2vlm": "d2vlm", "d2vlm_fpo": "+ FPO", "d2vlm_grpo": "+ GRPO", "distime": "distime", "text": "text"}
VIEWED = ("d2vlm", "d2vlm_grpo")  # runs whose answers are all on the page of answers
CHOICE = (
    "The first six test clips, chosen by their number and by no score: of four the first question about an event, of "
    "two the question about all. Below each, what d2vlm said."
)
EXPLANATION = (
    "Every model saw the same clips and the same vision tower, which was prepared on the training clips with labels of "
    "colour, shape and motion; then each head was trained with DeepSpeed and answered by free greedy generation.\n\n"
    "random event: the true span of a random event of the clip, whatever was asked; the strongest guess. "
    "skill = (mIoU - best guess) / (oracle - best guess). oracle: the best span made of whole frames. new kinds: "
    "questions about events that combine colour, shape and motion as no training clip does. d2vlm + FPO: d2vlm's "
    "model after further steps with pairs of a right answer and a wrong one of its own; d2vlm + SFT: after as many "
    "with those right answers alone; d2vlm + GRPO: after 40 steps of reinforcement learning on its own answers."
)
VIEWER = "viewer/index.html", "All answers of d2vlm and of d2vlm + GRPO, with their clips"
PREFERENCES = (
    "Pairs of a right and a wrong answer to the same question, of clips never trained on. accuracy: share in which the "
    "right one is more probable; margin: by how much, 0.1 x the difference of the log-probabilities. own-...: the "
    "model's own wrong answers before it went on."
)


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


def predictions(args: argparse.Namespace, head: str, file: str, items: list[dict]) -> list[dict]:
    """A head's predictions for ``items``, of which the answers file ``file`` may hold more."""
    answers = read_answers(args.output / head / f"{file}.jsonl")
    return [task.to_prediction(item, answers.get(item["id"])) for item in items]


def table_rows(report: dict) -> tuple[list[str], list[list]]:
    """The score table: heads first, then what they are compared with."""
    recalls = ("R@1 0.3", "R@1 0.5", "R@1 0.7")
    columns = ["", "mIoU", *recalls, "dense F1", "phrase F1", "choice accuracy", "skill", "new kinds"]

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
    """The pictures: score table, loss curves, timelines; and the page of answers."""
    out = args.output
    columns, rows = table_rows(report)
    score_table(out / "scores.png", rows, columns)
    logs = {head: [entry for _, entry in json_lines(out / head / "log.jsonl")] for head in HEADS}
    terms = ("step", "loss", "lm", "grounding", "consistency", "dfl", "diou")
    kept = {h: [{k: v for k, v in e.items() if k in terms} for e in log if "lm" in e] for h, log in logs.items()}
    loss_curves(out / "losses.png", kept)
    first = first_asked(task.load(out / "data/test.jsonl"))
    write_timelines(out / "timelines.png", timelines(args, first))
    names = {"d2vlm": "d2vlm", **FURTHER}
    runs = {names[run]: read_answers(out / run / "test.jsonl") for run in VIEWED}
    asked = {record.id: of_record(record) for record in load_records(out / "data/test.jsonl")}
    write_page(out / "viewer", runs, Path(os.path.relpath(out / "data/videos")), asked)


def write_timelines(path: Path, questions: Sequence[dict]) -> None:
    """``timeline_grid`` as a small PNG: a quarter of the bytes, no difference to the eye."""
    timeline_grid(path, questions)
    with Image.open(path) as picture:
        small = picture.convert("RGB").quantize(256, method=Image.Quantize.MAXCOVERAGE)
    small.save(path, optimize=True)


def first_asked(items: Sequence[dict], tasks: Sequence[str] = SHOWN) -> list[dict]:
    """Of the first clip the first question of the first of ``tasks``, of the second clip that of the second, and so on;
    a clip without such a question is left out."""
    clips = dict.fromkeys(item["video"] for item in items)
    asked = {(item["video"], item["task"]): item for item in reversed(items)}  # the first of its kind
    return [asked[wanted] for wanted in zip(clips, tasks, strict=False) if wanted in asked]


def timelines(
    args: argparse.Namespace, first: Sequence[dict], rows: Mapping[str, str] = ROWS, file: str = "test"
) -> list[dict]:
    """For each question of ``first`` the answer of every run of ``rows`` (its name in the picture), from its answers
    ``file``, beside the truth; below it the first run's text."""
    answers = {run: read_answers(args.output / run / f"{file}.jsonl") for run in rows}
    resize = Preprocess(kind="plain", size=64).while_decoding()
    sampler = Sampler(rule="segments", num_frames=12)
    frames = [read_video(args.output / "data/videos" / i["video"], sampler, resize=resize) for i in first]
    return [
        {
            "frames": list(seen.pixels.numpy()),
            "frame_times_s": seen.times_s.tolist(),
            "duration_s": item["duration"],
            "truth": {"truth": np.reshape(item["tgt"], (-1, 2))},
            "predictions": {name: answers[run][item["id"]].spans for run, name in rows.items()},
            "title": item["conversations"][0]["value"].replace("<video>", "").strip(),
            "texts": {rows[run]: answers[run][item["id"]].text for run in list(rows)[:1]},
        }
        for item, seen in zip(first, frames, strict=True)
    ]


def write_report(args: argparse.Namespace, report: dict) -> None:
    """``report.json``, ``report.html`` and a table on the terminal."""
    out = args.output
    (out / "report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    columns, rows = table_rows(report)
    pair_columns, ranked = pair_rows(report)
    wall, cpu = report["wall_s"], report["cpu_s"]
    run = {key: report[key] for key in ("seed", "commit", "processes", "torch")}
    steps = [[name, str(round(wall[name])), str(round(cpu[name]))] for name in wall]
    sections = [
        {"heading": "Scores", "columns": columns, "rows": rows, "text": EXPLANATION},
        {"heading": "Preferences", "columns": pair_columns, "rows": ranked, "text": PREFERENCES},
        {"heading": "Answers on unseen clips", "image": out / "timelines.png", "caption": CHOICE, "links": [VIEWER]},
        {"heading": "Losses", "image": out / "losses.png"},
        {"heading": "Cost", "columns": ["step", "wall s", "CPU s"], "rows": steps},
        {"heading": "Run", "code": json.dumps(run, indent=1)},
    ]
    report_html(out / "report.html", "Moving shapes: three ways to say when", sections)
    title = f"unseen clips, free generation, seed {args.seed}"
    shown = [Column(name.replace(" ", "\n"), justify="right" if name else "left", no_wrap=True) for name in columns]
    table = Table(*shown, title=title, box=None, padding=(0, 1, 0, 0), pad_edge=False)  # fits 80 columns
    for row in rows:
        table.add_row(*(f"{c:.2f}" if isinstance(c, float) else "" if c is None else str(c) for c in row))
    CONSOLE.print(table)
    for run, ranks in report["pairs"].items():
        told = f"ranks {ranks['accuracy']:.0%} of {ranks['pairs']} held-out pairs right, margin {ranks['margin']:.2f}"
        CONSOLE.print(f"{FURTHER.get(run, run)}: {told}", highlight=False)
    costs = f"{wall['total']:.0f} s wall, {cpu['total']:.0f} s CPU"
    CONSOLE.print(f"{costs}; report: {out / 'report.html'}", highlight=False)
