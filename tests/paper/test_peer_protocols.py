"""Numbers that other groups print for their own files, by the protocols that they print them with.

Files are those of PEERS_DIR; its README.md, a table, has the numbers. What is missing skips.
"""

import re

import numpy as np
import pytest

from all_benchmark_eval.benchmark import Options, get, read_lines
from all_benchmark_eval.metrics.intervals import iou_union
from tests.conftest import place

PEERS, PAPER = place("PEERS_DIR"), place("PAPER_DIR")
if not (PEERS / "README.md").is_file():
    pytest.skip(f"no scores of other groups: {PEERS} has no README.md (set PEERS_DIR)", allow_module_level=True)

BMT, CG_DETR = "bmt_captioning_results_val_2.json.gz", "cgdetr_hl_test_submission.jsonl.gz"
CG_DETR_TRUTH, VAL_2 = "highlight_test_with_gt.jsonl.gz", "gt/anet_val_2.json.gz"


def told(name: str, pattern: str) -> list[str]:
    """What the table's row about a file says."""
    row = next(line for line in (PEERS / "README.md").read_text(encoding="utf-8").splitlines() if f"`{name}`" in line)
    return list(re.search(pattern, row).groups())


def as_printed(value: float, text: str) -> str:
    """To as many decimals as ``text`` has."""
    return f"{value:.{len(text.partition('.')[2])}f}"


# ---- dense captioning ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bmt():
    """BMT's captions of the true events, over the videos in the file."""
    for path in (PEERS / BMT, PAPER / VAL_2):
        if not path.is_file():
            pytest.skip(f"{path}: not there")
    task = get("anet_dvc")
    truth = task.load(PAPER / VAL_2)
    answers = task.read(PEERS / BMT, truth)
    return task.score(truth, answers, Options("published", "densevid_eval_present"))


@pytest.mark.slow
@pytest.mark.parametrize(("metric", "pattern"), [
    ("METEOR", r"METEOR ([\d.]+)"), ("BLEU_3", r"BLEU_3 ([\d.]+)"), ("BLEU_4", r"BLEU_4 ([\d.]+)"),
    ("SODA_c", r"SODA_c without merging[^:]*: ([\d.]+)"),
])  # fmt: skip
def test_bmt_by_the_official_script(bmt, metric, pattern):
    (expected,) = told(BMT, pattern)
    expected = expected.rstrip(".")
    assert as_printed(bmt.metrics[metric], expected) == expected


@pytest.mark.slow
def test_bmt_has_as_many_videos_as_are_told(bmt):
    present, every = (int(text.replace(",", "")) for text in told(BMT, r"present \(([\d,]+) of ([\d,]+)\)"))
    assert (bmt.counts["scored"], bmt.counts["samples"]) == (present, every)


# ---- QVHighlights ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cg_detr():
    for name in (CG_DETR, CG_DETR_TRUTH):
        if not (PEERS / name).is_file():
            pytest.skip(f"{PEERS / name}: not there")
    task = get("qvhighlights")
    truth = task.load(PEERS / CG_DETR_TRUTH)
    return task.score(truth, task.read(PEERS / CG_DETR, truth), Options("published", "moment_detr"))


@pytest.mark.parametrize(("names", "pattern"), [
    (("MR-full-R1@0.5", "MR-full-R1@0.7"), r"R1@0.5 / 0.7 ([\d.]+) / ([\d.]+)"),
    (("MR-full-mAP@0.5", "MR-full-mAP@0.75", "MR-full-mAP"), r"mAP@0.5 / 0.75 / avg ([\d.]+) / ([\d.]+) / ([\d.]+)"),
    (("HL-min-VeryGood-mAP", "HL-min-VeryGood-Hit1"), r"HL mAP / Hit1 \(VeryGood\) ([\d.]+) / ([\d.]+)"),
])  # fmt: skip
def test_cg_detr_by_the_official_script(cg_detr, names, pattern):
    for name, expected in zip(names, told(CG_DETR, pattern), strict=True):
        assert as_printed(cg_detr.metrics[name], expected) == expected


@pytest.mark.parametrize(
    ("name", "low", "high"), [("full", 0, 150), ("short", 0, 10), ("middle", 10, 30), ("long", 30, 150)]
)
def test_cg_detrs_own_numbers_by_length(cg_detr, name, low, high):
    """mIoU and R1 from 0.3 on, which the README names without values: from the files by a loop over queries."""
    said = {row["qid"]: row["pred_relevant_windows"][0][:2] for _, row in read_lines(PEERS / CG_DETR)}
    best = []
    for _, row in read_lines(PEERS / CG_DETR_TRUTH):
        true = [w for w in row["relevant_windows"] if low < w[1] - w[0] <= high]
        if true:
            start, end = said[row["qid"]]
            s, e = max(true, key=lambda w: float(iou_union([start, end], w)))
            best.append(max(min(e, end) - max(s, start), 0) / (max(e, end) - min(s, start)))
    details = cg_detr.details[name]
    assert as_printed(100 * np.mean(best), "0.00") == as_printed(details["MR-mIoU"], "0.00")
    for t in (0.3, 0.35, 0.4, 0.45):
        hits = as_printed(100 * np.mean(np.array(best) >= t), "0.00")
        assert hits == as_printed(details["MR-R1"][f"{t:g}"], "0.00")
