"""Sizes keep to a budget of pixels, whatever the video; what no size can keep is one line that says what to do."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.unit.video.test_video import write
from videollm.common.config import ConfigError, build, to_dict
from videollm.video.budget import SizeError, smart_resize
from videollm.video.decode import VideoError
from videollm.video.folder import read_frame_folder
from videollm.video.preprocess import Preprocess
from videollm.video.read import read_video, stored_shape
from videollm.video.sampling import Sampler
from videollm.video.store import FrameStore, build_store
from videollm.video.view import FrameFolder

TINY = {"factor": 8, "min_pixels": 256, "max_pixels": 1536}
KINDS = ("qwen2_5_vl", "qwen3_vl")


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """50 frames of 64 x 48 pixels in 2 seconds, each tenth of them late."""
    late = [i + (i % 10 == 9) / 2 for i in range(50)]
    return write(tmp_path_factory.mktemp("clip") / "clip.mp4", 50, pts=[int(2 * t) for t in late], rate=50)


@given(st.integers(16, 3000), st.integers(16, 3000), st.integers(2, 200), st.integers(1, 40))
def test_a_frame_keeps_to_its_budget_and_nearly_to_its_shape(height, width, frames, tokens):
    preprocess = Preprocess(kind="qwen2_5_vl", factor=8, min_pixels=64, max_pixels=64 * tokens)
    rows, columns = preprocess.frame_size(height, width, frames)
    assert rows % 8 == columns % 8 == 0
    assert rows * columns <= 64 * tokens or min(rows, columns) == 8


@given(st.integers(32, 2000), st.integers(32, 2000), st.integers(2, 500))
def test_all_frames_of_a_video_share_a_total(height, width, frames):
    many = Preprocess(kind="qwen2_5_vl", factor=8, min_pixels=64, max_pixels=64 * 1000, total_pixels=64 * 2000)
    rows, columns = many.frame_size(height, width, frames)
    assert rows * columns <= max(2 * 64 * 2000 / frames, 64 * 1.05) or min(rows, columns) == 8
    assert (rows, columns) <= replace(many, total_pixels=None).frame_size(height, width, frames)


def test_a_longer_video_is_seen_smaller_where_the_budget_is_for_all_of_it():
    sizes = [Preprocess(kind="qwen3_vl").frame_size(720, 1280, frames) for frames in (2, 8, 32, 128)]
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == 4
    assert len({Preprocess(kind="qwen2_5_vl").frame_size(720, 1280, frames) for frames in (2, 8, 32, 128)}) == 1


def test_an_odd_number_of_frames_is_held_against_the_limit_as_an_even_one():
    """As released: 5 frames count as 4 where it is asked whether they are too large, as 5 in what they are made."""
    assert smart_resize(40, 40, 8, 64, 7000, frames=5) == (40, 40)  # 4 x 1600 <= 7000 < 5 x 1600
    assert smart_resize(40, 40, 8, 64, 6399, frames=5) == (32, 32)  # 40 sqrt(6399 / 8000) = 35.8
    assert smart_resize(40, 40, 8, 64, 6399, frames=4) == (32, 32)
    assert smart_resize(40, 40, 8, 6401, 9000, frames=5) == (40, 40)  # 40 sqrt(6401 / 8000) = 35.8, up to 40


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"kind": "qwen2_5_vl", "max_pixels": 783, "min_pixels": 1}, "max_pixels is 783, less than one visual token"),
        ({"kind": "qwen3_vl", "max_pixels": 2047, "min_pixels": 1}, "less than one visual token .2048 pixels.; raise"),
        ({"kind": "qwen3_vl", "image_max_pixels": 9}, "image_max_pixels is 9, less than one visual token"),
        ({"kind": "qwen2_5_vl", "total_pixels": 100}, "total_pixels is 100, less than one visual token"),
        ({"kind": "qwen3_vl", "total_pixels": 10**7}, "total_pixels is for budget frame"),
        ({"kind": "qwen3_vl", "min_pixels": 10**7}, "min_pixels is 10000000, over max_pixels 786432; lower it"),
        ({"kind": "clip", "max_pixels": 10**6}, "max_pixels is for kind qwen2_5_vl or qwen3_vl, not 'clip'"),
        ({"kind": "qwen3_vl", "factor": 0}, "factor must be a whole number >= 1"),
        ({"kind": "qwen3_vl", "frame_difference": True}, "frame_difference is for frames of one size"),
    ],
)
def test_limits_that_nothing_can_keep_are_one_line(given, said):
    with pytest.raises(ConfigError, match=said) as error:
        build(Preprocess, given, "data.preprocess")
    assert "\n" not in str(error.value)


def test_older_files_have_none_of_the_new_fields():
    assert list(to_dict(Preprocess())) == ["kind", "size", "mean", "std", "frame_difference", "random_crop"]
    assert "min_frames" not in to_dict(Sampler()) and to_dict(Sampler(min_frames=2))["min_frames"] == 2
    for kind in KINDS:
        assert build(Preprocess, to_dict(Preprocess(kind=kind)), "preprocess") == Preprocess(kind=kind)


@pytest.mark.parametrize("kind", KINDS)
def test_frames_are_resized_while_they_are_decoded(clip, kind):
    preprocess, sampler = Preprocess(kind=kind, **TINY), Sampler(rule=kind, fps=4)
    seen = []
    resize = preprocess.while_decoding()

    def watched(frame, frames):
        seen.append(frames)
        return resize(frame, frames)

    frames = read_video(clip, sampler, resize=watched)
    assert seen == [8] * 8 and frames.times_s[0] == 0
    size = preprocess.frame_size(48, 64, 8)
    assert frames.pixels.shape == (8, *size, 3) and frames.pixels.dtype == torch.uint8
    assert preprocess(frames.pixels).shape == (8, 3, *size)
    thinned = read_video(clip, sampler, resize=resize, limits=(3,))
    assert thinned.pixels.shape == (3, *size, 3)  # the size is that of the sampler's choice, whoever asks


def test_what_has_no_size_is_a_bad_video_with_its_path(clip):
    resize = Preprocess(kind="qwen3_vl", **TINY).while_decoding()
    lone = Sampler(rule="qwen3_vl", fps=0.01, min_frames=1)
    with pytest.raises(VideoError, match="clip.mp4: 1 frame is chosen, a temporal patch takes 2; choose more") as e:
        read_video(clip, lone, resize=resize)
    assert "\n" not in str(e.value)
    assert read_video(clip, lone, resize=Preprocess(kind="qwen2_5_vl", **TINY).while_decoding()).pixels.shape[0] == 1
    with pytest.raises(VideoError, match="clip.mp4: 64 x 48 pixels are less than a token's 128 x 128"):
        read_video(clip, Sampler(rule="qwen3_vl"), resize=Preprocess(kind="qwen3_vl", factor=128).while_decoding())
    with pytest.raises(SizeError, match="3000 x 10: one side is over 200 times the other; cut it"):
        Preprocess(kind="qwen2_5_vl").image_size(10, 3000)


def test_a_folder_of_pictures_is_sized_as_a_file(tmp_path):
    for k in range(6):
        Image.new("RGB", (96, 64), (40 * k, 0, 0)).save(tmp_path / f"{k}.png")
    preprocess = Preprocess(kind="qwen3_vl", **TINY)
    seen = read_frame_folder(
        tmp_path, FrameFolder(fps=2.0, first=0), Sampler(rule="qwen3_vl", fps=2.0), resize=preprocess.while_decoding()
    )
    assert seen.pixels.shape == (6, *preprocess.frame_size(64, 96, 6), 3)


def test_stored_frames_keep_each_videos_own_size(clip, tmp_path):
    sampler, preprocess = Sampler(rule="qwen3_vl", fps=4), Preprocess(kind="qwen3_vl", **TINY)
    assert build_store(tmp_path / "store", [clip.name], clip.parent, sampler, preprocess, progress=False) == (1, {})
    store = FrameStore(tmp_path / "store", sampler, preprocess)
    expected = read_video(clip, sampler, resize=preprocess.while_decoding())
    assert store.resized and torch.equal(store(clip.name).pixels, expected.pixels)
    with pytest.raises(ConfigError, match="was made with resized_to"):
        FrameStore(tmp_path / "store", sampler, replace(preprocess, max_pixels=3000))


def test_a_header_tells_the_shape_without_decoding(clip, tmp_path):
    """Also of the first picture of a folder; of what is no video it says nothing."""
    seen = read_video(clip, Sampler(rule="segments", num_frames=1))
    assert stored_shape(clip) == tuple(seen.pixels.shape[1:3])
    Image.new("RGB", (40, 24)).save(tmp_path / "00001.jpg")
    (tmp_path / "text.mp4").write_text("no video")
    assert stored_shape(tmp_path / "00001.jpg") == (24, 40)
    assert stored_shape(tmp_path / "text.mp4") is stored_shape(tmp_path) is stored_shape(tmp_path / "none.mp4") is None


def test_published_times_are_even_and_ours_are_those_shown(clip):
    ours, even = (read_video(clip, Sampler(rule="qwen3_vl", fps=25, even_times=e)) for e in (False, True))
    assert np.ptp(np.diff(even.times_s)) < 1e-9 < 0.009 < np.ptp(np.diff(ours.times_s))
    assert torch.equal(ours.pixels, even.pixels)
