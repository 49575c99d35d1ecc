"""Every published number of the dense-captioning benchmarks, and every worked caption score, one test each.

Cases come from the files of PAPER_DIR; one whose files are missing skips. A file is scored once for all its numbers.
"""

import functools
import math

import numpy as np
import pytest

from all_benchmark_eval.benchmark import Options, get, read_json
from all_benchmark_eval.metrics import captions
from tests.paper.folder import PAPER

RELATIVE = 1e-9
OURS = {  # published name -> ours, where they differ
    **{"CIDER": "CIDEr", "SODA_c_2": "SODA_c", "soda_c": "SODA_c", "F1_Score": "F1", "Rouge-L": "ROUGE_L"},
    **{"Precision_Mean": "Precision", "Recall_Mean": "Recall", "Para_CIDER": "Para_CIDEr"},
    **{f"Bleu_{n}": f"BLEU_{n}" for n in range(1, 5)},
}
SETS = {  # path into expected.json -> benchmark, variant, predictions, annotations
    ("distime_1b", "youcook2_dvc"): (
        *("youcook2", "default", "preds/youcook2_dvc_1b.json.gz", "gt/youcook2_val.json.gz"),
    ),
    ("distime_1b", "anet_dvc", "as_published_percent_scaling"): (
        *("anet_dvc", "percent", "preds/anet_dvc_1b.jsonl.gz", "gt/anet_val_2.json.gz"),
    ),
    ("distime_1b", "anet_dvc", "times_taken_as_seconds"): (
        *("anet_dvc", "seconds", "preds/anet_dvc_1b.jsonl.gz", "gt/anet_val_2.json.gz"),
    ),
    ("d2vlm_youcook2",): ("youcook2", "default", "corner/d2vlm_youcook2.json", "corner/d2vlm_youcook2_gt.json"),
    ("timechat_dvc_example",): (
        *("youcook2", "default", "corner/timechat_dvc_example.json.gz", "gt/youcook2_val.json.gz"),
    ),
}
PER_VIDEO = "expected_per_video_youcook2_1b.json.gz"  # of the first set
CONVERTED = "corner/d2vlm_youcook2_converted.json"  # of d2vlm_youcook2.json
NOT_NUMBERS = ("unit", "note", "official_seconds_here", "input", "converted", "gt")


def here(name: str) -> bool:
    return (PAPER / name).is_file()


def section(path: tuple[str, ...]) -> dict:
    found = read_json(PAPER / "expected.json") if here("expected.json") else {}
    for key in path:
        found = found.get(key, {})
    return found


def numbers(values: dict, group: str = "") -> list[tuple[str, str, float]]:
    """(group, name, value) of every number below ``values``."""
    found = []
    for key, value in values.items():
        if isinstance(value, dict):
            found += numbers(value, key)
        elif key not in NOT_NUMBERS:
            found.append((group, key, value))
    return found


@functools.cache
def scored(path: tuple[str, ...]):
    benchmark, variant, predictions, annotations = SETS[path]
    task = get(benchmark)
    truth = task.load(PAPER / annotations)
    return task.score(truth, task.read(PAPER / predictions, truth), Options("published", variant))


def need(*names: str) -> None:
    absent = [name for name in names if not here(name)]
    if absent:
        pytest.skip(f"no {', '.join(absent)} in {PAPER}")


CASES = [
    pytest.param(path, group, name, value, id=".".join(filter(None, (*path, group, name))))
    for path in SETS
    for group, name, value in numbers(section(path))
]


@pytest.mark.parametrize(("path", "group", "name", "value"), CASES)
def test_published_number(path, group, name, value):
    need(*SETS[path][2:])
    scores = scored(path)
    if name == "n_videos":
        ours = scores.counts["samples"]
    elif name == "n_preds":
        ours = scores.details["predicted events per video"]
    else:
        ours = scores.metrics[OURS.get(name, name)] / (1 if group == "printed_pct" else 100)
    assert ours == pytest.approx(value, rel=RELATIVE)


PUBLISHED_LISTS = read_json(PAPER / PER_VIDEO) if here(PER_VIDEO) else {}


@pytest.mark.parametrize("name", [name for name in PUBLISHED_LISTS if name not in ("key", "SODA_c_1")])  # always -1
def test_published_number_of_every_video(name):
    path = next(iter(SETS))
    need(*SETS[path][2:])
    videos, scores = PUBLISHED_LISTS["key"], scored(path)
    if name == "n_preds":
        given = read_json(PAPER / SETS[path][2])
        ours = [len(given.get(video, [])) for video in videos]
    else:
        ours = [scores.per_sample[OURS.get(name, name)][video] for video in videos]
    np.testing.assert_allclose(ours, PUBLISHED_LISTS[name], rtol=RELATIVE, atol=0)


@pytest.mark.parametrize("video", read_json(PAPER / CONVERTED) if here(CONVERTED) else [])
def test_d2vlm_answer_is_converted_as_published(video):
    path = ("d2vlm_youcook2",)
    need(*SETS[path][2:])
    task = get("youcook2")
    truth = task.load(PAPER / SETS[path][3])
    from_answers, converted = (task.read(PAPER / name, truth) for name in (SETS[path][2], CONVERTED))
    from_answers = from_answers.published
    row = truth.names.index(video)
    assert from_answers.captions[row] == converted.captions[row]
    assert from_answers.spans[row] == converted.spans[row]


# ---- worked cases of single scores -----------------------------------------------------------------------------------

TEXT = "corner/text_gold.json.gz"
GOLD = read_json(PAPER / TEXT) if here(TEXT) else {}
GROUPS = [list(zip(group["hyp"], group["ref"], strict=True)) for group in GOLD.get("groups", [])]
PAIRS = [(pair["hyp"], pair["ref"]) for pair in GOLD.get("meteor_pairs", [])]
SEGMENTS = {
    "meteor_segments": lambda: _split(captions.meteor_pairs(sum(GROUPS, []))),
    "meteor_segments_hyp_and_ref_swapped": lambda: _split(captions.meteor_pairs([p[::-1] for p in sum(GROUPS, [])])),
    "cider_segments": lambda: captions.cider_pairs(GROUPS),
    "rouge_l_segments": lambda: _split(captions.rouge_l_pairs(sum(GROUPS, []))),
}
CORPUS = {
    "meteor_corpus": lambda: captions.meteor(GROUPS),
    "cider_corpus": lambda: captions.cider(GROUPS),
    "rouge_l_corpus": lambda: captions.rouge_l(GROUPS),
    "bleu_1_to_4_corpus": lambda: captions.bleu(GROUPS),
}


def _split(values):
    return np.split(values, np.cumsum([len(group) for group in GROUPS])[:-1])


@functools.cache
def computed(name: str):
    return (SEGMENTS | CORPUS)[name]()


@functools.cache
def tokens() -> dict[str, str]:
    texts = [case["text"] for case in GOLD["ptb_tokenize"]]
    return dict(zip(texts, captions.tokenize(texts), strict=True))


@pytest.mark.parametrize("case", GOLD.get("ptb_tokenize", []), ids=lambda case: ascii(case["text"])[:60])
def test_tokens(case):
    assert tokens()[case["text"]] == case["tokens"]


@functools.cache
def pair_scores() -> np.ndarray:
    return captions.meteor_pairs(PAIRS)


@pytest.mark.parametrize("number", range(len(PAIRS)), ids=lambda number: " / ".join(PAIRS[number]))
def test_meteor_of_a_pair(number):
    assert pair_scores()[number] == pytest.approx(GOLD["meteor_pairs"][number]["meteor"], rel=RELATIVE)


@pytest.mark.parametrize("name", SEGMENTS | CORPUS)
@pytest.mark.parametrize("number", range(len(GROUPS)))
def test_score_of_a_group(number, name):
    assert computed(name)[number] == pytest.approx(np.array(GOLD["groups"][number][name]), rel=RELATIVE)


def test_every_expected_section_is_covered():
    """A published number of dense captions that no set above computes would go unseen."""
    known = {path[0] if path[0] != "distime_1b" else path[1] for path in SETS}
    expected = section(()) | section(("distime_1b",))
    unseen = [name for name in expected if ("dvc" in name or "youcook2" in name) and name not in known]
    assert not unseen
    assert all(math.isfinite(value) for path in SETS for *_, value in numbers(section(path)))
