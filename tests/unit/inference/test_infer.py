"""Inference loses nothing and does nothing twice: what is asked together, what is kept, and what is refused."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from tests.answers import answer_line
from tests.models import LENGTHS, NATIVE, NoiseReader, clip_lines, clips, make_bundle, record, turns, write_lines
from videollm import infer
from videollm.batches import dataset
from videollm.batches import reader as reading
from videollm.common.command import INTERRUPTED
from videollm.common.config import ConfigError
from videollm.common.isolate import Isolated, Stopped, isolated_map
from videollm.inference import answer as answering
from videollm.inference import output as outputs
from videollm.inference import run
from videollm.inference.answer import Speed, answer_records
from videollm.inference.plan import SHORT as SHORTEST
from videollm.inference.plan import plan, unit_size
from videollm.model.generate import GenerateOptions, Rows

SHORT = GenerateOptions(max_new_tokens=4)


def question(ident: str, video: str | None = "a.mp4", text: str = "when?", **keys):
    mark = "<video>\n" if video else ""
    return record({"id": ident, **({"video": video} if video else {}), "conversations": turns(mark + text), **keys})


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A checkpoint folder with random weights."""
    folder = tmp_path_factory.mktemp("model")
    bundle = make_bundle("internvl", "distime")
    bundle.config.sampler = {"rule": "segments", "num_frames": 4}
    bundle.save(folder)
    return folder


def ask(model, annotations, output, *more) -> int:
    paths = {"--model": model, "--annotations": annotations, "--videos": clips(), "--output": output}
    given = [str(x) for pair in paths.items() for x in pair]
    return infer.main([*given, "--device", "cpu", "--batch-size", "2", "generate.max_new_tokens=4", *map(str, more)])


def four_a_clip(count: int = 3) -> list[dict]:
    """Four questions about each clip, those about one clip apart."""
    said = ("when is it?", "and where?", "what is it?", "who is there, and why?")
    return [
        {"id": f"q{k}-{i}", "video": f"clip{i}.mp4", "conversations": turns(f"<video>\n{said[k]}")}
        for k in range(4)
        for i in range(count)
    ]


# ---- what is asked together ------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.sampled_from(["a", "b", "c", None]), st.integers(1, 3)), max_size=60), st.integers(1, 4))
def test_a_plan_holds_every_question_once_and_every_video_in_one_unit(asked, size):
    records = [
        question(str(i), video and f"{video}.mp4", generate={"max_new_tokens": tokens, "top_p": 0.5 + tokens % 2 / 2})
        for i, (video, tokens) in enumerate(asked)
    ]
    units = plan(records, GenerateOptions(), size)
    groups = [group for unit in units for group in unit]
    assert sorted(r.id for alike in groups for r, _ in alike) == sorted(r.id for r in records)
    assert all(own.max_new_tokens == r.asking.generate["max_new_tokens"] for alike in groups for r, own in alike)
    assert all(len({own.top_p for _, own in alike}) == 1 for alike in groups)
    assert sum(map(len, units)) == sum(len({own.top_p for alike in unit for _, own in alike}) for unit in units)
    homes = [{r.video for alike in unit for r, _ in alike if r.video} for unit in units]
    assert sum(map(len, homes)) == len(set().union(*homes)) if homes else not asked
    assert all(sum(map(len, unit)) >= unit_size(len(asked), size) >= SHORTEST * size for unit in units[:-1])


@pytest.mark.parametrize("backbone", ["internvl", "etchat", *NATIVE])
def test_a_video_is_read_and_encoded_once_for_all_its_questions(backbone, monkeypatch):
    """And the answers are those of questions asked one by one; with etchat the connector reads each question."""
    bundle, reader = make_bundle(backbone, "distime"), NoiseReader(any_size=backbone in NATIVE)
    words = ("when?", "what is it that happens there?", "who?")
    records = [question(f"{name}{k}", name, text) for k, text in enumerate(words) for name in ("a.mp4", "b.mp4")]
    alone = [line for r in records for line in answer_records(bundle, [r], reader, SHORT)]
    read, encoded = [], []
    video, tower = reader.video, bundle.model.vision_tower.forward
    reader.video = lambda name, *how: read.append(name) or video(name, *how)

    def watched(pixels, *grids):
        encoded.append(len(*grids or (pixels,)))
        return tower(pixels, *grids)

    monkeypatch.setattr(bundle.model.vision_tower, "forward", watched)
    together = {line.id: line for line in answer_records(bundle, records, reader, SHORT, batch_size=4)}
    group = 2 if backbone in NATIVE else 1  # frames
    assert encoded == [LENGTHS["a.mp4"] // group, LENGTHS["b.mp4"] // group]
    assert [name for i, name in enumerate(read) if i == 0 or name != read[i - 1]] == ["a.mp4", "b.mp4"]
    for line in alone:
        assert together[line.id].raw_text == line.raw_text
        assert together[line.id].spans == pytest.approx(line.spans, abs=0.002)


@pytest.mark.parametrize("backbone", ["internvl", *NATIVE])
def test_images_text_and_videos_are_asked_in_one_batch(backbone):
    bundle, reader = make_bundle(backbone, "text"), NoiseReader(any_size=backbone in NATIVE)
    records = [record(name) for name in ("image", "text", "two_spans", "asked")]
    together = list(answer_records(bundle, records, reader, SHORT))
    alone = [line for r in records for line in answer_records(bundle, [r], reader, SHORT)]
    assert [line.raw_text for line in together] == [line.raw_text for line in alone]
    assert not any(line.error for line in together)


@pytest.mark.parametrize("backbone", ["internvl", *NATIVE])
def test_what_is_too_long_loses_frames_question_by_question_and_says_so(backbone):
    """A long question must not take frames from a short one about the same video."""
    bundle, reader = make_bundle(backbone, "distime"), NoiseReader(any_size=backbone in NATIVE)
    records = [question("short", "b.mp4"), question("long", "b.mp4", "when " * 20)]
    size = {r.id: list(answer_records(bundle, [r], reader, SHORT))[0] for r in records}
    assert [size[r.id].thinned for r in records] == [0, 0]
    encoder = bundle.encoder()
    most = len(dataset.VideoDataset(records, reader, encoder, max_length=2000, answers=False)[1].prompts[0])
    bundle.config.context_length = most + SHORT.max_new_tokens - 1
    lines = {line.id: line for line in answer_records(bundle, records, reader, SHORT)}
    assert lines["short"] == size["short"] and lines["long"].thinned >= 1 and not lines["long"].error
    (alone,) = answer_records(bundle, records[1:], reader, SHORT)
    assert alone.raw_text == lines["long"].raw_text


# ---- memory ----------------------------------------------------------------------------------------------------------


def test_a_batch_that_does_not_fit_is_split_and_a_question_that_does_not_is_named(monkeypatch):
    bundle = make_bundle("internvl", "text")
    records = [question(f"{name}{k}", name) for k in range(3) for name in LENGTHS]
    whole = {line.id: line for line in answer_records(bundle, records, NoiseReader(), SHORT)}
    rows = []

    def little_room(asking, batch, where, *rest, **named):
        rows.append(len(asking.state.row))
        if rows[-1] > 2 or "b.mp41" in batch.ids:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        return how["own" in named](asking, batch, where, *rest, **named)

    how = {True: Rows.enter, False: Rows.follow}
    monkeypatch.setattr(Rows, "enter", little_room)
    monkeypatch.setattr(Rows, "follow", little_room)
    speed = Speed()
    lines = {line.id: line for line in answer_records(bundle, records, NoiseReader(), SHORT, speed=speed)}
    assert max(rows) == 8 and min(rows) == 1 and lines.keys() == whole.keys() and speed.questions == 9
    bad = lines.pop("b.mp41")
    assert "6 frames" in bad.error and " MiB" in bad.error and "generate.max_new_tokens" in bad.error
    assert all(line.raw_text == whole[i].raw_text and not line.error for i, line in lines.items())


@pytest.mark.parametrize(("backbone", "given"), [("internvl", [2, 2, 2]), *((native, [2, 1]) for native in NATIVE)])
def test_a_tower_without_room_takes_fewer_frames_at_a_time(backbone, given, monkeypatch):
    """Of frames of any size, fewer groups."""
    bundle, reader = make_bundle(backbone, "text"), NoiseReader(any_size=backbone in NATIVE)
    records, tower, sizes = [question("q", "b.mp4")], bundle.model.vision_tower.forward, []
    (whole,) = answer_records(bundle, records, reader, SHORT)
    most = 2

    def forward(pixels, *grids):
        if (count := len(*grids or (pixels,))) > most:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")
        sizes.append(count)
        return tower(pixels, *grids)

    monkeypatch.setattr(bundle.model.vision_tower, "forward", forward)
    (line,) = answer_records(bundle, records, reader, SHORT)
    assert sizes == given and line.raw_text == whole.raw_text
    most = 0
    (line,) = answer_records(bundle, records, reader, SHORT)
    assert "one at a time" in line.error


def test_another_error_of_the_model_is_not_swallowed(monkeypatch):
    bundle = make_bundle("internvl", "text")

    def fail(*_):
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(bundle.model, "prompt", fail)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        list(answer_records(bundle, [question("q")], NoiseReader(), SHORT))


# ---- decoders that hang ----------------------------------------------------------------------------------------------


def test_a_call_that_hangs_or_dies_is_stopped_and_the_next_one_works():
    def misbehave(what):
        if what == "hang":
            time.sleep(60)
        if what == "die":
            os.kill(os.getpid(), signal.SIGUSR1)
        if what == "raise":
            raise ConfigError("wrong")
        return what * 2

    call = Isolated(misbehave, timeout_s=2)
    assert call("a") == "aa"
    for what, says in (("hang", "took more than 2 s"), ("die", "SIGUSR1")):
        with pytest.raises(Stopped, match=says):
            call(what)
        assert call("b") == "bb"
    with pytest.raises(ConfigError, match="wrong"):
        call("raise")
    pid = call.child[0]
    call.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    found = dict(isolated_map(misbehave, ["a", "die", "c", "d", "hang"], workers=2, timeout_s=2))
    assert [found["a"], found["c"], found["d"]] == ["aa", "cc", "dd"]
    assert all(isinstance(found[what], Stopped) for what in ("die", "hang"))


def test_a_hanging_decoder_is_one_bad_video(model, tmp_path, monkeypatch, capsys):
    read = reading.read_video

    def hang(path, *args, **options):
        if path.name == "clip1.mp4":
            time.sleep(60)
        return read(path, *args, **options)

    monkeypatch.setattr(reading, "read_video", hang)
    annotations, start = write_lines(tmp_path / "a.jsonl", four_a_clip()), time.monotonic()
    assert ask(model, annotations, tmp_path / "o.jsonl", "--workers", 1, "--decode-timeout", 4) == 0
    assert time.monotonic() - start < 50
    rows = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    bad = [row["id"] for row in rows if row["error"]]
    assert bad == [f"q{k}-1" for k in range(4)] and "took more than 4 s" in rows[1]["error"]
    assert "clip1.mp4" in rows[1]["error"] and "4 errors of 12" in capsys.readouterr().out


def test_answers_too_long_for_the_context_are_refused_before_a_file_is_begun(model, tmp_path, capsys):
    annotations = write_lines(tmp_path / "a.jsonl", four_a_clip())
    assert ask(model, annotations, tmp_path / "made/o.jsonl", "generate.max_new_tokens=5000") == 2
    assert "generate.max_new_tokens: 5000 leave no room" in capsys.readouterr().err
    assert not (tmp_path / "made").exists()


# ---- the file of answers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_broken_anywhere_ends_with_the_bytes_of_an_unbroken_one(model, tmp_path, monkeypatch, workers):
    """Units of questions whose answers are of unequal length: broken within the first, the last, and again."""
    lines = [
        line | {"id": f"{line['id']}.{k}", "generate": {"max_new_tokens": 1 + 2 * k}}
        for k in range(3)
        for line in four_a_clip()
    ]
    annotations = write_lines(tmp_path / "a.jsonl", lines)
    sampled = ("generate.do_sample=true", "--workers", workers)
    assert ask(model, annotations, tmp_path / "whole.jsonl", *sampled) == 0
    answer, written = answering.answer_records, tmp_path / "broken.jsonl"
    assert len(lines) > unit_size(len(lines), 2) + 12 * 2  # so that there are several
    for stop in (1, 3, 27, 2):

        def killed(*args, stop=stop, **options):
            for i, line in enumerate(answer(*args, **options)):
                if i == stop:
                    raise KeyboardInterrupt
                yield line

        monkeypatch.setattr(run, "answer_records", killed)
        assert ask(model, annotations, written, *sampled) == INTERRUPTED
        written.write_bytes(written.read_bytes()[:-7])  # the last line is torn
    monkeypatch.setattr(run, "answer_records", answer)
    assert ask(model, annotations, written, *sampled) == 0
    assert written.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert not [p.name for p in tmp_path.iterdir() if p.suffix in (".lock", ".tmp") or ".part" in p.name]


def test_the_meta_file_tells_speed_and_what_was_thinned(model, tmp_path):
    annotations = write_lines(tmp_path / "a.jsonl", four_a_clip())
    assert ask(model, annotations, tmp_path / "o.jsonl", "--workers", 1) == 0
    meta = json.loads((tmp_path / "o.jsonl.meta.json").read_text())
    assert meta["counts"] == {"questions": 12, "answered": 12, "errors": 0}
    assert meta["thinned"] == {"questions": 0, "frames": 0}
    speed = meta["speed"]
    assert speed["questions"] == 12 and speed["processes"] == 1 and 0 < speed["data_wait_share"] < 1
    assert 0.9 < speed["tokens_per_s"] / speed["samples_per_s"] < 4.1
    assert ask(model, annotations, tmp_path / "o.jsonl") == 0  # nothing left to ask
    assert json.loads((tmp_path / "o.jsonl.meta.json").read_text())["speed"] == speed


def test_another_model_or_question_is_refused_and_the_same_one_elsewhere_is_not(model, tmp_path, capsys):
    lines = clip_lines(2)
    annotations, output = write_lines(tmp_path / "a.jsonl", lines), tmp_path / "o.jsonl"
    assert ask(model, annotations, output) == 0
    whole = output.read_text()
    copy = tmp_path / "copy"
    make_bundle("internvl", "distime")  # the same seed, but written anew
    copy.mkdir()
    for file in model.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    assert ask(copy, annotations, output) == 0
    weights = load_file(copy / "model.safetensors")
    name = sorted(weights)[0]
    weights[name] = weights[name] + 1e-3
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    capsys.readouterr()
    assert ask(copy, annotations, output) == 2
    assert "whose config, tokenizer or weights have changed" in capsys.readouterr().err
    lines[1]["conversations"] = turns("<video>\nwhere is it?", "<span>")
    assert ask(model, write_lines(tmp_path / "b.jsonl", lines), output) == 2
    assert "'q1' asks something else" in capsys.readouterr().err
    assert ask(model, write_lines(tmp_path / "c.jsonl", lines[:1]), output) == 2
    assert "'q1' is not in the annotations" in capsys.readouterr().err
    assert output.read_text() == whole


def test_parts_of_killed_ranks_are_merged_and_a_missing_or_doubled_id_is_named(tmp_path):
    records = [question(str(i)) for i in range(4)]
    output = tmp_path / "o.jsonl"

    def line(i, **keys):
        return json.dumps(answer_line(str(i), video="a.mp4", question="when?", **keys).to_json())

    output.write_text(line(2, error="bad") + "\n")
    Path(f"{output}.part0").write_text(line(1) + "\n" + line(2) + "\n" + line(0)[:9])
    Path(f"{output}.part7").write_text(line(3) + "\n" + line(1, error="later") + "\n")
    assert list(outputs.gather(output, records)) == ["1", "2", "3"]
    assert not any(found.error for found in outputs.read_lines(output)) and not list(tmp_path.glob("*.part*"))
    with pytest.raises(ConfigError, match=r"1 of 4 questions have no line, 0 more than one \(0\)"):
        outputs.prove(output, records)
    output.write_text(output.read_text() + line(0) + "\n" + line(3) + "\n")
    with pytest.raises(ConfigError, match=r"0 of 4 questions have no line, 1 more than one \(3\)"):
        outputs.prove(output, records)
    outputs.gather(output, records)
    assert [found.id for found in outputs.prove(output, records)] == ["0", "1", "2", "3"]
    output.write_text(line(0) + "\n\x00\x00\n" + line(1) + "\n")
    with pytest.raises(ConfigError, match=r"o\.jsonl:2: damaged"):
        outputs.gather(output, records)


def test_a_second_command_on_the_same_output_is_refused_until_the_first_is_gone(tmp_path):
    output = tmp_path / "o.jsonl"
    code = "import sys, pathlib; from videollm.inference.output import locked\n"
    code += "with locked(pathlib.Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    held = subprocess.Popen(
        [sys.executable, "-c", code, str(output)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert held.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match="another command still writes"), outputs.locked(output):
            pass
    finally:
        held.kill()
        held.wait()
    with outputs.locked(output):
        pass
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_one_message_and_keeps_what_was_written():
    says = "No space left.*what is there is kept"
    with open("/dev/full", "wb", buffering=0) as full, pytest.raises(ConfigError, match=says):
        outputs.add_line(full, answer_line("q"))


def test_the_death_of_another_rank_is_noticed():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    code = "from videollm.common.processes import *; r = Ranks(); print(r.told(r.rank), flush=True)\n"
    code += "import time; time.sleep(600 * r.rank)\n"
    code += "try: r.collected(1)\nexcept RankError as error: print(error)"
    address = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command, piped = [sys.executable, "-c", code], {"stdout": subprocess.PIPE, "text": True}
    ranks = [subprocess.Popen(command, env=address | {"RANK": str(i)}, **piped) for i in range(2)]
    try:
        # The Gloo of torch 2.10 says on stdout that the ranks have met.
        said = [next(line for line in p.stdout if not line.startswith("[Gloo]")) for p in ranks]
        assert said == ["0\n", "0\n"]
        ranks[1].kill()
        said, _ = ranks[0].communicate(timeout=30)
        assert said.startswith("another process of this command has ended") and "run the same command again" in said
    finally:
        for process in ranks:
            process.kill()
            process.wait()
