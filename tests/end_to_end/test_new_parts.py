"""A head, an objective and a benchmark are added by a new folder and a config each; no file that is there changes."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.models import clip_lines, clips, write_config, write_lines

PACKAGES = ("videollm", "d2vlm", "distime", "all_benchmark_eval", "configs")
PARTS = {"center_width": "docs/heads.md", "confident": "docs/training.md"}  # package -> the page that shows it
ROWS = [
    {"id": f"q{i}", "video": f"clip{i}.mp4", "duration": 4 + i, "query": "it happens", "span": [0, 2]} for i in range(2)
]


def content(folder: Path) -> dict[str, str]:
    """{path: digest} of all files."""
    files = (f for f in folder.rglob("*") if f.is_file() and "__pycache__" not in f.parts)
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def run(house: Path, *commands: list[str]) -> None:
    """Commands in the house, one after the other in one process: importing torch takes longer than they do."""
    lines = [f"assert importlib.import_module({module!r}).main({arguments!r}) == 0" for module, *arguments in commands]
    environment = os.environ | {"PYTHONPATH": str(house)}
    code = [sys.executable, "-c", "\n".join(["import importlib", *lines])]
    done = subprocess.run(code, cwd=house, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def house(repository, tmp_path) -> Path:
    """A copy of the code."""
    for name in PACKAGES:
        shutil.copytree(repository / name, tmp_path / "house" / name, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "house"


def add_package(house: Path, repository: Path, name: str) -> None:
    """The package that a page shows in full."""
    page = (repository / PARTS[name]).read_text(encoding="utf-8")
    shown = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    (code,) = [text for text in shown if f'register(name="{name}")' in text]
    (house / name).mkdir()
    (house / name / "__init__.py").write_text(code, encoding="utf-8")


def test_head_objective_and_benchmark_are_a_folder_and_a_config_each(house, repository, tmp_path):
    before = content(house)
    for name in PARTS:
        add_package(house, repository, name)
    shutil.copytree(house / "all_benchmark_eval/TEMPLATE", house / "all_benchmark_eval/mine")
    for file in (house / "all_benchmark_eval/mine").iterdir():
        file.write_text(file.read_text(encoding="utf-8").replace("TEMPLATE", "mine"), encoding="utf-8")
    made = yaml.safe_load(write_config(tmp_path / "made", "text", steps=2).read_text())
    made["model"]["head"] = {"name": "center_width", "weight": 2.0}
    made["train"]["objective"] = {"name": "confident", "weight": 0.05}
    made["train"]["output"] = str(tmp_path / "run")
    (house / "configs/mine").mkdir()
    (house / "configs/mine/both.yaml").write_text(yaml.safe_dump(made))
    (tmp_path / "truth.json").write_text(json.dumps(ROWS))
    questions, answers = write_lines(tmp_path / "questions.jsonl", clip_lines(2)), str(tmp_path / "answers.jsonl")
    model = ["--model", str(tmp_path / "run/final"), "--videos", str(clips()), "--device", "cpu"]
    asked = ["--annotations", questions, "--output", answers, "generate.max_new_tokens=8"]
    scored = ["--predictions", answers, "--wording", "plain", "--annotations", str(tmp_path / "truth.json")]
    run(
        house,
        ["videollm.train", "--config", "configs/mine/both.yaml"],
        ["videollm.infer", *model, *asked],
        ["all_benchmark_eval.score", "mine", *scored, "--output", str(tmp_path / "scores.json")],
    )
    entry = json.loads((tmp_path / "run/log.jsonl").read_text().splitlines()[0])
    assert {"lm", "l1", "entropy"} <= entry.keys() and entry["entropy"] > 0
    scores = json.loads((tmp_path / "scores.json").read_text())["protocols"]
    assert {found["counts"]["samples"] for found in scores.values()} == {len(ROWS)}

    after = content(house)
    assert {path for path in before if after.get(path) != before[path]} == set()
    new = {path for path in after if path not in before}
    allowed = (*(f"{name}/" for name in PARTS), "all_benchmark_eval/mine/", "configs/mine/")
    assert new and all(path.startswith(allowed) for path in new)
