"""Every file shows the frames that were put in, at their true times, or is refused with one clear message."""

import pickle
from fractions import Fraction
from random import Random

import av
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from videollm.video import decode
from videollm.video.decode import VideoError, VideoFile, probe
from videollm.video.read import read_video
from videollm.video.sampling import Sampler, midpoint_indices

BITS = 8
WIDTH, HEIGHT = 64, 48


def picture(number: int, noise: np.random.RandomState) -> np.ndarray:
    """Eight bars that spell ``number`` in black and white, over a noisy strip that makes packets worth damaging."""
    bars = [(number >> bit & 1) * 255 for bit in range(BITS)]
    rgb = np.repeat(np.array(bars, np.uint8), WIDTH // BITS)[None, :, None].repeat(HEIGHT, 0).repeat(3, 2)
    rgb[HEIGHT // 2 :] = noise.randint(0, 256, (HEIGHT - HEIGHT // 2, WIDTH, 3))
    return rgb


def numbers(pixels) -> list[int]:
    """The numbers that frames [F, H, W, 3] spell."""
    bars = np.asarray(pixels)[:, 4:20].mean((1, 3)).reshape(len(pixels), BITS, -1)[:, :, 2:6].mean(-1) > 127
    return (bars * (1 << np.arange(BITS))).sum(1).tolist()


def read_all(path, **options):
    return read_video(path, Sampler(rule="fps", fps=probe(path).fps), **options)


def write(path, count=90, gop=15, codec="libx264", pts=None, options=None, rotation=None, rate=30):
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.gop_size = gop
        if rotation:
            stream.set_display_rotation(rotation)
        noise = np.random.RandomState(0)
        for i in range(count):
            frame = av.VideoFrame.from_ndarray(picture(i, noise), "rgb24")
            frame.pts, frame.time_base = i if pts is None else pts[i], Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def shift(source, target, frames: int, rate=30):
    """Remux with all times moved by ``frames``; frames before time 0 end up hidden by an edit list."""
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(video=0):
            if packet.pts is not None:
                ticks = int(Fraction(frames, rate) / packet.time_base)
                packet.pts, packet.dts, packet.stream = packet.pts + ticks, packet.dts + ticks, stream
                new.mux(packet)
    return target


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("video")


@pytest.fixture(scope="module")
def plain(folder):
    return write(folder / "plain.mp4", options={"movflags": "faststart"})


# ---- what a file holds ----


def test_probe_reports_the_true_timeline(plain):
    info = probe(plain)
    assert (info.num_frames, info.fps, info.duration_s) == (90, 30.0, 3.0)
    assert (info.width, info.height) == (WIDTH, HEIGHT)
    np.testing.assert_allclose(info.pts_s, np.arange(90) / 30, atol=1e-9)


@pytest.mark.parametrize(
    "name, codec",
    [("x.mp4", "libx264"), ("x.avi", "libx264"), ("x.avi", "mpeg4"), ("x.ts", "libx264"), ("x.mkv", "libx264")],
)
def test_every_container_shows_every_frame_in_order(tmp_path, name, codec):
    frames = read_all(write(tmp_path / name, count=40, codec=codec))
    assert numbers(frames.pixels) == list(range(40))
    assert frames.damaged == 0
    np.testing.assert_allclose(frames.times_s, np.arange(40) / 30, atol=1.1e-3)


def test_variable_frame_rate_keeps_true_times(tmp_path):
    pts = np.cumsum([1 + (i % 3) * 4 for i in range(60)]).tolist()
    frames = read_video(write(tmp_path / "vfr.mp4", count=60, pts=pts), Sampler(rule="segments", num_frames=7))
    expected = midpoint_indices(0, 59, 7)
    assert numbers(frames.pixels) == expected.tolist()
    np.testing.assert_allclose(frames.times_s, (np.array(pts)[expected] - pts[0]) / 30, atol=1e-4)


def test_window_on_a_variable_rate_follows_time_not_index(tmp_path):
    pts = list(range(30)) + list(range(60, 120, 2))  # first half: 30 fps in 1 s; then 1 s pause; then 15 fps
    path = write(tmp_path / "vfr.mp4", count=60, pts=pts)
    frames = read_all(path, window_s=(2.0, 3.0))
    assert frames.times_s.min() == pytest.approx(2.0, abs=1e-3)
    assert frames.times_s.max() == pytest.approx(3.0, abs=0.04)


def test_start_offset_is_subtracted(folder, plain):
    path = shift(plain, folder / "offset.mp4", 150)
    frames = read_all(path)
    assert numbers(frames.pixels) == list(range(90))
    assert (frames.times_s[0], frames.duration_s) == (0.0, 3.0)


@pytest.mark.parametrize("hidden", [10, 37])
def test_frames_hidden_by_an_edit_list_do_not_exist(folder, plain, hidden):
    path = shift(plain, folder / f"cut{hidden}.mp4", -hidden)
    frames = read_all(path)
    assert numbers(frames.pixels) == list(range(hidden, 90))
    assert frames.times_s[0] == 0.0
    assert probe(path).num_frames == 90 - hidden
    some = read_video(path, Sampler(rule="segments", num_frames=4))
    assert numbers(some.pixels) == (hidden + midpoint_indices(0, 89 - hidden, 4)).tolist()


@pytest.mark.parametrize("rotation, turns", [(90, 1), (-90, 3), (180, 2)])
def test_rotation_is_applied(tmp_path, plain, rotation, turns):
    path = write(tmp_path / "turned.mp4", count=3, rotation=rotation)
    info, frames = probe(path), read_all(path)
    upright = read_all(write(tmp_path / "upright.mp4", count=3)).pixels.numpy()
    assert (info.height, info.width) == tuple(frames.pixels.shape[1:3])
    np.testing.assert_array_equal(frames.pixels.numpy(), np.rot90(upright, turns, axes=(1, 2)))


def test_seeking_shows_the_same_pixels_as_decoding_everything(plain):
    whole = read_all(plain).pixels
    for count in (1, 2, 5, 16):
        sampler = Sampler(rule="segments", num_frames=count)
        np.testing.assert_array_equal(
            read_video(plain, sampler).pixels.numpy(), whole[sampler.indices(probe(plain))].numpy()
        )


def test_only_what_is_needed_is_decoded(plain, monkeypatch):
    """Seeking and leaving out unreferenced frames are the reason for the packet index."""
    shown = []
    decode = VideoFile.decoded
    monkeypatch.setattr(VideoFile, "decoded", lambda *args: (shown.append(f[0]) or f for f in decode(*args)))
    read_video(plain, Sampler(rule="segments", num_frames=2))
    assert len(shown) < 45


def test_resize_runs_on_every_frame_and_decides_the_shape(plain):
    frames = read_video(plain, Sampler(rule="segments", num_frames=3), resize=lambda frame, _: frame[:8, :8].copy())
    assert frames.pixels.shape == (3, 8, 8, 3)


def test_resize_that_changes_its_shape_is_an_error(plain):
    sizes = iter((8, 9))
    with pytest.raises(VideoError, match=r"plain\.mp4.*shape"):
        read_video(plain, Sampler(rule="segments", num_frames=2), resize=lambda frame, _: frame[: next(sizes)])


def test_repeated_indices_repeat_the_frame(tmp_path):
    path = write(tmp_path / "short.mp4", count=3)
    frames = read_video(path, Sampler(rule="segments", num_frames=5, pick="middle"))
    assert numbers(frames.pixels) == [0, 1, 2, 2, 2]
    np.testing.assert_allclose(frames.times_s, np.array([0, 1, 2, 2, 2]) / 30, atol=1e-9)


def test_one_frame_file(tmp_path):
    frames = read_video(write(tmp_path / "one.mp4", count=1), Sampler(rule="segments", num_frames=2))
    assert numbers(frames.pixels) == [0, 0]
    assert frames.duration_s == pytest.approx(1 / 30, abs=1e-3)


# ---- damage ----


def test_damaged_packets_are_replaced_by_neighbours_and_counted(folder, plain):
    data = bytearray(plain.read_bytes())
    with av.open(str(plain)) as container:
        places = [p.pos for p in container.demux(video=0) if p.pts is not None and p.size > 40]
    for place in places[10:40:6]:
        data[place : place + 4] = b"\xff" * 4  # impossible length of the first unit
    path = folder / "damaged.mp4"
    path.write_bytes(data)
    frames = read_all(path)
    assert 0 < frames.damaged < 45
    assert len(frames.pixels) == len(frames.times_s) == 90
    assert (np.diff(frames.times_s) >= 0).all()
    wrong = np.array(numbers(frames.pixels)) != np.arange(90)
    assert 0 < wrong.sum() <= 45


@given(st.sampled_from(["plain.mp4", "fuzz.ts", "fuzz.mkv", "fuzz.avi"]), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_damage_gives_ordered_frames_or_a_video_error(folder, plain, name, seed):
    source = folder / name
    if not source.exists():
        write(source, count=60)
    data, random = bytearray(source.read_bytes()), Random(seed)
    for _ in range(random.randint(0, 40)):
        data[random.randrange(len(data))] ^= 1 << random.randrange(8)
    path = folder / f"fuzzed_{name}"
    path.write_bytes(data[: random.choice([len(data), random.randrange(1, len(data))])])
    try:
        frames = read_video(path, Sampler(rule="segments", num_frames=6))
    except VideoError as error:
        assert str(path) in str(error)
    else:
        assert frames.pixels.shape == (6, HEIGHT, WIDTH, 3)
        assert (np.diff(frames.times_s) >= 0).all()
        assert 0 < frames.times_s[-1] + frames.duration_s < float("inf")


def test_mostly_damaged_video_is_refused(folder, plain):
    data = bytearray(plain.read_bytes())
    with av.open(str(plain)) as container:
        packets = [p for p in container.demux(video=0) if p.pts is not None]
    for packet in packets[2:]:
        data[packet.pos : packet.pos + 4] = b"\xff" * 4
    path = folder / "ruined.mp4"
    path.write_bytes(data)
    with pytest.raises(VideoError, match=r"ruined\.mp4: \d+ of the 90 chosen frames cannot be decoded"):
        read_all(path)


def test_truncated_file_is_used_with_a_warning_or_refused(folder, plain, caplog):
    with av.open(str(plain)) as container:
        ends = {p.pts: p.pos + p.size for p in container.demux(video=0) if p.pts is not None}
    data = plain.read_bytes()
    path = folder / "cut_off.mp4"
    order = sorted(ends.values())
    path.write_bytes(data[: order[65]])
    frames = read_all(path)
    assert 55 < len(frames.pixels) < 70
    assert numbers(frames.pixels)[:50] == list(range(50))
    assert "cut_off.mp4: is truncated" in caplog.text
    path.write_bytes(data[: order[30]])
    with pytest.raises(VideoError, match=r"cut_off\.mp4: is truncated: 1\.\d+ s of 3\.00 s"):
        probe(path)


def write_audio(path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


def test_unusable_files_say_what_is_wrong(folder, plain):
    bad = {name: folder / name for name in ("missing.mp4", "zero.mp4", "text.mp4", "audio.mp4", "headless.mp4")}
    bad["zero.mp4"].touch()
    bad["text.mp4"].write_text("this is not a video\n" * 50)
    bad["headless.mp4"].write_bytes(write(folder / "tail.mp4", count=30).read_bytes()[:2000])
    write_audio(bad["audio.mp4"])
    expected = {
        "missing.mp4": "does not exist",
        "zero.mp4": "zero bytes",
        "text.mp4": "is not a video or is truncated",
        "headless.mp4": "is not a video or is truncated",
        "audio.mp4": "no video stream",
    }
    for name, problem in expected.items():
        with pytest.raises(VideoError, match=problem) as caught:
            read_video(bad[name], Sampler())
        assert str(caught.value).startswith(str(bad[name]))
        assert ";" in str(caught.value)  # a remedy follows
    with pytest.raises(VideoError, match="is not a file"):
        probe(folder)


def test_error_survives_the_way_back_from_a_worker(folder):
    with pytest.raises(VideoError) as caught:
        probe(folder / "missing.mp4")
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_too_short_video_is_refused(plain):
    with pytest.raises(VideoError, match=r"plain\.mp4: lasts 3\.000 s, less than the 5\.0 s"):
        read_video(plain, Sampler(min_duration_s=5.0))


# ---- other backends ----


@pytest.mark.parametrize("backend", ["decord", "torchcodec"])
def test_backends_show_the_same_frames(plain, backend):
    try:
        __import__(backend)
    except Exception as error:
        pytest.skip(f"{backend} is not usable here: {error}")
    for sampler in (Sampler(fps=30), Sampler(rule="segments", num_frames=5)):
        ours, theirs = read_video(plain, sampler), read_video(plain, sampler, backend=backend)
        np.testing.assert_array_equal(ours.pixels.numpy(), theirs.pixels.numpy())
        np.testing.assert_array_equal(ours.times_s, theirs.times_s)


def test_decord_refuses_files_that_it_would_read_wrongly(folder, plain):
    pytest.importorskip("decord", reason="decord is not installed")
    cut = shift(plain, folder / "cut_for_decord.mp4", -10)
    with pytest.raises(VideoError, match="decord counts 90 frames where 80 are presented.*backend=pyav"):
        read_all(cut, backend="decord")
    turned = write(folder / "turned_for_decord.mp4", count=3, rotation=90)
    with pytest.raises(VideoError, match="rotated"):
        probe(turned, backend="decord")


@pytest.mark.parametrize("name, codec", [("x.ts", "libx264"), ("x.avi", "mpeg4")])
def test_decord_refuses_containers_where_it_misplaces_frames(tmp_path, name, codec):
    pytest.importorskip("decord", reason="decord is not installed")
    with pytest.raises(VideoError, match="decord misplaces frames in"):
        probe(write(tmp_path / name, count=20, codec=codec), backend="decord")


def test_missing_or_unknown_backend_names_the_remedy(plain, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torchcodec.decoders", None)
    with pytest.raises(VideoError, match="pip install torchcodec"):
        probe(plain, backend="torchcodec")
    with pytest.raises(ValueError, match="'cv2' is unknown; use one of pyav"):
        read_all(plain, backend="cv2")


# ---- real clips ----


def test_best_stream_of_several_is_read(video_dir):
    info = probe(video_dir / "nasa_13013.mp4")
    assert (info.width, info.height, info.num_frames) == (480, 270, 390)
    assert info.fps == pytest.approx(30000 / 1001)
    frames = read_video(video_dir / "nasa_13013.mp4", Sampler(rule="segments", num_frames=4))
    assert frames.pixels.shape == (4, 270, 480, 3)


def test_video_duration_leaves_longer_audio_out(video_dir):
    info = probe(video_dir / "charades_3MSZA.mp4")
    assert (info.num_frames, info.fps, info.duration_s) == (930, 30.0, 31.0)


def test_av1_is_read_and_decord_says_that_it_cannot(video_dir):
    path = video_dir / "av1_video.mkv"
    frames = read_video(path, Sampler(rule="segments", num_frames=3))
    assert frames.pixels.shape == (3, 360, 640, 3)
    assert frames.damaged == 0
    pytest.importorskip("decord", reason="decord is not installed")
    with pytest.raises(VideoError, match="decord cannot open it"):
        read_video(path, Sampler(), backend="decord")


def test_real_clip_is_the_same_through_decord(video_dir):
    pytest.importorskip("decord", reason="decord is not installed")
    for name in ("charades_3MSZA.mp4", "nasa_13013.mp4"):
        ours, theirs = (
            read_video(video_dir / name, Sampler(rule="segments", num_frames=6), backend=b) for b in ("pyav", "decord")
        )
        np.testing.assert_array_equal(ours.pixels.numpy(), theirs.pixels.numpy())


def test_cover_of_an_audio_file_is_no_video(tmp_path, monkeypatch, plain):
    monkeypatch.setattr(decode, "ATTACHED_PICTURE", 1)  # AV_DISPOSITION_DEFAULT: treat the only stream as a cover
    with pytest.raises(VideoError, match="no video stream"):
        probe(plain)
