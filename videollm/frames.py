"""Frames decoded once and kept as they are, uint8, so that training and inference read pictures instead of mp4 files.

    python -m videollm.frames build --annotations FILE --videos DIR --output STORE (--config FILE | --model DIR)

A store is a folder: ``store.json`` (the sampler, and the resizing that was done) and shards ``NNNNN.safetensors`` of
videos; a shard appears whole, so an interrupted build goes on. Knows no records beyond the names of videos.
"""

import argparse
import itertools
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tqdm import tqdm

from videollm.annotations import AnnotationError, Record
from videollm.asking import WHOLE
from videollm.checkpoint import read_config
from videollm.common.command import tell
from videollm.common.config import ConfigError, build, override, read_yaml, to_dict
from videollm.common.isolate import isolated_map
from videollm.convert import CheckpointError
from videollm.data import load_records
from videollm.dataset import VisualReader
from videollm.settings import Settings
from videollm.transforms import Preprocess
from videollm.video import BACKENDS, Frames, Sampler, read_video, safe_join

VERSION = 1
SHARD_BYTES = 256 << 20  # frames of a shard; so much is decoded anew after a kill, and held in memory
SETTINGS, SKIPPED = "store.json", "skipped.jsonl"

Stored = tuple[np.ndarray, np.ndarray, float, int]  # pixels [F, H, W, 3], times_s [F], duration_s, damaged


def settings_of(sampler: Sampler, preprocess: Preprocess) -> dict:
    """What decides on the pixels of a store.

    Raises:
        ConfigError: frames drawn at random: there is no one set of them.
    """
    if sampler.pick == "random":
        raise ConfigError("data.frames: frames drawn at random cannot be kept; set data.sampler.pick=midpoint")
    # CLIP-style resizing gives floats, which bytes would round: such frames are kept as decoded and resized when read.
    size = None if preprocess.kind == "clip" else preprocess.size
    return {"version": VERSION, "sampler": to_dict(sampler), "resized_to": size}


class FrameStore:
    """Maps a relative video path to its ``Frames``, or to None where the store does not hold it.

    ``resized`` tells whether the first stage of the preprocessing is done already.

    Raises:
        ConfigError: no store, or one of another sampler or resizing.
    """

    def __init__(self, folder: str | Path, sampler: Sampler, preprocess: Preprocess):
        self.folder = Path(folder)
        wanted = settings_of(sampler, preprocess)
        made = read_settings(self.folder)
        if made is None:
            raise ConfigError(f"data.frames: {folder} is no frame store; make it with python -m videollm.frames build")
        if differ := [f"{key} {made.get(key)}" for key in wanted if made.get(key) != wanted[key]]:
            asked = ", ".join(f"{key} {wanted[key]}" for key in wanted if made.get(key) != wanted[key])
            raise ConfigError(
                f"data.frames: {folder} was made with {', '.join(differ)}, here it is {asked}; build another store, or "
                "set data.sampler and data.preprocess alike"
            )
        self.resized = made["resized_to"] is not None
        self.where = index_of(self.folder)

    def __call__(self, name: str) -> Frames | None:
        if name not in self.where:
            return None
        shard, number, duration_s, damaged = self.where[name]
        try:
            with safe_open(self.folder / shard, "pt") as file:
                pixels, times_s = file.get_tensor(f"{number}.pixels"), file.get_tensor(f"{number}.times_s")
        except (OSError, SafetensorError) as error:
            raise ConfigError(f"data.frames: {self.folder / shard} cannot be read ({error}); build it again") from None
        return Frames(pixels, times_s.numpy(), duration_s, f"{self.folder / shard}:{name}", damaged)


def open_store(folder: str | Path, reader: VisualReader, records: Sequence[Record]) -> None:
    """Let ``reader`` take frames from the store; ConfigError where it does not fit or holds none of the videos."""
    store = FrameStore(folder, reader.sampler, reader.preprocess)
    names = {record.video for record in records if record.video is not None}
    if names and not names & store.where.keys():
        raise ConfigError(
            f"data.frames: {folder} holds none of the {len(names)} videos, such as {min(names)}; build it with these "
            "annotations and this folder of videos"
        )
    reader.frames = store


def read_settings(folder: Path) -> dict | None:
    """``store.json``, or None where there is none. Raises ConfigError where it is damaged."""
    path = folder / SETTINGS
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path}: not JSON ({error}); delete the store and build it again") from None


def index_of(folder: Path) -> dict[str, tuple[str, int, float, int]]:
    """Video -> its shard, its number there, duration in seconds and frames replaced. Raises ConfigError."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, "pt") as file:
                videos = json.loads(file.metadata()["videos"])
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"data.frames: {path} is damaged ({error}); delete it and build again") from None
        found |= {name: (path.name, number, duration, bad) for number, (name, duration, bad) in enumerate(videos)}
    return found


# ---- building ------------------------------------------------------------------------------------------------------


class Decode:
    """Reads one video for a store, in a process of its own."""

    def __init__(self, root: str | Path, sampler: Sampler, preprocess: Preprocess, backend: str):
        self.root, self.sampler, self.backend = Path(root), sampler, backend
        self.resize = None if preprocess.kind == "clip" else preprocess.while_decoding()

    def __call__(self, name: str) -> Stored:
        path = safe_join(self.root, name)
        frames = read_video(path, self.sampler, resize=self.resize, backend=self.backend)
        return frames.pixels.numpy(), frames.times_s, frames.duration_s, frames.damaged


def build_store(
    folder: str | Path,
    names: Iterable[str],
    root: str | Path,
    sampler: Sampler,
    preprocess: Preprocess,
    *,
    backend: str = "pyav",
    workers: int = 1,
    timeout_s: float | None = 300.0,
    progress: bool = True,
) -> tuple[int, dict[str, str]]:
    """Store every video that is not stored yet; returns how many the store now holds, and the bad ones with reasons.

    Raises:
        ConfigError: the store was made with other settings, or cannot be written.
    """
    folder, wanted = Path(folder), settings_of(sampler, preprocess)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if read_settings(folder) is None:
            (folder / SETTINGS).write_text(json.dumps(wanted, indent=1) + "\n", encoding="utf-8")
        held = FrameStore(folder, sampler, preprocess).where
        missing = [name for name in dict.fromkeys(names) if name not in held]
        bad: dict[str, str] = {}
        decoded = isolated_map(Decode(root, sampler, preprocess, backend), missing, workers, timeout_s)
        bar = tqdm(decoded, total=len(missing), desc="decoding", unit="video", disable=not progress)
        for number, shard in enumerate(shards(bar, bad), next_shard(folder)):
            write_shard(folder / f"{number:05d}.safetensors", shard)
        (folder / SKIPPED).write_text(
            "".join(json.dumps({"video": name, "reason": why}) + "\n" for name, why in bad.items()), encoding="utf-8"
        )
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"--output: cannot write to {folder} ({error}); make room or choose another folder") from None
    return len(held) + len(missing) - len(bad), bad


def shards(decoded: Iterable[tuple[str, Stored | Exception]], bad: dict[str, str]) -> Iterator[list[tuple]]:
    """Videos in lists of about ``SHARD_BYTES``; those that could not be read go into ``bad``."""
    shard, size = [], 0
    for name, found in decoded:
        if isinstance(found, Exception):
            bad[name] = str(found)
            continue
        shard.append((name, *found))
        size += found[0].nbytes
        if size >= SHARD_BYTES:
            yield shard
            shard, size = [], 0
    if shard:
        yield shard


def next_shard(folder: Path) -> int:
    """The first number behind those of the shards that are there."""
    return max((int(path.stem) + 1 for path in folder.glob("*.safetensors") if path.stem.isdecimal()), default=0)


def write_shard(path: Path, videos: Sequence[tuple[str, np.ndarray, np.ndarray, float, int]]) -> None:
    """One file, whole or not at all."""
    tensors = [
        {f"{i}.pixels": torch.from_numpy(pixels), f"{i}.times_s": torch.from_numpy(times_s)}
        for i, (_, pixels, times_s, _, _) in enumerate(videos)
    ]
    listed = json.dumps([[name, duration_s, damaged] for name, _, _, duration_s, damaged in videos])
    fresh = path.with_suffix(".tmp")
    save_file(dict(itertools.chain(*(t.items() for t in tensors))), fresh, metadata={"videos": listed})
    os.replace(fresh, path)


# ---- the command -----------------------------------------------------------------------------------------------------


def wanted_frames(args: argparse.Namespace) -> tuple[Sampler, Preprocess]:
    """Sampler and preprocessing of a training config or of a checkpoint, with the command line over it."""
    values = override(read_yaml(args.config) if args.config else {}, args.overrides)
    if args.config:
        settings = build(Settings, values)
        checkpoint, sampler, preprocess = settings.model.checkpoint, settings.data.sampler, settings.data.preprocess
        kept = read_config(Path(checkpoint)) if checkpoint else None
        kept_sampler, kept_preprocess = (kept.sampler, kept.preprocess) if kept else ({}, {})
        return (
            sampler or build(Sampler, kept_sampler, "sampler"),
            preprocess or build(Preprocess, kept_preprocess, "preprocess"),
        )
    for key in values:
        if key != "sampler":
            raise ConfigError(f"{key}: unknown key; with --model the known key is sampler")
    config = read_config(Path(args.model))
    return (
        build(Sampler, config.sampler | values.get("sampler", {}), "sampler"),
        build(Preprocess, config.preprocess, "preprocess"),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """``python -m videollm.frames build``; a user's error is one line and exit status 2."""
    parser = argparse.ArgumentParser(prog="python -m videollm.frames", description="Decode videos once.")
    make = parser.add_subparsers(dest="command", required=True).add_parser("build", help="make a store, or go on")
    make.add_argument("--annotations", nargs="+", required=True, metavar="FILE", help="whose videos are stored")
    make.add_argument("--videos", required=True, metavar="DIR", help="folder that video paths are relative to")
    make.add_argument("--output", required=True, metavar="STORE", help="folder of the store")
    source = make.add_mutually_exclusive_group(required=True)
    source.add_argument("--config", help="training config that says which frames")
    source.add_argument("--model", help="checkpoint folder that says which frames")
    make.add_argument("--backend", choices=list(BACKENDS), default="pyav")
    make.add_argument("--workers", type=int, default=os.cpu_count() or 1, metavar="N", help="processes that decode")
    make.add_argument("--decode-timeout", type=float, default=300.0, metavar="S", help="seconds a video may take")
    make.add_argument("overrides", nargs="*", help="data.sampler.num_frames=32 (--config), sampler.fps=2 (--model)")
    args = parser.parse_args(argv)
    try:
        if args.workers < 1:
            raise ConfigError(f"--workers: {args.workers}, but it must be at least 1")
        if not Path(args.videos).is_dir():
            raise ConfigError(f"--videos: {args.videos} is not a folder; give the one that the paths are below")
        sampler, preprocess = wanted_frames(args)
        records = load_records(args.annotations)
        names = [r.video for r in records if r.video is not None and r.asking.view == WHOLE]
        held, bad = build_store(
            args.output, names, args.videos, sampler, preprocess,
            backend=args.backend, workers=args.workers, timeout_s=args.decode_timeout,
        )  # fmt: skip
    except (AnnotationError, CheckpointError, ConfigError) as error:
        return tell(error)
    print(f"{args.output}: {held} videos stored, {len(bad)} bad" + (f" (named in {SKIPPED} there)" if bad else ""))
    return 0


if __name__ == "__main__":
    sys.exit(main())
