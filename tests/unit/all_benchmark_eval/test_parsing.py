"""What is read from an answer's text, and that no text is too odd or too long to be read."""

import contextlib
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from all_benchmark_eval.metrics import choices, parsing

LONG = 100_000  # characters
SECONDS = 5.0  # for any text of that length; measured: below 0.6 s alone on a core

FRAGMENTS = st.sampled_from(
    ["1", "23.5", "7..", ".", "-", " - ", " to ", ":", "1:05", "seconds", "start", "end time: 4", "start time: 3", "\n"]
    + ["</evi>", "<evi>", "(A)", "(", ")", "b. ", "The answer is ", "description: ", "* ", "\x00"]
    + ["\x1c", "\u2028", "é", "\u0661\u0660", "\u2013", "\uff11", "!", ",", "9" * 400, "İ", "start time 1, end time 2"]
)
TEXTS = st.one_of(st.text(), st.lists(FRAGMENTS, max_size=30).map("".join))
PUBLISHED = (
    parsing.published_spans,
    parsing.published_spans_with_evidence,
    parsing.published_steps,
    parsing.published_steps_with_evidence,
)


@given(TEXTS)
@example("10.. - 20")
@example("</evi>1..5 - 3")
@example(f"2{'0' * 320}:0")  # more than a float holds
def test_published_parsers_raise_nothing_but_value_error(text):
    for parse in PUBLISHED:
        try:
            parse(text)
        except ValueError:
            assert parse is not parsing.published_steps
    parsing.published_number(text)
    parsing.evidence_and_answer_spans(text)


@given(TEXTS)
def test_what_is_read_is_ordered_and_finite(text):
    spans, captions = parsing.read_steps(text)
    assert spans == parsing.read_spans(text)
    assert len(spans) == len(captions)
    assert all(start <= end < float("inf") and start > float("-inf") for start, end in spans)
    moment = parsing.read_moment(text)
    assert moment is None or abs(moment) < float("inf")
    assert "".join(parsing.split_evidence(text)) in text or "</evi>" in text.lower()


@given(TEXTS, st.integers(2, 6))
def test_a_choice_is_one_of_the_options_or_none(text, count):
    options = ["a man opens the door", "a man", "5 - 10", "", "\x00", "é"][:count]
    choice = choices.read_choice(text, count, options)
    assert choice is None or 0 <= choice < count
    assert choices.videomme_letter(text) in ("", "A", "B", "C", "D")
    for variant in ("distime", "d2vlm"):
        choices.mvbench_right(text, "(A) yes", variant)
    choices.longvideobench_right(text, "A. yes")
    for bracketed in (False, True):
        verdict = choices.etbench_verdict(text, 0, count, bracketed=bracketed, final=True)
        assert verdict.right is not None or not verdict.matched or verdict.rest


@settings(deadline=None, max_examples=25)
@given(st.lists(FRAGMENTS, min_size=1, max_size=4).map("".join))
@example("1")
@example("1 - ")
@example("1:")
@example(" ")
@example("start 9 ")
@example("(")
def test_time_grows_about_linearly_with_the_text(fragment):
    text = (fragment * LONG)[:LONG]
    started = time.process_time()
    for parse in (*PUBLISHED, parsing.read_steps, parsing.read_moment, parsing.published_number):
        with contextlib.suppress(ValueError):
            parse(text)
    choices.read_choice(text, 4, ["yes", "no", "left", "right"])
    choices.videomme_letter(text)
    assert time.process_time() - started < SECONDS


def test_ten_thousand_different_ranges_are_cut_out_in_time():
    text = " ".join(f"{n} - {n + 1}, step" for n in range(6000))
    started = time.process_time()
    spans, captions = parsing.published_steps(text)
    assert len(spans) == len(captions) > 1000
    assert time.process_time() - started < SECONDS


@pytest.mark.parametrize(
    ("text", "spans"),
    [
        ("The event happens in 10.0 - 20.0 seconds.", [[10, 20]]),
        ("The event happens in [12.0 s - 15.5 s] .", [[12, 15.5]]),
        ("20 - 10", [[10, 20]]),
        ("10s \u2013 20s", [[10, 20]]),
        ("from 1:10 to 01:01:30.5", [[70, 3690.5]]),
        ("between 5 and 6 minutes", [[300, 360]]),
        ("5 minutes to 400 seconds", [[300, 400]]),
        ("1,000 - 2,000", [[1000, 2000]]),
        ("[10, 20] and (30, 40)", [[10, 20], [30, 40]]),
        ("It starts at 3 and ends at 9.", [[3, 9]]),
        ("Start time: 00:01:10\nEnd time: 00:01:30", [[70, 90]]),
        ("-5 - 10", [[-5, 10]]),
        ("10 - 20 - 30", [[10, 20]]),
        ("no such event", []),
        ("300to330", []),
        ("9" * 400 + " - 5", []),
    ],
)
def test_spans_are_read_as_meant(text, spans):
    assert parsing.read_spans(text) == spans


@pytest.mark.parametrize(
    ("text", "moment"),
    [("In scene 2, at 11 seconds", 11), ("9 - 12", 10.5), ("at 1:05", 65), ("14", 14), ("none", None)],
)
def test_a_moment_is_read_as_meant(text, moment):
    assert parsing.read_moment(text) == moment


@pytest.mark.parametrize(
    ("text", "captions"),
    [
        ("Here are the steps: 5 - 15 seconds, pour oil. 18 - 30 seconds, add onions.", ["pour oil", "add onions"]),
        ("1 - 5 seconds, pour water. 11 - 55 seconds, stir well.", ["pour water", "stir well"]),
        ("5 - 15, oil. 18 - 30, stir", ["oil", "stir"]),
        ("pour oil (5 - 15), stir (18 - 30)", ["pour oil", "stir"]),
        ("Start time: 5s, End time: 15s, Description: Pour.\nStart time: 18s, End time: 30s, Description: Stir.",)
        + (["Pour", "Stir"],),
    ],
)
def test_a_caption_stays_with_its_own_time(text, captions):
    spans, found = parsing.read_steps(text)
    assert found == captions
    assert spans == [[5, 15], [18, 30]] or text.startswith("1 - 5")


def test_evidence_ends_at_the_first_delimiter_and_the_answer_starts_behind_the_last():
    assert parsing.split_evidence("<evi> 1 - 2 </evi>x</EVI> (B)") == ("<evi> 1 - 2 ", " (B)")
    assert parsing.split_evidence("(B)") == ("", "(B)")
    assert parsing.evidence_and_answer_spans("<evi> 4 - 2 </evi>9 - 5") == ([[4, 2]], [[5, 9]])
    assert parsing.evidence_and_answer_spans("9 - 5") == ([], [])


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("B", 1),
        ("(b)", 1),
        ("b. run", 1),
        ("The answer is (C).", 2),
        ("<evi> (A) 1 - 2 </evi>Best Option: (D)", 3),
        ("Based on the video, the answer is C", 2),
        ("I think it is D", 3),
        ("the dog sleeps", 1),
        ("the dog", None),
        ("(B) is wrong, (C) is right", None),
        ("A dog runs", None),
        ("(F)", None),
        ("", None),
        (".", None),
    ],
)
def test_a_choice_is_read_as_meant(text, choice):
    assert choices.read_choice(text, 4, ["a cat", "the dog sleeps", "the dog runs", "no animal"]) == choice
