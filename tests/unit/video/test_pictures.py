"""A picture is one upright frame of 8 bits, whatever its type; what has no white or black of its own is refused."""

import shutil
import struct
import subprocess

import numpy as np
import pytest
from PIL import Image

from videollm.video.decode import VideoError, probe
from videollm.video.picture import is_picture
from videollm.video.read import read_image, read_video
from videollm.video.sampling import Sampler

HALF = [0, 128, 255]  # black, half, white


def shown(path):
    """The one row of a picture whose colours are greys."""
    pixels = read_image(path).pixels
    assert (pixels == pixels[..., :1]).all()
    return pixels[0, 0, :, 0].tolist()


def test_pictures_are_upright_rgb(tmp_path):
    path = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned a quarter clockwise
    Image.new("L", (20, 10), 77).save(path, exif=exif)
    frames = read_image(path)
    assert frames.pixels.shape == (1, 20, 10, 3)
    assert frames.times_s.tolist() == [0.0]
    assert abs(int(frames.pixels[0, 0, 0, 0]) - 77) <= 1


def test_bad_pictures_are_clear_errors(tmp_path):
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"not a picture")
    with pytest.raises(VideoError, match=r"bad\.png: is not a readable image"):
        read_image(bad)
    with pytest.raises(VideoError, match="does not exist"):
        read_image(tmp_path / "none.png")
    with pytest.raises(VideoError, match="is not a file"):
        read_image(tmp_path)


@pytest.mark.parametrize(
    "name, levels",
    [
        ("16.png", np.uint16([[0, 32768, 65535]])),
        ("16.tif", np.uint16([[0, 32768, 65535]])),
        ("16.jp2", np.uint16([[0, 32768, 65535]] * 8)),
        ("32.tif", np.int32([[0, 1 << 30, (1 << 31) - 1]])),
    ],
)
def test_levels_are_scaled_by_the_range_of_their_type(tmp_path, name, levels):
    how = {"irreversible": False} if name.endswith("jp2") else {}
    Image.fromarray(levels).save(tmp_path / name, **how)
    assert shown(tmp_path / name) == HALF


def tiff(path, levels, bits, sample_format, photometric):
    """A TIFF file of one row, written by hand: Pillow writes no levels without a sign, and none where 0 is white."""
    tags = [(256, 4, levels.size), (257, 4, 1), (258, 3, bits), (259, 3, 1), (262, 3, photometric), (273, 4, 200),
            (277, 3, 1), (278, 4, 1), (279, 4, levels.nbytes), (339, 3, sample_format)]  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)
    path.write_bytes(head.ljust(200, b"\0") + levels.tobytes())
    return path


@pytest.mark.parametrize(
    "levels, sample_format, photometric",
    [
        (np.uint32([0, 1 << 31, (1 << 32) - 1]), 1, 1),
        (np.int16([0, 1 << 14, (1 << 15) - 1]), 2, 1),
        (np.uint16([65535, 32767, 0]), 1, 0),  # 0 is white
    ],
)
def test_the_tags_of_a_tiff_say_what_its_levels_mean(tmp_path, levels, sample_format, photometric):
    path = tiff(tmp_path / "a.tif", levels, levels.itemsize * 8, sample_format, photometric)
    assert shown(path) == HALF


def test_portable_greymaps_and_colours_of_16_bits_have_the_upper_8(tmp_path):
    (tmp_path / "a.pgm").write_bytes(b"P5\n3 1\n65535\n" + np.array([0, 32768, 65535], ">u2").tobytes())
    assert shown(tmp_path / "a.pgm") == HALF
    (tmp_path / "a.ppm").write_bytes(b"P6\n3 1\n65535\n" + np.array([0, 32768, 65535], ">u2").repeat(3).tobytes())
    assert shown(tmp_path / "a.ppm") == HALF


@pytest.mark.parametrize(
    "name, levels, says",
    [
        ("float.tif", np.float32([[0, 0.5, 1]]), "floating-point numbers.*convert it to 8-bit"),
        ("negative.tif", np.int32([[-5, 0, 5]]), "negative down to -5.*convert it to 8-bit"),
        ("dark.tif", np.int32([[0, 1000, 65535]]), "end at 65535 of 2147483647: all of it would be black"),
    ],
)
def test_levels_without_a_white_or_black_are_refused(tmp_path, name, levels, says):
    Image.fromarray(levels).save(tmp_path / name)
    with pytest.raises(VideoError, match=f"{name}: cannot be shown: .*{says}"):
        read_image(tmp_path / name)


def test_transparent_parts_are_shown_on_white(tmp_path):
    hidden = np.uint8([[[0, 0, 0, 0], [0, 0, 0, 255], [100, 100, 100, 128]]])  # black that nobody sees, black, half
    Image.fromarray(hidden).save(tmp_path / "rgba.png")
    Image.fromarray(hidden[..., 2:]).save(tmp_path / "la.png")
    for name in ("rgba.png", "la.png"):
        white, black, half = shown(tmp_path / name)
        assert (white, black) == (255, 0) and abs(half - 177) <= 1  # 255 / 2 + 100 / 2
    palette = Image.fromarray(np.uint8([[0, 1]]), "P")
    palette.putpalette([0, 0, 0, 0, 0, 0])
    palette.save(tmp_path / "palette.png", transparency=0)
    palette.save(tmp_path / "palette.gif", transparency=0)
    assert shown(tmp_path / "palette.png") == shown(tmp_path / "palette.gif") == [255, 0]
    Image.fromarray(np.uint8([[7, 0]])).save(tmp_path / "level.png", transparency=7)
    assert shown(tmp_path / "level.png") == [255, 0]


def test_other_kinds_of_pictures_keep_their_colours(tmp_path):
    Image.new("1", (2, 1), 1).save(tmp_path / "one.png")
    assert shown(tmp_path / "one.png") == [255, 255]
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "red.jpg", quality=95)
    red, green, blue = read_image(tmp_path / "red.jpg").pixels[0, 0, 0].tolist()
    assert red > 245 and green < 10 and blue < 10


def test_a_film_of_pictures_is_no_picture_and_gives_its_first(tmp_path):
    films = [Image.new("RGB", (8, 8), (level,) * 3) for level in (40, 200)]
    films[0].save(tmp_path / "a.gif", save_all=True, append_images=films[1:])
    films[0].save(tmp_path / "pages.tif", save_all=True, append_images=films[1:])
    films[0].save(tmp_path / "still.png")
    assert [is_picture(tmp_path / name) for name in ("a.gif", "pages.tif", "still.png")] == [False, True, True]
    assert abs(shown(tmp_path / "a.gif")[0] - 40) <= 1
    assert not is_picture(tmp_path / "none.png")


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed")
@pytest.mark.parametrize("deep", ["yuv420p10le", "yuv420p12le", "yuv444p10le", "gray16le"])
def test_video_of_more_than_8_bits_has_the_same_pictures(tmp_path, deep):
    path = tmp_path / "deep.mkv"
    source = ["ffmpeg", "-v", "error", "-f", "lavfi", "-i", "testsrc=size=64x48:rate=5:duration=1"]
    subprocess.run([*source, "-pix_fmt", deep, "-c:v", "ffv1", path], check=True)
    colours = "gray" if deep.startswith("gray") else "yuv444p"
    raw = subprocess.run(
        [*source, "-vf", f"format={colours}", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"], check=True, stdout=-1
    )
    pictures = read_video(path, Sampler(rule="fps", fps=5)).pixels.numpy()
    plain = np.frombuffer(raw.stdout, np.uint8).reshape(pictures.shape)
    assert probe(path).num_frames == 5
    assert np.median(np.abs(pictures.astype(int) - plain)) <= 2 and pictures.min() < 16 and pictures.max() > 239
