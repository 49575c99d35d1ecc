"""How fast data workers decode and prepare frames: a clip made here, read through the core's reader. Needs PyAV."""

import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from torch.utils.data import DataLoader, Dataset

from videollm.checkpoint import Bundle
from videollm.video.sampling import Sampler

RATE, WIDTH, HEIGHT = 30, 640, 360  # frames a second and pixels of the clip
WORKERS = 8


class Reading(Dataset):
    """The same clip again and again, decoded every time; each item is a count of frames."""

    def __init__(self, reader, name: str, length: int):
        self.reader, self.name, self.length = reader, name, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> int:
        self.reader.last = None  # the reader keeps its newest video
        return len(self.reader.video(self.name, None).times_s)


def write_clip(path: Path, seconds: int) -> None:
    """A clip with moving bands, a key frame a second."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=RATE)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = WIDTH, HEIGHT, "yuv420p", RATE
        stream.options = {"preset": "ultrafast", "x264-params": "open-gop=0"}
        stream.time_base = Fraction(1, RATE)
        for k in range(seconds * RATE):
            picture = np.stack([(columns + 3 * k) % 256, (rows + 2 * k) % 256, (rows + columns) % 256], -1)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture.astype(np.uint8), format="rgb24")))
        out.mux(stream.encode())


def decoded_frames(folder: Path, bundle: Bundle, backend: str, tiny: bool) -> dict[str, float]:
    """Sampled frames a second of ``WORKERS`` workers, one frame a second of the clip."""
    length = 2 if tiny else 30
    write_clip(folder / "clip.mp4", length)
    workers, reads = (1, 2) if tiny else (WORKERS, 6 * WORKERS)
    reader = bundle.reader(folder, Sampler(rule="fps", fps=1.0), backend=backend)
    loader = iter(DataLoader(Reading(reader, "clip.mp4", reads + workers), batch_size=None, num_workers=workers))
    for _ in range(workers):  # workers are there, and the file is in the system's memory
        next(loader)
    start = time.perf_counter()
    count = sum(loader)
    return {"workers": workers, "frames/s": count / (time.perf_counter() - start)}
