"""The checkpoint that the repository ships, and the command that made it."""

import json
import re

import pytest
import yaml
from safetensors import safe_open

from quickstart import ship
from quickstart.clips import write_dataset
from tests.models import write_config
from videollm import ask, train
from videollm.checkpoint import load
from videollm.common.files import json_lines
from videollm.common.spans import tiou
from videollm.inference.session import Session

MOST_BYTES = {"": 3e6, "clips": 200e3}


@pytest.fixture(scope="module")
def shipped(repository):
    return repository / "quickstart/model"


def said(folder) -> str:
    return (folder / "README.md").read_text(encoding="utf-8")


# ---- what is shipped -------------------------------------------------------------------------------------------------


def test_it_is_small_and_in_bf16_and_has_nothing_that_can_run(shipped):
    for part, most in MOST_BYTES.items():
        assert sum(f.stat().st_size for f in (shipped / part).rglob("*") if f.is_file()) < most
    with safe_open(shipped / "model.safetensors", "pt") as file:
        kinds = {file.get_slice(name).get_dtype() for name in list(file.keys())}
    assert kinds == {"BF16", "I64"}  # the tower counts its batches
    kinds = {f.suffix for f in shipped.rglob("*") if f.is_file()}
    assert kinds == {".json", ".jsonl", ".md", ".mp4", ".safetensors"}


def test_its_card_says_where_it_is_from_and_what_it_reaches(shipped):
    card, scores = said(shipped), json.loads((shipped / "scores.json").read_text())
    assert yaml.safe_load(card.split("---")[1])["license"] == "apache-2.0"
    assert "- seed: 0" in card and "python -m quickstart.ship runs/quickstart/" in card
    assert len(re.findall(r"commit [0-9a-f]{40}\b", card)) == 2 and "dirty" not in card
    for name, value in scores["protocols"]["corrected"]["metrics"].items():
        assert f"| {name} | {value:.4g} | {value:.4g} |" in card
    assert scores["protocols"]["corrected"]["metrics"]["mIoU"] > 0.8


def test_it_answers_about_its_clips_at_once(shipped, capsys, monkeypatch, repository):
    """Asked as a reader would; most of its answers hold the truth."""
    monkeypatch.chdir(repository)
    lines = [line for _, line in json_lines(shipped / "clips.jsonl")]
    asked = [line for line in lines if line["task"] == "grounding"]
    pairs = [(shipped / line["video"], line["conversations"][0]["value"].split("\n")[1]) for line in asked]
    found = Session(load(shipped)).ask_many(pairs)
    good = [tiou(answer.spans[0], line["tgt"]) > 0.5 for answer, line in zip(found, asked, strict=True)]
    assert len(good) >= 4 and sum(good) >= 0.75 * len(good)
    words = ["--model", "quickstart/model", "--video", str(pairs[0][0].relative_to(repository)), "--device=cpu"]
    assert ask.main([*words, "--question", pairs[0][1]]) == 0
    assert found[0].text in capsys.readouterr().out


def test_its_answer_grows_evidence_first(shipped):
    pieces = list(Session(load(shipped)).stream(shipped / "clips/00000.mp4", "describe every event with its time ."))
    evidence = [len(piece.answer.evidence_spans) for piece in pieces]
    assert evidence == [2] * len(pieces) and len(pieces) > 5  # before there was anything to say
    assert [piece.spans for piece in pieces if piece.spans] == [[span] for span in pieces[-1].answer.spans]


# ---- how it is made --------------------------------------------------------------------------------------------------


def test_a_run_is_shipped_with_its_scores_measured_again(tmp_path, capsys):
    write_dataset(tmp_path / "data", {"train": 1, "test": 6}, progress=False)
    config = write_config(tmp_path, "d2vlm", steps=1)
    assert train.main(["--config", str(config)]) == 0
    words = [str(tmp_path / "run"), "--output", str(tmp_path / "model")]
    assert ship.main(words) == 0
    card, scores = said(tmp_path / "model"), json.loads((tmp_path / "model/scores.json").read_text())
    assert scores["protocols"]["corrected"]["counts"]["samples"] > 6 and str(tmp_path) not in card
    lines = [line for _, line in json_lines(tmp_path / "model/clips.jsonl")]
    assert len({line["video"] for line in lines}) == 2 and all(len(line["events"]) >= 2 for line in lines)
    assert all((tmp_path / "model" / line["video"]).is_file() for line in lines)
    assert ship.main(words) == 2 and "model is there; delete it, or choose another" in capsys.readouterr().err
    assert ship.main([str(tmp_path / "data/videos"), "--output", str(tmp_path / "other")]) == 2
    assert "is no run of a quickstart: there is no" in capsys.readouterr().err
