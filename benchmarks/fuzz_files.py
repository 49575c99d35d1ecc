"""Video and picture files that were cut, bit-flipped, overwritten or joined at random: only documented errors come out.

Each file follows from the seed and its number. It is read as training reads it, in a process that can be killed. It may
give ordered frames at finite times, or one ``VideoError`` that names the file and a remedy; anything else, a process
that ends, and one that takes longer than ``--timeout`` seconds are faults. Exit status 0 if there are none.

    python -m benchmarks.fuzz_files --files 2000 --seed 0
"""

import logging
import os
import sys
import tempfile
from collections import Counter
from pathlib import Path
from random import Random

import av
import numpy as np
from PIL import Image
from tqdm import tqdm

from benchmarks.odd_files import PICTURES, encode, picture
from benchmarks.rounds import command_line
from videollm.common.command import ended
from videollm.common.isolate import isolated_map
from videollm.video.decode import VideoError, probe
from videollm.video.read import read_image, read_video
from videollm.video.sampling import Sampler

FRAMES = 6  # read of each file
COUNT = 40  # pictures of a whole one
SOURCES = {  # name -> encoder and its options
    "x264.mp4": ("libx264", {}),
    "front.mp4": ("libx264", {"movflags": "faststart"}),
    "fragments.mp4": ("libx264", {"movflags": "frag_keyframe+empty_moov"}),
    "x264.mkv": ("libx264", {}),
    "refresh.mkv": ("libx264", {"x264-params": "intra-refresh=1:keyint=30:scenecut=0"}),
    "vp8.webm": ("libvpx", {"deadline": "realtime"}),
    "mpeg4.avi": ("mpeg4", {"bf": "2"}),
    "x264.ts": ("libx264", {}),
    "mpeg1.mpg": ("mpeg1video", {"bf": "2"}),
    "mpeg2.vob": ("mpeg2video", {"bf": "2"}),
    "x.flv": ("flv", {}),
    "x.wmv": ("wmv2", {}),
    "x.mxf": ("mpeg2video", {}),
    "prores.mov": ("prores", {}),
    "raw.h264": ("libx264", {}),
}
LOOK_AT = (".jpg", *PICTURES)


def whole_files(folder: Path) -> dict[str, bytes]:
    """The files before they are damaged, by name; encoders that PyAV lacks are left out."""
    found = {}
    for name, (codec, options) in SOURCES.items():
        try:
            found[name] = encode(folder / name, codec, count=COUNT, **options).read_bytes()
        except av.codec.codec.UnknownCodecError as error:
            print(f"left out: {name} (PyAV has no encoder {error})")
    for ending in LOOK_AT:
        path = folder / f"picture{ending}"
        Image.fromarray(picture(5, np.random.RandomState(0))).save(path)
        found[path.name] = path.read_bytes()
    return found


def damaged(sources: dict[str, bytes], random: Random) -> tuple[str, bytes]:
    """The name of a source, and what one to three accidents made of it."""
    name = random.choice(sorted(sources))
    data = bytearray(sources[name])
    for _ in range(random.randint(1, 3)):
        accident = random.choice(("cut", "flip", "overwrite", "join"))
        place = random.randrange(len(data)) if data else 0
        if accident == "cut":
            del data[max(place, 1) :]
        elif accident == "flip":
            for _ in range(random.choice((1, 10, 200))):
                data[random.randrange(len(data))] ^= 1 << random.randrange(8)
        elif accident == "overwrite":
            length = min(random.choice((4, 100, 4096)), len(data) - place)
            data[place : place + length] = random.choice((b"\0", b"\xff")) * length
        else:
            same = [other for other in sorted(sources) if Path(other).suffix == Path(name).suffix]
            data += sources[random.choice(same if random.random() < 0.7 else sorted(sources))]
    return name, bytes(data)


class Trial:
    """Make and read one file: number -> "good", "named" (by a problem of the file) or "refused"; else it raises."""

    def __init__(self, sources: dict[str, bytes], seed: int, folder: Path):
        self.sources, self.seed, self.folder = sources, seed, folder

    def __call__(self, number: int) -> str:
        name, data = damaged(self.sources, Random(f"{self.seed} {number}"))
        path = self.folder / f"{number}_{name}"
        path.write_bytes(data)
        try:
            return self.read(path)
        except VideoError as error:
            said = str(error)
            assert said.startswith(f"{path}: ") and "; " in said, f"an error without a file or a remedy: {said}"
            return "refused"
        finally:
            path.unlink()

    def read(self, path: Path) -> str:
        if path.suffix in LOOK_AT:
            assert read_image(path).pixels.shape[::3] == (1, 3), "not one RGB picture"
            return "good"
        info = probe(path)
        frames = read_video(path, Sampler(rule="segments", num_frames=FRAMES), resize=lambda rgb, _: rgb[:8, :8].copy())
        assert frames.pixels.shape == (FRAMES, 8, 8, 3), f"frames of shape {tuple(frames.pixels.shape)}"
        assert np.isfinite(frames.times_s).all() and (np.diff(frames.times_s) >= 0).all(), "times out of order"
        assert 0 <= frames.times_s[-1] <= info.duration_s < float("inf"), "a time behind the end"
        return "named" if info.problems or frames.damaged else "good"


def fuzz(files: int, seed: int, timeout_s: float, progress: bool = True) -> tuple[Counter, list[str]]:
    """Counts of what came out, and the faults, one line each."""
    counts, faults = Counter(), []
    with tempfile.TemporaryDirectory() as scratch:
        trial = Trial(whole_files(Path(scratch)), seed, Path(scratch))
        tried = isolated_map(trial, range(files), os.cpu_count() or 1, timeout_s)
        for number, result in tqdm(tried, total=files, unit="file", disable=None if progress else True):
            counts["fault" if isinstance(result, Exception) else result] += 1
            if isinstance(result, Exception):
                name = damaged(trial.sources, Random(f"{seed} {number}"))[0]
                faults.append(f"seed {seed}, file {number} ({name}): {type(result).__name__}: {result}")
    return counts, sorted(faults)


def main() -> int:
    """Make, read, count."""
    args = command_line(__doc__, files=2000, seed=0, timeout=(20.0, "seconds for a file")).parse_args()
    logging.disable(logging.WARNING)
    counts, faults = fuzz(args.files, args.seed, args.timeout)
    print(*faults, sep="\n", end="\n" if faults else "")
    kinds = ", ".join(f"{counts[kind]} {kind}" for kind in ("good", "named", "refused", "fault"))
    print(f"{args.files} files of seed {args.seed}: {kinds}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(ended(main))
