"""Which frames are looked at: the published rules exactly, and any other choice ordered and inside the window."""

import json
from dataclasses import replace
from random import Random

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from videollm.video.decode import VideoError, VideoInfo
from videollm.video.sampling import (
    MOST_REPEATED,
    Sampler,
    interval_middle_indices,
    interval_random_indices,
    midpoint_indices,
)


def info_of(num_frames: int, fps: float) -> VideoInfo:
    return VideoInfo("golden.mp4", num_frames / fps, fps, num_frames, 64, 48, np.arange(num_frames) / fps)


def sampling_cases(golden_dir, name):
    return json.loads((golden_dir / "distime/unit/frame_index.json").read_text())[name]


@pytest.mark.golden
def test_d2vlm_fps_rule_matches_published_indices(golden_dir):
    for case in json.loads((golden_dir / "d2vlm/frame_sampling.json").read_text()):
        info = info_of(case["num_frames"], case["avg_fps"])
        indices = Sampler(rule="fps", fps=case["fps"]).indices(info)
        assert indices.tolist() == case["frame_idx"], case
        np.testing.assert_allclose(info.pts_s[indices], case["tag"], atol=0.0501)


@pytest.mark.golden
def test_distime_evaluation_rule_matches_published_indices(golden_dir):
    """In-order windows that touch the video; for others the published rule leaves the video and ours does not."""
    compared = 0
    for case in sampling_cases(golden_dir, "eval_midpoint"):
        vlen, fps, bound = case["vlen"], case["fps"], case["bound"]
        if bound and (bound[0] > bound[1] or round(bound[0] * fps) > vlen - 1):
            continue
        sampler = Sampler(rule="segments", num_frames=case["num_segments"])
        info = info_of(vlen, fps)
        indices = sampler.indices(info, window_s=bound)
        assert indices.tolist() == case["indices"], case
        np.testing.assert_allclose(info.pts_s[indices], case["frame_times"], atol=0.00501)
        compared += 1
    assert compared


@pytest.mark.golden
def test_distime_midpoint_formula_matches_on_odd_windows_too(golden_dir):
    cases = sampling_cases(golden_dir, "eval_midpoint") + sampling_cases(golden_dir, "mvbench_frame_folder")
    for case in cases:
        last = case["vlen"] - 1 if "vlen" in case else case["max_frame"]
        bound = case["bound"] or (-1e6, 1e6)
        start = max(case["first_idx"], round(bound[0] * case["fps"]))
        end = min(round(bound[1] * case["fps"]), last)
        assert midpoint_indices(start, end, case["num_segments"]).tolist() == case["indices"], case


@pytest.mark.golden
def test_distime_training_rules_match_published_indices(golden_dir):
    for case in sampling_cases(golden_dir, "train"):
        vlen, count = case["vlen"], case["num_frames"]
        if case.get("fix_start") is not None or case["rule"].startswith("fps"):
            continue  # in no released script
        if case["rule"] == "middle":
            indices = Sampler(rule="segments", num_frames=count, pick="middle").indices(info_of(vlen, 30.0))
        else:
            numpy_rng = np.random.RandomState(case["seed"])
            indices = interval_random_indices(vlen, count, Random(case["seed"]).choice, numpy_rng.permutation)
        assert indices.tolist() == case["indices"], case


@pytest.mark.golden
def test_distime_longvideobench_rule_matches_published_indices(golden_dir):
    for case in sampling_cases(golden_dir, "longvideobench_middle"):
        assert interval_middle_indices(case["vlen"], case["num_frames"]).tolist() == case["indices"]


samplers = st.builds(
    Sampler,
    rule=st.sampled_from(["fps", "segments"]),
    fps=st.floats(0.05, 60),
    num_frames=st.integers(1, 40),
    pick=st.sampled_from(["midpoint", "middle", "random"]),
    max_frames=st.none() | st.integers(1, 20),
)


@given(
    samplers,
    st.integers(1, 500),
    st.floats(0.5, 60),
    st.none() | st.tuples(st.floats(0, 1), st.floats(0, 1)),
    st.integers(0, 9),
)
def test_indices_are_ordered_inside_the_window_and_repeatable(sampler, num_frames, fps, share, seed):
    info = info_of(num_frames, fps)
    assume(sampler.rule == "segments" or sampler.fps * info.duration_s < MOST_REPEATED)  # more are refused
    window = None if share is None else tuple(s * info.duration_s for s in share)
    indices = sampler.indices(info, Random(seed), window)
    assert (np.diff(indices) >= 0).all()
    start, end = (0, info.duration_s) if window is None else sorted(window)
    half_gap = 0.5 / fps + 1e-6
    assert start - half_gap <= info.pts_s[indices[0]] or indices[0] == num_frames - 1
    assert info.pts_s[indices[-1]] <= end + half_gap
    if sampler.rule == "segments":
        shown = len(np.unique(indices))  # frames of a short video are not repeated where they are drawn
        assert len(indices) == (
            shown if sampler.pick == "random" and shown < sampler.num_frames else sampler.num_frames
        )
    elif sampler.max_frames:
        assert 1 <= len(indices) <= sampler.max_frames
    np.testing.assert_array_equal(indices, sampler.indices(info, Random(seed), window))


@pytest.mark.parametrize("spare_last, never", [(False, set()), (True, {9, 19, 29, 39})])
def test_random_pick_draws_every_frame_but_as_published_not_the_last_of_an_interval(spare_last, never):
    sampler = Sampler(rule="segments", num_frames=4, pick="random", spare_last=spare_last)
    draws = [sampler.indices(info_of(40, 10.0), Random(seed)).tolist() for seed in range(200)]
    assert {i for drawn in draws for i in drawn} == set(range(40)) - never
    assert all([i // 10 for i in drawn] == [0, 1, 2, 3] for drawn in draws)


@pytest.mark.parametrize("spare_last, wanted", [(False, [0, 1, 2]), (True, [0, 1, 2, 2, 2])])
def test_random_pick_shows_each_frame_of_a_short_video_once_but_as_published_its_last_again(spare_last, wanted):
    sampler = Sampler(rule="segments", num_frames=5, pick="random", spare_last=spare_last)
    assert sampler.indices(info_of(3, 1.0), Random(0)).tolist() == wanted


def test_thinning_keeps_both_ends():
    info = info_of(300, 30.0)
    assert Sampler(fps=1, max_frames=4).indices(info).tolist() == [0, 90, 180, 270]


@pytest.mark.parametrize(
    "field, value",
    [
        ("rule", "uniform"),
        ("fps", 0.0),
        ("fps", float("nan")),
        ("num_frames", 0),
        ("num_frames", 1.5),
        ("pick", "first"),
        ("max_frames", 0),
        ("min_duration_s", -1.0),
    ],
)
def test_bad_sampler_fields_are_named(field, value):
    with pytest.raises(ValueError, match=f"Sampler.{field} must be"):
        Sampler(**{field: value})


def test_broken_time_stamps_do_not_fill_the_memory():
    with pytest.raises(VideoError, match="over 1000000 samples"):
        Sampler().indices(info_of(50, 1e-8))


@pytest.mark.parametrize(
    "sampler",
    [
        Sampler(rule="segments", num_frames=10**6),
        Sampler(rule="segments", num_frames=10**6, pick="middle"),
        Sampler(rule="segments", num_frames=10**6, pick="random", spare_last=True),
        Sampler(fps=10**5),
    ],
)
def test_frames_of_a_short_video_are_not_repeated_without_end(sampler):
    info = info_of(240, 24.0)
    with pytest.raises(VideoError, match="has 240 frames to choose from, and 1000000 are asked for; lower sampler"):
        sampler.indices(info, Random(0))
    many = replace(sampler, max_frames=16) if sampler.rule == "fps" else replace(sampler, num_frames=8192)
    assert len(many.indices(info, Random(0))) == (16 if sampler.rule == "fps" else 8192)


def test_bad_windows_and_missing_rng_are_errors():
    info = info_of(90, 30.0)
    with pytest.raises(VideoError, match=r"window 5\.00-9\.00 s lies outside its 3\.00 s"):
        Sampler().indices(info, window_s=(5.0, 9.0))
    with pytest.raises(ValueError, match="two finite numbers"):
        Sampler().indices(info, window_s=(0.0, float("nan")))
    with pytest.raises(ValueError, match="random.Random"):
        Sampler(rule="segments", pick="random").indices(info)
