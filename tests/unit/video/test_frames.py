"""A store of decoded frames gives what the videos give, goes on where a build broke, and refuses other settings."""

import json
import random

import numpy as np
import pytest
import torch

from tests.models import clip_lines, clips, record, turns, write_config, write_lines
from videollm import frames, infer
from videollm.batches.reader import VisualReader, open_store
from videollm.common.config import ConfigError
from videollm.data import parse_record
from videollm.video import store
from videollm.video.decode import VideoError
from videollm.video.preprocess import Preprocess
from videollm.video.sampling import Sampler
from videollm.video.store import FrameStore, build_store

FOUR = Sampler(rule="segments", num_frames=4)
PLAIN = Preprocess(kind="plain", size=28)
CLIP = Preprocess(kind="clip", size=24)
NAMES = [f"clip{i}.mp4" for i in range(4)]


def build(folder, sampler=FOUR, preprocess=PLAIN, names=NAMES, **options):
    return build_store(folder, names, clips(), sampler, preprocess, progress=False, **options)


def no_videos(monkeypatch) -> None:
    def refuse(*_, **__):
        raise AssertionError("a video file was opened")

    monkeypatch.setattr(VisualReader, "decode", refuse)


@pytest.mark.parametrize("sampler", [FOUR, Sampler(rule="fps", fps=2.0)], ids=["segments", "fps"])
@pytest.mark.parametrize("preprocess", [PLAIN, CLIP, Preprocess(kind="clip", size=24, random_crop=True)])
def test_stored_frames_are_those_of_the_video_bit_for_bit(tmp_path, monkeypatch, sampler, preprocess):
    def draw():
        return random.Random(5)

    videos = {name: VisualReader(clips(), sampler, preprocess).video(name, draw()) for name in NAMES}
    assert build(tmp_path / "s", sampler, preprocess, workers=2) == (4, {})
    no_videos(monkeypatch)
    reader = VisualReader(clips(), sampler, preprocess, frames=FrameStore(tmp_path / "s", sampler, preprocess))
    for name, seen in videos.items():
        stored = reader.video(name, draw())
        assert torch.equal(stored.pixels, seen.pixels) and np.array_equal(stored.times_s, seen.times_s)
        assert stored.duration_s == seen.duration_s
    files = list((tmp_path / "s").glob("*.safetensors"))
    bytes_a_frame = 28 * 28 * 3 if preprocess is PLAIN else 32 * 32 * 3
    assert sum(f.stat().st_size for f in files) < sum(len(v.times_s) for v in videos.values()) * bytes_a_frame + 4096


def test_a_build_goes_on_where_it_was_broken(tmp_path, monkeypatch):
    whole = tmp_path / "whole"
    build(whole)
    monkeypatch.setattr(store, "SHARD_BYTES", 1)  # one video a shard
    write, written = store.write_shard, []

    def killed(path, videos):
        if len(written) == 2:
            path.with_suffix(".tmp").write_bytes(b"half a shard")
            raise KeyboardInterrupt
        written.append(videos[0][0])
        write(path, videos)

    monkeypatch.setattr(store, "write_shard", killed)
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "s")
    monkeypatch.setattr(store, "write_shard", write)
    decoded, decode = [], store.isolated_map

    def watched(function, names, *rest):
        names = list(names)
        decoded.extend(names)
        return decode(function, names, *rest)

    monkeypatch.setattr(store, "isolated_map", watched)
    assert build(tmp_path / "s") == (4, {})
    assert sorted(decoded + written) == NAMES
    one, other = (FrameStore(folder, FOUR, PLAIN) for folder in (whole, tmp_path / "s"))
    assert all(torch.equal(one(name).pixels, other(name).pixels) for name in NAMES)


def test_bad_videos_are_named_and_left_to_the_reader(tmp_path):
    held, bad = build(tmp_path / "s", names=[*NAMES, "broken.mp4", "gone.mp4"])
    assert held == 4 and bad.keys() == {"broken.mp4", "gone.mp4"} and "does not exist" in bad["gone.mp4"]
    named = [json.loads(line)["video"] for line in (tmp_path / "s/skipped.jsonl").read_text().splitlines()]
    assert sorted(named) == ["broken.mp4", "gone.mp4"]
    reader = VisualReader(clips(), FOUR, PLAIN, frames=FrameStore(tmp_path / "s", FOUR, PLAIN))
    with pytest.raises(VideoError, match="broken.mp4"):
        reader.video("broken.mp4", None)


@pytest.mark.parametrize(
    "sampler, preprocess, says",
    [
        (Sampler(rule="segments", num_frames=5), PLAIN, "'num_frames': 4.*'num_frames': 5"),
        (FOUR, Preprocess(kind="internvl", size=32), "resized_to 28, here it is resized_to 32"),
        (FOUR, CLIP, "resized_to 28, here it is resized_to None"),
        (Sampler(rule="segments", pick="random"), PLAIN, "drawn at random"),
    ],
)
def test_other_settings_than_the_stores_are_refused(tmp_path, sampler, preprocess, says):
    build(tmp_path / "s", names=NAMES[:1])
    with pytest.raises(ConfigError, match=rf"data\.frames: .*{says}"):
        FrameStore(tmp_path / "s", sampler, preprocess)
    with pytest.raises(ConfigError):
        build(tmp_path / "s", sampler, preprocess)
    other = Preprocess(kind="internvl", size=28)  # the same resizing; what comes after it is not stored
    assert FrameStore(tmp_path / "s", FOUR, other)(NAMES[0]) is not None


def test_a_folder_that_is_no_store_a_damaged_one_and_one_of_other_videos_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="is no frame store"):
        FrameStore(tmp_path, FOUR, PLAIN)
    build(tmp_path / "s", names=NAMES[:1])
    reader, asked = VisualReader(clips(), FOUR, PLAIN), record({"video": "other.mp4", "conversations": turns("q")})
    with pytest.raises(ConfigError, match="holds none of the 1 videos, such as other.mp4"):
        open_store(tmp_path / "s", reader, [asked])
    (tmp_path / "s/00001.safetensors").write_bytes(b"damaged")
    with pytest.raises(ConfigError, match="00001.safetensors is damaged"):
        FrameStore(tmp_path / "s", FOUR, PLAIN)


def test_a_part_of_a_video_is_never_taken_from_the_store(tmp_path):
    """The store holds the frames of the whole video only."""
    build(tmp_path / "s")
    line = {"id": "b", "video": "clip3.mp4", "duration": 7, "bound": [4, 6], "conversations": turns("<video>\nq")}
    view = parse_record(line, 1, "a.jsonl").asking.view
    reader = VisualReader(clips(), FOUR, PLAIN, frames=FrameStore(tmp_path / "s", FOUR, PLAIN))
    assert reader.video("clip3.mp4", None, view).times_s.min() >= 3.9 > reader.video("clip3.mp4", None).times_s.min()


@pytest.mark.end_to_end
def test_a_config_with_compatibility_builds_the_frames_that_its_training_reads(tmp_path, capsys):
    """Published DisTime changes the sampler; the store says so, and training takes it."""
    from videollm import train

    config = write_config(tmp_path, "distime", lines=clip_lines(2), steps=1)
    given = ["--config", str(config), "compatibility=published"]
    paths = ["--annotations", str(tmp_path / "train.jsonl"), "--videos", str(clips()), "--output", str(tmp_path / "s")]
    assert frames.main(["build", *paths, "--workers", "1", *given]) == 0, capsys.readouterr().err
    assert json.loads((tmp_path / "s/store.json").read_text())["sampler"]["spare_last"]
    assert train.main([*given, f"data.frames={tmp_path / 's'}"]) == 0


@pytest.mark.end_to_end
def test_the_build_command_serves_training_and_inference(tmp_path, monkeypatch, capsys):
    from videollm import train

    config = write_config(tmp_path, "text", lines=clip_lines(4), steps=1, validate_every=1)
    paths = ["--annotations", str(tmp_path / "train.jsonl"), "--videos", str(clips())]
    assert (
        frames.main(["build", *paths, "--config", str(config), "--output", str(tmp_path / "s"), "--workers", "1"]) == 0
    )
    assert "4 videos stored, 0 bad" in capsys.readouterr().out
    with monkeypatch.context() as patched:
        no_videos(patched)
        assert train.main(["--config", str(config), f"data.frames={tmp_path / 's'}"]) == 0
    asked = ["--annotations", write_lines(tmp_path / "asked.jsonl", clip_lines(2)), "--videos", str(clips())]
    asked += ["--model", str(tmp_path / "run/final"), "--device", "cpu", "--workers", "0", "generate.max_new_tokens=4"]
    assert infer.main([*asked, "--output", str(tmp_path / "a.jsonl")]) == 0
    with monkeypatch.context() as patched:
        no_videos(patched)
        assert infer.main([*asked, "--output", str(tmp_path / "b.jsonl"), "--frames", str(tmp_path / "s")]) == 0
    assert (tmp_path / "a.jsonl").read_text() == (tmp_path / "b.jsonl").read_text()
    capsys.readouterr()
    again = ["--output", str(tmp_path / "c.jsonl"), "--frames", str(tmp_path / "s"), "sampler.num_frames=3"]
    assert infer.main([*asked, *again]) == 2
    assert "data.frames: " in capsys.readouterr().err
    model = ["--model", str(tmp_path / "run/final"), "--workers", "1"]
    assert frames.main(["build", *paths, *model, "--output", str(tmp_path / "t"), "sampler.num_frames=3"]) == 0
    assert frames.main(["build", *paths, *model, "--output", str(tmp_path / "t"), "sampler.frames=3"]) == 2


def test_a_store_that_holds_nothing_yet_takes_other_settings(tmp_path):
    """A wrong folder of videos was given first, and other frames."""
    assert build_store(tmp_path / "s", ["clip0.mp4"], tmp_path, Sampler(num_frames=2), Preprocess(size=28))[0] == 0
    assert build_store(tmp_path / "s", ["clip0.mp4"], clips(), Sampler(num_frames=3), Preprocess(size=28))[0] == 1
