"""Joined, cut and otherwise faulty files are refused with what would mend them, or named by ``check``."""

import json
import re
import shutil
import subprocess

import av
import numpy as np
import pytest

from benchmarks.fuzz_files import Trial, fuzz
from benchmarks.odd_files import Odd, Row, cut, encode, joined, jump, mended, of
from videollm.data.__main__ import main
from videollm.video.decode import VideoError, probe
from videollm.video.read import read_video
from videollm.video.sampling import Sampler

needs_ffmpeg = pytest.mark.skipif(not shutil.which("ffmpeg"), reason="ffmpeg is not installed")
STILL = [i + 1000 * (i >= 60) for i in range(90)]  # one picture is shown for 40 s


def refusal(path) -> str:
    with pytest.raises(VideoError) as caught:
        probe(path)
    return str(caught.value)


# ---- times that start again, or jump ----


@pytest.mark.parametrize(
    "name, codec, places",
    [
        ("x.ts", "libx264", "its times start again, from 5.96 s to 0.00 s"),
        ("x.vob", "mpeg2video", "its times start again, from 5.96 s to 0.00 s"),
        ("x.mkv", "libx264", "its times start again, from 5.96 s to 0.00 s"),
        ("x.mp4", "libx264", "another file is joined to it, of which nothing can be read (behind 6.00 s)"),
        ("x.flv", "flv", "another file is joined to it, of which nothing can be read (behind 6.00 s)"),
        ("x.wmv", "wmv2", "another file is joined to it, of which nothing can be read (behind 6.00 s)"),
    ],
)
def test_joined_files_are_refused_with_both_places_and_a_remedy(tmp_path, name, codec, places):
    joined(codec)(tmp_path / name)
    said = refusal(tmp_path / name)
    assert said.startswith(f"{tmp_path / name}: {places}")
    assert "; mend it with: ffmpeg -fflags +genpts -i " in said or "; join its parts with: ffmpeg -f concat" in said


def test_joined_avi_files_are_one(tmp_path):
    """They hold no times, so that nothing is lost: 150 and 75 pictures."""
    joined("mpeg4")(tmp_path / "x.avi")
    assert (probe(tmp_path / "x.avi").num_frames, probe(tmp_path / "x.avi").duration_s) == (225, 9.0)


@needs_ffmpeg
@pytest.mark.parametrize(
    "name, make, pictures",
    [
        ("x.ts", joined("libx264"), 225),
        ("x.vob", joined("mpeg2video"), 225),
        ("h264.mpg", of("libx264", container="mpeg"), 150),
        ("x.h264", of("libx264"), 150),
        ("it's 12:30.ts", joined("libx264"), 225),
    ],
)
def test_the_command_that_a_refusal_shows_makes_a_good_file(tmp_path, name, make, pictures):
    make(tmp_path / name)
    assert mended(refusal(tmp_path / name), pictures, tmp_path) == "refused, and mended by the command shown"


def test_a_jump_of_the_clock_is_named_and_a_still_picture_is_none(tmp_path, caplog):
    jump(tmp_path / "jump.ts")
    info = probe(tmp_path / "jump.ts")
    assert info.num_frames == 150
    assert info.problems["jumping"].startswith("its times jump from 2.96 s to 3599.92 s; mend it with: ffmpeg")
    assert "jump.ts: its times jump" in caplog.text
    for name, options in {"x.ts": {}, "x.mkv": {}, "x.mp4": {}, "sound.ts": {"gop": 1, "audio_s": 46}}.items():
        still = probe(encode(tmp_path / name, "mpeg2video", count=90, pts=STILL, **options))
        assert (still.num_frames, still.problems) == (90, {}), name
        assert still.duration_s == pytest.approx(43.6, abs=0.05), name


@pytest.mark.parametrize("ext, is_still", [("ts", False), ("mkv", True)])
def test_only_a_stream_with_a_clock_can_jump_before_a_keyframe(tmp_path, ext, is_still):
    path = encode(tmp_path / f"x.{ext}", "mpeg2video", count=90, pts=STILL, gop=1)
    assert (probe(path).problems == {}) is is_still


def same_times(path, source, doubled: int):
    """``source`` again, ``doubled`` of its B-frames at the time of the one before."""
    with av.open(str(source)) as old, av.open(str(path), "w") as new:
        stream, times = new.add_stream_from_template(old.streams.video[0]), []
        for packet in old.demux(video=0):
            if packet.pts is None:
                continue
            if doubled and packet.pts < max(times, default=0) and packet.pts > 1000:
                packet.pts, doubled = max(times), doubled - 1
            times.append(packet.pts)
            packet.stream = stream
            new.mux(packet)
    return path


def test_pictures_that_share_a_time_are_named_or_refused(tmp_path):
    source = encode(tmp_path / "good.mkv", "mpeg4", bf="2")
    few, many = (same_times(tmp_path / f"{n}.mkv", source, n) for n in (1, 9))
    info = probe(few)
    assert info.num_frames == 149
    assert info.problems["jumping"].startswith("1 of 150 pictures have the time of another one (the first at 1.")
    assert re.search(r"9\.mkv: 9 of 150 pictures have the time of another one .*; join its parts", refusal(many))


@needs_ffmpeg
def test_pictures_without_a_time_are_not_made_even(tmp_path):
    """Two of the few times that there are, are the same here."""
    made = "-v error -f lavfi -i testsrc2=s=64x48:r=25:d=24 -c:v libx264 -x264-params keyint=25:bframes=3"
    subprocess.run(["ffmpeg", *made.split(), tmp_path / "x.mpg"], check=True)
    assert re.search(r"5\d\d of its 600 pictures have no time; mend it with: ffmpeg", refusal(tmp_path / "x.mpg"))


def test_pictures_without_a_time_are_refused(tmp_path):
    path = encode(tmp_path / "x.mpg", "libx264", container="mpeg")
    # FFmpeg guesses some times while it opens the file, and seldom the same one twice: then that is the fault named.
    fault = r"\d\d+ of its 150 pictures have no time|\d of \d\d pictures have the time of another one \(.*\)"
    assert re.search(rf"({fault}); mend it with: ffmpeg ", refusal(path))
    assert "has no picture with a time; mend it with: ffmpeg" in refusal(encode(tmp_path / "x.h264", "libx264"))


# ---- files that were cut off ----

CODECS = {"mkv": "libx264", "webm": "libvpx", "avi": "mpeg4", "flv": "flv", "wmv": "wmv2", "mxf": "mpeg2video"}


@pytest.mark.parametrize("ext", [*CODECS, "mp4"])
def test_a_cut_file_is_refused_under_one_half_and_else_named(tmp_path, ext):
    options = {"mp4": {"movflags": "faststart"}, "webm": {"deadline": "realtime"}}.get(ext, {})
    codec, path = CODECS.get(ext, "libx264"), tmp_path / f"x.{ext}"
    of(codec, **options)(path)
    assert probe(path).problems == {}
    cut(codec, 0.3, **options)(path)
    assert re.search(r": is truncated: [012]\.\d\d s of (6\.\d\d|5\.9\d) s are there; fetch it again$", refusal(path))
    cut(codec, 0.7, **options)(path)
    info = probe(path)
    assert re.match(r"is truncated: [345]\.\d\d s of (6\.\d\d|5\.9\d) s are there", info.problems["truncated"])
    assert 75 < info.num_frames < 140 and read_video(path, Sampler(rule="segments", num_frames=4)).damaged <= 1


@pytest.mark.parametrize("ext", ["mkv", "wmv"])
def test_sound_that_is_longer_than_the_pictures_is_no_cut(tmp_path, ext):
    """The header tells the length of the whole; a tag of Matroska, if it is there, that of the pictures."""
    path = encode(tmp_path / f"x.{ext}", CODECS[ext], audio_s=9)
    path.write_bytes(path.read_bytes().replace(b"DURATION", b"DURATIO_"))
    info = probe(path)
    assert (info.problems, round(info.duration_s, 2)) == ({}, 6.0)


@needs_ffmpeg
def test_a_picture_that_is_shown_again_and_again_is_one(tmp_path):
    """Theora has an empty packet for it, which is no picture, no damage and no missing end."""
    path = tmp_path / "still.ogv"
    given = "-v error -f lavfi -i color=red:s=64x48:r=25:d=4 -f lavfi -i testsrc=s=64x48:r=25:d=1"
    made = [*given.split(), "-filter_complex", "[1][0]concat", "-c:v", "libtheora", path]
    if subprocess.run(["ffmpeg", *made], check=False, capture_output=True).returncode:
        pytest.skip("this ffmpeg has no encoder libtheora")
    info = probe(path)
    assert info.problems == {} and info.num_frames < 40
    assert info.duration_s == pytest.approx(5.0, abs=0.2)  # the encoder leaves out some at the end
    frames = read_video(path, Sampler(rule="segments", num_frames=8))
    assert frames.damaged == 0
    reds = [bool((rgb[..., 0] > 200).all() and (rgb[..., 1:] < 60).all()) for rgb in frames.pixels.numpy()]
    assert reds == [second >= 1 for second in frames.times_s]


def test_a_last_picture_that_is_shown_again_lasts_until_the_end(tmp_path):
    source = encode(tmp_path / "x.mp4", "libx264", gop=1000)
    with av.open(str(source)) as old, av.open(str(tmp_path / "x.nut"), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(video=0):
            if packet.pts is None:
                continue
            if packet.dts * packet.time_base > 3:
                times, packet = packet, av.Packet(0)
                packet.pts, packet.dts, packet.time_base = times.pts, times.dts, times.time_base
            packet.stream = stream
            new.mux(packet)
    info = probe(tmp_path / "x.nut")
    assert (info.duration_s, info.problems) == (6.0, {}) and 70 < info.num_frames < 80
    assert read_video(tmp_path / "x.nut", Sampler(rule="segments", num_frames=8)).damaged == 0


def test_a_file_that_ends_in_a_picture_is_cut_also_where_no_length_is_promised(tmp_path):
    path = encode(tmp_path / "x.mp4", "libx264", movflags="frag_keyframe+empty_moov")
    data = path.read_bytes()
    path.write_bytes(data[: data.rindex(b"moof") - 300])  # the last whole fragment loses its end
    assert probe(path).problems["truncated"].startswith("is truncated: ")


def test_a_file_whose_pictures_are_all_missing_is_to_be_fetched_again(tmp_path):
    """Its index, which comes last, is cut: it has a length, but no place of any picture. No command mends that."""
    data = encode(tmp_path / "x.mp4", "libx264").read_bytes()
    (tmp_path / "x.mp4").write_bytes(data[: data.rindex(b"stts") - 4])
    assert refusal(tmp_path / "x.mp4").endswith(": is truncated: none of its pictures are there; fetch it again")


def test_a_table_that_promises_less_than_there_is_promises_nothing(tmp_path):
    """Pictures are shown as long as they are there, whatever the header says."""
    path = encode(tmp_path / "x.mkv", "libx264")
    data = path.read_bytes()
    at = data.index(b"\x44\x89\x88") + 3  # the duration, a float of eight bytes
    path.write_bytes(data[:at] + np.array(1000.0, ">f8").tobytes() + data[at + 8 :])
    assert probe(path).problems == {} and probe(path).num_frames == 150


# ---- what check says ----


def test_check_counts_truncated_and_jumping_files_and_ends_with_one(tmp_path, capsys):
    cut("libx264", 0.7)(tmp_path / "cut.mkv")
    jump(tmp_path / "jump.ts")
    encode(tmp_path / "good.mp4", "libx264")
    names = ["cut.mkv", "jump.ts", "good.mp4"]
    turns = [{"from": "human", "value": "<video>\nwhat?"}, {"from": "gpt", "value": "a clip"}]
    lines = [json.dumps({"id": name, "video": name, "conversations": turns}) + "\n" for name in names]
    annotations = tmp_path / "a.jsonl"
    annotations.write_text("".join(lines))
    given = ["check", "--annotations", str(annotations), "--videos", str(tmp_path)]
    for more in ([], ["--decode"]):
        assert main([*given, "--output", str(tmp_path / "clean.jsonl"), *more]) == 1
        said = capsys.readouterr().out
        assert "0 missing, 0 unreadable, 0 damaged, 1 truncated, 1 jumping" in said
        assert re.search(
            r"a\.jsonl:1: cut\.mkv: is truncated: [345]\.\d\d s of 6\.00 s are there; .*fetch it again", said
        )
        assert "a.jsonl:2: jump.ts: its times jump from 2.96 s to 3599.92 s; mend it with: ffmpeg" in said
    report = json.loads((tmp_path / "clean.jsonl.report.json").read_text())
    assert (list(report["truncated"]), list(report["jumping"]), report["kept"]) == (["cut.mkv"], ["jump.ts"], 3)
    annotations.write_text(lines[2])
    assert main(given) == 0


# ---- the benchmarks of this ----


def test_fifty_files_damaged_at_random_give_only_documented_errors():
    counts, faults = fuzz(50, seed=0, timeout_s=20, progress=False)
    assert faults == [] and counts.total() == 50
    assert counts["refused"] > 10 and counts["good"] > 10


def test_fuzzing_tells_another_error(monkeypatch):
    def read(self, path):
        raise KeyError("x") if path.name.startswith("3_") else VideoError(f"{path}: is bad; fetch it again")

    monkeypatch.setattr(Trial, "read", read)
    counts, faults = fuzz(5, seed=0, timeout_s=20, progress=False)
    assert (counts["fault"], counts["refused"]) == (1, 4)
    assert re.fullmatch(r"seed 0, file 3 \(\S+\): KeyError: 'x'", faults[0])


def test_a_wrong_picture_and_a_silent_loss_are_faults():
    odd = Odd("cut", "x.mkv", cut("libx264", 0.5), pictures=150)
    good = {"chosen": 37, "alike": 37, "in_time": 37, "pictures": 150}
    assert Row(odd, "good", **good).faults == []
    assert Row(odd, "good", **good | {"alike": 36}).faults == ["1 wrong pictures"]
    assert Row(odd, "good", **good | {"in_time": 30}).faults == ["7 wrong times"]
    assert Row(odd, "good", **good | {"pictures": 75}).faults == ["silent loss: 75 of 150"]
    assert Row(odd, "truncated", **good | {"pictures": 75}).faults == []
    assert Row(odd, "good", refused="x.mkv: is bad; fetch it again").faults == ["silent loss: 0 of 150"]
