"""Features of a frozen tower, computed once a video and kept on disk.

A file is named by the video's content, the tower's weights, the sampler and the preprocessing, so a change of any of
them is a new file, never a stale one. Holds safetensors ``features`` [F, P, Dv] (of frames of any size [G, rows,
columns, Dv]) and ``times_s`` [F]; knows no records.
"""

import hashlib
import json
import os
import random
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm
from transformers import TrainingArguments

from videollm.batches.dataset import as_it_is
from videollm.batches.reader import VisualReader
from videollm.checkpoint import Bundle
from videollm.common.config import ConfigError, to_dict
from videollm.common.files import replacing
from videollm.common.processes import leave_interrupts
from videollm.data import Record
from videollm.model.towers import encode_video
from videollm.video.decode import VideoError
from videollm.video.read import safe_join

BLOCKS, BLOCK = 16, 1 << 16  # evenly spread bytes of a file that, with its size, stand for its content


class FeatureStore:
    """Maps a relative video path to its stored features; call it, or ``fill`` it first.

    ``hits``, ``misses`` and ``bytes`` count what ``fill`` found, computed, and what all of it takes on disk.

    Raises:
        ConfigError: the sampler or a crop draws at random, so there is no one set of features to store.
    """

    def __init__(self, folder: str | Path, reader: VisualReader, tower: nn.Module):
        if reader.sampler.pick == "random":
            raise ConfigError(
                "data.features: data.sampler.pick=random draws other frames each time; leave data.features out, or set "
                "midpoint in a new run"
            )
        if not reader.fixed:
            raise ConfigError(
                "data.features: data.preprocess.random_crop changes the frames each time; leave data.features out, or "
                "set false in a new run"
            )
        self.folder, self.reader = Path(folder), reader
        digest = hashlib.sha256()
        for name, tensor in sorted(tower.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
        settings = [tower.config.to_dict(), to_dict(reader.sampler), to_dict(reader.preprocess)]
        digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
        self.key = digest.hexdigest()
        self.hits = self.misses = self.bytes = 0

    def path(self, name: str) -> Path:
        """Where the features of video ``name`` are kept."""
        file = safe_join(self.reader.root, name)
        digest = hashlib.sha256(self.key.encode())
        try:
            with open(file, "rb") as stream:
                size = os.fstat(stream.fileno()).st_size
                digest.update(f"{size}".encode())
                places = {max(0, size - BLOCK) * k // (BLOCKS - 1) for k in range(BLOCKS)}
                for place in sorted(places):
                    stream.seek(place)
                    digest.update(stream.read(BLOCK))
        except OSError as error:
            raise VideoError(f"{file}: {error.strerror}; check the path and the folder of the videos") from None
        return self.folder / f"{digest.hexdigest()[:40]}.safetensors"

    def __call__(self, name: str) -> tuple[torch.Tensor, np.ndarray, float] | None:
        """(features, times_s, duration_s) of a video, or None if they are not stored."""
        path = self.path(name)
        if not path.is_file():
            return None
        try:
            with safe_open(path, "pt") as file:
                times = file.get_tensor("times_s").numpy()
                return file.get_tensor("features"), times, float(file.metadata()["duration_s"])
        except SafetensorError:
            return None  # damaged: as good as not stored

    def fill(self, names: Iterable[str], tower: nn.Module, rank: int = 0, world: int = 1, workers: int = 0) -> None:
        """Compute what is missing, this rank its share; videos that cannot be read are left to the data set.

        ``workers`` processes read ahead. Every rank goes through its videos in another order and looks again before it
        reads one, so several runs that fill one folder share the work.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        device = next(tower.parameters()).device
        share = sorted(set(names))[rank::world]
        random.Random(os.getpid()).shuffle(share)
        own = torch.Generator()  # a loader draws a seed: not from the one that training goes on with
        loader = DataLoader(
            Wanted(self, share), batch_size=None, num_workers=workers, collate_fn=as_it_is, generator=own,
            worker_init_fn=leave_interrupts,
        )  # fmt: skip
        for found in tqdm(loader, desc="tower features", unit="video", disable=rank > 0):
            if isinstance(found, int):
                self.hits += 1
                self.bytes += found
            elif found is not None:
                path, pixels, times_s, duration_s = found
                self.misses += 1
                features = encode_video(tower, pixels, self.reader.preprocess, device)
                tensors = {"features": features, "times_s": torch.as_tensor(np.asarray(times_s, np.float64))}
                with replacing(path, shared=True) as fresh:
                    save_file(tensors, fresh, metadata={"duration_s": repr(float(duration_s))})
                self.bytes += path.stat().st_size


class Wanted(Dataset):
    """Of each video: bytes of its stored features, or what they are made of (path, pixels, times_s, duration_s), or
    None where it cannot be read."""

    def __init__(self, store: FeatureStore, names: Sequence[str]):
        self.store, self.names = store, names

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> int | tuple[Path, torch.Tensor, np.ndarray, float] | None:
        name = self.names[index]
        try:
            path = self.store.path(name)
            found = None if self.store(name) is not None else self.store.reader.video(name, None)
        except VideoError:
            return None
        if found is None or found.pixels is None:  # another process may have stored it just now
            return path.stat().st_size
        return path, found.pixels, found.times_s, found.duration_s


def fill_store(store: FeatureStore, records: Sequence[Record], bundle: Bundle, arguments: TrainingArguments) -> None:
    """Store the features of the records' videos, every rank its share; ConfigError where they cannot be written."""
    tower, names = bundle.model.vision_tower.to(arguments.device), [r.video for r in records if r.video]
    rank, world, workers = arguments.process_index, arguments.world_size, arguments.dataloader_num_workers
    try:
        store.fill(names, tower, rank, world, workers)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"data.features: cannot write to {store.folder} ({error}); choose another folder") from None
    found = torch.tensor([store.hits, store.misses, store.bytes], dtype=torch.float64, device=arguments.device)
    if dist.is_initialized():
        dist.all_reduce(found)  # also waits until every rank's share is there
    hits, misses, size = found.tolist()
    if arguments.process_index == 0:
        share = hits / max(1, hits + misses)
        print(f"{store.folder}: features of {hits + misses:.0f} videos, {size / 2**20:.1f} MiB, hit rate {share:.0%}")
