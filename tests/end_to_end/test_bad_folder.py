"""A folder in which every tenth video is bad, each in another way: training, inference and the check end, and the
counts they tell are the true ones."""

import json
import os
import signal
import time

import av
import numpy as np
import pytest

from tests.models import clips, read_log, turns, write_config, write_lines
from videollm import infer, train
from videollm.batches import reader
from videollm.data import load_records
from videollm.data.__main__ import main as check_data

BAD = {
    "missing": "does not exist",
    "empty": "zero bytes",
    "cut": "truncated",
    "noise": "is not a video",
    "audio": "audio only",
    "scrambled": "no frame of it can be decoded",
    "folder": "is not a file",
    "broken": "a link to",
    "hangs": "took more than 2 s",
    "crashes": "ended its process (SIGKILL)",
}
DECODER = ("hangs", "crashes")  # of the bad ones, those whose files are good: the decoder's fault


@pytest.fixture(scope="module", params=[60, pytest.param(500, marks=pytest.mark.slow)], ids=lambda n: f"{n} clips")
def folder(tmp_path_factory, request):
    """Names of videos, a tenth (or once each kind) of them bad; some of those are asked about twice."""
    videos = tmp_path_factory.mktemp("videos")
    whole = [(clips() / f"clip{i}.mp4").read_bytes() for i in range(4)]
    count = max(len(BAD), request.param // 10)
    places = {request.param // count * k: list(BAD)[k % len(BAD)] for k in range(count)}
    lines, truth = [], {}
    for i in range(request.param):
        kind, path = places.get(i, "good"), videos / f"v{i:03d}.mp4"
        write_file(path, kind, whole[i % 4])
        asked = ["a", "b"] if kind in ("good", "cut", "hangs") and i % 5 == 0 else ["a"]
        lines += [question(path.name, f"{path.stem}{k}", 4 + i % 4) for k in asked]
        truth |= {f"{path.stem}{k}": kind for k in asked}
    assert list(truth.values()).count("good") <= 0.95 * len(truth)
    return videos, write_lines(videos.parent / "all.jsonl", lines), truth


def question(video: str, ident: str, duration: int) -> dict:
    said = turns("<video>\nwhen is it?", "It is in <span>.")
    return {"id": ident, "video": video, "duration": duration, "source": "s", "tgt": [0, 1], "conversations": said}


def write_file(path, kind: str, whole: bytes) -> None:
    if kind in ("good", *DECODER):
        path.write_bytes(whole)
    elif kind == "folder":
        path.mkdir()
    elif kind == "broken":
        path.symlink_to(path.with_name("gone.mp4"))
    elif kind == "scrambled":  # all that describes the frames is there, the frames are not
        start, size = whole.index(b"mdat") + 4, int.from_bytes(whole[whole.index(b"mdat") - 4 :][:4], "big") - 8
        path.write_bytes(whole[:start] + bytes(size) + whole[start + size :])
    elif kind == "audio":
        with av.open(str(path), "w") as container:
            stream = container.add_stream("aac", rate=16000, layout="mono")
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 16000, 0
            container.mux([*stream.encode(frame), *stream.encode()])
    elif kind != "missing":
        path.write_bytes({"empty": b"", "cut": whole[: len(whole) // 2], "noise": b"no video at all"}[kind])


@pytest.fixture(autouse=True)
def a_decoder_hangs_or_crashes(monkeypatch, folder):
    _, _, truth = folder
    faults = {ident[:-1]: kind for ident, kind in truth.items() if kind in DECODER}
    read = reader.read_video

    def decode(path, *args, **options):
        if faults.get(path.stem) == "crashes":
            os.kill(os.getpid(), signal.SIGKILL)
        return time.sleep(60) if path.stem in faults else read(path, *args, **options)

    monkeypatch.setattr(reader, "read_video", decode)


def test_training_and_inference_go_through_a_folder_with_bad_videos(folder, tmp_path, capsys):
    videos, annotations, truth = folder
    bad = {ident: kind for ident, kind in truth.items() if kind != "good"}
    config = write_config(tmp_path, "text", batch_size=8, epochs=1.0)
    given = [f"data.train=[{annotations}]", f"data.videos={videos}", "data.workers=1", "train.steps=null"]
    given += ["data.decode_timeout_s=2", "data.max_bad_fraction=0.25"]
    assert train.main(["--config", str(config), *given]) == 0
    named = [json.loads(x)["video"] for x in (tmp_path / "run/skipped.jsonl").read_text().splitlines()]
    assert sorted(name.partition(":")[0] for name in named) == sorted(bad)
    assert all(BAD[bad[name.partition(":")[0]]] in name for name in named)
    log = read_log(tmp_path / "run")
    assert log[-1]["bad_videos"] == len(bad) and log[-1]["step"] == -(-len(truth) // 8)

    output = tmp_path / "answers.jsonl"
    asked = ["--model", tmp_path / "run/final", "--annotations", annotations, "--videos", videos, "--output", output]
    asked += ["--device", "cpu", "--workers", "1", "--decode-timeout", "2", "generate.max_new_tokens=3"]
    capsys.readouterr()
    assert infer.main([str(x) for x in asked]) == 0
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["id"] for row in rows] == list(truth)
    assert {row["id"] for row in rows if row["error"]} == bad.keys()
    assert all(BAD[bad[row["id"]]] in row["error"] for row in rows if row["error"])
    counts = json.loads((tmp_path / "answers.jsonl.meta.json").read_text())["counts"]
    assert counts == {"questions": len(truth), "answered": len(truth) - len(bad), "errors": len(bad)}
    said = capsys.readouterr().out
    assert (
        f"{len(truth) - len(bad)} answers, {len(bad)} errors of {len(truth)} questions; every id exactly once" in said
    )


def test_training_stops_past_the_tolerated_share(folder, tmp_path, capsys):
    videos, annotations, _ = folder
    config = write_config(tmp_path, "text", batch_size=8, epochs=1.0)
    given = [f"data.train=[{annotations}]", f"data.videos={videos}", "data.workers=1", "train.steps=null"]
    assert train.main(["--config", str(config), *given, "data.decode_timeout_s=2", "data.max_bad_fraction=0.02"]) == 2
    message = capsys.readouterr().err
    assert "data.max_bad_fraction=0.02" in message and "skipped.jsonl" in message and "Traceback" not in message


def test_the_check_names_the_bad_videos_and_writes_the_rest(folder, tmp_path, capsys):
    videos, annotations, truth = folder
    clean = tmp_path / "clean.jsonl"
    given = ["--annotations", annotations, "--videos", str(videos), "--output", str(clean), "--workers", "2"]
    assert check_data(["check", *given]) == 1
    readable = [ident for ident, kind in truth.items() if kind in ("good", *DECODER)]  # the check reads no frames
    assert [record.id for record in load_records(clean)] == readable
    kinds = {ident[:-1]: kind for ident, kind in truth.items()}
    missing = sum(kind in ("missing", "broken") for kind in kinds.values())
    unreadable = sum(kind not in ("good", "missing", "broken", *DECODER) for kind in kinds.values())
    assert f"source s: {len(kinds)} files, {missing} missing, {unreadable} unreadable" in capsys.readouterr().out
