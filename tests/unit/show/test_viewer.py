"""The page of answers: what is in it, how its links and texts are written, which files are refused."""

import json
from pathlib import Path

import pytest

from tests.models import clip_lines, write_lines
from videollm.common.answers import AnswerLine
from videollm.common.config import ConfigError
from videollm.show.answers import answer_json, judge, kind_of
from videollm.show.viewer import Links, names_of
from videollm.view import main


def line(name: str = "a", text: str = "at [1.0 s - 3.0 s] .", spans=((1.0, 3.0),), **more) -> AnswerLine:
    return AnswerLine(id=name, text=text, spans=[list(span) for span in spans], **more)


def answers_file(path: Path, *lines: AnswerLine) -> str:
    path.parent.mkdir(exist_ok=True)
    return write_lines(path, [one.to_json() for one in lines])


def page(folder: Path) -> dict:
    """The data of a page, as its script gives them."""
    text = (folder / "answers.js").read_text()
    return json.loads(text.removeprefix('"use strict";\nconst VIEW = ').removesuffix(";\n"))


def view(*words: object) -> int:
    return main([str(word) for word in words])


@pytest.fixture
def videos(tmp_path) -> Path:
    folder = tmp_path / "videos"
    folder.mkdir()
    return folder


def test_the_text_is_cut_at_its_spans_which_keep_their_full_precision():
    shown = answer_json(line(text="a [1.0 s - 3.1 s] b [4.0 s - 5.0 s]", spans=[(1.012, 3.098), (4, 5)]))
    assert shown["pieces"] == ["a ", " b ", ""] and shown["spans"][0] == [1.012, 3.098]
    own_words = answer_json(line(text="from 1 to 3 seconds"))
    assert own_words["pieces"] == ["from 1 to 3 seconds"]


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("span", {}),
        ("span", {"spans": [], "evidence_spans": [[1, 2]]}),  # scored like a span of the answer
        ("none", {"spans": []}),
        ("cut", {"finish_reason": "length"}),
        ("cut", {"finish_reason": "time"}),
        ("error", {"spans": [], "error": "no such file", "finish_reason": "error"}),
        ("odd", {"spans": [[3.0, 1.0]]}),
        ("odd", {"spans": [[float("nan"), 1.0]]}),
    ],
)
def test_what_became_of_a_question(kind, more):
    assert kind_of(AnswerLine(**{"id": "a", "text": "x", "spans": [[1, 2]]} | more)) == kind


def test_iou_is_of_the_first_span_and_f1_of_all():
    truths = [[[1.0, 3.0]], [[0.0, 2.0], [4.0, 6.0]], [[0.0, 1.0]], [[0.0, 1.0]], []]
    lines = [line(spans=[(2, 4)]), line(spans=[(4, 6), (9, 10)]), line(spans=[]), None, line()]
    assert judge(lines, truths) == [{"iou": 0.3333}, {"iou": 1.0, "f1": 0.5}, {"iou": None}, {}, {}]


def test_truth_comes_from_annotations_and_two_files_stand_side_by_side(tmp_path, videos, capsys):
    turns = [{"from": "human", "value": "<video>\nwhen?"}, {"from": "gpt", "value": "at <span> ."}]
    known = {"video": "a.mp4", "duration": 10, "task": "when", "tgt": [1, 3], "conversations": turns}
    truth = write_lines(tmp_path / "truth.jsonl", [{"id": f"q{k}"} | known for k in range(3)])
    first = answers_file(tmp_path / "a" / "x.jsonl", line("q0", question="when?"), line("q1", spans=[(2, 4)]))
    other = answers_file(tmp_path / "b" / "x.jsonl", line("q1"), line("stray"))
    assert view(first, other, "--videos", videos, "--annotations", truth, "--output", tmp_path / "page") == 0
    data = page(tmp_path / "page")
    rows = {row["id"]: row for row in data["rows"]}
    assert data["names"] == ["a/x", "b/x"] and list(rows) == ["q0", "q1", "q2", "stray"]
    assert rows["q0"]["truth"] == [[1, 3]] and rows["q0"]["task"] == "when" and "at <span>" in rows["q0"]["prompt"]
    assert [answer and answer["iou"] for answer in rows["q0"]["answers"]] == [1.0, None]
    assert [answer["iou"] for answer in rows["q1"]["answers"]] == [0.3333, 1.0]
    assert rows["q2"]["answers"] == [None, None] and rows["stray"]["truth"] == []
    said = capsys.readouterr().out
    assert "a/x: 1 questions have no answer (such as q2)" in said and "b/x: 1 answers have no annotation" in said
    assert "1 of 1 videos are no files" in said


def test_no_text_can_leave_the_script(tmp_path, videos):
    bad = "</script><script>alert(1)</script> <!-- \u2028 ü 𝄞"
    answers = answers_file(tmp_path / "a.jsonl", line(bad, question=bad, text=bad, raw_text=bad, video=f"{bad}.mp4"))
    assert view(answers, "--videos", videos, "--output", tmp_path / "page") == 0
    text = (tmp_path / "page/answers.js").read_text()
    assert "<" not in text and text.isascii()
    assert page(tmp_path / "page")["rows"][0]["question"] == bad


def test_videos_are_linked_by_names_that_a_browser_reads(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "my clips/50% #1 é.mp4"
    linked = "../videos/my%20clips/50%25%20%231%20%C3%A9.mp4"
    assert Links(Path("videos"), Path("page")).address(Path("videos") / name) == linked
    whole = Links(tmp_path / "videos", Path("page")).address(tmp_path / "videos" / name)
    assert whole == f"file://{tmp_path}/{linked.removeprefix('../')}"


def test_files_of_one_name_are_told_apart_by_their_folders():
    assert names_of([Path("/r/a/final/x.jsonl"), Path("/r/b/final/x.jsonl")]) == ["a/final/x", "b/final/x"]
    assert names_of([Path("/r/v1.5")]) == ["v1.5"]
    with pytest.raises(ConfigError, match="given twice"):
        names_of([Path("x.jsonl"), Path("x.jsonl")])


def test_what_cannot_be_shown_is_one_line_and_leaves_nothing(tmp_path, videos, capsys):
    good = answers_file(tmp_path / "good.jsonl", line("a"))
    twice = answers_file(tmp_path / "twice.jsonl", line("a"), line("a"))
    spanless = write_lines(tmp_path / "spanless.jsonl", [{"id": "a", "text": "x"}])
    (tmp_path / "empty.jsonl").write_text("")
    annotations = write_lines(tmp_path / "annotations.jsonl", clip_lines())
    for words, told in (
        ((twice,), "twice.jsonl:2: the id 'a' stands twice"),
        ((spanless,), "spanless.jsonl:1: no spans"),
        ((tmp_path / "empty.jsonl",), "holds no answer"),
        ((annotations,), "annotations.jsonl:1: no text, spans"),
        ((good, good, good), "3 files of answers: give one, or two"),
        ((good, "--videos", tmp_path / "none"), "--videos: "),
    ):
        assert view("--videos", videos, "--output", tmp_path / "page", *words) == 2
        error = capsys.readouterr().err
        assert told in error and error.count("\n") == 1 and not (tmp_path / "page").exists()


def test_a_name_that_no_file_can_have_is_a_video_that_is_not_there(tmp_path, videos, capsys):
    answers = answers_file(tmp_path / "a.jsonl", line("a", video=5000 * "a"), line("b", video="a\0b"))
    assert view(answers, "--videos", videos, "--output", tmp_path / "page") == 0
    assert "2 of 2 videos are no files" in capsys.readouterr().out


def test_a_page_is_written_again_but_never_over_another(tmp_path, videos, capsys):
    answers = answers_file(tmp_path / "a.jsonl", line("a"))
    for _ in range(2):
        assert view(answers, "--videos", videos, "--output", tmp_path / "page") == 0
    (tmp_path / "site").mkdir()
    (tmp_path / "site/index.html").write_text("mine")
    assert view(answers, "--videos", videos, "--output", tmp_path / "site") == 2
    assert "site holds another page, index.html; " in capsys.readouterr().err
    assert (tmp_path / "site/index.html").read_text() == "mine"
