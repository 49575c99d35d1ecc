"""A line of an answers file keeps its keys and their order, and names what it lacks; spans come back from a text."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.answers import answer_line
from videollm.common.answers import AnswerLine, span_text, split_spans

KEYS = ["id", "video", "question", "text", "raw_text", "spans", "evidence_spans", "scores", "duration", "finish_reason"]
TIMES = st.integers(0, 10**6).map(lambda tenths: tenths / 10)


def test_a_line_comes_back_from_its_json_with_its_keys_in_order():
    line = answer_line("q", "at [1.0 s - 2.5 s]", [[1.0, 2.5]], [[0, 3]], video="a.mp4", scores=[0.5], duration=60)
    text = json.dumps(line.to_json())
    assert list(json.loads(text)) == [*KEYS, "thinned", "error"]
    assert AnswerLine.from_json(json.loads(text)) == line and '"duration": 60,' in text


def test_other_keys_are_kept_and_later_ones_may_be_missing():
    row = answer_line("q").to_json()
    del row["thinned"]
    line = AnswerLine.from_json(row | {"note": 7})
    assert line.thinned == 0 and line.to_json() == answer_line("q").to_json() | {"note": 7}


def test_a_reader_may_need_fewer_keys():
    line = AnswerLine.from_json({"id": "q", "text": "t", "spans": [[1, 2]]}, needed=("id", "text", "spans"))
    assert line.scored_spans == [[1, 2]] and line.error is None


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"id": 5}, "id or text is no text"),
        ({"text": None}, "id or text is no text"),
        ({"spans": None}, "spans are not"),
        ({"spans": [[1, 2, 3]]}, "spans are not"),
        ({"evidence_spans": [["1", "2"]]}, "spans are not"),
        ({"spans": [[1, 10**400]]}, "spans are not"),
        ({"spans": [[False, True]]}, "spans are not"),
        ({"video": 5}, "video is not text or null"),
        ({"video": ["a.mp4"]}, "video is not text or null"),
        ({"question": 5}, "question is not text or null"),
        ({"raw_text": {}}, "raw_text is not text or null"),
        ({"finish_reason": [1]}, "finish_reason is not text or null"),
        ({"error": 5}, "error is not text or null"),
        ({"scores": None}, "scores is not a list of numbers"),
        ({"scores": ["1"]}, "scores is not a list of numbers"),
        ({"duration": "10 s"}, "duration is not a number of seconds or null"),
    ],
)
def test_a_line_that_is_no_answer_says_why(change, says):
    with pytest.raises(ValueError, match=says):
        AnswerLine.from_json(answer_line("q").to_json() | change)


@pytest.mark.parametrize("row", [[], None, "text", {}])
def test_data_without_keys_is_told_which_are_missing(row):
    with pytest.raises(ValueError, match="^no id, text, raw_text, spans, evidence_spans, finish_reason, error$"):
        AnswerLine.from_json(row)


def test_the_evidence_is_scored_only_where_the_answer_has_no_span():
    assert answer_line("q", spans=[[1, 2]], evidence=[[3, 4]]).scored_spans == [[1, 2]]
    assert answer_line("q", evidence=[[3, 4]]).scored_spans == [[3, 4]]


@given(
    st.lists(st.tuples(TIMES, TIMES).map(list), max_size=4),
    st.lists(st.text("ab [-5.s]\n", max_size=9), min_size=5, max_size=5),
)
def test_spans_come_back_from_a_text_with_the_texts_around_them(spans, words):
    pieces = words[: len(spans) + 1]
    if any(split_spans(piece)[1] for piece in pieces):
        return  # a span by chance
    text = pieces[0] + "".join(span_text(*s) + piece for s, piece in zip(spans, pieces[1:], strict=True))
    assert split_spans(text) == (pieces, spans)


def test_a_span_is_found_however_it_is_spaced_and_rounded():
    assert split_spans("a [ 1s-2.25 s ], b [-0.0 s - 3 s]") == (["a ", ", b ", ""], [[1.0, 2.25], [0.0, 3.0]])
