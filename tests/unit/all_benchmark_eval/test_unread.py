"""What was not read is said: ids and texts of unparsed answers, in the result and on the terminal; one explained."""

import json

import pytest

from all_benchmark_eval.benchmark import Options, get, names
from tests.benchmark_data import duration, events
from tests.form_files import OWN, OWN_TRUTHS
from tests.grounding_files import GROUNDING, PERFECT, truth_of, write
from tests.unit.all_benchmark_eval.test_choice_tasks import MOVIE, PREDICTIONS, RAR, TRUTH, TVG
from tests.unit.all_benchmark_eval.test_score_command import run

NO_SPAN = {  # the file with a first prediction that is no span
    "charades": {**PERFECT["charades"], "AAA": {"a door.": {"start": -1, "end": -1}}},
    "anet": {"results": {**PERFECT["anet"]["results"], "v_A-0": {"timestamp": []}}},
    "qvhighlights": [{"qid": 7, "pred_relevant_windows": []}, PERFECT["qvhighlights"][1]],
    "nextgqa": [{**PERFECT["nextgqa"][0], "timestamp": "at 5 s"}, PERFECT["nextgqa"][1]],
}
FIRST_ID = {"charades": "AAA/a door.", "anet": "v_A-0", "qvhighlights": "7", "nextgqa": "111_0"}
TEXTS = {"charades": "[-1, -1]", "anet": "[]", "qvhighlights": "", "nextgqa": "at 5 s"}


@pytest.mark.parametrize("protocol", ["published", "corrected"])
@pytest.mark.parametrize("name", GROUNDING)
def test_an_unparsed_span_is_named_with_what_the_file_has(name, protocol, tmp_path):
    task, truth = get(name), truth_of(name, tmp_path)
    given = task.read(write(tmp_path / "p.json", NO_SPAN[name]), truth)
    for variant in task.variants:
        scores = task.score(truth, given, Options(protocol, variant))
        assert scores.unread == {FIRST_ID[name]: TEXTS[name]}
        assert len(scores.unread) == scores.counts["unparsed"]


@pytest.mark.parametrize("protocol", ["published", "corrected"])
@pytest.mark.parametrize("name", TRUTH)
@pytest.mark.parametrize("text", ["hm", ""])
def test_an_unparsed_answer_is_named_with_its_text(name, protocol, text, tmp_path):
    task = get(name)
    rows = [row | {key: text for key in ("a", "pred") if key in row} for row in PREDICTIONS[name]]
    rows = [row for row in rows if row.get("task") != "dvc"]  # needs no sentence model then
    truth = task.load(write(tmp_path / TRUTH[name][0], TRUTH[name][1]))
    given = task.read(write(tmp_path / "p.json", rows), truth)
    if name == "etbench" and protocol == "published":
        given.samples[:] = [sample for sample in given.samples if sample.task == "tvg"]
    scores = task.score(truth, given, Options(protocol, task.variants[0], skip_meteor=True))
    assert len(scores.unread) == scores.counts["unparsed"]
    assert set(scores.unread.values()) <= {text}


VIDEO_OF = {"vid": "AAA", "query": "a door.", "duration": 30.0}
ONE = {  # benchmark -> annotations' name, annotations of one question (with another file beside them), its id and video
    "charades": ("t.txt", "AAA 1 2##a door.", "AAA/a door.", "AAA/a door."),
    "anet": ("t.json", {"AAA": {"duration": 30, "timestamps": [[1, 2]], "sentences": ["a door."]}}, "AAA-0", "AAA-0"),
    "moment_retrieval": ("t.jsonl", [VIDEO_OF | {"qid": 4, "relevant_windows": [[1, 2]]}], "4", "4"),
    "qvhighlights": ("t.jsonl", [VIDEO_OF | {"qid": 4, "relevant_windows": [[1, 2]]}], "QVHighlight_4", "4"),
    "anet_dvc": ("t.json", {"AAA": {"duration": 30, "timestamps": [[1, 2]], "sentences": ["a."]}}, "AAA", "AAA"),
    "youcook2": ("t.json", {"AAA": {"duration": 30, "timestamps": [[1, 2]], "sentences": ["a."]}}, "AAA", "AAA"),
    "nextgqa": ("gsub_test.json", {"AAA": {"duration": 30, "location": {"0": [[1, 2]]}}}, "TN_AAA_0", "AAA_0"),
    "mvbench": (*OWN["mvbench"][:2], "object_shuffle/0", "object_shuffle/0"),
    "longvideobench": (*OWN["longvideobench"][:2], "x_0", "x_0"),
    "etbench": (*OWN["etbench"][:2], "tvg/a/0", "tvg/a/0"),
    "videomme": ("v.json", [MOVIE], "1-1", "1-1"),
    "moving_shapes": ("test.jsonl", [OWN["moving_shapes"][1][0]], "g", "g"),
    "rextime": (*OWN["rextime"][:2], "rextime_0", "rextime_0"),
    "cgbench": (*OWN["cgbench"][:2], "0", "0"),
}
FIRST_IDS = {"charades_timelens": "AAA-0", "tvgbench": "tvgbench_0", "hirest": "AAA.mp4/a door."}
FIRST_IDS |= {"activitynet_rtl": "v_AAA-0", "extremewhenbench": "0"}
ONE |= {name: ("t.json", OWN_TRUTHS[name][1], own, own) for name, own in FIRST_IDS.items()}
ONE |= dict.fromkeys(("activitynet_timelens", "qvhighlights_timelens"), ONE["charades_timelens"])
ONE |= dict.fromkeys(("tacos", "ego4d_nlq"), ONE["moment_retrieval"])


@pytest.mark.parametrize("form", ["texts", "lmms-eval samples"])
@pytest.mark.parametrize("name", names())
def test_text_and_id_of_any_models_unread_answer_are_shown(name, form, tmp_path, capsys):
    file, data, asked, sample = ONE[name]
    write(tmp_path / "test.csv", "video_id,question,answer,qid,type,a0,a1,a2,a3,a4\nAAA,why,a,0,TN,a,b,c,d,e\n")
    given = [{"id": asked, "text": "I cannot\nsay."}]
    if form != "texts":
        given = [{"doc_id": 0, "doc": {"id": asked}, "target": "", "resps": [["I cannot\nsay."]]}]
    files = ["--predictions", write(tmp_path / "p.json", given), "--annotations", write(tmp_path / file, data)]
    files += ["--output", tmp_path / "s.json", "--skip-meteor", "--show-unparsed", 3, "--protocol", "corrected"]
    assert run(name, *files, "--explain", sample) == 0
    out = capsys.readouterr().out
    assert f"{sample}: 'I cannot\\nsay.'" in out, out
    assert "text: I cannot\nsay." in out and "read: nothing" in out, out


def movies(folder, *answers):
    rows = [MOVIE | {"question_id": f"1-{k}", "a": text} for k, text in enumerate(answers)]
    return write(folder / "p.json", rows)


def test_the_table_says_from_2_percent_on_that_answers_were_not_read(tmp_path, capsys):
    files = ["videomme", "--output", tmp_path / "s.json", "--protocol", "corrected", "--predictions"]
    assert run(*files, movies(tmp_path, *["B"] * 49, "I cannot\nsay")) == 0  # 2 % are not above
    assert "could not be read" not in capsys.readouterr().out
    assert run(*files, movies(tmp_path, *["B"] * 48, "I cannot\nsay", "hm")) == 0
    out = capsys.readouterr().out
    assert "corrected: 2 answers (4.0 %) could not be read" in out and r"1-48: 'I cannot\nsay'" in out
    assert "1-49" not in out
    assert run(*files, tmp_path / "p.json", "--show-unparsed", 2) == 0
    assert "1-49: 'hm'" in capsys.readouterr().out
    assert run(*files, tmp_path / "p.json", "--show-unparsed", 0) == 0
    assert "1-48" not in capsys.readouterr().out
    unread = json.loads((tmp_path / "s.json").read_text())["protocols"]["corrected"]["unread"]
    assert unread == {"1-48": "I cannot\nsay", "1-49": "hm"}


@pytest.mark.parametrize(
    ("name", "rows", "sample", "told"),
    [
        ("videomme", [MOVIE | {"a": "The answer is C."}], "1-1", ("text: The answer is C.", "read: (C)", "true: (B)")),
        ("videomme", [MOVIE | {"a": "B or C"}], "1-1", ("read: nothing", "several options")),
        ("mvbench", PREDICTIONS["mvbench"], "action_sequence/0", ("text: (B)", "read: (B)", "a label alone")),
        ("longvideobench", PREDICTIONS["longvideobench"], "x_1", ("read: (A)", "true: ")),
        ("etbench", [TVG | {"a": "<evi> 1 - 2 </evi>9.0 to 11.0 s"}], "tvg/a/0", ("[[9.0, 11.0]]", "[[10.0, 20.0]]")),
        ("etbench", [RAR | {"a": "C"}], "rar/a/0", ("read: (C)", "true: (B)")),
    ],
)  # fmt: skip
def test_explain_tells_text_reading_rule_and_truth(name, rows, sample, told, tmp_path, capsys):
    task = get(name)
    truth = None
    predictions = task.read(write(tmp_path / "p.json", rows), truth)
    found = task.explain(truth, predictions, sample)
    shown = f"text: {found.text}\nread: {found.read}\nrule: {found.rule}\ntrue: {found.true}"
    assert found.rule and all(part in shown for part in told), shown


def infer_line(name, text, spans):
    line = {"id": name, "video": "v_A.mp4", "question": "?", "text": text, "raw_text": text, "spans": spans}
    return line | {"evidence_spans": [], "scores": [], "duration": 50, "finish_reason": "stop", "error": None}


def test_of_answers_of_infer_the_text_is_told(tmp_path, capsys):
    truth = write(
        tmp_path / "truth.json", {"v_A": {"duration": 50, "timestamps": [[0, 10], [20, 40]], "sentences": ["a", "b"]}}
    )
    lines = [infer_line("v_A-0", "It is unclear.", []), infer_line("v_A-1", "from 20 to 41 seconds", [[20.0, 41.0]])]
    answers = write(tmp_path / "out.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    files = ["anet", "--predictions", answers, "--annotations", truth, "--output", tmp_path / "s.json"]
    assert run(*files, "--wording", "plain", "--explain", "v_A-1") == 0
    out = capsys.readouterr().out
    assert "v_A-0: 'It is unclear.'" in out
    assert "text: from 20 to 41 seconds\nread: [20.0, 41.0]\nrule: all of it" in out and "true: [[20.0, 40.0]]" in out
    assert json.loads((tmp_path / "s.json").read_text())["explained"]["id"] == "v_A-1"
    assert run(*files, "--wording", "plain", "--explain", "v_B-1") == 2
    assert "error: --explain: the annotations have no query 'v_B-1'" in capsys.readouterr().err


@pytest.mark.parametrize("name", [*GROUNDING, "youcook2", "anet_dvc"])
def test_every_benchmark_of_spans_explains_a_right_a_missing_and_an_unknown_id(name, tmp_path):
    task = get(name)
    if name in GROUNDING:
        truth, predictions, known = truth_of(name, tmp_path), PERFECT[name], FIRST_ID[name]
    elif name == "youcook2":
        row = {"image_id": "y.mp4", "duration": duration(0), "segments": [events(0)[0][0]], "pure_cap": "cut"}
        truth = task.load(write(tmp_path / "t.json", {"annotations": [row]}))
        predictions, known = {"y.mp4": [{"timestamp": [1, 2], "caption": "cut"}]}, "y.mp4"
    else:
        truth = task.load(
            write(tmp_path / "t.json", {"v": {"duration": 9, "timestamps": [[0, 5]], "sentences": ["x"]}})
        )
        predictions, known = {"results": {"v": [{"sentence": "cut", "timestamp": [1, 2]}]}}, "v"
    given = task.read(write(tmp_path / "p.json", predictions), truth)
    found = task.explain(truth, given, known)
    assert found.read != "nothing" and "as the file has" in found.rule and found.true
    with pytest.raises(ValueError, match="--explain: "):
        task.explain(truth, given, "nobody")


def test_of_answers_in_d2vlms_form_and_of_any_models_texts_the_text_is_told(tmp_path, capsys):
    truth = write(tmp_path / "t.txt", "AAA 10.0 20.0##a door.\nBBB 0.0 5.0##a cat.")
    d2vlm = [{"idx": 0, "video": "AAA.mp4", "a": "I do not know."}, {"idx": 1, "video": "BBB.mp4", "a": "0 - 5 s"}]
    texts = [{"video": "AAA", "question": "a door.", "text": "I do not know."}]
    texts.append({"video": "BBB", "question": "a cat.", "text": "0 - 5 s"})
    for rows in (d2vlm, texts):
        files = ["charades", "--predictions", write(tmp_path / "p.json", rows), "--annotations", truth]
        assert run(*files, "--output", tmp_path / "s.json", "--protocol", "corrected", "--explain", "BBB/a cat.") == 0
        out = capsys.readouterr().out
        assert "AAA/a door.: 'I do not know.'" in out
        assert "text: 0 - 5 s\nread: [0.0, 5.0]" in out and "rule: as the file" not in out
