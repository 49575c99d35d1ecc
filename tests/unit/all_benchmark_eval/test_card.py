"""Cards: each says things that exist, and the command puts ours beside the published numbers."""

import json
import re

import pytest

from all_benchmark_eval import card
from all_benchmark_eval.benchmark import get
from tests.benchmark_data import write_all
from tests.models import make_bundle

PUBLISHED = {  # by a metric that a README has: card -> benchmark -> metric
    "distime_1b": ("charades", "R1@0.5", 56.26),
    "distime_8b": ("charades", "R1@0.5", 60.32),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_all(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "distime"
    make_bundle("internvl", "distime").save(folder)
    return folder


@pytest.mark.parametrize("name", card.names())
def test_every_card_names_what_is_there_and_numbers_of_the_readmes(name, repository):
    found = card.read_card(name)
    benchmark, metric, value = PUBLISHED[name]
    assert found.benchmarks[benchmark].published[metric] == value
    assert (
        re.match(r"python -m (distime|d2vlm)\.convert ", found.model.convert) and found.model.hub in found.model.convert
    )
    for benchmark, row in found.benchmarks.items():
        text = (repository / "all_benchmark_eval" / benchmark / "README.md").read_text()
        assert get(benchmark).name == benchmark and all(f"{value:g}" in text for value in row.published.values())


def test_ours_stand_beside_the_published_numbers(data, model, tmp_path, capsys):
    small = ["--device", "cpu", "--batch-size", "8", "generate.max_new_tokens=4"]
    arguments = ["distime_1b", str(model), "--data", str(data), "--output", str(tmp_path), *small]
    assert card.main([*arguments, "--benchmarks", "charades,longvideobench"]) == 0
    written = json.loads((tmp_path / "card.json").read_text())
    scores = json.loads((tmp_path / "charades/scores.json").read_text())
    assert scores["variant"] == "distime" and list(written["rows"]) == ["charades", "longvideobench"]
    metrics = scores["protocols"]["published"]["metrics"]
    for row in written["rows"]["charades"]:
        assert row["ours"] == metrics[row["metric"]] and row["difference"] == row["ours"] - row["published"]
    assert [row["metric"] for row in written["rows"]["charades"]] == ["R1@0.3", "R1@0.5", "R1@0.7", "mIoU"]
    said = capsys.readouterr().out
    assert "DisTime-1B (the authors' prediction files" in said and "56.26" in said and "0.4899" in said


def test_every_metric_of_a_card_is_printed_by_its_benchmark(data, model, tmp_path):
    small = ["--device", "cpu", "--batch-size", "8", "generate.max_new_tokens=4"]
    assert card.main(["distime_8b", str(model), "--data", str(data), "--output", str(tmp_path), *small]) == 0
    rows = json.loads((tmp_path / "card.json").read_text())["rows"]
    missing = [(name, row["metric"]) for name, numbers in rows.items() for row in numbers if row["ours"] is None]
    assert set(rows) == set(card.read_card("distime_8b").benchmarks) and not missing


def test_a_benchmark_without_data_is_named_and_the_others_go_on(data, model, tmp_path, capsys):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/charades").symlink_to(data / "charades")
    small = ["--device", "cpu", "generate.max_new_tokens=2", "--benchmarks", "anet,charades"]
    arguments = ["distime_1b", str(model), "--data", str(tmp_path / "data"), "--output", str(tmp_path / "out"), *small]
    assert card.main(arguments) == 1
    assert "error: anet: " in (said := capsys.readouterr()).err and "all_benchmark_eval/anet/README.md" in said.err
    assert list(json.loads((tmp_path / "out/card.json").read_text())["rows"]) == ["charades"]


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["nothing"], "there is no card 'nothing'; there are distime_1b, distime_8b"),
        (
            ["distime_1b", "none"],
            "none: no such checkpoint; get UserJoseph/DisTime-1B from the hub (licence: see its card",
        ),
        (["distime_1b", "generate.seed=1"], "checkpoints/distime_1b: no such checkpoint"),
        (["distime_1b", ".", "--benchmarks", "videomme"], "--benchmarks: distime_1b has no videomme; it has charades"),
    ],
)
def test_what_cannot_begin_is_one_line_that_says_what_to_get(arguments, why, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert card.main([*arguments, "--data", "data"]) == 2
    said = capsys.readouterr().err
    assert why in said and said.count("\n") == 1


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ("wording: french", "wording 'french' is not one of"),
        ("wordin: distime", "wordin: unknown key; did you mean"),
        ("benchmarks: {charades: {variant: mine, published: {}}}", "charades: no variant 'mine'"),
        ("benchmarks: {nothing: {variant: mine, published: {}}}", "unknown benchmark 'nothing'"),
    ],
)
def test_a_card_that_says_something_unknown_is_refused(change, why, tmp_path, capsys, monkeypatch):
    text = (card.CARDS / "distime_1b.yaml").read_text()
    key = change.partition(":")[0].replace("wordin", "wording").replace("wordingg", "wording")
    lines = text.partition("benchmarks:")[0] if key == "benchmarks" else text
    (tmp_path / "mine.yaml").write_text(re.sub(rf"^{key}:.*\n", "", lines, flags=re.MULTILINE) + f"{change}\n")
    monkeypatch.setattr(card, "CARDS", tmp_path)
    assert card.main(["mine", str(tmp_path), "--data", "data"]) == 2
    assert why in capsys.readouterr().err
