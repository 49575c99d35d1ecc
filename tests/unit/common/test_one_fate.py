"""What one rank alone cannot read ends all ranks, with its message and without a launcher that would end them."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.models import clip_lines, clips, make_bundle, write_config, write_lines
from tests.ranks import forked, output_of, run
from videollm import infer
from videollm.checkpoint.tensors import CheckpointError, TensorSource
from videollm.common import processes
from videollm.common.processes import RankError, meet, one_fate
from videollm.training import run as training_run

pytestmark = pytest.mark.distributed
READERS = {
    "tokenizer": (sys.modules["videollm.checkpoint.load"], "read_tokenizer"),
    "tensor": (TensorSource, "__getitem__"),
    "annotations": (training_run, "load_training"),
}
ZERO3 = Path(__file__).parents[3] / "configs/deepspeed/zero3.json"


def told(folder: Path, act, ranks: int = 2, timeout_s: float = 60) -> list[str]:
    """What ``act(rank)`` returns on each of the ranks, as text; "hangs" where it does not return."""

    def say(rank: int) -> None:
        (folder / f"said{rank}").write_text(str(act(rank)))

    pids = forked(ranks, say)
    end = time.monotonic() + timeout_s
    while pids and time.monotonic() < end:
        pids = [pid for pid in pids if os.waitpid(pid, os.WNOHANG)[0] == 0]
        time.sleep(0.02)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    files = [folder / f"said{rank}" for rank in range(ranks)]
    return [file.read_text() if file.exists() else "hangs" for file in files]


@pytest.mark.parametrize("lost", [0, 2])
@pytest.mark.parametrize("meetings", [0, 2])
def test_the_error_of_one_rank_reaches_the_others_wherever_they_meet_next(tmp_path, lost, meetings):
    def act(rank: int) -> str:
        try:
            with one_fate():
                for number in range(3):
                    if rank == lost and number == meetings:
                        raise CheckpointError("model.safetensors: cannot read it; fetch it again")
                    meet()
        except (CheckpointError, RankError) as error:
            return f"{type(error).__name__}: {error}"
        return "went on"

    said = told(tmp_path, act, ranks=3)
    own = "CheckpointError: model.safetensors: cannot read it; fetch it again"
    others = f"RankError: rank {lost}: model.safetensors: cannot read it; fetch it again"
    assert said == [own if rank == lost else others for rank in range(3)]


def test_ranks_that_read_all_go_on_and_meet_no_more(tmp_path):
    def act(rank: int) -> str:
        with one_fate():
            meet()
        if rank:
            meet()  # outside: nobody waits
        with one_fate():
            return "went on"

    assert told(tmp_path, act) == ["went on"] * 2


def test_a_rank_that_is_killed_is_noticed(tmp_path):
    def act(rank: int) -> str:
        try:
            with one_fate():
                if not rank:
                    os.kill(os.getpid(), signal.SIGKILL)
        except RankError as error:
            return str(error)
        return "went on"

    said = told(tmp_path, act)
    assert said[0] == "hangs" and said[1].startswith("another process of this command has ended (")


def test_alone_nothing_waits():
    with one_fate():
        meet()
    assert not processes._stores


@pytest.mark.parametrize("lost", [0, 1])
@pytest.mark.parametrize("stage, what", [(None, "tokenizer"), (3, "tokenizer"), (3, "tensor"), (3, "annotations")])
def test_training_ends_on_all_ranks(tmp_path, monkeypatch, stage, what, lost):
    monkeypatch.setattr("videollm.common.command.HEAD_START_S", 0.5)
    make_bundle("internvl", "text").save(tmp_path / "model")
    config = write_config(tmp_path, "text", steps=1, deepspeed=str(ZERO3) if stage else None)
    values = yaml.safe_load(config.read_text())
    config.write_text(yaml.safe_dump(values | {"model": {"checkpoint": str(tmp_path / "model")}}))

    def fails(*_args, **_options):
        raise CheckpointError("FILE: cannot be read; fetch it again")

    def hook(rank: int) -> None:
        if rank == lost:
            monkeypatch.setattr(*READERS[what], fails)

    assert run(config, ranks=2, hook=hook) == [2, 2]
    said = [output_of(config, rank).read_text() for rank in range(2)]
    assert all("error: " in text and "FILE: cannot be read; fetch it again\n" in text for text in said), said
    assert f"error: rank {lost}: FILE" in said[1 - lost] and "Traceback" not in "".join(said)


@pytest.mark.parametrize("lost", [0, 1])
def test_inference_ends_on_all_ranks(tmp_path, monkeypatch, capfd, lost):
    monkeypatch.setattr("videollm.common.command.HEAD_START_S", 0.5)
    make_bundle("internvl", "text").save(tmp_path / "model")
    lines = write_lines(tmp_path / "a.jsonl", clip_lines(2))
    given = ["--annotations", lines, "--videos", str(clips()), "--device", "cpu", "--output", str(tmp_path / "o.jsonl")]

    def act(rank: int) -> int:
        return infer.main(["--model", str(tmp_path / ("none" if rank == lost else "model")), *given])

    assert told(tmp_path, act) == ["2", "2"]
    assert f"error: rank {lost}: --model: {tmp_path}/none" in capfd.readouterr().err
