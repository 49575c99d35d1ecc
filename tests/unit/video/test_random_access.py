"""Whatever the container and the codec, a chosen frame is the one that decoding the whole file shows at its time."""

import logging
import shutil

import av
import numpy as np
import pytest

from benchmarks.odd_files import COUNT, RANDOM_ACCESS, Odd, encode, look
from tests.unit.video.test_video import numbers
from videollm.video.decode import VideoError, VideoFile, decode_pyav, probe
from videollm.video.read import read_video
from videollm.video.sampling import Sampler, midpoint_indices

CASES = {name: make for name, make in RANDOM_ACCESS.items() if name != "h264.mpg"}  # that one has no times


def sequential(path) -> list[np.ndarray]:
    """Every picture, by nothing but decoding from the start."""
    with av.open(str(path)) as container:
        pictures = []
        for packet in container.demux(video=0):
            if packet.size or packet.pts is None:
                pictures += [frame.to_ndarray(format="rgb24") for frame in packet.decode()]
    return pictures


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """name -> path of the made file; skips where PyAV has no such encoder."""
    folder = tmp_path_factory.mktemp("random_access")

    def of(name: str):
        path = folder / name
        if not path.exists():
            try:
                RANDOM_ACCESS[name](path)
            except av.codec.codec.UnknownCodecError as error:
                pytest.skip(f"PyAV has no encoder {error}")
        return path

    return of


@pytest.mark.parametrize("name", CASES)
def test_chosen_frames_are_those_of_sequential_decoding(made, name):
    path = made(name)
    whole = sequential(path)
    for count in (2, 5, 32):
        sampler = Sampler(rule="segments", num_frames=count)
        frames, indices = read_video(path, sampler), midpoint_indices(0, len(whole) - 1, count)
        assert frames.damaged == 0
        np.testing.assert_array_equal(frames.pixels.numpy(), np.stack([whole[i] for i in indices]))
        if len(whole) == COUNT:  # Theora leaves out pictures that are like the one before
            assert numbers(frames.pixels) == indices.tolist()
            np.testing.assert_allclose(frames.times_s, indices / 25, atol=1.1e-3)


@pytest.mark.skipif(not shutil.which("ffmpeg"), reason="ffmpeg is not installed")
@pytest.mark.parametrize("name", CASES)
def test_chosen_frames_are_those_of_ffmpeg(made, name):
    path = made(name)
    row = look(Odd("random access", name, RANDOM_ACCESS[name]), path.parent, "good")
    assert row.chosen == 37 and row.faults == []


@pytest.mark.parametrize("gop, count", [(15, 32), (100, 4)])
def test_a_long_program_stream_is_whole(tmp_path, gop, count):
    """17 of 32 frames of such a file could not be decoded, or were those of another time."""
    path = encode(tmp_path / "long.mpg", "mpeg1video", count=1500, bf="2", gop=gop)
    frames = read_video(path, Sampler(rule="segments", num_frames=count))
    expected = midpoint_indices(0, 1499, count)
    assert frames.damaged == 0 and probe(path).num_frames == 1500
    assert numbers(frames.pixels) == (expected % 256).tolist()
    np.testing.assert_allclose(frames.times_s, expected / 25, atol=1e-3)


def test_keyframes_that_are_none_are_not_believed(tmp_path):
    """An MP4 without its table of keyframes: every packet is called one."""
    path = encode(tmp_path / "x.mp4", "libx264", gop=50)
    path.write_bytes(path.read_bytes().replace(b"stss", b"free"))
    frames = read_video(path, Sampler(rule="segments", num_frames=5))
    assert numbers(frames.pixels) == midpoint_indices(0, 149, 5).tolist()


@pytest.mark.parametrize("name", [n for n in CASES if n.endswith(("mp4", "mkv", "webm"))])
def test_decord_shows_the_same_frames_or_refuses(made, name):
    pytest.importorskip("decord", reason="decord is not installed")
    for count in (3, 11, 50):
        sampler = Sampler(rule="segments", num_frames=count)
        try:
            theirs = read_video(made(name), sampler, backend="decord")
        except VideoError as error:
            assert "use backend=pyav" in str(error)
            assert name not in ("open_gop.mp4", "one_key.mp4", "vp9.webm")
        else:
            ours = read_video(made(name), sampler)
            assert numbers(theirs.pixels) == numbers(ours.pixels) and (theirs.times_s == ours.times_s).all()


def test_decord_is_refused_where_it_shows_other_frames(tmp_path):
    """24 of 32 frames were those of other times."""
    pytest.importorskip("decord", reason="decord is not installed")
    path = encode(tmp_path / "x.mkv", "libx265", gop=25, **{"x265-params": "log-level=none"})
    with pytest.raises(VideoError, match="decord misplaces frames in matroska,webm files of hevc"):
        probe(path, backend="decord")


def packets_decoded(path, monkeypatch) -> int:
    seen, frames = [], VideoFile._frames
    counted = lambda packets: (seen.append(p) or p for p in packets)  # noqa: E731
    monkeypatch.setattr(VideoFile, "_frames", lambda self, packets, full: frames(self, counted(packets), full))
    with VideoFile(path) as file:
        seen.clear()
        list(decode_pyav(file, midpoint_indices(0, COUNT - 1, 3)))
    return len(seen)


@pytest.mark.parametrize("name", ["open_gop.mp4", "mpeg2.vob", "mpeg2.ts", "vp9.webm", "x.wmv"])
def test_seeking_saves_decoding_where_it_can_be_believed(made, name, monkeypatch):
    assert packets_decoded(made(name), monkeypatch) < COUNT / 2


def test_a_file_that_cannot_be_sought_is_decoded_twice_at_most(made, monkeypatch, caplog):
    caplog.set_level(logging.DEBUG, "videollm.video.decode")
    assert COUNT / 2 < packets_decoded(made("refresh.mp4"), monkeypatch) < 2 * COUNT
    assert caplog.text.count("decoding cannot start at") == 1
