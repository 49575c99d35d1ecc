"""Published annotation files are read as they are: every expectation comes from the files themselves.

The rules: docs/published_systems.md, the data of D2VLM and DisTime. What is odd in a file is mended by default
(docs/annotations.md) and kept with ``raw_spans``; the same rules are applied here to the file's own numbers.
"""

import json
import re
import warnings

import pytest

from videollm.data import AnnotationError, draw_rejected, load_records, neutral_json, parse_record
from videollm.data.conversation import SpanMark, VisualMark
from videollm.data.published import to_classes
from videollm.data.record import spelled

MARK = re.compile("<evi>|<TIME_STAMP>")


def stored(path):
    if not path.is_file():
        pytest.skip(f"{path} is missing")
    return (
        [json.loads(line) for line in path.read_text().splitlines()]
        if path.suffix == ".jsonl"
        else json.loads(path.read_text())
    )


def spans_of(times):
    times = list(times or []) * (2 if len(times or []) == 1 else 1)
    return list(zip(times[::2], times[1::2], strict=True))


def mended(span, duration):
    return max(min(span), 0), min(max(span), duration)


def outside(span, duration):
    return max(span) < 0 or min(span) > duration


def parts_of(text, first):
    """A text as a turn's parts, its marks counted from ``first``."""
    pieces = MARK.split(text)
    marked = [part for k, piece in enumerate(pieces) for part in (piece, SpanMark(first + k))][:-1]
    return tuple(part for part in marked if part != "")


# ---- D2VLM -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def supervised(golden_dir):
    return golden_dir / "d2vlm" / "sft_annotations.json"


def test_d2vlm_answers_are_read_without_their_stage_and_their_spans_mended(supervised):
    lines, read = stored(supervised), 0
    for k, line in enumerate(lines, start=1):
        asked, told = spans_of(line.get("src")), spans_of(line.get("tgt"))
        if any(outside(span, line["duration"]) for span in asked + told):
            with pytest.raises(AnnotationError, match=f":item {k}: .*lies outside the video"):
                parse_record(line, k, supervised)
            continue
        try:
            record = parse_record(line, k, supervised)
        except AnnotationError as error:  # an odd stage, which only the letter keeps: test_d2vlm_letter.py
            assert "evidence stage" in str(error)
            continue
        assert list(record.spans_s) == [mended(span, line["duration"]) for span in asked + told]
        answer = line["conversations"][1]["value"].rpartition("</evi>")[2].lstrip()
        assert record.turns[1].parts == parts_of(answer, len(asked))
        assert [part for part in record.turns[0].parts if isinstance(part, VisualMark)] == [VisualMark(0)]
        assert ("reversed span" in record.odd) == any(start > end for start, end in asked + told)
        read += 1
    assert read, f"{supervised}: no record is read by default"


def test_what_is_mended_is_told_with_its_lines(supervised):
    lines = stored(supervised)
    spans = [[*spans_of(line.get("src")), *spans_of(line.get("tgt"))] for line in lines]
    if any(outside(span, line["duration"]) for line, of in zip(lines, spans, strict=True) for span in of):
        pytest.skip("a span of this folder is outside its video, so the file is refused")
    reversed_in = [str(k) for k, of in enumerate(spans, start=1) if any(start > end for start, end in of)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        load_records(supervised)
    told = " ".join(str(warning.message) for warning in caught)
    wanted = f"reversed span: {len(reversed_in)} (lines {', '.join(reversed_in)})"
    assert (wanted in told) if reversed_in else "reversed span" not in told


def test_raw_d2vlm_spans_and_questions_are_what_the_published_code_had(golden_dir, supervised):
    records, compared = load_records(supervised, raw_spans=True), 0
    for k, record in enumerate(records):
        path = golden_dir / "d2vlm" / f"sft_single_{k}.json"
        if path.is_file():
            official = json.loads(path.read_text())
            assert [[record.question]] == official["query"]
            assert list(record.spans_s) == spans_of(official["src"][0]) + spans_of(official["tgt"][0])
            compared += 1
    if not compared:
        pytest.skip(f"no sft_single_K.json is in {golden_dir / 'd2vlm'}")


# ---- preferences -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def preferred(golden_dir):
    return golden_dir / "d2vlm" / "fpo_annotations.json"


def test_published_records_are_written_as_they_were_read(preferred):
    for k, annotation in enumerate(stored(preferred), start=1):
        written, left_out = to_classes(neutral_json(parse_record(annotation, k, preferred, raw_spans=True)))
        del written["id"]
        for key in ("conversations", "tgt", "src"):  # the numbers of the classes are ours
            if key in annotation:
                assert list(written.pop(key).values()) == list(annotation.pop(key).values())
        assert written == annotation and left_out == []


def test_only_the_published_qwen_class_is_marked_text_only(preferred):
    for line, record in zip(stored(preferred), load_records(preferred, raw_spans=True), strict=True):
        kinds = [name.split("_")[2] for name in line["conversations"] if name != "chosen"]
        assert [answer.factor for answer in record.rejected] == kinds
        assert [answer.text_only for answer in record.rejected] == [kind == "qwen" for kind in kinds]


def test_drawing_one_class_a_record_repeats_the_published_draw(golden_dir, preferred):
    drawn = draw_rejected(load_records(preferred, raw_spans=True))
    packed = stored(golden_dir / "d2vlm" / "fpo_packed.json")["selected"]
    assert [r.rejected[0].factor for r in drawn] == [p["cls"].split("_")[2] for p in packed]


# ---- DisTime ---------------------------------------------------------------------------------------------------------


def test_distime_marks_have_the_published_times_in_order_over_all_turns(golden_dir):
    samples = sorted(path for path in (golden_dir / "distime" / "data").glob("*.json"))
    if not samples:
        pytest.skip(f"no sample is in {golden_dir / 'distime' / 'data'}")
    for path in samples:
        sample = json.loads(path.read_text())
        line, kind = sample["annotation"], sample["data_type"]
        record = parse_record(line, 1, path, raw_spans=True)
        images = line.get("image") or []
        images = [images] if isinstance(images, str) else images
        assert record.images == (tuple(images) if kind == "image" else ())
        assert record.video == (line["video"] if kind == "video" else None)
        marked = any(MARK.search(turn["value"]) for turn in line["conversations"])
        assert list(record.spans_s) == (spans_of(sample["time_gt"]) if marked else [])
        marks = [part.span for turn in record.turns for part in turn.parts if isinstance(part, SpanMark)]
        assert marks == list(range(len(record.spans_s)))
        for turn, said in zip(record.turns, line["conversations"], strict=True):
            told = MARK.sub("<span>", said["value"])
            assert re.sub("^(<video>|<image>)\n", "", spelled(turn)) == re.sub("^(<video>|<image>)\n", "", told)


def test_the_published_distime_file_is_read_whole(golden_dir):
    path = golden_dir / "distime" / "data" / "annotations.jsonl"
    lines = stored(path)
    records = load_records(path, raw_spans=True)
    assert [len(record.turns) for record in records] == [len(line["conversations"]) for line in lines]
    assert [record.has_answer for record in records] == [line["conversations"][-1]["from"] == "gpt" for line in lines]
