"""One video file -> the RGB frames at wanted places of its timeline (timeline.py).

PyAV is the reference and every other backend must show the same frames or refuse the file. The frame shown for an index
is always the one that decoding the whole file from its start shows; seeking only saves time. A seek is believed if the
packet that it finds is the wanted keyframe of the first reading, if the packets behind it are those that follow it
there, and if the decoder's first picture is that keyframe and called one by the decoder too. Program streams, whose
seeks are guesses, H.264 with intra refresh, whose keyframes are none, and wrong flags fail this, and are decoded from
the start. Knows nothing of sampling rules, resizing or tensors.
"""

import logging
from collections.abc import Callable, Container, Iterator
from functools import cache
from itertools import chain, islice
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from videollm.video.names import ONLY_FILES, as_url, unusable
from videollm.video.timeline import CLOCKED, NONE, Timeline, VideoError, VideoInfo, mend, until_error, video_error
from videollm.video.upright import AS_STORED, Orientation, orientation_of

__all__ = ["BACKENDS", "VideoError", "VideoFile", "VideoInfo", "get_backend", "probe", "video_error"]

logger = logging.getLogger(__name__)

Found = tuple[int, np.ndarray] | None  # index of the frame shown, RGB uint8 [H, W, 3]; None: nothing decodable near

ATTACHED_PICTURE = 0x400  # AV_DISPOSITION_ATTACHED_PIC: the cover of an audio file
SEEKABLE_BY_INDEX = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")  # decord and torchcodec are wrong in MPEG-TS
DECORD_IS_RIGHT = {SEEKABLE_BY_INDEX[0]: ("h264", "vp9"), SEEKABLE_BY_INDEX[1]: ("vp8", "vp9")}
SEEK_PAYS_FRAMES = 8  # skipping fewer frames saves less than a seek and the decoder's reordering delay cost
SEEK_BACK = (0, 1, 4)  # keyframes to go back where a seek ends behind its target
LOOK_FRAMES = 64  # pictures that are decoded to see whether packets without a time cost any


class _Missed(Exception):
    """The seek did not lead to where decoding can start."""


@cache
def tell(path: str, problem: str) -> None:
    """Log what is wrong with a file that is used all the same; once a process, however often it is opened."""
    logger.warning("%s: %s", path, problem)


class VideoFile:
    """An open video file with its timeline. A context manager; raises ``VideoError`` when the file cannot be used.

    ``ticks`` [N] are the presentation times in units of the stream, ``keys`` [K] those of the keyframes (also of
    keyframes that an edit list hides, since decoding starts there).
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.reformatter = VideoReformatter()  # one for the file: a frame's own would be set up anew each time
        self._check_bytes()
        self._open()
        try:
            self.timeline = Timeline(self.path, self.container, self.stream)
            self.ticks, self.keys = self.timeline.ticks, self.timeline.keys
            self.counted = self.timeline.counted
            self.seekable = not self.counted and len(self.keys) > 0  # until a seek has failed
            self._check_untimed()
            first = next(self.decoded(np.arange(len(self.ticks)), 0), None)
            if first is None:
                raise video_error(path, "no frame of it can be decoded", "fetch it again")
        except BaseException:
            self.close()
            raise
        self.orientation = self.upright(first[1])
        height, width = (first[1].height, first[1].width)[:: -1 if self.orientation.transposed else 1]
        line = self.timeline
        pts_s = (self.ticks - self.ticks[0]) * float(line.time_base)
        self.info = VideoInfo(str(path), line.duration_s, line.fps, len(pts_s), width, height, pts_s, line.problems)
        for problem in line.problems.values():
            tell(str(path), problem)

    def __enter__(self) -> "VideoFile":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Release the file; safe to call twice."""
        self.container.close()

    def _check_bytes(self) -> None:
        if wrong := unusable(self.path):
            raise video_error(self.path, *wrong)
        if self.path.stat().st_size == 0:
            raise video_error(self.path, "is empty (zero bytes)", "fetch it again")

    def _open(self) -> None:
        try:
            self.container = av.open(as_url(self.path), options=ONLY_FILES, metadata_errors="replace")
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
            raise video_error(self.path, "is in a codec that this FFmpeg cannot decode", mend(self.path))
        self.stream.codec_context.thread_count = 1  # data workers are the parallelism

    def _check_untimed(self) -> None:
        """Refuse a file some of whose pictures have no time. A packet may lack one: half a picture, or a cut start."""
        pts = self.timeline.packets.pts
        untimed = int((pts == NONE).sum())
        if not untimed or self.counted:
            return
        seen = islice(self._frames(self._from_start(), self.timeline.place), LOOK_FRAMES)
        if any(frame is not None and frame.pts is None for frame in seen):
            remedy = mend(self.path, "-vf setpts=N/FRAME_RATE/TB -c:v libx264")
            raise video_error(self.path, f"{untimed} of its {len(pts)} pictures have no time", remedy)

    def _from_start(self) -> Iterator[av.Packet]:
        """All packets. Going back is cheaper than opening again, and fails where the demuxer guesses."""
        known = self.timeline.packets
        if self.container.format.name not in CLOCKED and known.pts[0] != NONE:
            try:
                self.container.seek(int(known.pts[0]), stream=self.stream)
                packets = until_error(self.container.demux(self.stream))
                first = next(packets, None)
                if first is not None and (first.pts, first.size) == (known.pts[0], known.size[0]):
                    return chain([first], packets)
            except av.FFmpegError as error:
                logger.debug("%s: seeking to the start failed (%s)", self.path, error)
        self.close()
        self._open()
        return until_error(self.container.demux(self.stream))

    def _seek(self, key: int) -> Iterator[av.Packet]:
        """Packets whose first one is that of keyframe ``key``; ``_Missed`` where it cannot be found."""
        tick, size = int(self.keys[key]), int(self.timeline.packets.size[self.timeline.key_rows[key]])
        for back in SEEK_BACK:
            try:
                self.container.seek(int(self.keys[max(key - back, 0)]), stream=self.stream)
            except av.FFmpegError as error:
                logger.debug("%s: seeking to %d failed (%s)", self.path, tick, error)
                continue
            packets = until_error(self.container.demux(self.stream))
            for packet in packets:
                if packet.is_keyframe and (packet.pts, packet.size) == (tick, size):
                    return chain([packet], packets)
                if packet.pts is not None and packet.pts > tick:
                    break
        raise _Missed

    def _from_key(self, key: int) -> Iterator[av.Packet]:
        """Packets from keyframe ``key`` on, with the times of the first reading; ``_Missed`` where they differ."""
        known, row = self.timeline.packets, int(self.timeline.key_rows[key])
        for packet in self._seek(key):
            if packet.size or packet.pts is not None:
                if row >= len(known.size) or packet.size != known.size[row]:
                    raise _Missed
                pts = int(known.pts[row])  # after a seek the parser of a program stream may be wrong about them
                packet.pts = None if pts == NONE else pts
                row += 1
            yield packet

    def _frames(self, packets: Iterator[av.Packet], full: Container[int]) -> Iterator[av.VideoFrame | None]:
        """Frames in order of presentation; None where a packet cannot be decoded.

        Frames that nothing refers to are decoded only where their tick is in ``full``.
        """
        for packet in packets:
            if not packet.size and packet.pts is not None:  # "show the last one again"; it would end the decoder
                continue
            skip = packet.pts is not None and packet.pts not in full and not self.counted
            self.stream.codec_context.skip_frame = "NONREF" if skip else "DEFAULT"
            try:
                yield from packet.decode()
            except av.FFmpegError:  # damaged data: the caller sees which indices never came
                yield None

    def decoded(self, wanted: np.ndarray, key: int) -> Iterator[tuple[int, av.VideoFrame]]:
        """Frames in order of presentation, as (index, frame), from keyframe ``key`` on where decoding can start there,
        else from the start of the file; those of ``wanted`` (indices) at least. Undecodable ones are left out."""
        full = set(self.ticks[wanted].tolist())
        if self.seekable and self.keys[key] > self.ticks[0]:
            tick = int(self.keys[key])
            try:
                yield from self._placed(self._frames(self._from_key(key), full | {tick}), tick)
                return
            except _Missed:
                logger.debug("%s: decoding cannot start at %d, so it starts where the file does", self.path, tick)
                self.seekable = False
        yield from self._placed(self._frames(self._from_start(), full))

    def _placed(
        self, frames: Iterator[av.VideoFrame | None], key_tick: int | None = None
    ) -> Iterator[tuple[int, av.VideoFrame]]:
        """Give frames their index. ``key_tick``: the first one has to be the keyframe shown there, or ``_Missed``; what
        is shown before it refers to frames that were not decoded."""
        for count, frame in enumerate(frames):  # a packet that cannot be decoded keeps its place in the count
            if frame is None:
                continue
            if key_tick is not None:
                if frame.pts is None or frame.pts < key_tick:
                    continue
                if frame.pts != key_tick or not frame.key_frame:
                    raise _Missed
                key_tick = None
            index = count if self.counted else self.timeline.place.get(frame.pts)
            if index is not None and index < len(self.ticks):
                yield index, frame
        if key_tick is not None:
            raise _Missed

    def starts_at_keys(self) -> bool:
        """Whether decoding can start at keyframes; tried at the last one."""
        if self.seekable:
            next(self.decoded(np.array([len(self.ticks) - 1]), len(self.keys) - 1), None)
        return self.seekable

    def rgb(self, frame: av.VideoFrame) -> np.ndarray:
        """Upright RGB picture, uint8 [H, W, 3]."""
        picture = self.reformatter.reformat(frame, format="rgb24").to_ndarray()
        return self.upright(frame)(picture)

    def upright(self, frame: av.VideoFrame) -> Orientation:
        """How ``frame`` is shown. Raises ``VideoError`` where that is askew."""
        try:
            return orientation_of(frame)
        except ValueError as error:
            raise video_error(self.path, str(error), mend(self.path)) from error  # ffmpeg turns the pictures


def _runs(file: VideoFile, wanted: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Cut ``wanted`` into (keyframe, indices) runs so that each run starts where seeking saves decoding.

    A file in which a seek has failed gets one run of all that is left.
    """
    runs = [np.arange(len(wanted))]
    key = np.zeros(len(wanted), dtype=np.int64)
    if file.seekable:
        key = np.searchsorted(file.keys, file.ticks[wanted], side="right").clip(1) - 1  # [U] keyframe of each index
        key_index = np.searchsorted(file.ticks, file.keys[key])  # [U] index of the frame shown there
        cuts = np.flatnonzero(key_index[1:] - wanted[:-1] > SEEK_PAYS_FRAMES) + 1
        runs = np.split(runs[0], cuts)
    for run in runs:
        if not file.seekable:
            yield 0, wanted[run[0] :]
            return
        yield int(key[run[0]]), wanted[run]


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
    """decord, for the files it reads rightly: it ignores edit lists and has no AV1, so the frame count must agree; with
    B-frames and open groups of pictures it is right in MP4 alone, not with every codec, and not in fragments."""
    try:
        import decord
    except Exception as error:
        raise video_error(file.path, "decord is not usable here", "pip install decord, or backend=pyav") from error
    if file.orientation != AS_STORED:  # decord 0.6 returns four channels for rotated files and ignores mirrors
        raise video_error(file.path, "decord does not show rotated or mirrored video rightly", "use backend=pyav")
    try:
        reader = decord.VideoReader(as_url(file.path), num_threads=1)
    except Exception as error:
        raise video_error(file.path, "decord cannot open it (codec or damage)", "use backend=pyav") from error
    container, codec = file.container.format.name, file.stream.codec_context.codec.canonical_name
    fragmented = container == SEEKABLE_BY_INDEX[0] and not file.stream.frames
    if fragmented or codec not in DECORD_IS_RIGHT.get(container, ()):
        problem = f"decord misplaces frames in {container} files of {'fragments of ' * fragmented}{codec}"
        raise video_error(file.path, problem, "use backend=pyav")
    yield from _shown(file, wanted, "decord", reader, lambda frame: frame.asnumpy(), decord.DECORDError)


def decode_torchcodec(file: VideoFile, wanted: np.ndarray) -> Iterator[Found]:
    """torchcodec, where it and its FFmpeg libraries are installed."""
    try:
        from torchcodec.decoders import VideoDecoder
    except Exception as error:  # a missing FFmpeg library is a RuntimeError, not an ImportError
        remedy = "pip install torchcodec and FFmpeg's shared libraries, or backend=pyav"
        raise video_error(file.path, "torchcodec is not usable here", remedy) from error
    if file.orientation.mirrored:  # it reads the angle alone
        raise video_error(file.path, "torchcodec does not show mirrored video rightly", "use backend=pyav")
    try:
        reader = VideoDecoder(
            as_url(file.path), stream_index=file.stream.index, dimension_order="NHWC", num_ffmpeg_threads=1
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
    if not file.starts_at_keys():
        raise video_error(file.path, f"{backend} believes keyframes that are none (intra refresh)", "use backend=pyav")
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
