"""Other groups' training files: what becomes of a row of each form, what is dropped and why, what is an error."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.form_files import changed
from videollm.data import AnnotationError, load_records
from videollm.data.__main__ import main
from videollm.data.imports import FORMS, Unusable, import_file, mark_times
from videollm.data.record import spelled


def write(path, rows):
    lines = path.suffix == ".jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows) if lines else json.dumps(rows), encoding="utf-8")
    return path


def imported(form, rows, folder, **options):
    return import_file(form, write(folder / "rows.jsonl", rows), **options)


def spans(found):
    return [record["tgt"] for record in found.records]


EVENTS = [{"query": " A  man sings. ", "span": [[5, 8.5]]}, {"query": "rain", "span": [[40, 70], [1, 2]]}]
TIMELENS = {"source": "didemo", "video_path": "didemo/a.mp4", "duration": 60, "events": EVENTS}
TIME_R1 = {"video": "./x/a.mp4", "duration": 45.5, "timestamp": [34.5, 41], "sentence": "a statue", "qid": "my|a"}
TIME_R1 |= {"video_start": None, "video_end": None, "difficulty": 41.0, "pred": [0, 1]}
UNITIME = {"qid": 3, "id": "3MSZA", "annos": [{"query": "a light", "window": [[24.3, 30.4]]}], "duration": 31}


def test_timelens_is_a_record_an_event_with_tidy_queries_and_spans_in_the_video(tmp_path):
    found = imported("timelens", [TIMELENS], tmp_path)
    assert spans(found) == [[5, 8.5], [40, 60, 1, 2]] and found.mended == {"span partly outside the video": 1}
    assert [record["id"] for record in found.records] == ["rows:1.1", "rows:1.2"]
    first, second = found.records
    assert (first["video"], first["source"], first["task"]) == ("didemo/a.mp4", "didemo", "grounding")
    assert first["conversations"][0]["value"] == "<video>\nWhen does this happen in the video: 'A man sings'?"
    assert second["conversations"][1]["value"] == "It happens in <span> and <span>."


def test_time_r1s_times_of_a_part_are_times_of_the_whole_video(tmp_path):
    part = TIME_R1 | {"video_start": 39.0, "video_end": 84.5}
    found = imported("time_r1", [TIME_R1, part], tmp_path)
    assert spans(found) == [[34.5, 41], [73.5, 80]]
    assert found.records[0]["video"] == "x/a.mp4" and found.records[0]["duration"] == 45.5
    assert found.records[1]["bound"] == [39, 84.5] and "duration" not in found.records[1]
    assert found.records[1]["difficulty"] == 41 and "pred" not in found.records[1]


def test_videominds_lines_and_unitimes_annos(tmp_path):
    row = {"vid": "s27", "query": "He cuts.", "duration": 90, "relevant_windows": [[1, 2], [3, 4]], "qid": 7}
    (record,) = imported("videomind", [row], tmp_path).records
    assert (record["video"], record["tgt"], record["qid"]) == ("s27.mp4", [1, 2, 3, 4], 7)
    (record,) = imported("unitime", [UNITIME], tmp_path).records
    assert (record["video"], record["tgt"]) == ("3MSZA.mp4", [24.3, 30.4])
    (record,) = imported("unitime", [UNITIME | {"video_path": "./videos/a.mp4"}], tmp_path).records
    assert record["video"] == "videos/a.mp4"


SAID = "It goes on from 12.0 to 15.5 seconds, and again at 0:20 - 0:25."
MESSAGES = [{"role": "user", "content": "<video>When?"}, {"role": "assistant", "content": SAID}]
SHAREGPT = [{"from": "human", "value": "<video>When?"}, {"from": "gpt", "value": SAID}]
PARTS = [{"type": "video", "video": "a.mp4"}, {"type": "text", "text": "When?"}]
CONVERSATIONS = {
    "LLaMA-Factory messages": {"messages": MESSAGES, "videos": ["a.mp4"]},
    "LLaMA-Factory sharegpt": {"conversations": SHAREGPT, "videos": ["a.mp4"]},
    "alpaca": {"instruction": "<video>When?", "input": "", "output": SAID, "videos": ["a.mp4"]},
    "ms-swift pair": {"query": "<video>When?", "response": SAID, "videos": "a.mp4", "history": []},
    "ms-swift parts": {"messages": [{"role": "user", "content": PARTS}, MESSAGES[1]]},
    "no mark of the video": {"messages": [{"role": "user", "content": "When?"}, MESSAGES[1]], "video": "a.mp4"},
}


@pytest.mark.parametrize("row", CONVERSATIONS.values(), ids=CONVERSATIONS)
@pytest.mark.parametrize("form", ["llama_factory", "ms_swift"])
def test_times_in_the_text_of_an_answer_become_spans(form, row, tmp_path):
    (record,) = imported(form, [row], tmp_path).records
    assert record["tgt"] == [12, 15.5, 20, 25] and record["video"] == "a.mp4"
    assert [turn["value"] for turn in record["conversations"]] == [
        "<video>\nWhen?",
        "It goes on from <span>, and again at <span>.",
    ]


def test_every_answer_of_a_conversation_and_its_earlier_turns_are_kept(tmp_path):
    row = {"query": "And then?", "response": "From 30 s to 40 s.", "history": [["<video>Who?", "A cook."]]}
    (record,) = imported("ms_swift", [row | {"videos": ["a.mp4"], "system": "Be brief."}], tmp_path).records
    assert [turn["from"] for turn in record["conversations"]] == ["system", "human", "gpt", "human", "gpt"]
    assert record["tgt"] == [30, 40] and record["conversations"][2]["value"] == "A cook."


@pytest.mark.parametrize(
    ("text", "marked", "found"),
    [
        ("12.5 - 15 s", "<span>", [[12.5, 15]]),
        ("<think>maybe 1 to 2 s</think><answer>12.54 to 17.83</answer>",
         "<think>maybe 1 to 2 s</think><answer><span></answer>", [[12.54, 17.83]]),
        ("The event happens in [3.0, 7.5].", "The event happens in [<span>].", [[3, 7.5]]),
        ("He lifts 2 boxes.", "He lifts 2 boxes.", []),
    ],
)  # fmt: skip
def test_marks_stand_where_the_times_stood(text, marked, found):
    assert mark_times(text, None) == (marked, found)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("It happens at 12 seconds.", "times that are no sure span"),
        ("From 3 s to 9 s or 12 s to 15 s.", "times that are no sure span"),
        ("From 20% to 45% of the video.", "times that are no sure span"),  # of a video of unknown length
        ('{"start": 3.0, "end": 9.5}', "times in a form that cannot be marked"),
    ],
)
def test_times_that_are_not_sure_are_no_training_data(text, kind):
    found = mark_times(text, None)
    assert isinstance(found, Unusable) and found.kind == kind


def test_shares_of_a_video_of_known_length_are_seconds():
    assert mark_times("From 20% to 45% of the video.", 40) == ("From <span> of the video.", [[8, 18]])


DROPPED = [
    ("timelens", TIMELENS | {"events": [{"query": " . ", "span": [[1, 2]]}]}, "no query"),
    ("timelens", TIMELENS | {"events": [{"query": "x", "span": []}]}, "no span"),
    ("timelens", TIMELENS | {"events": [{"query": "x", "span": [[1, 2, 3]]}]}, "a span that is not [start, end]"),
    ("timelens", TIMELENS | {"events": [{"query": "x", "span": [[70, 80]]}]}, "refused by our schema"),
    ("timelens", TIMELENS | {"video_path": "/data/a.mp4"}, "a path that is not below the videos"),
    ("unitime", UNITIME | {"video_start": 30}, "a part of a video"),
    ("ms_swift", {"messages": MESSAGES}, "not one video, nor images alone"),
    ("ms_swift", {"messages": MESSAGES, "videos": ["a.mp4", "b.mp4"]}, "not one video, nor images alone"),
    ("ms_swift", {"messages": [*MESSAGES, {"role": "tool", "content": "x"}], "videos": ["a.mp4"]},
     "a turn of neither user nor assistant"),
]  # fmt: skip


@pytest.mark.parametrize(("form", "row", "kind"), DROPPED, ids=lambda v: str(v)[:30])
def test_what_cannot_be_trained_on_is_dropped_with_its_reason(form, row, kind, tmp_path):
    found = imported(form, [row], tmp_path)
    assert not found.records and list(found.dropped) == [kind]
    count = sum(entry["count"] for entry in found.report()["dropped"].values())
    assert count == len(row.get("events", [1])) and f"dropped: {count}: {kind} (rows:1" in str(found)


def test_what_was_said_before_is_dropped_and_names_the_first(tmp_path):
    found = imported("time_r1", [TIME_R1, TIME_R1 | {"qid": "other"}, TIME_R1 | {"timestamp": [1, 2]}], tmp_path)
    assert [record["id"] for record in found.records] == ["rows:1", "rows:3"]
    assert found.dropped == {"said before": {"rows:2": "the same as rows:1"}}


def test_absolute_paths_below_the_folder_of_the_videos_are_made_relative(tmp_path):
    row = TIMELENS | {"video_path": f"{tmp_path}/videos/didemo/a.mp4"}
    found = imported("timelens", [row], tmp_path, videos=tmp_path / "videos")
    assert {record["video"] for record in found.records} == {"didemo/a.mp4"}


BAD = [
    ("timelens", {}, "missing (video_path)"),
    ("timelens", TIMELENS | {"events": 3}, "a number (events)"),
    ("timelens", TIMELENS | {"events": ["x"]}, "a string (events)"),
    ("time_r1", TIME_R1 | {"timestamp": "1-2"}, "a string (timestamp)"),
    ("time_r1", TIME_R1 | {"video_start": 3}, "null (video_end)"),
    ("videomind", {"vid": 3}, "a number (vid)"),
    ("unitime", UNITIME | {"annos": [3]}, "a number (annos)"),
    ("ms_swift", {"videos": ["a.mp4"]}, "missing (messages)"),
    ("ms_swift", {"messages": [{"role": "user"}]}, "a turn without a speaker or a text (messages)"),
    ("ms_swift", {"messages": MESSAGES, "videos": [3]}, "a list (videos)"),
    ("llama_factory", [1], "is a list (line)"),
]


@pytest.mark.parametrize(("form", "row", "why"), BAD, ids=lambda v: str(v)[:30])
def test_a_row_of_another_form_is_an_error_with_file_and_line(form, row, why, tmp_path):
    path = write(tmp_path / "rows.jsonl", [TIMELENS if form == "timelens" else row, row])
    with pytest.raises(AnnotationError) as error:
        import_file(form, path)
    assert f"{path}:2: {why}" in str(error.value)
    as_list = write(tmp_path / "rows.json", [row])
    with pytest.raises(AnnotationError) as error:
        import_file(form, as_list)
    assert f"{as_list}:item 1: {why}" in str(error.value)


def test_the_command_writes_records_that_load_and_a_report(tmp_path, capsys):
    path, output = write(tmp_path / "t.json", [TIMELENS, TIMELENS]), tmp_path / "out.jsonl"
    assert main(["import", "timelens", str(path), "--output", str(output)]) == 0
    said = capsys.readouterr().out
    assert "2 records of 2 rows, 2 dropped" in said and "dropped: 2: said before (t:2.1: the same as t:1.1)" in said
    records = load_records([output])
    assert [record.spans_s for record in records] == [((5, 8.5),), ((40, 60), (1, 2))]
    assert spelled(records[0].turns[1]) == "It happens in <span>."
    report = json.loads((tmp_path / "out.jsonl.report.json").read_text())
    assert report["dropped"]["said before"] == {"count": 2, "records": {"t:2.1": "the same as t:1.1"} | {
        "t:2.2": "the same as t:1.2"}}  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["nothing", "t.jsonl"], "FORM: 'nothing' is not known; known forms: timelens, time_r1"),
        (["timelens", "none.jsonl"], "none.jsonl: cannot be read"),
        (["timelens", "t.csv"], "t.csv: not an annotation file"),
        (["timelens", "empty.jsonl"], "no record can be made of its 1 rows (no query: 1)"),
    ],
)
def test_a_command_that_cannot_work_is_one_message_and_writes_nothing(arguments, why, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "empty.jsonl", [TIMELENS | {"events": [{"query": "", "span": [1, 2]}]}])
    assert main(["import", *arguments, "--output", "out.jsonl"]) == 2
    assert why in capsys.readouterr().err and not (tmp_path / "out.jsonl").exists()
    assert main(["import", "timelens", "empty.jsonl", "--output", "out.json"]) == 2


@pytest.mark.parametrize(("given", "row", "said"), [
    ("videomind", TIMELENS, "timelens"), ("timelens", TIME_R1, "time_r1"), ("llama_factory", UNITIME, "unitime"),
    ("time_r1", next(iter(CONVERSATIONS.values())), "llama_factory or ms_swift"),
])  # fmt: skip
def test_a_wrong_form_is_answered_with_the_right_one(given, row, said, tmp_path, capsys):
    path = write(tmp_path / "rows.jsonl", [row, row])
    assert main(["import", given, str(path), "--output", str(tmp_path / "out.jsonl")]) == 2
    assert (
        capsys.readouterr().err
        == f"error: FORM: {path} is not of the form {given}; its first row is of {said}: give that\n"
    )


ROWS = [("timelens", TIMELENS), ("time_r1", TIME_R1 | {"video_start": 39.0, "video_end": 84.5}), ("unitime", UNITIME)]
ROWS += [("videomind", {"vid": "s27", "query": "He cuts.", "duration": 90, "relevant_windows": [[1, 2]], "qid": 7})]
ROWS += [("ms_swift", row) for row in CONVERSATIONS.values()]
ODD = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just([]) | st.just({})
ODD |= (
    st.lists(st.integers(), max_size=3) | st.just(10**400) | st.sampled_from(["<span>", "<video>", "../x", "3 - 4 s"])
)


@pytest.mark.filterwarnings("ignore:.*read as text|.*mended|.*span")
@settings(max_examples=400)
@given(st.sampled_from(ROWS), st.lists(st.integers(0, 9), min_size=1, max_size=6), ODD)
def test_no_damage_to_a_row_is_an_exception(tmp_path_factory, case, path, value):
    form, row = case
    file = write(tmp_path_factory.mktemp("damaged") / "rows.json", [changed(row, path, value)])
    try:
        found = import_file(form, file)
    except AnnotationError as error:
        assert "rows.json" in str(error)
        return
    if found.records:
        load_records([write(file.with_name("out.jsonl"), found.records)])


def test_every_form_is_tested():
    tested = {form for form, *_ in (*DROPPED, *BAD)} | {"llama_factory"}
    assert tested == set(FORMS)
