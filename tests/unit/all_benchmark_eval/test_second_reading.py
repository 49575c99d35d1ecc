"""Every rule and every benchmark of moments against the second reading of tests/second_reading.py.

300 oddities at a time: ties at thresholds, reversed, of no length, several, none, shares and units.
"""

import random
from fractions import Fraction

import pytest

from all_benchmark_eval.benchmark import get, names
from all_benchmark_eval.metrics.rules import RULES, RuledBenchmark
from tests.form_files import lines, scored
from tests.second_reading import COUNT, JUDGES, LENGTH, SEEDS, iou, odd_answers, odd_truths, read_again, turned

KINDS = {  # how a pair is written
    "dash": "{0} - {1}", "to": "{0} to {1}", "and": "{0} and {1}", "wave": "{0}~{1}", "en dash": "{0} – {1}",
    "percent": "{0} - {1}%", "percent to": "{0}% to {1}%", "s dash": "{0}s - {1}s",
    "seconds": "{0} seconds to {1} seconds", "clock": "{2} - {3}", "alone": "{0}",
}  # fmt: skip
AS_IS = {  # script -> the kinds whose numbers are the pair
    "timelens": {"dash", "to", "and", "wave", "en dash", "percent", "percent to", "seconds", "clock"},
    "lmms_charades": {"dash", "to", "en dash", "percent", "s dash", "clock"},
    "exactly_one": {"dash", "to", "percent"},
    "time_r1": {"to", "and"},
    "extremewhen": {"dash", "to", "wave", "en dash", "percent"},
}
UNITS = ("percent", "percent to", "s dash", "seconds", "clock")  # our reader, for scripts without one of their own


def clock(seconds: int) -> str:
    return f"{seconds // 60}:{seconds % 60:02d}"


def written(kind: str, pair) -> str:
    return KINDS[kind].format(*pair, *map(clock, pair))


def pairs_in(script: str, kind: str, pairs: list) -> list:
    """What a script finds where all pairs of a text are written in one way."""
    if script not in AS_IS:
        shares = [[share * LENGTH // 100 for share in pair] for pair in pairs]
        return turned(shares if kind.startswith("percent") else pairs)
    if kind == "clock" and script in ("exactly_one", "extremewhen"):  # the seconds of one and the minutes of the next
        return [[start % 60, end // 60] for start, end in pairs]
    if kind == "alone" and script == "timelens":
        return [[a[0], b[0]] for a, b in zip(pairs[::2], pairs[1::2], strict=False)]
    return pairs if kind in AS_IS[script] else []


# ---- every rule, from pairs and from texts ---------------------------------------------------------------------------


def in_file(answers: list, truths: list, make) -> dict:
    rows = enumerate(zip(answers, truths, strict=True))
    return {f"v{i}.mp4>>>query {i}>>>{true}": make(pairs) for i, (pairs, true) in rows if pairs is not None}


def annotations(truths: list) -> dict:
    return {f"v{i}": {"duration": LENGTH, "spans": [true], "queries": [f"query {i}"]} for i, true in enumerate(truths)}


def assert_scripts(scripts, found: dict, answers: list, truths: list) -> None:
    for script in scripts:
        expected = read_again(script, answers, truths)
        assert found[f"published {script}"]["metrics"] == pytest.approx(expected, abs=1e-9), script


@SEEDS
def test_every_rule_on_odd_pairs(seed, tmp_path):
    rng = random.Random(seed)
    truths = odd_truths(rng)
    answers = odd_answers(rng, truths)
    given = in_file(answers, truths, lambda p: {"timestamps": p})
    found = scored("charades_timelens", annotations(truths), given, tmp_path, variant="all")
    assert_scripts(RULES, found, answers, truths)


@SEEDS
@pytest.mark.parametrize(
    ("scripts", "kinds"), [(tuple(AS_IS), tuple(KINDS)), (("videomind", "unitime", "default"), UNITS)]
)
def test_every_rule_on_odd_texts(scripts, kinds, seed, tmp_path):
    rng = random.Random(100 + seed)
    truths = odd_truths(rng)
    answers = odd_answers(rng, truths, most=4)
    kinds = [rng.choice(kinds) for _ in truths]
    texts = {
        f"v{i}.mp4>>>query {i}>>>{true}": f"It is seen: {'. Also '.join(written(kind, pair) for pair in pairs)}."
        for i, (true, kind, pairs) in enumerate(zip(truths, kinds, answers, strict=True))
        if pairs is not None
    }
    found = scored("charades_timelens", annotations(truths), texts, tmp_path, variant="all")
    for script in scripts:
        own = [p if p is None else pairs_in(script, kind, p) for kind, p in zip(kinds, answers, strict=True)]
        expected = {k: v for k, v in read_again(script, own, truths).items() if "R5" not in k}
        metrics = found[f"published {script}"]["metrics"]
        assert {name: metrics[name] for name in expected} == pytest.approx(expected, abs=1e-9), script


# ---- the benchmarks that have files of their own ---------------------------------------------------------------------


def by_kind(script: str, answers: list, truths: list, kinds: list) -> dict[str, float]:
    """All queries, and those of each kind that the file answers."""
    found = read_again(script, answers, truths)
    for kind in sorted(set(kinds)):
        own = [i for i, of in enumerate(kinds) if of == kind]
        part = read_again(script, [answers[i] for i in own], [truths[i] for i in own])
        found |= {f"{name}/{kind}": value for name, value in part.items()}
    return found


@SEEDS
def test_tvgbench_is_time_r1s_rule_over_its_lines_and_kinds(seed, tmp_path):
    rng = random.Random(seed)
    truths, kinds = odd_truths(rng), [rng.choice(("Pose", "Object", "Scene")) for _ in range(COUNT)]
    answers = odd_answers(rng, truths)
    rows = [
        {"path": f"x/v{i}.mp4", "question": f"q{i}", "answer": f"{s}-{e}", "duration": LENGTH, "qsemtype": kind}
        for i, ((s, e), kind) in enumerate(zip(truths, kinds, strict=True))
    ]
    said = lines(
        *(
            {"qid": f"x_{i}", "pred": pairs[-1] if pairs else [None, None], "target": true}
            | {
                "output_text": " Then ".join(rng.choice(("{} to {}.", "{} and {}.")).format(*pair) for pair in pairs)
                or "?"
            }
            for i, (pairs, true) in enumerate(zip(answers, truths, strict=True))
            if pairs is not None
        )
    )
    found = scored("tvgbench", rows, said, tmp_path)["published"]["metrics"]
    assert found == pytest.approx(by_kind("time_r1", answers, truths, kinds), abs=1e-9)


@SEEDS
@pytest.mark.parametrize("name", ["hirest", "tacos", "ego4d_nlq"])
def test_sets_of_moment_detrs_lines_rank_by_score(name, seed, tmp_path):
    rng = random.Random(seed)
    truths = [true for true in odd_truths(rng) if true[0] < true[1]]
    answers = [pairs or None for pairs in odd_answers(rng, truths)]
    rows = [
        {"vid": f"v{i}", "query": f"query {i}", "duration": LENGTH, "relevant_windows": [true]}
        for i, true in enumerate(truths)
    ]
    if name == "hirest":
        clip = {"relevant": True, "clip": True, "v_duration": LENGTH}
        rows = {f"query {i}": {f"v{i}.mp4": clip | {"bounds": true}} for i, true in enumerate(truths)}
    given = []
    for i, pairs in enumerate(answers):
        ranked = [[*pair, 1 - place / 10] for place, pair in enumerate(pairs or ())]
        rng.shuffle(ranked)
        given += [{"vid": f"v{i}", "query": f"query {i}", "pred_relevant_windows": ranked}] if ranked else []
    found = scored(name, rows if name == "hirest" else lines(*rows), lines(*given), tmp_path, variant="all")
    assert list(get(name).variants) == ["videomind", "unitime", "default"]
    assert_scripts(get(name).variants, found, answers, truths)


@SEEDS
def test_activitynet_rtl_is_a_mean_over_videos(seed, tmp_path):
    """LITA: no two times are the whole video; spans are ordered and cut to the video; P is at 0.5."""
    rng = random.Random(seed)
    truths, videos = odd_truths(rng), [f"v{rng.randrange(40)}" for _ in range(COUNT)]
    lengths = {video: rng.choice((90, 120, LENGTH)) for video in videos}
    answers = odd_answers(rng, truths)
    rows = [
        {"question_id": str(i), "vid": v, "duration": lengths[v], "question": f"q{i}", "answer": f"<{s}> <{e}> x"}
        for i, ((s, e), v) in enumerate(zip(truths, videos, strict=True))
    ]
    said, own = {}, {}
    for i, (pairs, true, video) in enumerate(zip(answers, truths, videos, strict=True)):
        if pairs is None:
            continue
        said[str(i)] = "In " + ", ".join(f"<{s}> <{e}>" for s, e in pairs) + (" or <3>" if not pairs else "")
        inside = [
            [min(time, lengths[video]) for time in sorted(pair)]
            for pair in (pairs[0] if pairs else [0, lengths[video]], true)
        ]
        own.setdefault(video, []).append(iou(*inside))
    found = scored("activitynet_rtl", rows, said, tmp_path)["published"]["metrics"]
    means = [
        (sum(ious) / len(ious), Fraction(sum(value >= Fraction(1, 2) for value in ious), len(ious)))
        for ious in own.values()
    ]
    expected = {
        name: 100 * float(sum(column) / len(means))
        for name, column in zip(("mIoU", "P@0.5"), zip(*means, strict=True), strict=True)
    }
    assert found == pytest.approx(expected, abs=1e-9)


@SEEDS
def test_extremewhenbench_counts_every_question(seed, tmp_path):
    rng = random.Random(seed)
    truths, kinds = odd_truths(rng), [rng.choice(("talk", "fall")) for _ in range(COUNT)]
    answers = odd_answers(rng, truths)
    rows = [
        {"qid": f"e{i}", "video_id": f"v{i}", "source_corpus": "MLVU", "question": "When?", "category": kind}
        | {"correct_interval": true, "video_duration_s": LENGTH}
        for i, (true, kind) in enumerate(zip(truths, kinds, strict=True))
    ]
    ways = [KINDS[kind] for kind in ("dash", "to", "wave", "en dash")]
    said = {
        f"e{i}": "So: " + ", then ".join(rng.choice(ways).format(*pair) for pair in pairs)
        for i, pairs in enumerate(answers)
        if pairs is not None
    }
    found = scored("extremewhenbench", rows, said, tmp_path)["published"]["metrics"]
    expected = by_kind("extremewhen", answers, truths, kinds) | {
        "parse_fail": 100 * sum(not p for p in answers) / COUNT
    }
    assert found == pytest.approx(expected, abs=1e-9)


def test_no_rule_is_left_out():
    own = {name for name in names() if isinstance(get(name), RuledBenchmark)}
    as_such = {"moment_retrieval", "charades_timelens", "activitynet_timelens", "qvhighlights_timelens"}
    assert own - as_such == {"tvgbench", "hirest", "tacos", "ego4d_nlq", "activitynet_rtl", "extremewhenbench"}
    assert get("charades_timelens").variants == tuple(RULES) == tuple(JUDGES)
