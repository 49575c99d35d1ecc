"""What a record may say on how it is asked: part of a video, a folder of frames, the text behind it, its decoding."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.models import clip_lines, clips, make_bundle, record, turns
from videollm.batches.dataset import VideoDataset, pack_by_video
from videollm.common.config import ConfigError
from videollm.data import AnnotationError, neutral_json, parse_record, validate
from videollm.inference.answer import answer_records
from videollm.model.generate import GenerateOptions
from videollm.video.decode import VideoError
from videollm.video.folder import open_folder, read_frame_folder
from videollm.video.sampling import Sampler
from videollm.video.view import FrameFolder, View

LINE = {"id": "x", "video": "clip3.mp4", "duration": 7, "conversations": turns("<video>\nwhat happens?")}


def parse(**keys):
    return parse_record(LINE | keys, 1, "lines.jsonl")


# ---- the keys --------------------------------------------------------------------------------------------------------


@given(
    st.none() | st.tuples(st.floats(0, 7), st.floats(0, 7)).map(sorted),
    st.none() | st.fixed_dictionaries({"fps": st.floats(0.5, 30), "first": st.integers(0, 9)}),
    st.none() | st.sampled_from(["", "\n", " "]),
    st.sampled_from([{}, {"repetition_penalty": 1.2}]),
)
def test_a_record_written_out_and_read_again_is_asked_alike(bound, frames, after, generate):
    made = parse(bound=bound, frames=frames, after_video=after, generate=generate)
    again = parse_record(json.loads(json.dumps(neutral_json(made))), 1, "lines.jsonl")
    assert again.asking == made.asking and not made.extra
    assert made.asking.view.bound_s == (None if bound is None else tuple(bound))


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ({"bound": [1]}, r"not \[start, end\] \(bound\)"),
        ({"bound": [1, float("nan")]}, r"not \[start, end\] \(bound\)"),
        ({"bound": [1, "2"]}, r"not \[start, end\] \(bound\)"),
        ({"bound": [3, 2]}, r"behind the end 2 \(bound\)"),
        ({"bound": [8, 9]}, r"outside the video, which has 7 s \(bound\)"),
        ({"bound": [-3, -1]}, r"starts at 0 s \(bound\)"),
        ({"frames": {"first": 1}}, r"not a kind of folder \(frames\)"),
        ({"frames": {"fps": 0}}, r"\(frames.fps\)"),
        ({"frames": {"fps": 3, "first": True}}, r"\(frames.first\)"),
        ({"after_video": 1}, r"no text \(after_video\)"),
        ({"generate": [1]}, r"no object \(generate\)"),
        ({"bound": [0, 1], "video": None, "conversations": turns("what?")}, r"without a video \(bound\)"),
    ],
)
def test_bad_values_are_named_with_line_key_and_remedy(keys, why):
    with pytest.raises(AnnotationError, match=rf"lines\.jsonl:1: .*{why} - "):
        parse(**keys)


def test_a_bound_may_end_behind_the_video_as_annotations_round():
    assert parse(bound=[5, 7.4]).asking.view.bound_s == (5.0, 7.4)


# ---- part of a video -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bundle():
    return make_bundle("internvl", "distime")


def item_of(bundle, root, line, sampler=None):
    sampler = sampler or Sampler(rule="segments", num_frames=4)
    dataset = VideoDataset([line], bundle.reader(root, sampler), bundle.encoder(), max_length=1024, answers=False)
    return dataset[0]


def test_frames_lie_inside_the_bound_and_keep_the_times_of_the_whole_video(bundle):
    whole, part = (item_of(bundle, clips(), parse(**keys)) for keys in ({}, {"bound": [2, 4]}))
    assert whole.duration_s == part.duration_s == 7.0
    assert part.times_s.min() >= 2 and part.times_s.max() <= 4 and len(part.times_s) == 4
    assert whole.times_s.max() > 4


def test_the_reader_does_not_mix_up_two_parts_of_one_video(bundle):
    reader = bundle.reader(clips(), Sampler(rule="segments", num_frames=2))
    times = [reader.video("clip3.mp4", None, View(bound)).times_s.tolist() for bound in (None, (0.0, 2.0), None)]
    assert times[0] == times[2] != times[1]


def test_stored_features_are_of_the_whole_video_only(bundle):
    reader = bundle.reader(clips(), Sampler(rule="segments", num_frames=2))
    reader.stored = lambda name: ("features", np.zeros(2), 7.0)
    assert reader.video("clip3.mp4", None).features == "features"
    assert reader.video("clip3.mp4", None, View((0.0, 2.0))).features is None


def test_questions_about_other_parts_are_not_packed_together():
    records = [parse(id=str(i), bound=bound) for i, bound in enumerate(([0, 2], None, [0, 2]))]
    assert pack_by_video(records, 8) == [[0, 2], [1]]


def test_a_bound_beside_the_decoded_video_is_that_questions_error(bundle):
    line = {key: value for key, value in LINE.items() if key != "duration"} | {"bound": [50, 60]}
    assert "window 50.00-60.00 s lies outside" in item_of(bundle, clips(), record(line)).bad


# ---- the text behind it ----------------------------------------------------------------------------------------------


def test_the_text_behind_the_video_is_the_records(bundle):
    def words(**keys):
        prompt = item_of(bundle, clips(), parse(**keys)).prompts[0]
        return bundle.tokenizer.decode(prompt.ids[prompt.visual[-1] + 1 :])

    assert "</img>\nwhat" in words() and "</img>\nwhat" in words(after_video="\n")
    assert "</img>what" in words(after_video="")


# ---- decoding --------------------------------------------------------------------------------------------------------


def test_records_with_options_of_their_own_are_decoded_with_them(bundle):
    lines = [line | {"conversations": line["conversations"][:1]} for line in clip_lines(4)]
    for line in lines:
        line.pop("tgt")
    lines[1]["generate"] = {"max_new_tokens": 3}
    records = [parse_record(line, i, "lines.jsonl") for i, line in enumerate(lines)]
    reader = bundle.reader(clips(), Sampler(rule="segments", num_frames=2))

    def answers(asked, tokens):
        found = answer_records(bundle, asked, reader, GenerateOptions(max_new_tokens=tokens), batch_size=2)
        return {line.id: line.raw_text for line in found}

    mixed, long = answers(records, 6), answers([records[0], *records[2:]], 6)
    assert mixed.keys() == {"q0", "q1", "q2", "q3"}
    assert {name: mixed[name] for name in long} == long
    lines[1].pop("generate")
    assert mixed["q1"] == answers([parse_record(lines[1], 1, "lines.jsonl")], 3)["q1"]


def test_an_unknown_decoding_option_names_the_record(bundle):
    records = [parse(generate={"penalty": 1})]
    with pytest.raises(ConfigError, match=r"lines\.jsonl:1: generate\.penalty: unknown key"):
        list(answer_records(bundle, records, bundle.reader(clips()), GenerateOptions(max_new_tokens=4)))


# ---- folders of frames -----------------------------------------------------------------------------------------------


def frame_folder(path, numbers, size=(12, 8)):
    path.mkdir()
    for n in numbers:
        Image.new("RGB", size, (n, 0, 0)).save(path / f"{n:05d}.png")
    return path


def shown(frames) -> list[int]:
    """The numbers of the pictures, which their red says."""
    return frames.pixels[:, 0, 0, 0].tolist()


@pytest.mark.golden
def test_frame_folders_match_the_published_choice(golden_dir, tmp_path):
    cases = json.loads((golden_dir / "distime/unit/frame_index.json").read_text())["mvbench_frame_folder"]
    folders, compared = {}, 0
    for case in cases:
        last, bound = case["max_frame"], case["bound"]
        if bound and bound[0] > last / case["fps"]:
            continue  # beside the video: an error here
        folder = folders.setdefault(last, tmp_path / str(last))
        if not folder.exists():
            frame_folder(folder, range(1, last + 1))
        stored, sampler = FrameFolder(case["fps"]), Sampler(rule="segments", num_frames=case["num_segments"])
        frames = read_frame_folder(folder, stored, sampler, window_s=bound)
        assert shown(frames) == case["indices"], case
        np.testing.assert_allclose(frames.times_s, np.array(case["indices"]) / case["fps"])
        assert frames.duration_s == last / case["fps"]
        compared += 1
    assert compared


def test_one_frame_a_second_is_every_third_counted_from_one(tmp_path):
    folder = frame_folder(tmp_path / "f", range(1, 12))
    assert shown(read_frame_folder(folder, FrameFolder(3), Sampler(rule="fps", fps=1.0))) == [1, 4, 7, 10]


def test_a_folder_is_asked_about_like_a_video(bundle, tmp_path):
    frame_folder(tmp_path / "show", range(1, 31))
    line = record({"video": "show", "frames": {"fps": 3}, "bound": [2, 6], "conversations": turns("<video>\nwhat?")})
    item = item_of(bundle, tmp_path, line)
    assert item.bad is None and item.duration_s == 10.0 and len(item.pixels) == 4
    assert 2 <= item.times_s.min() <= item.times_s.max() <= 6


@pytest.mark.parametrize(
    ("numbers", "why"),
    [([], "holds no picture"), ([1, 2, 4], "has no frame 3"), ([0, 1], "starts with frame 0"), ([2, 3], "no frame 1")],
)
def test_incomplete_folders_are_refused(tmp_path, numbers, why):
    with pytest.raises(VideoError, match=why):
        open_folder(frame_folder(tmp_path / "f", numbers), FrameFolder(3))


def test_what_is_no_folder_of_numbered_pictures_is_refused(tmp_path):
    (tmp_path / "f.mp4").write_bytes(b"x")
    folder = frame_folder(tmp_path / "f", [1])
    (folder / "cover.png").write_bytes((folder / "00001.png").read_bytes())
    cases = (("f.mp4", "is not a folder"), ("absent", "does not exist"), ("f", "has no number"))
    for name, why in cases:
        with pytest.raises(VideoError, match=why):
            open_folder(tmp_path / name, FrameFolder(3))


def test_the_annotation_check_looks_for_the_folder(tmp_path):
    frame_folder(tmp_path / "show", [1])
    line = {"video": "show", "frames": {"fps": 3}, "conversations": turns("<video>\nwhat?")}
    for name, keys, missing in (("a.jsonl", {}, 0), ("b.jsonl", {"video": "other"}, 1)):
        (tmp_path / name).write_text(json.dumps(line | keys))
        assert len(validate(tmp_path / name, tmp_path).missing) == missing
