"""The files that the documents' commands name, small: clips, annotations, models with nothing learnt, predictions.

``build(folder, run)`` lays out what a reader would have when he types a command of README.md or docs/*.md; ``desk``
copies it for one document, beside links to the repository. Knows the names in the documents, and of the repository its
public commands only.
"""

import gzip
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from tests import benchmark_data
from tests.models import BACKBONES, make_bundle

OWN = ("runs", "data", "checkpoints", ".git", ".venv")  # of the repository: not for the commands
QUICK = "train.steps=2 train.deepspeed=null"
LAYERS = 8  # the recipes of D2VLM inject after the sixth
LINES = 12  # of an annotation file


def build(folder: Path, repository: Path, run: Callable[[str, Path], None]) -> None:
    """Lay all of it out in ``folder``. ``run(command, folder)`` runs a command there and fails if it does."""
    folder.mkdir()
    link(repository, folder)
    quickstart(folder, run)
    models(folder)
    annotations(folder)
    published(folder)
    benchmarks(folder, run)


def link(repository: Path, folder: Path) -> None:
    """Make what the repository holds be found in ``folder``."""
    for entry in repository.iterdir():
        if entry.name not in OWN:
            (folder / entry.name).symlink_to(entry)


def desk(base: Path, folder: Path) -> Path:
    """A copy of what ``build`` made, to work on."""
    return shutil.copytree(base, folder, symlinks=True)


def quickstart(folder: Path, run: Callable[[str, Path], None]) -> None:
    """runs/quickstart: clips, tower, tokenizer and the evidence head's model, as its own commands make them."""
    data = "runs/quickstart/data"
    run(f"python -m quickstart.clips --output {data} --train 8 --val 2 --test 2 --unseen 2", folder)
    tower = f"python -m quickstart.tower --data {data} --output runs/quickstart/tower --steps 2"
    run(f"{tower} --tokenizer runs/quickstart/tokenizer", folder)
    run(f"python -m videollm.train --config configs/tiny/d2vlm.yaml {QUICK}", folder)


def models(folder: Path) -> None:
    """Checkpoints under the names of the documents: D2VLM's and DisTime's forms, at a few thousand parameters."""
    deep = BACKBONES["etchat"]["language"] | {"num_hidden_layers": LAYERS}
    make_bundle("etchat", "d2vlm", language=deep).save(folder / "MODEL")
    for name in ("checkpoints/etchat_phi3_stage2", "runs/d2vlm_sft/final", "runs/sft/final", "runs/fpo/final"):
        shutil.copytree(folder / "MODEL", folder / name)
    make_bundle("internvl", "distime").save(folder / "checkpoints/internvl2_5_1b")
    for name in ("checkpoints/internvl2_5_8b", "sft"):
        shutil.copytree(folder / "checkpoints/internvl2_5_1b", folder / name)
    adapters = {"lora": {"r": 2, "targets": ["q_proj"]}}
    make_bundle("internvl", "distime", adapters).save(folder / "runs/NAME/final")
    for name in ("checkpoints/qwen3_vl_4b_d2vlm", "runs/finetune/final"):
        make_bundle("qwen3_vl", "d2vlm").save(folder / name)


def annotations(folder: Path) -> None:
    """Annotation files of the quickstart's clips, whole and gzipped, with and without rejected answers."""
    videos = folder / "runs/quickstart/data/videos"
    for name in (
        "videos",
        "VIDEOS",
        "clips",
        "absolute/data/videos",
        "absolute/path/to/videos",
        "data/ET-Instruct-164K/videos",
    ):
        shutil.copytree(videos, folder / name)
    lines = (folder / "runs/quickstart/data/train.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    first, second = rows[:LINES], rows[LINES : 2 * LINES]
    for name in ("train.jsonl", "questions.jsonl", "mine.jsonl"):
        (folder / name).write_text("".join(f"{json.dumps(row)}\n" for row in first), encoding="utf-8")
    (folder / "more.json.gz").write_bytes(gzip.compress(json.dumps(second).encode()))
    evidence = folder / "data/D2VLM-Dataset/ET-Instruct/evi.json"
    evidence.parent.mkdir(parents=True)
    evidence.write_text(json.dumps(first), encoding="utf-8")
    (folder / "clips/kitchen").mkdir()
    shutil.copy(folder / "videos" / first[0]["video"], folder / "clips/kitchen/001.mp4")
    window = {"vid": "kitchen/001.mp4", "duration": first[0]["duration"], "relevant_windows": [[1, 2]]}
    (folder / "moments.jsonl").write_text(json.dumps(window | {"query": "it turns"}) + "\n", encoding="utf-8")
    moment = {"source": "shapes", "video_path": first[0]["video"], "duration": first[0]["duration"]}
    moment |= {"events": [{"query": "a square turns", "span": [[1, 2]]}]}
    (folder / "timelens-100k.jsonl").write_text(f"{json.dumps(moment)}\n", encoding="utf-8")
    (folder / "held_out.jsonl").write_text("".join(f"{json.dumps(pair(row))}\n" for row in asked(first)))
    (folder / "pairs.jsonl").write_text((folder / "held_out.jsonl").read_text())


def asked(rows: list[dict]) -> list[dict]:
    """The questions for one moment."""
    return [row for row in rows if row["task"] == "grounding"]


def pair(row: dict) -> dict:
    """The record with a rejected answer: the same words at another time."""
    start, end, *more = row["tgt"]
    value = row["conversations"][-1]["value"]
    return row | {"rejected": [{"factor": "shift", "value": value, "tgt": [start / 2, end / 2, *more]}]}


def published(folder: Path) -> None:
    """Lists of data sets."""
    entry = {"root": "VIDEOS", "annotation": "train.jsonl", "repeat_time": 1}
    for name in ("meta.json", "mix.json"):
        (folder / name).write_text(json.dumps({"shapes": entry}), encoding="utf-8")


def benchmarks(folder: Path, run: Callable[[str, Path], None]) -> None:
    """A data root of every benchmark, Charades-STA's files beside it, and predictions that are all right."""
    benchmark_data.write_all(folder / "DATA")
    for path in (folder / "DATA/charades").iterdir():
        (shutil.copytree if path.is_dir() else shutil.copy)(path, folder / path.name.replace("videos", "CHARADES"))
    found: dict[str, dict] = {}
    for line in (folder / "charades_sta_test.txt").read_text(encoding="utf-8").splitlines():
        video, start, end, query = re.fullmatch(r"(\S+) (\S+) (\S+)##(.*)", line).groups()
        found.setdefault(video, {})[query] = {"start": float(start), "end": float(end)}
    (folder / "results.json").write_text(json.dumps(found), encoding="utf-8")
    rows = [line.partition("##") for line in (folder / "charades_sta_test.txt").read_text("utf-8").splitlines()]
    texts = [{"video": r[0].split()[0], "question": r[2], "text": "From 1 to 2 seconds."} for r in rows]
    (folder / "theirs.jsonl").write_text("".join(f"{json.dumps(text)}\n" for text in texts), encoding="utf-8")
    score = "python -m all_benchmark_eval.score charades --predictions results.json"
    run(f"{score} --annotations charades_sta_test.txt --output other.json", folder)
