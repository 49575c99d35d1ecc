"""A file is whole or not there, a bad line is named with its place, a torn one left out where that is asked."""

import json

import pytest

from videollm.common.config import ConfigError
from videollm.common.files import check_folder, check_writable, json_lines, json_text, new_folder, replacing, write_text


@pytest.mark.parametrize("shared", [False, True])
def test_a_broken_write_leaves_the_old_file_and_nothing_beside_it(tmp_path, shared):
    path = tmp_path / "a.txt"
    write_text(path, "old é\n", shared=shared)
    with pytest.raises(KeyboardInterrupt), replacing(path, shared=shared) as fresh:
        fresh.write_text("half of the n")
        raise KeyboardInterrupt
    assert path.read_text(encoding="utf-8") == "old é\n" and list(tmp_path.iterdir()) == [path]


def test_what_a_command_reads_is_not_written_over(tmp_path):
    path, other = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    path.write_text("{}\n")
    (tmp_path / "link.jsonl").symlink_to(path)
    check_writable(other, "--output", [path])
    for read in ([path], [other, str(path)], [tmp_path / "link.jsonl"]):
        with pytest.raises(ConfigError, match=r"--output: .*a\.jsonl is read, too, and would be lost; choose another"):
            check_writable(path, "--output", read)
    assert path.read_text() == "{}\n"


def test_rows_come_back_from_their_text_with_the_numbers_of_their_lines(tmp_path):
    rows = [{"a": "line\u2028break é"}, {"b": 1.5}]
    (tmp_path / "a.jsonl").write_text("\n" + json_text(rows), encoding="utf-8")
    assert list(json_lines(tmp_path / "a.jsonl")) == [(2, rows[0]), (3, rows[1])]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b'{"a": 1}\n{"a" 2}\n', r"a\.jsonl:2: not JSON: Expecting ':' delimiter, column 6"),
        (b"[1]\n", r"a\.jsonl:1: expected an object, got list"),
        (b'{"a": "\xff"}\n', r"a\.jsonl:1: 'utf-8' codec can't decode"),
        (b"[" * 100_000 + b"\n", r"a\.jsonl:1: more than 100 lists and objects within each other"),
        (b'{"a": [{"b\\ud83d": 1}]}\n', r"a\.jsonl:1: half a character, \\ud83d"),
        (b'{}\n{"a": "\\ude00\\ud83d"}\n', r"a\.jsonl:2: half a character, \\ude00"),
        (b'{"a": "\xed\xa0\xbd"}\n', r"a\.jsonl:1: 'utf-8' codec can't decode"),
        (b'{"a": 1}\n{"a": ', r"a\.jsonl:2: not JSON"),
    ],
)
def test_a_bad_line_is_named(tmp_path, text, says):
    (tmp_path / "a.jsonl").write_bytes(text)
    with pytest.raises(ValueError, match=says):
        list(json_lines(tmp_path / "a.jsonl"))


def test_a_torn_last_line_is_left_out_and_other_bad_ones_are_told(tmp_path):
    whole, told = [{"a": 1}, {"a": 2}], []
    (tmp_path / "a.jsonl").write_text(json.dumps(whole[0]) + "\nbad\n" + json.dumps(whole[1]) + "\n" + '{"a": 3}')
    found = json_lines(tmp_path / "a.jsonl", lambda number, why: told.append((number, why[:8])), torn=True)
    assert [row for _, row in found] == whole and told == [(2, "not JSON")]


def test_what_is_no_folder_is_an_error_with_the_key(tmp_path):
    check_folder(tmp_path, "--videos")
    with pytest.raises(ConfigError, match=r"^data\.videos: .*x is not a folder; give the one that the paths are below"):
        check_folder(tmp_path / "x", "data.videos")


def test_a_new_folder_takes_its_name_when_it_is_whole_and_touches_no_other(tmp_path):
    own = tmp_path / "out.tmp"
    own.mkdir()
    (own / "mine.txt").touch()
    with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "out") as fresh:
        (fresh / "half").touch()
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["out.tmp"]
    with new_folder(tmp_path / "out") as fresh:
        (fresh / "whole").touch()
    assert (tmp_path / "out/whole").exists() and (own / "mine.txt").exists()
