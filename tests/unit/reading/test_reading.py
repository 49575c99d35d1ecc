"""What is read in an answer, form by form, and that no text is too odd or too long to be read."""

import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from videollm.reading import read_choice, read_moment, read_spans, read_steps, span_beside
from videollm.reading.spans import explain_spans

LONG = 40_000  # characters
SECONDS = 5.0  # for any text of that length; measured: below 0.6 s alone on a core

FRAGMENTS = st.sampled_from(
    ["1", "23.5", "7..", ".", "-", " - ", " to ", ":", "1:05", "seconds", "start", "end time: 4", "start time: 3", "\n"]
    + [
        "</evi>",
        "<evi>",
        "(A)",
        "(",
        ")",
        "b. ",
        "The answer is ",
        "description: ",
        "* ",
        "\x00",
        "<think>",
        "</think>",
    ]
    + [
        "<answer>",
        "\\boxed{",
        "[",
        "{",
        "[1, 2],",
        '{"start":',
        "Answer: ",
        "A or B ",
        " so ",
        "5 - 9, ",
        "not ",
        "the ",
    ]
    + ["\x1c", "\u2028", "é", "\u0661\u0660", "\u2013", "\uff11", "!", ",", "9" * 400, "İ", "start time 1, end time 2"]
)
TEXTS = st.one_of(st.text(), st.lists(FRAGMENTS, max_size=30).map("".join))


@given(TEXTS)
@example("0-0:00A")
def test_what_is_read_is_ordered_and_finite(text):
    spans, captions = read_steps(text, 60.0)
    assert len(spans) == len(captions)
    for start, end in [*spans, *read_spans(text, 60.0)]:
        assert 0 <= start <= end < float("inf")
    moment = read_moment(text)
    assert moment is None or abs(moment) < float("inf")


@given(TEXTS, st.integers(2, 6), st.sampled_from(["letter", "digit"]))
def test_a_choice_is_one_of_the_options_or_none(text, count, labels):
    options = ["a man opens the door", "a man", "5 - 10", "", "\x00", "é"][:count]
    choice = read_choice(text, count, options, labels)
    assert choice is None or 0 <= choice < count


@settings(deadline=None, max_examples=12)
@given(st.lists(FRAGMENTS, min_size=1, max_size=4).map("".join))
@example("1")
@example("1 - ")
@example("\n")
@example("the ")
@example("The answer is ")
@example("5 - 9, ")
@example("<think>")
@example("[")
def test_time_grows_about_linearly_with_the_text(fragment):
    text = (fragment * LONG)[:LONG]
    started = time.process_time()
    for read in (read_spans, read_steps, read_moment):
        read(text, 60.0)
    read_choice(text, 4, ["yes", "no", "left", "right"])
    assert time.process_time() - started < SECONDS


def clock(t: float) -> str:
    return f"{int(t // 60):02d}:{t % 60:05.2f}"


def words(t: float) -> str:
    minutes, seconds = divmod(t, 60)
    return f"{int(minutes)} minutes {seconds:.2f} seconds"


FORMS = (
    lambda s, e: f"{s:.2f} - {e:.2f}",
    lambda s, e: f"The event happens in {s:.2f} - {e:.2f} seconds.",
    lambda s, e: f"<answer>{s:.2f} to {e:.2f}</answer>",
    lambda s, e: f"<think>From 1.0 to 2.0?</think>It is from {s:.2f}s to {e:.2f}s.",
    lambda s, e: f"between {s:.2f} and {e:.2f} seconds",
    lambda s, e: f"{clock(s)} \u2013 {clock(e)}",
    lambda s, e: f"00:{clock(s)} --> 00:{clock(e)}".replace(".", ","),
    lambda s, e: f"{words(s)} to {words(e)}",
    lambda s, e: f"It starts at {words(s)} and ends at {words(e)}.",
    lambda s, e: f"[{s:.2f}, {e:.2f}]",
    lambda s, e: f"[[{s:.2f}, {e:.2f}, 0.75]]",
    lambda s, e: f'```json\n{{"start": "{s:.2f}", "end": {e:.2f}}}\n```',
    lambda s, e: f'{{"timestamp": "{s:.2f} - {e:.2f}"}}',
    lambda s, e: f"**{s:.2f}** to **{e:.2f}** s".replace(".", ","),
    lambda s, e: f"Final answer: {s / 6:.6f}% to {e / 6:.6f}%",
)


@given(st.integers(0, 59_900), st.integers(0, 99), st.sampled_from(range(len(FORMS))))
def test_a_span_printed_in_any_form_is_read_back(start, length, form):
    start_s, end_s = start / 100, (start + length) / 100
    spans = read_spans(FORMS[form](start_s, end_s), 600.0)
    assert len(spans) == 1
    assert spans[0] == pytest.approx([start_s, end_s], abs=1e-5)


@given(st.lists(st.tuples(st.integers(0, 5_000), st.integers(1, 500)), min_size=1, max_size=6), st.integers(0, 3))
def test_steps_printed_in_a_list_are_read_back(events, form):
    spans = [[start / 10, (start + length) / 10] for start, length in events]
    captions = [f"crack {k} to {k + 1} eggs" for k in range(len(spans))]
    lines = (
        [f"{k}. {s} - {e} seconds, {c}" for k, ((s, e), c) in enumerate(zip(spans, captions, strict=True), 1)],
        [f"- From {s}s to {e}s: {c}" for (s, e), c in zip(spans, captions, strict=True)],
        [f"[{s}, {e}] {c}" for (s, e), c in zip(spans, captions, strict=True)],
        [f"{clock(s)} - {clock(e)} {c}" for (s, e), c in zip(spans, captions, strict=True)],
    )[form]
    read = read_steps("\n".join(lines))
    assert read[0] == [pytest.approx(span) for span in spans]
    assert read[1] == captions


@pytest.mark.parametrize(
    ("text", "spans"),
    [
        ("The event happens in [12.0 s - 15.5 s] .", [[12, 15.5]]),
        ("20 - 10", [[10, 20]]),
        ("from 1:10 to 01:01:30.5", [[70, 3690.5]]),
        ("between 5 and 6 minutes", [[300, 360]]),
        ("5 minutes to 400 seconds", [[300, 400]]),
        ("1,000 - 2,000", [[1000, 2000]]),
        ("[10, 20] and (30, 40)", [[10, 20], [30, 40]]),
        ("-5 - 10", []),  # before the video, or a list mark: nobody knows
        ("- 0:05\n- 0:09", []),
        ("from 3 to 9 or 12 to 15 seconds", []),
        ("10 - 20 - 30", [[10, 20]]),
        ("300to330", []),
        ("9" * 400 + " - 5", []),
    ],
)
def test_spans_are_read_as_meant(text, spans):
    assert read_spans(text) == spans


def test_what_needs_the_length_of_the_video_is_not_read_without_it():
    for text in ("20% to 45%", "Throughout the video.", "from 40 s until the end of the video"):
        assert read_spans(text) == []
        assert len(read_spans(text, 200.0)) == 1


def test_the_rule_says_which_part_counted():
    text = "<think>0.0 to 30.0</think><answer>12.0 to 15.0</answer>"
    assert explain_spans(text).rule == "<answer>; a pair of times"
    assert explain_spans("<think>0.0 to 30.0").rule == "no answer part; no pair of times"


@pytest.mark.parametrize(
    ("text", "moment"),
    [("In scene 2, at 11 seconds", 11), ("9 - 12", 10.5), ("at 1:05", 65), ("14", 14), ("none", None)],
)
def test_a_moment_is_read_as_meant(text, moment):
    assert read_moment(text) == moment


@pytest.mark.parametrize(
    ("text", "captions"),
    [
        ("Here are the steps: 5 - 15 seconds, pour oil. 18 - 30 seconds, add onions.", ["pour oil", "add onions"]),
        ("5 - 15, oil. 18 - 30, stir", ["oil", "stir"]),
        ("pour oil (5 - 15), stir (18 - 30)", ["pour oil", "stir"]),
        ("Start time: 5s, End time: 15s, Description: Pour.\nStart time: 18s, End time: 30s, Description: Stir.",)
        + (["Pour", "Stir"],),
    ],
)
def test_a_caption_stays_with_its_own_time(text, captions):
    assert read_steps(text) == ([[5, 15], [18, 30]], captions)


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("(b)", 1),
        ("b. run", 1),
        ("Based on the video, the answer is C", 2),
        ("the dog sleeps", 1),
        ("the dog", None),
        ("(B) is wrong, (C) is right", 2),
        ("A dog runs", None),
        ("(F)", None),
        (".", None),
    ],
)
def test_a_choice_is_read_as_meant(text, choice):
    assert read_choice(text, 4, ["a cat", "the dog sleeps", "the dog runs", "no animal"]) == choice


@pytest.mark.parametrize(
    ("text", "spans"),
    [
        ('{"resolution": [640, 480]}', []),
        ("The box is at [120, 45].", []),
        ("from 12.0 seconds to 1", []),
        ("from the 2nd to the 3rd floor", []),
        ("He waits for 5 to 10 minutes.", []),
    ],
)
def test_numbers_that_are_no_times_are_not_read(text, spans):
    assert read_spans(text) == spans


def test_a_moment_in_percent_needs_the_length_of_the_video():
    assert read_moment("at 50% of the video") is None
    assert read_moment("at 50% of the video", 60.0) == 30.0


@pytest.mark.parametrize(
    "text", ["<answer></answer> 5 - 10 s", "", "5 - 10 s, 12 - 15 s. Answer: C", "<think>5 - 10 s</think>"]
)
def test_a_span_beside_no_answer_or_beside_others_is_not_read(text):
    assert span_beside(text, None) is None
