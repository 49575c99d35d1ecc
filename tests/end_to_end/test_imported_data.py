"""Other groups' training files train every head: imported by the command, checked with their videos, trained on."""

import json

import pytest

from tests.models import clips, read_log, write_config, write_lines
from videollm import train
from videollm.data.__main__ import main

SAID = "From 1.0 to 2.5 seconds, and again at 0:03 - 0:04."
ROWS = {  # form -> a row for each clip i, which has 4 + i seconds
    "timelens": lambda i: {
        "source": "x", "video_path": f"clip{i}.mp4", "duration": 4 + i,
        "events": [{"query": "it turns.", "span": [[1, 3]]}],
    },
    "time_r1": lambda i: {
        "video": f"./clip{i}.mp4", "duration": 2.0, "timestamp": [0.5, 1.5], "sentence": "it turns"
        } | {"video_start": 1.0, "video_end": 3.0},
    "ms_swift": lambda i: {
        "messages": [{"role": "user", "content": "<video>When?"}, {"role": "assistant", "content": SAID}],
        "videos": [f"{clips()}/clip{i}.mp4"],
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("form", "head"), [("timelens", "text"), ("timelens", "d2vlm"), ("time_r1", "distime"), ("ms_swift", "d2vlm")]
)
def test_an_imported_file_trains_a_head(form, head, tmp_path):
    rows = write_lines(tmp_path / "rows.jsonl", [ROWS[form](i) for i in range(4)])
    records = tmp_path / "records.jsonl"
    assert main(["import", form, rows, "--output", str(records), "--videos", str(clips())]) == 0
    assert main(["check", "--annotations", str(records), "--videos", str(clips())]) == 0
    lines = [json.loads(line) for line in records.read_text().splitlines()]
    assert len(lines) == 4 and all(line["tgt"] for line in lines)
    backbone = "etchat" if head == "d2vlm" else "internvl"
    config = write_config(tmp_path / "made", head, backbone=backbone, lines=lines, steps=2)
    assert train.main(["--config", str(config)]) == 0
    assert len(read_log(tmp_path / "made/run")) == 2
