"""Records that are left out of training for their length are counted, named, and no others."""

import json
import re

import pytest

from tests.models import clip_lines, record, settings, turns, write_config, write_lines
from videollm import train
from videollm.common.config import ConfigError
from videollm.data import AnnotationError, filters, load_records, parse_record
from videollm.data.__main__ import main as check_data


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


# ---- too long for the model ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("allowed", "fits"), [(0.0, False), (0.28, False), (0.29, True), (1.0, True)])
def test_what_is_too_long_is_left_out_up_to_the_tolerated_share(allowed, fits):
    tokens = {0: 90, 5: 70}
    if fits:
        kept, left_out = filters.without_long(RECORDS, tokens, 64, allowed)
        assert kept == RECORDS[1:5] + RECORDS[6:] and [entry["tokens"] for entry in left_out] == [90, 70]
        return
    with pytest.raises(AnnotationError) as caught:
        filters.without_long(RECORDS, tokens, 64, allowed)
    said = caught.value.problems
    assert [line.split(": ")[0] for line in said] == [RECORDS[0].where, RECORDS[5].where]
    assert "90 tokens with the fewest frames, over data.max_length=64" in said[0] and "leave out 2 of 7" in said[0]


def test_a_run_of_nothing_but_long_records_is_refused():
    with pytest.raises(AnnotationError, match="leave out 1 of 1"):
        filters.without_long(RECORDS[:1], {0: 90}, 64, 1.0)
    assert filters.without_long([], {}, 64, 0.0) == ([], [])


def too_long_lines(count=15, bad=(9, 12)):
    lines = clip_lines(count)
    for k in bad:
        lines[k]["conversations"] = turns("<video>\n" + "when " * 300, "<span>")
    return lines


@pytest.mark.parametrize("kind", ["plain", "packed", "preference"])
def test_every_record_too_long_is_named_before_the_first_step(tmp_path, capsys, caplog, kind):
    lines, more = too_long_lines(), ["data.validation=[]"]
    more += ["data.pack=true"] if kind == "packed" else []
    if kind == "preference":
        lines = clip_lines(15)
        for k, line in enumerate(lines):
            worse = "so " * (500 if k in (9, 12) else 2) + "<span>"
            line["rejected"] = [{"factor": "f", "value": worse, "tgt": [0, 1]}]
        more += ["train.objective={name: d2vlm.fpo}"]
    config = ["--config", str(write_config(tmp_path, "text", lines=lines, steps=3)), *more]
    assert train.main(config) == 2
    said = capsys.readouterr().err
    assert all(f"train.jsonl:{number}: " in said for number in (10, 13)) and "train.jsonl:9: " not in said
    assert not (tmp_path / "run" / "log.jsonl").exists()
    assert train.main([*config, "data.max_bad_fraction=0.14"]) == 0
    entries = list(map(json.loads, (tmp_path / "run" / filters.FILE).read_text().splitlines()))
    assert [(entry["id"], entry["reason"]) for entry in entries] == [
        ("q9", "data.max_length"),
        ("q12", "data.max_length"),
    ]
    assert "2 records left out (data.max_length: 2)" in caplog.text


def test_questions_that_are_too_long_for_a_validation_are_named_before_the_first_step(tmp_path, capsys):
    lines = [too_long_lines(4, (1, 2))[i] | {"id": f"v{i}"} for i in range(4)]
    config = ["--config", str(write_config(tmp_path, "text", steps=2))]
    asked = write_lines(tmp_path / "asked.jsonl", lines)
    config += [f"data.validation=[{asked}]", "train.validate_every=2"]
    assert train.main(config) == 2
    said = capsys.readouterr().err
    assert all(f"asked.jsonl:{number}: 1" in said for number in (2, 3)) and "asked.jsonl:1: " not in said
    assert re.search(r"the model has room for \d+ beside its answer .* to leave out 2 of 4", said)
    assert not (tmp_path / "run" / "log.jsonl").exists()
    assert train.main([*config, "data.max_bad_fraction=0.5", "train.output=" + str(tmp_path / "other")]) == 0
    logged = map(json.loads, (tmp_path / "other" / "log.jsonl").read_text().splitlines())
    assert [entry["eval_unreadable"] for entry in logged if "eval_unreadable" in entry] == [2]


def test_what_is_trained_on_is_counted_at_the_start(tmp_path, capsys):
    lines = [*clip_lines(2), {"conversations": turns("hi", "hello")}, too_long_lines(1, (0,))[0] | {"id": "long"}]
    config = write_config(tmp_path, "text", lines=lines, steps=1)
    assert train.main(["--config", str(config), "data.validation=[]", "data.max_bad_fraction=0.5"]) == 0
    rows = [[cell.strip() for cell in line.split("\u2502")[1:3]] for line in capsys.readouterr().out.splitlines()]
    assert [r for r in rows if r and r[0] in ("about a video", "text only", "left out")] == [
        ["about a video", "2"], ["text only", "1"], ["left out", "1"],
    ]  # fmt: skip


def test_check_names_what_is_too_long_for_a_model(tmp_path, capsys):
    config = write_config(tmp_path, "text", lines=too_long_lines(4, (1,)), steps=1)
    given = ["check", "--annotations", str(tmp_path / "train.jsonl")]
    assert check_data(given) == 0
    assert train.main(["--config", str(config), "data.validation=[]", "data.max_bad_fraction=0.5"]) == 0
    capsys.readouterr()
    for model in (config, tmp_path / "run/final"):
        output = ["--output", str(tmp_path / "clean.jsonl")]
        assert check_data([*given, "--model", str(model), *output]) == 1
        said = capsys.readouterr().out
        assert f"1 records are too long for {model}" in said
        # 1,500 letters, one token each, and what the template and a frame need
        assert re.search(r"train\.jsonl:2: 1[5-7]\d\d tokens with the fewest frames, over data.max_length=1024", said)
        assert [r.id for r in load_records(tmp_path / "clean.jsonl")] == ["q0", "q2", "q3"]
        report = json.loads((tmp_path / "clean.jsonl.report.json").read_text())
        assert len(report["too_long"]) == 1 and report["left_out"] == [f"{tmp_path}/train.jsonl:2"]
        assert check_data([*given, "--model", str(model), "--max-length", "4096"]) == 0
    for model, says in (("no.yaml", "no.yaml"), (tmp_path, "no config.json")):
        assert check_data([*given, "--model", str(model)]) == 2
        assert "--model: " in (said := capsys.readouterr().err) and says in said
    assert check_data([*given, "--max-length", "9"]) == 2


def test_check_reads_as_the_config_does(tmp_path):
    """A span wholly behind the end is read by published code, and by a run with ``compatibility: published``."""
    behind = clip_lines(1)[0] | {"tgt": [50.0, 60.0]}
    config = write_config(tmp_path, "d2vlm", lines=[behind])
    given = ["check", "--annotations", str(tmp_path / "train.jsonl"), "--model", str(config)]
    assert check_data(given) == 1
    config.write_text(config.read_text() + "compatibility: published\n")
    assert check_data(given) == 0
