"""Two processes are as good as one: the same losses under DeepSpeed, and every question answered exactly once."""

import json
import os
import socket
import subprocess
import sys

import pytest
import torch

from tests.models import clip_lines, clips, read_log, turns, write_config, write_lines
from videollm import infer, train
from videollm.checkpoint import load

pytestmark = pytest.mark.distributed

RANDOM_FRAMES = "data.sampler={rule: segments, num_frames: 3, pick: random}"


def torchrun(repository, processes: int, module: str, *arguments) -> subprocess.CompletedProcess:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes)]
    command += ["--master_port", str(port), "-m", module, *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        command, cwd=repository, env=environment, capture_output=True, text=True, timeout=180, check=False
    )


@pytest.fixture(scope="module", params=["d2vlm", "distime"])
def runs(request, repository, tmp_path_factory):
    """(head, folder of one process with batches of two, folder of two processes with ZeRO-2)."""
    head, folder = request.param, tmp_path_factory.mktemp("runs")
    lines = [*clip_lines(3), {"id": "text", "conversations": turns("hi", "hello there")}]
    # A small step: Adam turns gradients that are nothing but rounding into whole steps of either sign.
    options = {"steps": 4, "lines": lines, "lr": 1e-4, "warmup": 0.0, "schedule": "constant"}
    one = write_config(folder / "one", head, batch_size=2, **options)
    assert train.main(["--config", str(one), RANDOM_FRAMES]) == 0
    zero2 = str(repository / "configs" / "deepspeed" / "zero2.json")
    two = write_config(folder / "two", head, batch_size=1, deepspeed=zero2, validate_every=4, **options)
    done = torchrun(repository, 2, "videollm.train", "--config", two, RANDOM_FRAMES)
    assert done.returncode == 0, done.stderr[-3000:]
    return head, folder / "one" / "run", folder / "two" / "run"


def test_two_processes_train_as_one_with_the_same_global_batch(runs):
    """Over two passes, with frames drawn at random and samples of unequal length, one of them without a video."""
    head, one, two = runs
    terms = {"d2vlm": ["lm", "grounding", "consistency"], "distime": ["lm", "dfl", "diou"]}[head]
    alone, shared = read_log(one), read_log(two)
    assert [e["step"] for e in shared] == [1, 2, 3, 4]
    for key in ("loss", *terms, "grad_norm"):
        assert [e[key] for e in shared] == pytest.approx([e[key] for e in alone], rel=1e-4), key
    models = [load(run / "final").model.state_dict() for run in (one, two)]
    for name, tensor in models[0].items():
        torch.testing.assert_close(models[1][name], tensor, rtol=1e-2, atol=2e-4, msg=name)
    assert len(read_log(two, "eval_mIoU")) == 1


def test_more_ranks_than_questions_answer_each_exactly_once(runs, repository, tmp_path):
    head, one, _ = runs
    if head != "distime":
        pytest.skip("one head is enough to split questions")
    annotations, output = write_lines(tmp_path / "test.jsonl", clip_lines(2)), tmp_path / "answers.jsonl"
    arguments = ["--model", one / "final", "--annotations", annotations, "--videos", clips(), "--device", "cpu"]
    small = "generate.max_new_tokens=4"
    done = torchrun(repository, 3, "videollm.infer", *arguments, "--output", output, small)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["id"] for row in rows] == ["q0", "q1"]
    assert not list(tmp_path.glob("*.part*"))
    alone = tmp_path / "alone.jsonl"
    assert infer.main([*map(str, arguments), "--output", str(alone), small]) == 0
    assert [json.loads(line)["raw_text"] for line in alone.read_text().splitlines()] == [r["raw_text"] for r in rows]
