"""Every published number of E.T. Bench, under each of the four scripts, one test each.

Cases come from the files of PAPER_DIR; one whose files are missing skips. A file is scored once for all its numbers.
"""

import functools
import json
import math
import os
from pathlib import Path

import pytest

from all_benchmark_eval.benchmark import Options, get, read_json
from all_benchmark_eval.metrics import captions

pytestmark = pytest.mark.paper

PAPER = Path(os.environ.get("PAPER_DIR", Path(__file__).resolve().parents[2].parent / "shared" / "paper"))
if not PAPER.is_dir():
    pytest.skip(f"no published scores: {PAPER} is not a folder (set PAPER_DIR)", allow_module_level=True)

VARIANTS = {
    "etchat_original": "etchat",
    "etchat_original_strict_rvq": "etchat_strict",
    "d2vlm_new": "d2vlm",
    "d2vlm_new_looser": "d2vlm_looser",
}
TABLES = {  # published table -> ours among the details; those of METRICS are unrounded and in ``metrics``
    "per_task_source_unrounded": "per_task_source",
    "per_task_source_as_printed_5dp": "per_task_source_as_printed",
    "task_means_as_printed": "task_means_as_printed",
}
METRICS = ("task_means_unrounded", "merged_unrounded")
RANDOM = 0.03  # around the mean over the published seeds: likeness to random strings
TOLERANCES = {"SentSim": 1e-5, "mIoU": 1e-6, "mIoU_evi": 1e-6}  # absolute; the others: 1e-9, relative
SOURCES = {"DVC_Sim": ("dvc",), "SLC_Sim": ("slc",), "Sim_cap": ("dvc", "slc")}  # means over these tasks' SentSim


def published() -> dict:
    path = PAPER / "expected.json"
    return read_json(path).get("etbench", {}) if path.is_file() else {}


EXPECTED = published()


def leaves(table: dict, path: tuple[str, ...] = ()):
    for key, value in table.items():
        yield from leaves(value, (*path, key)) if isinstance(value, dict) else [((*path, key), value)]


CASES = [
    pytest.param(script, table, path, value, id="/".join((script, table, *path)))
    for script, tables in EXPECTED.items()
    for table in (*TABLES, *METRICS)
    for path, value in leaves(tables.get(table, {}))
]


@pytest.fixture(scope="module", autouse=True)
def no_java_left():
    yield
    for process in captions._running:
        process.close()


@functools.cache
def scored(script: str):
    path = PAPER / "corner" / EXPECTED[script]["input"]
    if not path.is_file():
        pytest.skip(f"no {path}")
    task = get("etbench")
    return task.score(None, task.read(path, None), Options("published", VARIANTS[script]))


def seeds(script: str, path: tuple[str, ...]) -> list[list[float]]:
    """The values over seeds of each random number that this one is or is a mean over."""
    values = {name: entry["values_over_seeds"] for name, entry in EXPECTED[script].get("random_dependent", {}).items()}
    if len(path) > 1:
        return [values["/".join(path)]] if "/".join(path) in values else []
    return [found for name, found in values.items() if name.split("/")[0] in SOURCES.get(path[-1], ())]


@pytest.mark.parametrize(("script", "table", "path", "value"), CASES)
def test_published_number(script, table, path, value):
    scores = scored(script)
    ours = scores.metrics if table in METRICS else scores.details[TABLES[table]]
    for key in path:
        ours = ours[key]
    random = seeds(script, path)
    if value == "nan":
        assert ours is None
    elif random and len(path) > 1:
        assert ours == pytest.approx(sum(random[0]) / len(random[0]), abs=RANDOM)
    elif random:
        assert ours == pytest.approx(value, abs=RANDOM)
    elif "as_printed" in table or isinstance(value, int):
        assert ours == value
    else:
        absolute = TOLERANCES.get(path[-1].split("@")[0], 1e-12)
        assert math.isclose(ours, value, rel_tol=1e-9, abs_tol=absolute)


@pytest.mark.parametrize("script", EXPECTED)
def test_every_sample_is_counted_once(script):
    scores = scored(script)
    counts = scores.counts
    assert counts["scored"] + counts["unparsed"] + counts["missing"] == counts["samples"]
    sources = scores.details["per_task_source"]
    assert counts["samples"] == sum(numbers["Total"] for task in sources.values() for numbers in task.values())


@pytest.mark.parametrize("script", EXPECTED)
def test_another_seed_changes_nothing_but_the_likeness_to_random_strings(script):
    path = PAPER / "corner" / EXPECTED[script]["input"]
    task, first = get("etbench"), scored(script)
    other = task.score(None, task.read(path, None), Options("published", VARIANTS[script], seed=1))
    for name, value in leaves(first.details["per_task_source"]):
        ours = functools.reduce(lambda table, key: table[key], name, other.details["per_task_source"])
        assert ours == pytest.approx(value, abs=RANDOM if name[-1] == "SentSim" else 0), name


@pytest.mark.parametrize("script", EXPECTED)
def test_corrected_gives_no_credit_without_an_answer(script, tmp_path):
    path = PAPER / "corner" / EXPECTED[script]["input"]
    if not path.is_file():
        pytest.skip(f"no {path}")
    empty = tmp_path / "empty.json"
    empty.write_text(json.dumps([row | {"a": ""} for row in read_json(path)]))
    task = get("etbench")
    scores = task.score(None, task.read(empty, None), Options("corrected", VARIANTS[script], skip_meteor=True))
    assert scores.counts["unparsed"] == scores.counts["samples"]
    assert {value for value in scores.metrics.values() if value is not None} == {0.0}
