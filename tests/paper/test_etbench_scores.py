"""Every published number of E.T. Bench, under each of the four scripts, one test each.

Cases come from the files of PAPER_DIR; one whose files are missing skips. A file is scored once for all its numbers.
"""

import functools
import json
import math

import numpy as np
import pytest

from all_benchmark_eval.benchmark import Options, get, read_json
from all_benchmark_eval.etbench.dense import Dense
from tests.paper.folder import PAPER, leaves

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
ERRORS = 4  # standard errors that two draws of random strings may lie apart
TOLERANCES = {"SentSim": 1e-5, "mIoU": 1e-6, "mIoU_evi": 1e-6}  # absolute; the others: 1e-9, relative
SOURCES = {"DVC_Sim": ("dvc",), "SLC_Sim": ("slc",), "Sim_cap": ("dvc", "slc")}  # means over these tasks' SentSim


def published() -> dict:
    path = PAPER / "expected.json"
    return read_json(path).get("etbench", {}) if path.is_file() else {}


EXPECTED = published()


CASES = [
    pytest.param(script, table, path, value, id="/".join((script, table, *path)))
    for script, tables in EXPECTED.items()
    for table in (*TABLES, *METRICS)
    for path, value in leaves(tables.get(table, {}))
]


@functools.cache
def scored(script: str):
    return run(script, 0)[0]


class Drawn:
    """What the random strings do to the SentSim of each task and source, as the scorer computes it."""

    def __init__(self):
        self.variances: dict[str, tuple[float, float]] = {}  # of our draw, and of one with a string a pair
        self.source = ""

    def score(self, scorer: Dense, source):
        """``Dense.score``, with the source's name kept."""
        self.source = f"{source.samples[0].task}/{source.samples[0].source}"
        return SCORE(scorer, source)

    def similarities(self, scorer: Dense, groups):
        """``Dense._similarities``, with the variance of its mean: the likeness of a pair varies over random strings by
        at most as much as over all such pairs, a string counts as often as it stands in one."""
        random, pairs, weights = set(scorer._random), [], []
        for group in groups:
            drawn = [pair for pair in group if pair[1] in random]
            pairs, weights = pairs + drawn, weights + [1 / len(groups) / len(group)] * len(drawn)
        if pairs:
            spread = scorer.model.similarity(*zip(*pairs, strict=True)).var()
            strings = np.unique([true for _, true in pairs], return_inverse=True)[1]
            together = np.bincount(strings, weights)
            self.variances[self.source] = spread * (together**2).sum(), spread * np.square(weights).sum()
        return SIMILARITIES(scorer, groups)


SCORE, SIMILARITIES = Dense.score, Dense._similarities


@functools.cache
def run(script: str, seed: int):
    """The scores of a published file, and what random strings do to them."""
    path = PAPER / "corner" / EXPECTED[script]["input"]
    if not path.is_file():
        pytest.skip(f"no {path}")
    task, drawn = get("etbench"), Drawn()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Dense, "score", lambda scorer, source: drawn.score(scorer, source))
        patch.setattr(Dense, "_similarities", lambda scorer, groups: drawn.similarities(scorer, groups))
        scores = task.score(None, task.read(path, None), Options("published", VARIANTS[script], seed=seed))
    return scores, drawn.variances


def apart(script: str, sources: list[str], draws: int) -> float:
    """How far a number of ours may lie from the mean of ``draws`` published ones, for the strings that were drawn.

    A mean over sources varies by no more than the one that varies most.
    """
    variances = [run(script, 0)[1].get(source, (0.0, 0.0)) for source in sources]
    return ERRORS * max(ours + theirs / draws for ours, theirs in variances) ** 0.5 + TOLERANCES["SentSim"]


def seeds(script: str, path: tuple[str, ...]) -> dict[str, list[float]]:
    """task/source -> the values over seeds, of each random number that this one is or is a mean over."""
    found = {}
    for name, entry in EXPECTED[script].get("random_dependent", {}).items():
        task, source, number = name.split("/")
        if [task, source, number] == list(path) or (len(path) == 1 and task in SOURCES.get(path[0], ())):
            found[f"{task}/{source}"] = entry["values_over_seeds"]
    return found


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
        (values,) = random.values()
        assert ours == pytest.approx(sum(values) / len(values), abs=apart(script, list(random), len(values)))
    elif random:
        assert ours == pytest.approx(value, abs=apart(script, list(random), 1))
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
    (first, variances), (other, others) = run(script, 0), run(script, 1)
    for name, value in leaves(first.details["per_task_source"]):
        ours, source = functools.reduce(lambda table, key: table[key], name, other.details["per_task_source"]), name[:2]
        drawn = sum(found.get("/".join(source), (0.0, 0.0))[0] for found in (variances, others))
        assert ours == pytest.approx(value, abs=ERRORS * drawn**0.5 if name[-1] == "SentSim" else 0), name


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
