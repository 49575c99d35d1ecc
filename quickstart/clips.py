"""The moving-shapes data set: real H.264 files in which coloured shapes do known things at known times.

In: four counts and a seed. Out: ``DIR/videos/<split>/NNNNN.mp4``, ``DIR/<split>.jsonl`` in the repository's annotation
schema, and ``DIR/manifest.json``, written last, so its existence means the data set is complete. A clip depends only
on (seed, split, number), never on the counts or on the number of processes. The distribution is fixed: published
numbers of the quickstart belong to it, so a change of it must raise ``VERSION``. Knows no model and no tokenizer.

    python -m quickstart.clips --output DIR --train 1500 --val 100 --test 300 --unseen 100 --seed 0 --workers 2
"""

import json
import math
import multiprocessing
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from itertools import product
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from tqdm import tqdm

from videollm.common.command import Parser, a_path, ended, whole
from videollm.common.config import ConfigError, need
from videollm.video.names import as_url

VERSION = 2
SOURCE = "moving_shapes"
SPLITS = ("train", "val", "test", "unseen")
DEFAULT_COUNTS = {"train": 1500, "val": 100, "test": 300, "unseen": 100}
FPS = 4
SIZE = 64  # pixels a side
DURATION_S = (20, 60)
COUNT_CHANCES = (1 / 6, 2 / 6, 3 / 6)  # of one, two and three events: a clip of one tells nothing about questions
EVENT_SHARE = (0.12, 0.45)  # of the clip
OVERLAP_CHANCE = 0.15  # that one pair of neighbouring events overlaps, where a clip has two or three
HARD_CHANCE = 0.5  # that an extra event shares two attributes with an earlier one
DENSE_EVERY = 2  # train: every second clip has a dense caption
LETTERS = ("(a)", "(b)", "(c)", "(d)")

COLORS = {"red": (220, 50, 50), "green": (50, 190, 70), "blue": (60, 90, 230), "yellow": (225, 205, 60)}
SHAPES = ("circle", "square", "triangle")
MOTIONS = {"left": "moving left", "right": "moving right", "up": "moving up", "growing": "growing"}


class Kind(NamedTuple):
    """What happens in an event. Motion is one of ``MOTIONS``."""

    color: str
    shape: str
    motion: str


EVENT_KINDS = tuple(Kind(*names) for names in product(COLORS, SHAPES, MOTIONS))
# Never in train, val or test. Every attribute is frequent among the others: only the combination is new.
UNSEEN_KINDS = (
    Kind("red", "circle", "left"),
    Kind("green", "square", "right"),
    Kind("blue", "triangle", "up"),
    Kind("yellow", "circle", "growing"),
    Kind("red", "square", "up"),
    Kind("green", "triangle", "left"),
)
SEEN_KINDS = tuple(kind for kind in EVENT_KINDS if kind not in UNSEEN_KINDS)


def phrase(kind: Kind) -> str:
    """How the data set names a kind: ``red circle moving left``."""
    return f"{kind.color} {kind.shape} {MOTIONS[kind.motion]}"


class Timed:
    """An event, which has frames ``start`` <= t < ``end``, or a clip of ``num_frames``, in seconds."""

    @property
    def span(self) -> list[float]:
        """Of an event, [start, end]."""
        return [self.start / FPS, self.end / FPS]

    @property
    def duration(self) -> float:
        """Of a clip."""
        return self.num_frames / FPS


@dataclass(frozen=True)
class Event(Timed):
    """One shape in frames ``start`` <= t < ``end``; its motion starts anew every ``cycle`` frames."""

    kind: Kind
    start: int
    end: int
    radius: float  # pixels; a growing shape has GROW_RADIUS instead
    center: tuple[float, float]  # x, y in pixels; the axis of the motion is not used
    cycle: float
    shade: float  # brightness factor


@dataclass(frozen=True)
class Clip(Timed):
    """All that ``render`` needs: events in order of start, grey boxes (x0, y0, x1, y1, grey) and noise by seed."""

    num_frames: int
    events: tuple[Event, ...]
    background: int
    clutter: tuple[tuple[int, int, int, int, int], ...]
    noise_seed: int


GROW_RADIUS = (5.0, 16.0)


def make_clip(rng: np.random.Generator, unseen: bool = False) -> Clip:
    """Draw a clip of one to three events of different kinds.

    All kinds are among ``SEEN_KINDS``; with ``unseen`` one event is among ``UNSEEN_KINDS`` and the others are any.
    """
    num_frames = int(rng.integers(DURATION_S[0] * FPS, DURATION_S[1] * FPS + 1))
    kinds = _draw_kinds(rng, int(rng.choice(3, p=COUNT_CHANCES)) + 1, unseen)
    events = tuple(
        Event(
            *(kind, start, end),
            radius=rng.uniform(9, 13),
            center=(rng.uniform(22, 42), rng.uniform(22, 42)),
            # Six to ten of 32 uniform samples: 4-7 px (or 1-2 px of radius) between two samples of any clip.
            cycle=num_frames * rng.uniform(0.2, 0.3),
            shade=rng.uniform(0.85, 1.0),
        )
        for kind, (start, end) in zip(kinds, draw_intervals(rng, len(kinds), num_frames), strict=True)
    )
    boxes = []
    for _ in range(int(rng.integers(2, 6))):
        x, y = rng.integers(-6, SIZE - 6, 2).tolist()
        width, height = rng.integers(6, 20, 2).tolist()
        boxes.append((max(x, 0), max(y, 0), x + width, y + height, int(rng.integers(50, 160))))
    return Clip(num_frames, events, int(rng.integers(60, 130)), tuple(boxes), int(rng.integers(2**31)))


def _draw_kinds(rng: np.random.Generator, count: int, unseen: bool) -> list[Kind]:
    """``count`` different kinds in random order; about half of those after the first are hard distractors."""
    allowed = EVENT_KINDS if unseen else SEEN_KINDS
    first = UNSEEN_KINDS if unseen else SEEN_KINDS
    kinds = [first[rng.integers(len(first))]]
    while len(kinds) < count:
        options = [kind for kind in allowed if kind not in kinds]
        if rng.random() < HARD_CHANCE:
            near = kinds[rng.integers(len(kinds))]
            options = [kind for kind in options if _shared(kind, near) == 2]
        kinds.append(options[rng.integers(len(options))])
    return [kinds[i] for i in rng.permutation(count)]


def _shared(a: Kind, b: Kind) -> int:
    """Number of attributes that two kinds share."""
    return sum(x == y for x, y in zip(a, b, strict=True))


def draw_intervals(rng: np.random.Generator, count: int, num_frames: int) -> list[tuple[int, int]]:
    """``count`` frame intervals [start, end) in order of start; at most one pair of neighbours overlaps."""
    low, high = math.ceil(EVENT_SHARE[0] * num_frames), math.floor(EVENT_SHARE[1] * num_frames)
    while True:  # three long events may not fit; more than half of the draws do
        lengths = np.round(low + (high - low) * rng.random(count) ** 2).astype(int)  # short events are more frequent
        if lengths.sum() <= 0.88 * num_frames:
            break
    overlap = np.zeros(count, dtype=int)  # with the event before
    if count > 1 and rng.random() < OVERLAP_CHANCE:
        pair = int(rng.integers(1, count))
        overlap[pair] = round(rng.uniform(0.2, 0.5) * lengths[pair - 1 : pair + 1].min())
    free = num_frames - lengths.sum() + overlap.sum()
    cuts = np.sort(rng.integers(0, free + 1, count))
    gaps = np.diff(cuts, prepend=0)
    # An overlapping pair has no gap: the overlap takes its place and the gap moves behind the last event.
    gaps = np.where(overlap > 0, -overlap, gaps)
    starts = np.cumsum(gaps) + np.concatenate([[0], np.cumsum(lengths)[:-1]])
    return list(zip(starts.tolist(), (starts + lengths).tolist(), strict=True))


def render(clip: Clip) -> np.ndarray:
    """Draw a clip. Returns uint8 [T, 64, 64, 3], RGB; the same clip gives the same pixels."""
    # Noise stands still, as in a sensor's fixed pattern: fresh noise in every frame makes the files five times larger.
    noise = np.random.default_rng(clip.noise_seed).normal(0, 5, (SIZE, SIZE)).round().astype(np.int16)
    still = np.full((SIZE, SIZE), clip.background, dtype=np.int16)
    for x0, y0, x1, y1, grey in clip.clutter:
        still[y0:y1, x0:x1] = grey
    still = (still + noise).clip(0, 255).astype(np.uint8)
    video = np.broadcast_to(still[..., None], (clip.num_frames, SIZE, SIZE, 3)).copy()  # [T, 64, 64, 3]
    for event in clip.events:
        color = np.array(COLORS[event.kind.color]) * event.shade  # [3]
        surface = (color + noise[..., None]).clip(0, 255).astype(np.uint8)  # [64, 64, 3]
        part = video[event.start : event.end]
        np.copyto(part, surface, where=_shape_mask(event)[..., None])
    return video


def _shape_mask(event: Event) -> np.ndarray:
    """Where the shape is in its frames, bool [end - start, 64, 64]. A shape never leaves the picture."""
    frames = np.arange(event.end - event.start, dtype=np.float32)
    phase = (frames / event.cycle) % 1  # [n]
    radius = np.full_like(frames, event.radius)
    x, y = (np.full_like(frames, value) for value in event.center)
    travel = event.radius + phase * (SIZE - 2 * event.radius)  # from one edge to the other
    match event.kind.motion:
        case "left":
            x = SIZE - travel
        case "right":
            x = travel
        case "up":
            y = SIZE - travel
        case "growing":
            radius = GROW_RADIUS[0] + phase * (GROW_RADIUS[1] - GROW_RADIUS[0])
    grid = np.arange(SIZE, dtype=np.float32) + 0.5
    dx = (grid - x[:, None])[:, None, :]  # [n, 1, 64]
    dy = (grid - y[:, None])[:, :, None]  # [n, 64, 1]
    r = radius[:, None, None]
    match event.kind.shape:
        case "circle":
            return dx**2 + dy**2 <= r**2
        case "square":
            return (np.abs(dx) <= 0.9 * r) & (np.abs(dy) <= 0.9 * r)
        case _:  # a triangle that stands on its base
            return (np.abs(dx) <= (dy + r) / 2) & (dy <= r)


def write_video(path: Path, frames: np.ndarray, times_s: Sequence[float] = (), crf: int = 18) -> None:
    """Encode uint8 [T, H, W, 3] as H.264 with closed groups of pictures; one thread, so bytes repeat.

    Frames are shown at ``times_s`` seconds, which need not be evenly spaced, or else at ``FPS``.
    """
    with av.open(as_url(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        stream.codec_context.thread_count = 1
        stream.options = {"preset": "ultrafast", "crf": str(crf), "x264-params": "keyint=48:open-gop=0"}
        if len(times_s):
            stream.codec_context.time_base = Fraction(1, 1000)
        for number, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            if len(times_s):
                frame.pts, frame.time_base = round(1000 * times_s[number]), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def record(
    place: tuple[str, int], name: str, task: str, turns: tuple[str, str], spans: list[list[float]], clip: dict
) -> dict:
    """One annotation of clip ``place`` (split, number): question and answer, spans in seconds; ``clip`` holds its
    duration, source and events."""
    split, number = place
    said = [{"from": "human", "value": f"<video>\n{turns[0]}"}, {"from": "gpt", "value": turns[1]}]
    head = {"id": f"{split}-{number:05d}-{name}", "video": f"{split}/{number:05d}.mp4", "duration": clip["duration"]}
    told = {"task": task, "source": clip["source"], "conversations": said, "tgt": [t for span in spans for t in span]}
    return head | told | {"events": clip["events"]}


def annotate(clip: Clip, split: str, index: int, rng: np.random.Generator) -> list[dict]:
    """The annotation records of one clip.

    One grounding record an event, a multiple choice, and a dense caption (in train for every second clip).
    ``unseen`` asks only after unseen kinds.
    """
    asked = [event for event in clip.events if split != "unseen" or event.kind in UNSEEN_KINDS]
    events = [event.kind._asdict() | {"span": event.span} for event in clip.events]
    told = {"duration": clip.duration, "source": SOURCE, "events": events}
    records = []

    def add(name: str, task: str, question: str, answer: str, spans: list[list[float]]) -> None:
        records.append(record((split, index), name, task, (question, answer), spans, told))

    for number, event in enumerate(asked):
        question = f"when does this happen : {phrase(event.kind)}"
        answer = f"{phrase(event.kind)} happens at <span> ."
        add(f"grounding{number}", "grounding", question, answer, [event.span])
    if split != "train" or index % DENSE_EVERY == 0:
        answer = " ".join(f"<span> {phrase(event.kind)} ." for event in clip.events)
        add("dense", "dense_caption", "describe every event with its time .", answer, [e.span for e in clip.events])
    event = asked[rng.integers(len(asked))]
    question, letter = _choice_question(clip, event, EVENT_KINDS if split == "unseen" else SEEN_KINDS, rng)
    add("choice", "grounded_mc", question, f"{phrase(event.kind)} {letter} <span> .", [event.span])
    return records


def _choice_question(clip: Clip, event: Event, kinds: tuple[Kind, ...], rng: np.random.Generator) -> tuple[str, str]:
    """The question with four options, of which only ``event`` happens in the clip, and the letter of it."""
    absent = [kind for kind in kinds if kind not in {e.kind for e in clip.events}]
    options = [absent[i] for i in rng.choice(len(absent), len(LETTERS) - 1, replace=False)]
    place = int(rng.integers(len(LETTERS)))
    options.insert(place, event.kind)
    listed = " ".join(f"{letter} {phrase(kind)}" for letter, kind in zip(LETTERS, options, strict=True))
    return f"which event happens ? {listed}", LETTERS[place]


def _write_clip(job: tuple[str, int], output: Path, seed: int) -> list[dict]:
    """Draw, render, encode and annotate clip ``(split, index)``."""
    split, index = job
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    clip = make_clip(rng, unseen=split == "unseen")
    write_video(output / "videos" / split / f"{index:05d}.mp4", render(clip))
    return annotate(clip, split, index, rng)


def write_dataset(
    output: str | Path, counts: dict[str, int] | None = None, seed: int = 0, workers: int = 1, progress: bool = True
) -> dict:
    """Write the data set, or do nothing if ``output`` already holds it whole. Returns the manifest.

    Args:
        output: folder; made if missing.
        counts: clips by split (``DEFAULT_COUNTS`` if None); a split that is left out has none.
        seed: of everything.
        workers: processes.
        progress: show a bar.

    Raises:
        ConfigError: a count, the seed or ``workers`` is out of range, a split unknown, or ``output`` holds other data.
    """
    counts = dict(DEFAULT_COUNTS if counts is None else counts)
    unknown, good = set(counts) - set(SPLITS), min([seed, *counts.values()]) >= 0 and workers >= 1
    need(not unknown, f"unknown splits {sorted(unknown)}: the splits are {', '.join(SPLITS)}")
    need(good, f"counts {counts} and seed {seed} must be >= 0 and workers {workers} >= 1")
    settings = {"source": SOURCE, "version": VERSION, "seed": seed, "clips": {s: counts.get(s, 0) for s in SPLITS}}
    return write_clips(Path(output), settings, partial(_write_clip, output=Path(output), seed=seed), workers, progress)


def write_clips(
    output: Path, settings: dict, write: Callable[[tuple[str, int]], list[dict]], workers: int, progress: bool = True
) -> dict:
    """Write the clips that ``settings["clips"]`` counts by split, unless ``output`` holds them whole already.

    ``write`` makes the file of one clip (split, number) and returns its records. Returns the manifest; ConfigError
    where ``output`` holds data of other settings.
    """
    manifest_path = output / "manifest.json"
    if manifest_path.exists():
        manifest = json.loads(manifest_path.read_text())
        if any(manifest.get(key) != value for key, value in settings.items()):
            raise ConfigError(f"{manifest_path}: describes other settings than {settings}; use another folder")
        return manifest
    for split in settings["clips"]:
        (output / "videos" / split).mkdir(parents=True, exist_ok=True)
    jobs = [(split, index) for split, count in settings["clips"].items() for index in range(count)]
    records: dict[str, list[dict]] = {split: [] for split in settings["clips"]}
    # Spawned: the caller may hold threads (torch, tokenizers), and a fork of those can hang.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=spawn) if workers > 1 else nullcontext() as pool:
        mapped = partial(pool.map, chunksize=8) if pool else map  # in the order of the jobs
        done = mapped(write, jobs)
        for (split, _), lines in zip(jobs, tqdm(done, total=len(jobs), unit="clip", disable=not progress), strict=True):
            records[split] += lines
    for split, lines in records.items():
        (output / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    manifest = settings | {"records": {split: len(lines) for split, lines in records.items()}}
    manifest_path.write_text(json.dumps(manifest, indent=2) + "\n")
    return manifest


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; a user's error is one line and exit status 2."""
    parser = Parser(prog="python -m quickstart.clips", description="Write the moving-shapes data set.")
    parser.add_argument("--output", type=a_path, required=True, help="folder to write to")
    for split, count in DEFAULT_COUNTS.items():
        parser.add_argument(f"--{split}", type=whole(0), default=count, help=f"clips in {split} (default {count})")
    parser.add_argument("--seed", type=whole(0), default=0)
    parser.add_argument("--workers", type=whole(1), default=1, help="processes")
    args = parser.parse_args(argv)

    def run() -> None:
        counts = {split: getattr(args, split) for split in SPLITS}
        manifest = write_dataset(args.output, counts, args.seed, args.workers)
        print(f"{args.output}: {sum(manifest['clips'].values())} clips, {sum(manifest['records'].values())} records")

    return ended(run)


if __name__ == "__main__":
    sys.exit(main())
