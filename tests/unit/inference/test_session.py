"""``videollm.load``: one question, many, and an answer as it grows; all as the other commands answer."""

import json
import logging
import subprocess
import sys
import threading
from itertools import islice

import numpy as np
import pytest
from huggingface_hub import utils as hub
from transformers.utils import logging as theirs

import videollm
from tests.models import clip_lines, clips, make_bundle, write_lines
from tests.unit.inference.test_rows import ended_by_a_word
from tests.unit.model.test_generate import likely_spans
from videollm import ask as asking
from videollm import infer
from videollm.checkpoint import CheckpointError
from videollm.common.command import quieten, without_bars
from videollm.common.config import ConfigError
from videollm.inference.session import Session
from videollm.model.generate import GenerateOptions, Rows
from videollm.model.towers import InternVLTower
from videollm.video.decode import VideoError

PAIRS = [("internvl", "d2vlm"), ("internvl", "distime"), ("internvl", "text")]
TWELVE = {"generate": {"max_new_tokens": 12}}
SAMPLED = {"do_sample": True, "temperature": 1.5, "seed": 3}
CLIP, OTHER = "clip0.mp4", "clip1.mp4"


@pytest.fixture(params=PAIRS, ids="-".join)
def model(request, monkeypatch):
    """A model whose answers hold spans, and of which some are ended by a word."""
    bundle = likely_spans(make_bundle(*request.param))
    ended_by_a_word(bundle, GenerateOptions(max_new_tokens=12), monkeypatch)
    return Session(bundle, TWELVE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    found = tmp_path_factory.mktemp("model")
    likely_spans(make_bundle("internvl", "distime")).save(found)
    return found


@pytest.fixture
def towers(monkeypatch):
    """How many frames go through the vision tower, pass by pass."""
    passes, forward = [], InternVLTower.forward
    monkeypatch.setattr(
        InternVLTower, "forward", lambda tower, frames: passes.append(len(frames)) or forward(tower, frames)
    )
    return passes


# ---- from a program --------------------------------------------------------------------------------------------------


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, videollm; videollm.load; print([m for m in ('torch', 'numpy', 'av') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_a_folder_is_loaded_and_asked_as_by_the_command(folder, capsys):
    video = clips() / CLIP
    line = videollm.load(folder, device="cpu", **TWELVE).ask(video, "when ?")
    assert line.spans and len(line.scores) == len(line.spans)
    words = ["--model", str(folder), "--video", str(video), "--question", "when ?", "--device=cpu"]
    assert asking.main([*words, "generate.max_new_tokens=12"]) == 0
    assert capsys.readouterr().out.startswith(line.text)


def test_weights_are_read_and_written_without_bars_and_those_of_others_stay(folder, tmp_path, capsys):
    model = videollm.load(folder, device="cpu")
    model.bundle.save(tmp_path)
    assert capsys.readouterr().err == ""
    assert theirs.is_progress_bar_enabled() and not hub.are_progress_bars_disabled()
    with without_bars():
        assert not theirs.is_progress_bar_enabled() and not hub.are_progress_bars_disabled()


def test_a_warning_that_nobody_can_mend_is_left_out(monkeypatch):
    logger, said = logging.getLogger("accelerate.accelerator"), []
    monkeypatch.setattr(logger, "filters", [])
    monkeypatch.setattr(logger, "handlers", [handler := logging.Handler()])
    monkeypatch.setattr(handler, "emit", said.append)
    for times in (0, 1):
        logger.warning("[RANK 0] Gradient accumulation steps mismatch: GradientAccumulationPlugin has 1, DeepSpeed 4")
        logger.warning("something else")
        assert len(said) == 2 + times
        quieten()


def test_what_is_wrong_is_said_as_by_the_commands(folder, tmp_path):
    model, video = videollm.load(folder, device="cpu", **TWELVE), clips() / CLIP
    for error, call, message in (
        (CheckpointError, lambda: videollm.load(tmp_path), "no config.json; give the folder of a trained model"),
        (ConfigError, lambda: videollm.load(folder, device="cud"), "--device: 'cud' is no device; did you mean cuda?"),
        (ConfigError, lambda: videollm.load(folder, device=3), "--device: 3 is no device; known devices: cpu, cuda"),
        (ConfigError, lambda: videollm.load(None), "model: None is no path; give a text or a pathlib.Path"),
        (ConfigError, lambda: videollm.load("a\0b"), r"model: 'a\x00b' holds a NUL character"),
        (ConfigError, lambda: Session(None), "bundle: None is no loaded model; videollm.load"),
        (ConfigError, lambda: model.ask(None, "when ?"), "video: None is no path; "),
        (ConfigError, lambda: model.ask("a\0.mp4", "when ?"), r"video: 'a\x00.mp4' holds a NUL character"),
        (ConfigError, lambda: model.ask(b"a.mp4", "when ?"), "video: b'a.mp4' is no path; "),
        (ConfigError, lambda: next(model.stream("", "when ?")), "video: it is empty; give a path"),
        (ConfigError, lambda: model.seen(3, "when ?"), "video: 3 is no path; "),
        (ConfigError, lambda: model.ask_many([(video, "a", 1)]), ", 'a', 1) is no pair (video, question)"),
        (ConfigError, lambda: model.ask_many([(video, "a"), "ab"]), "asked[1]: 'ab' is no pair (video, question)"),
        (ConfigError, lambda: model.ask_many(None), "asked: None is no list of pairs (video, question)"),
        (ConfigError, lambda: model.ask_many([(video, "a")], batch_size=True), "batch_size: True is not a whole"),
        (VideoError, lambda: model.ask(video, "a", sampler={"num_frames": 10**6, "rule": "segments"}), " 1000000 are "),
        (ConfigError, lambda: videollm.load(folder, sampling={}), "sampling: unknown key; known keys: sampler, pre"),
        (ConfigError, lambda: videollm.load(folder, sampler={"fsp": 1}), "sampler.fsp: unknown key; did you mean"),
        (ConfigError, lambda: model.ask(video, "when ?", head={}), "head: unknown option of a call; known are sampler"),
        (ConfigError, lambda: videollm.load(folder, device="cpu", precision="fp16"), "precision: 'fp16' is unknown; "),
        (ConfigError, lambda: videollm.load(folder, device="cpu", generate={"graphs": True}), "generate.graphs: true,"),
        (ConfigError, lambda: model.ask_many([(video, "when ?")], batch_size=0), "batch_size: 0 is not a whole number"),
        (ConfigError, lambda: model.ask_many([(video, "when ?")], batch_size="4"), "batch_size: '4' is not a whole"),
        (ConfigError, lambda: model.ask_many([(video, "when ?")], workers=-1), "workers: -1 is not a whole number"),
        (ConfigError, lambda: model.ask(video, None), "--question: None is no text; write a question"),
        (ConfigError, lambda: model.ask(video, " "), "--question: it is empty; "),
        (ConfigError, lambda: model.ask_many([(video, "when ?"), (video, "")]), "--question: it is empty; "),
        (VideoError, lambda: model.ask(tmp_path / "none.mp4", "when ?"), "none.mp4: does not exist"),
        (VideoError, lambda: model.ask(5000 * "a", "when ?"), "File name too long"),
        (VideoError, lambda: next(model.stream(tmp_path / "none.mp4", "when ?")), "none.mp4: does not exist"),
    ):
        with pytest.raises(error) as raised:
            call()
        assert message in str(raised.value) and "\n" not in str(raised.value), message


# ---- several ---------------------------------------------------------------------------------------------------------


def test_many_questions_are_answered_as_each_alone_with_every_video_in_the_tower_once(model, towers):
    asked = [(clips() / name, text) for text in ("when ?", "where is it ?") for name in (CLIP, OTHER)]
    alone = [model.ask(*one) for one in asked]
    frames, towers[:] = towers[:], []
    found = model.ask_many(asked)
    assert [line.raw_text for line in found] == [line.raw_text for line in alone]
    assert [line.question for line in found] == [text for _, text in asked]
    for one, other in zip(found, alone, strict=True):
        assert np.allclose(one.spans, other.spans, atol=1e-3)
    assert len(towers) == 2 and len(frames) == 4
    assert [line.raw_text for line in model.ask_many(one for one in asked)] == [line.raw_text for line in found]
    assert model.ask_many([]) == [] == model.ask_many(iter([]))


def test_a_video_that_cannot_be_read_costs_no_other_answer(model, tmp_path):
    (tmp_path / "noise.mp4").write_bytes(b"none")
    bad, good = model.ask_many([(tmp_path / "noise.mp4", "when ?"), (clips() / CLIP, "when ?")])
    assert "noise.mp4: is not a video" in bad.error and good.error is None
    assert good.raw_text == model.ask(clips() / CLIP, "when ?").raw_text


# ---- as it grows -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [{}, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("look", [1, 8])  # steps between two looks: as on a CPU, and as on a GPU
def test_pieces_make_up_the_answer(model, how, look, monkeypatch):
    made = Rows.__init__
    monkeypatch.setattr(Rows, "__init__", lambda rows, *given: (made(rows, *given), setattr(rows, "look", look))[0])
    for question in ("when ?", "what is it that happens there ?", "why ?"):
        whole = model.ask(clips() / CLIP, question, generate=how)
        pieces = list(model.stream(clips() / CLIP, question, generate=how))
        assert pieces[-1].answer == whole
        told, spans = "".join(piece.text for piece in pieces), sum((piece.spans for piece in pieces), [])
        if "</evi>" in whole.raw_text and not whole.raw_text.startswith("<evi>"):  # all before it was no answer
            assert told == whole.text or told.endswith("\n" + whole.text)
        else:
            assert (told, spans) == (whole.text, whole.spans)
        assert [piece.answer.finish_reason for piece in pieces[:-1]] == [""] * (len(pieces) - 1)
        assert len(pieces) > 1 or len(whole.text) < 2 or look > 1


def test_a_stream_that_is_left_frees_its_row_and_keeps_what_there_was(model, monkeypatch):
    whole, left, leave = model.ask(clips() / CLIP, "when ?"), [], Rows.__exit__
    monkeypatch.setattr(Rows, "__exit__", lambda rows, *error: left.append(rows) or leave(rows, *error))
    stream = model.stream(clips() / CLIP, "when ?")
    piece = next(stream)
    assert whole.text.startswith(piece.answer.text) and not left
    stream.close()
    assert len(left) == 1 and model.ask(clips() / CLIP, "when ?") == whole


def test_between_two_pieces_others_are_answered(model):
    """Of another thread, too; and nobody's answer is another one's."""
    whole, other = (model.ask(clips() / name, "when ?") for name in (CLIP, OTHER))
    stream, second, found = model.stream(clips() / CLIP, "when ?"), model.stream(clips() / OTHER, "when ?"), []
    pieces = [*islice(stream, 1), *islice(second, 1)]
    thread = threading.Thread(target=lambda: found.append(model.ask(clips() / OTHER, "when ?")))
    thread.start()
    thread.join(60)
    ends = list(second)[-1:] or pieces[1:], list(stream)[-1:] or pieces[:1]
    assert found == [other] == [ends[0][-1].answer] and ends[1][-1].answer == whole


def test_on_a_terminal_the_answer_is_printed_as_it_is_made(folder, capsys, monkeypatch):
    words = ["--model", str(folder), "--video", str(clips() / CLIP), "--question", "when ?", "--device=cpu"]
    assert asking.main([*words, "generate.max_new_tokens=12"]) == 0
    piped = capsys.readouterr().out
    told, write = [], sys.stdout.write
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setattr(sys.stdout, "write", lambda text: told.append(text) or write(text))
    assert asking.main([*words, "generate.max_new_tokens=12"]) == 0
    assert capsys.readouterr().out == piped
    assert len([text for text in told if text and piped.splitlines()[0].find(text) > 0]) > 1


# ---- pixels ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def any_size(tmp_path_factory):
    found = tmp_path_factory.mktemp("any_size")
    make_bundle("qwen3_vl", "text").save(found)
    return found


def test_limits_of_pixels_are_given_as_those_of_frames(any_size, tmp_path, capsys):
    """By the command line and from a program, as the sampler's; an output of others is not gone on with."""
    model, video = videollm.load(any_size, device="cpu", **TWELVE), clips() / CLIP
    many = {"min_pixels": 16384, "max_pixels": 65536}

    def tokens(seen: str) -> int:
        return int(seen.split(" of them visual")[0].split()[-1])

    assert tokens(model.seen(video, "when ?", preprocess=many)) > tokens(model.seen(video, "when ?"))
    lines, output = write_lines(tmp_path / "q.jsonl", clip_lines(1)), tmp_path / "a.jsonl"
    files = ["--model", any_size, "--annotations", lines, "--videos", clips(), "--output", output]
    words = [*map(str, files), "--device=cpu", "generate.max_new_tokens=4"]
    given = [f"preprocess.{key}={value}" for key, value in many.items()]
    assert infer.main([*words, *given]) == 0
    meta = json.loads((tmp_path / "a.jsonl.meta.json").read_text())
    assert meta["preprocess"].items() >= many.items() and meta["sources"]["preprocess.max_pixels"] == "command line"
    assert infer.main([*words, *given]) == 0 and infer.main(words) == 2
    assert "made with another preprocess (min_pixels: 16384, now " in capsys.readouterr().err


def test_what_belongs_to_the_tower_cannot_be_given(folder, any_size):
    for model, given, message in (
        (any_size, {"factor": 14}, "preprocess.factor: not to be set for a trained tower; known keys: budget"),
        (folder, {"max_pixels": 5000}, "max_pixels is for kind"),
    ):
        with pytest.raises(ConfigError, match=message):
            videollm.load(model, preprocess=given)
