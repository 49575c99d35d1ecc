"""The quickstart as a user starts it, on a dozen clips and two steps: every stage runs and the report is whole."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from all_benchmark_eval.moving_shapes import task as score
from quickstart import clips, tower
from tests.models import read_log
from videollm import infer, train

REPOSITORY = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow

SMALL = ["--train", "12", "--val", "4", "--test", "4", "--unseen", "2", "--steps", "2", "--tower-steps", "2"]


def test_the_quickstart_writes_a_whole_report(repository, tmp_path):
    environment = os.environ | {"VIDEOLLM_PYTHON": sys.executable, "SEED": "3"}
    command = ["bash", "scripts/quickstart.sh", "--output", str(tmp_path / "run"), *SMALL]
    done = subprocess.run(command, cwd=repository, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "run/report.json").read_text())
    assert set(report["heads"]) == {"d2vlm", "distime", "text"}
    assert set(report["further"]) == {"d2vlm_sft_more", "d2vlm_fpo", "d2vlm_grpo"}
    for scores in (*report["heads"].values(), *report["further"].values()):
        assert 0 <= scores["mIoU"] <= 1 and set(scores["R@1"]) == {"0.3", "0.5", "0.7"} and "dense_F1" in scores
    assert report["oracle"]["mIoU"] > report["baselines"]["random_event"]["mIoU"]
    pairs = report["pairs"]
    assert set(pairs) == {"d2vlm", *report["further"]}
    assert len({found["pairs"] for found in pairs.values()}) == 1 and not pairs["d2vlm"]["unreadable"]
    assert all(0 <= found["accuracy"] <= 1 and "swap" in found["by_factor"] for found in pairs.values())
    assert {"train d2vlm_fpo", "rank held-out pairs"} <= set(report["wall_s"])
    assert report["seed"] == 3 and report["wall_s"]["total"] > 0 and report["cpu_s"]["total"] > 0
    for name in ("report.html", "scores.png", "losses.png", "timelines.png", "viewer/index.html"):
        assert (tmp_path / "run" / name).stat().st_size > 1000
    assert "d2vlm + FPO" in done.stdout and "d2vlm + SFT" in done.stdout and "held-out pairs" in done.stdout
    assert "<h2>Preferences</h2>" in (tmp_path / "run/report.html").read_text()


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """A folder with a few clips, a tokenizer and a native tower that has hardly learnt anything."""
    folder = tmp_path_factory.mktemp("native")
    counts = ["--train", "12", "--val", "2", "--test", "4", "--unseen", "0", "--workers", "1"]
    assert clips.main(["--output", str(folder / "data"), *counts]) == 0
    made = ["--data", str(folder / "data"), "--output", str(folder / "tower"), "--tokenizer", str(folder / "tokenizer")]
    config = REPOSITORY / "configs/tiny/qwen3_vl_d2vlm.yaml"
    assert tower.main([*made, "--config", str(config), "--steps", "10"]) == 0
    return folder


@pytest.mark.parametrize("head", ["d2vlm", "distime", "text"])
def test_a_native_backbone_learns_the_shapes(head, shapes, tmp_path):
    """By the commands of any other config: the loss falls, and the answers are scored."""
    values = {
        "model.vision_weights": shapes / "tower", "model.word_vectors": shapes / "tower/attributes.safetensors",
        "model.tokenizer": shapes / "tokenizer", "data.train": f"[{shapes / 'data/train.jsonl'}]",
        "data.validation": "[]", "data.videos": shapes / "data/videos", "data.features": shapes / "features",
        "train.output": tmp_path / "run", "train.deepspeed": "null", "train.steps": 30, "train.warmup": 2,
        "train.log_every": 5, "train.batch_size": 4,
    }  # fmt: skip
    config = REPOSITORY / f"configs/tiny/qwen3_vl_{head}.yaml"
    assert train.main(["--config", str(config), *(f"{key}={value}" for key, value in values.items())]) == 0
    losses = [entry["loss"] for entry in read_log(tmp_path / "run")]
    assert losses[-1] < 0.75 * losses[0]
    asked, answers = str(shapes / "data/test.jsonl"), str(tmp_path / "answers.jsonl")
    files = ["--annotations", asked, "--videos", str(shapes / "data/videos"), "--output", answers]
    assert infer.main(["--model", str(tmp_path / "run/final"), *files]) == 0
    scores = tmp_path / "scores.json"
    assert score.main(["--annotations", asked, "--predictions", answers, "--output", str(scores)]) == 0
    assert 0 <= json.loads(scores.read_text())["mIoU"] <= 1
