"""Records that are left out of training for their length are counted, named, and no others."""

import json

import pytest

from tests.models import record, settings, turns, write_config, write_lines
from videollm import train
from videollm.common.config import ConfigError
from videollm.data import filters, parse_record


def line(name, duration=None, answer="yes"):
    keys = {"id": name, "video": "a.mp4", "conversations": turns("<video>\nis it?", answer)}
    return keys | ({"duration": duration} if duration else {})


RECORDS = [
    record(line("short", 4.9)),
    record(line("first", 5)),
    record(line("last", 350)),
    record(line("long", 350.1)),
    record(line("unknown")),
    record(line("wordy", 20, "a b c d")),
    record({"id": "text", "conversations": turns("hi", "one two three")}),
]


def test_the_limits_are_inside_and_an_unknown_length_passes():
    kept, left_out = filters.wanted(RECORDS, (5, 350), 3)
    assert [r.id for r in kept] == ["first", "last", "unknown", "text"]
    assert [(entry["id"], entry["reason"]) for entry in left_out] == [
        ("short", "data.duration_s"), ("long", "data.duration_s"), ("wordy", "data.max_answer_words"),
    ]  # fmt: skip
    assert filters.told(left_out) == "data.duration_s: 2, data.max_answer_words: 1"
    assert left_out[0]["where"] == RECORDS[0].where


def test_without_the_settings_nothing_is_left_out():
    assert filters.wanted(RECORDS) == (RECORDS, [])


def test_a_mark_counts_as_a_word_and_the_evidence_stage_does_not():
    answer = {"tgt": [1, 2], "conversations": turns("<video>\nwhen?", "<evi></evi> At <evi> s")}
    marked = record(line("m", 20) | answer)
    assert filters.wanted([marked], max_answer_words=3)[0] == [marked]
    stage = line("m", 20) | {"tgt": [1, 2], "conversations": turns("<image>\nwhen?", "<evi> </evi> At <evi> s")}
    raw = parse_record(stage, 1, "lines.jsonl", raw_spans=True)
    assert filters.wanted([raw], max_answer_words=5)[0] == [raw]  # to the letter it counts, as published
    with pytest.raises(ConfigError, match="max_answer_words: 1"):
        filters.wanted([raw], max_answer_words=4)


def test_no_record_left_is_an_error_that_names_the_settings():
    with pytest.raises(ConfigError, match=r"data.duration_s, .*no record passes \(data.duration_s: 1\)"):
        filters.wanted(RECORDS[:1], (5, 350))


@pytest.mark.parametrize("limits", [[5], [350, 5], [-1, 5], [1, 2, 3]])
def test_bad_limits_name_their_key(limits):
    with pytest.raises(ConfigError, match=r"data.duration_s: .* is not \[shortest, longest\]"):
        settings("internvl", "text", data={"duration_s": limits})


def test_training_counts_and_names_what_it_leaves_out(tmp_path, caplog):
    config = write_config(tmp_path, "text", steps=1)
    long = {"id": "long", "video": "clip0.mp4", "duration": 400, "conversations": turns("<video>\nx?", "y")}
    good = {"id": "good", "video": "clip0.mp4", "duration": 4, "conversations": turns("<video>\nx?", "y")}
    write_lines(tmp_path / "train.jsonl", [good, long])
    assert train.main(["--config", str(config), "data.duration_s=[2, 350]", "data.validation=[]"]) == 0
    (entry,) = map(json.loads, (tmp_path / "run" / filters.FILE).read_text().splitlines())
    assert entry["id"] == "long" and entry["where"].endswith("train.jsonl:2")
    assert "1 records left out (data.duration_s: 1)" in caplog.text
