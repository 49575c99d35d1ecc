"""Names, extensions and repeats in files of every form, and what damaged ones lead to: one line, never an exception."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from all_benchmark_eval.benchmark import BenchmarkError, get
from all_benchmark_eval.score import score_file
from tests.form_files import (
    ASKED,
    CAPTIONS,
    DENSE_CASES,
    DENSE_TRUTHS,
    FILES,
    GIVEN,
    MME,
    MOMENT_CASES,
    OTHER,
    OWN,
    TRUTHS,
    VIDEO,
    WINDOWS,
    changed,
    lines,
    scored,
    write,
)

# ---- names, extensions, repeats --------------------------------------------------------------------------------------


@pytest.mark.parametrize("other", ["{}.mp4", "{}.MP4", "{}.mkv", "clips/{}.webm", "clips\\{}.avi", "v_{}"])
@pytest.mark.parametrize("name", ["charades", "anet", "moment_retrieval", "qvhighlights"])
def test_a_video_is_found_whatever_its_folder_and_container(name, other, tmp_path):
    rows = [
        {"vid": other.format(v), "query": q, "qid": i, "pred_relevant_windows": [s]}
        for i, (v, q, s) in enumerate(GIVEN)
    ]
    truth = next(iter(TRUTHS[name].values()))
    assert scored(name, truth, lines(*rows), tmp_path, protocols=["corrected"])["corrected"]["metrics"]["mIoU"] == 50


@pytest.mark.parametrize("name", ["a.mp4", "a.MP4", "a.mkv", "a", "v_a"])
def test_a_dense_video_is_found_whatever_the_truth_calls_it(name, tmp_path):
    truth = {name: {"duration": 9, "timestamps": [[0, 5]], "sentences": ["x."]}}
    for other in ("a", "a.mp4", "x/a.webm"):
        file = {other: [{"timestamp": [0, 5], "caption": "x."}]}
        assert scored("youcook2", truth, file, tmp_path)["corrected"]["metrics"]["F1"] == 100


def test_a_name_that_may_be_two_videos_names_both_and_the_exact_one_counts(tmp_path):
    videos = {f"a.{end}": {"duration": 9, "timestamps": [[0, 5]], "sentences": ["x."]} for end in ("mp4", "mkv")}
    exact = {name: [{"timestamp": [0, 5], "caption": "x."}] for name in videos}
    assert scored("youcook2", videos, exact, tmp_path)["corrected"]["metrics"]["F1"] == 100
    with pytest.raises(BenchmarkError, match=r"'a.webm' may be 'a.mp4' or 'a.mkv'"):
        scored("youcook2", videos, {"a.webm": exact["a.mp4"]}, tmp_path)
    with pytest.raises(BenchmarkError, match="stands twice"):
        scored("anet_dvc", {"a": videos["a.mp4"]}, {"a": exact["a.mp4"], "a.mp4": exact["a.mp4"]}, tmp_path)


@pytest.mark.parametrize("case", [*MOMENT_CASES], ids=str)
def test_lines_for_a_list_and_a_list_for_lines_are_read(case, tmp_path):
    name, truth, form = case
    given, true = FILES[name][form], TRUTHS[name][truth]
    swap = lambda data: (  # noqa: E731
        list(map(json.loads, data.splitlines())) if isinstance(data, str) and data[0] == "{"
        else lines(*data) if isinstance(data, list) else data
    )  # fmt: skip
    assert scored(name, swap(true), swap(given), tmp_path)["corrected"]["metrics"]["mIoU"] == pytest.approx(50)


def test_the_same_sentence_twice_in_a_video(tmp_path):
    truth = "AAA 0 10##a door.\nAAA 20 30##a door.\n"
    numbered = {"0": {"timestamp": [0, 10], "vid": "AAA.mp4"}, "1": {"timestamp": [20, 30], "vid": "AAA.mp4"}}
    for file, miou in (
        (numbered, 100),
        ({"AAA": {"a door.": {"start": 0, "end": 10}}}, 50),  # UMT's script holds it against both
        ({"AAA>>>a door.>>>[20.0, 30.0]": "20 - 30", "AAA>>>a door.>>>[0.0, 10.0]": "0 - 10"}, 100),
        (lines(*({"vid": "AAA", "query": "a door", "pred_relevant_windows": [s]} for s in ([0, 10], [20, 30]))), 100),
        ({"AAA/a door.": "0 - 10", "AAA/a door. #2": "20 - 30"}, 100),
    ):
        assert scored("charades", truth, file, tmp_path)["corrected"]["metrics"]["mIoU"] == miou
    thrice = lines(*({"vid": "AAA", "query": "a door", "pred_relevant_windows": [[0, 10]]} for _ in range(3)))
    with pytest.raises(BenchmarkError, match="which of the answers counts"):
        scored("charades", truth, thrice, tmp_path)


# ---- what cannot be read ---------------------------------------------------------------------------------------------


def test_two_forms_at_once_are_both_named(tmp_path):
    row = {"qid": 0, "prediction": "[[1, 2]]", "pred_relevant_windows": [[3, 4, 1]]}
    with pytest.raises(BenchmarkError, match="several forms.*DisTime.*moment_detr"):
        scored("qvhighlights", WINDOWS, [row], tmp_path)
    row = {"vid": "AAA", "query": "a door.", "pred": [[1, 2]], "conf": [1], "pred_relevant_windows": [[3, 4, 1]]}
    with pytest.raises(BenchmarkError, match="several forms.*moment_detr lines.*VideoMind"):
        scored("moment_retrieval", WINDOWS, [row], tmp_path)
    with pytest.raises(BenchmarkError, match="'response' and 'pred' are different texts"):
        scored("moment_retrieval", WINDOWS, [{"qid": 0, "response": "1 - 2", "pred": "3 - 4"}], tmp_path)


LONG_KEY = "9" * 5000
DAMAGED = [
    ("charades", {LONG_KEY: [1, 2]}, "queries 0 to 2"),
    ("charades", {"0": {"timestamp": [0, 1]}, "1": {"vid": "AAA"}}, "no key 'timestamp'"),
    ("charades", {"1": {"timestamp": [0, 1], "vid": "AAA.mp4"}}, "another order"),
    ("charades", {"AAA>>>a door.": "1 - 2"}, "none of the forms|no video"),
    ("charades", {"AAA>>>a door.>>>[10, 20]": {"answer": "1 - 2"}}, "no key 'timestamps'"),
    ("charades", {"AAA>>>a bird.>>>[10, 20]": "1 - 2"}, "do not ask this of 'AAA'"),
    ("charades", {"ZZZ>>>a door.>>>[10, 20]": "1 - 2"}, "no video of the annotations has the name 'ZZZ'"),
    ("charades", [{"pred": [[0, 1]], "conf": [], "vid": "AAA", "query": "a door."}], "as many spans"),
    ("charades", [{"pred": [[0, 1]], "conf": [1]}], "no key 'video_path', 'question'"),
    ("charades", [{"pred_relevant_windows": 3, "vid": "AAA", "query": "a door."}], "is not a list"),
    ("charades", {"AAA/a door.": "1 - 2", "AAA/a cat.": 3}, "'AAA/a cat.': the answer is not a text"),
    ("charades", [{"id": "nobody", "text": "1 - 2"}], "no question of the annotations has the id 'nobody'"),
    ("charades", lines({"doc_id": 0, "target": 1, "filtered_resps": ["x"]}), "neither 'doc' nor a metric says"),
    ("charades", '{"a": 1}\n{"b"', ":2: not JSON"),
    ("anet", {"results": {"AAA.mp4-0": {"timestamp": []}, "AAA-0": {"timestamp": []}}}, "stands twice"),
    ("anet", {"results": {"AAA-9": {"timestamp": []}}}, "no sentence of the annotations"),
    ("qvhighlights", {"AAA>>>a door.>>>[10, 20]": "1 - 2", "BBB>>>x>>>[1, 2]": ""}, "do not ask this"),
]


@pytest.mark.parametrize(("name", "data", "message"), DAMAGED, ids=lambda v: str(v)[:40])
def test_a_damaged_file_is_one_line_that_names_the_place(name, data, message, tmp_path):
    with pytest.raises(BenchmarkError, match=message) as error:
        scored(name, next(iter(TRUTHS[name].values())), data, tmp_path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 2000 and "given.json" in str(error.value)


CORPUS = [(name, form, data) for name, forms in FILES.items() for form, data in forms.items()]
CORPUS += [(name, form, data) for name, _, form, data in DENSE_CASES] + [("videomme", *case) for case in MME.items()]
TRUTH_OF = {name: next(iter(truths.values())) for name, truths in TRUTHS.items()}
TRUTH_OF |= dict.fromkeys(("anet_dvc", "youcook2"), CAPTIONS) | {"videomme": [VIDEO | ASKED, VIDEO | OTHER]}
ODD = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just([]) | st.just({})
ODD |= (
    st.lists(st.integers(), max_size=3) | st.just(10**400) | st.dictionaries(st.text(max_size=3), st.none(), max_size=2)
)


CORPUS += [(name, "own", data) for name, (_, _, data) in OWN.items()]
TRUTH_OF |= {name: data for name, (_, data, _) in OWN.items()}


@settings(max_examples=300)
@given(st.sampled_from(CORPUS), st.lists(st.integers(0, 9), max_size=6), ODD)
def test_no_damage_to_any_form_is_an_exception(tmp_path_factory, case, path, value):
    name, _, data = case
    folder, file = tmp_path_factory.mktemp("damaged"), OWN.get(name, ("truth.json",))[0]
    rows = list(map(json.loads, data.splitlines())) if isinstance(data, str) else data
    paths = write(folder / "given.json", changed(rows, path, value)), write(folder / file, TRUTH_OF[name])
    try:
        score_file(name, paths[0], paths[1:], folder / "scores.json", skip_meteor=True)
    except BenchmarkError as error:
        assert "\n" not in str(error)


ANNOTATIONS = [(name, "truth.json", data) for name, truths in TRUTHS.items() for data in truths.values()]
ANNOTATIONS += [("youcook2", "truth.json", data) for data in DENSE_TRUTHS.values()]
ANNOTATIONS += [(name, file, data) for name, (file, data, _) in OWN.items()]


@settings(max_examples=300)
@given(st.sampled_from(ANNOTATIONS), st.lists(st.integers(0, 9), max_size=6), ODD)
def test_no_damage_to_any_annotations_is_an_exception(tmp_path_factory, case, path, value):
    name, file, data = case
    if isinstance(data, str):
        data = list(map(json.loads, data.splitlines())) if data[0] == "{" else {"text": data}
    try:
        get(name).load(write(tmp_path_factory.mktemp("damaged") / file, changed(data, path, value)))
    except BenchmarkError as error:
        assert "\n" not in str(error)
