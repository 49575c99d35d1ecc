"""Ranking held-out pairs: by factor what the objective says in all, and a user's mistakes in one line."""

import json

import pytest
import torch

from d2vlm import rank
from d2vlm.fpo import FPO, FPOOptions
from tests.models import NoiseReader, clip_lines, clips, make_bundle, record, turns, write_lines
from videollm.training.validation import held_out

WORSE = [
    {"factor": "shift", "value": "at <span> and <span>.", "tgt": [2, 3, 0, 1]},
    {"factor": "wording", "value": "a cat sleeps."},
]
LINES = [
    {
        "id": "p1", "video": "a.mp4", "duration": 4, "tgt": [0, 2, 1, 3], "rejected": WORSE,
        "conversations": turns("<video>\nwhen is it?", "at <span> and <span>."),
    },
    {"id": "p2", "video": "broken.mp4", "conversations": turns("<video>\nx?", "y"), "rejected": WORSE[1:]},
    {"id": "p3", "video": "b.mp4", "conversations": turns("<video>\nwhat?", "a dog"), "rejected": WORSE[1:]},
]  # fmt: skip


@pytest.fixture(scope="module")
def bundle():
    return make_bundle("etchat", "d2vlm")


def test_pairs_of_all_records_add_up_to_what_the_objective_says(bundle):
    objective, records = FPO(FPOOptions()), [record(line) for line in LINES]
    names, rows, bad = rank.compare(bundle, records, NoiseReader(), objective, size=2)
    assert names == ["shift", "wording", "wording"] and len(bad) == 1 and "broken.mp4" in bad[0]
    found = rank.summary(names, rows)
    wanted = held_out(bundle, objective, [records[0], records[2]], NoiseReader(), size=2)
    accuracy = wanted.pop("preference_accuracy")
    assert {name: found[name] for name in wanted} == pytest.approx(wanted, rel=1e-4) and found["pairs"] == 3
    assert found["accuracy"] == pytest.approx(accuracy)
    weighted = sum(of["pairs"] * of["margin"] for of in found["by_factor"].values()) / 3
    assert weighted == pytest.approx(found["margin"], rel=1e-5)
    assert {name: of["pairs"] for name, of in found["by_factor"].items()} == {"shift": 1, "wording": 2}


def test_accuracy_counts_margins_above_zero():
    rows = torch.zeros(3, len(rank.COLUMNS))
    rows[:, -1] = torch.tensor([1.0, -2.0, 0.0])
    assert rank.summary(["a", "a", "b"], rows)["accuracy"] == pytest.approx(1 / 3)


@pytest.fixture(scope="module")
def checkpoint(bundle, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    bundle.save(folder)
    return str(folder)


def command(tmp_path, checkpoint, lines, *more):
    path = write_lines(tmp_path / "pairs.jsonl", lines)
    given = ["--model", checkpoint, checkpoint, "--annotations", path, "--videos", str(clips())]
    return rank.main([*given, "--output", str(tmp_path / "ranks.json"), "--device", "cpu", *more])


def test_the_command_ranks_with_every_model_and_writes_a_report(tmp_path, checkpoint, capsys):
    lines = [line | {"rejected": WORSE[1:]} for line in clip_lines(2)]
    assert command(tmp_path, checkpoint, lines, "beta=0.2") == 0
    report = json.loads((tmp_path / "ranks.json").read_text())
    assert set(report["models"]) == {checkpoint} and report["options"]["beta"] == 0.2
    assert report["models"][checkpoint]["by_factor"]["wording"]["pairs"] == 2
    assert "wording" in capsys.readouterr().out


def test_a_model_ranks_in_its_own_precision(checkpoint, tmp_path, monkeypatch):
    seen, compare = [], rank.compare
    monkeypatch.setattr(rank, "own_precision", lambda config, device: "bf16")
    monkeypatch.setattr(
        rank, "compare", lambda bundle, *rest: seen.append(bundle.model.dtype) or compare(bundle, *rest)
    )
    assert command(tmp_path, checkpoint, [clip_lines(1)[0] | {"rejected": WORSE[1:]}]) == 0
    assert seen == [torch.bfloat16] * 2


@pytest.mark.parametrize(
    ("lines", "more", "says"),
    [
        (clip_lines(1), [], "--annotations: no record has rejected answers"),
        ([clip_lines(1)[0] | {"rejected": WORSE[1:]}], ["beta=0"], "beta: 0"),
        ([clip_lines(1)[0] | {"rejected": WORSE[1:]}], ["reference=x"], "reference: a margin without one"),
        ([LINES[1]], [], "none of the 1 records could be read"),
    ],
)
def test_a_users_mistake_is_one_line(tmp_path, checkpoint, capsys, lines, more, says):
    assert command(tmp_path, checkpoint, lines, *more) == 2
    assert says in capsys.readouterr().err
