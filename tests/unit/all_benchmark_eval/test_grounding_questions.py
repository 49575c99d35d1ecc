"""What the grounding benchmarks ask a model, and how its answers become a prediction file."""

from pathlib import Path

import pytest

from all_benchmark_eval.benchmark import BenchmarkError, get, worded
from all_benchmark_eval.evaluate import wording_of
from all_benchmark_eval.metrics.moments import State
from tests.answers import answer_line
from tests.grounding_files import COUNT, TRUTH, truth_of, write
from tests.models import make_bundle
from videollm.common.answers import AnswerLine
from videollm.reading.styles import STYLES

CSV = "video_id,frame_count,question,answer,qid,type,a0,a1,a2,a3,a4\n{}"


def answer(spans, text="", evidence=(), error=None) -> AnswerLine:
    return answer_line("q", text, spans, evidence, error)


@pytest.mark.parametrize("wording", ["d2vlm", "distime", "plain"])
@pytest.mark.parametrize("name", ["charades", "anet", "qvhighlights"])
def test_questions_tell_the_query_and_no_true_time(name, wording, tmp_path) -> None:
    truth = truth_of(name, tmp_path)
    lines = get(name).questions(truth, wording)
    assert len({line["id"] for line in lines}) == COUNT[name]
    for line, query in zip(lines, truth.queries, strict=True):
        assert line.keys() == {"id", "video", "duration", "conversations"}
        (turn,) = line["conversations"]
        assert turn["value"].startswith("<video>\n")
        assert query.strip().rstrip(".") in turn["value"]


def test_published_wordings_to_the_letter(tmp_path) -> None:
    truth = truth_of("charades", tmp_path)
    distime, d2vlm = (get("charades").questions(truth, wording)[0]["conversations"] for wording in ("distime", "d2vlm"))
    assert distime[0]["value"] == (
        "<video>\nGive you a textual query: 'a door.'. When does the described content occur in the video? "
        "Please return the timestamp in seconds."
    )
    assert "described by the sentence: 'a door'. The format" in d2vlm[0]["value"]


def test_an_unknown_wording_is_refused_with_the_known_ones(tmp_path) -> None:
    with pytest.raises(BenchmarkError, match="known: distime, d2vlm, plain"):
        get("anet").questions(truth_of("anet", tmp_path), "french")


@pytest.mark.parametrize("name", ["charades", "anet", "qvhighlights"])
def test_answers_become_a_file_that_is_read_back(name, tmp_path) -> None:
    """The answer's span, else the evidence; one without either is unparsed, a failed or absent one missing."""
    task, truth = get(name), truth_of(name, tmp_path)
    ids = [line["id"] for line in task.questions(truth, "plain")]
    outcomes = [answer([[1, 2], [3, 4]], evidence=[[8, 9]]), answer([], evidence=[[8, 9]])]
    for pair, spans, state in (
        (outcomes, [[1, 2], [8, 9]], State.PARSED),
        ([answer([])] * 2, None, State.UNPARSED),
        ([answer([[1, 2]], error="no video")] * 2, None, State.MISSING),
    ):
        answers = dict(zip(ids, pair, strict=False))
        file = write(tmp_path / "p.json", task.from_answers(truth, answers, "plain"))
        if state == State.MISSING and name == "qvhighlights":
            with pytest.raises(BenchmarkError, match="no item in it"):
                task.read(file, truth)
            continue
        given = task.read(file, truth)
        assert given.state[:2].tolist() == [state] * 2
        if spans and name == "qvhighlights":
            assert [windows[0, :2].tolist() for windows in given.windows] == spans
        elif spans:
            assert given.spans[:2].tolist() == spans


def nextgqa_truth(folder: Path):
    write(
        folder / "test.csv", CSV.format('111,9,"why, and how",c d,0,TN,a,b,"c, x",c d,e\n111,9,why,a,2,CW,a,b,c,d,e\n')
    )
    write(folder / "map_vid_vidorID.json", {"111": "1164/999"})
    return get("nextgqa").load(write(folder / "gsub_test.json", TRUTH["nextgqa"]))


@pytest.mark.parametrize("wording", ["d2vlm", "distime", "plain"])
def test_nextgqa_asks_where_and_then_for_the_choice_inside_that_moment(wording, tmp_path) -> None:
    task, truth = get("nextgqa"), nextgqa_truth(tmp_path)
    where = task.questions(truth, wording)
    assert [line["id"] for line in where] == ["where-TN_111_0", "where-CW_111_2"]
    assert where[0]["video"] == "1164/999.mp4"
    located = {"where-TN_111_0": answer([[5, 10]]), "where-CW_111_2": answer([])}
    choice = task.choice_questions(truth, located, wording)
    assert choice[0]["bound"] == [5, 10]
    assert "bound" not in choice[1]
    assert "(2) c, x" in choice[0]["conversations"][0]["value"]
    chosen = {"choice-TN_111_0": answer([], "(3) c d"), "choice-CW_111_2": answer([], "I do not know")}
    lines = task.from_answers(truth, located | chosen, wording)
    assert lines == [
        {"qid": "TN_111_0", "prediction": "3", "timestamp": [5, 10], "target": 3, "text": "(3) c d"},
        {"qid": "CW_111_2", "prediction": -1, "timestamp": [-1, -1], "target": 0, "text": "I do not know"},
    ]
    given = task.read(write(tmp_path / "p.json", lines), truth)
    right = [(choice.read == choice.target, choice.number == choice.target) for choice in given.choices.values()]
    assert right == [(True, True), (False, False)]


def test_nextgqa_is_loaded_from_either_of_its_two_files(tmp_path) -> None:
    expected = nextgqa_truth(tmp_path)
    assert get("nextgqa").load(tmp_path / "test.csv").asked == expected.asked
    (tmp_path / "gsub_test.json").unlink()
    with pytest.raises(BenchmarkError, match=r"gsub_test.json, which is not beside it"):
        get("nextgqa").load(tmp_path / "test.csv")


def test_a_target_that_is_not_the_annotated_answer_is_refused(tmp_path) -> None:
    wrong = [{"qid": "TN_111_0", "prediction": "0", "timestamp": [0, 1], "target": 0}]
    with pytest.raises(BenchmarkError, match=r"TN_111_0.* has target 0, test.csv 3"):
        get("nextgqa").read(write(tmp_path / "p.json", wrong), nextgqa_truth(tmp_path))


def test_plain_models_are_asked_in_their_own_words_where_such_are_published(tmp_path) -> None:
    truth = truth_of("charades", tmp_path)
    said = [get("charades").questions(truth, style)[0]["conversations"][0]["value"] for style in STYLES]
    assert said[0] == (
        "<video>\nGive the query: 'a door.', when does the described content occur in the video? Use 'ss.ff' as time "
        "format."
    )
    assert {*said[1:]} == {
        "<video>\nPlease find the visual event described by the sentence 'a door', determining its starting and "
        "ending times. The format should be: 'The event happens in <start time> - <end time> seconds'."
    }
    (asked,) = {worded({"plain": "When?"}, style) for style in STYLES}
    assert asked == "When?"


@pytest.mark.parametrize("head", [{"name": "text"}, {"name": "text", "unit": "seconds", "style": "qwen3_vl"}])
def test_the_wording_is_that_of_the_models_style(head, tmp_path) -> None:
    config = make_bundle("internvl", "text").config
    config.head = head
    config.save_pretrained(tmp_path)
    assert wording_of(tmp_path) == head.get("style", "plain")
