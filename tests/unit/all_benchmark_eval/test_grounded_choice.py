"""ReXTime and CG-Bench: multiple choice with its moments, by hand and against a second reading of each script.

``second_*`` go through one question after the other with plain numbers; they were written from the descriptions of the
scripts, not from ``metrics/grounded.py``.
"""

import random
from fractions import Fraction

import numpy as np
import pytest

from all_benchmark_eval.benchmark import BenchmarkError, get
from all_benchmark_eval.forms import Content
from tests.answers import answer_line
from tests.form_files import lines, scored, write

LONG = "abcdefghijk_0.0_150.0"  # a video of QVHighlights
OPTIONS = ["he sings", "she runs", "a dog", "rain"]
REX = [
    {"vid": vid, "question": f"Why {i}?", "options": OPTIONS, "answer": "From <s0> to <e0>, x", "ans": ans}
    | {"span": span, "category": "sequential", "duration": 60}
    for i, (vid, ans, span) in enumerate(
        [
            ("v_123456789ab", "A", [10, 20]),
            ("abcdefghijk_0.0_150.0", "B", [0, 10]),
            ("abcdefghijk_0.0_150.0", "C", [20, 30]),
        ]
    )
]
CG = [
    {"qid": i, "video_uid": f"u{i}", "question": f"Who {i}?", "choices": OPTIONS, "answer": "x", "right_answer": ans}
    | {"clue_intervals": clues, "sub_category": "Entity", "domain": "Life", "duration": 500}
    for i, (ans, clues) in enumerate([("A", [[0, 10], [20, 30]]), ("B", [[100, 110]]), ("C", [[5, 6]])])
]


def metrics(name, truth, given, folder, protocol="published", **options):
    found = scored(name, truth, given, folder, **options)[protocol]["metrics"]
    return {key: pytest.approx(value, abs=1e-6) for key, value in found.items()}


# ---- by hand ---------------------------------------------------------------------------------------------------------


def test_rextime_by_hand(tmp_path):
    said = lines(
        {"qid": "rextime_0", "pred_relevant_windows": [[10, 15, 0.3], [10, 20, 0.9]], "ans": "A"},
        {"qid": "rextime_1", "pred_relevant_windows": [[10, 0]], "ans": "B"},
    )
    half = {"R1@0.3": 50, "R1@0.5": 50, "R1@0.7": 0, "mIoU": 25, "Acc": 100, "Acc@IoU0.5": 50}
    assert metrics("rextime", REX, said, tmp_path) == half  # the first window; the third question is not in the file
    assert metrics("rextime", REX, said, tmp_path, variant="videomind") == half
    third = {"R1@0.3": 200 / 3, "R1@0.5": 200 / 3, "R1@0.7": 100 / 3, "mIoU": 50, "Acc": 200 / 3, "Acc@IoU0.5": 200 / 3}
    assert metrics("rextime", REX, said, tmp_path, "corrected") == third


def test_the_data_sets_own_lines_of_rextime_are_scored_and_not_asked(tmp_path):
    own = lines(
        *({"qid": f"anet_val{i}", "query": r["question"], "vid": r["vid"], "duration": 60, "ans": r["ans"]}
          | {"relevant_windows": [r["span"]]} for i, r in enumerate(REX))
    )  # fmt: skip
    said = lines({"qid": "anet_val2", "pred_relevant_windows": [[20, 30]], "ans": "D"})
    found = metrics("rextime", own, said, tmp_path)
    assert (found["mIoU"], found["Acc"], found["Acc@IoU0.5"]) == (100, 0, 0)
    with pytest.raises(BenchmarkError, match="'anet_val0': no question or options in the annotations"):
        get("rextime").questions(get("rextime").load(write(tmp_path / "t.jsonl", own)), "plain")


def test_cgbench_by_hand(tmp_path):
    said = lines(
        {"qid": 0, "pred": [[0, 10], [5, 10], [20, 30]], "conf": [1, 1, 1], "response": '```json\n{"result": A}\n```'},
        {"vid": "u1", "question": "Who 1?", "pred": [[100, 102.5]], "conf": [1], "response": "(b) of A, B or C"},
        {"qid": 2, "pred": [], "conf": [], "response": "?"},
    )
    everything = {"long-acc": 100, "mIoU": 62.5, "rec@IoU": 100 * (1 + 2 / 5) / 2, "acc@IoU": 70}
    assert metrics("cgbench", CG, said, tmp_path) == everything  # what is not read is not counted
    # the first span alone: 10 of 20 s; letters "`" and "b"
    first = {"long-acc": 100 / 3, "mIoU": 25, "rec@IoU": 100 * (1 + 2 / 5) / 3, "acc@IoU": 100 * (2 / 5) / 3}
    assert metrics("cgbench", CG, said, tmp_path, variant="videomind") == first
    corrected = metrics("cgbench", CG, said, tmp_path, "corrected")
    assert (corrected["mIoU"], corrected["rec@IoU"]) == (100 * 1.25 / 3, 100 * (1 + 2 / 5) / 3)


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ('```json\n{"result": "B"}\n```', True),
        ('```json\n{"result": C}\n```', False),
        ("```json\nB\n```", True),  # no object: any word
        ("A or B", True),
        ("the bee", None),
    ],
)
def test_what_cgbenchs_script_reads(text, right):
    task = get("cgbench")
    question = task.truths[0].read(as_content(CG)).questions[1]
    assert task.scripts["cgbench"].right(text, question) is right


def as_content(rows):
    return Content("x.json", "", rows=[(f"item {i}", row) for i, row in enumerate(rows)])


# ---- asked -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "rows"), [("rextime", REX), ("cgbench", CG)])
def test_each_question_is_asked_where_and_what_and_comes_back(name, rows, tmp_path):
    task = get(name)
    truth = task.load(write(tmp_path / "t.json", rows))
    for wording in ("d2vlm", "distime", "plain"):
        asked = task.questions(truth, wording)
        assert [line["id"].partition("-")[0] for line in asked] == ["where", "choice"] * 3
        assert "she runs" in asked[1]["conversations"][0]["value"]
    if name == "rextime":
        assert [line["video"] for line in asked[::2]][:2] == [
            "activitynet/v_123456789ab.mp4",
            "qvhighlights/abcdefghijk_0.0_150.0.mp4",
        ]
    ids = [line["id"] for line in asked]
    answers = {ids[0]: answer_line(ids[0], "x", [[1, 2], [3, 4]]), ids[1]: answer_line(ids[1], "(A) he sings")}
    answers |= {ids[2]: answer_line(ids[2], error="no video"), ids[4]: answer_line(ids[4], "never")}
    given = task.read(write(tmp_path / "p.json", task.from_answers(truth, answers, "plain")), truth)
    assert given.all_spans(0).tolist() == [[1, 2], [3, 4]] and given.choices == {0: "(A) he sings"}
    assert given.counts() == {"samples": 3, "scored": 1, "unparsed": 1, "missing": 1, "clipped": 0}
    assert task.explain(truth, given, truth.questions[0].id).read == "[1.0, 2.0], right choice"


BAD = [
    ("rextime", [REX[0] | {"ans": "E"}], "item 1: ans 'E' is not one of A, B, C, D"),
    ("rextime", [REX[0] | {"span": "x"}], "item 1: span is not"),
    ("rextime", [REX[0] | {"qid": 1}, REX[1] | {"qid": 1}], "'1' stands twice"),
    ("cgbench", [CG[0] | {"right_answer": "H"}], "item 1: right_answer 'H'"),
    ("cgbench", [CG[0] | {"clue_intervals": []}], "item 1: clue_intervals is not"),
    ("cgbench", [CG[0] | {"choices": "A"}], "item 1: choices is not a list"),
]


@pytest.mark.parametrize(("name", "rows", "why"), BAD)
def test_annotations_that_say_something_else_are_refused(name, rows, why, tmp_path):
    with pytest.raises(BenchmarkError, match=why):
        get(name).load(write(tmp_path / "t.json", rows))


# ---- a second reading ------------------------------------------------------------------------------------------------

LETTERS = "ABCD"


def seconds_of(spans):
    """The whole seconds that spans cover, as a set: what merging them means."""
    return {second for start, end in spans for second in range(start, end)}


def second_cgbench(answers, truths):
    long, rec, both, miou = [], [], [], []
    for (spans, text), (clues, right) in zip(answers, truths, strict=True):
        letters = [word for word in text.replace(",", " ").split() if word in LETTERS]
        good = right in letters
        if spans:
            ours, true = seconds_of(spans), seconds_of(clues)
            iou = Fraction(len(ours & true), len(ours | true)) if ours | true else Fraction(0)
            miou.append(float(iou))
            rec.append(sum(iou >= Fraction(t, 10) for t in range(1, 6)) / 5)
        if letters:
            long.append(good)
        if spans and letters:
            both.append(rec[-1] * good)
    return {"long-acc": long, "mIoU": miou, "rec@IoU": rec, "acc@IoU": both}


def second_videomind(answers, truths):
    long, rec, both, miou = [], [], [], []
    for (spans, text), (clues, right) in zip(answers, truths, strict=True):
        shared, total = 0, sum(e - s for s, e in clues)
        for start, end in spans[:1]:
            shared = sum(max(0, min(end, e) - max(start, s)) for s, e in clues)
            total += end - start
        union = total - shared if spans else 1
        iou = Fraction(shared, union) if union else Fraction(0)
        miou.append(float(np.float32(iou.numerator) / np.float32(iou.denominator)))
        rec.append(sum(iou >= Fraction(t, 10) for t in range(1, 6)) / 5)
        long.append(text[:1] == right)
        both.append(rec[-1] * long[-1])
    return {"long-acc": long, "mIoU": miou, "rec@IoU": rec, "acc@IoU": both}


@pytest.mark.parametrize("seed", range(3))
def test_cgbench_on_300_odd_answers(seed, tmp_path):
    rng, rows, answers, truths = random.Random(seed), [], [], []
    for i in range(300):
        clues, at = [], 0
        for _ in range(rng.randint(1, 3)):
            at += rng.randint(1, 9)
            clues.append([at, at + 10])
            at += 10
        spans = [
            rng.choice([clues[0], [clues[0][0], clues[0][0] + rng.randint(0, 10)], sorted(rng.sample(range(60), 2))])
            for _ in range(rng.randrange(4))
        ]
        right, text = rng.choice(LETTERS), ", ".join(rng.choices(LETTERS, k=rng.randrange(3))) or "none"
        rows.append(CG[0] | {"qid": i, "video_uid": f"u{i}", "clue_intervals": clues, "right_answer": right})
        answers.append((spans, text))
        truths.append((clues, right))
    said = lines(*({"qid": i, "pred": spans, "conf": [], "response": text} for i, (spans, text) in enumerate(answers)))
    found = scored("cgbench", rows, said, tmp_path, variant="all")
    for name, second in (("cgbench", second_cgbench), ("videomind", second_videomind)):
        expected = {metric: 100 * float(np.mean(values)) for metric, values in second(answers, truths).items()}
        assert found[f"published {name}"]["metrics"] == pytest.approx(expected, abs=1e-9), name


@pytest.mark.parametrize("seed", range(3))
def test_rextime_on_300_odd_answers(seed, tmp_path):
    rng, rows, said, ious, right = random.Random(seed), [], [], [], []
    for i in range(300):
        start = rng.randrange(50)
        end = start + 10 * rng.randint(0, 2)
        rows.append(REX[0] | {"qid": i, "question": f"q{i}", "span": [start, end], "ans": rng.choice(LETTERS)})
        windows = [
            rng.choice([[start, end], [end, start], [start, start + rng.choice([3, 5, 7])], [0, 99], [start, start]])
            for _ in range(rng.randint(0, 3))
        ]
        if rng.random() < 0.1:
            continue
        answer = rng.choice(LETTERS)
        said.append({"qid": i, "pred_relevant_windows": windows, "ans": answer})
        s, e = windows[0] if windows else (0, 0)
        hull = max(e, end) - min(s, start)
        shared = max(0, min(e, end) - max(s, start))
        ious.append(Fraction(shared, hull) if windows and hull else Fraction(0))
        right.append(answer == rows[-1]["ans"])
    expected = {f"R1@0.{t}": np.mean([iou >= Fraction(t, 10) for iou in ious]) for t in (3, 5, 7)}
    expected |= {"mIoU": np.mean([float(iou) for iou in ious]), "Acc": np.mean(right)}
    expected["Acc@IoU0.5"] = np.mean([good and iou >= Fraction(1, 2) for good, iou in zip(right, ious, strict=True)])
    found = scored("rextime", rows, lines(*said), tmp_path, variant="all")
    single = {"mIoU": np.mean([float(np.float32(float(iou))) for iou in ious])}
    for name, more in (("rextime", {}), ("videomind", single)):
        values = {metric: 100 * float(value) for metric, value in (expected | more).items()}
        assert found[f"published {name}"]["metrics"] == pytest.approx(values, abs=1e-9), name
