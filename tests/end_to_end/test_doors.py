"""Every command that ``python -m`` starts, with what it cannot read or write: one line on stderr and exit status 2."""

import os
import runpy
import sys
from pathlib import Path

import pytest

from tests.models import clip_lines, clips, make_bundle, write_config, write_lines

REPOSITORY = Path(__file__).resolve().parents[2]
TOPS = ("videollm", "d2vlm", "distime", "all_benchmark_eval", "quickstart", "benchmarks")
NOWHERE = "/proc/no/such"  # cannot be made, by the administrator neither
# Door -> command lines that cannot work. {model} is a checkpoint with adapters, {lines} an annotation file of {videos}.
BAD = {
    "videollm": ["", "trian", "demo.py"],
    "videollm.train": ["--config {none}.yaml", "--config {config} train.output=/proc/no/such", "--config {lines}"],
    "videollm.memory": ["--config {none}.yaml", "--config {videos}"],
    "videollm.difficulty": [
        "--annotations {none}.jsonl --answers {lines} --output {folder}/d.jsonl",
        "--annotations {lines} --answers {lines} --output {folder}/d.jsonl",
        "--annotations {lines} --answers {none}.jsonl --output {folder}/d.jsonl",
        "--annotations {lines} --answers {lines} --output {nowhere}.jsonl",
    ],
    "videollm.infer": [
        "--model {model} --annotations {lines} --videos {videos} --output {nowhere}.jsonl",
        "--model {none} --annotations {lines} --videos {videos} --output {folder}/a.jsonl",
        "--model {model} --annotations {lines} --videos {none} --output {folder}/a.jsonl",
        "--model {model} --annotations {none}.jsonl --videos {videos} --output {folder}/a.jsonl",
        "--model {model} --annotations {lines} --videos {videos} --output {folder}/a.jsonl --decode-timeout nan",
        "--model {model} --annotations {lines} --videos {videos} --output {folder}/listed.jsonl",
        "--model {model} --annotations {lines} --videos {videos} --output {folder}/a.jsonl --frames=",
    ],
    "videollm.ask": [
        "--model {none} --video {videos}/clip0.mp4 --question when",
        "--model {model} --video {none}.mp4 --question when",
        "--model {model} --video {videos}/clip0.mp4 --question when --output {nowhere}.png generate.max_new_tokens=1",
    ],
    "videollm.view": [
        "{none}.jsonl --videos {videos} --output {folder}/page",
        "{lines} --videos {videos} --output {folder}/page",
        "{none}.jsonl --videos {none} --output {folder}/page",
    ],
    "videollm.demo": ["--model {none}", "--model {model} --examples {none}", "--model {model} sampler=3"],
    "videollm.frames": [
        "build --annotations {lines} --videos {videos} --output {nowhere} --model {model}",
        "build --annotations {lines} --videos {videos} --output {folder}/store --config {none}.yaml",
        "build --annotations {lines} --videos {videos} --output {folder}/store --model {model} sampler=3",
    ],
    "videollm.launch": [""],
    "videollm.push": [
        "{none} lab/x --licence mit",
        "{model} lab/x",
        "{model} x --licence mit",
        "{videos} lab/x --licence mit",
    ],
    "videollm.data": [
        "check --annotations {lines} --output {nowhere}.jsonl",
        "check --annotations {lines} --output {folder}/clean.txt",
        "check --annotations {lines} --output {lines}",
        "check --annotations {lines} --videos {none}",
        "check --annotations {lines} --videos=",
        "check --annotations {lines} --timeout -1",
    ],
    "videollm.checkpoint": ["{none} {folder}/merged", "{model} {nowhere}", "{model} {nowhere} --adapters {model}"],
    "videollm.convert": ["{none} {folder}/out", "{model} {nowhere} --back", "{model} {folder}/out --head {none}"],
    "d2vlm.convert": ["{none} {folder}/out", "{model} {nowhere} --back", "{model} {folder}/out --base {none}"],
    "d2vlm.preference": [
        "--annotations {lines} --output {nowhere}.jsonl",
        "--annotations {none}.jsonl --output {folder}/p.jsonl",
        "--annotations {lines} --output {folder}/p.jsonl --answers {none}.jsonl",
        "--annotations {lines} --output {folder}/p.jsonl --config {none}.yaml",
        "--annotations {lines} --output {lines}",
    ],
    "d2vlm.rank": ["--model {none} --annotations {lines} --videos {videos} --output {nowhere}.json"],
    "distime.convert": ["{none} {folder}/out", "{model} {nowhere} --back"],
    "all_benchmark_eval.check": [
        "{none}",
        "{folder} --output {nowhere}.json",
        "{folder} --benchmarks nothing",
        "{folder} --benchmarks=",
    ],
    "all_benchmark_eval.card": ["nothing --data {none}"],
    "all_benchmark_eval.compare": ["{none}.json {none}.json", "{lines} {lines}"],
    "all_benchmark_eval.report": ["{none}.json --output {nowhere}"],
    "all_benchmark_eval.score": [
        "charades --predictions {none}.json --annotations {lines} --output {folder}/s.json",
        "moving_shapes --predictions {lines} --annotations {lines} --output {nowhere}.json",
        "nothing --predictions {lines} --output {folder}/s.json",
    ],
    "all_benchmark_eval.evaluate": [
        "{none} --benchmarks moving_shapes --data {folder}",
        "{model} --benchmarks=, --data {folder}",
        "{model} --benchmarks moving_shapes --data {folder} --output {nowhere}",
    ],
    "all_benchmark_eval.moving_shapes.task": [
        "--annotations {none}.jsonl --predictions {lines} --output {folder}/s.json",
        "--annotations {lines} --predictions {lines} --output {folder}/s.json",
        "--annotations {lines} --predictions {lines} --output {nowhere}.json",
    ],
    "quickstart": ["--output {nowhere} --train 1", "--seed x"],
    "quickstart.clips": [
        "--output {nowhere} --train 1",
        "--output {folder}/c --workers 0",
        "--output {folder}/c --seed -1",
    ],
    "quickstart.ship": ["{none} --output {folder}/s", "{model} --output {model}"],
    "quickstart.tower": ["--data {none} --output {folder}/t --tokenizer {folder}/k"],
    "benchmarks.any_size": ["--repeats 0"],
    "benchmarks.batching": ["--quickstart {none}"],
    "benchmarks.d2vlm_step": ["--repeats 0"],
    "benchmarks.decode_memory": ["--decodes 0"],
    "benchmarks.decoding": ["--answers 0", "--tokens 0"],
    "benchmarks.deepspeed_step": ["--quickstart {none} --steps 1 --repeats 1"],
    "benchmarks.distime_step": ["--frames 0"],
    "benchmarks.faults": ["--kills 0"],
    "benchmarks.floor": ["--repeats 0"],
    "benchmarks.fpo_ablation": ["--quickstart {none} --output {nowhere}"],
    "benchmarks.gpu_check": ["--output {nowhere}"],
    "benchmarks.grpo_step": ["--quickstart {none}"],
    "benchmarks.kept_lengths": ["{nowhere}"],
    "benchmarks.fuzz_annotations": ["--lines 0"],
    "benchmarks.fuzz_files": ["--files 0"],
    "benchmarks.odd_files": ["--nothing"],
    "benchmarks.inference": ["--clips 0"],
    "benchmarks.lean_loss": ["--repeats 0"],
    "benchmarks.load_memory": ["--layers 0"],
    "benchmarks.rl": ["--quickstart {none} --output {nowhere}"],
    "benchmarks.scoring": ["--repeats 0"],
    "benchmarks.serving": ["--rows 0", "--answers 0"],
    "benchmarks.tiny_checkpoint": ["{nowhere}"],
    "benchmarks.vision_cost": ["--frames 0"],
}
TWO = {  # faults, which are both told
    "all_benchmark_eval.report": BAD["all_benchmark_eval.report"],
    "all_benchmark_eval.score": BAD["all_benchmark_eval.score"][:2],
}
CASES = [(door, line) for door, lines in BAD.items() for line in lines]


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> dict[str, str]:
    """What the command lines name."""
    folder = tmp_path_factory.mktemp("doors")
    make_bundle("internvl", "distime", {"lora": {}}).save(folder / "model")
    (folder / "listed.jsonl.meta.json").write_text("[]")
    answer = {"id": "a", "video": "clip0.mp4", "question": "when?", "text": "", "raw_text": "", "spans": []}
    answer |= {"evidence_spans": [], "finish_reason": "stop", "error": None}
    write_lines(folder / "listed.jsonl", [answer])
    return {
        "folder": str(folder), "none": str(folder / "none"), "nowhere": NOWHERE, "videos": str(clips()),
        "model": str(folder / "model"), "lines": write_lines(folder / "lines.jsonl", clip_lines()),
        "config": str(write_config(folder / "run", "distime", steps=1)),
    }  # fmt: skip


def run_door(monkeypatch, door: str, arguments: list[str]) -> int:
    """Start a command as ``python -m`` does, in this process; its exit status."""
    monkeypatch.setattr(sys, "argv", [door, *arguments])
    with pytest.raises(SystemExit) as end:
        runpy.run_module(door, run_name="__main__", alter_sys=False)
    return end.value.code


def test_every_door_is_tried():
    """A command is a file that starts something when it is run."""
    files = [
        f for top in TOPS for f in (REPOSITORY / top).rglob("*.py") if "__name__ ==" in f.read_text(encoding="utf-8")
    ]
    doors = {".".join(f.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__main__") for f in files}
    assert doors == set(BAD)


@pytest.mark.parametrize(("door", "line"), CASES, ids=[f"{door} {line}" for door, line in CASES])
def test_what_cannot_be_read_or_written_is_one_line_and_status_2(monkeypatch, capsys, places, door, line):
    arguments = [part.format(**places) for part in line.split()]
    status = run_door(monkeypatch, door, arguments)
    said = capsys.readouterr().err
    assert status == 2, said
    assert "Traceback" not in said
    if arguments:
        assert len([row for row in said.splitlines() if "error: " in row]) == 1 + (line in TWO.get(door, ())), said
    assert not os.path.exists(NOWHERE)
