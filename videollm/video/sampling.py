"""Which frames of a video are looked at: a rule, and the timeline that it is applied to.

This is THE frame sampler of training, evaluation and demo. In: the presentation times of all frames. Out: indices of
presented frames, which stay in this room: everybody else sees seconds. Opens no file.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

import numpy as np

from videollm.common.config import later, needs
from videollm.video.budget import TEMPORAL
from videollm.video.decode import VideoInfo, video_error

MAX_SAMPLES = 1_000_000  # more than this is a broken header, not a long video
MOST_REPEATED = 8192  # frames that are looked at of a video that has fewer, some of them several times
RULES = ("fps", "segments", "qwen2_5_vl", "qwen3_vl", "internvl")
PICKS = ("midpoint", "middle", "random")


def midpoint_indices(start: int, end: int, count: int) -> np.ndarray:
    """DisTime's evaluation rule: the middle of each of ``count`` equal segments of [start, end].

    The formula: published_systems.md#distime-frames.
    """
    segment = (end - start) / count
    return (start + segment / 2 + np.round(segment * np.arange(count))).astype(np.int64)  # [count]


def _interval_edges(length: int, count: int) -> np.ndarray:
    return np.linspace(0, length, min(count, length) + 1).astype(np.int64)


def _repeat_last(indices: np.ndarray, count: int) -> np.ndarray:
    return np.pad(indices, (0, count - len(indices)), mode="edge")


def interval_middle_indices(length: int, count: int) -> np.ndarray:
    """DisTime's ``middle`` training rule, also LongVideoBench's evaluation rule; too few frames repeat the last."""
    edges = _interval_edges(length, count)
    return _repeat_last((edges[:-1] + edges[1:] - 1) // 2, count)  # [count]


def thinned_places(count: int, most: int) -> np.ndarray:
    """Which ``most`` of ``count`` frames stay, int64: evenly spread, first and last kept; all of fewer."""
    return np.arange(count) if count <= most else np.linspace(0, count - 1, most).round().astype(np.int64)


def kept_places(count: int, limits: Sequence[int]) -> np.ndarray:
    """Which of ``count`` frames anybody needs who has room for so many as ``limits`` say; without limits all."""
    if not limits:
        return np.arange(count)
    return np.unique(np.concatenate([thinned_places(count, most) for most in limits]))


def interval_any_indices(length: int, count: int, choice: Callable[[Sequence[int]], int]) -> np.ndarray:
    """One frame, drawn by ``choice``, of each of ``count`` equal intervals; of a video with fewer frames each one."""
    edges = _interval_edges(length, count).tolist()
    return np.array([choice(range(a, b)) for a, b in zip(edges, edges[1:], strict=False)], np.int64)  # [<= count]


def interval_random_indices(
    length: int, count: int, choice: Callable[[Sequence[int]], int], permutation: Callable[[int], Sequence[int]]
) -> np.ndarray:
    """DisTime's ``rand`` training rule as published: one frame of each of ``count`` intervals.

    The last frame of an interval is never drawn. Where an interval has fewer than two frames the whole draw is
    replaced by the first frames of a random permutation, sorted; a video with too few frames repeats its last one.
    """
    edges = _interval_edges(length, count)
    if np.diff(edges).min() >= 2:
        drawn = [choice(range(a, b - 1)) for a, b in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)]
    else:
        drawn = sorted(permutation(length)[: len(edges) - 1])
    return _repeat_last(np.array(drawn, dtype=np.int64), count)  # [count]


def even_steps(length: int, count: int, start: float = 0.0) -> np.ndarray:
    """``count`` places from ``start`` on in equal steps, cut to whole numbers, in torch's float32 as released; the
    released code gives one place more, behind the last frame, for some lengths."""
    import torch  # here: settings are read without it

    return torch.arange(start, length, length / count).int()[:count].numpy().astype(np.int64)


def paired_indices(length: int, wanted: float, least: int, most: int) -> np.ndarray:
    """Qwen2.5-VL's rule: an even number of frames in equal steps from the first one on; of a lone frame that one."""
    most = min(most, length) // TEMPORAL * TEMPORAL
    count = int(min(max(wanted, least), most)) // TEMPORAL * TEMPORAL
    return even_steps(length, max(count, 1))


def spread_indices(length: int, wanted: float, least: int, most: int) -> np.ndarray:
    """Qwen3-VL's rule: any number of frames, evenly from the first one to the last."""
    return np.linspace(0, length - 1, min(max(int(wanted), least), most, length)).round().astype(np.int64)


@dataclass(frozen=True)
class Sampler:
    """Which frames of a video are looked at. Field values are checked; errors name the field.

    rule ``fps`` (published_systems.md#d2vlm-frames): every ``avg_fps / fps``-th frame, rounded half to even; where that
    gives more than ``max_frames``, they are thinned uniformly, first and last kept. rule ``segments``
    (published_systems.md#distime-frames): ``num_frames`` frames by ``pick``: ``midpoint`` (evaluation), ``middle``
    (LongVideoBench) or ``random`` (training; with ``spare_last`` as published: the last frame of a segment is never
    drawn, and that of a short video is repeated). Videos under ``min_duration_s`` are refused (DisTime: 1 s).

    rules ``qwen2_5_vl`` and ``qwen3_vl``: ``fps`` frames a second, at least ``min_frames`` and at most ``max_frames``;
    rule ``internvl``: ``num_frames``, each in the middle of a segment; all three as the released processors choose,
    but never more frames than the video has, nor one behind its end. ``even_times`` (published): a frame's time is its
    index over the average rate, instead of when it is really shown.
    """

    rule: str = "fps"
    fps: float = 1.0
    num_frames: int = 16
    pick: str = "midpoint"
    max_frames: int | None = None
    min_duration_s: float = 0.0
    spare_last: bool = False
    min_frames: int = later(4)
    even_times: bool = later(False)

    def __post_init__(self):
        most = self.max_frames
        checks = {
            "rule": (self.rule in RULES, f"one of {', '.join(RULES)}"),
            "fps": (math.isfinite(self.fps) and self.fps > 0, "a positive number"),
            "num_frames": (isinstance(self.num_frames, int) and self.num_frames >= 1, "a whole number >= 1"),
            "pick": (self.pick in PICKS, f"one of {', '.join(PICKS)}"),
            "max_frames": (most is None or (isinstance(most, int) and most >= 1), "a whole number >= 1 or null"),
            "min_frames": (isinstance(self.min_frames, int) and self.min_frames >= 1, "a whole number >= 1"),
            "min_duration_s": (math.isfinite(self.min_duration_s) and self.min_duration_s >= 0, "a number >= 0"),
        }
        told = ((good, f"Sampler.{k} must be {it}, not {getattr(self, k)!r}") for k, (good, it) in checks.items())
        needs(*told, error=ValueError)

    def indices(
        self, info: VideoInfo, rng: Random | None = None, window_s: tuple[float, float] | None = None
    ) -> np.ndarray:
        """Indices of presented frames, int64 [F], non-decreasing.

        ``window_s`` (start, end in seconds) restricts the choice to the frames nearest to its ends and those between.
        Only ``pick="random"`` draws, from ``rng``. Raises ``VideoError`` for a video that is too short, also for
        so many frames, and for a window beside the video, ``ValueError`` for a missing ``rng`` and a window that is
        not two numbers.
        """
        if info.duration_s < self.min_duration_s:
            problem = f"lasts {info.duration_s:.3f} s, less than the {self.min_duration_s} s asked for"
            raise video_error(info.path, problem, "leave it out or lower Sampler.min_duration_s")
        first, last = _window_bounds(info, window_s)
        length = last - first + 1
        if self.rule == "fps":
            if length * self.fps > info.fps * MAX_SAMPLES:
                problem = f"its {length} frames at {info.fps:.3g} per second would give over {MAX_SAMPLES} samples"
                remedy = "lower Sampler.fps, or mend it: ffmpeg -fflags +genpts -i IN OUT.mp4"
                raise video_error(info.path, problem, remedy)
            _check_repeats(info, length, min(length / info.fps * self.fps, self.max_frames or math.inf), "fps")
            indices = np.arange(0, length, info.fps / self.fps).round().astype(np.int64).clip(max=length - 1)
            if self.max_frames is not None:
                indices = indices[thinned_places(len(indices), self.max_frames)]
            return first + indices
        if self.rule == "internvl":
            count = min(self.num_frames, length)
            return first + even_steps(length, count, length / count / 2)
        if self.rule in ("qwen2_5_vl", "qwen3_vl"):
            chosen = paired_indices if self.rule == "qwen2_5_vl" else spread_indices
            return first + chosen(length, length / info.fps * self.fps, self.min_frames, self.max_frames or length)
        if self.pick != "random" or self.spare_last:
            _check_repeats(info, length, self.num_frames, "num_frames")
        if self.pick == "midpoint":
            return midpoint_indices(first, last, self.num_frames)
        if self.pick == "middle":
            return first + interval_middle_indices(length, self.num_frames)
        if rng is None:
            raise ValueError("Sampler.pick = 'random' draws frames: pass a random.Random as rng")
        if not self.spare_last:
            return first + interval_any_indices(length, self.num_frames, rng.choice)
        return first + interval_random_indices(
            length, self.num_frames, rng.choice, lambda count: rng.sample(range(count), count)
        )

    def times_s(self, info: VideoInfo, indices: np.ndarray) -> np.ndarray:
        """When the frames ``indices`` [F] are shown, in seconds, float64 [F]."""
        return indices / info.fps if self.even_times else info.pts_s[indices]


def _check_repeats(info: VideoInfo, length: int, wanted: float, key: str) -> None:
    """VideoError where more frames are ``wanted`` than there are, and so many that looking at them would not end."""
    most = max(length, MOST_REPEATED)
    if wanted > most:
        problem = f"has {length} frames to choose from, and {wanted:.0f} are asked for"
        raise video_error(info.path, problem, f"lower sampler.{key}; {most} frames are the most")


def _window_bounds(info: VideoInfo, window_s: tuple[float, float] | None) -> tuple[int, int]:
    """First and last index of a window: nearest frames by true time (ties to even), which is round(t * fps) at a
    constant rate. A reversed window is put in order (as published it would run backwards)."""
    if window_s is None:
        return 0, info.num_frames - 1
    if len(window_s) != 2 or not np.isfinite(window_s).all():
        raise ValueError(f"{info.path}: window_s must be two finite numbers (start, end in seconds), not {window_s!r}")
    start_s, end_s = sorted(window_s)
    if end_s < 0 or start_s > info.duration_s:
        problem = f"the window {start_s:.2f}-{end_s:.2f} s lies outside its {info.duration_s:.2f} s"
        raise video_error(info.path, problem, "correct the window")
    place = np.interp([start_s, end_s], info.pts_s, np.arange(info.num_frames))
    first, last = place.round(9).round().astype(int).tolist()  # round(9): interpolation noise must not break ties
    return first, last
