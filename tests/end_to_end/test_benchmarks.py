"""Every benchmark from clips to scores with a tiny model of either head, and two of the scripts as a user calls them.

The models have random weights: what counts is that every question is asked, that the prediction file is in the
official form, and that numbers come out.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from all_benchmark_eval import evaluate
from all_benchmark_eval.benchmark import PROTOCOLS, get, names
from tests.benchmark_data import write_all
from tests.models import make_bundle

SMALL = ("--device", "cpu", "--batch-size", "8", "generate.max_new_tokens=4")


def keyed(data: dict) -> bool:
    """Whether predictions are in the form of TimeLens and lmms-eval."""
    return all(key.count(">>>") == 2 and "answers" in entry for key, entry in data.items())


# What an item of the official form has; moving_shapes has no other scorer than ours.
FORMS = {
    "charades": lambda data: all({"start", "end"} <= s.keys() for queries in data.values() for s in queries.values()),
    "anet": lambda data: all({"video_id", "anno_id", "timestamp"} <= s.keys() for s in data["results"].values()),
    "qvhighlights": lambda data: all(isinstance(row["prediction"], str) and "target" in row for row in data),
    "youcook2": lambda data: all(isinstance(events, list) for events in data.values()) and "y0.mp4" in data,
    "anet_dvc": lambda data: all(isinstance(events, list) for events in data["results"].values()),
    "nextgqa": lambda data: all(row.keys() == {"qid", "prediction", "timestamp", "target", "text"} for row in data),
    "etbench": lambda data: all(isinstance(row["a"], str) and "tgt" in row or "o" in row for row in data),
    "mvbench": lambda data: all({"task_type", "pred", "gt"} <= row.keys() for row in data),
    "videomme": lambda data: all({"question_id", "answer", "a"} <= row.keys() for row in data),
    "longvideobench": lambda data: all(row.keys() == {"id", "pred", "gt"} for row in data),
    "moving_shapes": lambda data: all("spans" in row for row in data),
}
FORMS |= dict.fromkeys(
    ("moment_retrieval", "tacos", "ego4d_nlq", "hirest"),
    lambda data: all({"qid", "pred_relevant_windows"} <= row.keys() for row in data),
)
FORMS |= dict.fromkeys(("charades_timelens", "activitynet_timelens", "qvhighlights_timelens"), keyed)
FORMS |= dict.fromkeys(("rextime", "cgbench"), lambda data: all({"qid", "pred", "response"} <= r.keys() for r in data))
FORMS |= dict.fromkeys(("tvgbench", "activitynet_rtl", "extremewhenbench"), keyed)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_all(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module", params=[("etchat", "d2vlm"), ("internvl", "distime")], ids=lambda pair: pair[1])
def model(request, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model") / request.param[1]
    make_bundle(*request.param).save(folder)
    return folder


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_every_benchmark_is_asked_converted_and_scored(model, data, capfd):
    assert evaluate.main([str(model), "--benchmarks", ",".join(names()), "--data", str(data), *SMALL]) == 0, capfd
    written = json.loads((model / "evaluation/results.json").read_text())
    assert written["wording"] == model.name and set(written["benchmarks"]) == set(names()) == set(FORMS)
    for name, entry in written["benchmarks"].items():
        folder = model / "evaluation" / name
        questions = read(folder / "questions.jsonl")
        assert [row["id"] for row in read(folder / "answers.jsonl")] == [row["id"] for row in questions]
        assert not any(row["error"] for row in read(folder / "answers.jsonl")), name
        assert FORMS[name](json.loads((folder / "predictions.json").read_text())), name
        for protocol in PROTOCOLS:
            scored = entry["protocols"][protocol]
            assert scored["counts"]["missing"] == 0 and scored["counts"]["samples"] > 0, name
            assert scored["metrics"].keys() >= set(get(name).headline[:1])
    asked = {name: read(model / f"evaluation/{name}/answers.jsonl")[0] for name in names()}
    frames = json.loads((model / "evaluation/longvideobench/answers.jsonl.meta.json").read_text())["sampler"]
    if model.name == "distime":
        assert (frames["num_frames"], frames["pick"]) == (32, "middle")
        assert "Give you a textual query" in asked["charades"]["question"]
    else:
        assert (frames["rule"], frames["fps"]) == ("fps", 1.0)
        assert "'making fattoush'" in asked["youcook2"]["question"]
    assert "Charades-STA" in capfd.readouterr().out


def script(repository: Path, *command: object, **environment: str) -> subprocess.CompletedProcess:
    clean = {name: value for name, value in os.environ.items() if name not in ("GPUS", "DATA")}
    own = {"VIDEOLLM_PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": "", **environment}
    return subprocess.run(
        ["bash", *map(str, command)], cwd=repository, env=clean | own, capture_output=True, text=True, timeout=180
    )


@pytest.mark.slow
@pytest.mark.distributed
def test_two_processes_answer_as_one_through_the_inference_script(model, data, repository, tmp_path):
    if model.name != "distime":
        pytest.skip("one head is enough to split questions")
    places = [data / "charades/videos", data / "charades/charades_sta_test.txt", tmp_path / "two"]
    done = script(repository, "all_benchmark_eval/charades/inference.sh", model, *places, *SMALL, GPUS="2")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Charades-STA" in done.stdout and "R1@0.5" in done.stdout
    assert (tmp_path / "two/charades/scores.json").is_file() and (tmp_path / "two/results.md").is_file()
    assert evaluate.main([str(model), "--benchmarks", "charades", "--data", str(data), *SMALL]) == 0
    one, two = (read(folder / "charades/answers.jsonl") for folder in (model / "evaluation", tmp_path / "two"))
    assert [(row["id"], row["raw_text"]) for row in one] == [(row["id"], row["raw_text"]) for row in two]


def test_evaluate_is_called_as_published(model, data, repository, tmp_path):
    if model.name != "d2vlm":
        pytest.skip("one head is enough for the way of calling")
    output = ("--output", tmp_path / "out")
    done = script(repository, "scripts/evaluate.sh", model, "nextgqa", "2", *output, *SMALL, DATA=str(data))
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Acc@GQA" in done.stdout
    stages = [len(read(tmp_path / f"out/nextgqa/{name}.jsonl")) for name in ("answers", "later_answers")]
    assert stages == [2, 2]
