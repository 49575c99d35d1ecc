"""Frames decoded once and kept as they are, uint8, so that training and inference read pictures instead of mp4 files.

A store is a folder: ``store.json`` (the sampler, and the resizing that was done) and shards ``NNNNN.safetensors`` of
videos; a shard appears whole, so an interrupted build goes on. Knows the names of videos, no records.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tqdm import tqdm

from videollm.common.config import ConfigError, to_dict
from videollm.common.files import replacing, write_text
from videollm.common.isolate import isolated_map
from videollm.video.preprocess import Preprocess
from videollm.video.read import Frames, read_video, safe_join
from videollm.video.sampling import Sampler, kept_places

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
        raise ConfigError(
            "data.frames: frames drawn at random cannot be stored; leave data.frames out, or, in a new run, set "
            "data.sampler.pick=midpoint"
        )
    # CLIP-style resizing gives floats, which bytes would round: such frames are kept as decoded and resized when read.
    size = None if preprocess.kind == "clip" else preprocess.sizing
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
            raise ConfigError(f"data.frames: {folder} is no frame store; make it with videollm frames build")
        if differ := [f"{key} {made.get(key)}" for key in wanted if made.get(key) != wanted[key]]:
            asked = ", ".join(f"{key} {wanted[key]}" for key in wanted if made.get(key) != wanted[key])
            raise ConfigError(
                f"data.frames: {folder} was made with {', '.join(differ)}, here it is {asked}; build another store, "
                "or, in a new run, set data.sampler and data.preprocess alike"
            )
        self.resized = made["resized_to"] is not None
        self.where = index_of(self.folder)

    def __call__(self, name: str, limits: Sequence[int] = ()) -> Frames | None:
        if name not in self.where:
            return None
        shard, number, duration_s, damaged = self.where[name]
        try:
            with safe_open(self.folder / shard, "pt") as file:
                times_s = file.get_tensor(f"{number}.times_s").numpy()
                places = kept_places(len(times_s), limits)
                pixels = some_of(file, f"{number}.pixels", places)
        except (OSError, SafetensorError) as error:
            raise ConfigError(f"data.frames: {self.folder / shard} cannot be read ({error}); build it again") from None
        where = f"{self.folder / shard}:{name}"
        return Frames(pixels, times_s[places], duration_s, where, damaged, places, len(times_s))


def some_of(file: Any, name: str, rows: np.ndarray) -> torch.Tensor:
    """The ``rows`` of a tensor in an open file of safetensors; what lies between them is not read."""
    whole = file.get_slice(name)
    if len(rows) == whole.get_shape()[0]:
        return file.get_tensor(name)
    return torch.cat([whole[row : row + 1] for row in rows.tolist()])


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
        if read_settings(folder) is None or not any(folder.glob("*.safetensors")):  # of none, no settings hold
            write_text(folder / SETTINGS, json.dumps(wanted, indent=1) + "\n")
        held = FrameStore(folder, sampler, preprocess).where
        missing = [name for name in dict.fromkeys(names) if name not in held]
        bad: dict[str, str] = {}
        decoded = isolated_map(Decode(root, sampler, preprocess, backend), missing, workers, timeout_s)
        bar = tqdm(decoded, total=len(missing), desc="decoding", unit="video", disable=not progress)
        for number, shard in enumerate(shards(bar, bad), next_shard(folder)):
            write_shard(folder / f"{number:05d}.safetensors", shard)
        skipped = ({"video": name, "reason": why} for name, why in bad.items())
        write_text(folder / SKIPPED, "".join(json.dumps(row) + "\n" for row in skipped))
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
    tensors = {}
    for i, (_, pixels, times_s, _, _) in enumerate(videos):
        tensors |= {f"{i}.pixels": torch.from_numpy(pixels), f"{i}.times_s": torch.from_numpy(times_s)}
    listed = json.dumps([[name, duration_s, damaged] for name, _, _, duration_s, damaged in videos])
    with replacing(path) as fresh:
        save_file(tensors, fresh, metadata={"videos": listed})
