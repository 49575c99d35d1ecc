"""Memory over many decodes of small clips: it stays flat, in a process that decodes and in the child of a data worker.

Growth is that of the resident memory from the first fifth of the decodes to the end; the claim is under 8 MiB for each
of the two. Exit status 0 if it holds.

    python -m benchmarks.decode_memory --decodes 5000
"""

import gc
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import psutil

from benchmarks.rounds import command_line
from quickstart.clips import write_dataset
from videollm.batches.reader import VisualReader
from videollm.common.command import ended
from videollm.common.isolate import Isolated
from videollm.video.preprocess import Preprocess
from videollm.video.sampling import Sampler
from videollm.video.view import WHOLE

MOST_MIB = 8.0
CLIPS = 20


def growth(decode: Callable[[str], object], pid: Callable[[], int], names: list[str], decodes: int) -> dict:
    """Resident memory of process ``pid`` while ``decode`` is called, in MiB."""
    seen = []
    for number in range(decodes):
        decode(names[number % len(names)])
        if (number + 1) % (decodes // 5) == 0:
            gc.collect()
            seen.append(psutil.Process(pid()).memory_info().rss / 2**20)
    return {"mib": [round(x, 1) for x in seen], "growth_mib": round(seen[-1] - seen[0], 1)}


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
    held = all(part["growth_mib"] < MOST_MIB for part in found.values())
    print(json.dumps({"decodes": args.decodes} | found | {"held": held}, indent=1))
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(ended(main))
