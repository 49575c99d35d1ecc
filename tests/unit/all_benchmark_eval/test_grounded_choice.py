"""ReXTime and CG-Bench: multiple choice with its moments, by hand and against a second reading (second_reading.py)."""

import random
from fractions import Fraction

import numpy as np
import pytest

from all_benchmark_eval.benchmark import BenchmarkError, get
from all_benchmark_eval.forms import Content
from tests.answers import answer_line
from tests.form_files import lines, scored, write
from tests.second_reading import COUNT, LENGTH, LIMITS, SEEDS, cells, iou, odd_answers, odd_truths, single, turned

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

CHOICES = {  # text -> the letters that CG-Bench's script sees, the one that VideoMind's sees, the one that it says
    "A": ("A", "A", "A"), "(B)": ("B", "B", "B"), "C. a dog": ("C", "C", "C"), "C. rain": ("C", "C", ""),
    "d": ("", "D", "D"),
    '```json\n{"result": "B"}\n```': ("B", "", "B"), '```json\n{"result": C}\n```': ("C", "", "C"),
    "A, B": ("AB", "A", ""), "I cannot say.": ("", "", ""), "": ("", "", ""),
}  # fmt: skip


def means(columns: dict) -> dict[str, float]:
    return {name: 100 * float(np.mean([float(value) for value in column])) for name, column in columns.items()}


@SEEDS
def test_rextime_holds_the_first_window_against_the_true_one(seed, tmp_path):
    rng = random.Random(seed)
    truths = odd_truths(rng)
    answers, texts = odd_answers(rng, truths), [rng.choice(list(CHOICES)) for _ in truths]
    right = [rng.choice("ABCD") for _ in truths]
    rows = [
        {
            "vid": f"v_{i:011d}",
            "question": f"q{i}",
            "options": OPTIONS,
            "ans": ans,
            "span": true,
            "duration": LENGTH,
            "qid": f"r{i}",
        }
        for i, (true, ans) in enumerate(zip(truths, right, strict=True))
    ]
    there = [i for i, pairs in enumerate(answers) if pairs is not None]
    said = lines(*({"qid": f"r{i}", "pred_relevant_windows": answers[i], "ans": texts[i]} for i in there))
    found = scored("rextime", rows, said, tmp_path, variant="all")
    ious = [iou(answers[i][0], truths[i]) if answers[i] else Fraction(0) for i in there]
    for script, place in (("rextime", 2), ("videomind", 1)):
        good = [CHOICES[texts[i]][place] == right[i] for i in there]
        columns = {name: [value >= limit for value in ious] for name, limit in LIMITS.items()} | {"Acc": good}
        columns["mIoU"] = list(map(single if script == "videomind" else float, ious))
        columns["Acc@IoU0.5"] = [mark and value >= Fraction(1, 2) for mark, value in zip(good, ious, strict=True)]
        assert found[f"published {script}"]["metrics"] == pytest.approx(means(columns), abs=1e-9), script


@SEEDS
def test_cgbench_holds_all_spans_against_all_clues(seed, tmp_path):
    rng = random.Random(seed)
    clues = [
        turned([[s, s + 10 * rng.randrange(1, 4)] for s in rng.sample(range(0, 150, 10), rng.randint(1, 3))])
        for _ in range(COUNT)
    ]
    answers = odd_answers(rng, [own[0] for own in clues])
    answers = [pairs and turned(pairs) for pairs in answers]
    texts, right = [rng.choice(list(CHOICES)) for _ in clues], [rng.choice("ABCD") for _ in clues]
    rows = [
        {
            "qid": i,
            "video_uid": f"u{i}",
            "question": f"q{i}",
            "choices": OPTIONS,
            "right_answer": ans,
            "clue_intervals": own,
        }
        for i, (own, ans) in enumerate(zip(clues, right, strict=True))
    ]
    there = [i for i, pairs in enumerate(answers) if pairs is not None]
    said = lines(*({"qid": i, "pred": answers[i], "conf": [], "response": texts[i]} for i in there))
    found = scored("cgbench", rows, said, tmp_path, variant="all")

    def share(value: Fraction) -> Fraction:
        return Fraction(sum(value >= Fraction(t, 10) for t in range(1, 6)), 5)

    own = {"long-acc": [], "mIoU": [], "rec@IoU": [], "acc@IoU": []}  # of CG-Bench: what it reads
    other = {name: [] for name in own}  # of VideoMind: the first span, every question in the file
    for i in there:
        ours, true = (set().union(*map(cells, pairs)) for pairs in (answers[i], clues[i]))
        value, (letters, first, _) = Fraction(len(ours & true), len(ours | true)), CHOICES[texts[i]]
        good, told = right[i] in letters, bool(letters)
        own["mIoU"] += [value] * bool(answers[i])
        own["rec@IoU"] += [share(value)] * bool(answers[i])
        own["long-acc"] += [good] * told
        own["acc@IoU"] += [share(value) * good] * (told and bool(answers[i]))
        shared = sum(len(cells(answers[i][0]) & cells(clue)) for clue in clues[i]) if answers[i] else 0
        whole = sum(e - s for s, e in [*clues[i], *answers[i][:1]]) - shared
        value = Fraction(shared, whole) if whole else Fraction(0)
        other["mIoU"].append(single(value))
        other["rec@IoU"].append(share(value))
        other["long-acc"].append(first == right[i])
        other["acc@IoU"].append(share(value) * (first == right[i]))
    assert found["published cgbench"]["metrics"] == pytest.approx(means(own), abs=1e-9)
    assert found["published videomind"]["metrics"] == pytest.approx(means(other), abs=1e-9)
