"""Odd video and picture files of every kind that users have reported: ours against ffmpeg, and what ``check`` says.

Each file is made here, of pictures that spell their number. A row tells how many of the chosen frames equal what ffmpeg
decodes for the same time (a single picture: what was put in), how many of the times equal ffprobe's, and what the check
command says. A file may be shown rightly, refused, or named by ``check``; a picture that is not ffmpeg's, or pictures
that are missing from a file that ``check`` calls good, are faults, and so is a shown command that does not mend.
Exit status 0 if there are none. Formats that promise no length (MPEG-TS and -PS, Ogg, GIF) cannot tell that they were
cut, and are not cut here. Needs the ffmpeg and ffprobe commands.

    python -m benchmarks.odd_files
"""

import io
import json
import logging
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image
from tqdm import tqdm

from benchmarks.rounds import command_line
from videollm.common.command import ended
from videollm.data.check import KINDS, Visuals, check_visuals
from videollm.data.load import load_with_problems
from videollm.video.decode import VideoError, probe
from videollm.video.read import read_image, read_video, safe_join
from videollm.video.sampling import Sampler

WIDTH, HEIGHT, BITS, RATE = 64, 48, 8, 25
COUNT = 150  # pictures of a video; fewer than the bits can spell
CHOSEN = (5, 32)  # frames that are read of each: far apart and near
ALIKE = 6.0  # mean difference of two pictures, of 255, that another version of a decoder may make
ALIKE_S = 2e-3  # of two times; Matroska rounds to milliseconds
PICTURES = (".png", ".tif")
RAMP = np.linspace(0, 1, WIDTH * HEIGHT).reshape(HEIGHT, WIDTH)  # of black to white; ffmpeg does not read all of these

Make = Callable[[Path], object]


@dataclass(frozen=True)
class Odd:
    """One file: ``make`` writes it; ``pictures`` were put in. ``kind``: the heading of its rows."""

    kind: str
    name: str
    make: Make
    pictures: int = COUNT


def picture(number: int, noise: np.random.RandomState) -> np.ndarray:
    """Bars that spell ``number``, each of another brightness, over a strip of noise, uint8 [H, W, 3]: a mirrored
    picture is another one."""
    bars = np.array([40 + (number >> bit & 1) * (120 + 10 * bit) for bit in range(BITS)], np.uint8)
    rgb = bars.repeat(WIDTH // BITS)[None, :, None].repeat(HEIGHT, 0).repeat(3, 2)
    rgb[HEIGHT // 2 :] = noise.randint(0, 256, (HEIGHT // 2, WIDTH, 3))
    return rgb


def encode(
    path: Path,
    codec: str,
    *,
    count: int = COUNT,
    container: str | None = None,
    movflags: str = "",
    pts: list[int] | None = None,
    audio_s: float = 0.0,
    gop: int = 12,
    **options: str,
) -> Path:
    """A video of ``count`` numbered pictures at ``RATE``; ``pts`` are their times in units of 1/RATE s. ``options`` are
    those of the encoder. Raises ``av.codec.codec.UnknownCodecError`` where this FFmpeg has no such encoder."""
    muxer = {"movflags": movflags} if movflags else {}
    with av.open(f"file:{path}", "w", format=container, options=muxer) as out:
        stream = out.add_stream(codec, rate=RATE, options=options)
        if codec == "libx264":  # with more threads it does not make the same file every time
            stream.codec_context.thread_count = 1
        formats = stream.codec_context.codec.video_formats or []
        stream.pix_fmt = "yuv420p" if not formats or "yuv420p" in {f.name for f in formats} else formats[0].name
        stream.width, stream.height, stream.gop_size = WIDTH, HEIGHT, gop
        sound = out.add_stream("mp2", rate=48000, layout="mono") if audio_s else None
        noise = np.random.RandomState(0)
        for i in range(count):
            frame = av.VideoFrame.from_ndarray(picture(i, noise), "rgb24")
            frame.pts, frame.time_base = i if pts is None else pts[i], Fraction(1, RATE)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
        for i in range(int(audio_s * 48000 / 1152)):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1152), np.int16), "s16", "mono")
            frame.sample_rate, frame.pts, frame.time_base = 48000, i * 1152, Fraction(1, 48000)
            out.mux(sound.encode(frame))
        if sound:
            out.mux(sound.encode())
    return path


def of(codec: str, **options) -> Make:
    return lambda path: encode(path, codec, **options)


def cut(codec: str, share: float, **options) -> Make:
    """The first ``share`` of the bytes."""

    def make(path: Path) -> None:
        data = encode(path, codec, **options).read_bytes()
        path.write_bytes(data[: int(share * len(data))])

    return make


def joined(codec: str, **options) -> Make:
    """``cat a b``, of two files that both begin at time 0 and differ in length."""

    def make(path: Path) -> None:
        first = encode(path, codec, **options).read_bytes()
        path.write_bytes(first + encode(path, codec, **options | {"count": COUNT // 2}).read_bytes())

    return make


def jump(path: Path) -> None:
    """Two pieces with an hour between their times, as a recorder leaves whose clock was set."""
    first = encode(path, "libx264", count=75).read_bytes()
    path.write_bytes(first + encode(path, "libx264", pts=[90000 + i for i in range(75)], count=75).read_bytes())


def turned(matrix: tuple[int, int, int, int]) -> Make:
    """An MP4 whose track header says how to turn and mirror the picture."""

    def make(path: Path) -> None:
        data = encode(path, "libx264").read_bytes()
        whole = [1, 0, 0, 0, 1, 0, 0, 0, 16384]
        new = [*matrix[:2], 0, *matrix[2:], 0, 0, 0, 16384]
        old_bytes, new_bytes = (b"".join((n << 16).to_bytes(4, "big", signed=True) for n in m) for m in (whole, new))
        at = data.index(old_bytes, data.index(b"tkhd"))
        path.write_bytes(data[:at] + new_bytes + data[at + 36 :])

    return make


def in_cache(path: Path) -> None:
    """A link into a store beside the folder, as a Hub cache keeps its files; to a user it is a file."""
    blob = path.parent.parent / "blobs" / "0123abcd"
    blob.parent.mkdir(exist_ok=True)
    encode(blob, "libx264", container="mp4")
    path.symlink_to(os.path.relpath(blob, path.parent))


def deep_picture(array: np.ndarray) -> Make:
    return lambda path: Image.fromarray(array).save(path)


RANDOM_ACCESS = {
    "mpeg1.mpg": of("mpeg1video", bf="2", gop=15),
    "mpeg2.vob": of("mpeg2video", bf="2", gop=15, container="vob"),
    "long_gop.vob": of("mpeg2video", bf="2", gop=100, container="vob"),
    "mpeg4.mpg": of("mpeg4", bf="2", container="mpeg"),
    "h264.mpg": of("libx264", container="mpeg"),
    "mpeg2.ts": of("mpeg2video", bf="2"),
    **dict.fromkeys(
        ("refresh.mp4", "refresh.mkv", "refresh.flv", "refresh.ts"),
        of("libx264", **{"x264-params": "intra-refresh=1:keyint=50:scenecut=0"}),
    ),
    "open_gop.mp4": of("libx264", **{"x264-params": "open-gop=1:keyint=25:bframes=3"}),
    "open_gop.ts": of("libx265", **{"x265-params": "log-level=none:open-gop=1:keyint=25:bframes=3"}),
    "one_key.mp4": of("libx264", gop=1000),
    "x.avi": of("mpeg4", bf="2"),
    "h264.avi": of("libx264"),
    "vp8.webm": of("libvpx", **{"deadline": "realtime", "auto-alt-ref": "1", "lag-in-frames": "16"}),
    "vp9.webm": of("libvpx-vp9", **{"lag-in-frames": "16"}),
    "av1.mp4": of("libsvtav1", preset="12"),
    "x.flv": of("flv"),
    "x.wmv": of("wmv2"),
    "ffv1.mkv": of("ffv1"),
    "theora.ogv": of("libtheora"),
    "x.mxf": of("mpeg2video", bf="2"),
    "fragments.mp4": of("libx264", movflags="frag_keyframe+empty_moov"),
}
KINDS_OF_CUT = {"x.mkv": "libx264", "x.webm": "libvpx", "x.avi": "mpeg4", "x.flv": "flv", "x.wmv": "wmv2"}
JOINED = {
    "x.ts": "libx264",
    "x.vob": "mpeg2video",
    "x.mkv": "libx264",
    "x.mp4": "libx264",
    "x.flv": "flv",
    "x.wmv": "wmv2",
}
MIRRORS = {
    "hflip": (-1, 0, 0, 1),
    "vflip": (1, 0, 0, -1),
    "transpose": (0, 1, 1, 0),
    "transverse": (0, -1, -1, 0),
    "quarter": (0, 1, -1, 0),
}


def all_kinds() -> list[Odd]:
    """Every file, under the heading of its kind."""
    still = [i + 1000 * (i >= 60) for i in range(COUNT)]  # one picture is shown for 40 s
    slides, whole = of("libx264", pts=still), COUNT + COUNT // 2
    h264 = of("libx264", container="mp4")
    front = {"movflags": "faststart"}
    return [
        *(Odd("random access", name, make) for name, make in RANDOM_ACCESS.items()),
        *(Odd("times start again", f"joined_{n}", joined(codec), whole) for n, codec in JOINED.items()),
        Odd("times jump", "jump.ts", jump),
        *(Odd("a still for 40 s", f"still.{ext}", slides) for ext in ("mp4", "mkv", "ts")),
        Odd("a still for 40 s", "still_with_sound.ts", of("mpeg2video", pts=still, gop=1, audio_s=46)),
        *(Odd("cut", f"cut30_{n}", cut(codec, 0.3)) for n, codec in KINDS_OF_CUT.items()),
        *(Odd("cut", f"cut70_{n}", cut(codec, 0.7)) for n, codec in KINDS_OF_CUT.items()),
        *(Odd("cut", f"cut{n}_x.mp4", cut("libx264", n / 100, **front)) for n in (30, 70)),
        *(Odd("display matrix", f"{name}.mp4", turned(matrix)) for name, matrix in MIRRORS.items()),
        Odd("over 8 bits", "prores.mov", of("prores")),
        *(
            Odd("over 8 bits", name, deep_picture((RAMP * top).astype(kind)), 1)
            for name, top, kind in (
                ("grey16.png", 65535, np.uint16),
                ("grey16.tif", 65535, np.uint16),
                ("int32.tif", 2**31 - 1, np.int32),
                ("float.tif", 1, np.float32),
            )
        ),
        *(Odd("names", name, h264) for name in ("12:30.mp4", "http:x.mp4", "back\\slash.mp4", "-y.mp4", "a 'b'.mp4")),
        Odd("names", "link.mp4", in_cache),
    ]


# ---- what ffmpeg shows ----


def reference(path: Path) -> tuple[list[np.ndarray], np.ndarray]:
    """Every picture that ffmpeg decodes, uint8 [H, W, 3], and its seconds, from the first one on."""
    name = f"file:{path}"
    passed = ["-map", "0:v:0", "-vsync", "passthrough", "-f", "image2pipe", "-c:v", "ppm", "-pix_fmt", "rgb24", "-"]
    shown = subprocess.run(["ffmpeg", "-v", "quiet", "-i", name, *passed], capture_output=True, check=False).stdout
    pictures, file = [], io.BytesIO(shown)
    while file.readline() == b"P6\n":
        width, height = map(int, file.readline().split())
        file.readline()
        pictures.append(np.frombuffer(file.read(3 * width * height), np.uint8).reshape(height, width, 3))
    entries = ["-select_streams", "v:0", "-show_entries", "frame=best_effort_timestamp_time", "-of", "json"]
    said = subprocess.run(["ffprobe", "-v", "quiet", *entries, name], capture_output=True, check=False).stdout
    times = [float(f.get("best_effort_timestamp_time", "nan")) for f in json.loads(said or "{}").get("frames", [])]
    known = np.array(times[: len(pictures)])
    known -= 0.0 if np.isnan(known).all() else np.nanmin(known)
    steps = np.diff(known)
    if (steps <= 0).any():  # ffmpeg guesses times of program streams, and some come twice
        known = np.arange(len(known)) * np.nanmedian(steps)
    return pictures, known


# ---- a row ----


@dataclass
class Row:
    """What was found of one file. ``chosen`` frames were read; ``refused``: why none were."""

    odd: Odd
    verdict: str
    chosen: int = 0
    alike: int = 0
    in_time: int = 0
    pictures: int = 0
    refused: str = ""
    mended: str = ""

    @property
    def faults(self) -> list[str]:
        """What must not be: a wrong picture or time, and a loss of which ``check`` says nothing."""
        found = [f"{self.chosen - self.alike} wrong pictures"] if self.alike < self.chosen else []
        found += [f"{self.chosen - self.in_time} wrong times"] if self.in_time < self.chosen else []
        if self.verdict == "good" and (self.refused or self.pictures < self.odd.pictures):
            found.append(f"silent loss: {self.pictures} of {self.odd.pictures}")
        return found + ([self.mended] if self.mended.startswith("not ") else [])

    def __str__(self) -> str:
        frames = "refused" if self.refused else f"{self.alike}/{self.chosen}"
        times = "" if self.refused else f"{self.in_time}/{self.chosen}"
        end = "; ".join(self.faults) or self.mended or "as it should be"
        return f"{self.odd.kind:18} {self.odd.name:20} {frames:>8} {times:>8}  {self.verdict:20} {end}"


def look(odd: Odd, root: Path, verdict: str) -> Row:
    """Read one file as training would, and compare."""
    row = Row(odd, verdict)
    try:
        path = safe_join(root, odd.name)
        if path.suffix in PICTURES:
            found = [read_image(path)]
            row.pictures = 1
        else:
            row.pictures = probe(path).num_frames
            found = [read_video(path, Sampler(rule="segments", num_frames=n)) for n in CHOSEN]
    except VideoError as error:
        row.refused = str(error)
        row.mended = mended(row.refused, odd.pictures, root.parent)
        return row
    grey = np.repeat((RAMP * 255).astype(np.uint8)[..., None], 3, 2)
    pictures, times = ([grey], np.zeros(1)) if path.suffix in PICTURES else reference(path)
    if not (pictures and len(times)):  # nothing to compare with: all of it counts as wrong
        row.chosen = sum(len(frames.times_s) for frames in found)
        return row
    for frames in found:
        for ours, second in zip(frames.pixels.numpy(), frames.times_s, strict=True):
            nearest = int(np.nanargmin(np.abs(times - second)))
            theirs = pictures[nearest]
            row.chosen += 1
            row.in_time += bool(abs(times[nearest] - second) <= ALIKE_S)
            row.alike += ours.shape == theirs.shape and bool(np.abs(ours - theirs.astype(float)).mean() <= ALIKE)
    return row


def mended(refusal: str, pictures: int, scratch: Path) -> str:
    """Run the command that a refusal shows, if it shows one that can be run: does it make a good file?"""
    _, shown, command = refusal.partition("mend it with: ")
    if not shown:
        return ""
    output = scratch / "mended.mp4"
    words = [str(output) if word == "OUT.mp4" else word for word in shlex.split(command)]
    subprocess.run([*words, "-y", "-v", "quiet"], check=False, stdin=subprocess.DEVNULL)
    try:
        there = probe(output).num_frames
    except VideoError as error:
        return f"not mended by the command shown: {error}"
    finally:
        output.unlink(missing_ok=True)
    good = abs(there - pictures) <= 2  # ffmpeg may show one again where a joint leaves a gap
    return "refused, and mended by the command shown" if good else f"not mended: {there} of {pictures}"


def verdicts(kinds: list[Odd], root: Path) -> dict[str, str]:
    """What the check command says of each file."""
    lines = []
    for number, odd in enumerate(kinds):
        mark = "image" if odd.name.endswith(PICTURES) else "video"
        turns = [{"from": "human", "value": f"<{mark}>\nwhat?"}, {"from": "gpt", "value": "a clip"}]
        lines.append(json.dumps({"id": str(number), mark: odd.name, "conversations": turns}) + "\n")
    annotations = root.parent / "odd.jsonl"
    annotations.write_text("".join(lines))
    records, problems = load_with_problems([annotations])
    found: Visuals = check_visuals(records, root, decode=True)
    said = {odd.name: "bad line" for odd in kinds} if problems else {odd.name: "good" for odd in kinds}
    for kind in KINDS:
        said |= {file[0]: kind for file in getattr(found, kind) if not isinstance(file, str)}
    return said


def main() -> int:
    """Make the files, look at them, print the rows."""
    command_line(__doc__).parse_args()
    if not (shutil.which("ffmpeg") and shutil.which("ffprobe")):
        print("error: ffmpeg or ffprobe is not installed; install them (Debian: apt install ffmpeg)", file=sys.stderr)
        return 2
    logging.disable(logging.WARNING)  # a row says it
    os.environ["SVT_LOG"] = "1"  # the AV1 encoder's: errors only
    rows, made = [], []
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch) / "videos"
        root.mkdir()
        for odd in all_kinds():
            try:
                odd.make(root / odd.name)
                made.append(odd)
            except av.codec.codec.UnknownCodecError as error:
                print(f"left out: {odd.name} (PyAV has no encoder {error})")
        said = verdicts(made, root)
        for odd in tqdm(made, desc="files", unit="file", disable=None):
            rows.append(look(odd, root, said[odd.name]))
    print(f"{'kind':18} {'file':20} {'frames':>8} {'times':>8}  {'check':20} result", *rows, sep="\n")
    faults = sum(bool(row.faults) for row in rows)
    print(f"{len(rows)} files, {faults} at fault")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(ended(main))
