"""The quickstart as a user starts it, on a dozen clips and two steps: every stage runs and the report is whole."""

import json
import os
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.end_to_end, pytest.mark.slow]

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
