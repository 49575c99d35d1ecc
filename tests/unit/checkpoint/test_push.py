"""``videollm.push``: what goes to the hub, and the card that is made for it; against the stand-in of tests/hub.py."""

import json
import re
import shutil

import pytest
import yaml

from tests.models import make_bundle, write_config
from tests.unit.checkpoint.test_adapters import LORA
from videollm import push, train
from videollm.checkpoint import hub, load, local

SCORES = {
    "title": "Moments",
    "variant": "theirs",
    "commit": "abc",
    "protocols": {
        "published": {"metrics": {"R1@0.5": 51.25, "mIoU": None}, "unit": "percent", "counts": {"samples": 4}},
        "corrected": {"metrics": {"R1@0.5": 50.0, "mIoU": 41.0}, "unit": "percent", "counts": {"samples": 4}},
    },
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run with a model, and a checkpoint from which it could go on."""
    config = write_config(tmp_path_factory.mktemp("run"), "distime", steps=1, save_every=1)
    assert train.main(["--config", str(config)]) == 0
    return config.parent / "run"


def told(capsys, *words) -> tuple[int, str, str]:
    status = push.main([str(word) for word in words])
    out, err = capsys.readouterr()
    return status, out, err


def test_a_model_is_pushed_with_its_card_and_can_be_loaded_from_there(trained, stand_in, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "hf_of_nobody")
    words = (trained / "final", "lab/moments", "--licence", "mit", "--private")
    found = told(capsys, *words)
    assert found[0] == 0, found
    assert found[1] == f"{stand_in.url}/lab/moments\n"
    assert "private" in {*stand_in.made["lab/moments"], stand_in.made["lab/moments"].get("visibility")}
    there = set(stand_in.pushed)
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json"} <= there
    assert not [name for name in there if name.endswith((".bin", ".yaml", ".jsonl"))]
    for name, data in stand_in.pushed.items():
        (tmp_path / name).write_bytes(data)
    stand_in.models["lab/moments"] = {"main": tmp_path}
    assert load("lab/moments").config.head == load(trained / "final").config.head
    assert "README.md" not in {path.name for path in hub.files_of(local("lab/moments"))}


def test_the_card_says_where_the_model_is_from_and_what_it_reaches(trained, tmp_path, capsys):
    (tmp_path / "scores.json").write_text(json.dumps(SCORES))
    words = (trained / "final", "lab/moments", "--licence", "mit", "--dry-run", "--scores", tmp_path / "scores.json")
    status, card, _ = told(capsys, *words)
    front = yaml.safe_load(card.split("---")[1])
    assert status == 0 and front["license"] == "mit" and "distime" in front["tags"]
    start = json.loads((trained / "starts.jsonl").read_text().splitlines()[0])
    assert start["commit"] in card and "- seed: " in card and "/train.jsonl\n" in card
    assert "| R1@0.5 | 51.25 | 50 |" in card and "| mIoU |  | 41 |" in card
    assert "Moments, variant theirs" in card and "| metric | published, percent | corrected, percent |" in card
    assert str(trained) not in card and "would push: model.safetensors" in card
    assert 'load("lab/moments")' in card and "num_frames: " in card


def test_scores_that_lie_beside_are_taken_and_so_is_a_card(trained, tmp_path, capsys):
    folder = tmp_path / "final"
    shutil.copytree(trained / "final", folder)
    (folder / "evaluation/moments").mkdir(parents=True)
    (folder / "evaluation/moments/scores.json").write_text(json.dumps(SCORES))
    words = (folder, "lab/moments", "--dry-run", "--licence")
    _, card, _ = told(capsys, *words, "mit")
    assert "variant theirs" in card and "Nothing is told of it." in card
    assert "would push: evaluation" not in card
    (folder / "README.md").write_text("---\nlicense: mit\n---\nMine.\n")
    assert told(capsys, *words, "mit")[1].startswith("---\nlicense: mit\n---\nMine.\n")
    status, _, err = told(capsys, *words, "apache-2.0")
    assert status == 2 and "README.md: does not say license: apache-2.0" in err


def test_only_files_of_a_checkpoint_are_pushed_and_none_that_is_a_link(trained, tmp_path, capsys):
    folder = tmp_path / "final"
    shutil.copytree(trained / "final", folder)
    (folder / "clips/raw").mkdir(parents=True)
    (folder / "clips/0.mp4").write_bytes(b"clip")
    words = (folder, "lab/moments", "--licence", "mit", "--dry-run")
    status, out, _ = told(capsys, *words)
    assert status == 0 and "would push: clips/0.mp4" in out and "clips/raw" not in out
    (folder / "notes.json").write_text("{}")
    (folder / "passwords.txt").write_text("secret")
    (folder / "trainer_state.json").write_text("{}")
    out = told(capsys, *words)[1]
    assert "would push: config.json" in out and not {"notes", "passwords", "trainer_state"} & set(re.split(r"\W", out))
    secret = tmp_path / "secret"
    secret.write_text("{}")
    for name, target in (("vocab.json", "none.json"), ("merges.txt", secret), ("clips.jsonl", "config.json")):
        (folder / name).symlink_to(target)
        status, out, err = told(capsys, *words)
        assert (status, out) == (2, "") and f"{name}: is a link, or no file; only the folder's own are pushed" in err
        (folder / name).unlink()
    shutil.move(folder / "clips", tmp_path / "clips")
    (folder / "clips").symlink_to(tmp_path / "clips")
    status, _, err = told(capsys, *words)
    assert status == 2 and "clips/0.mp4: is a link" in err


def test_what_is_missing_or_half_is_one_line_with_the_remedy(trained, stand_in, tmp_path, capsys):
    half, adapters = tmp_path / "checkpoint-9", tmp_path / "adapters"
    shutil.copytree(trained / "checkpoint-1", half)
    (half / "manifest.json").unlink()
    torn = tmp_path / "checkpoint-8"
    shutil.copytree(trained / "checkpoint-1", torn)
    (torn / "model.safetensors").write_bytes(b"")
    bundle = make_bundle("internvl", "distime", {"lora": LORA})
    base = tmp_path / "base"
    make_bundle("internvl", "distime").save(base)
    bundle.save_adapters(adapters, base)
    (tmp_path / "empty").mkdir()
    (tmp_path / "s.json").write_text("{}")
    final, licence = trained / "final", ("--licence", "mit")
    for words, message in (
        ((final, "lab/moments"), "--licence: under which licence may others use the weights? Give it: apache-2.0, "),
        ((final, "moments", *licence), "OWNER/NAME: 'moments' is no name of a model on the hub"),
        ((final, "lab/a b", *licence), "OWNER/NAME: 'lab/a b' is no name"),
        ((tmp_path / "none", "lab/moments", *licence), "none: no such folder; give the folder of a trained model"),
        ((tmp_path / "empty", "lab/moments", *licence), "no config.json; give the folder of a trained model"),
        ((half, "lab/moments", *licence), "checkpoint-9: no manifest.json, so it was not written to the end"),
        ((torn, "lab/moments", *licence), "1 files are missing or have another size, first model.safetensors"),
        ((adapters, "lab/moments", *licence), "which others lack; first videollm checkpoint "),
        ((final, "lab/moments", *licence, "--scores", tmp_path / "s.json"), "s.json is no file of scores (it has "),
    ):
        status, out, err = told(capsys, *words)
        assert (status, out) == (2, "") and message in err and err.count("error: ") == 1, (message, err)
    status, _, err = told(capsys, half, "moments")
    assert status == 2 and all(part in err for part in ("--licence: ", "OWNER/NAME: ", "no manifest.json"))  # at once
    stand_in.shutdown()
    stand_in.server_close()
    status, _, err = told(capsys, final, "lab/moments", *licence)
    assert status == 2 and "lab/moments: cannot be pushed (" in err and "hf auth login" in err
