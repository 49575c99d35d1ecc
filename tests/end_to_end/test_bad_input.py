"""Every kind of bad input through the commands a user types: one message with file, line or key, and status 2."""

import json
import shutil

import av
import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from tests.models import clip_lines, clips, make_bundle, read_log, turns, write_config, write_lines
from videollm import ask, infer, train
from videollm.common.command import tell
from videollm.common.config import ConfigError
from videollm.data import load_records
from videollm.data.__main__ import main as check_data
from videollm.inference import run as inference_run
from videollm.training import run as training_run
from videollm.training.validation import answer_spans

BAD = {
    "missing": "does not exist",
    "zero": "zero bytes",
    "cut": "truncated",
    "audio": "audio only",
    "noise": "is not a video",
}  # fmt: skip
SMALL = "generate.max_new_tokens=4"
NO_PARTS = ("model.vision={}", "model.connector={}", "model.language={}", "model.head={}", "model.tokenizer=null",
            "model.visual_tokens=null")  # fmt: skip


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """A folder with one good clip and every kind of bad one."""
    folder = tmp_path_factory.mktemp("videos")
    whole = (clips() / "clip0.mp4").read_bytes()
    (folder / "good.mp4").write_bytes(whole)
    (folder / "zero.mp4").write_bytes(b"")
    (folder / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (folder / "noise.mp4").write_bytes(b"this is no video")
    with av.open(str(folder / "audio.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 16000, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model after one step of training."""
    folder = tmp_path_factory.mktemp("model")
    assert train.main(["--config", str(write_config(folder, "distime", steps=1))]) == 0
    return folder / "run" / "final"


def line(name: str, **changes) -> dict:
    """A question about the video ``name``, which has 4 s."""
    said = turns("<video>\nwhen is it?", "It is in <span>.")
    return {"id": name, "video": f"{name}.mp4", "duration": 4, "tgt": [0, 1], "conversations": said, **changes}


def run_train(folder, lines, *overrides, **options) -> int:
    config = write_config(folder, "text", lines=lines, **{"steps": 1, **options})
    return train.main(["--config", str(config), *map(str, overrides)])


def run_infer(folder, model, videos, lines, *more, output="answers.jsonl") -> int:
    annotations = write_lines(folder / "asked.jsonl", lines)
    paths = ["--model", model, "--annotations", annotations, "--videos", videos, "--output", folder / output]
    return infer.main([*map(str, paths), "--device", "cpu", SMALL, *more])


def the_error(capsys) -> str:
    """The one message on stderr; a progress bar may stand before it and behind it."""
    written = capsys.readouterr().err
    _, *said = written.split("error: ")
    assert len(said) == 1 and "Traceback" not in written, written
    message, *rest = said[0].splitlines()
    rates = ("it/s", "s/it", "question/s", "s/question")  # a bar turns its rate over where a step takes over a second
    assert all(any(rate in x for rate in rates) or not x.strip() for x in rest), rest
    return message


# ---- videos ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("name", BAD)
def test_training_stops_at_a_bad_video_and_names_it(tmp_path, videos, capsys, name, workers):
    given = (f"data.videos={videos}", f"data.workers={workers}")
    assert run_train(tmp_path, [line("good"), line(name)], *given, steps=2) == 2
    message = the_error(capsys)
    assert f"{name}.mp4" in message and BAD[name] in message and "data.max_bad_fraction=0.0" in message


def test_training_within_the_limit_names_every_bad_video(tmp_path, videos):
    lines = [line("good"), *(line(name) for name in BAD)]
    given = (f"data.videos={videos}", "data.workers=1", "data.max_bad_fraction=0.9")
    assert run_train(tmp_path, lines, *given, steps=6) == 0
    named = (tmp_path / "run" / "skipped.jsonl").read_text().splitlines()
    assert len(named) == 5 and all(any(f"{name}.mp4" in n and BAD[name] in n for n in named) for name in BAD)
    assert read_log(tmp_path / "run")[-1]["bad_videos"] == 5


@pytest.mark.parametrize("workers", ["0", "1"])
def test_inference_names_bad_videos_and_asks_them_again_once_they_are_mended(tmp_path, model, videos, capsys, workers):
    folder = tmp_path / "videos"
    shutil.copytree(videos, folder)
    lines = [line("good"), *(line(name) for name in BAD)]
    assert run_infer(tmp_path, model, folder, lines, "--workers", workers) == 0
    rows = {row["id"]: row for row in map(json.loads, (tmp_path / "answers.jsonl").read_text().splitlines())}
    assert all(BAD[name] in rows[name]["error"] and f"{name}.mp4" in rows[name]["error"] for name in BAD)
    assert "5 questions could not be asked, first missing:" in capsys.readouterr().err
    for name in BAD:
        shutil.copy(folder / "good.mp4", folder / f"{name}.mp4")
    assert run_infer(tmp_path, model, folder, lines) == 0
    again = [json.loads(row) for row in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert [row["id"] for row in again] == [row["id"] for row in lines] and not any(row["error"] for row in again)
    assert again[0] == rows["good"]


def test_inference_without_any_answer_is_an_error(tmp_path, model, videos, capsys):
    assert run_infer(tmp_path, model, videos, [line("zero")]) == 2
    assert "none of the 1 questions could be asked, first zero: " in the_error(capsys)


@pytest.mark.parametrize("name", BAD)
def test_asking_a_bad_video_is_an_error(model, videos, capsys, name):
    video = str(videos / f"{name}.mp4")
    assert ask.main(["--model", str(model), "--video", video, "--question", "when?", "--device", "cpu", SMALL]) == 2
    message = the_error(capsys)
    assert video in message and BAD[name] in message


def test_bad_videos_of_the_validation_are_no_score_of_zero(tmp_path, videos, capsys):
    checked = write_lines(tmp_path / "checked.jsonl", [line("good"), line("zero")])
    given = (f"data.videos={videos}", f"data.validation=[{checked}]", "train.validate_every=1")
    assert run_train(tmp_path / "a", [line("good")], *given) == 2
    message = the_error(capsys)
    assert "1 of 2 validation questions" in message and "zero.mp4" in message and "data.max_bad_fraction" in message
    assert run_train(tmp_path / "b", [line("good")], *given, "data.max_bad_fraction=0.5") == 0
    (entry,) = read_log(tmp_path / "b" / "run", "eval_mIoU")
    assert entry["eval_count"] == 1 and entry["eval_unreadable"] == 1


# ---- annotations -----------------------------------------------------------------------------------------------------

LINES = {
    "is not JSON": ('{"video"', "not JSON"),
    "lacks a field": ({"id": "x", "video": "clip0.mp4"}, "conversations"),
    "has an odd number of values": (line("clip0", tgt=[1]), "odd number of values"),
    "has NaN": (line("clip0", tgt=[0, float("nan")]), "tgt[1]"),
    "has a span outside": (line("clip0", tgt=[9, 10]), "outside the video, which has 4 s"),
    "has too many marks": (line("clip0", conversations=turns("when?", "<span> <span>")), "more span marks than spans"),
}


@pytest.mark.parametrize("what", LINES)
def test_a_bad_line_is_named_by_every_command(tmp_path, model, capsys, what):
    bad, says = LINES[what]
    lines = [clip_lines(1)[0], bad]
    assert run_train(tmp_path, lines) == 2
    message = the_error(capsys)
    assert "train.jsonl:2: " in message and says in message and not (tmp_path / "run").exists()
    assert run_infer(tmp_path, model, clips(), lines) == 2
    message = the_error(capsys)
    assert "asked.jsonl:2: " in message and says in message and not (tmp_path / "answers.jsonl").exists()
    assert check_data(["check", "--annotations", str(tmp_path / "asked.jsonl")]) == 1
    assert message in capsys.readouterr().out


@pytest.mark.parametrize("workers", [0, 1])
def test_a_span_behind_the_end_of_the_file_is_named(tmp_path, capsys, workers):
    """Without an annotated duration, the end is known only when the video is read."""
    lines = [line("clip0", tgt=[9, 10], duration=None)]
    assert run_train(tmp_path, lines, f"data.workers={workers}") == 2
    assert "train.jsonl:1: span [9, 10] lies outside clip0.mp4, which has 4 s" in the_error(capsys)


@pytest.mark.parametrize("workers", ["0", "1"])
def test_text_that_does_not_fit_is_named_also_from_a_data_worker(tmp_path, model, capsys, workers):
    lines = [line("clip0", conversations=turns("<video>\n" + "when " * 300, "<span>"))]
    assert run_train(tmp_path, lines, f"data.workers={workers}") == 2
    message = the_error(capsys)
    assert message.startswith(f"{tmp_path}/train.jsonl:1: ") and "data.max_length=1024" in message
    assert run_infer(tmp_path, model, clips(), [*lines, clip_lines(2)[1]], "--workers", workers) == 0
    rows = [json.loads(row) for row in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert "asked.jsonl:1: " in rows[0]["error"] and "generate.max_new_tokens" in rows[0]["error"]
    assert rows[1]["error"] is None


# ---- configs, checkpoints, outputs -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "override, says",
    [
        ("model.language.hiden_size=32", "model.language.hiden_size: unknown key; did you mean hidden_size?"),
        ("model.attention=flash_attention_2", "model.attention: flash_attention_2 needs"),
        ("model.word_vectors=none", "model.word_vectors: no file none"),
        ("model.head_weights=none", "model.head_weights: no file none"),
        ("data.preprocess.size=56", "data.preprocess: makes frames of (3, 56, 56)"),
        ("data.videos=none", "data.videos: none is not a folder"),
        ("data.max_bad_fraction=3", "data.max_bad_fraction: 3.0 is no share"),
        ("data.workers=-1", "data.workers: -1, but it must be at least 0"),
        ("data.features=config.yaml/x", "data.features: cannot write to config.yaml/x"),
        ("train.steps=0", "train.steps: 0, but it must be at least 1"),
        ("train.lr=.nan", "train.lr: nan, but it must be at least 0"),
        ("train.betas=[1]", "train.betas: [1.0] is not two numbers"),
        ("train.report_to=[mlflow]", "train.report_to[0]: 'mlflow'"),
        ("train.deepspeed=config.yaml", "train.deepspeed: config.yaml is not JSON"),
        ("train.deepspeed=own.json", "train.deepspeed: own.json must be a mapping without 'optimizer'"),
        ("train.output=config.yaml", "train.output: cannot write to config.yaml"),
        ("train.best=f1 train.validate_every=1", "train.best: videollm.common.spans:grounding_scores gives no 'f1'"),
        ("data.validation=[] train.validate_every=1", "data.validation: "),
        ("generate.temperature=0", "generate.temperature: 0.0, but it must be above 0"),
        ("generate.max_new_tokens=2000 train.validate_every=1", "generate.max_new_tokens: 2000 leave no room"),
    ],
)
def test_a_setting_that_cannot_work_is_named_before_the_first_step(tmp_path, capsys, monkeypatch, override, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.json").write_text('{"optimizer": {"type": "Adam"}}')
    assert run_train(tmp_path, clip_lines(1), *override.split()) == 2
    assert the_error(capsys).startswith(says)
    assert not (tmp_path / "run" / "log.jsonl").exists()


def test_a_package_that_is_not_installed_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(training_run.importlib.util, "find_spec", lambda name: None)
    assert run_train(tmp_path, clip_lines(1), "train.report_to=[wandb]") == 2
    assert "train.report_to: wandb is not installed; pip install wandb" in the_error(capsys)


def without_head(folder) -> None:
    weights = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if not name.startswith("head.")}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


def without_tokenizer(folder) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()


DAMAGE = {
    "head": (without_head, "no weights of its distime head"),
    "tokenizer": (without_tokenizer, "no tokenizer"),
    "tokenizer.json": (lambda folder: (folder / "tokenizer.json").write_text("{"), "cannot read its tokenizer"),
    "config.json": (lambda folder: (folder / "config.json").write_text('{"model_type": "videollm"}'), "no text_config"),
    "weights": (lambda folder: (folder / "model.safetensors").write_bytes(b"half"), "cannot read the weights"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_checkpoint_that_lacks_something_is_refused_by_every_command(tmp_path, model, capsys, what):
    damage, says = DAMAGE[what]
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    damage(folder)
    assert run_train(tmp_path, clip_lines(1), f"model.checkpoint={folder}", *NO_PARTS) == 2
    message = the_error(capsys)
    assert str(folder) in message and says in message
    assert run_infer(tmp_path, folder, clips(), clip_lines(1)) == 2
    assert the_error(capsys) == message
    asked = ["--video", str(clips() / "clip0.mp4"), "--question", "when?", "--device", "cpu"]
    assert ask.main(["--model", str(folder), *asked]) == 2
    assert the_error(capsys) == message


def test_an_output_that_cannot_be_written_or_is_not_ours_is_refused(tmp_path, model, capsys):
    lines, mine = clip_lines(1), tmp_path / "notes.jsonl"
    mine.write_text("mine\n")
    for output, says in ((".", "Is a directory"), ("notes.jsonl/x", "cannot write"), ("notes.jsonl", "not from this")):
        assert run_infer(tmp_path, model, clips(), lines, output=output) == 2
        message = the_error(capsys)
        assert message.startswith("--output: ") and says in message
    assert mine.read_text() == "mine\n"
    assert run_infer(tmp_path, model, tmp_path / "none", lines) == 2
    assert "--videos: " in the_error(capsys)


def test_a_folder_without_the_videos_is_named_before_a_model_is_loaded(tmp_path, model, capsys, monkeypatch):
    monkeypatch.setattr(inference_run, "load", lambda *_, **__: pytest.fail("the model was loaded"))
    monkeypatch.setattr(training_run, "assemble", lambda *_, **__: pytest.fail("the model was made"))
    said = f"none of the 2 videos and images of the annotations is below {tmp_path}: clip0.mp4 does not exist; give"
    assert run_infer(tmp_path, model, tmp_path, clip_lines(2)) == 2
    assert the_error(capsys).startswith(f"--videos: {said}")
    assert run_train(tmp_path, clip_lines(2), f"data.videos={tmp_path}") == 2
    assert the_error(capsys).startswith(f"data.videos: {said}")


# ---- several processes -----------------------------------------------------------------------------------------------


def test_more_ranks_than_items_is_an_error(tmp_path, capsys, monkeypatch):
    arguments = training_run.training_arguments

    class TwoRanks:
        process_index, world_size, device = 0, 2, "cpu"

    monkeypatch.setattr(training_run, "training_arguments", lambda given: arguments(given) and TwoRanks())
    assert run_train(tmp_path, clip_lines(1)) == 2
    assert the_error(capsys) == "data.train: 1 items for 2 processes; start at most that many"


def test_rank_0_speaks_first_and_a_workers_traceback_is_left_out(capsys, monkeypatch):
    pauses = []
    monkeypatch.setattr("videollm.common.command.time.sleep", pauses.append)
    monkeypatch.setenv("RANK", "3")
    trace = "Caught ConfigError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n  ...\n"
    assert tell(ConfigError(f"{trace}videollm.common.config.ConfigError: data.x: wrong; mend it\n")) == 2
    assert capsys.readouterr().err == "error: data.x: wrong; mend it\n" and pauses
    monkeypatch.setenv("RANK", "0")
    assert tell(ValueError("plain")) == 2 and len(pauses) == 1
    assert capsys.readouterr().err == "error: plain\n"


# ---- validation ------------------------------------------------------------------------------------------------------


def test_validation_scores_the_last_answer_only(tmp_path):
    """Spans of the question and of earlier answers are shown to the model: finding them again earns nothing."""
    said = turns("<video>\nwhat is in <span>?", "a dog in <span>", "and then?", "a cat in <span>")
    path = write_lines(tmp_path / "one.jsonl", [line("clip0", src=[0, 1], tgt=[1, 2, 2, 3], conversations=said)])
    (record,) = load_records(path)
    assert answer_spans(record) == [[2.0, 3.0]]


def test_validation_leaves_the_random_numbers_of_training_alone(tmp_path):
    losses = []
    for name, more in (("a", ()), ("b", ("train.validate_every=1", "generate.do_sample=true"))):
        options = {"lora": {"r": 2, "dropout": 0.5}, "steps": 3}
        assert run_train(tmp_path / name, clip_lines(2), SMALL, *more, **options) == 0
        losses.append([entry["loss"] for entry in read_log(tmp_path / name / "run")])
    assert losses[0] == losses[1]


def test_other_adapters_than_the_checkpoints_are_refused(tmp_path, capsys):
    bundle = make_bundle("internvl", "text", train={"lora": {"r": 2}})
    bundle.save(tmp_path / "lora")
    given = [f"model.checkpoint={tmp_path / 'lora'}", *NO_PARTS]
    assert run_train(tmp_path, clip_lines(1), *given, "train.lora.r=4") == 2
    assert "train.lora: the checkpoint has other adapters" in the_error(capsys)
    assert run_train(tmp_path, clip_lines(1), *given, "train.lora.r=2") == 0
