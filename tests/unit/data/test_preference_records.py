"""Preference records: our own layout, the published one and the packed files; what is read, written, and an error."""

import json

import pytest
import torch
from transformers import AutoTokenizer

from d2vlm.preference import main as make_preferences
from d2vlm.preferences.packed import read_packed
from tests.annotated import parse, problem
from videollm.data import AnnotationError, load_records, neutral_json, parse_record, validate
from videollm.data.__main__ import main
from videollm.data.conversation import SpanMark
from videollm.data.published import to_classes
from videollm.data.record import as_annotated

WORSE = {"factor": "shift", "value": "At <span>.", "tgt": [5, 8]}


def item(*rejected, **keys):
    """A question about a span, answered by a span, with rejected answers."""
    turns = [{"from": "human", "value": "After <span>?"}, {"from": "gpt", "value": "At <span>."}]
    own = {"video": "v.mp4", "duration": 10, "src": [1, 2], "tgt": [3, 4], "conversations": turns}
    return own | {"rejected": list(rejected)} | keys


def classes(**keys):
    """A record in the published layout, whose class ``reject_0_shift`` has the span [5, 8]."""
    human = {"from": "human", "value": "<image>\nWhen?"}
    talk = [human, {"from": "gpt", "value": "<evi></evi> At <evi>."}]
    talks = {"chosen": talk, "reject_0_shift": talk} | keys.pop("talks", {})
    tgt = {"chosen": [3, 4], "reject_0_shift": [5, 8]} | keys.pop("times", {})
    return {"task": "tvg", "source": "x", "video": "v.mp4", "duration": 10, "conversations": talks, "tgt": tgt} | keys


# ---- reading ---------------------------------------------------------------------------------------------------------


def test_rejected_answer_takes_the_place_of_the_chosen_one():
    record = parse(item(WORSE, {"factor": "text", "value": "Never."}))
    shifted, never = map(record.answered_by, record.rejected)
    assert record.spans_s == ((1, 2), (3, 4))
    assert shifted.turns[-1].parts == ("At ", SpanMark(1), ".") and shifted.spans_s == ((1, 2), (5, 8))
    assert never.turns[-1].parts == ("Never.",) and never.spans_s == ((1, 2),)
    assert shifted.turns[0] == record.turns[0] and shifted.rejected == ()
    assert [answer.factor for answer in record.rejected] == ["shift", "text"]


def test_rejected_spans_are_mended_and_evidence_stages_left_out_as_in_every_answer():
    record = parse(item({"factor": "a", "value": "<evi></evi> At <evi>.", "tgt": [12, 6]}))
    assert record.rejected[0].spans_s == ((6, 10),)
    assert record.rejected[0].turn.parts == ("At ", SpanMark(1), ".")
    assert record.odd == ("reversed span", "span partly outside the video")
    raw = parse(item({"factor": "a", "value": "At <span>.", "tgt": [12, 6]}), raw_spans=True)
    assert raw.rejected[0].spans_s == ((12, 6),)


def test_a_record_without_the_key_is_no_preference_record():
    annotation = item()
    del annotation["rejected"]
    assert parse(annotation).rejected == ()


def test_writing_and_reading_a_record_again_gives_the_same_one():
    record = parse(item(WORSE, {"factor": "text", "value": "Never."}, id="a"))
    assert parse(json.loads(json.dumps(neutral_json(record)))) == record


@pytest.mark.parametrize(
    ("rejected", "says"),
    [
        ([], "an empty list instead of rejected answers (rejected)"),
        ({}, "an object instead of rejected answers (rejected)"),
        (["At"], "a string instead of an object (rejected[0])"),
        ([WORSE, {"factor": "a", "value": " "}], "empty (rejected[1].value)"),
        ([{"factor": "a", "value": "</evi> "}], "empty answer (rejected[0].value)"),
        ([{"value": "x"}], "missing (rejected[0].factor)"),
        ([WORSE | {"factr": "a"}], "unknown key (rejected[0].factr)"),
        ([WORSE | {"tgt": []}], "more span marks than spans: 1 for 0 spans (rejected[0].tgt)"),
        ([WORSE | {"tgt": None}], "more span marks than spans: 1 for 0 spans (rejected[0].tgt)"),
        ([WORSE | {"tgt": [1, 2, 3, 4]}], "fewer span marks than spans: 1 for 2 spans (rejected[0].tgt)"),
        ([WORSE | {"tgt": [1]}], "an odd number of values, 1 (rejected[0].tgt)"),
        ([WORSE | {"tgt": [[1, 2]]}], "nested spans (rejected[0].tgt)"),
        ([WORSE | {"tgt": [1, float("nan")]}], "nan is not a time (rejected[0].tgt[1])"),
        ([WORSE | {"tgt": [11, 12]}], "span [11, 12] lies outside the video"),
        ([WORSE | {"tgt": [3, 4]}], "the same as the chosen answer (rejected[0])"),
        ([WORSE | {"tgt": [4, 3], "value": " At  <span>."}], "the same as the chosen answer (rejected[0])"),
        ([WORSE | {"value": "<evi><evi></evi> At <evi>."}], "2 span marks in the evidence stage and 1 in the answer"),
        ([WORSE | {"text_only": True}], "span marks in a pair that is text only (rejected[0].text_only)"),
        ([WORSE | {"text_only": "yes"}], "a string instead of true or false (rejected[0].text_only)"),
    ],
)
def test_bad_rejected_answer_is_an_error_with_its_place(rejected, says):
    assert says in problem(item() | {"rejected": rejected})


def test_rejected_answers_without_a_chosen_one_are_an_error():
    asked = item(WORSE, tgt=None)
    del asked["conversations"][1]
    assert "rejected answers without a chosen one (rejected)" in problem(asked)


# ---- the published layout --------------------------------------------------------------------------------------------


def test_published_classes_are_read_as_rejected_answers():
    record = parse(classes())
    (answer,) = record.rejected
    assert (answer.factor, answer.spans_s, answer.text_only) == ("shift", ((5, 8),), False)
    assert record.spans_s == ((3, 4),) and record.turns[1].parts == ("At ", SpanMark(0), ".")


TALK = [{"from": "human", "value": "When?"}, {"from": "gpt", "value": "No."}]
SAME = classes()["conversations"]["chosen"]


@pytest.mark.parametrize(
    ("annotation", "says"),
    [
        (classes(conversations={"reject_0_shift": TALK}), "no chosen answer (conversations)"),
        (classes(conversations={"chosen": TALK}, tgt=None), "no rejected answer (conversations)"),
        (classes(talks={"shift": SAME}, times={"shift": [5, 6]}), "unknown class 'shift' (conversations)"),
        (classes(talks={"reject_0": SAME}), "unknown class 'reject_0' (conversations)"),
        (classes(times={"reject_1_swap": [1, 2]}), "unknown class 'reject_1_swap' (tgt)"),
        (classes(talks={"reject_0_qwen": SAME}), "class 'reject_0_qwen' in a record of task 'tvg' (conversations)"),
        (classes(talks={"reject_0_repeat": SAME}), "only dvc, slc, tvc, rvc may have it"),
        (classes(talks={"reject_0_shift": TALK}), "its question is not the one of the chosen answer"),
        (classes(talks={"reject_0_shift": SAME * 2}), "not one question and one answer (conversations.reject_0_shift)"),
        (classes(tgt=[3, 4]), "not one list a class, as the conversations are (tgt)"),
        (classes(tgt={"chosen": [3, 4]}), "more span marks than spans: 1 for 0 spans (rejected[0].tgt)"),
        (classes(times={"reject_0_shift": [3, 4]}), "the same as the chosen answer (rejected[0])"),
        (classes(rejected=[WORSE]), "both classes and a list of rejected answers (rejected)"),
    ],
)
def test_bad_published_record_is_an_error(annotation, says):
    assert says in problem(annotation)


def test_what_the_published_layout_cannot_hold_is_named():
    line = neutral_json(parse(item(WORSE, {"factor": "text", "value": "Never."}, task="tvg")))
    written, left_out = to_classes(line)
    assert list(written["conversations"]) == ["chosen", "reject_0_shift"] and written["src"] == {"chosen": [1, 2]}
    assert left_out == ["rejected[1] (text): an answer without a span mark, and no task rvc"]
    line["conversations"] = line["conversations"] * 2
    assert to_classes(line)[0] is None


# ---- packed files ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer(golden_dir):
    return AutoTokenizer.from_pretrained(golden_dir / "d2vlm" / "lm_tokenizer")


@pytest.fixture(scope="module")
def stored(golden_dir):
    """(annotation, class, the record as the published script stores it packed) for every class."""
    annotations = json.loads((golden_dir / "d2vlm" / "fpo_annotations.json").read_text())
    packed = json.loads((golden_dir / "d2vlm" / "fpo_packed.json").read_text())["all_classes"]
    found = []
    for annotation, by_class in zip(annotations, packed, strict=True):
        for name, response in by_class.items():
            kept = {k: v for k, v in annotation.items() if k not in ("conversations", "tgt", "src")}
            kept |= {key: annotation[key]["chosen"] for key in ("tgt", "src") if key in annotation}
            kept["tgt_reject"] = annotation.get("tgt", {}).get(name)
            kept["conversations"] = [annotation["conversations"]["chosen"][0], {"from": "gpt", "value": ""}]
            found.append((annotation, name, kept | {"processed_response": response | {"class": name}}))
    return found


def test_packed_answers_become_the_text_they_were_packed_from(stored, tokenizer, tmp_path):
    torch.save([packed for _, _, packed in stored], tmp_path / "packed.pt")
    unpacked = read_packed(tmp_path / "packed.pt", tokenizer)
    assert len(unpacked) == len(stored) > 0
    for k, (line, (annotation, name, _)) in enumerate(zip(unpacked, stored, strict=True), start=1):
        assert line["conversations"] == annotation["conversations"]["chosen"]
        assert line["rejected"][0]["value"] == annotation["conversations"][name][1]["value"]
        assert line["rejected"][0]["tgt"] == annotation.get("tgt", {}).get(name)
        assert parse_record(line, k, "packed.pt", raw_spans=True).rejected[0].text_only == name.endswith("qwen")


def test_packed_answers_are_passed_on_to_the_letter(tokenizer, tmp_path):
    """Blanks between the tokens of a stage were packed; ``compatibility: published`` trains on them."""
    spoken = {"chosen": "<evi> </evi> At <evi>.", "reject": "<evi> </evi>\nIn <evi>."}
    stop = tokenizer.convert_tokens_to_ids("<|end|>")
    ids = {side: [*tokenizer(text, add_special_tokens=False).input_ids, stop] for side, text in spoken.items()}
    event = {side: {"text": {"input_index": [-1], "logit_token_id": of}} for side, of in ids.items()}
    packed = {"class": "reject_0_shift", "full_token_ids": sum(ids.values(), []), "conflict_events": [event]}
    item = {"task": "tvg", "video": "v.mp4", "duration": 9, "tgt": [1, 2], "tgt_reject": [8, 40]}
    item |= {"conversations": [{"from": "human", "value": "<image>\nWhen?"}], "processed_response": packed}
    torch.save([item], tmp_path / "packed.pt")
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    given = ["--packed", str(tmp_path / "packed.pt"), "--tokenizer", str(tmp_path / "tokenizer"), "per_record=0"]
    assert make_preferences([*given, "--output", str(tmp_path / "out.jsonl")]) == 0
    (record,) = load_records(tmp_path / "out.jsonl", raw_spans=True)
    told = [as_annotated(record.turns[1]), as_annotated(record.rejected[0].turn)]
    assert told == list(spoken.values())
    assert [tokenizer(text, add_special_tokens=False).input_ids for text in told] == [of[:-1] for of in ids.values()]
    assert record.rejected[0].spans_s == ((8, 40),)


def test_packed_file_with_code_in_it_is_refused(tokenizer, tmp_path):
    torch.save([print], tmp_path / "packed.pt")
    with pytest.raises(AnnotationError, match=r"packed\.pt: cannot be read"):
        read_packed(tmp_path / "packed.pt", tokenizer)


def test_every_record_that_is_not_packed_as_published_is_named(stored, tokenizer, tmp_path):
    good = stored[0][2]
    response = good["processed_response"]
    other_ids = json.loads(json.dumps(response["conflict_events"]))
    other_ids[0]["chosen"]["text"]["logit_token_id"].insert(0, 98)  # the blank that a piece of text begins with
    bad = [
        (good | {"processed_response": None}, "not packed"),
        (good | {"processed_response": response | {"conflict_events": []}}, "not packed as published"),
        (good | {"processed_response": response | {"class": "shift"}}, "unknown class 'shift'"),
        (good | {"processed_response": response | {"conflict_events": other_ids}}, "give the tokenizer"),
    ]
    torch.save([good, *(packed for packed, _ in bad)], tmp_path / "packed.pt")
    with pytest.raises(AnnotationError) as caught:
        read_packed(tmp_path / "packed.pt", tokenizer)
    assert len(caught.value.problems) == len(bad)
    for k, (problem_line, (_, says)) in enumerate(zip(caught.value.problems, bad, strict=True), start=2):
        assert f"packed.pt:item {k}: " in problem_line and says in problem_line


# ---- the check command -----------------------------------------------------------------------------------------------


def test_check_counts_preference_records_by_factor_and_lists_bad_ones(tmp_path, capsys):
    lines = [item(WORSE, {"factor": "text", "value": "Never."}), item(WORSE), item(WORSE | {"tgt": [3, 4]})]
    path = tmp_path / "set.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    report = validate(path)
    assert report.rejected == {"shift": 2, "text": 1} and report.preferences == 2
    assert main(["check", "--annotations", str(path)]) == 1
    shown = capsys.readouterr().out
    assert "2 preference records, 3 rejected answers" in shown and "  factor shift: 2\n" in shown
    assert f"{path}:3: the same as the chosen answer" in shown


def test_a_packed_file_is_named_with_the_command_that_reads_it(tmp_path, repository):
    with pytest.raises(AnnotationError, match=r"docs/data\.md tells"):
        load_records(tmp_path / "packed.pt")
    assert "d2vlm.preference --packed" in (repository / "docs/data.md").read_text()
