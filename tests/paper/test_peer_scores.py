"""Prediction files of other groups, scored to the numbers that they or the official scripts print.

The files and the numbers (the table of its README.md) are those of PEERS_DIR; what is missing skips.
"""

import os
import re
from dataclasses import replace
from pathlib import Path

import pytest

from all_benchmark_eval.benchmark import Options, get
from all_benchmark_eval.metrics import dense_scores
from all_benchmark_eval.metrics.intervals import iou_epsilon
from all_benchmark_eval.metrics.moments import State

pytestmark = pytest.mark.paper

PEERS = Path(os.environ.get("PEERS_DIR", Path(__file__).resolve().parents[2].parent / "shared" / "peers"))
PAPER = Path(os.environ.get("PAPER_DIR", Path(__file__).resolve().parents[2].parent / "shared" / "paper"))
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


@pytest.fixture(scope="module")
def bmt() -> dict[str, float]:
    """Over the videos in the file, without merging of neighbours, in percent."""
    truth = get("anet_dvc").load(file("gt/anet_val_2.json.gz", PAPER))
    given = get("anet_dvc").read(file("bmt_captioning_results_val_2.json.gz"), truth)
    there = given.state != State.MISSING
    sides = given.select(there), truth.select(there)
    ascii_only = [replace(s, captions=[[dense_scores.plain(text) for text in v] for v in s.captions]) for s in sides]
    words = dense_scores.Words(Options("published", "seconds"))
    predicted, true = (events.by_start() for events in words.both(*ascii_only))
    measures = dense_scores.published_measures(words, predicted, true, iou_epsilon, 0)
    return {name: 100 * float(values.mean()) for name, values in measures.items()} | {"videos": int(there.sum())}


@pytest.mark.parametrize("metric", ["METEOR", "BLEU_3", "BLEU_4"])
def test_bmt_in_the_challenges_form(bmt, metric):
    assert same(bmt[metric], *told("bmt_", rf"{metric} ([\d.]+)[,; ]"))


def test_bmt_soda_and_its_number_of_videos(bmt):
    soda, videos = (told("bmt_", pattern)[0] for pattern in (r"other files\): ([\d.]+\d)", r"\(([\d,]+) of"))
    assert same(bmt["SODA_c"], soda) and bmt["videos"] == int(videos.replace(",", ""))


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


def test_cgdetr_on_the_test_set():
    task = get("qvhighlights")
    truth = task.load(file("highlight_test_with_gt.jsonl.gz"))
    given = task.read(file("cgdetr_hl_test_submission.jsonl.gz"), truth)
    metrics = task.score(truth, given, Options("published", "moment_detr")).metrics
    number = r"([\d.]+)"
    printed = (
        told("cgdetr_", rf"R1@0.5 / 0.7 {number} / {number};")
        + told("cgdetr_", rf"mAP@0.5 / 0.75 / avg {number} / {number} / {number};")
        + told("cgdetr_", rf"HL mAP / Hit1 \(VeryGood\) {number} / {number};")
    )
    names = [f"MR-full-{name}" for name in ("R1@0.5", "R1@0.7", "mAP@0.5", "mAP@0.75", "mAP")]
    names += [f"HL-min-VeryGood-{name}" for name in ("mAP", "Hit1")]
    assert [metrics[name] for name in names] == [float(value) for value in printed]
