"""Ctrl-C: one line that says how to go on, exit status 130, nothing lost; and an output that holds no answer."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import yaml

from tests.models import clip_lines, clips, make_bundle, read_log, write_config, write_lines
from videollm import infer, train
from videollm.common.command import INTERRUPTED


def heard() -> None:
    """Ctrl-C ends the command also where these tests run in the background of a shell, which then ignores it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def interrupted(repository, folder, ready, *words: str, **environment: str) -> tuple[int, str]:
    """Start ``videollm``, press Ctrl-C once ``ready()``; exit status and what it wrote."""
    quiet = {
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "passive",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONFAULTHANDLER": "1",
    }
    command, log = [sys.executable, "-m", "videollm", *words], folder / "said.txt"
    with open(log, "wb") as out:
        process = subprocess.Popen(
            command,
            cwd=repository,
            env=os.environ | quiet | environment,
            stdout=out,
            stderr=out,
            start_new_session=True,
            preexec_fn=heard,
        )
        while not ready():
            assert process.poll() is None, log.read_text()
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        try:
            process.wait(timeout=240)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGABRT)  # faulthandler says where it hangs
            process.wait()
            raise AssertionError(log.read_text()) from None
    return process.returncode, log.read_text()


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.distributed)])
def test_training_saves_the_step_and_goes_on_with_what_its_line_says(repository, tmp_path, ranks):
    config = write_config(tmp_path, "text", steps=100_000)
    log = tmp_path / "run" / "log.jsonl"
    start = ("launch", "train") if ranks > 1 else ("train",)
    words = (*start, "--config", str(config), "data.workers=1")
    status, said = interrupted(repository, tmp_path, log.exists, *words, GPUS=str(ranks))
    step = read_log(tmp_path / "run")[-1]["step"]
    assert status == INTERRUPTED and "Traceback" not in said
    assert said.count(f"saved checkpoint-{step}, go on with train.resume=true") == 1
    if ranks == 1:
        assert train.main(["--config", str(config), f"train.steps={step + 1}", "train.resume=true"]) == 0
        assert [entry["step"] for entry in read_log(tmp_path / "run")] == list(range(1, step + 2))


def test_inference_keeps_its_answers_and_says_so_once(repository, tmp_path):
    make_bundle("internvl", "text").save(tmp_path / "model")
    lines = [line | {"id": f"{line['id']}-{i}"} for i in range(500) for line in clip_lines()]
    output, given = tmp_path / "a.jsonl", ("--model", str(tmp_path / "model"), "--videos", str(clips()))
    words = ("infer", *given, "--annotations", write_lines(tmp_path / "asked.jsonl", lines), "--output", str(output))
    status, said = interrupted(repository, tmp_path, lambda: output.is_file() and output.stat().st_size, *words)
    assert status == INTERRUPTED and "Traceback" not in said
    (line,) = [line for line in said.splitlines() if line.startswith("interrupted: ")]
    assert "run the same command again" in line and output.stat().st_size


# ---- an output without answers ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("model") / "model"
    make_bundle("internvl", "text").save(folder)
    return str(folder)


def run(model: str, output, lines: str, videos, *more: str) -> int:
    given = ["--model", model, "--annotations", lines, "--videos", str(videos), "--output", str(output)]
    return infer.main([*given, "--device", "cpu", "generate.max_new_tokens=2", *more])


def test_an_output_without_answers_is_begun_anew_with_other_settings(tmp_path, model, capsys):
    """Settings, and questions, that belong to what a folder of broken videos left behind."""
    output, none = tmp_path / "new" / "a.jsonl", tmp_path / "none"
    none.mkdir()
    for name in ("clip0.mp4", "clip1.mp4"):
        (none / name).touch()
    wrong, right = (write_lines(tmp_path / name, clip_lines(n)) for name, n in (("two.jsonl", 2), ("one.jsonl", 1)))
    assert run(model, output, wrong, none, "sampler.num_frames=3") == 2
    assert "none of the 2 questions could be asked" in capsys.readouterr().err
    assert run(model, output, right, clips(), "sampler.num_frames=2") == 0
    assert [json.loads(line)["error"] for line in output.read_text().splitlines()] == [None]
    capsys.readouterr()
    assert run(model, output, right, clips(), "sampler.num_frames=4") == 2
    assert "sampler (num_frames: 2, now 4)" in capsys.readouterr().err


def test_a_refused_command_leaves_no_folder(tmp_path, model):
    lines, output = write_lines(tmp_path / "one.jsonl", clip_lines(1)), tmp_path / "new" / "a.jsonl"
    assert run(model, output, lines, clips(), "sampler.fsp=1") == 2
    assert run(model, output, lines, tmp_path / "none") == 2
    assert not output.parent.exists()


def test_a_config_and_a_deepspeed_file_of_the_clone_are_found_from_any_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert train.main(["--config", "configs/tiny/text.yaml", "train.deepspeed=configs/deepspeed/zero2.json"]) == 2
    said = capsys.readouterr().err
    assert "data.videos: " in said and "cannot read the config" not in said and "train.deepspeed" not in said
    own = tmp_path / "configs" / "tiny" / "text.yaml"  # the user's own comes first
    own.parent.mkdir(parents=True)
    own.write_text(yaml.safe_dump({"mine": 1}))
    assert train.main(["--config", "configs/tiny/text.yaml"]) == 2
    assert "error: mine: unknown key" in capsys.readouterr().err


def test_missing_base_weights_are_answered_with_the_command_that_makes_them(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert train.main(["--config", "configs/qwen3_vl/text_lora.yaml"]) == 2
    told = "model.checkpoint: checkpoints/qwen3_vl_4b: no such folder; make it first: videollm convert "
    assert told in capsys.readouterr().err
