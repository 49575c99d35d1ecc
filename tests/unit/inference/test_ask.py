"""Asking one question from the command line, and the example head of docs/heads.md inside a small model."""

import re
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from quickstart.clips import make_clip, render, write_video
from tests import models as tiny
from tests.answers import answer_line
from videollm import ask as asking
from videollm.batches.dataset import VideoDataset
from videollm.checkpoint import CheckpointError, load
from videollm.common.config import ConfigError
from videollm.data import parse_record
from videollm.data.conversation import Role, SpanMark, VisualMark
from videollm.heads import HEADS, Answer, FrameBatch, SpanRefs, TemporalHead, build_head
from videollm.inference import question, session
from videollm.inference.session import Session
from videollm.model.draws import SpanNoise, row_keys
from videollm.model.generate import Rows
from videollm.training.assemble import assemble
from videollm.training.optimizer import set_trainable
from videollm.video.decode import VideoError

FOUR_FRAMES = {"sampler": {"rule": "segments", "num_frames": 4}}
QUICK = {"generate": {"max_new_tokens": 4}}


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    path = tmp_path_factory.mktemp("ask") / "clip.mp4"
    write_video(path, render(make_clip(np.random.default_rng(0))))
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    assemble(tiny.settings("internvl", "distime", data=FOUR_FRAMES)).save(folder)
    return folder


@pytest.fixture
def answers(monkeypatch):
    """The next answer of any model, since the tiny one is not trained; returns the options it is asked with."""

    def give(answer, reason="stop"):
        asked = []

        def made(model, number, options, *rest):
            asked.append(options)
            return Rows(model, number, options, *rest)

        monkeypatch.setattr("videollm.inference.rows.Rows", made)
        monkeypatch.setattr("videollm.model.videollm.VideoLLM.read_answer", lambda *_: (answer, reason))
        return asked

    return give


def run(capsys, model, video, *rest, question="when does it happen ?"):
    status = asking.main(["--model", str(model), "--video", str(video), "--question", question, "--device=cpu", *rest])
    out, err = capsys.readouterr()
    return status, out, err


# ---- the answer ------------------------------------------------------------------------------------------------------


def test_prints_the_answer_its_spans_with_scores_and_the_evidence(capsys, model, video, answers):
    answers(Answer("at [1.0 s - 2.5 s] .", "", [[1.0, 2.5]], [[0.5, 3.0]], [0.875]))
    status, out, err = run(capsys, model, video)
    assert (status, err.count("error")) == (0, 0)
    lines = out.splitlines()
    assert lines[0] == "at [1.0 s - 2.5 s] ."
    assert lines[2:] == ["spans:", "  1. [1.0 s - 2.5 s]  score 0.88", "evidence spans:", "  1. [0.5 s - 3.0 s]"]


def test_an_answer_without_spans_or_cut_off_says_so(capsys, model, video, answers):
    answers(Answer("no .", ""), "length")
    _, out, _ = run(capsys, model, video)
    assert "spans: none" in out and "raise generate.max_new_tokens" in out
    answers(Answer("no .", ""), "")  # goes on
    assert "raise generate.time_limit_s" in run(capsys, model, video, "generate.time_limit_s=1e-9")[1]


def test_frames_that_the_context_has_no_room_for_are_told(capsys, model, video, answers):
    """How many of how many: the answer was given without the others."""
    answers(Answer("yes", ""))
    assert "frames" not in run(capsys, model, video)[1]
    told = run(capsys, model, video, "sampler.rule=segments", "sampler.num_frames=5000")[1]
    said = re.search(r"room for (\d+) of the 5000 frames that the sampler chose; they were thinned uniformly", told)
    assert 0 < int(said[1]) < 5000


def test_a_video_that_is_cut_short_is_told_once(capsys, model, video, answers, tmp_path, caplog):
    """Though the file is opened to see whether it can be read, to read it, and to draw it."""
    whole, cut = tmp_path / "whole.mp4", tmp_path / "cut.mp4"
    with av.open(str(video)) as source, av.open(str(whole), "w", options={"movflags": "faststart"}) as out:
        stream = out.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                out.mux(packet)
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size * 4 // 5])
    answers(Answer("yes", ""))
    assert run(capsys, model, cut, "--output", str(tmp_path / "a.png"))[0] == 0
    assert caplog.text.count("cut.mp4: is truncated: ") == 1


def test_generate_overrides_reach_the_model(capsys, model, video, answers):
    asked = answers(Answer("yes", ""))
    assert run(capsys, model, video, "generate.max_new_tokens=3", "generate.do_sample=true")[0] == 0
    assert (asked[0].max_new_tokens, asked[0].do_sample, asked[0].temperature) == (3, True, 1.0)


def test_the_precision_can_be_chosen(capsys, model, video, answers, monkeypatch):
    loaded, read = [], session.load
    monkeypatch.setattr(session, "load", lambda *args, **given: loaded.append(read(*args, **given)) or loaded[-1])
    answers(Answer("yes", ""))
    for chosen, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        assert run(capsys, model, video, f"--precision={chosen}")[0] == 0
        assert loaded.pop().model.get_input_embeddings().weight.dtype == dtype


def test_an_untrained_model_answers_something(model, video):
    line = Session(load(model), QUICK).ask(video, "when ?")
    assert line.error is None and line.raw_text and line.finish_reason in ("stop", "length")


def test_sampler_overrides_are_laid_over_the_checkpoints_own(model, video, monkeypatch):
    seen = []

    def catch(bundle, records, reader, options, **_):
        seen.append(reader)
        return [answer_line("ask")]

    monkeypatch.setattr(session, "answer_records", catch)
    Session(load(model)).ask(video, "when ?", sampler={"num_frames": 7})
    assert (seen[0].sampler.rule, seen[0].sampler.num_frames, seen[0].root) == ("segments", 7, video.parent)


def test_a_link_to_a_video_in_another_folder_is_followed(model, video, tmp_path, answers):
    answers(Answer("yes", ""))
    link = tmp_path / "link.mp4"
    link.symlink_to(video)
    assert Session(load(model), QUICK).ask(link, "when ?").text == "yes"


def test_marks_that_the_user_types_stay_text():
    typed = "what do <span> , <evi> and <video> mean ?"
    record = question.make_record("v.mp4", typed)
    assert record.turns[0].parts == (VisualMark(0), typed)
    assert record.question == typed and not record.has_answer


@pytest.mark.parametrize("typed", ["<TIME_STAMP>", "<IMG_CONTEXT>", "<|im_end|>"])
def test_typed_special_tokens_never_become_tokens(model, typed):
    encoder = load(model).encoder()
    turns = question.make_record("v.mp4", f"when {typed}").turns
    prompt = encoder.encode(turns, [], [("video", 2)], 4.0)
    plain = encoder.encode(question.make_record("v.mp4", "when").turns, [], [("video", 2)], 4.0)
    special = encoder.special[typed][0]
    assert prompt.ids.count(special) == plain.ids.count(special)
    assert len(prompt) > len(plain)


def test_the_record_is_what_an_annotation_of_the_same_question_gives():
    turns = [{"from": "human", "value": "<video>\nwhen ?"}]
    parsed = parse_record({"id": "ask", "video": "v.mp4", "conversations": turns}, 1, "--question")
    assert parsed == question.make_record("v.mp4", "when ?")


# ---- the picture -----------------------------------------------------------------------------------------------------


def test_draws_the_frames_over_the_spans(capsys, model, video, answers, tmp_path, monkeypatch):
    answers(Answer("at .", "", [[1.0, 2.5]], [[0.5, 3.0]], [0.9]))
    drawn = []
    timeline = question.timeline
    monkeypatch.setattr(question, "timeline", lambda *args: (drawn.append(args), timeline(*args)))
    status, out, _ = run(capsys, model, video, "generate.max_new_tokens=8", "--output", str(tmp_path / "a" / "b.png"))
    assert status == 0 and str(tmp_path / "a" / "b.png") in out
    _, frames, times_s, duration_s, truth, spans, title, texts = drawn[0]
    assert len(frames) == len(times_s) == 12 and 0 < times_s[0] < times_s[-1] < duration_s
    assert (truth, spans) == ({}, {"answer": [[1.0, 2.5]], "evidence": [[0.5, 3.0]]})
    assert title == "when does it happen ?" and texts["answer"]
    with Image.open(tmp_path / "a" / "b.png") as picture:
        assert picture.format == "PNG" and picture.width > 600


# ---- bad input -------------------------------------------------------------------------------------------------------


def test_every_bad_input_is_one_clear_line_and_status_two(capsys, model, video, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "still.png")
    (tmp_path / "noise.mp4").write_bytes(b"not a video")
    (tmp_path / "empty").mkdir()
    cases = [
        ((model, tmp_path / "none.mp4"), {}, "none.mp4: does not exist"),
        ((model, tmp_path), {}, "is not a file"),
        ((model, tmp_path / "noise.mp4"), {}, "is not a video"),
        ((model, tmp_path / "still.png"), {}, "is a picture, which has no time to ask about; give a video"),
        ((tmp_path / "empty", video), {}, "no config.json"),
        ((model, video, "generate.tokens=3"), {}, "generate.tokens: unknown key"),
        ((model, video, "train.lr=3"), {}, "train: unknown key"),
        ((model, video, "sampler=3"), {}, "sampler: expected a mapping, got 3"),
        ((model, video, "generate="), {}, "generate= has no value"),
        ((model, video, "--device", "meta"), {}, "--device: 'meta' is no device; known devices: cpu, cuda"),
        ((model, video, "sampler.fps=-1", "generate.max_new_tokens=4"), {}, "fps must be a positive number"),
        ((model, video, "generate.max_new_tokens=1024"), {}, "leave no room for a question in the model's 1024"),
        ((model, video, "--output", "timeline.pdf"), {}, "--output: timeline.pdf is not named .png"),
        ((model, video, "--output", f"{model}/config.json/x.png"), {}, "--output: cannot write "),
        ((model, video, "--device", "toaster"), {}, "--device: 'toaster' is no device; known"),
        ((model, video, "generate.max_new_tokens=4"), {"question": " "}, "--question: it is empty"),
        (
            (model, video, "generate.max_new_tokens=4"),
            {"question": "when \udcff?"},
            "--question: holds half a character",
        ),
        ((model, video, "generate.max_new_tokens=4"), {"question": "when " * 1100}, "tokens with the fewest frames"),
    ]
    for given, named, message in cases:
        status, out, err = run(capsys, *given, **named)
        lines = [line for line in err.splitlines() if line.startswith("error: ")]
        assert (status, len(lines), out) == (2, 1, ""), (message, out, err)
        assert message in lines[0]


def test_a_folder_without_a_head_is_refused(model, tmp_path, video, capsys):
    from safetensors.torch import load_file, save_file

    for file in model.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    headless = {name: tensor for name, tensor in weights.items() if not name.startswith("head.")}
    save_file(headless, tmp_path / "model.safetensors", metadata={"format": "pt"})
    status, _, err = run(capsys, tmp_path, video)
    assert status == 2 and "holds no weights of its distime head" in err
    with pytest.raises(CheckpointError):
        load(tmp_path)


def test_a_video_that_breaks_while_it_is_read_is_an_error(model, video, monkeypatch):
    def broken(*args, **kwargs):
        raise VideoError("clip.mp4: is broken; fetch it again")

    monkeypatch.setattr("videollm.batches.reader.read_video", broken)
    with pytest.raises(VideoError, match="is broken"):
        Session(load(model), QUICK).ask(video, "when ?")


# ---- docs/heads.md ---------------------------------------------------------------------------------------------------


@pytest.fixture
def page(repository: Path):
    return (repository / "docs" / "heads.md").read_text(encoding="utf-8")


@pytest.fixture
def example(page, tmp_path, monkeypatch):
    """The page's head as an importable package; afterwards it is gone."""
    code = re.search(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)[1]
    package = tmp_path / "packages" / "center_width"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(str(package.parent))
    yield "center_width"
    HEADS.pop("center_width", None)
    sys.modules.pop("center_width", None)


def spans_of(seconds):
    """N answer spans, one a row."""
    count = len(seconds)
    place = torch.arange(count)
    role, frame = torch.full((count,), int(Role.ANSWER)), torch.full((count,), -1)
    return SpanRefs(place, place, place, place, role, place, frame, torch.tensor(seconds).view(-1, 2), count)


def test_the_page_names_every_part_of_the_interface(page):
    table = page[page.index("## The interface") :]
    parts = [n for n in vars(TemporalHead) if not n.startswith("_") and n != "forward"]
    assert [name for name in parts if f"`{name}`" not in table] == []


def test_the_pages_head_learns_the_spans_of_a_batch(example):
    torch.manual_seed(0)
    head = build_head({"name": example, "weight": 2.0}, 16)
    head.reset_parameters()
    refs = spans_of([[1.0, 3.0], [4.0, 4.5], [0.0, 8.0]])
    frames = FrameBatch(torch.zeros(3, 1), torch.ones(3, 1, dtype=torch.bool), torch.full((3,), 10.0))
    queries = torch.randn(3, 16)
    optimizer = torch.optim.Adam(head.parameters(), 0.05)
    for _ in range(200):
        optimizer.zero_grad()
        head.loss(queries, refs, frames)["l1"].backward()
        optimizer.step()
    torch.testing.assert_close(head.predict(queries, refs.owner, frames).seconds, refs.seconds, atol=0.3, rtol=0)
    assert (head.log_prob(queries, refs, frames) > -0.1).all()


def test_the_pages_head_keeps_its_promises_for_no_spans_and_for_any_query(example):
    head = build_head({"name": example}, 16)
    frames = FrameBatch(torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.bool), torch.full((1,), 10.0))
    none = spans_of([])
    head.loss(torch.zeros(0, 16), none, frames)["l1"].backward()
    assert all(p.grad is not None for p in head.decode.parameters())
    assert head.counts(none)["l1"] == 0 and head.embed(torch.zeros(0, 16), none, frames).shape == (0, 16)
    found = head.predict(100 * torch.randn(50, 16), torch.zeros(50, dtype=torch.int64), frames)
    assert (found.seconds[:, 0] <= found.seconds[:, 1]).all()
    assert found.seconds.min() >= 0 and found.seconds.max() <= 10


def test_the_pages_head_draws_as_it_says(example):
    torch.manual_seed(0)
    head, count = build_head({"name": example}, 16), 3000
    frames = FrameBatch(torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.bool), torch.full((1,), 10.0))
    query, axis = torch.randn(1, 16), torch.linspace(-1, 2, 301)
    raws = torch.cartesian_prod(axis, axis)
    owner = torch.zeros(len(raws), dtype=torch.long)
    density = head.draw_log_prob(query.expand(len(raws), -1), raws, owner, frames, 1.0).exp().view(301, 301)
    assert density.sum().item() * 1e-4 == pytest.approx(1, abs=1e-3)
    keys = row_keys([f"q{k}" for k in range(count)], [0] * count, torch.device("cpu"))
    noise = SpanNoise(keys, torch.zeros_like(keys))
    drawn = head.draw(query.expand(count, -1), owner[:count], frames, 1.0, noise)
    tenth = axis[torch.searchsorted(density.sum(1).cumsum(0) * 1e-4, 0.1)]
    assert (drawn.raw[:, 0] <= tenth).float().mean().item() == pytest.approx(0.1, abs=0.02)
    assert (drawn.seconds[:, 0] <= drawn.seconds[:, 1]).all() and head.draws


def test_a_misspelt_option_of_the_pages_head_is_named(example):
    with pytest.raises(ConfigError, match=r"model\.head\.wieght: unknown key; did you mean model\.head\.weight"):
        build_head({"name": example, "wieght": 1.0}, 16)


def test_the_pages_head_trains_and_answers_inside_a_model(example, video, tmp_path):
    settings = tiny.settings("internvl", "text", data=FOUR_FRAMES, head={"name": example, "weight": 2.0})
    bundle = assemble(settings)
    set_trainable(bundle.model, settings.train)
    turns = [{"from": "human", "value": "when ?"}, {"from": "gpt", "value": "at <span> ."}]
    record = parse_record({"video": video.name, "tgt": [1, 2], "conversations": turns}, 1, "one.jsonl")
    assert record.turns[1].parts[1] == SpanMark(0)
    data = VideoDataset([record], bundle.reader(video.parent), bundle.encoder(), max_length=1024)
    batch = bundle.collator()([data[0]])
    before = bundle.model.head.decode.weight.clone()
    optimizer = torch.optim.SGD([p for p in bundle.model.parameters() if p.requires_grad], 0.1)
    output = bundle.model.train()(batch)
    output.loss.backward()
    optimizer.step()
    assert set(output.terms) == {"lm", "l1"} and not torch.equal(before, bundle.model.head.decode.weight)
    bundle.save(tmp_path / "final")
    line = Session(load(tmp_path / "final"), QUICK).ask(video, "when ?")
    assert line.error is None and line.duration > 0
