"""Every form of file that people have, each by hand with the scores it must give, and what damaged ones lead to."""

import re
from pathlib import Path

import pytest

from all_benchmark_eval import forms
from all_benchmark_eval.answer_forms import ANSWERS
from all_benchmark_eval.benchmark import BenchmarkError, get, names
from all_benchmark_eval.score import score_file
from tests.form_files import (
    ASKED,
    DENSE_CASES,
    DENSE_TRUTHS,
    ET,
    FILES,
    LONG,
    MME,
    MOMENT_CASES,
    MV,
    OTHER,
    SHAPES,
    TRUTHS,
    VIDEO,
    lines,
    scored,
    write,
)


@pytest.mark.parametrize(("name", "truth", "form"), MOMENT_CASES)
def test_moments_in_every_form_score_the_same(name, truth, form, tmp_path):
    found = scored(name, TRUTHS[name][truth], FILES[name][form], tmp_path, protocols=["corrected"])["corrected"]
    assert found["metrics"]["mIoU"] == pytest.approx(50)
    assert {k: found["counts"][k] for k in ("scored", "unparsed", "missing")} == {
        "scored": 2,
        "unparsed": 0,
        "missing": 1,
    }


def test_no_form_of_the_moment_benchmarks_is_left_out():
    for name, truths in TRUTHS.items():
        own = {form.name for form in get(name).forms}
        assert {f.name for f in get(name).truths} == set(truths)
        assert own | {form.name for form in ANSWERS[1:]} == set(FILES[name])


def sample(number: int, text: str, metric: dict, name: str = "x_mIOU") -> dict:
    """A line as lmms-eval 0.7 logs it, without the document; every metric has an entry."""
    return {"doc_id": number, "target": "", "filtered_resps": text, "doc_hash": "ab", name: metric, "input": "When?"}


def test_samples_without_documents_are_found_by_what_a_metric_logs(tmp_path):
    asked = [("AAA.mp4>>>a door.>>>[10, 20]", "From 10 to 20 s."), ("BBB.mp4>>>a cat.>>>[[0, 5]]", "From 0 to 2.5 s.")]
    given = lines(*(sample(7 + i, text, {key: text}) for i, (key, text) in enumerate(asked)))
    for name, truth in TRUTHS.items():
        if name != "qvhighlights":
            found = scored(name, next(iter(truth.values())), given, tmp_path, protocols=["corrected"])["corrected"]
            assert found["metrics"]["mIoU"] == pytest.approx(50) and found["counts"]["missing"] == 1
    entries = [{"question_id": q["question_id"], "duration": "short", "pred_answer": "B"} for q in (OTHER, ASKED)]
    given = lines(*(sample(i, "B", entry, "videomme_score") for i, entry in enumerate(entries)))
    assert scored("videomme", [VIDEO | ASKED, VIDEO | OTHER], given, tmp_path)["published"]["metrics"]["accuracy"] == 50
    truth = {"qid": "q", "video_id": "v", "source_corpus": "LVBench", "question": "When?"}
    truth = [truth | {"correct_interval": [0, 8], "video_duration_s": 9.0}]
    logged = {"qid": "q", "video_id": "v", "pred_raw": "4 - 8", "pred_interval": [4, 8], "gt": [0, 8]}
    found = scored("extremewhenbench", truth, [sample(0, "4 - 8", logged)], tmp_path)
    assert found["published"]["metrics"]["mIoU"] == pytest.approx(50)


# ---- dense captions --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "truth", "form", "data"), DENSE_CASES, ids=lambda v: v if isinstance(v, str) else "")
def test_dense_captions_in_every_form_keep_fractions_of_seconds(name, truth, form, data, tmp_path):
    found = scored(name, DENSE_TRUTHS[truth], data, tmp_path, protocols=["corrected"])["corrected"]
    assert found["counts"]["scored"] == 2
    assert [found["metrics"][m] for m in ("F1", "Precision@0.9", "Recall@0.9")] == pytest.approx([100] * 3)


def test_no_form_of_the_dense_benchmarks_is_left_out():
    for name in ("anet_dvc", "youcook2"):
        assert {f.name for f in get(name).truths} == set(DENSE_TRUTHS)
        tested = {form for benchmark, _, form, _ in DENSE_CASES if benchmark == name}
        assert {f.name for f in (*get(name).forms, *ANSWERS[1:])} == tested


def test_published_anet_takes_whole_seconds_as_its_script_does(tmp_path):
    truth = {"v_a": {"duration": 50.0, "timestamps": [[0, 10]], "sentences": ["x."]}}
    file = {"results": {"v_a": [{"sentence": "x.", "timestamp": [0.4, 9.6]}]}}
    both = scored("anet_dvc", truth, file, tmp_path)
    assert both["published"]["metrics"]["Recall@0.9"] == 100
    near = {"results": {"v_a": [{"sentence": "x.", "timestamp": [0.49, 9.49]}]}}  # 0 to 9 when rounded: IoU 0.9, no hit
    both = scored("anet_dvc", truth, near, tmp_path)
    assert both["published"]["metrics"]["Recall@0.9"] == 0 and both["corrected"]["metrics"]["Recall@0.9"] == 100


# ---- multiple choice and NExT-GQA ------------------------------------------------------------------------------------


@pytest.mark.parametrize("truth", [[VIDEO | ASKED, VIDEO | OTHER], [VIDEO | {"questions": [ASKED, OTHER]}]])
@pytest.mark.parametrize("form", MME)
def test_video_mme_in_every_form(form, truth, tmp_path):
    for entry in scored("videomme", truth, MME[form], tmp_path).values():
        assert (entry["metrics"]["accuracy"], entry["counts"]["scored"]) == (50, 2)


def nextgqa(folder: Path) -> Path:
    head = "video_id,question,answer,qid,type,a0,a1,a2,a3,a4\n"
    write(folder / "test.csv", head + "111,why,d,0,TN,a,b,c,d,e\n111,how,a,2,CW,a,b,c,d,e\n")
    location = {"0": [[5, 10]], "2": [[0, 30]]}
    return write(folder / "gsub_test.json", {"111": {"duration": 30, "location": location}})


QA = {"111_0": {"prediction": 3, "answer": 3}, "111_2": {"prediction": 1, "answer": 0}}
GROUND = {"111_0": [5, 10], "111_2": [0.0, 15.0]}


def test_nextgqas_own_two_files_are_a_folder(tmp_path):
    truth, folder = nextgqa(tmp_path), tmp_path / "out"
    folder.mkdir()
    write(folder / "test-res.json", QA), write(folder / "test_ground.json", GROUND)
    result = score_file("nextgqa", folder, [truth], tmp_path / "s.json")
    for entry in result["protocols"].values():
        assert [entry["metrics"][m] for m in ("Acc@GQA", "mIoP", "mIoU", "Acc@QA")] == pytest.approx([50, 100, 75, 50])
    assert entry["details"]["Acc@QA by type, grounded"]["TN"]["pct"] == 100
    for name, data, message in (
        ("test_ground_cb.json", GROUND, "there are test_ground.json and test_ground_cb.json"),
        ("test_ground.json", {k: [s / 30, e / 30] for k, (s, e) in GROUND.items()}, "shares of the video"),
        ("test_ground.json", {"111_9": [0, 5]}, "test-res.json has no choice for it"),
        ("test-res.json", GROUND, "none of the forms of nextgqa"),
    ):
        write(folder / name, data)
        with pytest.raises(BenchmarkError, match=message):
            score_file("nextgqa", folder, [truth], tmp_path / "s.json")
        (folder / "test_ground_cb.json").unlink(missing_ok=True)


def test_one_text_answers_both_stages_of_nextgqa(tmp_path):
    rows = [
        {"id": "TN_111_0", "text": "Answer: (D), from 5.0 to 10.0 seconds."},
        {"video": "111", "question": "how", "answer": "From 0 to 15 seconds. The answer is B."},
    ]
    result = score_file("nextgqa", write(tmp_path / "p.jsonl", lines(*rows)), [nextgqa(tmp_path)], tmp_path / "s.json")
    assert result["protocols"]["corrected"]["metrics"]["Acc@QA"] == 50
    assert result["protocols"]["corrected"]["metrics"]["mIoU"] == pytest.approx(75)


@pytest.mark.parametrize(
    ("text", "miou"),
    [
        ("Time: 5 - 10 s\nAnswer: (D)", 100),
        ("From 5 to 10 seconds. Answer: 3", 100),
        ("<answer>3</answer><time>5.0-10.0</time>", 100),
        ("<think>0 - 30 s</think><glue>[(5, 10)]</glue><answer>D</answer>", 100),
        ('{"time": [5, 10], "answer": "D"}', 100),
        ("<think>From 5 to 10 seconds.</think>Answer: D", 0),  # a thought is no answer
        ("He sits from 0 to 4 s and stands from 5 to 10 s. Answer: D", 0),  # which one?
    ],
)
def test_a_moment_beside_the_choice_is_read(text, miou, tmp_path):
    given = write(tmp_path / "p.json", {"TN_111_0": text})
    entry = score_file("nextgqa", given, [nextgqa(tmp_path)], tmp_path / "s.json")["protocols"]["published"]
    assert (entry["metrics"]["Acc@QA"], entry["metrics"]["mIoU"]) == (100, pytest.approx(miou))


SAID = [  # what stands in the file, the number that the script takes, the option that it says (d is right)
    ("3", True, True), (3, True, True), ("(3) d", False, True), ("D", False, True), ("d", False, True),
    ("<think>0 or 1?</think>3", False, True), ("3 or 1", False, None), ("I cannot say", False, None), (-1, False, None),
    (7, False, None), ("1", False, False),
]  # fmt: skip


@pytest.mark.parametrize(("said", "published", "corrected"), SAID, ids=str)
@pytest.mark.parametrize("form", ["DisTime", "NExT-GQA"])
def test_a_choice_of_nextgqa_is_what_its_text_says(form, said, published, corrected, tmp_path):
    truth, given = nextgqa(tmp_path), tmp_path / "p.json"
    if form == "DisTime":
        write(given, [{"qid": "TN_111_0", "prediction": said, "timestamp": [5, 10], "target": 3}])
    else:
        given = tmp_path / "out"
        given.mkdir()
        (
            write(given / "qa.json", {"111_0": {"prediction": said, "answer": 3}}),
            write(given / "g.json", {"111_0": [5, 10]}),
        )
    found = score_file("nextgqa", given, [truth], tmp_path / "s.json", explain="111_0")
    assert found["protocols"]["published"]["metrics"]["Acc@QA"] == 100 * published
    entry = found["protocols"]["corrected"]
    assert entry["metrics"]["Acc@QA"] == 50 * bool(corrected) and entry["metrics"]["mIoU"] == 50  # of two questions
    assert [entry["counts"][k] for k in ("scored", "unparsed", "missing")] == (
        [0, 1, 1] if corrected is None else [1, 0, 1]
    )
    assert entry["unread"] == ({"111_0": str(said)} if corrected is None else {})
    assert ("no choice" in found["explained"]["read"]) == (corrected is None)


def test_videominds_lines_for_nextgqa(tmp_path):
    truth = nextgqa(tmp_path)
    write(tmp_path / "map_vid_vidorID.json", {"111": "1164/999"})
    row = {"source": "nextgqa", "video_path": "data/nextqa/videos/1164/999.mp4", "duration": 30, "task": "TN"}
    row |= {"options": ["A", "B", "C", "D", "E"], "conf": [0.2, 0.7]}
    rows = [
        row | {"query": "Why", "question": "Why?", "ans": "D", "pred": [[5, 10], [0, 1]], "response": "D) d"},
        row | {"query": "How", "question": "How?", "ans": "A", "pred": [[0, 15], [0, 1]], "response": "(B) b"},
    ]
    found = score_file("nextgqa", write(tmp_path / "p.json", rows), [truth], tmp_path / "s.json")
    for entry in found["protocols"].values():
        assert [entry["metrics"][m] for m in ("Acc@GQA", "mIoP", "mIoU", "Acc@QA")] == pytest.approx([50, 100, 75, 50])
    rows[1]["response"] = "It may be any of them."
    found = score_file("nextgqa", write(tmp_path / "p.json", rows), [truth], tmp_path / "s.json")
    assert found["protocols"]["corrected"]["unread"] == {"111_2": "It may be any of them."}
    rows[1]["ans"] = "C"
    with pytest.raises(BenchmarkError, match="'CW_111_2' has the right option 'C', test.csv 'A'"):
        score_file("nextgqa", write(tmp_path / "p.json", rows), [truth], tmp_path / "s.json")
    (tmp_path / "map_vid_vidorID.json").unlink()
    with pytest.raises(BenchmarkError, match="no video .* has the name .*999.mp4.*map_vid_vidorID.json does"):
        score_file("nextgqa", write(tmp_path / "p.json", rows), [truth], tmp_path / "s.json")
    (tmp_path / "test.csv").unlink()
    with pytest.raises(BenchmarkError, match="test.csv: put it beside"):
        score_file("nextgqa", write(tmp_path / "p.json", rows), [truth], tmp_path / "s.json")


def test_tacos_videos_are_found_with_their_camera(tmp_path):
    truth = lines({"vid": "s13-d21", "query": "he cuts", "duration": 60, "qid": 1, "relevant_windows": [[5, 10]]})
    row = {"video_path": "data/tacos/s13-d21-cam-002.mp4", "query": "he cuts", "pred": [[5, 10]], "conf": [1]}
    assert scored("moment_retrieval", truth, [row], tmp_path)["corrected"]["metrics"]["mIoU"] == 100


ANSWERED = {  # benchmark -> annotations' name, annotations, texts by (video, question), first metric
    "mvbench": ("object_shuffle.json", MV, [("v.mp4", "who 0?", "(B) she"), ("v.mkv", "who 1?", "A")], "Avg", 50),
    "longvideobench": ("lvb_val.json", LONG, [("x", "who 0?", "B"), ("x", "who 1?", "A")], "accuracy", 0.5),
    "etbench": ("t.json", ET, [("a/0.mp4", "when?", "10 - 20"), ("1", "when?", "50 - 55")], "TVG_F1", 0.5),
    "moving_shapes": ("test.jsonl", lines(SHAPES), [("g.mp4", "when?", "[5.0 s - 10.0 s]")], "mIoU", 1.0),
}


@pytest.mark.parametrize("shape", ["lines", "list", "by video"])
@pytest.mark.parametrize("name", ANSWERED)
def test_texts_of_any_model_are_scored_for_every_other_benchmark(name, shape, tmp_path):
    file, truth, texts, metric, value = ANSWERED[name]
    rows = [{"video": v, "question": q, "response": text} for v, q, text in texts]
    by_video: dict = {}
    for v, q, text in texts:
        by_video.setdefault(v, {})[q] = text
    data = {"lines": lines(*rows), "list": rows, "by video": by_video}[shape]
    paths = write(tmp_path / "p.jsonl", data), write(tmp_path / file, truth)
    found = score_file(name, paths[0], paths[1:], tmp_path / "s.json", protocols=["corrected"], skip_meteor=True)
    assert found["protocols"]["corrected"]["metrics"][metric] == value


CHOICES = {
    "mvbench": [{"task_type": "Object Shuffle", "pred": "(B)", "gt": "(B) she"}],
    "longvideobench": [{"id": "x_0", "pred": "B", "gt": "B. she"}],
    "videomme": MME["D2VLM"],
}


@pytest.mark.parametrize("name", CHOICES)
def test_a_file_of_choices_is_parsed_once(name, tmp_path, monkeypatch):
    given, read, parsed = write(tmp_path / "p.json", CHOICES[name]), forms.read_text, []
    monkeypatch.setattr(forms, "read_text", lambda path: parsed.append(path) or read(path))
    score_file(name, given, [], tmp_path / "s.json")
    assert parsed == [given]


def test_every_benchmark_has_forms_and_variants_that_the_page_lists(repository):
    text = (repository / "docs/evaluation.md").read_text(encoding="utf-8")
    table = text.partition("| benchmark | predictions | annotations | variants")[2].partition("\n\n")[0]
    rows = {re.findall(r"`(\w+)`", row)[0]: row for row in table.splitlines()[2:] if row}
    assert rows.keys() == set(names())
    for name in names():
        for form in (*get(name).forms, *get(name).truths):
            assert form.name in rows[name], f"{name}: {form.name}"
        variants, own = re.findall(r"`(\w+)`", rows[name].split("|")[4]), get(name).variants
        assert variants == (list(own) if len(own) > 1 else []), name
    assert all(form.name in text for form in ANSWERS)
