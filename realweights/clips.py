"""Clips in which pictured things do known things at known times over moving photographs, as real H.264 files.

In: the packages' folder, counts and a seed. Out: what ``quickstart.clips`` writes: ``DIR/videos/<split>/NNNNN.mp4``,
``DIR/<split>.jsonl`` and ``DIR/manifest.json``, written last. A clip depends only on (seed, split, number) and on the
packages. Splits: ``train``, ``val``, ``test`` (new clips of things that training shows, asked as in training),
``unseen`` (asks for things that no training clip shows) and ``wording`` (questions in words never trained on, by a
synonym where there is one). The camera pans over a photograph, frames come at a varying rate, things may be half
hidden. It knows no model and no tokenizer.

    python -m realweights.clips --packages DIR --output DIR --train 1200 --seed 0 --workers 2
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from quickstart.clips import (
    COUNT_CHANCES,
    DURATION_S,
    FPS,
    LETTERS,
    Timed,
    draw_intervals,
    record,
    write_clips,
    write_video,
)
from realweights import objects as words
from realweights.objects import ACTIONS, Thing, read_photos, read_picture, read_things
from videollm.common.command import Parser, ended, whole
from videollm.common.config import need

VERSION = 2
SOURCE = "realweights"
DEFAULT_COUNTS = {"train": 1200, "val": 60, "test": 150, "unseen": 150, "wording": 150}
SPLITS = tuple(DEFAULT_COUNTS)
SIZE = 128  # pixels a side
LONGEST_S = 90
THING_SHARE = (0.38, 0.6)  # of the frame's side, the longer edge of a thing
OCCLUDED = 0.25  # share of things of which a strip hides a part for a while
SLOW = 0.3  # share of stretches in which every second frame is left out
STRETCH_S = 5
CRF = 26  # of H.264: a moving background costs five times the bytes at the quickstart's 18
FADE = 0.6  # of its time that a fading thing takes to go


@dataclass(frozen=True)
class Event(Timed):
    """A thing in frames ``start`` <= t < ``end``; the rest says where and how."""

    thing: Thing
    action: str
    start: int
    end: int
    size: float  # pixels, the longer edge
    center: tuple[float, float]  # share of the room left, x and y
    hidden: tuple[float, float, float] | None  # from, to (share of its time) and share of its height


@dataclass(frozen=True)
class Clip(Timed):
    """All that ``render`` needs. ``shown``: which of ``num_frames`` at ``FPS`` the file has."""

    num_frames: int
    shown: tuple[int, ...]
    events: tuple[Event, ...]
    photo: int
    pan: tuple[float, float, float, float]  # where the camera begins and ends, shares of the photograph
    noise_seed: int


def make_clip(rng: np.random.Generator, things: Sequence[Thing], photos: int, unseen: bool) -> Clip:
    """Draw a clip of one to three different things, all of them trained on, or with ``unseen`` one that is not."""
    low, high = DURATION_S[0] * FPS, LONGEST_S * FPS
    num_frames = int(low + (high - low) * rng.random() ** 2)  # long clips are rarer
    count = int(rng.choice(3, p=COUNT_CHANCES)) + 1
    first = [t for t in things if t.unseen] if unseen else [t for t in things if not t.unseen]
    rest = list(things) if unseen else first
    chosen = [first[rng.integers(len(first))]]
    chosen += [t for i in rng.permutation(len(rest)) if (t := rest[i]) is not chosen[0]][: count - 1]
    chosen = [chosen[i] for i in rng.permutation(len(chosen))]
    events = tuple(
        Event(
            *(thing, list(ACTIONS)[rng.integers(len(ACTIONS))], start, end),
            size=SIZE * rng.uniform(*THING_SHARE),
            center=tuple(rng.random(2)),
            hidden=(*sorted(rng.random(2)), rng.uniform(0.3, 0.6)) if rng.random() < OCCLUDED else None,
        )
        for thing, (start, end) in zip(chosen, draw_intervals(rng, len(chosen), num_frames), strict=True)
    )
    slow = rng.random(num_frames // (STRETCH_S * FPS) + 1) < SLOW
    # The first and the last frame stay: they say how long the clip is.
    shown = [f for f in range(num_frames) if not (slow[f // (STRETCH_S * FPS)] and f % 2) or f == num_frames - 1]
    return Clip(
        num_frames, tuple(shown), events, int(rng.integers(photos)), tuple(rng.random(4)), int(rng.integers(2**31))
    )


def render(clip: Clip, photos: Sequence[np.ndarray]) -> np.ndarray:
    """Draw a clip's shown frames, uint8 [T, SIZE, SIZE, 3], RGB; the same clip gives the same pixels."""
    noise = np.random.default_rng(clip.noise_seed).normal(0, 4, (SIZE, SIZE, 1)).round().astype(np.int16)
    photo = photos[clip.photo]
    room = np.array(photo.shape[:2]) - SIZE  # of the camera
    video = np.empty((len(clip.shown), SIZE, SIZE, 3), dtype=np.uint8)
    pan = np.array(clip.pan).reshape(2, 2)
    for i, frame in enumerate(clip.shown):
        share = frame / clip.num_frames
        top, left = (room * ((1 - share) * pan[0] + share * pan[1])).astype(int)
        view = photo[top : top + SIZE, left : left + SIZE].copy()
        for event in clip.events:
            if event.start <= frame < event.end:
                paste(view, event, (frame - event.start) / (event.end - event.start))
        video[i] = (view + noise).clip(0, 255)
    return video


def paste(view: np.ndarray, event: Event, share: float) -> None:
    """Put an event's thing into ``view`` [SIZE, SIZE, 3], in place, when ``share`` of its time is over."""
    scale = {"grow": 0.55 + 0.45 * share, "shrink": 1 - 0.45 * share}.get(event.action, 1.0)
    picture = Image.fromarray(read_picture(event.thing))
    factor = scale * event.size / max(picture.size)
    width, height = (max(1, round(factor * edge)) for edge in picture.size)
    picture = np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR))
    at = np.array(event.center)
    axis = {"left": 0, "right": 0, "up": 1, "down": 1}.get(event.action)
    if axis is not None:
        at[axis] = 1 - share if event.action in ("left", "up") else share
    left, top = (at * (SIZE - np.array([width, height]))).astype(int)
    opaque = picture[..., 3:] / 255
    if event.action == "fade":
        opaque = opaque * min(1, (1.15 - share) / FADE)
    if event.hidden and event.hidden[0] <= share < event.hidden[1]:
        opaque = opaque.copy()
        opaque[: round(event.hidden[2] * height)] = 0  # behind something that looks like the background
    part = view[top : top + height, left : left + width]
    part[:] = part + opaque * (picture[..., :3].astype(float) - part)


def annotate(clip: Clip, place: tuple[str, int], things: Sequence[Thing], rng: np.random.Generator) -> list[dict]:
    """The records of one clip: grounding of every thing asked for, a dense caption and a choice.

    ``unseen`` asks for unseen things only.
    """
    split = place[0]
    new = split == "wording"
    events = [{"name": e.thing.name, "action": e.action, "span": e.span} for e in clip.events]
    told = {"duration": clip.duration, "source": SOURCE, "events": events}
    asked = [e for e in clip.events if split != "unseen" or e.thing.unseen]
    records = []

    def one(of: Sequence[str]) -> str:
        return of[rng.integers(len(of))]

    for i, event in enumerate(asked):
        called = event.thing.names[-1] if new else one(event.thing.trained_names)
        question = one(words.GROUNDING_HELD_OUT if new else words.GROUNDING).format(called)
        answer = one(words.ANSWERS).format(event.thing.name)
        records.append(record(place, f"grounding{i}", "grounding", (question, answer), [event.span], told))
    answer = " ".join(f"<span> {e.thing.name} {ACTIONS[e.action]}." for e in clip.events)
    turns = (one(words.DENSE_HELD_OUT if new else words.DENSE), answer)
    records.append(record(place, "dense", "dense_caption", turns, [e.span for e in clip.events], told))
    event = asked[rng.integers(len(asked))]
    absent = [t for t in things if t.unseen == event.thing.unseen and t not in {e.thing for e in clip.events}]
    options = [absent[i].name for i in rng.choice(len(absent), len(LETTERS) - 1, replace=False)]
    right = int(rng.integers(len(LETTERS)))
    options.insert(right, event.thing.name)
    listed = " ".join(f"{letter} {name}" for letter, name in zip(LETTERS, options, strict=True))
    turns = (f"{one(words.CHOICE_HELD_OUT if new else words.CHOICE)} {listed}",
             f"{event.thing.name} {LETTERS[right]} <span>.")  # fmt: skip
    return [*records, record(place, "choice", "grounded_mc", turns, [event.span], told)]


def write_clip(place: tuple[str, int], packages: Path, output: Path, seed: int) -> list[dict]:
    """Draw, render, encode and annotate the clip ``place`` (split, number)."""
    split, number = place
    rng = np.random.default_rng([seed, SPLITS.index(split), number])
    things, photos = read_things(packages), read_photos(packages, 2 * SIZE)
    clip = make_clip(rng, things, len(photos), split == "unseen")
    frames = render(clip, photos)
    write_video(output / "videos" / split / f"{number:05d}.mp4", frames, [f / FPS for f in clip.shown], CRF)
    return annotate(clip, place, things, rng)


def write_dataset(packages: Path, output: Path, counts: dict[str, int], seed: int, workers: int) -> dict:
    """Write the data set, unless ``output`` holds it whole. Returns the manifest.

    Raises ConfigError where there are too few things, or ``output`` holds other data.
    """
    things = read_things(packages)
    few = min(sum(t.unseen == kind for t in things) for kind in (True, False))
    need(few > len(LETTERS) + 2, f"{packages}/emoji: {few} things of a kind are too few; fetch the package again")
    settings = {"source": SOURCE, "version": VERSION, "seed": seed, "clips": counts, "things": len(things)}
    return write_clips(output, settings, partial(write_clip, packages=packages, output=output, seed=seed), workers)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; a user's error is one line and exit status 2."""
    parser = Parser(prog="python -m realweights.clips", description=__doc__.split("\n")[0])
    parser.add_argument("--packages", type=Path, required=True, help="folder made by realweights.packages")
    parser.add_argument("--output", type=Path, required=True, help="folder to write to")
    for split, count in DEFAULT_COUNTS.items():
        parser.add_argument(f"--{split}", type=whole(0), default=count, help=f"clips in {split} (default {count})")
    parser.add_argument("--seed", type=whole(0), default=0)
    parser.add_argument("--workers", type=whole(1), default=os.cpu_count() or 1, help="processes")
    args = parser.parse_args(argv)

    def run() -> None:
        counts = {split: getattr(args, split) for split in SPLITS}
        manifest = write_dataset(args.packages, args.output, counts, args.seed, args.workers)
        print(f"{args.output}: {sum(counts.values())} clips, {sum(manifest['records'].values())} records")

    return ended(run)


if __name__ == "__main__":
    sys.exit(main())
