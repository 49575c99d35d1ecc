"""A native backbone through the commands: trained on videos, with stored features, asked, and its memory estimated."""

import json
import re

import pytest
import yaml

from tests.models import clips, read_log, write_config
from videollm.infer import main as infer
from videollm.memory import main as memory
from videollm.train import main as train


@pytest.fixture(scope="module", params=[("qwen3_vl", "d2vlm"), ("qwen2_5_vl", "distime")], ids="-".join)
def run(request, tmp_path_factory):
    """A run of three steps from videos, with a tower that learns."""
    backbone, head = request.param
    folder = tmp_path_factory.mktemp(backbone)
    path = write_config(folder, head, backbone=backbone, parts={"vision_tower": {"train": True}})
    assert train(["--config", str(path)]) == 0
    return path


def test_it_trains_and_answers(run, tmp_path):
    assert [entry["step"] for entry in read_log(run.parent / "run")] == [1, 2, 3]
    config = yaml.safe_load(run.read_text())
    out = tmp_path / "out.jsonl"
    given = ["--model", str(run.parent / "run/final"), "--videos", str(clips()), "--output", str(out)]
    assert infer([*given, "--annotations", config["data"]["train"][0], "--device", "cpu"]) == 0
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(lines) == 4 and not any(line["error"] for line in lines)


def test_features_are_stored_and_read_again(run, tmp_path, capsys):
    stored = [f"data.features={tmp_path / 'features'}", "train.parts.vision_tower.train=false"]
    logs = []
    for name in ("first", "second"):
        assert train(["--config", str(run), f"train.output={tmp_path / name}", *stored]) == 0
        logs.append([entry["loss"] for entry in read_log(tmp_path / name)])
    assert train(["--config", str(run), f"train.output={tmp_path / 'plain'}", stored[1]]) == 0
    logs.append([entry["loss"] for entry in read_log(tmp_path / "plain")])
    assert "hit rate 100%" in capsys.readouterr().out
    assert logs[0] == logs[1] == pytest.approx(logs[2], rel=1e-5)


def test_its_memory_is_estimated(run, capsys):
    most = []
    for trained in ("true", "false"):
        assert memory(["--config", str(run), f"train.parts.vision_tower.train={trained}"]) == 0
        most.append(float(re.search(r"at most at once\W+([\d.,]+)", capsys.readouterr().out)[1].replace(",", "")))
    assert most[0] > 1.2 * most[1] > 0
