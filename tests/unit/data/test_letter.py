"""What published code computes is read under ``raw_spans`` as it reads it, and by default mended or refused by name."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from videollm.data import AnnotationError, load_records, neutral_json, parse_record
from videollm.data.conversation import SpanMark, Token, VisualMark
from videollm.data.published import to_classes
from videollm.data.record import as_annotated

IMAGE = VisualMark(0, after="")
END, MARK = Token("</evi>"), Token("<evi>")


def item(asked="<image>\nWhen?", answer=None, **keys):
    turns = [{"from": "human", "value": asked}] + [{"from": "gpt", "value": answer}] * (answer is not None)
    return {"video": "v.mp4", "duration": 13, "conversations": turns} | keys


def raw(annotation):
    return parse_record(annotation, 1, "set.jsonl", raw_spans=True)


def refused(annotation):
    with pytest.raises(AnnotationError) as caught:
        parse_record(annotation, 1, "set.jsonl")
    return str(caught.value)


@pytest.mark.parametrize(
    ("answer", "tgt", "written", "neutral"),
    [
        ("<evi> <evi> </evi> At <evi>, <evi>.", [1, 2, 3, 4],
         (SpanMark(0), " ", SpanMark(1), " ", END, " At ", SpanMark(0), ", ", SpanMark(1), "."),
         ("At ", SpanMark(0), ", ", SpanMark(1), ".")),
        ("See <evi> here</evi>: <evi>", [1, 2], ("See ", SpanMark(0), " here", END, ": ", SpanMark(0)),
         ("here: ", SpanMark(0))),
        ("<evi> is <evi>", [1, 2], (SpanMark(0), " is ", SpanMark(0)), ("is ", SpanMark(0))),
        ("</evi>No.</evi>", [], (END, "No.", END), ("No.",)),
        ("No.", None, ("No.",), ("No.",)),
        ("", None, (), ()),
        ("</evi>", None, (END,), ()),
        ("<EVI></Evi> no", None, ("<EVI></Evi> no",), ("<EVI></Evi> no",)),
    ],
)  # fmt: skip
def test_an_answer_is_kept_to_the_letter_beside_its_neutral_words(answer, tgt, written, neutral):
    annotation = item(answer=answer) | ({} if tgt is None else {"tgt": tgt})
    record = raw(annotation)
    assert (record.turns[1].written, record.turns[1].parts) == (written, neutral)
    assert [as_annotated(turn) for turn in record.turns] == [t["value"] for t in annotation["conversations"]]
    line = json.loads(json.dumps(neutral_json(record)))
    assert line["conversations"] == annotation["conversations"] and raw(line) == record


@pytest.mark.parametrize(
    ("asked", "src", "marks", "written"),
    [
        ("<image>Q <evi>?", [40], ((40, 40),), (IMAGE, "Q ", SpanMark(0), "?")),
        ("<image>\n<evi> or <evi>?", [4], ((4, 4),), (IMAGE, "\n", SpanMark(0), " or ", MARK, "?")),
        ("<image>\n<evi>?", [3, 1, 7, 8], ((3, 1),), (IMAGE, "\n", SpanMark(0), "?")),
        ("<image>\n<evi>?", [1, 2, 3], (), (IMAGE, "\n", MARK, "?")),
        ("<image>\n<evi> </evi>?", None, (), (IMAGE, "\n", MARK, " ", END, "?")),
        ("<evi>?", [1, 2], ((1, 2),), (IMAGE, "\n", SpanMark(0), "?")),
    ],
)
def test_a_question_is_kept_to_the_letter_with_the_times_that_are_looked_at(asked, src, marks, written):
    record = raw(item(asked, src=src, tgt=[[1, 2]]))
    assert (record.spans_s, record.turns[0].written) == (marks, written)
    line = json.loads(json.dumps(neutral_json(record)))
    assert (line.get("src"), line["tgt"]) == (src, [[1, 2]]) and raw(line) == record


def test_supervised_training_counts_the_marks_of_a_question_from_the_end():
    trained = raw(item("<image>\n<evi> or <evi>?", "</evi> No.", src=[1, 2]))
    assert trained.turns[0].written == (IMAGE, "\n", MARK, " or ", SpanMark(0), "?")
    moment = raw(item("<image>\n<evi> or <evi>?", "</evi> No.", src=[4]))
    assert moment.turns[0].written == (IMAGE, "\n", SpanMark(0), " or ", MARK, "?") and moment.moment


@pytest.mark.parametrize(
    ("annotation", "says"),
    [
        (item("<image>\nWhen <evi>?", src=[40]), "lies outside the video"),
        (item(answer="<evi></evi> At <evi>.", tgt=[40, 50]), "lies outside the video"),
        (item(answer="<evi></evi> At <evi>.", tgt=[-4, -2]), "lies outside the video"),
        (item("<image>\n<evi>?", src=[1, 2, 3, 4]), "fewer span marks than spans"),
        (item("<image>\n<evi>?", src=[1, 2, 3]), "odd number of values"),
        (item("<image>\n<evi>?", tgt=[[1, 2]]), "nested spans"),
        (item(answer="Words <evi></evi> At <evi>.", tgt=[1, 2]), "words in the evidence stage"),
        (item(answer="<evi></evi> At </evi> <evi>.", tgt=[1, 2]), "two evidence stages"),
        (item(answer=""), "empty answer"),
        ({"conversations": [{"from": "human", "value": ""}]}, "empty turn of the user"),
        (item(image="a.png"), "both a video and an image"),
        (item(image=""), "both a video and an image"),
        (item(image=[]), "an empty list"),
        (item(duration=0), "a video of 0 s"),
        (item(id=""), "an empty string instead of a name"),
        (item(task=3), "instead of a name"),
        ({"video": "v.mp4", "conversations": [{"from": "human", "value": "a"}] * 2}, "a turn of the user where"),
    ],
)
def test_what_is_refused_by_default_is_read_where_published_code_computes_it(annotation, says):
    assert says in refused(annotation)
    assert raw(annotation).raw


@pytest.mark.parametrize(
    ("annotation", "says"),
    [
        (item(answer="<evi></evi> At <evi> and <evi>.", tgt=[1, 2]), "span marks in the evidence stage"),
        (item(answer="At <evi>, <evi> and <evi>.", tgt=[1, 2]), "more span marks than spans"),
        (item(answer="<evi></evi> At <evi>."), "more span marks than spans"),
        (item(answer="<evi></evi> At <evi>.", tgt=[[1, 2]]), "nested spans"),
        (
            {"video": "v.mp4", "conversations": [{"from": "human", "value": "<video>\n<TIME_STAMP>?"}], "tgt": [1]},
            "odd",
        ),
        (item("<image>\n<image>\nWhen?"), "2 <video> or <image> marks for 1"),
    ],
)
def test_what_stops_published_code_is_refused_in_both(annotation, says):
    """docs/d2vlm.md, surprise 7; docs/distime.md, surprise 9."""
    assert says in refused(annotation)
    with pytest.raises(AnnotationError, match=says):
        raw(annotation)


def test_a_picture_counts_before_a_video_and_an_empty_name_is_none():
    """As DisTime's code: non-empty image, else non-empty video, else text alone."""
    both = raw(item("<image>\nWhat?", image="a.png"))
    assert (both.video, both.images) == (None, ("a.png",))
    assert raw(item("Q", "A", image="")).video == "v.mp4"
    alone = raw(item("Q", "A", video=""))
    assert (alone.video, alone.images) == (None, ())


def test_our_own_schema_stays_our_own():
    """With our marks the head writes the evidence stage, whatever is asked for."""
    record = raw(item("<video>\nWhen?", "At <span>.", tgt=[1, 2]))
    assert [turn.written for turn in record.turns] == [None, None]
    talk = [{"from": speaker, "value": "Q"} for speaker in ("human", "gpt")] * 2
    assert raw({"video": "v.mp4", "conversations": talk}).turns[0].written is None


def test_ids_that_occur_twice_are_told_apart_where_published_code_does_not_look(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(item(id="x")) + "\n" for _ in range(2)))
    assert [record.id for record in load_records(path, raw_spans=True)] == ["x", "x:2"]
    thrice = [record.id for record in load_records([path] * 3, raw_spans=True)]
    assert len(set(thrice)) == 6 and thrice[:2] == ["x", "x:2"]
    with pytest.raises(AnnotationError, match="has the id 'x'"):
        load_records(path)


def pair(chosen, reject, name="reject_0_shift", **keys):
    human = {"from": "human", "value": "<image>\nWhen?"}
    talks = {"chosen": [human, {"from": "gpt", "value": chosen}], name: [human, {"from": "gpt", "value": reject}]}
    tgt = {"chosen": [1, 2], name: [3, 40]}
    return {"task": "tvg", "source": "", "video": "v.mp4", "duration": 13, "conversations": talks, "tgt": tgt} | keys


def test_a_published_pair_is_read_to_the_letter_and_written_as_it_was():
    stored = pair("<evi> </evi> At <evi>.", "<evi>\n</evi>In <evi>.")
    record = raw(stored)
    assert record.turns[1].written == (SpanMark(0), " ", END, " At ", SpanMark(0), ".")
    assert record.rejected[0].turn.written == (SpanMark(0), "\n", END, "In ", SpanMark(0), ".")
    written, left_out = to_classes({k: v for k, v in neutral_json(record).items() if k != "id"})
    assert (written, left_out) == (stored, [])


def test_of_a_published_pair_only_what_its_packing_looks_at_counts():
    """As D2VLM's code: the chosen question, and the third part of a class key, whatever it is."""
    other = pair("<evi></evi> At <evi>.", "<evi></evi> At <evi>.", "reject_0_")
    other["conversations"]["reject_0_"][0] = {"from": "human", "value": "Where?"}
    other["tgt"]["reject_0_"] = [1, 2]
    record = raw(other)
    assert record.rejected[0].factor == "reject_0_" and record.rejected[0].spans_s == ((1, 2),)
    assert "its question is not the one" in refused(other)
    other["conversations"]["reject_0_"][0] = other["conversations"]["chosen"][0]
    assert "the same as the chosen answer" in refused(other)


pieces = st.lists(st.sampled_from(["<evi>", "</evi>", "<image>", " ", "\n", "At", ", ", "."]), max_size=8).map("".join)


@settings(max_examples=300)
@given(pieces, st.none() | pieces, st.lists(st.integers(0, 20), max_size=4), st.lists(st.integers(0, 20), max_size=4))
def test_whatever_is_read_to_the_letter_is_written_and_read_back_equal(asked, answer, src, tgt):
    annotation = item(asked, answer, src=src, tgt=tgt)
    try:
        record = raw(annotation)
    except AnnotationError:
        return
    line = json.loads(json.dumps(neutral_json(record)))
    assert raw(line) == record
    written = [turn.written for turn in record.turns if turn.written is not None]
    if written:
        given = [turn["value"] for turn in annotation["conversations"]]
        given[0] = given[0] if "<image>" in asked else f"<image>\n{asked}"
        assert [as_annotated(turn) for turn in record.turns] == given
        marks = {part.span for parts in written for part in parts if isinstance(part, SpanMark)}
        assert marks == set(range(len(record.spans_s)))
