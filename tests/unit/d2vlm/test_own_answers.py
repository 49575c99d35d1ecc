"""Rejected answers that a model gives itself, and those that a rewriting command makes."""

import json
import math
import sys

import pytest

from d2vlm.preference import Mix, PreferenceOptions, add_rejected
from d2vlm.preferences.own_answers import OwnOptions, RewriteOptions, read_answers, rewrites, verdict
from d2vlm.preferences.wording import take_apart
from tests.answers import answer_line
from tests.preferences import DENSE, TIMES, made, record
from videollm.common.config import ConfigError, build
from videollm.data import neutral_json


@pytest.mark.parametrize(
    ("text", "spans", "expected"),
    [
        ("<span> cut it. <span> fry it.", [(1, 4), (6, 10)], None),
        ("<span> Cut it . <span> fry it", [(1, 4.5), (6, 9)], None),
        ("<span> cut it. <span> fry it.", [(1, 4), (12, 15)], "own-span"),
        ("<span> cut it.", [(1, 4)], "own-both"),
        ("<span> cut it. <span> cut it.", [(1, 4), (6, 10)], "own-text"),
        ("Nothing happens.", [], "own-both"),
    ],
)
def test_own_answer_is_rejected_where_span_or_text_is_measurably_wrong(text, spans, expected):
    right = take_apart("<span> cut it. <span> fry it.", [(1.0, 4.0), (6.0, 10.0)])
    assert verdict(right, take_apart(text, spans), OwnOptions()) == expected


def own_line(name, text, spans, error=None):
    return json.dumps(answer_line(name, text, spans, error=error).to_json()) + "\n"


def test_wrong_own_answers_are_added_and_right_ones_are_not(tmp_path):
    source = record("At <span>.", [10, 20], id="q")
    path = tmp_path / "own.jsonl"
    path.write_text(
        own_line("q", "At [10.5 s - 20.0 s].", [[10.5, 20]])
        + own_line("q", "At [30.0 s - 45.0 s].", [[30, 45]])
        + own_line("q", "At [30.0 s - 45.0 s].", [[30, 45]])
        + own_line("q", "Never.", [])
        + own_line("q", "", [])
        + own_line("q", "At [1.0 s - 2.0 s].", [])
        + own_line("p", "No.", [])
        + own_line("q", "", [], error="no such file")
    )
    own, unused = read_answers([path], {"q"})
    assert unused == {
        "empty, or times in its text that are no spans": 2,
        "no record has its id": 1,
        "its question could not be asked": 1,
    }
    (result,) = add_rejected([source], PreferenceOptions(per_record=0, own=OwnOptions(most=5)), own).records
    found = {answer.factor: answer for answer in result.rejected}
    assert len(result.rejected) == 2 and set(found) == {"own-span", "own-both"}
    assert found["own-span"].spans_s == ((30, 40),)  # the video is annotated with 40 s


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", r"own\.jsonl:1: not JSON"),
        ("[]", r"own\.jsonl:1: no id"),
        ('{"id": "q"}', r"own\.jsonl:1: no text, spans"),
        (own_line("q", "[1 s - 2 s]", [[1, math.nan]]), "spans are not"),
        (own_line("q", "[1 s - 2 s]", [1]), "spans are not"),
        (own_line("other", "x", []), "no record has its id: 1"),
        ("", "no line"),
    ],
)
def test_bad_file_of_own_answers_is_an_error(tmp_path, content, says):
    path = tmp_path / "own.jsonl"
    path.write_text(content)
    with pytest.raises(ConfigError, match=says):
        read_answers([path], {"q"})


def command(tmp_path, body):
    """A command that runs ``body`` with the lines of its input as ``lines``."""
    script = tmp_path / "rewriter.py"
    script.write_text(f"import json, sys, time\nlines = [json.loads(line) for line in sys.stdin]\n{body}\n")
    return f"{sys.executable} {script}"


def test_a_rewriting_command_makes_rejected_answers(tmp_path):
    body = 'for x in lines: print(json.dumps({"id": x["id"], "answer": x["answer"].replace("egg", x["question"])}))'
    sources = [record(DENSE, TIMES), record("<span>, sit.", [1, 2], line=2)]
    options = PreferenceOptions(
        mix=Mix(**(dict.fromkeys(vars(Mix()), 0.0) | {"rewrite": 1})), rewrite=RewriteOptions(command(tmp_path, body))
    )
    result = add_rejected(sources, options)
    ((answer,),) = [source.rejected for source in result.records]
    assert answer.factor == "rewrite" and answer.spans_s == sources[0].spans_s
    assert "fry the What happens?" in neutral_json(result.records[0])["rejected"][0]["value"]
    assert [source.line for source, _ in result.without] == [2]  # its rewrite says the same


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("sys.exit('no GPU')", "ended with status 1: no GPU"),
        ("time.sleep(30)", "not done after 1 s"),
        ("print('hm')", "line 1 of its output is not JSON"),
        ("print(json.dumps({'id': 'x', 'answer': chr(0xD83D)}))", "half a character, \\ud83d"),
        ("print('[1]')", 'is not {"id": one of the input'),
        ("print(json.dumps({'id': 'x', 'answer': ''}))", 'is not {"id": one of the input'),
        ("print(json.dumps({'id': lines[0]['id'], 'answer': 'x'}))", "it must keep every <span>"),
    ],
)
def test_bad_rewriting_command_is_an_error(tmp_path, body, says):
    with pytest.raises(ConfigError) as caught:
        rewrites([record(DENSE, TIMES)], RewriteOptions(command(tmp_path, body), timeout_s=1))
    assert says in str(caught.value)


def test_a_rewriting_command_that_is_not_there_is_an_error():
    with pytest.raises(ConfigError, match="cannot be run"):
        rewrites([record(DENSE, TIMES)], RewriteOptions("no-such-command"))


def test_times_are_as_fine_as_asked_also_those_of_a_model(tmp_path):
    source = record("At <span>.", [10, 20.25], id="q", task="x")
    for name in ("shift", "stretch", "random"):
        for seed in range(10):
            ((start, end),) = made(name, source, seed=seed, step_s=0.25).spans
            assert start * 4 == int(start * 4) and end * 4 == int(end * 4)
    path = tmp_path / "own.jsonl"
    path.write_text(own_line("q", "At [30.1 s - 39.93 s].", [[30.1, 39.93]]))
    own, _ = read_answers([path], {"q"})
    options = build(PreferenceOptions, {"per_record": 0, "severity": {"step_s": 0.25}})
    (answer,) = add_rejected([source], options, own).records[0].rejected
    assert answer.spans_s == ((30.0, 40.0),)
