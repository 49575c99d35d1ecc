"""Rejected answers by factor: what each one changes, that none equals the chosen answer, and the command."""

import json
from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from d2vlm.preference import Mix, PreferenceOptions, add_rejected, main
from d2vlm.preferences.factors import FACTORS, tiou, wording_of
from d2vlm.preferences.wording import take_apart
from tests.preferences import DENSE, OTHER_VIDEO, TIMES, made, record
from videollm.common.config import ConfigError, build
from videollm.data import load_records, neutral_json, parse_record

# ---- an answer taken apart -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (DENSE, [("", ", cut the red onion"), ("", ", fry the egg"), ("", ", close the fridge")]),
        ("Steps: <span> cut . <span> fry .", [("", " cut"), ("", " fry")]),
        ("She cuts at <span>. Then she fries at <span>.", [("She cuts at ", ""), ("Then she fries at ", "")]),
        ("<span> cut it, <span> fry it", [("", " cut it"), ("", " fry it")]),
        ("She cuts at <span>, then she fries at <span>.", [("She cuts at ", ""), ("she fries at ", "")]),
        ("It happens at <span>, <span>, and <span>.", [("It happens at ", ""), ("", ""), ("", "")]),
        ("Yes. It happens at <span> .", [("It happens at ", "")]),
    ],
)
def test_words_go_to_the_event_that_they_tell_of(text, told):
    wording = take_apart(text, [(k, k + 1.0) for k in range(text.count("<span>"))])
    assert [(event.before, event.after) for event in wording.events] == told
    assert wording.text == text


TEXT = st.text(st.sampled_from("ab A.,;:!?\n "), max_size=12)


@given(st.lists(TEXT, min_size=1, max_size=5))
def test_taken_apart_and_put_together_any_answer_is_the_same(pieces):
    text, spans = "<span>".join(pieces), [(float(k), k + 1.0) for k in range(len(pieces) - 1)]
    wording = take_apart(text, spans)
    assert wording.text == text and wording.spans == tuple(spans)


def test_marks_and_spans_must_be_as_many():
    with pytest.raises(ValueError, match="1 marks for 0 spans"):
        take_apart("<span>", [])


@pytest.mark.parametrize(
    ("text", "keep", "result"),
    [
        ("It happens at <span>, <span>, and <span>.", [0, 2], "It happens at <span>, and <span>."),
        ("It happens at <span>, <span>, and <span>.", [1], "It happens at <span>."),
        ("It happens at <span>.", [0, 0], "It happens at <span> and <span>."),
        ("<span> cut .", [0, 0], "<span> cut . <span> cut ."),
        (DENSE, [2, 0], "<span>, close the fridge. <span>, cut the red onion."),
    ],
)
def test_other_events_make_a_sentence_of_the_same_kind(text, keep, result):
    wording = take_apart(text, [(k, k + 1.0) for k in range(text.count("<span>"))])
    changed = wording.with_events([wording.events[k] for k in keep])
    assert changed.text == result and changed.spans == tuple((k, k + 1.0) for k in keep)


# ---- when ------------------------------------------------------------------------------------------------------------

SPANS = st.tuples(st.floats(0, 30), st.floats(0.5, 10)).map(lambda pair: [round(pair[0], 1), round(sum(pair), 1)])


@given(SPANS, st.sampled_from(["shift", "stretch", "random"]), st.integers(0, 10**6))
def test_moved_spans_are_in_the_video_and_within_the_allowed_tiou(span, name, seed):
    wording = made(name, record("At <span>.", span, task="x"), seed=seed, iou=(0.1, 0.6))
    if wording is not None:
        ((start, end),) = wording.spans
        assert 0 <= start < end <= 40
        assert 0.1 <= tiou((start, end), tuple(span)) <= 0.6
        assert wording.text == "At <span>."


def test_shift_keeps_the_length_and_stretch_changes_it_by_the_given_factor():
    source = record("At <span>.", [18, 22], task="x")
    for seed in range(20):
        (shifted,) = made("shift", source, seed=seed, shift=(0.5, 1.0)).spans
        assert shifted[1] - shifted[0] == pytest.approx(4, abs=0.02)
        assert 2 - 0.02 <= abs(shifted[0] - 18) <= 4 + 0.02
        (stretched,) = made("stretch", source, seed=seed, stretch=(2, 3)).spans
        factor = (stretched[1] - stretched[0]) / 4
        assert 2 - 0.02 <= max(factor, 1 / factor) <= 3.1


def test_the_share_of_moved_events_is_as_configured():
    source = record(DENSE, TIMES)
    for share, count in ((0.1, 1), (0.66, 2), (1.0, 3)):
        wording = made("random", source, events=share)
        assert sum(a != b for a, b in zip(wording.spans, source.spans_s, strict=True)) == count


def test_no_span_of_a_list_is_moved_onto_another_true_one():
    source = record("It happens at <span> and <span>.", [5, 10, 20, 25], task="x")
    for seed in range(50):
        spans = made("random", source, seed=seed, iou=(0.0, 0.2)).spans
        (moved,) = set(spans) - set(source.spans_s)
        assert max(tiou(moved, true) for true in source.spans_s) <= 0.2


def test_swap_exchanges_two_spans_of_told_events():
    wording = made("swap", record(DENSE, TIMES))
    assert wording.text == DENSE and sorted(wording.spans) == [(1, 4), (6, 10), (12, 20)]
    assert wording.spans != ((1, 4), (6, 10), (12, 20))


def test_swap_gives_a_single_event_the_span_of_another_record_of_its_video():
    asked = record("At <span>.", [1, 4], task="moment")
    assert made("swap", asked, record("At <span>.", [6, 10], task="moment", line=3)).spans == ((6, 10),)
    assert made("swap", asked, record("At <span>.", [1, 5], task="moment", line=3)) is None  # almost the same span


# ---- which events, which words ---------------------------------------------------------------------------------------


def test_missing_leaves_one_event_out_with_its_span():
    source = record(DENSE, TIMES)
    wording = made("missing", source)
    assert len(wording.events) == 2 and set(wording.events) < set(wording_of(source).events)
    assert made("missing", record("At <span>.", [1, 2])) is None


def test_repeated_tells_one_event_again():
    source = record(DENSE, TIMES)
    wording = made("repeated", source)
    assert len(wording.events) in (4, 5) and set(wording.events) == set(wording_of(source).events)


def test_spurious_event_has_words_of_another_video_and_stands_where_its_time_belongs():
    for seed in range(10):
        source = record(DENSE, TIMES)
        wording = made("spurious", source, seed=seed)
        (new,) = set(wording.events) - set(wording_of(source).events)
        assert new.after in (", wax the ski", ", brush the ski")
        assert all(tiou(new.span, true) <= 0.5 for true in source.spans_s)
        assert list(wording.spans) == sorted(wording.spans)


def test_order_changes_places_but_no_event():
    source = record(DENSE, TIMES)
    wording = made("order", source)
    assert set(wording.events) == set(wording_of(source).events) and wording.events != wording_of(source).events
    assert made("order", record(DENSE, TIMES[::-1])) is None  # was not in the order of time before


def test_wording_takes_the_words_of_another_event_of_the_video_and_foreign_of_another_video():
    source = record(DENSE, TIMES)
    own = {event.after for event in wording_of(source).events}
    swapped, foreign = made("wording", source), made("foreign", source)
    assert {event.after for event in swapped.events} < own
    assert len({event.after for event in foreign.events} - own) == 1
    assert swapped.spans == foreign.spans == source.spans_s


def test_an_answer_without_spans_gets_another_answer():
    one, two = record("The door opens.", task="rvc"), record("The man sleeps.", task="rvc", line=3)
    three = record("A cat jumps.", task="rvc", video="c.mp4", line=4)
    assert made("wording", one, two, three).text == "The man sleeps."
    assert made("foreign", one, two, three).text == "A cat jumps."
    assert made("shift", one, two, three) is None


def test_attribute_swaps_one_phrase_for_another_of_its_group():
    assert made("attribute", record("<span>, Red thing.", [1, 2])).text.split()[1] in {
        word.capitalize() for word in PreferenceOptions().attributes[0] if word != "red"
    }
    moved = made("attribute", record("<span> it is moving left.", [1, 2])).text
    assert moved.split("it is ")[1] in ("moving right.", "moving up.", "moving down.", "growing.", "shrinking.")
    assert made("attribute", record("<span>, a reddish thing.", [1, 2])) is None


@pytest.mark.parametrize(
    ("question", "answer", "results"),
    [
        ("Which ? (a) cut it (b) fry it", "cut it (a) <span> .", {"fry it (b) <span> ."}),
        ("Which?\nA. cut it\nB. fry it\nC. eat it", "Best Option: (B)", {"Best Option: (A)", "Best Option: (C)"}),
        ("Which?\n(A) cut it\n(B) fry it", "A", {"B"}),
    ],
)
def test_option_names_another_option_of_the_question(question, answer, results):
    source = record(answer, [1, 2] if "<span>" in answer else (), question=question)
    assert {made("option", source, seed=seed).text for seed in range(20)} == results
    assert made("option", record("cut it (a)", question="Which?")) is None


# ---- all of it -------------------------------------------------------------------------------------------------------

WORDS = st.sampled_from(["cut", "fry", "red", "blue", "left", "He", ""])


@st.composite
def data_sets(draw):
    """Two to five records of two videos, of one to three events each, or without any."""
    records = []
    for line in range(1, draw(st.integers(2, 5)) + 1):
        count = draw(st.integers(0, 3))
        style = draw(st.sampled_from(["<span> {}. ", "{} at <span>. ", "<span>, "])) if count else "{} it. "
        answer = "".join(style.format(draw(WORDS)) for _ in range(count or 1)).strip()
        spans = [time for _ in range(count) for time in draw(SPANS)]
        question = draw(st.sampled_from(["When?", "Which? (a) cut (b) fry"]))
        records.append(record(answer, spans, question, "t", draw(st.sampled_from(["a", "b"])), line))
    return records


@settings(deadline=None)
@given(data_sets(), st.integers(0, 10**6))
def test_no_rejected_answer_equals_the_chosen_one_or_another_and_all_can_be_read_again(records, seed):
    result = add_rejected(records, PreferenceOptions(seed=seed, per_record=len(FACTORS)))
    assert len(result.records) + len(result.without) == len(records)
    for source in result.records:
        said = [wording_of(source).key, *(wording_of(source.answered_by(r)).key for r in source.rejected)]
        assert len(set(said)) == len(said)
        again = parse_record(json.loads(json.dumps(neutral_json(source))), source.line, source.path)
        assert again == source and "reversed span" not in again.odd


@settings(deadline=None, max_examples=30)
@given(data_sets(), st.randoms(use_true_random=False))
def test_rejected_answers_do_not_depend_on_the_order_of_the_records(records, rng):
    options = PreferenceOptions(per_record=3)
    shuffled = [replace(r, line=k, id=f"n{k}") for k, r in enumerate(rng.sample(records, len(records)))]
    one, two = (add_rejected(some, options) for some in (records, shuffled))

    def without_place(result):
        lines = [json.dumps(neutral_json(replace(r, id="x")), sort_keys=True) for r in result.records]
        return sorted(lines)

    assume(one.records)
    assert without_place(one) == without_place(two)


def test_the_mix_decides_which_factors_are_drawn():
    off = dict.fromkeys(vars(Mix()), 0.0)
    only = add_rejected([record(DENSE, TIMES)], PreferenceOptions(mix=Mix(**(off | {"shift": 1, "missing": 1}))))
    assert only.factors == {"shift": 1, "missing": 1}
    sources = [record(DENSE, [t + k / 100 for t in TIMES], line=k) for k in range(300)]
    drawn = add_rejected(sources, PreferenceOptions(per_record=1, mix=Mix(**(off | {"shift": 3, "missing": 1}))))
    assert drawn.factors["shift"] == pytest.approx(225, abs=35)


def test_a_record_for_which_no_factor_applies_is_listed_with_the_reason():
    asked = record("x")
    asked = replace(asked, turns=asked.turns[:1])
    result = add_rejected([record("Yes!", task="alone"), asked, record(DENSE, TIMES)], PreferenceOptions())
    assert [reason for _, reason in result.without] == ["no factor applies", "no answer"]
    assert len(result.records) == 1


def test_rejected_answers_that_a_record_has_are_kept():
    worse = {"factor": "mine", "value": "At <span>.", "tgt": [7, 9]}
    result = add_rejected([record("At <span>.", [1, 2], rejected=[worse])], PreferenceOptions(per_record=0))
    assert result.factors == {"mine": 1}


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"severity": {"iou": [0.5, 0.1]}}, r"severity.iou: \[0.5, 0.1\] is not"),
        ({"severity": {"iou": [0, 1]}}, "severity.iou: a tIoU of 1 is the true span"),
        ({"severity": {"stretch": [0.5, 2]}}, "severity.stretch"),
        ({"severity": {"events": 0}}, "severity.events"),
        ({"severity": {"step_s": 0}}, "severity.step_s"),
        ({"mix": {"shift": -1}}, "mix.shift"),
        ({"mix": {"shfit": 1}}, "did you mean mix.shift"),
        ({"mix": {"rewrite": 1}}, "give both or neither"),
        ({"per_record": -1}, "per_record"),
        ({"attributes": [["red", "Red"]]}, r"attributes\[0\]"),
        ({"own": {"iou": 2}}, "own.iou"),
        ({"own": {"most": 0}}, "own.most"),
        ({"rewrite": {"timeout_s": 0}}, "rewrite.timeout_s"),
    ],
)
def test_bad_option_is_named(values, says):
    with pytest.raises(ConfigError, match=says):
        build(PreferenceOptions, values)


# ---- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def annotations(tmp_path):
    path = tmp_path / "train.jsonl"
    sources = [record(DENSE, TIMES, task="dvc"), OTHER_VIDEO, record("Yes!", task="alone", line=3)]
    path.write_text("".join(json.dumps(neutral_json(source)) + "\n" for source in sources))
    return path


@pytest.mark.parametrize("layout", ["ours", "official"])
def test_command_writes_records_and_a_report(annotations, tmp_path, capsys, layout):
    output = tmp_path / ("fpo.json" if layout == "official" else "fpo.jsonl")
    arguments = ["--annotations", str(annotations), "--output", str(output), "--format", layout, "per_record=3"]
    assert main(arguments) == 0
    records = load_records(output)
    assert [len(source.rejected) for source in records] == [3, 3]
    report = json.loads((tmp_path / f"{output.name}.report.json").read_text())
    assert sum(report["factors"].values()) == 6 and report["options"]["per_record"] == 3
    assert report["without"] == [f"{annotations}:3: no factor applies (id set:3)"]
    shown = capsys.readouterr()
    assert "2 of 3 records, 6 rejected" in shown.out and "1 records get no rejected answer" in shown.err
    first = output.read_bytes()
    assert main(arguments) == 0 and output.read_bytes() == first


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--output", "{}/x.txt"], "must end in .json or .jsonl"),
        (["--output", "/proc/no/x.json"], "cannot write to /proc/no/x.json"),
        (["--output", "{}/x.json", "per_rekord=1"], "did you mean per_record"),
        (["--output", "{}/x.json", "per_record=0"], "not one of 3 records gets a rejected answer"),
        (["--output", "{}/x.json", "--packed", "p.pt"], "give their tokenizer"),
        (["--output", "{}/x.json", "--answers", "{}/none.jsonl"], "none.jsonl"),
        (["--output", "{}/x.json", "--config", "{}/none.yaml"], "cannot read the config file"),
    ],
)
def test_a_users_error_is_one_line(annotations, tmp_path, capsys, arguments, says):
    arguments = [argument.format(tmp_path) for argument in arguments]
    assert main(["--annotations", str(annotations), *arguments]) == 2
    assert says in capsys.readouterr().err.splitlines()[-1]
