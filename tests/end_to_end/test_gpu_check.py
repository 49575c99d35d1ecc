"""The GPU check as a user calls it, at its smallest on a CPU: every part works and the table has a row of each."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec

from benchmarks.gpu_check import PARTS

FIGURES = {  # of a case of each kind of part
    "machine": "TFLOP/s", "SFT": "MFU %", "FPO": "tokens/s", "answers": "ms a token", "frames": "frames/s",
    "ZeRO": "ms a step",
}  # fmt: skip


def test_every_part_has_its_rows_and_none_fails(repository, tmp_path):
    command = ["bash", "scripts/gpu_check.sh", "--tiny", "--device", "cpu", "--output", str(tmp_path)]
    environment = os.environ | {"VIDEOLLM_PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=repository, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = json.loads((tmp_path / "gpu_check.json").read_text())["rows"]
    assert [row for row in rows if row["status"] == "failed"] == []
    assert {row["part"] for row in rows} == {part.name for part in PARTS}
    table = (tmp_path / "gpu_check.md").read_text()
    assert len(table.splitlines()) == 2 + len(rows) and "| with graphs | skipped |" in table
    for part in PARTS:
        measured = [row for row in rows if row["part"] == part.name and row["figures"]]
        if part.work and not part.again and all(map(find_spec, part.needs)):
            assert any(FIGURES[part.name.split(",")[0]] in row["figures"] for row in measured), part.name
