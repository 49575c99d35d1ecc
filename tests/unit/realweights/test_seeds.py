"""The table over seeds: its figures by hand, and folders that give none."""

import json

import pytest

from realweights import seeds
from videollm.common.config import ConfigError


def report(seed: int, miou: float, runs=("evidence", "text")) -> dict:
    scores = {"mIoU": miou, "R@1": {"0.5": 0.5, "0.7": 0.25}, "dense_F1": 0.4, "mc_accuracy": 0.3}
    heads = {run: scores | {"skill": (miou - 0.4) / 0.5} for run in runs}
    guesses = {"a": {"mIoU": 0.4}, "b": {"mIoU": 0.1}}
    split = {"heads": heads, "baselines": guesses, "oracle": {"mIoU": 0.9}}
    return {"seed": seed, "commit": f"c{seed}", "splits": {"test": split}, "validation_mIoU": dict.fromkeys(runs, miou)}


def written(folder, made) -> str:
    folder.mkdir()
    (folder / "report.json").write_text(json.dumps(made))
    return str(folder)


def test_mean_and_spread_are_those_of_the_seeds_in_their_order(tmp_path, capsys):
    folders = [written(tmp_path / "b", report(2, 0.8)), written(tmp_path / "a", report(0, 0.6))]
    assert seeds.main(folders) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[6:] == ["", "Seed (commit): 0 (c0), 2 (c2)"]
    lines = lines[:6]
    row = [cell.strip() for cell in lines[2].split("|")[1:-1]]
    # The deviation of 0.6 and 0.8 is 0.2 / sqrt(2).
    told = {"mIoU": "0.700 ± 0.141", "best guess": "0.400 ± 0.000", "skill": "0.60 ± 0.28", "of each": "0.40, 0.80"}
    assert {key: row[seeds.COLUMNS.index(key)] for key in told} == told
    assert row[:2] == ["test", "evidence"] and lines[5].startswith("| validation | text | 0.700 ± 0.141 |")
    assert len({line.count("|") for line in lines}) == 1


def test_one_seed_has_no_spread(tmp_path, capsys):
    assert seeds.main([written(tmp_path / "a", report(0, 0.6))]) == 0
    assert "±" not in capsys.readouterr().out


def test_what_gives_no_table_is_named(tmp_path):
    one = written(tmp_path / "a", report(0, 0.6))
    twice = written(tmp_path / "b", report(0, 0.7))
    fewer = written(tmp_path / "c", report(1, 0.7, ("evidence",)))
    other = written(tmp_path / "d", {"seed": 3, "validation_mIoU": {"evidence": 0.5, "text": 0.5}})
    (tmp_path / "empty").mkdir()
    for folder, told in ((twice, "seed 0 is given twice"), (fewer, "text not in all reports"), (other, "not a report")):
        with pytest.raises(ConfigError, match=told):
            seeds.read_reports([tmp_path / "a", tmp_path / folder])
    with pytest.raises(ConfigError, match="run to its end"):
        seeds.read_reports([tmp_path / "empty"])
    assert seeds.main([one, twice]) == 2
