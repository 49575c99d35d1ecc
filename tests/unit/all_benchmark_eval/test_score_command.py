"""The commands ``score`` and ``compare``: what they write and print, and what they refuse."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from all_benchmark_eval import benchmark, compare, score
from all_benchmark_eval.benchmark import BenchmarkError, names, read_json, read_lines
from all_benchmark_eval.metrics.significance import bootstrap_interval, bootstrap_means, by_samples, sign_flip_p
from tests.form_files import write

QUERIES = 40
IDS = [f"v_A-{i}" for i in range(QUERIES)]


@pytest.fixture
def truth(tmp_path) -> Path:
    spans = [[i, i + 10] for i in range(QUERIES)]
    video = {"duration": 60, "timestamps": spans, "sentences": [f"Sentence {i}." for i in range(QUERIES)]}
    return write(tmp_path / "truth.json", {"v_A": video})


def predictions(path: Path, shift: float, missing: int = 0) -> Path:
    spans = {f"v_A-{i}": {"timestamp": [[i + shift, i + 10 + shift]]} for i in range(missing, QUERIES)}
    return write(path, {"results": spans})


def run(*arguments: object) -> int:
    return score.main([str(argument) for argument in arguments])


def scores(tmp_path: Path, truth: Path, name: str, shift: float, *more: object, missing: int = 0) -> Path:
    file, output = predictions(tmp_path / f"{name}.pred.json", shift, missing), tmp_path / f"{name}.json"
    assert run("anet", "--predictions", file, "--annotations", truth, "--output", output, *more) == 0
    return output


# ---- score -----------------------------------------------------------------------------------------------------------


def test_the_result_has_both_protocols_counts_samples_and_where_it_came_from(tmp_path, truth, capsys) -> None:
    result = json.loads(scores(tmp_path, truth, "a", 2.5, missing=1).read_text())
    assert result["headline"] == "published"
    assert list(result["protocols"]) == ["published", "corrected"]
    for protocol, entry in result["protocols"].items():
        assert entry["unit"] == "percent"
        assert entry["counts"] == {"samples": 40, "scored": 39, "unparsed": 0, "missing": 1, "clipped": 0}
        assert entry["metrics"]["R1@0.5"] == pytest.approx(100 * 39 / 40)
        assert list(result["per_sample"][protocol]["mIoU"]) == IDS
    assert result["files"]["annotations"] == {"path": str(truth), "sha256": benchmark.sha256(truth)}
    assert (result["benchmark"], result["variant"]) == ("anet", "default")
    printed = capsys.readouterr().out
    assert "97.50" in printed and "missing" in printed and "a.json" in printed


def test_one_protocol_alone(tmp_path, truth, capsys) -> None:
    result = json.loads(scores(tmp_path, truth, "a", 1, "--protocol", "corrected").read_text())
    assert list(result["protocols"]) == list(result["per_sample"]) == ["corrected"]
    assert result["headline"] == "corrected"
    assert "published" not in capsys.readouterr().out


def test_bootstrap_gives_an_interval_around_every_mean(tmp_path, truth) -> None:
    result = json.loads(scores(tmp_path, truth, "a", 2.5, "--bootstrap", 200, missing=20).read_text())
    for entry in result["protocols"].values():
        for metric, (low, high) in entry["intervals"].items():
            assert low <= entry["metrics"][metric] <= high
        assert entry["intervals"]["R1@0.3"][0] < 50 < entry["intervals"]["R1@0.3"][1]


def infer_line(name: str, spans: list) -> dict:
    line = {"id": name, "video": "v_A.mp4", "question": "?", "text": "", "raw_text": "", "spans": spans}
    return line | {"evidence_spans": [], "scores": [], "duration": 60, "finish_reason": "stop", "error": None}


def test_infer_output_is_scored_and_leaves_the_official_file_beside_the_result(tmp_path, truth, capsys) -> None:
    lines = [infer_line(name, [[i, i + 10]]) for i, name in enumerate(IDS)]
    answers = write(tmp_path / "out.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    command = ["anet", "--predictions", answers, "--annotations", truth, "--output", tmp_path / "s.json"]
    assert run(*command) == 2
    assert "--wording" in capsys.readouterr().err
    assert run(*command, "--wording", "plain") == 0
    official = json.loads((tmp_path / "s.predictions.json").read_text())
    assert official["results"]["v_A-3"]["timestamp"] == [[3, 13]]
    assert json.loads((tmp_path / "s.json").read_text())["protocols"]["corrected"]["metrics"]["mIoU"] == 100


@pytest.mark.parametrize(("change", "message"), [({"id": 5}, "not an output line"), ({"id": "v_A-0"}, "stands twice")])
def test_bad_infer_output_is_one_line(change, message, tmp_path, truth, capsys) -> None:
    lines = [infer_line("v_A-0", []), infer_line("v_A-1", []) | change]
    answers = write(tmp_path / "out.jsonl", "\n".join(map(json.dumps, lines)))
    status = run(
        "anet", "--predictions", answers, "--annotations", truth, "--output", tmp_path / "s.json", "--wording", "plain"
    )
    assert status == 2
    assert message in capsys.readouterr().err


def test_what_cannot_be_scored_is_one_line_and_writes_nothing(tmp_path, truth, capsys) -> None:
    good, output = predictions(tmp_path / "p.json", 0), tmp_path / "s.json"
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    for arguments, message in (
        (["nothing", "--predictions", good, "--annotations", truth], "unknown benchmark 'nothing'; known benchm"),
        (["charade", "--predictions", good, "--annotations", truth], "'charade'; did you mean charades?"),
        (["anet", "--predictions", good], "anet needs its ground truth"),
        (["anet", "--predictions", tmp_path / "none", "--annotations", truth], "none: no such file"),
        (["anet", "--predictions", tmp_path / "q.json", "--annotations", truth], "is 'p.json'); check the path"),
        (["anet", "--predictions", tmp_path / "file", "--annotations", truth], "the file is empty"),
        (["anet", "--predictions", tmp_path / "empty", "--annotations", truth], "no .json or .jsonl file in"),
        (
            ["anet", "--predictions", good, "--annotations", truth, "--variant", "x"],
            "no variant 'x'; known variants: de",
        ),
        (["anet", "--predictions", truth, "--annotations", good], "no key"),
    ):
        assert run(*arguments, "--output", output) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
        assert not output.exists()


@pytest.mark.parametrize(
    "text, message",
    [
        ('{"a": "\\ud83d"}', "x.json: half a character, \\ud83d"),
        ('[{"a": "b"}, {"a": "\\ud83d"}]', "x.json: item 2: half a character, \\ud83d"),
        ("[" * 200 + "]" * 200, "x.json: item 1: more than 100 lists"),
        ("[" * 100_000, "x.json: more than 100 lists"),
    ],
)
def test_what_nothing_could_write_again_is_named_in_benchmark_files(tmp_path, text, message) -> None:
    with pytest.raises(BenchmarkError) as caught:
        read_json(write(tmp_path / "x.json", text))
    assert message in str(caught.value)
    if text.startswith("{"):
        write(tmp_path / "x.jsonl", "{}\n" + text)
        with pytest.raises(BenchmarkError, match="x.jsonl:2: half a character"):
            list(read_lines(tmp_path / "x.jsonl"))


def test_a_result_that_cannot_be_written_is_one_line_and_keeps_the_old_one(tmp_path, truth, capsys) -> None:
    good = predictions(tmp_path / "p.json", 0)
    (tmp_path / "folder").mkdir()
    assert run("anet", "--predictions", good, "--annotations", truth, "--output", tmp_path / "folder") == 2
    assert "cannot write" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "p.json", "truth.json"]


def test_the_command_runs_as_a_module(tmp_path, truth, repository) -> None:
    good = predictions(tmp_path / "p.json", 0)
    command = [sys.executable, "-m", "all_benchmark_eval.score", "anet", "--predictions", good, "--annotations", truth]
    done = subprocess.run([*command, "--output", tmp_path / "s.json"], cwd=repository, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "ActivityNet Captions moment retrieval, variant default" in done.stdout


# ---- compare ---------------------------------------------------------------------------------------------------------


def test_compare_finds_a_real_difference_and_none_where_there_is_none(tmp_path, truth, capsys) -> None:
    a, b = scores(tmp_path, truth, "a", 5), scores(tmp_path, truth, "b", 1)
    capsys.readouterr()
    assert compare.main([str(a), str(b), "--resamples", "500"]) == 0
    printed = capsys.readouterr().out
    assert "+48.48" in printed  # mIoU 33.33 against 81.82
    first = compare.read_scores(a)["per_sample"]["corrected"]
    second = compare.read_scores(b)["per_sample"]["corrected"]
    (miou,) = (d for d in compare.differences(first, second, 100, 500, 0) if d.metric == "mIoU")
    assert miou.value == pytest.approx(100 * (9 / 11 - 1 / 3))
    assert miou.p == pytest.approx(1 / 501)
    same = {d.metric: d for d in compare.differences(first, first, 100, 500, 0)}
    assert all((d.value, d.low, d.high, d.p) == (0, 0, 0, 1) for d in same.values())


def test_compare_uses_the_samples_of_both_and_counts_the_others() -> None:
    a, b = {"m": {"x": 1.0, "y": 0.0, "z": 1.0}}, {"m": {"z": 0.0, "y": 0.0, "w": 1.0}}
    (found,) = compare.differences(a, b, 1, 100, 0)
    assert (found.shared, found.only_a, found.only_b) == (2, 1, 1)
    assert (found.a, found.b) == (0.5, 0.0)


def test_all_that_is_wrong_is_said_at_once(tmp_path, truth, capsys) -> None:
    def refused(command, *arguments: object) -> list[str]:
        assert command.main([str(argument) for argument in arguments]) == 2
        return capsys.readouterr().err.splitlines()

    torn = write(tmp_path / "torn.json", "{")
    given = ["--predictions", tmp_path / "none.json", "--output", "/proc/x.json", "--annotations", truth, torn]
    lines = refused(score, "anet", *given, "--variant", "mine")
    wanted = ("none.json: no such file", "--output: cannot write", "--variant: anet has no variant 'mine'", "torn.json")
    assert len(lines) == len(wanted) and all(text in line for text, line in zip(wanted, lines, strict=True))
    assert "unknown benchmark 'annet'" in (lines := refused(score, "annet", *given))[-1] and len(lines) == 3
    one = scores(tmp_path, truth, "a", 1)
    two = write(tmp_path / "b.json", json.loads(one.read_text()) | {"benchmark": "x", "variant": "y"})
    capsys.readouterr()
    assert ["of benchmark 'anet', B of 'x'" in line for line in refused(compare, one, two)] == [True, False]
    assert ["no such file" in line for line in refused(compare, tmp_path / "none.json", torn)] == [True, False]


def test_compare_refuses_what_cannot_be_compared(tmp_path, truth, capsys) -> None:
    a = scores(tmp_path, truth, "a", 1)
    result = json.loads(a.read_text())
    only = {"protocols": {"corrected": {}}}
    for change, message in (
        ({"benchmark": "charades"}, "A is of benchmark 'anet', B of 'charades'"),
        ({"variant": "x"}, "A is of variant 'default', B of 'x'"),
        ({"per_sample": {"published": {}, "corrected": {}}}, "no sample of the same id"),
    ):
        b = write(tmp_path / "b.json", result | change)
        assert compare.main([str(a), str(b)]) == 2
        assert message in capsys.readouterr().err
    published = scores(tmp_path, truth, "c", 1, "--protocol", "published")
    assert compare.main([str(published), str(write(tmp_path / "d.json", result | only))]) == 2
    assert "score both under the same one" in capsys.readouterr().err
    lines = write(tmp_path / "answers.jsonl", '{"id": "a"}\n{"id": "b"}\n')  # of which one might ask the difference
    for other in (truth, lines):
        assert compare.main([str(a), str(other)]) == 2
        assert "no score file (needs benchmark" in capsys.readouterr().err


# ---- significance ----------------------------------------------------------------------------------------------------


def test_bootstrap_means_scatter_as_the_mean_of_independent_samples_does() -> None:
    values = np.random.default_rng(1).normal(3.0, 2.0, size=(400, 2))
    means = bootstrap_means(values, 4000, 0)
    assert means.shape == (4000, 2)
    np.testing.assert_allclose(means.mean(0), values.mean(0), atol=0.01)
    np.testing.assert_allclose(means.std(0), values.std(0) / 20, rtol=0.05)


def test_resamples_do_not_depend_on_how_many_fit_into_memory(monkeypatch) -> None:
    values = np.random.default_rng(1).normal(size=(50, 1))
    once = bootstrap_means(values, 64, 0), sign_flip_p(values, 64, 0)
    monkeypatch.setattr("all_benchmark_eval.metrics.significance._AT_ONCE", 500)
    again = bootstrap_means(values, 64, 0), sign_flip_p(values, 64, 0)
    for a, b in zip(once, again, strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a.mean(), b.mean(), atol=0.1)


def test_sign_flip_p_is_that_of_all_sign_patterns() -> None:
    differences = np.array([0.5, 0.25, -0.125, 0.0, 1.0])
    signs = np.array(np.meshgrid(*[[-1, 1]] * 5)).reshape(5, -1).T
    exact = np.mean(np.abs(signs @ differences) >= abs(differences.sum()) - 1e-12)
    assert sign_flip_p(differences[:, None], 40_000, 0)[0] == pytest.approx(exact, abs=0.01)


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=30))
def test_an_interval_lies_within_the_values_and_p_within_0_and_1(values) -> None:
    column = np.array(values)[:, None]
    low, high = bootstrap_interval(column, 20, 0)
    assert min(values) - 1e-9 <= low[0] <= high[0] <= max(values) + 1e-9
    assert 0 < sign_flip_p(column, 20, 0)[0] <= 1


def test_metrics_are_grouped_by_their_samples() -> None:
    per_sample = {"a": {"x": 1.0, "y": 2.0}, "b": {"x": 3.0, "y": 4.0}, "c": {"y": 5.0}, "d": {}}
    groups = [(names, ids, values.tolist()) for names, ids, values in by_samples(per_sample)]
    assert groups == [(["a", "b"], ["x", "y"], [[1, 3], [2, 4]]), (["c"], ["y"], [[5]])]


SHOWN = {  # of READMEs: a line of the annotations, and one of a prediction file for it
    name: [block.splitlines()[-2:] for block in re.findall(r"```json\n(.*?)```", path.read_text(), re.S)]
    for name in names()
    for path in [Path(score.__file__).parent / name / "README.md"]
}
FOLDERS = {"mvbench": "json/object_shuffle.json"}  # annotations that are a folder


@pytest.mark.parametrize("name", sorted(set(SHOWN) - {"moment_retrieval", "moving_shapes"}))  # one's own data
def test_a_readme_says_under_which_licence_the_data_are_and_what_was_published(name, repository):
    text = (repository / "all_benchmark_eval" / name / "README.md").read_text()
    licence = re.search(r"licen[cs]e|MIT|BSD-3|CC[ -]BY", text, re.IGNORECASE)
    assert licence and re.search(r"published\s+numbers", text, re.IGNORECASE)


@pytest.mark.parametrize("name", SHOWN)
def test_what_a_readme_shows_is_scored(name, tmp_path, capsys):
    assert SHOWN[name], f"{name}/README.md shows no annotation and no prediction"
    (annotation, prediction), out = SHOWN[name][0], tmp_path / "scores.json"
    place = tmp_path / FOLDERS.get(name, "truth.json")
    place.parent.mkdir(exist_ok=True)
    write(place, annotation), write(tmp_path / "p.json", prediction)
    files = place.parent if name in FOLDERS else place, tmp_path / "p.json"
    given = ["--annotations", files[0], "--predictions", files[1], "--output", out, "--variant", "all", "--skip-meteor"]
    assert run(name, *given) == 0, capsys.readouterr().err
    own, *others, corrected = [protocol["counts"] for protocol in json.loads(out.read_text())["protocols"].values()]
    assert own["scored"] == corrected["scored"] == 1  # other scripts may read less in a text
    assert all(found["samples"] == 1 and not found["missing"] for found in (own, *others, corrected))


def test_an_id_that_the_annotations_lack_is_named(tmp_path, capsys):
    row = {"vid": "v_ab", "question": "Why?", "options": ["a", "b"], "ans": "A", "span": [5, 8]}
    theirs = write(tmp_path / "p.jsonl", '{"qid": "anet_val92", "pred_relevant_windows": [[5, 9]], "ans": "A"}')
    given = [
        "--annotations",
        write(tmp_path / "t.json", [row]),
        "--predictions",
        theirs,
        "--output",
        tmp_path / "s.json",
    ]
    assert run("rextime", *given) == 2
    assert "qid 'anet_val92' is not in the annotations" in capsys.readouterr().err
