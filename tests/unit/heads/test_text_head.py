"""The plain-text head: times written into text are found in it again."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import videollm.heads.text  # noqa: F401  registers the head
from tests.models import byte_tokenizer
from videollm.common.config import ConfigError
from videollm.data.conversation import SpanMark, Turn
from videollm.heads import FrameBatch, SpanRefs, build_head
from videollm.heads.text import parse_spans, write_span
from videollm.reading.styles import STYLES

UNITS = ["percent", "seconds"]


class Tokenizer:
    """Ids are characters; id 0 is a special token."""

    @staticmethod
    def decode(ids, skip_special_tokens=False):
        return "".join(("" if skip_special_tokens else "<s>") if i == 0 else chr(i) for i in ids)


@given(st.sampled_from(UNITS), st.floats(5, 3600), st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), max_size=4))
def test_written_times_are_read_again_to_rounding(unit, duration, shares):
    spans = [sorted((a * duration, b * duration)) for a, b in shares]
    text = "".join(f"Step {i}: {write_span(*span, unit, duration)}, stir. " for i, span in enumerate(spans))
    read, neutral = parse_spans(text, unit, duration)
    tolerance = duration / 200 if unit == "percent" else 0.05
    assert len(read) == len(spans)
    for got, true in zip(read, spans, strict=True):
        assert got == pytest.approx(true, abs=tolerance + 1e-6)
        assert 0 <= got[0] <= got[1] <= duration
    assert neutral.count(" s - ") == len(spans) and neutral.count("stir.") == len(spans)


@pytest.mark.parametrize(
    ("text", "unit", "spans", "neutral"),
    [
        ("It is 28 - 46 percent.", "percent", [[56.0, 92.0]], "It is [56.0 s - 92.0 s]."),
        ("from 50% to 25%", "percent", [[50.0, 100.0]], "from [50.0 s - 100.0 s]"),
        ("90 - 130 percent", "percent", [[180.0, 200.0]], "[180.0 s - 200.0 s]"),
        ("12.3 - 20.1 seconds, cut", "seconds", [[12.3, 20.1]], "[12.3 s - 20.1 s], cut"),
        ("5s–300 s", "seconds", [[5.0, 200.0]], "[5.0 s - 200.0 s]"),
        ("between 1 and 2 Seconds", "seconds", [[1.0, 2.0]], "between [1.0 s - 2.0 s]"),
        ("10 - 20 seconds", "percent", [], "10 - 20 seconds"),
        ("add 2 to 3 spoons", "seconds", [], "add 2 to 3 spoons"),
        ("1.2.3 - 4 seconds", "seconds", [], "1.2.3 - 4 seconds"),
    ],
)
def test_times_are_ordered_clipped_and_written_neutrally(text, unit, spans, neutral):
    read, text = parse_spans(text, unit, 200.0)
    assert text == neutral
    assert read == [pytest.approx(s) for s in spans]


def test_marks_become_text_in_questions_and_answers():
    head = build_head({"name": "text", "unit": "seconds"}, 8)
    turns = [Turn("user", ("After ", SpanMark(1), "?")), Turn("assistant", ("At ", SpanMark(0)))]
    user, assistant = head.compose(turns, [[12.34, 20.0], [0, 1]], 60.0)
    assert user.parts == ("After ", "0.0 - 1.0 seconds", "?")
    assert assistant.parts == ("At ", "12.3 - 20.0 seconds")
    percent = build_head({"name": "text"}, 8).compose(turns, [[15, 30], [0, 1]], 60.0)[1]
    assert percent.parts == ("At ", "25 - 50 percent")


def test_reading_an_answer_gives_spans_with_score_one_and_no_special_tokens():
    head = build_head({"name": "text"}, 8)
    answer = head.read([0, *map(ord, " 10 - 20 percent, mix. ")], None, Tokenizer(), 50.0)
    assert answer.text == "[5.0 s - 10.0 s], mix."
    assert answer.raw_text == "<s> 10 - 20 percent, mix. "
    assert (answer.spans, answer.evidence_spans, answer.scores) == ([[5.0, 10.0]], [], [1.0])


def test_the_text_head_adds_no_loss_and_no_parameter():
    head = build_head({"name": "text"}, 8)
    empty = torch.zeros(0, dtype=torch.int64)
    refs = SpanRefs(empty, empty, empty, empty, empty, empty, empty, torch.zeros(0, 2), 1)
    frames = FrameBatch(torch.zeros(1, 0), torch.zeros(1, 0, dtype=torch.bool), torch.tensor([1.0]))
    assert list(head.parameters()) == [] and head.span_tokens == ()
    assert head.loss(torch.zeros(0, 8), refs, frames) == {} == head.counts(refs)
    assert head.log_prob(torch.zeros(0, 8), refs, frames).tolist() == []


def test_a_span_in_percent_of_no_video_is_an_error():
    with pytest.raises(ValueError, match="duration"):
        write_span(1.0, 2.0, "percent", 0.0)


@pytest.mark.parametrize("style", STYLES)
def test_a_released_models_own_words_are_written_and_read_again(style):
    head = build_head({"name": "text", "unit": "seconds", "style": style}, 8)
    (turn,) = head.compose([Turn("assistant", ("It happens in ", SpanMark(0), "."))], [[3.25, 10.5]], 60.0)
    text = "".join(turn.parts)
    answer = head.read([ord(c) for c in text], None, Tokenizer, 60.0)
    assert answer.text == text and answer.spans == [pytest.approx([3.25, 10.5], abs=0.051)]
    assert head.wording_with({"style": style}) == style and head.wording_with({}) == "plain"


@pytest.mark.parametrize(
    ("text", "spans"),
    [
        ("The event happens in 12.3 - 20.1 seconds.", [[12.3, 20.1]]),
        ('```json\n[{"start": "00:12.30", "end": "00:20.10", "description": "x"}]\n```', [[12.3, 20.1]]),
        ("The described content occurs from 00:05 to 01:30 in the video.", [[5.0, 60.0]]),
        ("I cannot see it.", []),
    ],
)
def test_answers_of_plain_models_are_read_in_any_form_and_cut_at_the_end(text, spans):
    head = build_head({"name": "text", "unit": "seconds", "style": "qwen3_vl"}, 8)
    answer = head.read([ord(c) for c in text], None, Tokenizer, 60.0)
    assert answer.spans == [pytest.approx(s) for s in spans] and answer.text == text


@pytest.mark.parametrize("options", [{"unit": "seconds", "style": "gpt"}, {"unit": "percent", "style": "qwen3_vl"}])
def test_an_unknown_style_or_one_with_percent_is_refused(options):
    with pytest.raises(ConfigError, match=r"head.style: .* there are qwen2_5_vl, qwen3_vl, timelens, with"):
        build_head({"name": "text", **options}, 8)


@pytest.mark.parametrize(
    ("text", "unit"),
    [
        ("it opens at 28 - 46 percent and again from 50% to 60% .", "percent"),
        ("2 men, 12.5 to 20.25 seconds; then 30 and 40 s", "seconds"),
        ("3 people walk tomorrow, 4 run until 5", "seconds"),
        ("straße 28 – 46 percent", "percent"),
    ],
)
def test_of_an_answer_that_goes_on_nothing_is_told_that_changes(text, unit):
    """Byte by byte: what was told stays, and all of it is told in the end."""
    head, tokenizer = build_head({"name": "text", "unit": unit}, 8), byte_tokenizer()
    ids, told = tokenizer.encode(text, add_special_tokens=False), []
    whole = head.read(ids, None, tokenizer, 100.0)
    for end in range(len(ids) + 1):
        now = head.read_so_far(ids[:end], None, tokenizer, 100.0)
        told.append(now.text.rstrip("\ufffd"))
        assert whole.text.startswith(told[-1]) and whole.spans[: len(now.spans)] == now.spans, (text[:end], told[-1])
    assert told == sorted(told, key=len) and len(set(told)) > 5
