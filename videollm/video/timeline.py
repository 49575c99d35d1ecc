"""The packets of a video file, read once without decoding -> when each picture is shown, where decoding can start, and
what is wrong with the file.

Times come from the packets alone, so variable frame rates, edit lists and start offsets are seen as they are. What the
file promises (a length in its header) is compared with what is there. Three faults of times are told apart:

- *Times that start again* (``cat a.ts b.ts``): the decoding time falls back by more than reordering explains, or
  pictures share a time, or (MP4, FLV, WMV) another file begins behind the last packet. Pictures would get lost or
  change places, so the file is refused.
- *A jump of the clock*: only MPEG-TS and MPEG-PS have a clock that a sender may set anew. A gap of over 10 s there is a
  jump if a keyframe follows it and no other stream has packets inside it. Only a person can be sure, so it is a problem
  that ``VideoInfo`` carries, not a refusal.
- *A still picture shown for long* (slides, screen recordings): a gap in any other container, before a picture that
  refers to the one before the gap, or with sound that runs through it. It is nothing to complain of.

Knows nothing of decoding, sampling rules, resizing or tensors.
"""

import re
import shlex
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from videollm.common.config import UserError
from videollm.video.names import ONLY_FILES, as_url

NONE = np.iinfo(np.int64).min  # a packet without this time
CLOCKED = ("mpegts", "mpeg")  # formats with a clock that may jump; their length is measured, so it is no promise
JUMP_S = 10.0  # ffmpeg's own limit (-dts_delta_threshold)
REORDERED = 16  # pictures that a decoder may hold back; the most of all codecs
LOST_SHARE = 0.01  # of the pictures: more that share a time are a refusal
ASF_HEADER = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
ASF_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")  # the header object that says how long it plays
HEADERS = {  # how a file begins, of formats of which FFmpeg reads the first alone if several are joined
    "mov,mp4,m4a,3gp,3g2,mj2": re.compile(rb"\x00\x00\x00.ftyp[ -~]{4}\x00", re.DOTALL),
    "flv": re.compile(rb"FLV\x01.\x00\x00\x00\t", re.DOTALL),
    "asf": re.compile(re.escape(ASF_HEADER)),
}
MOST_INDEX = 1 << 26  # bytes: the longest index behind the pictures that is searched
SECONDS_OF_TAG = (3600.0, 60.0, 1.0)  # hh:mm:ss.fraction
UNREADABLE = (av.FFmpegError, IndexError)  # IndexError: PyAV, where damage makes up a stream mid-file


class VideoError(UserError, ValueError):
    """A video or image file that cannot be used; the message holds the path, what is wrong and the remedy."""


def video_error(path: str | Path, problem: str, remedy: str) -> VideoError:
    """The one form of message. A plain one-argument exception survives the trip from a data worker."""
    return VideoError(f"{path}: {problem}; {remedy}")


def mend(path: str | Path, options: str = "-c:v libx264") -> str:
    """The command that makes a good file of one whose times or codec are at fault, to be pasted into a shell."""
    name = f"file:{path}" if ":" in str(path) else str(path)
    return f"mend it with: ffmpeg -fflags +genpts -i {shlex.quote(name)} {options} OUT.mp4"


@dataclass(frozen=True)
class VideoInfo:
    """What a file holds. An index means the i-th presented frame; ``pts_s[i]`` is when it is really shown.

    ``fps`` is the average rate, ``width`` and ``height`` are after rotation. ``duration_s`` runs from the first frame
    to the end of the last one; audio that is longer does not count. ``problems``: what is wrong with a file that is
    used all the same, by kind (``truncated``, ``jumping``: its times).
    """

    path: str
    duration_s: float
    fps: float
    num_frames: int
    width: int
    height: int
    pts_s: np.ndarray = field(repr=False, compare=False)  # [num_frames] float64, seconds, sorted, starts at 0
    problems: dict[str, str] = field(default_factory=dict, compare=False)


@dataclass
class Packets:
    """The packets of the video stream in the order of the file, all [P]: the order in which they are decoded."""

    pts: np.ndarray  # int64, units of the stream; NONE where the file has no time
    dts: np.ndarray  # int64, likewise
    duration: np.ndarray  # int64; 0: unknown
    size: np.ndarray  # int64, bytes; 0: "show the last picture again", as Theora and MP4 have it
    key: np.ndarray  # bool
    hidden: np.ndarray  # bool: an edit list leaves the picture out
    corrupt: np.ndarray  # bool: the demuxer did not get all of it
    all_read: bool  # False: reading ended with an error
    end: int  # byte of the file at which the last one ends


def until_error(packets: Iterator[av.Packet]) -> Iterator[av.Packet]:
    """Packets up to the first one that cannot be read."""
    try:
        yield from packets
    except UNREADABLE:
        return


class Timeline:
    """When the pictures of one stream are shown. Raises ``VideoError`` where that cannot be said, or most is missing.

    ``ticks`` [N] are the presentation times in units of the stream, sorted; ``place`` maps one to its index. ``keys``
    [K] are those of the keyframes, sorted, and ``key_rows`` [K] their rows of ``packets``. ``counted``: the times of
    the packets are not those of their pictures; the i-th picture that decoding gives is shown at ``ticks[i]``.
    """

    def __init__(self, path: Path, container: av.container.InputContainer, stream: av.VideoStream):
        self.path, self.stream, self.container = path, stream, container
        self.time_base = Fraction(stream.time_base)
        self.problems: dict[str, str] = {}
        self.counted = container.format.name == "avi"  # which labels B-frames in the order of decoding
        self.packets = packets = _read(container, stream)
        shown = (packets.pts != NONE) & (packets.size > 0) & ~packets.hidden
        if not packets.size.any():
            raise video_error(path, "is truncated: none of its pictures are there", "fetch it again")
        if not shown.any():
            raise video_error(path, "has no picture with a time", mend(path))
        self.ticks, first = np.unique(packets.pts[shown], return_index=True)
        self.place = {tick: i for i, tick in enumerate(self.ticks.tolist())}
        rows = np.flatnonzero(packets.key & (packets.size > 0) & (packets.pts != NONE))
        self.keys, of_key = np.unique(packets.pts[rows], return_index=True)
        self.key_rows = rows[of_key]
        step = int(np.median(np.diff(self.ticks))) if len(self.ticks) > 1 else 0  # of the stream
        self._check_order(int(shown.sum()), step)
        again = packets.pts[packets.size == 0].max(initial=self.ticks[-1])  # the last picture, until then and a step
        self._measure(int(again - self.ticks[-1]) + (int(packets.duration[shown][first[-1]]) or step))
        self._check_jumps()
        self._check_joined()
        self._check_complete()

    def seconds(self, tick: int) -> float:
        """Seconds from the first picture on."""
        return float((int(tick) - int(self.ticks[0])) * self.time_base)

    def _places(self, row: int) -> str:
        """Seconds of the last picture before that packet, and of its own."""
        known = np.where(self.packets.pts == NONE, self.packets.dts, self.packets.pts)
        return f"from {self.seconds(known[:row].max()):.2f} s to {max(0.0, self.seconds(known[row])):.2f} s"

    def _measure(self, last: int) -> None:
        """Duration and rate; ``last``: how long the last picture is shown, in units of the stream, 0: unknown."""
        rate = self.stream.average_rate
        last_s = last * self.time_base or 1 / (rate or 25)
        self.duration_s = float(int(self.ticks[-1] - self.ticks[0]) * self.time_base + last_s)
        measured = len(self.ticks) / self.duration_s
        # The header is exact where the time unit is coarse (Matroska: 1 ms), the measurement where the header is wrong.
        self.fps = float(rate) if rate and abs(float(rate) / measured - 1) < 0.01 else measured

    def _remedy(self) -> str:
        """For joined files: ffmpeg sets a clock right; of other containers it reads the first part alone."""
        if self.container.format.name in CLOCKED:
            return mend(self.path)
        return "join its parts with: ffmpeg -f concat -safe 0 -i LIST.txt -c:v libx264 OUT.mp4"

    def _check_order(self, num_shown: int, step: int) -> None:
        """Refuse times that start again, and pictures that would get lost because others have their time."""
        rows = np.flatnonzero(self.packets.dts != NONE)
        dts = self.packets.dts[rows]
        latest = np.maximum.accumulate(dts) if len(dts) else dts
        fallen = rows[latest - dts > max(0.1 / self.time_base, REORDERED * step)]
        if len(fallen):
            problem = f"its times start again, {self._places(fallen[0])} (are several files joined?)"
            raise video_error(self.path, problem, self._remedy())
        doubled = num_shown - len(self.ticks)
        if not doubled or self._even(step):
            return
        pts = np.sort(self.packets.pts[(self.packets.pts != NONE) & (self.packets.size > 0)])
        place = self.seconds(pts[1:][np.diff(pts) == 0][0]) if (np.diff(pts) == 0).any() else 0.0
        problem = f"{doubled} of {num_shown} pictures have the time of another one (the first at {place:.2f} s)"
        if doubled > max(1, LOST_SHARE * num_shown):
            raise video_error(self.path, problem, self._remedy())
        self.problems["jumping"] = f"{problem} and are not shown; {self._remedy()}"

    def _even(self, step: int) -> bool:
        """A program stream names the time of some pictures and FFmpeg guesses the others, sometimes twice the same.
        Where all have one and fill the time evenly, they are shown evenly, in the order in which they are decoded."""
        span, pictures = int(self.ticks[-1] - self.ticks[0]), int((self.packets.size > 0).sum())
        if self.container.format.name != "mpeg" or abs(span - step * (pictures - 1)) > step:
            return False
        self.counted = True
        self.ticks = self.ticks[0] + np.round(np.linspace(0, span, pictures)).astype(np.int64)
        return True

    def _check_jumps(self) -> None:
        """Note where the clock jumps; the module's docstring says what is a jump."""
        if self.container.format.name not in CLOCKED:
            return
        rows = np.flatnonzero(self.packets.dts != NONE)
        dts = self.packets.dts[rows]
        gaps = np.flatnonzero((np.diff(dts) > JUMP_S / self.time_base) & self.packets.key[rows[1:]])
        if not len(gaps):
            return
        others = self._others_s()
        for gap in gaps.tolist():
            before, after = float(dts[gap] * self.time_base), float(dts[gap + 1] * self.time_base)
            if ((others > before + JUMP_S / 4) & (others < after - JUMP_S / 4)).any():
                continue
            self.problems["jumping"] = f"its times jump {self._places(rows[gap + 1])}; {mend(self.path)}"
            return

    def _check_joined(self) -> None:
        """Refuse a file behind whose last packet another file begins: nothing of that would be seen."""
        header = HEADERS.get(self.container.format.name)
        if header is None:
            return
        with self.path.open("rb") as file:
            file.seek(self.packets.end)
            if header.search(file.read(MOST_INDEX)):
                problem = f"another file is joined to it, of which nothing can be read (behind {self.duration_s:.2f} s)"
                raise video_error(self.path, problem, self._remedy())

    def _others_s(self) -> np.ndarray:
        """Times of the packets of all other streams, seconds. Reads the file again: asked only on a suspicion."""
        times = []
        with av.open(as_url(self.path), options=ONLY_FILES, metadata_errors="replace") as container:
            for packet in until_error(container.demux()):
                if packet.stream_index != self.stream.index and packet.pts is not None:
                    times.append(float((packet.pts + (packet.duration or 0)) * packet.time_base))
        return np.array(times)

    def _check_complete(self) -> None:
        """A file that was cut off still has its whole header: refuse it under one half, else note it."""
        last_s = max(self.duration_s, float(int(self.ticks[-1]) * self.time_base))
        promised_s = self._promised_s(last_s)
        if _much_less(last_s, promised_s) and not 0 < self.stream.frames <= len(self.packets.pts):
            problem = f"is truncated: {self.duration_s:.2f} s of {promised_s:.2f} s are there"
            if self.duration_s < promised_s / 2:
                raise video_error(self.path, problem, "fetch it again")
            self.problems["truncated"] = f"{problem}; what is there is used, fetch it again"
        elif not self.packets.all_read:
            problem = f"is damaged: it cannot be read behind {self.duration_s:.2f} s"
            self.problems["truncated"] = f"{problem}; what is before is used, fetch it again"
        elif self.packets.corrupt[-1] and self.container.format.name not in CLOCKED:
            problem = f"is truncated: it ends in a picture, at {self.duration_s:.2f} s"
            self.problems["truncated"] = f"{problem}; fetch it again"

    def _promised_s(self, last_s: float) -> float:
        """How long the file says that its pictures last; 0 where it does not say. ``last_s``: how long they do."""
        stream, container, name = self.stream, self.container, self.container.format.name
        if name in CLOCKED:
            return 0.0
        if name == "avi":  # FFmpeg shortens the duration of a cut file; the number of frames is the header's
            return float(max(stream.duration or 0, stream.frames) * self.time_base)
        if stream.duration and name != "asf":  # there it is that of the whole
            return float(stream.duration * self.time_base)
        whole_s = _asf_s(self.path) if name == "asf" else (container.duration or 0) / av.time_base
        tag = stream.metadata.get("DURATION", "").split(":")
        if len(tag) == len(SECONDS_OF_TAG):
            try:
                return min(whole_s, sum(float(part) * unit for part, unit in zip(tag, SECONDS_OF_TAG, strict=True)))
            except ValueError:  # damaged text
                pass
        if _much_less(last_s, whole_s) and not _much_less(self._others_s().max(initial=0.0), whole_s):
            return last_s  # the sound is longer than the pictures
        return whole_s


def _much_less(there_s: float, promised_s: float) -> bool:
    return promised_s - there_s >= max(0.5, 0.02 * promised_s)


def _read(container: av.container.InputContainer, stream: av.VideoStream) -> Packets:
    """All packets of the stream."""
    numbers, all_read, end = array("q"), True, 0
    try:
        for p in container.demux(stream):
            pts, dts, size = p.pts, p.dts, p.size
            if size or pts is not None:  # the last one of PyAV has neither
                end = (p.pos or 0) + size
                times = NONE if pts is None else pts, NONE if dts is None else dts, p.duration or 0
                numbers.extend((*times, size, p.is_keyframe, p.is_discard, p.is_corrupt))
    except UNREADABLE:
        all_read = False
    pts, dts, duration, size, *flags = np.array(numbers, dtype=np.int64).reshape(-1, 7).T.copy()
    return Packets(pts, dts, duration, size, *(flag.astype(bool) for flag in flags), all_read, end)


def _asf_s(path: Path) -> float:
    """How long the header of a Windows Media file says that it plays; 0 for a broadcast, which does not know.

    FFmpeg does not tell where the size of the file is not the header's, so just not for truncated files.
    """
    with path.open("rb") as file:
        head = file.read(1 << 16)
    at = head.find(ASF_PROPERTIES)
    fields = head[at + 16 : at + 92] if at >= 0 else b""
    if len(fields) < 76 or fields[72] & 1:
        return 0.0
    played, preroll_ms = int.from_bytes(fields[48:56], "little"), int.from_bytes(fields[64:72], "little")
    return max(0.0, played / 1e7 - preroll_ms / 1e3)
