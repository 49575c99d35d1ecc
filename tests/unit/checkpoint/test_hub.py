"""A hub name wherever a checkpoint folder may stand; a stand-in for the hub on this machine, no network."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

import videollm
from tests.hub import Hub
from tests.models import clip_lines, clips, make_bundle, tokenizer_folder, write_config, write_lines
from videollm import ask, convert, infer, train
from videollm.checkpoint import CheckpointError, hub, load, load_tokenizer, local, read_config
from videollm.common.config import ConfigError

NAME = "lab/clips-tiny"
NEVER = ("pytorch_model.bin", "modeling.py", "training_args.bin", "picture.png")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    found = tmp_path_factory.mktemp("model")
    make_bundle("internvl", "distime").save(found)
    for name in NEVER:
        (found / name).write_bytes(b"no")
    return found


@pytest.fixture
def model(stand_in, folder):
    """The name of a model on the stand-in."""
    stand_in.models[NAME] = {"main": folder}
    return NAME


# ---- where a folder may stand ----------------------------------------------------------------------------------------


def test_only_weights_words_and_settings_are_fetched_and_weights_when_they_are_needed(stand_in, model, folder):
    assert read_config(model).head == read_config(folder).head and load_tokenizer(model, "model.tokenizer")
    assert "config.json" in stand_in.asked and "model.safetensors" not in stand_in.asked
    fetched = load(model).model.state_dict()
    assert all(torch.equal(tensor, fetched[name]) for name, tensor in load(folder).model.state_dict().items())
    assert "model.safetensors" in stand_in.asked and not set(NEVER) & set(stand_in.asked)
    assert len(stand_in.asked) == len(set(stand_in.asked))  # nothing twice


def test_a_name_is_asked_inferred_and_loaded_from_python(model, folder, tmp_path, capsys):
    video = clips() / "clip0.mp4"
    words = ["--video", str(video), "--question", "when ?", "--device=cpu", "generate.max_new_tokens=4"]
    told = [(ask.main(["--model", str(one), *words]), capsys.readouterr().out) for one in (model, folder)]
    assert told[0] == told[1] and told[0][0] == 0
    how = {"device": "cpu", "generate": {"max_new_tokens": 4}}
    both = [videollm.load(one, **how).ask(video, "when ?") for one in (model, f"{model}@main")]
    assert both[0] == both[1] and told[0][1].startswith(both[0].text)
    lines, output = write_lines(tmp_path / "q.jsonl", clip_lines(1)), tmp_path / "a.jsonl"
    words = ["--annotations", lines, "--videos", str(clips()), "--output", str(output), *words[-2:]]
    assert infer.main(["--model", model, *words]) == 0
    assert infer.main(["--model", str(folder), *words]) == 0  # the same content: found complete


def test_training_starts_from_a_name(model, tmp_path, capsys):
    config = write_config(tmp_path, "distime", steps=1)
    assert train.main(["--config", str(config), "model={checkpoint: " + NAME + "}"]) == 0
    assert load(tmp_path / "run/final").config.head["name"] == "distime"
    other = f"train.output={tmp_path / 'other'}"
    assert train.main(["--config", str(config), "model={checkpoint: lab/none}", other]) == 2
    assert "lab/none: no such folder, and no such public model on the hub" in capsys.readouterr().err


def test_a_tokenizer_of_a_name_is_taken_for_a_model_of_parts(stand_in, tmp_path):
    stand_in.models["lab/words"] = {"main": Path(tokenizer_folder())}
    assert len(load_tokenizer("lab/words", "model.tokenizer")) == len(load_tokenizer(tokenizer_folder(), "x"))


def test_a_language_model_and_a_tower_are_taken_from_names(stand_in, tmp_path):
    source = make_bundle("internvl", "text")
    for part, kept in (("language", source.model.language_model), ("tower", source.model.vision_tower)):
        kept.save_pretrained(tmp_path / part)
        stand_in.models[f"lab/{part}"] = {"main": tmp_path / part}
    names = {"language_weights": "lab/language", "vision_weights": "lab/tower"}
    made = make_bundle("internvl", "text", language={}, **names).model
    for old, new in (
        (source.model.language_model, made.language_model),
        (source.model.vision_tower, made.vision_tower),
    ):
        assert all(torch.equal(tensor, new.state_dict()[name]) for name, tensor in old.state_dict().items())


def test_convert_takes_a_name(model, tmp_path, capsys):
    assert convert.main([model, str(tmp_path / "made")]) == 2
    assert "already a checkpoint of this project" in capsys.readouterr().err


# ---- which one -------------------------------------------------------------------------------------------------------


def test_a_folder_wins_over_a_name(model, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folder, tmp_path / NAME)
    assert local(NAME) == local(tmp_path / NAME).relative_to(tmp_path)


def test_a_revision_pins(stand_in, model, folder, tmp_path):
    older = tmp_path / "older"
    older.mkdir()
    (older / "config.json").write_text("{}")
    stand_in.models[model]["v1"] = older
    assert (local(f"{model}@v1") / "config.json").read_text() == "{}"
    assert local(f"{model}@{Hub.commit(folder)}") == local(model)


def test_what_is_in_the_cache_needs_no_network(stand_in, model, monkeypatch):
    first = local(model)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    stand_in.models.clear()
    hub.fetched.cache_clear()
    assert local(model) == first and local(f"{model}@main") == first


# ---- what is wrong ---------------------------------------------------------------------------------------------------


def said(call, error=CheckpointError) -> str:
    with pytest.raises(error) as raised:
        call()
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_what_cannot_be_fetched_is_one_line_with_the_remedy(stand_in, model, tmp_path, monkeypatch):
    stand_in.gated.add("lab/closed")
    assert said(lambda: local("lab/none")).startswith("lab/none: no such folder, and no such public model on the hub; ")
    assert "accept at https://huggingface.co/lab/closed, then log in" in said(lambda: load("lab/closed"))
    assert "the hub has no revision v9 of it; give a branch, tag or commit" in said(lambda: load(f"{model}@v9"))
    for name in ("runs/x/final", str(tmp_path / "none"), "a b/c", "../none", "./none", "a/" + 5000 * "b/"):
        assert f"{name}: no such folder; give the folder of a trained model" in said(lambda name=name: load(name))
    (tmp_path / "file").write_text("")
    monkeypatch.chdir(tmp_path)
    assert said(lambda: local("file")).startswith("file: no such folder; ")
    missing = said(lambda: load_tokenizer("lab/none", "model.tokenizer"), ConfigError)
    assert missing.startswith("model.tokenizer: lab/none: no such folder")


def test_without_a_network_it_says_so(stand_in, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for name in ("lab/other", "nowhere"):  # either may be meant: a folder that is not here, or a name on the hub
        told = said(lambda name=name: local(name))
        assert f"{name}: no such folder, HF_HUB_OFFLINE is set and the hub's cache lacks it; give the folder " in told
        assert told.endswith(f"; if it is a name on the hub, where there is a network: hf download {name}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # where nobody listens
    assert "the hub cannot be reached and the hub's cache lacks it" in said(lambda: local("lab/other"))


def test_hub_names_need_no_client_for_folders(folder):
    """A folder starts no client: it may be on a machine without one."""
    assert local(folder) == folder and os.path.isdir(local(str(folder)))
