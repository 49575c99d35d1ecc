"""Every published number of the grounding benchmarks, one test each, from the files of PAPER_DIR.

``expected.json`` says which numbers there are; a function per section computes all of them in the section's own form.
A number that a section gains is a test that fails until it is computed; a section whose files are missing skips.
"""

import functools
import json
import math
from pathlib import Path

import numpy as np
import pytest

from all_benchmark_eval.benchmark import Options, get, read_json
from all_benchmark_eval.metrics.intervals import iou_epsilon, iou_hull, iou_union, nextgqa_overlap
from all_benchmark_eval.qvhighlights.files import parse_windows
from all_benchmark_eval.qvhighlights.retrieval import average_precision
from tests.paper.folder import PAPER

FLOAT32 = 1e-6


class Missing(Exception):
    """A file that this PAPER_DIR does not have."""


def file(name: str) -> Path:
    if not (PAPER / name).is_file():
        raise Missing(f"no {name} in {PAPER}")
    return PAPER / name


EXPECTED = read_json(PAPER / "expected.json") if (PAPER / "expected.json").is_file() else {}
EXACT = EXPECTED.get("meta", {}).get("suggested_tolerance", {}).get("counts and ratios of counts", 1e-12)


@functools.cache
def scored(benchmark: str, variant: str, predictions: str, annotations: str | None):
    """(scores under the published protocol, predictions as read)."""
    task = get(benchmark)
    truth = None if annotations is None else task.load(file(annotations))
    given = task.read(file(predictions), truth)
    return task.score(truth, given, Options("published", variant)), given


# ---- each section of expected.json, computed -------------------------------------------------------------------------


def charades_sta() -> dict:
    scores, _ = scored("charades", "distime", "preds/charades_1b.json.gz", "gt/charades_sta_test.json.gz")
    recalls = {t: scores.metrics[f"R1@{t}"] / 100 for t in ("0.3", "0.5", "0.7")}
    hits = scores.details["hits"]
    printed = {f"{k}-{float(t):.2f}": value for k in (1, 5) for t, value in recalls.items()}  # one prediction a query
    exact = {f"R@1 IoU={t}": count / scores.details["N"] for t, count in hits.items()}
    exact |= {"n": scores.details["N"], "mIoU": scores.details["unfloored mIoU"] / 100, "hit_counts": hits}
    floored = scores.metrics["mIoU"]
    return {
        "printed": {"mIoU_pct_floored_per_sample": floored, "hits_fraction_with_1e-5_in_denominator": printed},
        "exact": exact,
    }


def anet_moment_retrieval() -> dict:
    scores, _ = scored("anet", "default", "preds/anet_mr_1b.json.gz", "gt/anet_val_2.json.gz")
    recalls = {f"R@1IOU{t}": scores.metrics[f"R1@{t}"] / 100 for t in ("0.3", "0.5", "0.7")}
    return recalls | {"mIOU": scores.metrics["mIoU"] / 100, "n": scores.counts["samples"]}


def qvhighlights() -> dict:
    own, given = scored("qvhighlights", "distime", "preds/qvhighlights_1b.json.gz", None)
    details, exact = own.details, own.details["exact"]
    printed = {
        "agg_metrics": own.metrics["R1 avg"],
        "r1": details["R1"],
        "mAP": details["mAP"],
        "mIoU": own.metrics["mIoU"] / 100,
        "invalid_predictions": details["invalid_predictions"],
        "total": details["total"],
    }
    unrounded = {
        "mAP_pct": exact["mAP"],
        "mAP_avg_pct": exact["mAP average"],
        "R1_pct": exact["R1"],
        "R1_hits": details["hits"],
        "R1_0.3_pct": exact["R1"]["0.3"],
        "mIoU_fraction": own.metrics["mIoU"] / 100,
        "n": own.counts["samples"],
        "n_multi_pred": sum(len(windows) > 1 for windows in given.windows),
        "n_multi_gt": sum(len(windows) > 1 for windows in given.truth.windows),
        "n_unique_qid": len(set(given.truth.qids)),
    }
    return {
        "distime_script": {"printed": printed, "exact": unrounded},
        "moment_detr_standalone_eval": moment_detr("preds/qvhighlights_1b.json.gz", "gt/qvhighlights_val.json.gz"),
    }


def moment_detr(predictions: str, annotations: str) -> dict:
    scores, _ = scored("qvhighlights", "moment_detr", predictions, annotations)
    return {"brief": scores.metrics} | scores.details


def nextgqa() -> dict:
    scores, _ = scored("nextgqa", "default", "preds/nextgqa_1b.json.gz", "gt/nextgqa_gsub_test.json.gz")
    return {
        "grounded_subset": scores.metrics | {"n": scores.counts["scored"]},
        "Acc@QA_by_type_grounded_subset": scores.details["Acc@QA by type, grounded"],
        "Acc@QA_by_type_all_8564": scores.details["Acc@QA by type, all in the file"],
    }


def d2vlm_charades(key: str) -> dict:
    section = EXPECTED["d2vlm_charades"]
    scores, given = scored("charades", "d2vlm", f"corner/{section[key]}", section["gt"])
    recalls = {f"IOU {t}": scores.metrics[f"R1@{t}"] for t in ("0.3", "0.5", "0.7")}
    return {
        "n_samples": scores.counts["scored"] + scores.counts["unparsed"],
        "n_counted_in_denominator": len(scores.per_sample["mIoU"]),
        "score": recalls | {"mIOU": scores.metrics["mIoU"] / 100},
    }


def timechat_tvg() -> dict:
    files = "corner/timechat_tvg_example.json", "gt/charades_timechat_test.json.gz"
    scores, _ = scored("charades", "timechat_sample", *files)
    return {f"IoU>={t}": scores.metrics[f"R1@{t}"] for t in ("0.3", "0.5", "0.7")}


RELEASE = "gt/qvhighlights_highlight_val_release.jsonl.gz"
SECTIONS = {
    "distime_1b.charades_sta": charades_sta,
    "distime_1b.anet_moment_retrieval": anet_moment_retrieval,
    "distime_1b.qvhighlights": qvhighlights,
    "distime_1b.nextgqa": nextgqa,
    "d2vlm_charades": functools.partial(d2vlm_charades, "input"),
    "d2vlm_charades (converted)": functools.partial(d2vlm_charades, "converted"),
    "timechat_tvg_example": timechat_tvg,
    "timechat_vhd_example": functools.partial(moment_detr, "corner/timechat_vhd_example.json.gz", RELEASE),
    "moment_detr_sample": functools.partial(moment_detr, "corner/moment_detr_sample_val_preds.jsonl.gz", RELEASE),
}
NOT_TO_REPRODUCE = {"official_seconds_here", "input", "converted", "gt", "note", "unit", "printed_line"}


def numbers(expected, place: tuple[str, ...] = ()):
    """(keys that lead there, number) of every number to reproduce."""
    if isinstance(expected, dict):
        for key, value in expected.items():
            if key not in NOT_TO_REPRODUCE:
                yield from numbers(value, (*place, key))
    elif expected == "nan" or (isinstance(expected, int | float) and not isinstance(expected, bool)):
        yield place, expected


def section_cases():
    for name in SECTIONS:
        expected = EXPECTED
        for key in name.removesuffix(" (converted)").split("."):
            expected = expected.get(key, {})
        for place, value in numbers(expected):
            yield pytest.param(name, place, value, id=f"{name}: {' / '.join(place)}")


@functools.cache
def computed(name: str) -> dict:
    return SECTIONS[name]()


@pytest.mark.parametrize(("name", "place", "expected"), list(section_cases()))
def test_published_score(name: str, place: tuple[str, ...], expected: float) -> None:
    try:
        value = computed(name)
    except Missing as missing:
        pytest.skip(str(missing))
    for key in place:
        value = value[key]
    tolerance = FLOAT32 if name == "distime_1b.charades_sta" and place == ("exact", "mIoU") else EXACT
    if isinstance(expected, int):
        assert value == expected
    elif expected == "nan":
        assert value is None or math.isnan(value)
    else:
        assert value == pytest.approx(expected, rel=tolerance, abs=tolerance)


# ---- single functions ------------------------------------------------------------------------------------------------


def corner(name: str) -> dict:
    return json.loads((PAPER / "corner" / name).read_text()) if (PAPER / "corner" / name).is_file() else {}


CASES, PARSED = corner("interval_cases.json"), corner("parse_cases.json")
OVERLAPS = {
    "charades_iou_float32": lambda pred, gt: iou_union(gt, pred, np.float32),
    "anet_iou": iou_epsilon,
    "qvh_cross_iou": iou_union,
    "qvh_paired_iou": iou_hull,
    "nextgqa_iou_iop": nextgqa_overlap,
    "timechat_iou": iou_hull,
    "dvc_youcook2_iou": lambda pred, gt: iou_epsilon(np.sort(pred), np.sort(gt)),
    "dvc_anet_soda_iou": iou_epsilon,
}


def interval_cases():
    for case in CASES.get("intervals", []):
        for name in case.keys() - {"pred", "gt"}:
            pair = f"{case['pred']} {case['gt']}"
            yield pytest.param(name, case["pred"], case["gt"], case[name], id=f"{name} {pair}")


@pytest.mark.parametrize(("name", "pred", "gt", "expected"), sorted(interval_cases(), key=lambda case: case.id))
def test_overlap_of_two_spans(name: str, pred: list, gt: list, expected) -> None:
    value = OVERLAPS[name](pred, gt)
    if expected == "nan":
        assert math.isnan(value)
    elif isinstance(expected, dict):  # the script divides by zero and stops; here it is no overlap
        assert value == 0
    else:
        assert np.asarray(value).tolist() == pytest.approx(expected, rel=EXACT, abs=EXACT)


@functools.cache
def all_precisions() -> np.ndarray:
    cases = CASES["average_precision"]
    lists = ([np.array(case[key], float) for case in cases] for key in ("pred_in_rank_order", "gt"))
    return average_precision(*lists)  # [cases, 10]


def precision_cases():
    for row, case in enumerate(CASES.get("average_precision", [])):
        for column, expected in enumerate(case["ap_per_threshold_0.50_to_0.95"]):
            yield pytest.param(row, column, expected, id=f"case {row}, IoU {0.5 + 0.05 * column:.2f}")


@pytest.mark.parametrize(("row", "column", "expected"), list(precision_cases()))
def test_average_precision_of_a_query(row: int, column: int, expected: float) -> None:
    assert all_precisions()[row, column] == pytest.approx(expected, rel=EXACT, abs=EXACT)


@pytest.mark.parametrize("case", PARSED.get("qvhighlights_list", []), ids=lambda case: repr(case["text"]))
def test_windows_in_a_text(case: dict) -> None:
    assert parse_windows(case["text"]) == case["parsed"]["value"]
