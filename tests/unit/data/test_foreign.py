"""Keys and marks that other projects write: read where their meaning is clear, else refused with the right ones."""

import pytest

from tests.annotated import item, parse, parts, problem
from videollm.data import neutral_json, parse_record
from videollm.data.conversation import SpanMark, VisualMark

VIDEO = VisualMark(0)


@pytest.mark.parametrize(
    ("key", "value", "meant"),
    [
        ("videos", ["v.mp4"], "video"),
        ("video_path", "v.mp4", "video"),
        ("Video", "v.mp4", "video"),
        (" video-file", "v.mp4", "video"),
        ("vedio", "v.mp4", "video"),
        ("video_id", "v", "video"),
        ("videoPath", "v.mp4", "video"),
        ("vid_path", "v.mp4", "video"),
        ("videoId", "v", "video"),
        ("imagePath", "a.png", "image"),
        ("images", ["a.png"], "image"),
        ("image_path", "a.png", "image"),
        ("imgae", "a.png", "image"),
        ("conversation", [{"from": "human", "value": "q"}], "conversations"),
        ("messages", [{"role": "user", "content": "q"}], "conversations"),
        ("Conversations", [{"from": "human", "value": "q"}], "conversations"),
        ("timestamp", [1, 2], "tgt"),
        ("timestamps", [[1, 2]], "tgt"),
        ("TGT", [1, 2], "tgt"),
        ("srcs", [1, 2], "src"),
        ("durration", 9, "duration"),
        ("reject", [{"factor": "f", "value": "b"}], "rejected"),
        ("bounds", [1, 2], "bound"),
        ("tasks", "mr", "task"),
    ],
)
def test_a_near_miss_of_a_key_is_an_error_with_the_right_one(key, value, meant):
    line = item("q", "a", video=None, duration=None)
    line |= {"conversations": None} if meant == "conversations" else {}
    assert f"({key}) - did you mean {meant}?" in problem(line | {key: value})
    assert key in parse(item("q", "a") | {key: None}).extra  # nothing is said in it
    if meant in ("tgt", "src"):
        assert "did you mean" in problem(line | {key: value, meant: []})


def test_a_key_of_nobody_is_kept_and_so_is_a_second_name_of_what_is_there():
    extra = {"qid": 1, "idx": 2, "uid": "u", "source_id": 3, "segments": [[1, 2]], "target": "x", "sound": True,
             "generated": True, "frame": 4, "question": "q", "answer": "a", "events": [], "videos": []}  # fmt: skip
    assert parse(item("q", "a", video=None) | extra).extra == extra
    beside = {"video_id": "v_1", "video_path": "/data/v.mp4", "timestamps": [[1, 2]]}
    record = parse(item("q", "<span>", tgt=[1, 2]) | beside)
    assert (record.video, record.extra) == ("v.mp4", beside)
    times = {"src": [1, 2], "timestamps": [1, 2]}
    assert parse(item("<span>?", **times)).extra == {"timestamps": [1, 2]}
    assert parse({"image": "a.png", "video_id": "v_1", **item("q", video=None)}).extra == {"video_id": "v_1"}


@pytest.mark.parametrize(
    "mark",
    ["<VIDEO>", "<Video>", "<vid>", "<Video><VideoHere></Video>", "<video></video>", "<VideoHere>", "<|video_pad|>",
     "<|vision_start|><|video_pad|><|vision_end|>", "<video_placeholder>", "<|video|>", "<ImageHere>", "<img>",
     "<Img><ImageHere></Img>", "<IMAGE>", "<|image_pad|>"],
)  # fmt: skip
def test_the_marks_of_other_projects_are_read_where_a_visual_stands(mark):
    assert parts(item(f"Look: {mark}\nWhat?"))[0] == ("Look: ", VIDEO, "What?")
    assert parts(item(f"{mark}What?", video=None, image="a.png"))[0] == (VIDEO, "What?")
    assert "marks for 0 videos or images (conversations) - name the file" in problem(item(f"{mark}q", video=None))


@pytest.mark.parametrize("mark", ["<video_1>", "</video>", "<image-2>", "<|vision_start|>", "<my_video>", "<images>"])
def test_a_mark_whose_meaning_is_not_clear_is_refused(mark):
    for line in (item(f"{mark} q", "a"), item(f"{mark} q", "a", video=None)):
        assert f"unknown mark {mark} (conversations[0]) - write <video>" in problem(line)
    assert parts(item("q", f"{mark} a"))[1] == (f"{mark} a",)  # an answer's text is its own


@pytest.mark.parametrize("mark", ["<Span>", "<SPAN>", "<EVI>", "<time_stamp>"])
def test_span_marks_in_other_letters_are_ours(mark):
    line = item(f"What after {mark}?", f"At {mark}.", src=[1, 2], tgt=[3, 4])
    assert parts(line) == [(VIDEO, "What after ", SpanMark(0), "?"), ("At ", SpanMark(1), ".")]
    worse = {"factor": "shift", "value": f"At {mark}.", "tgt": [5, 6]}
    (answer,) = parse(line | {"rejected": [worse]}).rejected
    assert answer.turn.parts == ("At ", SpanMark(1), ".")
    assert parts(item("q", "<EVI></EVI> <evi>, a.", tgt=[3, 4]))[1] == (SpanMark(0), ", a.")
    literal = parse_record(
        item("q", f"At {mark}."), 3, "set.jsonl", raw_spans=True
    )  # published code reads no such mark
    assert literal.turns[1].parts == (f"At {mark}.",)


def test_other_tags_of_a_question_are_text():
    text = "<b>is</b> <provider> <individual> <imagine> <a video> an <img src=x>?"
    assert parts(item(text))[0] == (VIDEO, text)


def test_a_list_of_one_video_is_that_video():
    record = parse(item("q", "a", video=["a/v.mp4"]))
    assert (record.video, neutral_json(record)["video"]) == ("a/v.mp4", "a/v.mp4")


@pytest.mark.parametrize(
    ("video", "says"),
    [
        ([], "a list of 0 instead of a path (video)"),
        (["a.mp4", "b.mp4"], "a list of 2 instead of a path (video) - make a record of each"),
        ([None], "a list of 1 instead of a path (video)"),
        (["../a.mp4"], "leads out of the folder"),
        ("a\0.mp4", "can be no file's name (video)"),
        ("a" * 256, "can be no file's name (video)"),
        ("a/" * 2001, "can be no file's name (video)"),
    ],
)
def test_what_can_be_no_video_is_refused(video, says):
    assert says in problem(item("q", "a", video=video))
