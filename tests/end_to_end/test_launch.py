"""The launcher as a user and a cluster meet it: exit statuses, messages, signals, ports."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from tests.models import clip_lines, write_config
from tests.ranks import free_port

pytestmark = pytest.mark.distributed
STARTED = "starts 2 processes on the CPU: this machine shows no GPU"


@pytest.fixture
def launched(repository, tmp_path):
    """Starts ``tests.launched`` by the launcher; gives the process."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM", "MASTER", "NNODES"))}
    quiet = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "CUDA_VISIBLE_DEVICES": "", "FOLDER": str(tmp_path)}

    def start(*what: str, **environment: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "videollm.launch", "tests.launched", *what]
        environment = kept | quiet | {"GPUS": str(len(what))} | environment
        return subprocess.Popen(command, cwd=repository, env=environment, stderr=subprocess.PIPE, text=True)

    return start


def said(process: subprocess.Popen) -> list[str]:
    """What a process wrote to stderr until its end."""
    return [line for line in process.communicate(timeout=90)[1].splitlines() if line.strip()]


def wait_for(path, process) -> None:
    """Until the file is there."""
    while not path.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


def test_one_failing_rank_is_one_message_its_status_and_the_end_of_all(launched, tmp_path):
    process = launched("waits", "2")
    assert said(process) == [STARTED, "error: rank 1 says why"] and process.returncode == 2
    assert (tmp_path / "up.0").read_text() == "2"


def test_a_killed_rank_is_named(launched):
    process = launched("waits", "killed")
    hint = "(often the machine ran out of memory)"
    assert said(process) == [STARTED, f"error: rank 1 was ended by SIGKILL {hint}; the others ended with it"]
    assert process.returncode == 137


def test_sigterm_reaches_the_ranks_which_may_save(launched, tmp_path):
    process = launched("saves", "saves")
    for rank in (0, 1):
        wait_for(tmp_path / f"up.{rank}", process)
    process.send_signal(signal.SIGTERM)
    assert said(process) == [STARTED] and process.returncode == 75
    assert sorted(p.name for p in tmp_path.glob("saved.*")) == ["saved.0", "saved.1"]


def test_a_port_in_use_is_one_line(launched, tmp_path):
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        process = launched("0", "0", MASTER_PORT=str(taken.getsockname()[1]))
        (line,) = said(process)
    assert line.startswith("error: MASTER_PORT=") and "cannot be used on this machine" in line
    assert process.returncode == 2 and not (tmp_path / "up.0").exists()


def test_two_nodes_within_slurm_meet(launched, tmp_path):
    """Both on this machine, each a task of srun's step."""
    step = {"SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NODELIST": "localhost,other"}
    step |= {"GPUS": "1", "MASTER_PORT": str(free_port())}
    processes = [launched("0", "0", SLURM_NODEID=str(node), **step) for node in (0, 1)]
    for process in processes:
        said(process)
        assert process.returncode == 0
    assert [(tmp_path / f"up.{rank}").read_text() for rank in (0, 1)] == ["2", "2"]


def test_the_script_trains_with_several_processes(repository, tmp_path):
    config = write_config(tmp_path, "text", lines=clip_lines(4), steps=2, save_every=1)
    environment = os.environ | {"VIDEOLLM_PYTHON": sys.executable, "GPUS": "2", "CUDA_VISIBLE_DEVICES": ""}
    zero2 = repository / "configs/deepspeed/zero2.json"
    command = ["bash", "scripts/train.sh", config, f"train.deepspeed={zero2}"]
    done = subprocess.run(command, cwd=repository, env=environment, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"final model: {tmp_path / 'run/final'}" in done.stdout
    (start,) = map(json.loads, (tmp_path / "run" / "starts.jsonl").read_text().splitlines())
    assert start["processes"] == 2 and "videollm.train --config" in start["command"]
    manifest = json.loads((tmp_path / "run" / "checkpoint-2" / "manifest.json").read_text())
    assert (manifest["step"], manifest["processes"], manifest["zero_stage"]) == (2, 2, 2)
