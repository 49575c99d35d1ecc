"""What two ranks print: every thing once, with its step, and nothing of other libraries that nobody can act on."""

import json
import os
import subprocess
import sys

import pytest
from safetensors.torch import load_file, save_file

from tests.models import clip_lines, make_bundle, write_config

pytestmark = pytest.mark.distributed
NO_PARTS = {
    "vision": {}, "connector": {}, "language": {}, "head": {}, "tokenizer": None, "visual_tokens": None,
}  # fmt: skip
THEIRS = ("Warning", "WARNING", "LOAD REPORT", "non_blocking", "OMP_NUM_THREADS", "Traceback")
THEIRS += ("Loading weights", "Writing model shards")


def test_two_ranks_speak_with_one_voice(repository, tmp_path):
    """They train on from a base without a head, of which transformers would print a table on each."""
    base = tmp_path / "base"
    make_bundle("internvl", "distime").save(base)
    kept = {name: t for name, t in load_file(base / "model.safetensors").items() if not name.startswith("head.")}
    save_file(kept, base / "model.safetensors", metadata={"format": "pt"})
    fields = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(fields | {"headless": True}))
    options = {"steps": 2, "gradient_checkpointing": True, "lines": clip_lines()}
    config = write_config(tmp_path, "distime", model=NO_PARTS | {"checkpoint": str(base)}, **options)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OMP")}
    environment |= {"GPUS": "2", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "videollm", "launch", "train", "--config", str(config)]
    done = subprocess.run(command, cwd=repository, env=environment, capture_output=True, text=True, check=False)
    said = done.stdout + done.stderr
    assert done.returncode == 0 and not [name for name in THEIRS if name in said], said
    once = ("its head starts fresh", "What trains", "{'step': '1/2', 'loss'", "{'step': '2/2', 'loss'", "final model: ")
    assert [said.count(words) for words in once] == [1] * len(once), said
