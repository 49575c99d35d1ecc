"""A name is a name: never a protocol, never a way out of the root, and a missing one tells what is there instead."""

import gzip
import shutil
import unicodedata
from pathlib import Path

import av
import pytest
from PIL import Image

from tests.unit.video.test_video import write
from videollm.data import load_records
from videollm.data.check import validate
from videollm.data.mixture import read_list
from videollm.video.decode import VideoError, probe
from videollm.video.names import nearest, unusable
from videollm.video.read import read_image, read_video, safe_join
from videollm.video.sampling import Sampler

COLONS = ("12:30.mp4", "1:30.mp4", "http:x.mp4", "pipe:0.mp4", "-.mp4", "a b%d#?.mp4", "concat:a|b.mp4")


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return write(tmp_path_factory.mktemp("names") / "v.mp4", count=3)


@pytest.mark.parametrize("backend", ["pyav", "decord", "torchcodec"])
@pytest.mark.parametrize("name", COLONS)
def test_a_name_is_never_taken_for_a_protocol(tmp_path, monkeypatch, video, name, backend):
    if backend != "pyav":
        pytest.importorskip(backend)
    monkeypatch.chdir(tmp_path)
    shutil.copy(video, name)
    for path in (name, Path(name), tmp_path / name):
        assert probe(path, backend).num_frames == 3
        assert len(read_video(path, Sampler(rule="segments", num_frames=2), backend=backend).pixels) == 2
    assert safe_join(tmp_path, name) == tmp_path / name


def test_a_picture_may_have_a_colon_in_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (2, 2)).save(tmp_path / "12:30.png")
    assert read_image("12:30.png").pixels.shape == (1, 2, 2, 3)


def test_annotations_may_name_files_with_colons(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"video": "1:30.mp4", "conversations": [{"from": "human", "value": "<video>?"}]}\n')
    assert load_records(path)[0].video == "1:30.mp4"


def test_a_playlist_does_not_reach_the_network(tmp_path, caplog):
    path = tmp_path / "list.m3u8"
    path.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n")
    av.logging.set_level(av.logging.ERROR)
    try:
        with av.logging.Capture() as said, pytest.raises(VideoError):
            probe(path)
    finally:
        av.logging.set_level(None)
    assert any("not on whitelist 'file'" in text for _, _, text in said)


def test_paths_stay_inside_their_root(tmp_path):
    root = tmp_path / "root"
    (root / "a").mkdir(parents=True)
    assert safe_join(root, "a/b.mp4") == root / "a" / "b.mp4"
    assert safe_join(root, "a/../b.mp4") == root / "b.mp4"
    (tmp_path / "x.mp4").touch()
    out = ("../x.mp4", "a/../../x.mp4", "a/../../root/../x.mp4", str(tmp_path / "x.mp4"), r"..\x.mp4", r"\x.mp4")
    for bad in (*out, r"a\..\..\x.mp4", "", ".", "a/..", "a\0b", "n" * 300):
        with pytest.raises(VideoError):
            safe_join(root, bad)
    with pytest.raises(VideoError, match=r"\.\./x\.mp4: is not inside the root .*root"):
        safe_join(root, "../x.mp4")


def test_a_link_below_the_root_may_lead_out_of_it(tmp_path, video):
    snapshot, blobs = tmp_path / "snapshots" / "main", tmp_path / "blobs"
    snapshot.mkdir(parents=True), blobs.mkdir()
    shutil.copy(video, blobs / "0a1b")
    (snapshot / "v.mp4").symlink_to("../../blobs/0a1b")
    (snapshot / "gone.mp4").symlink_to("../../blobs/2c3d")
    assert probe(safe_join(snapshot, "v.mp4")).num_frames == 3
    with pytest.raises(VideoError, match=r"does not exist \(a link to ../../blobs/2c3d, which is not there\)"):
        probe(safe_join(snapshot, "gone.mp4"))


@pytest.mark.parametrize("there, asked", [("NFC", "NFD"), ("NFD", "NFC")])
def test_letters_with_marks_are_found_in_either_form(tmp_path, video, there, asked):
    kept = tmp_path / unicodedata.normalize(there, "Étude/Ünïcode.mp4")
    kept.parent.mkdir()
    shutil.copy(video, kept)
    found = safe_join(tmp_path, unicodedata.normalize(asked, "Étude/Ünïcode.mp4"))
    assert found == kept and probe(found).num_frames == 3


def test_backslashes_of_another_system_are_separators_where_nothing_has_that_name(tmp_path, video):
    (tmp_path / "a").mkdir()
    shutil.copy(video, tmp_path / "a" / "v.mp4")
    assert safe_join(tmp_path, r"a\v.mp4") == tmp_path / "a" / "v.mp4"
    shutil.copy(video, tmp_path / r"a\v.mp4")
    assert safe_join(tmp_path, r"a\v.mp4") == tmp_path / r"a\v.mp4"


@pytest.mark.parametrize(
    "asked, hint",
    [
        ("clips/Talk_01.mp4", "'talk_01.mp4', which differs in capitals"),
        ("clips/talk_01.MP4", "'talk_01.mp4', which differs in capitals"),
        ("clips/talk_01.mkv", "'talk_01.mp4', which differs in the suffix"),
        ("clips/talk_1.mp4", "nearest name .* is 'talk_01.mp4'"),
        ("clisp/talk_01.mp4", "nearest name .* is 'clips'"),
        ("clips/" + unicodedata.normalize("NFD", "é.mp4"), "another Unicode form"),
        (r"sub\talk.mp4", "backslashes are no separators here"),
        ("clips/zzz.webm", ""),
    ],
)
def test_a_missing_file_tells_the_nearest_name(tmp_path, asked, hint):
    (tmp_path / "clips").mkdir()
    for name in ("talk_01.mp4", unicodedata.normalize("NFC", "é.mp4")):
        (tmp_path / "clips" / name).touch()
    with pytest.raises(VideoError, match=rf"does not exist \(.*{hint}.*\); check" if hint else "does not exist; check"):
        probe(tmp_path / asked)


def test_names_that_no_file_can_have_are_errors_of_the_name(tmp_path):
    assert unusable(tmp_path / ("n" * 300)) == ("cannot be opened (File name too long)", "correct the path")
    assert unusable(Path("a\0b"))[0].startswith("cannot be opened")
    (tmp_path / "loop").symlink_to("loop")
    assert unusable(tmp_path / "loop")[0].startswith("cannot be opened (Too many levels")
    assert unusable(tmp_path) == ("is not a file", "check the path and the folder of the videos")
    assert unusable(tmp_path, folder=True) is None and nearest(tmp_path / "none" / "none") == ""


def test_the_check_tells_the_nearest_name_and_finds_what_training_finds(tmp_path, video):
    shutil.copy(video, tmp_path / unicodedata.normalize("NFD", "é.mp4"))
    shutil.copy(video, tmp_path / "v.mp4")
    line = '{"video": "%s", "conversations": [{"from": "human", "value": "?"}]}\n'
    (tmp_path / "A.JSONL").write_text(line % "é.mp4" + line % "V.mp4")
    report = validate(tmp_path / "A.JSONL", tmp_path)
    assert report.problems == [] and len(report.missing) == 1
    assert "A.JSONL:2: no file V.mp4 (video)" in report.missing[0]
    assert "'v.mp4', which differs in capitals" in report.missing[0]


@pytest.mark.parametrize("name", ["a.JSONL", "a.Jsonl.GZ", "a.JSON"])
def test_capitals_in_a_suffix_are_read(tmp_path, name):
    data = b'{"conversations": [{"from": "human", "value": "?"}]}'
    data = b"[" + data + b"]" if name.endswith("JSON") else data
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("GZ") else data)
    (record,) = load_records(tmp_path / name)
    assert record.id == "a:1"
    assert read_list(tmp_path / name) is None
