"""A display matrix turns and mirrors: all eight orientations are shown as ffmpeg shows them, others are refused."""

import shutil
import struct
import subprocess

import numpy as np
import pytest

from tests.unit.video.test_video import HEIGHT, WIDTH, read_all, write
from videollm.video.decode import VideoError, probe
from videollm.video.upright import of_matrix

ONE = 1 << 16  # 1.0 in a display matrix
# what people do to the stored picture -> (a, b, c, d) of the display matrix, and the same in numpy
SHOWN = {
    "as stored": ((1, 0, 0, 1), lambda p: p),
    "mirrored left to right": ((-1, 0, 0, 1), lambda p: p[:, ::-1]),
    "mirrored top to bottom": ((1, 0, 0, -1), lambda p: p[::-1]),
    "turned by a half": ((-1, 0, 0, -1), lambda p: p[::-1, ::-1]),
    "turned clockwise": ((0, 1, -1, 0), lambda p: np.rot90(p, -1)),
    "turned counter-clockwise": ((0, -1, 1, 0), lambda p: np.rot90(p, 1)),
    "rows and columns exchanged": ((0, 1, 1, 0), lambda p: p.swapaxes(0, 1)),
    "exchanged over the other diagonal": ((0, -1, -1, 0), lambda p: np.rot90(p, 2).swapaxes(0, 1)),
}
TAIL = (0, 0, 1 << 30)  # shift and weight


def with_matrix(source, target, values):
    """A copy of an mp4 file whose track header has another display matrix."""
    data = source.read_bytes()
    plain = struct.pack(">9i", ONE, 0, 0, 0, ONE, 0, *TAIL)
    start = data.index(plain, data.index(b"tkhd"))
    a, b, c, d = (round(value * ONE) for value in values)
    matrix = struct.pack(">9i", a, b, 0, c, d, 0, *TAIL)
    target.write_bytes(data[:start] + matrix + data[start + len(plain) :])
    return target


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    return write(tmp_path_factory.mktemp("upright") / "stored.mp4", count=4)


@pytest.mark.parametrize("how", SHOWN)
def test_every_right_angle_and_mirror_is_shown(tmp_path, stored, how):
    matrix, by_hand = SHOWN[how]
    path = with_matrix(stored, tmp_path / "laid.mp4", matrix)
    pictures = read_all(path).pixels.numpy()
    wanted = np.stack([by_hand(picture) for picture in read_all(stored).pixels.numpy()])
    assert np.array_equal(pictures, wanted)
    info = probe(path)
    assert (info.height, info.width) == wanted.shape[1:3]


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed")
@pytest.mark.parametrize("how", SHOWN)
def test_ffmpeg_shows_the_same(tmp_path, stored, how):
    path = with_matrix(stored, tmp_path / "laid.mp4", SHOWN[how][0])
    raw = subprocess.run(
        ["ffmpeg", "-v", "error", "-i", path, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"], stdout=-1, check=True
    )  # fmt: skip
    pictures = read_all(path).pixels.numpy()
    theirs = np.frombuffer(raw.stdout, np.uint8).reshape(pictures.shape)
    # Their filters turn the colours of half resolution, ours the finished RGB: only the noisy strip differs.
    assert np.abs(theirs.astype(int) - pictures).mean() < 3


def test_other_angles_are_refused_with_the_remedy(tmp_path, stored):
    half = 0.5**0.5
    path = with_matrix(stored, tmp_path / "askew.mp4", (half, half, -half, half))
    with pytest.raises(VideoError, match=r"askew\.mp4: is shown turned by 45 degrees; mend it with: ffmpeg "):
        probe(path)


@pytest.mark.parametrize(
    "values, turned",
    [
        ((2, 0, 0, 2), (False, False, False)),  # scale says nothing about direction
        ((0, 3, -1, 0), (True, True, False)),
        ((1, 0.004, -0.004, 1), (False, False, False)),  # a quarter of a degree is rounding
        ((0, 0, 0, 0), (False, False, False)),  # no matrix at all
    ],
)
def test_scale_and_rounding_do_not_turn(values, turned):
    a, b, c, d = (round(value * ONE) for value in values)
    found = of_matrix(np.array([a, b, 0, c, d, 0, *TAIL], np.int32).tobytes())
    assert (found.transposed, found.columns, found.rows) == turned


@pytest.mark.parametrize("backend, said", [("decord", "rotated or mirrored"), ("torchcodec", "mirrored")])
def test_another_decoder_refuses_mirrored_video(tmp_path, stored, backend, said):
    pytest.importorskip(backend)
    path = with_matrix(stored, tmp_path / "mirrored.mp4", (-1, 0, 0, 1))
    with pytest.raises(VideoError, match=f"{said} video.*backend=pyav"):
        probe(path, backend=backend)


def test_the_stored_picture_is_no_square_and_reads_one_way(stored):
    pictures = read_all(stored).pixels.numpy()
    assert pictures.shape[1:3] == (HEIGHT, WIDTH)
    assert len({by_hand(pictures[1]).tobytes() for _, by_hand in SHOWN.values()}) == len(SHOWN)
