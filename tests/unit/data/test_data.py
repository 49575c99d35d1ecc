"""Annotation files: how they are read, how everything bad in them is reported, and the check command."""

import gzip
import json
import pickle
import re
import subprocess
import sys
import time
import warnings

import pytest

from tests.annotated import item
from tests.models import clip_lines, clips, turns, write_lines
from videollm.data import AnnotationError, check, load_records, read_annotations, validate
from videollm.data.__main__ import main


def write(path, *items):
    path.write_text("\n".join(x if isinstance(x, str) else json.dumps(x) for x in items) + "\n", encoding="utf-8")
    return path


def test_all_bad_lines_of_all_files_are_in_one_error(tmp_path):
    first = write(tmp_path / "a.jsonl", item("q", "a"), '{"video": ', "", item("q", "<span>"), "[1]")
    second = tmp_path / "b.json"
    second.write_text(json.dumps([item("q"), item("q", duration=-1)], indent=1))
    with pytest.raises(AnnotationError) as caught:
        load_records([first, second, tmp_path / "none.jsonl"])
    places = [text.removeprefix(f"{tmp_path}/").split(": ")[0] for text in caught.value.problems]
    assert sorted(places) == ["a.jsonl:2", "a.jsonl:4", "a.jsonl:5", "b.json:item 2", "none.jsonl"]


def test_message_names_twenty_lines_and_counts_the_rest(tmp_path):
    path = write(tmp_path / "a.jsonl", *["{"] * 25)
    with pytest.raises(AnnotationError) as caught:
        read_annotations(path)
    lines = str(caught.value).splitlines()
    assert len(lines) == 21 and lines[19].startswith(f"{path}:20: not JSON")
    assert lines[20] == "... and 5 more: 25 bad lines in all"
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)  # a data loader's worker sends it so


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.jsonl.gz", "a.json.gz", "a.JSONL", "a.Json", "a.JSONL.GZ"])
def test_every_file_form_gives_the_same_records(tmp_path, name):
    is_list = name.lower().removesuffix(".gz").endswith(".json")
    items = [item("q é", "a", id="x"), item("when?", "<span>", tgt=[1, 2])]
    text = json.dumps(items, ensure_ascii=False) if is_list else None
    text = text or "\n\n".join(json.dumps(x, ensure_ascii=False) for x in items)
    data = text.encode("utf-8")
    (tmp_path / name).write_bytes(gzip.compress(data) if name.lower().endswith(".gz") else data)
    assert read_annotations(tmp_path / name) == items
    records = load_records(tmp_path / name)
    assert [r.id for r in records] == ["x", "a:2" if is_list else "a:3"]
    assert records[1].spans_s == ((1, 2),)
    assert records[1].where == f"{tmp_path / name}:{'item 2' if is_list else 3}"


def test_whole_characters_and_a_hundred_lists_are_read(tmp_path):
    deep = json.loads("[" * 99 + "]" * 99)
    line = item("q", "\U0001f600 \u20ac", id="x", deep=deep)
    for ascii in (True, False):
        path = write(tmp_path / "a.jsonl", json.dumps(line, ensure_ascii=ascii))
        (record,) = load_records(path)
        assert record.turns[1].parts == ("\U0001f600 \u20ac",) and record.extra == {"deep": deep}


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("a.json", b'[{"a": 1},\n {"a" 2}]', "a.json:2: not JSON: Expecting ':' delimiter, column 7"),
        ("a.json", b'{"a": 1}', "holds an object"),
        ("a.json", b"[]", "holds no record"),
        ("a.jsonl", b"\n \n", "holds no record"),
        ("a.jsonl", b'[{"a": 1}, {"a": 2}]', "a.jsonl: holds one list (file) - name it .json"),
        ("a.jsonl", b'[\n {"a": 1},\n {"a": 2}\n]\n', "a.jsonl: holds one list (file) - name it .json"),
        ("a.jsonl", b'[\n {"a": 1},\n {"a": ', "a.jsonl: holds one list (file) - name it .json"),
        ("a.json", b'{"a": 1}\n{"a": 2}\n', "a.json: holds several values, as JSON lines do (file) - name it .jsonl"),
        ("a.jsonl", b'{"a": 1}\n{"a": "\\ud83d"}', "a.jsonl:2: half a character, \\ud83d (line) - write the whole"),
        ("a.jsonl", b'{"a": 1}\n{"a": "\xed\xa0\xbd"}', "a.jsonl:2: not JSON: 'utf-8' codec can't decode"),
        ("a.json", b'[{"a": 1},\n{"\\uDC00": 2}]', "a.json:item 2: half a character, \\udc00 (line)"),
        ("a.json", b'{"\\ud83d": {"root": "."}}', "a.json:1: half a character, \\ud83d (line)"),
        ("a.jsonl", b'{"a": %s}' % (b"[" * 100 + b"]" * 100), "a.jsonl:1: more than 100 lists and objects within"),
        ("a.jsonl", b"[" * 100_000, "a.jsonl:1: more than 100 lists and objects within"),
        ("a.json", b"[" * 100_000, "a.json:1: more than 100 lists and objects within"),
        ("a.jsonl", b'{"a": 1}\n{"a": "\xff"}', "a.jsonl:2: not JSON: 'utf-8' codec can't decode"),
        ("a.csv", b"q,a", "not an annotation file"),
        ("a.jsonl.gz", b"{}", "cannot be read: Not a gzipped file"),
        ("a.jsonl.gz", gzip.compress(b"{}", mtime=0)[:-9], "cannot be read: Compressed file ended"),
    ],
)
def test_unreadable_file_is_a_clear_error(tmp_path, name, data, says):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(AnnotationError, match=re.escape(says)):
        read_annotations(tmp_path / name)


def test_an_id_that_occurs_twice_is_an_error_that_names_both_places(tmp_path):
    a = write(tmp_path / "a.jsonl", item("q", id="x"))
    b = write(tmp_path / "b.jsonl", item("q"), item("q", id="x"))
    with pytest.raises(AnnotationError, match=re.escape(f"{b}:2: has the id 'x' of {a}:1 (id)")):
        load_records([a, b])


def test_no_file_at_all_is_an_error():
    with pytest.raises(AnnotationError, match="no annotation file"):
        load_records([])


def test_odd_spans_give_one_warning_a_file_with_line_numbers(tmp_path):
    good, odd = item("q", "<span>", tgt=[1, 2]), item("q", "<span>", tgt=[2, 1])
    a = write(tmp_path / "a.jsonl", good, odd, *[item("q", "<span>", tgt=[3, 3])] * 22)
    b, c = write(tmp_path / "b.jsonl", odd), write(tmp_path / "c.jsonl", good)
    with pytest.warns(UserWarning) as caught:
        records = load_records([a, b, c])
    shown = ", ".join(map(str, range(3, 23)))
    assert [str(w.message) for w in caught] == [
        f"{a}: reversed span: 1 (lines 2); span of zero length: 22 (lines {shown}, ...)",
        f"{b}: reversed span: 1 (lines 1)",
    ]
    assert records[1].spans_s == ((1, 2),)
    with pytest.raises(AnnotationError, match=re.escape(f"{b}:1: reversed span (spans)")):
        load_records(b, on_odd="error")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_records(b, raw_spans=True)[0].spans_s == ((2, 1),)
    with pytest.raises(ValueError, match="on_odd"):
        load_records(c, on_odd="ignore")


# ---- check command ---------------------------------------------------------------------------------------------------


def test_validate_counts_names_missing_files_and_every_bad_line(tmp_path):
    (tmp_path / "v.mp4").touch()
    good = item("q", "<span>", tgt=[2, 1], task="mr", source="s")
    path = write(
        tmp_path / "a.jsonl",
        good,
        *[item("q", video="gone.mp4", task="qa", tgt=[[1, 2]])] * 2,
        item("q", "a", tgt=[1, 2]),
        *["{"] * 30,
    )
    report = validate(path, tmp_path)
    assert report.records == {("mr", "s"): 1, ("qa", ""): 2, ("", ""): 1} and report.spans["mr", "s"] == 1
    assert report.odd == {str(path): "reversed span: 1 (lines 1)"} and report.unused == 1
    assert report.missing == [f"{path}:2: no file gone.mp4 (video) - add it to {tmp_path}"]
    assert len(report.problems) == 30 and all(text in str(report) for text in report.problems)
    assert not report.ok
    assert not validate(path, tmp_path / "nowhere").ok
    assert validate(write(tmp_path / "b.jsonl", good), tmp_path).ok


@pytest.mark.end_to_end
def test_check_command_prints_the_report_and_its_status_tells(tmp_path, repository):
    def check(*items):
        path = write(tmp_path / "a.jsonl", *items)
        command = [sys.executable, "-m", "videollm.data", "check", "--annotations", path, "--videos", tmp_path]
        return subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=100)

    (tmp_path / "v.mp4").write_bytes((clips() / "clip0.mp4").read_bytes())
    good = check(item("q", "a", task="qa", duration=4))
    assert (good.returncode, good.stderr) == (0, "")
    assert "source (none): 1 files, 0 missing, 0 unreadable" in good.stdout
    assert "task qa, source (none): 1 records, 0 spans" in good.stdout and "no bad line" in good.stdout
    bad = check(item("q", "a", duration=4), item("q", ""))
    assert bad.returncode == 1 and "a.jsonl:2: empty answer (conversations[1])" in bad.stdout


@pytest.mark.parametrize("decode", [False, True])
def test_check_opens_every_video_and_writes_what_is_good(tmp_path, capsys, monkeypatch, decode):
    videos, whole = tmp_path / "videos", (clips() / "clip0.mp4").read_bytes()
    videos.mkdir()
    (videos / "good.mp4").write_bytes(whole)
    (videos / "empty.mp4").write_bytes(b"")
    (videos / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (videos / "hang.mp4").write_bytes(whole)

    def hang(path, *args, **options):
        return time.sleep(60) if path.name == "hang.mp4" else read(path, *args, **options)

    name = "read_video" if decode else "probe"
    read = getattr(check, name)
    monkeypatch.setattr(check, name, hang)
    said = {"conversations": turns("<video>\nwhen?", "in <span>"), "tgt": [0, 1]}
    lines = [
        {"id": "g", "video": "good.mp4", "duration": 4, "source": "s", **said},
        {"id": "long", "video": "good.mp4", "duration": 9, "source": "s", **said},
        {"id": "late", "video": "good.mp4", **said, "tgt": [5, 6]},
        {"id": "e", "video": "empty.mp4", "source": "s", **said},
        {"id": "c", "video": "cut.mp4", **said},
        {"id": "h", "video": "hang.mp4", **said},
        {"id": "m", "video": "gone.mp4", **said},
        {"id": "m2", "video": "gone.mp4", **said},
        {"id": "g", "video": "good.mp4", **said},
        {"id": "t", "conversations": turns("hi", "hello")},
        '{"id": ',
    ]
    given = ["--annotations", write_lines(tmp_path / "a.jsonl", lines), "--videos", str(videos)]
    given += ["--workers", "2", "--timeout", "4", "--output", str(tmp_path / "clean.jsonl"), *["--decode"] * decode]
    assert main(["check", *given]) == 1
    said_all = capsys.readouterr().out
    for words in (
        "5 videos and images looked at",
        "source s: 2 files, 0 missing, 1 unreadable, 0 damaged, 0 truncated, 0 jumping, 1 mismatched, 0 outside",
        "source (none): 4 files, 1 missing, 2 unreadable, 0 damaged, 0 truncated, 0 jumping, 0 mismatched, 1 outside",
        "a.jsonl:4: ", "zero bytes", "its decoder took more than 4 s", "a.jsonl:7: no file gone.mp4",
        "a.jsonl:2: duration is 9 s, good.mp4 has 4.00 s", "a.jsonl:3: span [5, 6] begins behind the end of good.mp4",
        "clean.jsonl: 4 of 10 good lines", "1 of them have a new id", "1 records are text only",
    ):  # fmt: skip
        assert words in said_all, words
    kept = load_records(tmp_path / "clean.jsonl")
    assert [record.id for record in kept] == ["g", "long", "g:9", "t"]
    report = json.loads((tmp_path / "clean.jsonl.report.json").read_text())
    assert report["kept"] == 4 and report["records"] == 10 and len(report["left_out"]) == 6
    assert report["renamed"] == [f"{tmp_path}/a.jsonl:9: g:9"]
    assert report["unreadable"].keys() == {"empty.mp4", "cut.mp4", "hang.mp4"}
    assert list(report["missing"]) == ["gone.mp4"]
    assert [line.split(": ")[0].rpartition("/")[2] for line in report["bad_lines"]] == ["a.jsonl:11", "a.jsonl:9"]
    capsys.readouterr()
    assert main(["check", *given[:1], str(tmp_path / "clean.jsonl"), *given[2:4]]) == 1  # the wrong duration is left


def test_a_span_that_ends_behind_the_real_end_is_told_where_no_duration_is_annotated(tmp_path, capsys):
    said = {"video": "clip0.mp4", "conversations": turns("<video>\nwhen?", "in <span>")}
    real = check.probe(clips() / "clip0.mp4").duration_s
    lines = [said | {"id": f"{k}", "tgt": [1, real + over]} for k, over in enumerate((-0.5, 0.4, 9))]
    lines.append(said | {"id": "known", "duration": real, "tgt": [1, real + 9]})  # cut as it is read
    given = ["--annotations", write_lines(tmp_path / "a.jsonl", lines), "--videos", str(clips())]
    assert main(["check", *given, "--output", str(tmp_path / "clean.jsonl")]) == 1
    out = capsys.readouterr().out
    assert "0 outside, 1 cut" in out and f"a.jsonl:3: span [1, {real + 9:g}] ends behind the end of clip0.mp4" in out
    assert "clean.jsonl: 4 of 4 good lines" in out
    assert list(json.loads((tmp_path / "clean.jsonl.report.json").read_text())["cut"]) == ["2"]


def test_a_clean_file_of_good_lines_holds_equal_records(tmp_path, capsys):
    path = write_lines(tmp_path / "a.jsonl", clip_lines(4))
    given = ["--annotations", path, "--videos", str(clips()), "--output", str(tmp_path / "clean.jsonl")]
    assert main(["check", *given]) == 0
    ours, theirs = load_records(tmp_path / "clean.jsonl"), load_records(path)
    assert [(r.id, r.video, r.turns, r.spans_s) for r in ours] == [(r.id, r.video, r.turns, r.spans_s) for r in theirs]
    assert main(["check", "--annotations", path, "--videos", str(tmp_path / "none")]) == 2
    assert "is not a folder" in capsys.readouterr().err


def test_records_with_one_id_are_all_kept_under_ids_of_their_own(tmp_path, capsys):
    lines = [item("q", "a", id="x"), item("q", "b", id="x:4"), *[item("q", str(k), id="x") for k in range(3)]]
    path = write_lines(tmp_path / "a.jsonl", lines)
    assert main(["check", "--annotations", path, "--output", str(tmp_path / "clean.jsonl")]) == 1
    assert "a.jsonl:3: has the id 'x' of" in capsys.readouterr().out
    kept = load_records(tmp_path / "clean.jsonl")
    assert [r.id for r in kept] == ["x", "x:4", "x:3", "x:4:4", "x:5"]
    assert [r.turns[1].parts for r in kept] == [("a",), ("b",), ("0",), ("1",), ("2",)]
    assert [r.id for r in load_records(path, raw_spans=True)] == [r.id for r in kept]  # as published code is followed


@pytest.mark.parametrize("wrong", [None, "line", "frames", "root"])
def test_check_reads_lists_of_data_sets(tmp_path, capsys, wrong):
    (tmp_path / "film").mkdir()
    (tmp_path / "film/clip0.mp4").write_bytes((clips() / "clip0.mp4").read_bytes())
    lines = [clip_lines(1)[0], {"id": "t", "conversations": turns("hi", "" if wrong == "line" else "hello")}]
    write_lines(tmp_path / "a.jsonl", lines)
    entry = {"root": "gone" if wrong == "root" else "film", "annotation": "a.jsonl", "repeat_time": 3}
    again = entry | {"root": "."} if wrong == "frames" else entry  # its video is not there
    (tmp_path / "meta.json").write_text(json.dumps({"one": entry, "two": again}))
    given = ["--annotations", str(tmp_path / "meta.json"), "--videos", str(tmp_path)]
    status = main(["check", *given, "--output", str(tmp_path / "clean.jsonl")])
    said = capsys.readouterr().out
    assert status == bool(wrong), said
    if wrong == "root":
        assert "meta.json: data set 'one': no folder 'gone' (root)" in said
        return
    kept = ["one/q0", "two/q0"] if wrong == "line" else ["one/q0", "one/t", "two/t"] if wrong == "frames" else None
    records = load_records(tmp_path / "clean.jsonl")
    assert [r.id for r in records] == (kept or ["one/q0", "one/t", "two/q0", "two/t"])
    assert records[0].video == "film/clip0.mp4" or wrong is None
    if wrong:
        assert {"line": "a.jsonl:2: empty answer", "frames": "1 missing"}[wrong] in said


def test_damaged_frames_end_the_check_with_status_1():
    assert not check.Visuals(damaged={("a.mp4", False, None): "a.mp4: 2 of 16 frames"}).ok and check.Visuals().ok
