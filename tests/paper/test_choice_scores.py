"""Every published number of MVBench, LongVideoBench and Video-MME, one test each.

Cases come from the files of PAPER_DIR; one whose files are missing skips. A file is scored once for all its numbers.
"""

import functools

import pytest

from all_benchmark_eval.benchmark import Options, get, read_json
from tests.paper.folder import PAPER, leaves

EXPECTED = read_json(PAPER / "expected.json") if (PAPER / "expected.json").is_file() else {}
DISTIME = EXPECTED.get("distime_1b", {})
COUNTS = 1e-12  # ratios of counts


@functools.cache
def scored(name: str, variant: str, predictions: str, annotations: str | None = None):
    for path in filter(None, (predictions, annotations)):
        if not (PAPER / path).exists():
            pytest.skip(f"no {PAPER / path}")
    task = get(name)
    truth = task.load(PAPER / annotations) if annotations else None
    return task.score(truth, task.read(PAPER / predictions, truth), Options("published", variant))


def ids(cases: list) -> list[str]:
    return ["/".join(map(str, case[:-1])) for case in cases]


# ---- MVBench ---------------------------------------------------------------------------------------------------------

MVBENCH = DISTIME.get("mvbench", {})
MVBENCH_CASES = [("recomputed", name, value) for name, value in MVBENCH.get("recomputed", {}).items()]
MVBENCH_CASES += [("counts", name, value) for name, value in MVBENCH.get("counts_correct_total", {}).items()]


@pytest.mark.parametrize(("table", "name", "value"), MVBENCH_CASES, ids=ids(MVBENCH_CASES))
def test_mvbench_as_distime_scores_it(table, name, value):
    scores = scored("mvbench", "distime", "preds/mvbench_1b.json.gz")
    if table == "counts":
        assert [scores.details["tasks"][name][key] for key in ("correct", "total")] == value
    else:
        assert scores.metrics[name] == pytest.approx(value, rel=COUNTS)


D2VLM_CASES = [(*path, value) for path, value in leaves(EXPECTED.get("d2vlm_mvbench", {})) if path != ("unit",)]


@pytest.mark.parametrize(("task", "key", "value"), D2VLM_CASES, ids=ids(D2VLM_CASES))
def test_mvbench_as_d2vlm_scores_it(task, key, value):
    scores = scored("mvbench", "d2vlm", "corner/d2vlm_mvbench")
    if key == "pct":
        assert scores.metrics["Avg" if task == "Total" else task] == pytest.approx(value, rel=COUNTS)
    else:
        assert (scores.details["Total"] if task == "Total" else scores.details["tasks"][task])[key] == value


# ---- LongVideoBench --------------------------------------------------------------------------------------------------

LONG_CASES = [
    (frames, *path, value)
    for frames, entry in DISTIME.get("longvideobench", {}).items()
    for path, value in leaves(entry.get("accuracy", {}))
]


@pytest.mark.parametrize(("frames", "group", "key", "value"), LONG_CASES, ids=ids(LONG_CASES))
def test_longvideobench(frames, group, key, value):
    predictions = f"preds/longvideobench_{frames}_1b.json.gz"
    scores = scored("longvideobench", "default", predictions, "gt/longvideobench_val.json.gz")
    if key == "accuracy":
        name = "accuracy" if group == "overall" else group
        assert scores.metrics[name] == pytest.approx(value, rel=COUNTS)
    else:
        assert scores.details["accuracy"][group][key] == value


# ---- Video-MME -------------------------------------------------------------------------------------------------------

VIDEOMME = EXPECTED.get("videomme", {})
VIDEOMME_CASES = [
    (table, path, value)
    for table in ("unrounded", "printed_pct_1dp")
    for path, value in leaves(VIDEOMME.get(table, {}))
]
VIDEOMME_CASES += [("counts", (name,), VIDEOMME[name]) for name in ("n_questions", "unanswered") if name in VIDEOMME]


@pytest.mark.parametrize(
    ("table", "path", "value"), VIDEOMME_CASES, ids=["/".join((table, *path)) for table, path, _ in VIDEOMME_CASES]
)
def test_videomme(table, path, value):
    scores = scored("videomme", "d2vlm", "corner/videomme.json.gz")
    if table == "counts":
        assert scores.counts[{"n_questions": "samples", "unanswered": "unparsed"}[path[0]]] == value
        return
    found = scores.details["accuracy" if table == "unrounded" else "as_printed"]
    assert functools.reduce(lambda entry, key: entry[key], path, found) == pytest.approx(value, rel=COUNTS)
