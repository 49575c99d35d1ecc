"""What the installed transformers writes is read, and what is written it reads: tiny models, no reference data."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from tests.models import NATIVE, make_bundle
from tests.unit.model.test_backbones import released
from videollm.checkpoint import load
from videollm.convert import main
from videollm.model.lora import add_lora, merge_lora


@pytest.fixture(scope="module", params=NATIVE)
def hub(request, tmp_path_factory):
    """(a folder as transformers writes it, its state) of a family."""
    bundle = make_bundle(request.param, "text", template="plain")
    folder = tmp_path_factory.mktemp("hub")
    model, _ = released(bundle, request.param)
    model.save_pretrained(folder)
    bundle.tokenizer.save_pretrained(folder)
    return folder, model.state_dict()


@pytest.fixture
def ours(hub, tmp_path):
    """The same as one of ours."""
    assert main([str(hub[0]), str(tmp_path / "ours")]) == 0
    return tmp_path / "ours"


def back(folder, target):
    assert main(["--back", str(folder), str(target)]) == 0
    return AutoModelForImageTextToText.from_pretrained(target)


def test_a_model_goes_to_ours_and_back(hub, ours, tmp_path, capsys):
    again = back(ours, tmp_path / "again")
    assert "0 missing, 0 unexpected, 0 re-shaped keys" in capsys.readouterr().out
    assert again.state_dict().keys() == hub[1].keys()
    assert all(torch.equal(tensor, hub[1][name]) for name, tensor in again.state_dict().items())
    assert load_file(tmp_path / "again/model.safetensors").keys() == load_file(hub[0] / "model.safetensors").keys()


def test_adapters_are_folded_in_on_the_way_back(ours, tmp_path):
    bundle = load(ours)
    config = {"r": 2, "alpha": 4.0, "dropout": 0.0, "targets": ["q_proj", "down_proj"]}
    add_lora(bundle.model.language_model, config)
    bundle.config.lora = config
    with torch.no_grad():
        for name, parameter in bundle.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    bundle.save(tmp_path / "trained")
    found = back(tmp_path / "trained", tmp_path / "again").state_dict()
    merge_lora(bundle.model)
    expected = bundle.model.language_model.state_dict()
    part = next(name for name in found if name.endswith("layers.0.self_attn.q_proj.weight") and "visual" not in name)
    torch.testing.assert_close(found[part], expected["model.layers.0.self_attn.q_proj.weight"])


def test_a_grown_vocabulary_goes_back_with_its_tokens(hub, tmp_path):
    assert main([str(hub[0]), str(tmp_path / "base"), "--head", "distime"]) == 0
    load(tmp_path / "base", fresh_head=True).save(tmp_path / "trained")
    again = back(tmp_path / "trained", tmp_path / "again")
    config = json.loads((tmp_path / "again/config.json").read_text())
    rows = again.get_input_embeddings().weight.shape[0]
    assert config["text_config"]["vocab_size"] == rows >= hub[1]["lm_head.weight"].shape[0]
    tokens = load(tmp_path / "trained").tokenizer
    assert len(tokens) <= rows and set(load_file(tmp_path / "again/head.safetensors"))


def test_a_head_beside_is_not_another_than_the_one_asked_for(hub, tmp_path, capsys):
    assert main([str(hub[0]), str(tmp_path / "base"), "--head", "distime"]) == 0
    model = load(tmp_path / "base", fresh_head=True)
    model.config.headless = False
    model.save(tmp_path / "trained")
    back(tmp_path / "trained", tmp_path / "again")
    capsys.readouterr()
    for asked in ("d2vlm", "text"):
        assert main([str(tmp_path / "again"), str(tmp_path / asked), "--head", asked]) == 2
        assert "head.safetensors: of a distime head; leave --head out" in capsys.readouterr().err
        assert not (tmp_path / asked).exists()
    for i, asked in enumerate(([], ["--head", "distime"])):
        assert main([str(tmp_path / "again"), str(tmp_path / f"taken{i}"), *asked]) == 0
        assert load(tmp_path / f"taken{i}").config.head["name"] == "distime"


def test_adapters_alone_have_to_be_merged_before_they_go_back(ours, tmp_path, capsys):
    bundle = load(ours)
    config = {"r": 2, "alpha": 4.0, "dropout": 0.0, "targets": ["q_proj"]}
    add_lora(bundle.model.language_model, config)
    bundle.config.lora = config
    bundle.save_adapters(tmp_path / "adapters", ours)
    assert main(["--back", str(tmp_path / "adapters"), str(tmp_path / "again")]) == 2
    assert "adapters without their base; first videollm checkpoint" in capsys.readouterr().err


def test_pixel_limits_that_nothing_can_keep_name_the_file_and_leave_nothing(hub, tmp_path, capsys):
    """The corrected folder then converts to the same place."""
    if json.loads((hub[0] / "config.json").read_text())["model_type"] not in ("qwen2_5_vl", "qwen3_vl"):
        pytest.skip("frames of one size have no such limits")
    folder = tmp_path / "hub"
    shutil.copytree(hub[0], folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"min_pixels": 5000, "max_pixels": 4000}))
    assert main([str(folder), str(tmp_path / "ours")]) == 2
    said = capsys.readouterr().err
    assert f"{folder}/preprocessor_config.json: preprocess: Preprocess.image_min_pixels is 5000, over" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hub"]
    (folder / "preprocessor_config.json").unlink()
    assert main([str(folder), str(tmp_path / "ours")]) == 0


@pytest.mark.parametrize("inside", [None, "text_config"])
def test_quantised_weights_are_not_converted(hub, inside, tmp_path, capsys):
    shutil.copytree(hub[0], tmp_path / "hub")
    path = tmp_path / "hub/config.json"
    fields = json.loads(path.read_text())
    (fields.get(inside, fields) if inside else fields)["quantization_config"] = {"quant_method": "fp8"}
    path.write_text(json.dumps(fields))
    assert main([str(tmp_path / "hub"), str(tmp_path / "ours")]) == 2
    assert f"error: {path}: quantization_config says that its weights are quantised (fp8)" in capsys.readouterr().err


def test_a_conversion_that_is_broken_leaves_nothing(hub, tmp_path, monkeypatch):
    def broken(folder, tensors):
        (folder / "shard-0.part").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr("videollm.checkpoint.conversion.write_tensors", broken)
    assert main([str(hub[0]), str(tmp_path / "ours")]) == 130
    assert not list(tmp_path.iterdir())


def test_an_unknown_head_and_one_that_needs_more_layers_are_answered_with_what_there_is(hub, tmp_path, capsys):
    assert main([str(hub[0]), str(tmp_path / "ours"), "--head", "d2vml"]) == 2
    assert "--head: 'd2vml' is unknown; did you mean d2vlm?" in capsys.readouterr().err
    assert main([str(hub[0]), str(tmp_path / "ours"), "--head", "d2vlm"]) == 2  # the model has 4 layers
    said = capsys.readouterr().err
    assert f"{hub[0]}: model.head: layer 6 is not below the last of" in said and "inject_layer lower" in said
