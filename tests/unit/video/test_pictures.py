"""Paths stay inside their root, and a picture is one upright frame."""

import pytest
from PIL import Image

from videollm.video.decode import VideoError
from videollm.video.read import read_image, safe_join


def test_paths_stay_inside_their_root(tmp_path):
    root = tmp_path / "root"
    (root / "a").mkdir(parents=True)
    (root / "link").symlink_to(tmp_path)
    assert safe_join(root, "a/b.mp4") == (root / "a" / "b.mp4").resolve()
    assert safe_join(root, "a/../b.mp4") == (root / "b.mp4").resolve()
    for bad in ("../x.mp4", "a/../../x.mp4", str(tmp_path / "x.mp4"), "link/x.mp4", "", ".", "a\0b"):
        with pytest.raises(VideoError):
            safe_join(root, bad)
    with pytest.raises(VideoError, match=r"\.\./x\.mp4: is not inside the root .*root"):
        safe_join(root, "../x.mp4")


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
    with pytest.raises(VideoError, match="is not a file"):
        read_image(tmp_path / "none.png")
