"""E.T. Bench, MVBench, LongVideoBench, Video-MME: files in and out, bad files, and the corrected protocol."""

import gzip
import json
from dataclasses import replace

import numpy as np
import pytest

from all_benchmark_eval.benchmark import BenchmarkError, Options, get
from all_benchmark_eval.etbench.task import official_text
from all_benchmark_eval.metrics import captions, dense_scores, sentences
from all_benchmark_eval.metrics.choices import videomme_letter
from tests.answers import answer_line
from tests.form_files import write

TVG = {"task": "tvg", "source": "a", "idx": 0, "video": "a/0.mp4", "duration": 60.0, "tgt": [10.0, 20.0], "q": "when?"}
RAR = {"task": "rar", "source": "a", "idx": 0, "video": "a/1.mp4", "duration": 60.0, "src": 31.0, "p": 1}
RAR |= {"o": ["run", "walk", "sit", "lie"], "q": "what at <vid>?"}
DVC = {"task": "dvc", "source": "a", "idx": 0, "video": "a/2.mp4", "duration": 60.0, "tgt": [[0, 9]], "g": ["cut"]}
SAMPLES = [TVG, RAR, DVC | {"q": "describe"}]
MOVIE = {"video_id": "1", "duration": "short", "domain": "d", "sub_category": "s", "question_id": "1-1"}
MOVIE |= {"task_type": "t", "question": "who?", "options": ["A. he", "B. she", "C. it", "D. they"], "answer": "B"}
LONG = {"id": "x_0", "correct_choice": 1, "duration_group": 15, "question_category": "S2E", "question": "who?"}
LONG |= {"candidates": ["he", "she"], "video_path": "x.mp4", "duration": 12.0}
MV = {"video": "v.mp4", "question": "who?", "candidates": ["he", "she"], "answer": "she", "start": 3.0, "end": 9.5}

TRUTH = {
    "etbench": ("truth.json", SAMPLES),
    "mvbench": ("action_sequence.json", [MV, MV]),
    "longvideobench": ("truth.json", [LONG, LONG | {"id": "x_1"}]),
    "videomme": ("truth.json", [MOVIE, MOVIE | {"question_id": "1-2"}]),
}
PREDICTIONS = {
    "etbench": [row | {"a": "10 - 20, cut it up"} for row in SAMPLES],
    "mvbench": [{"task_type": "Action Sequence", "pred": "(B)", "gt": "(B) she"}] * 2,
    "longvideobench": [{"id": "x_0", "pred": "B", "gt": "B. she"}, {"id": "x_1", "pred": "A", "gt": "B. she"}],
    "videomme": [MOVIE | {"a": "B. she"}, MOVIE | {"question_id": "1-2", "a": "hm"}],
}
NAMES = list(TRUTH)


def score(name, data, folder, protocol="corrected", truth=True, variant=None):
    task = get(name)
    true = task.load(write(folder / TRUTH[name][0], TRUTH[name][1])) if truth else None
    predictions = task.read(write(folder / "predictions.json", data), true)
    return task.score(true, predictions, Options(protocol, variant or task.variants[0], skip_meteor=True))


@pytest.fixture(autouse=True)
def no_java_and_no_model(monkeypatch, tmp_path):
    """Captions without tokens, and every text as its own direction: nothing is loaded."""

    def embed(self, texts):
        vectors = [np.random.default_rng(list(text.encode())[:50]).normal(size=8) for text in texts]
        return np.array([v / np.linalg.norm(v) for v in vectors], np.float32).reshape(-1, 8)

    monkeypatch.setattr(sentences.SentenceModel, "encode", embed)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setattr("all_benchmark_eval.metrics.dense_scores.find_java", raise_java_error)


def raise_java_error():
    from all_benchmark_eval.metrics.java import JavaError

    raise JavaError("no java")


# ---- bad files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("data", "told"),
    [
        ("", "empty"),
        ("[]", ""),
        ("{}", "none of the forms of"),
        ('[{"qid": "TN_1_2", "target": "4"}]', "none of the forms of"),
        ('["B"]', "expected an object"),
        ("[1", "not JSON"),
    ],
)
@pytest.mark.parametrize("truth", [False, True])
def test_a_file_that_is_not_meant_is_refused(name, data, told, truth, tmp_path):
    with pytest.raises(BenchmarkError, match="predictions.json") as caught:
        score(name, data, tmp_path, truth=truth)
    assert told in str(caught.value)


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_and_a_truncated_file_are_told(name, tmp_path):
    task, path = get(name), tmp_path / "x.json.gz"
    with pytest.raises(BenchmarkError, match="no such file|x.json.gz"):
        task.read(path, None)
    path.write_bytes(gzip.compress(b"[" + b"1," * 1000)[:-10])
    with pytest.raises(BenchmarkError, match="cannot be read"):
        task.read(path, None)


@pytest.mark.parametrize("name", ["etbench", "longvideobench", "videomme"])
def test_an_id_that_stands_twice_is_named(name, tmp_path):
    first = PREDICTIONS[name][0]
    with pytest.raises(BenchmarkError, match=r"(tvg/a/0|x_0|1-1).*twice"):
        score(name, [first, first], tmp_path)


@pytest.mark.parametrize(
    ("name", "row", "told"),
    [
        ("etbench", TVG | {"idx": 7, "a": "1 - 2"}, "tvg/a/7"),
        ("longvideobench", {"id": "z", "pred": "A", "gt": "A. x"}, "'z'"),
        ("videomme", MOVIE | {"question_id": "9", "a": "A"}, "'9'"),
        ("mvbench", {"id": "action_sequence/5", "task_type": "x", "pred": "A", "gt": "(A) x"}, "action_sequence/5"),
    ],
)
def test_an_id_that_the_annotations_do_not_know_is_named(name, row, told, tmp_path):
    with pytest.raises(BenchmarkError, match=told):
        score(name, [row], tmp_path)


@pytest.mark.parametrize(
    ("name", "row", "told"),
    [
        ("etbench", TVG | {"a": "", "tgt": [1.0, float("nan")]}, "tvg/a/0: tgt"),
        ("etbench", TVG | {"a": "", "tgt": [1, 2, 3]}, "tgt"),
        ("etbench", TVG | {"a": "", "duration": -1}, "duration"),
        ("etbench", TVG | {"a": "", "task": "xyz"}, "unknown task 'xyz'"),
        ("etbench", RAR | {"a": "", "p": 4}, "rar/a/0: p 4"),
        ("etbench", RAR | {"a": "", "o": "run"}, "o 'run'"),
        ("etbench", DVC | {"a": "", "g": []}, "one caption"),
        ("etbench", TVG, "'a'"),
        ("mvbench", {"task_type": "x", "pred": "A"}, '"gt"'),
        ("mvbench", {"task_type": "x", "pred": "A", "gt": "(A)"}, "not '\\(A\\) the option'"),
        ("longvideobench", {"id": "x_0", "pred": "A", "gt": 3}, "'x_0': gt 3"),
        ("longvideobench", {"id": "x_0", "pred": "A", "gt": "A. he"}, "annotations say B"),
        ("videomme", MOVIE | {"a": "B", "answer": "E"}, "'1-1': answer 'E'"),
        ("videomme", MOVIE | {"a": "B", "duration": 30}, "'1-1': duration 30"),
        ("videomme", MOVIE | {"a": "B", "answer": "A"}, "another right answer"),
    ],
)
def test_a_bad_value_is_told_with_its_id(name, row, told, tmp_path):
    with pytest.raises(BenchmarkError, match=told):
        score(name, [row], tmp_path)


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        ("mvbench", {"answer": "nobody"}, "nobody"),
        ("mvbench", {"start": None}, "'start' and 'end'"),
        ("mvbench", {"candidates": "he"}, "candidates"),
        ("longvideobench", {"correct_choice": 2}, "correct_choice 2"),
        ("longvideobench", {"candidates": [1]}, "candidates"),
        ("videomme", {"options": "A"}, "options"),
    ],
)
def test_bad_annotations_are_told(name, change, told, tmp_path):
    file, (first, *_) = TRUTH[name]
    with pytest.raises(BenchmarkError, match=told):
        get(name).load(write(tmp_path / file, [first | change]))


def test_an_mvbench_file_must_be_named_after_its_task(tmp_path):
    with pytest.raises(BenchmarkError, match="named after a task"):
        get("mvbench").load(write(tmp_path / "x.json", [MV]))
    with pytest.raises(BenchmarkError, match="no annotation file"):
        get("mvbench").load(tmp_path / "nowhere")


def test_the_published_etbench_scripts_know_no_six_options(tmp_path):
    row = RAR | {"o": ["a", "b", "c", "d", "e", "f"], "a": "(F)", "p": 5}
    assert score("etbench", [row], tmp_path, truth=False).metrics["RAR_Acc"] == 1.0
    with pytest.raises(BenchmarkError, match="rar/a/0: 6 options"):
        score("etbench", [row], tmp_path, "published", truth=False)


# ---- counts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", ["published", "corrected"])
@pytest.mark.parametrize("name", NAMES)
def test_scored_unparsed_and_missing_are_all_samples(name, protocol, tmp_path):
    odd = [PREDICTIONS[name][0] | {"a": None, "pred": None}]
    for data in (PREDICTIONS[name], PREDICTIONS[name][:1], odd):
        scores = score(name, data, tmp_path, protocol)
        counts = scores.counts
        assert counts["samples"] == len(TRUTH[name][1]) == sum(counts[k] for k in ("scored", "unparsed", "missing"))
        assert counts["missing"] == counts["samples"] - len(data)
        assert all(0 <= value <= 100 for value in scores.metrics.values() if value is not None)
        for metric, values in scores.per_sample.items():
            if metric in scores.metrics and values and "evs" not in metric:
                mean = sum(values.values()) / len(values) * (100 if scores.unit == "percent" else 1)
                assert mean == pytest.approx(scores.metrics[metric])


@pytest.mark.parametrize("name", NAMES)
def test_missing_answers_are_wrong_when_corrected_and_unseen_as_published(name, tmp_path):
    scores = {p: score(name, PREDICTIONS[name][:1], tmp_path, p) for p in ("published", "corrected")}
    main = {"etbench": "TVG_F1", "mvbench": "Avg"}.get(name, "accuracy")
    assert scores["published"].denominator
    if name == "etbench":
        assert (scores["published"].metrics["RAR_Acc"], scores["corrected"].metrics["RAR_Acc"]) == (None, 0.0)
    else:
        assert scores["published"].metrics[main] == 2 * scores["corrected"].metrics[main]


@pytest.mark.parametrize("text", ["", "(", ".", " ", "\x00", "x" * 100_000])
@pytest.mark.parametrize("name", NAMES)
def test_corrected_gives_no_credit_for_saying_nothing(name, text, tmp_path):
    data = [row | {"a": text, "pred": text} for row in PREDICTIONS[name]]
    scores = score(name, data, tmp_path)
    assert scores.counts["unparsed"] == scores.counts["samples"]
    assert {value for value in scores.metrics.values() if value is not None} == {0.0}


def test_published_mvbench_gives_credit_for_saying_nothing(tmp_path):
    data = [row | {"pred": ""} for row in PREDICTIONS["mvbench"]]
    assert score("mvbench", data, tmp_path, "published").metrics["Avg"] == 100.0


# ---- questions and answers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wording", ["d2vlm", "distime", "plain"])
@pytest.mark.parametrize("name", NAMES)
def test_answers_become_the_official_form_and_are_scored(name, wording, tmp_path):
    task = get(name)
    truth = task.load(write(tmp_path / TRUTH[name][0], TRUTH[name][1]))
    lines = task.questions(truth, wording)
    assert len({line["id"] for line in lines}) == len(lines) == len(TRUTH[name][1])
    for line in lines:
        assert line["conversations"][-1]["from"] == "human"
        assert line["conversations"][-1]["value"].startswith("<video>\n")
        assert "tgt" not in line
    errors = ["unreadable"] + [None] * (len(lines) - 1)
    answers = {
        line["id"]: answer_line(line["id"], "(B) [1.0 s - 2.0 s]", [[1, 2]], [[0, 2]], error)
        for line, error in zip(lines, errors, strict=True)
    }
    data = task.from_answers(truth, answers, wording)
    assert score(name, data, tmp_path).counts["missing"] == 1


def test_an_unknown_wording_is_told():
    for name in NAMES:
        with pytest.raises(BenchmarkError, match="unknown wording 'x'"):
            get(name).questions({} if name != "etbench" else [], "x")


def test_etbench_questions_carry_their_times_and_their_decoding(tmp_path):
    task = get("etbench")
    truth = task.load(write(tmp_path / "truth.json", SAMPLES))
    tvg, rar, _ = task.questions(truth, "d2vlm")
    assert "src" not in tvg and "generate" not in tvg
    assert rar["src"] == [31.0] and rar["generate"] == {"repetition_penalty": 1.2}
    assert rar["conversations"][0]["value"] == "<video>\nwhat at <span>?"
    assert "generate" not in task.questions(truth, "distime")[1]


def test_etbench_answers_are_written_as_the_published_systems_write_them():
    answer = answer_line("q", "in [3.0 s - 4.0 s] .", [[3.04, 4.0]], [[1.0, 2.0], [3.0, 4.0]])
    assert official_text(answer, evidence=True) == "<evi> 1.0 - 2.0, 3.0 - 4.0 </evi>in 3.04 - 4.0 ."
    assert official_text(replace(answer, spans=[]), evidence=False) == "in 3.0 - 4.0 ."


def test_mvbench_questions_say_which_seconds_and_which_frames_count(tmp_path):
    (tmp_path / "json").mkdir()
    write(tmp_path / "json" / "episodic_reasoning.json", [MV])
    write(tmp_path / "json" / "object_shuffle.json", [MV])
    task = get("mvbench")
    frames, plain = task.questions(task.load(tmp_path), "d2vlm")
    assert frames["video"] == "tvqa/frames_fps3_hq/v.mp4"
    assert (frames["bound"], frames["frames"]) == ([3.0, 9.5], {"fps": 3, "first": 1})
    assert "bound" not in plain and "frames" not in plain
    assert plain["conversations"][0]["value"].endswith("Options:\n(A) he.\n(B) she.\nBest Option: (")


def test_a_folder_of_d2vlm_files_is_read_by_task(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    write(folder / "object_shuffle.json", [{"pred": "</evi>(B) she", "A": "(B) she", "task_type": "object_shuffle"}])
    write(folder / "state_change.json", [{"pred": "(A) he", "A": "(B) she", "task_type": "state_change"}])
    task = get("mvbench")
    scores = task.score(None, task.read(folder, None), Options("published", "d2vlm"))
    assert scores.metrics == {"object_shuffle": 100.0, "state_change": 0.0, "Avg": 50.0}


# ---- E.T. Bench ------------------------------------------------------------------------------------------------------


def etbench(row, protocol="corrected", variant="etchat", folder=None, metric="tvg/a/F1"):
    return score("etbench", [row], folder, protocol, truth=False, variant=variant).metrics[metric]


@pytest.mark.parametrize(
    ("answer", "corrected", "published"),
    [
        ("10 - 20", 1.0, 1.0),
        ("0:10 - 0:20", 1.0, 0.0),
        ("10s to 20s", 1.0, 0.0),
        ("50 - 60, 10 - 20", 0.0, 0.0),
        ("<evi> 10 - 20 </evi>50 - 60", 0.0, 1.0),
        ("<evi> 50 - 60 </evi>10 - 20", 1.0, 0.0),
    ],
)
def test_corrected_scores_the_first_span_of_the_answer(answer, corrected, published, tmp_path):
    assert etbench(TVG | {"a": answer}, folder=tmp_path) == corrected
    assert etbench(TVG | {"a": answer}, "published", folder=tmp_path) == published


def test_published_d2vlm_takes_the_best_of_all_spans(tmp_path):
    row = TVG | {"a": "</evi>50 - 60, 10 - 20"}
    assert etbench(row, "published", "d2vlm", tmp_path) == 1.0


def test_corrected_spans_are_cut_to_the_video(tmp_path):
    row = TVG | {"a": "50 - 600", "tgt": [50.0, 60.0]}
    scores = score("etbench", [row], tmp_path, truth=False)
    assert (scores.metrics["TVG_F1"], scores.counts["clipped"]) == (1.0, 1)


def test_corrected_repeated_actions_earn_nothing(tmp_path):
    row = {"task": "tal", "source": "a", "idx": 0, "video": "v", "tgt": [[0, 10], [20, 30]], "duration": 60}
    once, thrice = (row | {"a": ", ".join(["0 - 10"] * n)} for n in (1, 3))
    assert etbench(once, folder=tmp_path, metric="TAL_F1") == pytest.approx(2 / 3)
    assert etbench(thrice, folder=tmp_path, metric="TAL_F1") == pytest.approx(2 / 5)
    assert etbench(thrice, "published", folder=tmp_path, metric="TAL_F1") == pytest.approx(2 / 3)


def test_corrected_summaries_count_beyond_a_thousand_seconds_and_count_the_unparsed(tmp_path):
    row = {"task": "evs", "source": "a", "idx": 0, "video": "v", "tgt": [[1990.0, 2000.0]], "duration": 2100.0}
    rows = [row | {"a": "1990 - 2000"}, row | {"a": "hm", "idx": 1}]
    assert score("etbench", rows, tmp_path, truth=False).metrics["EVS_F1"] == 0.5
    assert score("etbench", rows, tmp_path, "published", truth=False).metrics["EVS_F1"] == 0.0


def test_a_stop_of_the_published_script_is_a_failed_answer_and_told(tmp_path):
    rows = [TVG | {"a": "10.. - 20"}, TVG | {"a": "10 - 20", "idx": 1}]
    scores = score("etbench", rows, tmp_path, "published", truth=False)
    assert (scores.metrics["TVG_F1"], scores.counts["unparsed"]) == (0.5, 1)
    assert "tvg/a/0" in "".join(scores.notes)


def test_zero_by_zero_is_told_and_not_a_number_in_no_result(tmp_path):
    scores = score("etbench", [TVG | {"a": "5 - 5", "tgt": [5.0, 5.0]}], tmp_path, "published", truth=False)
    assert scores.details["per_task_source"]["tvg"]["a"]["mIoU"] is None
    assert "tvg/a/mIoU" in "".join(scores.notes)
    json.dumps([scores.metrics, scores.details, scores.per_sample], allow_nan=False)


def test_captions_are_left_out_and_told_without_java(tmp_path):
    scores = score("etbench", [DVC | {"a": "0 - 9, cut it up"}], tmp_path, truth=False)
    assert (scores.metrics["DVC_F1"], scores.metrics["DVC_Sim"]) == (1.0, None)
    assert "no Java" in "".join(scores.notes)


# ---- rules of other scripts ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "official", "d2vlm"),
    [
        ("C", "C", "C"),
        ("The best answer is C.", "C", "C"),
        ("Because it is D", "B", "B"),
        ("Answer: C", "A", "C"),  # the leaderboard's script does not cut "Answer:" out
        ("Best option: C", "B", "C"),  # two phrases without a comma between them are one
        ("The correct option is C", "C", "C"),
        ("It is seen late. (C)", "C", ""),  # it looks behind the period
        ("none of these", "", ""),
    ],
)
def test_the_leaderboards_letter_is_not_d2vlms(text, official, d2vlm):
    assert (videomme_letter(text, "official"), videomme_letter(text, "d2vlm")) == (official, d2vlm)


def test_videomme_is_scored_by_the_leaderboards_rule_too(tmp_path):
    rows = [MOVIE | {"a": "It is late. (B)"}, MOVIE | {"question_id": "1-2", "a": "no idea"}]
    by_variant = {v: score("videomme", rows, tmp_path, "published", True, v) for v in ("official", "d2vlm")}
    assert by_variant["official"].metrics["accuracy"] == 100  # the other one has no letter and leaves the denominator
    assert by_variant["d2vlm"].metrics["accuracy"] is None


@pytest.mark.parametrize(("protocol", "expected"), [("published", 0), ("corrected", 10)])
def test_a_perfect_caption_of_etbench_has_full_cider_if_corrected(protocol, expected, tmp_path, monkeypatch):
    """As published, a video's own captions are all the documents: the words of one caption are in every one of them."""
    monkeypatch.setattr(dense_scores, "find_java", lambda: "java")
    monkeypatch.setattr(captions, "tokenize", lambda texts: [text.lower().strip(" .") for text in texts])
    kept = "whisk the eggs with sugar"
    rows = [DVC | {"g": [kept], "q": "?", "a": f"0.0 - 9.0 seconds, {kept}."}]
    rows += [DVC | {"g": ["fold the dough slowly now"], "q": "?", "idx": 1, "video": "a/3.mp4", "a": "I see nothing."}]
    scores = score("etbench", rows, tmp_path, protocol, truth=False)
    name = "dvc/a/CIDEr"
    assert scores.per_sample[name]["dvc/a/0"] == pytest.approx(expected)
