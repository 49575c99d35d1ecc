"""What published scripts read in an answer's text, and that no text is too odd or too long for them."""

import contextlib
import time

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


@given(TEXTS, st.integers(2, 6))
def test_published_rules_for_a_choice_take_any_text(text, count):
    for variant in ("d2vlm", "official"):
        assert choices.videomme_letter(text, variant) in ("", "A", "B", "C", "D")
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
    for parse in (*PUBLISHED, parsing.published_number):
        with contextlib.suppress(ValueError):
            parse(text)
    choices.videomme_letter(text, "official")
    assert time.process_time() - started < SECONDS


def test_ten_thousand_different_ranges_are_cut_out_in_time():
    text = " ".join(f"{n} - {n + 1}, step" for n in range(6000))
    started = time.process_time()
    spans, captions = parsing.published_steps(text)
    assert len(spans) == len(captions) > 1000
    assert time.process_time() - started < SECONDS


def test_evidence_ends_at_the_first_delimiter_and_the_answer_starts_behind_the_last():
    assert parsing.split_evidence("<evi> 1 - 2 </evi>x</EVI> (B)") == ("<evi> 1 - 2 ", " (B)")
    assert parsing.split_evidence("(B)") == ("", "(B)")
    assert parsing.evidence_and_answer_spans("<evi> 4 - 2 </evi>9 - 5") == ([[4, 2]], [[5, 9]])
    assert parsing.evidence_and_answer_spans("9 - 5") == ([], [])


def test_evidence_is_no_part_of_a_choice():
    assert choices.chosen("<evi> (A) 1 - 2 </evi>Best Option: (D)", 4).value == 3
