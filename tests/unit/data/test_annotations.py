"""One annotation line -> one neutral record: the reading rules, what is mended, what is an error, and the way back."""

import copy
import json
import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.annotated import item, parse, parts, problem
from videollm.data import AnnotationError, neutral_json, parse_record
from videollm.data.conversation import SpanMark, VisualMark

VIDEO = VisualMark(0)


# ---- reading rules ---------------------------------------------------------------------------------------------------


def test_our_own_schema_is_read_as_written():
    record = parse(item("<video>\nAfter <span>?", "At <span>.", id="a", task="mr", source="s", src=[1, 2], tgt=[3, 4]))
    assert [turn.role for turn in record.turns] == ["user", "assistant"]
    assert [turn.parts for turn in record.turns] == [(VIDEO, "After ", SpanMark(0), "?"), ("At ", SpanMark(1), ".")]
    assert record.spans_s == ((1.0, 2.0), (3.0, 4.0))
    assert (record.id, record.video, record.images, record.duration_s) == ("a", "v.mp4", (), 10.0)
    assert (record.task, record.source, record.extra, record.odd) == ("mr", "s", {}, ())


def test_evidence_stage_is_left_out_and_each_event_keeps_the_mark_of_the_answer():
    record = parse(item("q", "<evi>, <evi> and <evi></evi> <evi> a. <evi> b. <evi> c.", tgt=[1, 2, 3, 4, 5, 6]))
    assert record.turns[1].parts == (SpanMark(0), " a. ", SpanMark(1), " b. ", SpanMark(2), " c.")
    assert record.spans_s == ((1, 2), (3, 4), (5, 6))


def test_answer_without_grounding_loses_its_evidence_delimiter():
    assert parts(item("q", "</evi> Best Option: (B)"))[1] == ("Best Option: (B)",)


def test_without_src_tgt_counts_the_marks_of_all_turns_in_order():
    record = parse(item("At <TIME_STAMP>?", "x.", "When?", "<TIME_STAMP>", tgt=[1, 2, 3, 4]))
    assert record.spans_s == ((1, 2), (3, 4))
    assert record.turns[0].parts == (VIDEO, "At ", SpanMark(0), "?")
    assert record.turns[3].parts == (SpanMark(1),)


def test_with_src_questions_and_answers_have_their_own_spans_in_order_of_appearance():
    turns = ("<evi>?", "<evi></evi> <evi>", "and <evi>?", "<evi></evi> <evi>")
    assert parse(item(*turns, src=[1, 2, 5, 6], tgt=[3, 4, 7, 8])).spans_s == ((1, 2), (3, 4), (5, 6), (7, 8))


def test_marks_of_a_question_that_no_span_backs_are_text_and_are_reported():
    record = parse(item("what does <evi> mean", "<evi></evi> At <evi>.", tgt=[1, 2]))
    assert record.turns[0].parts == (VIDEO, "what does <evi> mean")
    assert record.odd == ("span mark of a question without a span, read as text",)
    record = parse(item("<evi> or <evi>", "x", src=[1, 2]))
    assert record.turns[0].parts == (VIDEO, SpanMark(0), " or <evi>")


def test_a_single_src_number_is_a_moment_and_not_odd():
    record = parse(item("at <evi>?", "</evi> x", src=[7.5]))
    assert (record.spans_s, record.odd) == (((7.5, 7.5),), ())
    assert neutral_json(record)["src"] == [7.5]


def test_spans_that_no_mark_refers_to_are_kept_as_extra():
    record = parse(item("when?", tgt=[[1, 2], [3, 4]], src=[5]))
    assert (record.spans_s, record.extra) == ((), {"tgt": [[1, 2], [3, 4]], "src": [5]})
    assert not record.has_answer
    assert parse(item("q", "no time", tgt=[1, 2])).extra == {"tgt": [1, 2]}
    assert parse(item("<evi>?", "no time", src=[1, 2], tgt=[3, 4])).extra == {"tgt": [3, 4]}


def test_empty_or_null_src_and_tgt_mean_none():
    assert parse(item("q", "a", src=None, tgt=[])).extra == {}


def test_other_keys_are_kept():
    assert parse(item("q", "a", events=[{"span": [1, 2]}], clip=None)).extra == {
        "events": [{"span": [1, 2]}],
        "clip": None,
    }


def test_id_is_the_given_one_or_file_and_line():
    assert parse(item("q", id=17)).id == "17"
    assert parse_record(item("q"), 4, "folder/train.jsonl.gz").id == "train:4"


@pytest.mark.parametrize("mark", ["<video>\n", "<video>", "<image>\n", "<image>"])
def test_visual_mark_takes_one_newline_with_it(mark):
    assert parts(item(f"Look: {mark}\nWhat?"))[0] == ("Look: ", VIDEO, "What?" if "\n" not in mark else "\nWhat?")


def test_missing_visual_mark_is_put_in_front_of_the_first_user_turn():
    turns = item("be brief", "q", "a", "q2")["conversations"]
    for turn, speaker in zip(turns, ("system", "user", "assistant", "human"), strict=True):
        turn["from"] = speaker
    record = parse({"video": "v.mp4", "conversations": turns})
    assert [t.role for t in record.turns] == ["system", "user", "assistant", "user"]
    assert [t.parts for t in record.turns] == [("be brief",), (VIDEO, "q"), ("a",), ("q2",)]


def test_images_keep_the_order_of_their_marks():
    record = parse(item("<image>\nand <image>\n?", "a", video=None, image=["a.png", "b/c.png"]))
    assert record.images == ("a.png", "b/c.png")
    assert record.turns[0].parts == (VisualMark(0), "and ", VisualMark(1), "?")
    assert parts(item("?", video=None, image=["a.png", "b.png"]))[0] == (VisualMark(0), VisualMark(1), "?")
    assert parse(item("?", video=None, image="a.png")).images == ("a.png",)


def test_text_only_record_has_no_visual():
    record = parse(item("<b>hi</b>", "hello <image>", video=None))
    assert [turn.parts for turn in record.turns] == [("<b>hi</b>",), ("hello <image>",)]


def test_question_is_the_last_user_turn_with_literal_marks_and_no_visual():
    record = parse(item("first", "a", " <image>\nWhat after <TIME_STAMP>? ", "b", src=[1, 2]))
    assert record.question == "What after <evi>?"
    assert parse(item("first", "a", "second")).question == "second"


# ---- odd spans -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tgt", "mended", "odd"),
    [
        ([5, 2], (2, 5), ("reversed span",)),
        ([4, 4], (4, 4), ("span of zero length",)),
        ([-1, 4], (0, 4), ("span partly outside the video",)),
        ([6, 30.5], (6, 10), ("span partly outside the video",)),
        ([30, -2], (0, 10), ("reversed span", "span partly outside the video")),
        ([10, 12], (10, 10), ("span partly outside the video", "span of zero length")),
    ],
)
def test_odd_spans_are_mended_and_named(tgt, mended, odd):
    record = parse(item("q", "<span>", tgt=tgt))
    assert (record.spans_s, record.odd) == ((mended,), odd)
    raw = parse(item("q", "<span>", tgt=tgt), raw_spans=True)
    assert (raw.spans_s, raw.odd) == ((tuple(tgt),), ())


def test_there_is_one_zero():
    record = parse(item("q", "<span>", tgt=[-0.0, -1]))
    assert str(record.spans_s) == "((0.0, 0.0),)" and neutral_json(record)["tgt"] == [0.0, 0.0]


def test_without_a_duration_spans_are_ordered_and_start_at_zero():
    assert parse(item("q", "<span><span>", tgt=[900, 4, -1, 2], duration=None)).spans_s == ((4, 900), (0, 2))
    assert "lies outside the video" in problem(item("q", "<span>", tgt=[-3, -1], duration=None))


@pytest.mark.parametrize("raw_spans", [False, True])
@pytest.mark.parametrize(
    ("tgt", "says"),
    [
        ([1, math.nan], r"nan is not a time \(tgt\[1\]\)"),
        ([-math.inf, 1], r"-inf is not a time \(tgt\[0\]\)"),
        ([1, 10**400], r"an integer is not a time \(tgt\[1\]\)"),
        ([1, 2, 3], r"odd number of values, 3 \(tgt\)"),
        ([1, "2"], r"string instead of a number \(tgt\[1\]\)"),
        ([True, 2], r"boolean instead of a number \(tgt\[0\]\)"),
        ([[1, 2]], r"nested spans \(tgt\) - flatten"),
        ("1-2", r"string instead of a list \(tgt\)"),
    ],
)
def test_spans_that_cannot_be_mended_are_errors(tgt, says, raw_spans):
    assert re.search(says, problem(item("q", "<span>", tgt=tgt), raw_spans=raw_spans))


def test_span_wholly_outside_the_video_is_an_error_unless_raw():
    outside = item("q", "<span>", tgt=[12, 15])
    assert "[12, 15] lies outside the video, which has 10 s (tgt)" in problem(outside)
    assert parse(outside, raw_spans=True).spans_s == ((12, 15),)


# ---- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["a/../v.mp4", r"a\..\v.mp4", "./v.mp4", "..v.mp4", "a/..b/v.mp4"])
def test_a_path_that_stays_below_the_folder_is_kept_as_it_is_written(path):
    assert parse(item("q", "a", video=path)).video == path


@pytest.mark.parametrize(
    ("annotation", "says"),
    [
        (item("q", "<span>"), "more span marks than spans"),
        (item("q", "<span> <span>", tgt=[1, 2]), "more span marks than spans"),
        (item("q", "<span>", tgt=[1, 2, 3, 4]), "fewer span marks than spans"),
        (item("<evi>?", "a", src=[1, 2, 3, 4]), "fewer span marks than spans: 1 in the questions for 2"),
        (item("<evi>?", "a", tgt=[1, 2, 3, 4]), "fewer span marks than spans"),
        (
            item("<evi>?", "<evi></evi> <evi>", tgt=[1, 2, 3, 4]),
            "1 in the answers (and 1 in the questions) for 2 spans",
        ),
        (item("q", "<evi><evi></evi> <evi>", tgt=[1, 2]), "2 span marks in the evidence stage and 1"),
        (item("q", "<evi></evi> yes", tgt=[1, 2]), "1 span marks in the evidence stage and 0"),
        (item("q", "I think </evi> yes"), "words in the evidence stage"),
        (item("q", "</evi></evi> yes"), "two evidence stages"),
        (item("<video>\n<video>\nq", "a"), "2 <video> or <image> marks for 1"),
        (item("<image>\nq", "a", video=None), "1 <video> or <image> marks for 0"),
        (item("<image>\nq", video=None, image=["a.png", "b.png"]), "1 <video> or <image> marks for 2"),
        (item("q", "<span>", video=None, tgt=[1, 2]), "span marks without a video"),
        (item("q", "a", image="a.png"), "both a video and an image"),
        (item("q", video=7), "a number instead of a path (video)"),
        (item("q", video=""), "an empty path instead of a path (video)"),
        (item("q", video="/data/v.mp4"), "leads out of the folder"),
        (item("q", video="C:\\v.mp4"), "leads out of the folder"),
        (item("q", video="a/../../v.mp4"), "leads out of the folder"),
        (item("q", video=r"a\..\..\v.mp4"), "leads out of the folder"),
        (item("q", video=None, image=["a.png", None]), "null instead of a path (image)"),
        (item("q", video=None, image=[]), "an empty list instead of a path (image)"),
        (item("q", video=None, image={}), "an object instead of a path (image)"),
        (item("q", duration="10"), "a string instead of a number (duration)"),
        (item("q", duration=0), "a video of 0 s (duration)"),
        (item("q", duration=math.nan), "nan is not a time (duration)"),
        (item("q", id=""), "an empty string instead of a name (id)"),
        (item("q", id=1.5), "a number instead of a name (id)"),
        (item("q", task=3), "a number instead of a name (task)"),
        (item(), "empty (conversations)"),
        ({"video": "v.mp4", "q": "when?"}, "missing (conversations)"),
        ({"conversations": "q"}, "a string (conversations)"),
        ({"conversations": {"chosen": []}}, "no rejected answer"),
        ({"conversations": ["q"]}, "not a turn with a text (conversations[0])"),
        ({"conversations": [{"from": "human"}]}, "not a turn with a text (conversations[0])"),
        ({"conversations": [{"from": "bot", "value": "q"}]}, "unknown role 'bot' (conversations[0].from)"),
        ({"conversations": [{"from": ["gpt"], "value": "q"}]}, "unknown role ['gpt']"),
        ({"conversations": [{"from": "gpt", "value": "a"}]}, "the assistant where the user should speak"),
        ({"conversations": [{"from": "human", "value": "a"}] * 2}, "the user where the assistant should speak"),
        (
            {"conversations": [{"from": x, "value": "a"} for x in ("human", "gpt", "system")]},
            "the system where the user should speak",
        ),
        ({"conversations": [{"from": "system", "value": "a"}]}, "no turn of the user"),
        (item("q", " "), "empty answer (conversations[1])"),
        (item("q", "</evi> "), "empty answer (conversations[1])"),
        (item(" ", "a", video=None), "empty turn of the user"),
        ([1, 2], "is a list (line)"),
    ],
)
def test_bad_record_is_one_error_with_place_field_and_remedy(annotation, says):
    assert says in problem(annotation)


def test_examples_of_the_documentation_are_good_records(repository):
    text = (repository / "docs" / "annotations.md").read_text(encoding="utf-8")
    lines = re.findall(r"```json\n(.+)\n```", text)
    assert len(lines) == 4
    records = [parse(json.loads(line)) for line in lines]
    assert [len(record.spans_s) for record in records] == [1, 3, 2, 1]
    assert all(record.odd == () and record.extra == {} for record in records)


# ---- there and back --------------------------------------------------------------------------------------------------

MARKS = ("<span>", "<evi>", "<TIME_STAMP>")
words = st.text(st.sampled_from("aé <>/\n.evispan{}"), max_size=8).filter(
    lambda text: not any(mark in text for mark in (*MARKS, "</evi>"))
)
span_marks = st.sampled_from(MARKS)
times = st.floats(0, 10) | st.integers(0, 10)


@st.composite
def annotations(draw):
    """Records of every style that is read: ours and both published ones, with and without answer and visuals."""
    style = draw(st.sampled_from(["src and tgt", "evidence", "in order", "no spans", "unused"]))
    visual = draw(st.sampled_from([{"video": "a/v.mp4"}, {"image": ["x.png"]}, {"image": ["x.png", "y.png"]}, {}]))
    if style not in ("no spans", "unused"):
        visual = {"video": "v.mp4"}
    visuals = 1 if "video" in visual else len(visual.get("image", ()))
    turns, marks = [], {"human": 0, "gpt": 0}
    if draw(st.booleans()):
        turns.append({"from": "system", "value": draw(words | st.just("<span> <image>"))})
    for k in range(draw(st.integers(1, 4))):
        speaker = ("human", "gpt")[k % 2]
        count = 0 if style in ("no spans", "unused") else draw(st.integers(0, 2))
        text = "x" + "".join(draw(words) + draw(span_marks) for _ in range(count)) + draw(words)
        marks[speaker] += count
        if k == 0 and draw(st.booleans()):
            text = draw(words) + "<image>\n" * visuals + text
        if speaker == "gpt" and style == "evidence":
            text = "<evi>" * count + "</evi> " + text
        turns.append({"from": speaker, "value": text})
    result = {"conversations": turns, "events": [1], **visual, **draw(st.sampled_from([{}, {"id": "i", "task": "t"}]))}
    result |= draw(st.sampled_from([{}, {"duration": 10}, {"duration": 6.5}]))
    src, tgt = (draw(st.lists(times, min_size=2 * n, max_size=2 * n)) for n in (marks["human"], marks["gpt"]))
    if style == "in order":
        result["tgt"] = src + tgt
    elif style == "unused":
        result["tgt"] = [[1, 2]]
    else:
        asked = draw(st.sampled_from([src, src[:2], src[:1] if len(src) == 2 else src, []]))
        result |= {"src": asked, "tgt": tgt}
    return result


@settings(max_examples=300, deadline=None)
@given(annotations(), st.booleans())
def test_a_record_written_in_our_schema_is_read_back_equal(annotation, raw_spans):
    before = copy.deepcopy(annotation)
    try:
        record = parse(annotation, raw_spans=raw_spans)
    except AnnotationError as error:
        assert "lies outside the video" in str(error)  # duration 6.5, span drawn from [0, 10]
        return
    assert annotation == before
    line = json.loads(json.dumps(neutral_json(record)))
    assert parse(line, raw_spans=raw_spans) == record
    told = "".join(t["value"] for t in line["conversations"] if t["from"] == "gpt")
    assert not re.search("<evi>|<TIME_STAMP>", told) or record.turns[-1].written
    marks = [part.span for turn in record.turns for part in turn.parts if isinstance(part, SpanMark)]
    assert marks == list(range(len(record.spans_s)))
    if not raw_spans:
        assert all(0 <= start <= end <= (record.duration_s or 10) for start, end in record.spans_s)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | span_marks,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=4,
)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_damaged_record_is_read_or_refused_but_never_crashes(data):
    annotation = item("<video>\nq <span>", "<evi></evi> a <evi>", src=[1, 2], tgt=[3, 4], id="i", task="t", image=None)
    key = data.draw(st.sampled_from([*annotation, "turn", "from", "value"]))
    value = data.draw(json_values)
    if key in annotation:
        annotation[key] = value
    elif key == "turn":
        annotation["conversations"][data.draw(st.integers(0, 1))] = value
    else:
        annotation["conversations"][data.draw(st.integers(0, 1))][key] = value
    try:
        record = parse(annotation)
    except AnnotationError as error:
        assert len(error.problems) == 1
    else:
        assert parse(neutral_json(record)) == record
