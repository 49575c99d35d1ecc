"""Prediction files of other groups, scored to the numbers that they or the official scripts print.

The files and the numbers (the table of its README.md) are those of PEERS_DIR; what is missing skips.
"""

import re
from pathlib import Path

import pytest

from all_benchmark_eval.benchmark import Options, get
from tests.conftest import place

PEERS = place("PEERS_DIR")
PAPER = place("PAPER_DIR")
if not PEERS.is_dir():
    pytest.skip(f"no files of other groups: {PEERS} is not a folder (set PEERS_DIR)", allow_module_level=True)


def file(name: str, folder: Path = PEERS) -> Path:
    if not (folder / name).is_file():
        pytest.skip(f"no {name} in {folder}")
    return folder / name


def told(file_name: str, pattern: str) -> list[str]:
    """The numbers of ``pattern`` in the row of a file in README.md, as they are printed."""
    rows = file("README.md").read_text(encoding="utf-8").splitlines()
    (row,) = (line for line in rows if line.startswith(f"| `{file_name}"))
    return list(re.search(pattern, row).groups())


def same(ours: float, printed: str) -> bool:
    """Equal as far as digits are printed."""
    digits = len(printed.partition(".")[2])
    return ours == pytest.approx(float(printed), abs=1e-12 if digits > 10 else 0.5 * 10**-digits + 1e-12)


@pytest.mark.parametrize("lines", ["all", "captioning"])
@pytest.mark.parametrize("metric", ["SODA_c", "METEOR", "CIDEr"])
def test_a_vtimellm_log_with_and_without_its_lines_of_grounding(metric, lines, tmp_path):
    log = file("vtimellm_example_log.txt").read_text(encoding="utf-8").splitlines()
    kept = [line for line in log if lines == "all" or '"captioning"' in line]
    assert len(kept) == (8 if lines == "all" else 2)
    (tmp_path / "log.txt").write_text("\n".join(kept), encoding="utf-8")
    task = get("anet_dvc")
    truth = task.load(file("vtimellm_data_example.json"))
    scores = task.score(truth, task.read(tmp_path / "log.txt", truth), Options("published", "percent"))
    assert same(scores.metrics[metric], *told("vtimellm_", rf"{metric} ([\d.]+\d)"))
