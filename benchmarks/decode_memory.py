"""Memory of decoding: flat over many small clips, and for a long video what the frames take that are looked at.

Growth is that of the resident memory from the first fifth of the decodes to the end; the claim is under 8 MiB in a
process that decodes and in the child of a data worker. A long video's peak, in a process of its own, is measured above
what that process has when it starts; the claim is 1.5 times the frames that are looked at and 40 MiB for the decoder:
for three hours of which a context holds 15 frames, and for 15 minutes all of whose frames are looked at, as bytes and
as the floats of CLIP-style resizing. Exit status 0 if it all holds.

    python -m benchmarks.decode_memory --decodes 5000
"""

import gc
import json
import os
import resource
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import av
import numpy as np
import psutil

from benchmarks.rounds import command_line
from quickstart.clips import write_dataset
from videollm.batches.reader import VisualReader
from videollm.common.command import ended
from videollm.common.isolate import Isolated
from videollm.video.names import as_url
from videollm.video.preprocess import Preprocess
from videollm.video.sampling import Sampler
from videollm.video.view import WHOLE

MOST_MIB = 8.0
CLIPS = 20
MOST_COPIES, DECODER_MIB = 1.5, 40.0
# name -> seconds of the video at 1 fps, preprocessing, most frames that the context holds, bytes of a value
LONG = {
    "3 h, 15 frames fit": (10_800, Preprocess(kind="plain", size=64), (15,), 1),
    "15 min, all fit, bytes": (900, Preprocess(kind="internvl", size=224), (), 1),
    "15 min, all fit, floats": (900, Preprocess(kind="clip", size=224), (), 4),
}


def growth(decode: Callable[[str], object], pid: Callable[[], int], names: list[str], decodes: int) -> dict:
    """Resident memory of process ``pid`` while ``decode`` is called, in MiB."""
    seen = []
    for number in range(decodes):
        decode(names[number % len(names)])
        if (number + 1) % (decodes // 5) == 0:
            gc.collect()
            seen.append(psutil.Process(pid()).memory_info().rss / 2**20)
    return {"mib": [round(x, 1) for x in seen], "growth_mib": round(seen[-1] - seen[0], 1)}


def peak_mib(read: Callable[[], object]) -> float:
    """The most resident memory of a fork while it reads, above what it starts with."""
    taken, given = os.pipe()
    pid = os.fork()
    if pid == 0:
        start = psutil.Process().memory_info().rss
        read()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # given in KiB on Linux
        os.write(given, repr((peak - start) / 2**20).encode())
        os._exit(0)
    os.close(given)
    with os.fdopen(taken) as answer:
        found = float(answer.read())
    os.waitpid(pid, 0)
    return found


def long_videos(folder: Path) -> dict:
    """The peak of reading each of ``LONG`` against the frames that are looked at."""
    found = {}
    for name, (seconds, preprocess, limits, size) in LONG.items():
        path = folder / f"{seconds}.mp4"
        with av.open(as_url(path), "w") as container:
            stream = container.add_stream("libx264", rate=1, options={"preset": "ultrafast"})
            stream.width, stream.height, stream.pix_fmt, stream.gop_size = 320, 240, "yuv420p", 30
            for level in range(seconds):
                picture = np.full((240, 320, 3), level % 256, np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
            container.mux(stream.encode())
        reader = VisualReader(folder, Sampler(rule="fps", fps=1.0), preprocess)
        peak = peak_mib(partial(reader.video, path.name, None, limits=limits))
        frames = min([seconds, *limits]) * 3 * preprocess.size**2 * size / 2**20
        held = peak < MOST_COPIES * frames + DECODER_MIB
        found[name] = {"frames_mib": round(frames, 1), "peak_mib": round(peak, 1), "held": held}
    return found


def main() -> int:
    """Measure and print."""
    args = command_line(__doc__, decodes=5000).parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        write_dataset(scratch, {"test": CLIPS}, progress=False)
        videos = Path(scratch) / "videos"
        names = sorted(str(path.relative_to(videos)) for path in videos.rglob("*.mp4"))
        sampler, preprocess = Sampler(rule="segments", num_frames=16), Preprocess(kind="plain", size=64)
        reader = VisualReader(videos, sampler, preprocess)
        child = Isolated(lambda name: reader.decode(name, None, WHOLE).pixels.numpy(), timeout_s=60)
        found = {
            "in the child": growth(child, lambda: child.child[0], names, args.decodes),
            "in this process": growth(lambda name: reader.decode(name, None, WHOLE), os.getpid, names, args.decodes),
        }
        long = long_videos(Path(scratch))
    held = all(part["growth_mib"] < MOST_MIB for part in found.values()) and all(p["held"] for p in long.values())
    print(json.dumps({"decodes": args.decodes} | found | long | {"held": held}, indent=1))
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(ended(main))
