"""Annotation files: how they are read, how everything bad in them is reported, and the check command."""

import gzip
import json
import pickle
import re
import subprocess
import sys
import warnings

import pytest

from videollm.data import AnnotationError, load_records, read_annotations, validate
from videollm.structures import SpanMark, VisualMark


def item(*values, **keys):
    """A record with a 10 s video whose turns alternate between the user and the assistant."""
    speakers = ("human", "gpt")
    turns = [{"from": speakers[k % 2], "value": value} for k, value in enumerate(values)]
    return {"video": "v.mp4", "duration": 10, "conversations": turns} | keys


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


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.jsonl.gz", "a.json.gz"])
def test_every_file_form_gives_the_same_records(tmp_path, name):
    items = [item("q é", "a", id="x"), item("when?", "<span>", tgt=[1, 2])]
    text = json.dumps(items, ensure_ascii=False) if ".json." in name + "." else None
    text = text or "\n\n".join(json.dumps(x, ensure_ascii=False) for x in items)
    data = text.encode("utf-8")
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    assert read_annotations(tmp_path / name) == items
    records = load_records(tmp_path / name)
    assert [r.id for r in records] == ["x", "a:2" if ".json." in name + "." else "a:3"]
    assert records[1].spans_s == ((1, 2),)


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("a.json", b'[{"a": 1},\n {"a" 2}]', "a.json:2: not JSON: Expecting ':' delimiter, column 7"),
        ("a.json", b'{"a": 1}\n{"a": 2}\n', "name it .jsonl"),
        ("a.json", b'{"a": 1}', "holds an object"),
        ("a.json", b"[]", "holds no record"),
        ("a.jsonl", b"\n \n", "holds no record"),
        ("a.jsonl", b'{"a": 1}\n{"a": "\xff"}', "a.jsonl:2: not JSON: 'utf-8' codec can't decode"),
        ("a.csv", b"q,a", "not an annotation file"),
        ("a.jsonl.gz", b"{}", "cannot be read: Not a gzipped file"),
        ("a.jsonl.gz", gzip.compress(b"{}")[:-9], "cannot be read: Compressed file ended"),
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

    (tmp_path / "v.mp4").touch()
    good = check(item("q", "a", task="qa"))
    assert (good.returncode, good.stderr) == (0, "")
    assert "task qa, source (none): 1 records, 0 spans" in good.stdout and "no bad line" in good.stdout
    bad = check(item("q", "a"), item("q", ""))
    assert bad.returncode == 1 and "a.jsonl:2: empty answer (conversations[1])" in bad.stdout


# ---- published files -------------------------------------------------------------------------------------------------


@pytest.mark.golden
def test_published_d2vlm_annotations_are_read_as_they_are(golden_dir, tmp_path):
    path = golden_dir / "d2vlm" / "sft_annotations.json"
    with pytest.warns(UserWarning, match="reversed span: 1 .lines 5.*zero length: 1 .lines 5"):
        records = load_records(path)
    assert records[0].spans_s == ((1, 3), (4.5, 7.5), (9, 12))
    assert records[0].turns[1].parts[:4] == (SpanMark(0), ", cut the onion. ", SpanMark(1), ", fry the egg. ")
    assert records[1].spans_s == ((2, 5), (6.2, 10))
    assert records[2].turns[1].parts == ("The person opens the door.",)
    assert records[4].spans_s == ((0, 1), (3, 7), (5, 8), (2, 2))
    assert records[5].turns[0].parts == ("Find the event: add the salt.\n", VisualMark(0))
    for k, record in enumerate(load_records(path, raw_spans=True)):
        if (single := golden_dir / "d2vlm" / f"sft_single_{k}.json").exists():
            official = json.loads(single.read_text())
            assert [[record.question]] == official["query"]
            seconds = [t for span in record.spans_s for t in span]
            assert seconds == (official["src"][0] or []) + (official["tgt"][0] or [])


@pytest.mark.golden
def test_published_distime_annotations_are_read_as_they_are(golden_dir):
    moment, dense, no_time, turns, image, text = load_records(golden_dir / "distime" / "data" / "annotations.jsonl")
    assert moment.spans_s == ((11.39, 31.65),) and len(dense.spans_s) == 5 and no_time.spans_s == ()
    assert turns.spans_s == ((12, 30), (40, 61.5), (70, 71))
    assert turns.turns[0].parts == (VisualMark(0), "Describe the event at ", SpanMark(0), ".")
    assert (image.video, image.images, image.turns[0].parts[0]) == (None, ("img.png",), VisualMark(0))
    assert (text.video, text.images, text.turns[0].role) == (None, (), "system")
