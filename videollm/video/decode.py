"""One video file -> its timeline (when every frame is shown) and the RGB frames at wanted places of that timeline.

The timeline comes from the packets alone, so variable frame rates, edit lists, start offsets and truncated files are
seen as they are; PyAV is the reference and every other backend must show the same frames or refuse the file.
Knows nothing of sampling rules, resizing or tensors.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter

logger = logging.getLogger(__name__)

Found = tuple[int, np.ndarray] | None  # index of the frame shown, RGB uint8 [H, W, 3]; None: nothing decodable near

ATTACHED_PICTURE = 0x400  # AV_DISPOSITION_ATTACHED_PIC: the cover of an audio file
SEEKABLE_BY_INDEX = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")  # decord and torchcodec are wrong in MPEG-TS
SEEK_PAYS_FRAMES = 8  # skipping fewer frames saves less than a seek and the decoder's reordering delay cost


class VideoError(ValueError):
    """A video or image file that cannot be used; the message holds the path, what is wrong and the remedy."""


def video_error(path: str | Path, problem: str, remedy: str) -> VideoError:
    """The one form of message. A plain one-argument exception survives the trip from a data worker."""
    return VideoError(f"{path}: {problem}; {remedy}")


@dataclass(frozen=True)
class VideoInfo:
    """What a file holds. An index means the i-th presented frame; ``pts_s[i]`` is when it is really shown.

    ``fps`` is the average rate, ``width`` and ``height`` are after rotation. ``duration_s`` runs from the first frame
    to the end of the last one; audio that is longer does not count.
    """

    path: str
    duration_s: float
    fps: float
    num_frames: int
    width: int
    height: int
    pts_s: np.ndarray = field(repr=False, compare=False)  # [num_frames] float64, seconds, sorted, starts at 0


class VideoFile:
    """An open video file with its index. A context manager; raises ``VideoError`` when the file cannot be used.

    ``ticks`` [N] are the presentation times in units of the stream, ``keys`` [K] those of the keyframes (also of
    keyframes that an edit list hides, since decoding starts there).
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.reformatter = VideoReformatter()  # one for the file: a frame's own would be set up anew each time
        self._check_bytes()
        self._open()
        try:
            self._read_timeline()
            first = next(self.decoded(np.arange(len(self.ticks)), self.keys[0]), None)
            if first is None:
                raise video_error(path, "no frame of it can be decoded", "re-encode it or fetch it again")
        except BaseException:
            self.close()
            raise
        self.rotation = round(first[1].rotation / 90) % 4  # quarter turns counter-clockwise
        height, width = (first[1].height, first[1].width)[:: -1 if self.rotation % 2 else 1]
        pts_s = (self.ticks - self.ticks[0]) * float(self.time_base)
        self.info = VideoInfo(str(path), self.duration_s, self.fps, len(pts_s), width, height, pts_s)

    def __enter__(self) -> "VideoFile":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Release the file; safe to call twice."""
        self.container.close()

    def _check_bytes(self) -> None:
        if not self.path.is_file():
            kind = "is not a file" if self.path.exists() else "does not exist"
            raise video_error(self.path, kind, "check the path and the video root")
        if self.path.stat().st_size == 0:
            raise video_error(self.path, "is empty (zero bytes)", "fetch it again")

    def _open(self) -> None:
        try:
            self.container = av.open(str(self.path), metadata_errors="replace")
        except (av.FFmpegError, OSError, ValueError) as error:
            raise video_error(self.path, f"is not a video or is truncated ({error})", "fetch it again") from error
        streams = [s for s in self.container.streams.video if not int(s.disposition) & ATTACHED_PICTURE]
        if not streams:
            self.close()
            raise video_error(self.path, "has no video stream", "is it audio only? Use a file with pictures")
        best = self.container.streams.best("video")
        self.stream = best if best in streams else streams[0]
        if self.stream.codec_context is None:
            self.close()
            raise video_error(self.path, "is in a codec that this FFmpeg cannot decode", "re-encode it to H.264")
        self.stream.codec_context.thread_count = 1  # data workers are the parallelism
        # The AVI demuxer labels B-frames in decoding order; frames still come out in the right order, so count them.
        self.counted = self.container.format.name == "avi"

    def _read_timeline(self) -> None:
        packets = [p for p in _until_error(self.container.demux(self.stream)) if p.pts is not None]
        shown = {p.pts: p.duration or 0 for p in packets if not p.is_discard}
        if not shown:
            raise video_error(self.path, "has no frame with a time", "re-encode it (ffmpeg -i IN OUT.mp4)")
        self.time_base = Fraction(self.stream.time_base)
        self.ticks = np.array(sorted(shown), dtype=np.int64)
        self.place = {tick: i for i, tick in enumerate(self.ticks.tolist())}
        self.keys = np.array(sorted({p.pts for p in packets if p.is_keyframe}) or self.ticks[:1], dtype=np.int64)
        rate = self.stream.average_rate
        last = shown[int(self.ticks[-1])] * self.time_base  # seconds that the last frame is shown
        if not last:
            last = int(np.median(np.diff(self.ticks))) * self.time_base if len(self.ticks) > 1 else 1 / (rate or 25)
        self.duration_s = float(int(self.ticks[-1] - self.ticks[0]) * self.time_base + last)
        measured = len(self.ticks) / self.duration_s
        # The header is exact where the time unit is coarse (Matroska: 1 ms), the measurement where the header is wrong.
        self.fps = float(rate) if rate and abs(float(rate) / measured - 1) < 0.01 else measured
        self._check_complete(len(packets))

    def _check_complete(self, num_packets: int) -> None:
        """A file cut off in its data still has its whole header: refuse it under one half, else say so."""
        promised_s = float((self.stream.duration or 0) * self.time_base)
        if num_packets >= self.stream.frames or promised_s - self.duration_s < max(0.5, 0.02 * promised_s):
            return
        problem = f"is truncated: {self.duration_s:.2f} s of {promised_s:.2f} s are there"
        if self.duration_s < promised_s / 2:
            raise video_error(self.path, problem, "fetch it again")
        logger.warning("%s %s; what is there is used, fetch it again", self.path, problem)

    def packets_from(self, tick: int) -> Iterator[av.Packet]:
        """Packets from the keyframe shown at ``tick`` on, or from the start of the file where seeking misses it."""
        try:
            self.container.seek(int(tick), stream=self.stream)
            packets = _until_error(self.container.demux(self.stream))
            first = next(packets, None)
            if first is not None and first.pts is not None and first.pts <= tick:
                yield first
                yield from packets
                return
        except av.FFmpegError as error:
            logger.debug("%s: seek to %d failed (%s), decoding from the start", self.path, tick, error)
        self.close()
        self._open()
        yield from _until_error(self.container.demux(self.stream))

    def decoded(self, wanted: np.ndarray, key: int) -> Iterator[tuple[int, av.VideoFrame]]:
        """Frames in order of presentation from keyframe ``key`` on, as (index, frame).

        Frames that nothing refers to are decoded only where ``wanted`` (indices); undecodable packets are left out.
        """
        full = set(self.ticks[wanted].tolist())
        count = -1
        for packet in self.packets_from(key):
            skip = packet.pts is not None and packet.pts not in full and not self.counted
            self.stream.codec_context.skip_frame = "NONREF" if skip else "DEFAULT"
            try:
                frames = packet.decode()
            except av.FFmpegError:  # damaged data: the caller sees which indices never came
                continue
            for frame in frames:
                count += 1
                index = count if self.counted else self.place.get(frame.pts)
                if index is not None and index < len(self.ticks):
                    yield index, frame

    def rgb(self, frame: av.VideoFrame) -> np.ndarray:
        """Upright RGB picture, uint8 [H, W, 3]."""
        picture = self.reformatter.reformat(frame, format="rgb24").to_ndarray()
        return np.ascontiguousarray(np.rot90(picture, self.rotation))


def _until_error(packets: Iterator[av.Packet]) -> Iterator[av.Packet]:
    """Packets up to the first one that cannot be read; ``VideoFile`` judges by the header whether too few came."""
    try:
        yield from packets
    except (av.FFmpegError, IndexError) as error:  # IndexError: PyAV, where damage makes up a stream mid-file
        logger.debug("packet stream ends early: %s", error)


def _runs(file: VideoFile, wanted: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Cut ``wanted`` into (keyframe tick, indices) runs so that each run starts where seeking saves decoding."""
    if file.counted:
        yield int(file.keys[0]), wanted
        return
    key = np.searchsorted(file.keys, file.ticks[wanted], side="right").clip(1) - 1  # [U] keyframe of each index
    key_index = np.searchsorted(file.ticks, file.keys[key])  # [U] index of the frame shown there
    cuts = np.flatnonzero(key_index[1:] - wanted[:-1] > SEEK_PAYS_FRAMES) + 1
    for run in np.split(np.arange(len(wanted)), cuts):
        yield int(file.keys[key[run[0]]]), wanted[run]


def decode_pyav(file: VideoFile, wanted: np.ndarray) -> Iterator[Found]:
    """The reference backend: one result per wanted index; a damaged one gets the nearest decodable frame of its run."""
    for key, indices in _runs(file, wanted):
        pending = indices.tolist()[::-1]
        before: tuple[int, av.VideoFrame] | None = None
        for index, frame in file.decoded(indices, key):
            while pending and index >= pending[-1]:
                want = pending.pop()
                late = index > want and before is not None and want - before[0] <= index - want
                chosen = before if late else (index, frame)
                yield chosen[0], file.rgb(chosen[1])
            before = (index, frame)
            if not pending:
                break
        for _ in pending:
            yield (before[0], file.rgb(before[1])) if before else None


def decode_decord(file: VideoFile, wanted: np.ndarray) -> Iterator[Found]:
    """decord, for the files it reads rightly: it ignores edit lists and has no AV1, so the frame count must agree."""
    try:
        import decord
    except Exception as error:
        raise video_error(file.path, "decord is not usable here", "pip install decord, or backend=pyav") from error
    if file.rotation:  # decord 0.6 returns four channels for rotated files
        raise video_error(file.path, "decord does not show rotated video rightly", "use backend=pyav")
    try:
        reader = decord.VideoReader(str(file.path), num_threads=1)
    except Exception as error:
        raise video_error(file.path, "decord cannot open it (codec or damage)", "use backend=pyav") from error
    yield from _shown(file, wanted, "decord", reader, lambda frame: frame.asnumpy(), decord.DECORDError)


def decode_torchcodec(file: VideoFile, wanted: np.ndarray) -> Iterator[Found]:
    """torchcodec, where it and its FFmpeg libraries are installed."""
    try:
        from torchcodec.decoders import VideoDecoder
    except Exception as error:  # a missing FFmpeg library is a RuntimeError, not an ImportError
        remedy = "pip install torchcodec and FFmpeg's shared libraries, or backend=pyav"
        raise video_error(file.path, "torchcodec is not usable here", remedy) from error
    try:
        reader = VideoDecoder(
            str(file.path), stream_index=file.stream.index, dimension_order="NHWC", num_ffmpeg_threads=1
        )
    except (RuntimeError, ValueError) as error:
        raise video_error(file.path, "torchcodec cannot open it", "use backend=pyav") from error
    yield from _shown(file, wanted, "torchcodec", reader, lambda frame: frame.numpy(), RuntimeError)


def _shown(
    file: VideoFile, wanted: np.ndarray, backend: str, reader: Any, rgb: Callable, broken: type[Exception]
) -> Iterator[Found]:
    """Frames of another backend's ``reader``. Files that it is known to show wrongly are refused: index i must be the
    i-th presented frame."""
    if file.container.format.name not in SEEKABLE_BY_INDEX:
        problem = f"{backend} misplaces frames in {file.container.format.name} files"
        raise video_error(file.path, problem, "use backend=pyav")
    if len(reader) != len(file.ticks):
        problem = f"{backend} counts {len(reader)} frames where {len(file.ticks)} are presented (edit list or damage)"
        raise video_error(file.path, problem, "use backend=pyav")
    for index in wanted.tolist():
        try:
            yield index, rgb(reader[index])
        except broken as error:
            raise video_error(file.path, f"{backend} fails at frame {index}", "use backend=pyav") from error


BACKENDS: dict[str, Callable[[VideoFile, np.ndarray], Iterator[Found]]] = {
    "pyav": decode_pyav,
    "decord": decode_decord,
    "torchcodec": decode_torchcodec,
}


def get_backend(name: str) -> Callable[[VideoFile, np.ndarray], Iterator[Found]]:
    """Look up a backend; an unknown name is a ``ValueError`` that lists the known ones."""
    if name not in BACKENDS:
        raise ValueError(f"video backend {name!r} is unknown; use one of {', '.join(BACKENDS)}")
    return BACKENDS[name]


def probe(path: str | Path, backend: str = "pyav") -> VideoInfo:
    """Read the timeline of a file, and see that ``backend`` can show its first frame. Raises ``VideoError``."""
    decode = get_backend(backend)
    with VideoFile(path) as file:
        if backend != "pyav":  # PyAV has already decoded one frame
            next(decode(file, np.array([0])))
        return file.info
