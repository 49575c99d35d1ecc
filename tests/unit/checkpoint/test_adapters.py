"""Adapters are merged, or stored with the head beside the base they belong to; what does not fit is named."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.models import make_batch, make_bundle
from videollm.checkpoint import CheckpointError, load
from videollm.checkpoint.__main__ import main
from videollm.common.config import ConfigError
from videollm.model.lora import merge_lora

LORA = {"r": 2, "alpha": 8, "dropout": 0.0, "targets": ["q_proj", "down_proj"]}
NAMES = ["two_spans", "turns"]


def trained(backbone="internvl", head="distime"):
    """A tiny model as training leaves it: adapters, head and embeddings are others than the base's."""
    bundle = make_bundle(backbone, head, {"lora": LORA})
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in bundle.model.named_parameters():
            if "lora_" in name or name.startswith("head.") or "embed_tokens" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return bundle


MERGERS = {"qwen3_vl": ["linear_fc1", "linear_fc2"], "qwen2_5_vl": ["mlp.0", "mlp.2"]}


@pytest.mark.parametrize("backbone", MERGERS)
def test_adapters_of_merger_and_tower_learn_and_are_the_model_again(backbone, tmp_path):
    make_bundle(backbone, "d2vlm").save(tmp_path / "base")
    own = LORA | {"connector": MERGERS[backbone], "vision_tower": ["qkv", "attn.proj"]}
    bundle = make_bundle(backbone, "d2vlm", {"lora": own})
    torch.manual_seed(3)
    for name, parameter in bundle.model.named_parameters():
        part = name.partition(".")[0]
        assert parameter.requires_grad == ("lora_" in name or part == "head"), name
        parameter.data += 0.1 * torch.randn_like(parameter) * ("lora_" in name)
    bundle.model.train()(make_batch(bundle, NAMES)).loss.backward()
    grads = {name: p.grad for name, p in bundle.model.named_parameters() if "lora_" in name}
    assert all(grad is not None and grad.any() for grad in grads.values())
    parts = {name.partition(".")[0] for name in grads}
    assert parts == {"language_model", "connector", "vision_tower"} and not any("patch_embed" in name for name in grads)
    bundle.model.eval()
    bundle.save_adapters(tmp_path / "adapters", tmp_path / "base")
    again, expected = load(tmp_path / "adapters"), loss(bundle)
    assert loss(again) == pytest.approx(expected, rel=1e-6) != pytest.approx(loss(load(tmp_path / "base")), rel=1e-3)
    merge_lora(again.model)
    assert loss(again) == pytest.approx(expected, rel=1e-4)
    assert not any("lora_" in name or "base_layer" in name for name in again.model.state_dict())


def test_a_layer_that_a_part_has_not_is_named_by_its_key():
    with pytest.raises(ConfigError, match=r"train\.lora\.vision_tower: .*q_proj"):
        make_bundle("qwen3_vl", "text", {"lora": LORA | {"vision_tower": ["q_proj"]}})


def loss(bundle):
    return bundle.model(make_batch(bundle, NAMES)).loss.item()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """base/, whole/ (un-merged) and adapters/ of one model."""
    folder = tmp_path_factory.mktemp("made")
    make_bundle("internvl", "distime").save(folder / "base")
    bundle = trained()
    bundle.save(folder / "whole")
    bundle.save_adapters(folder / "adapters", folder / "base")
    return folder


@pytest.fixture
def adapters(made, tmp_path):
    return shutil.copytree(made / "adapters", tmp_path / "adapters")


def weights(folder):
    return load_file(folder / "adapters.safetensors")


@pytest.mark.parametrize("backbone, head", [("internvl", "distime"), ("gemma2", "d2vlm")])
def test_adapters_and_their_base_are_the_model_again(tmp_path, backbone, head):
    make_bundle(backbone, head).save(tmp_path / "base")
    bundle = trained(backbone, head)
    bundle.save_adapters(tmp_path / "adapters", tmp_path / "base")
    again = load(tmp_path / "adapters")
    state, found = bundle.model.state_dict(), again.model.state_dict()
    assert set(found) == set(state) and all(found[name].equal(state[name]) for name in state)
    assert loss(again) == loss(bundle)
    again.save(tmp_path / "whole")
    assert loss(load(tmp_path / "whole")) == loss(bundle)  # and no longer needs its base


def test_only_what_was_trained_is_stored(made):
    names = set(weights(made / "adapters"))
    of_head = {name for name in load_file(made / "base" / "model.safetensors") if name.startswith("head.")}
    assert {n for n in names if "lora_" not in n} == of_head | {"language_model.model.embed_tokens.weight"}
    assert sum("lora_A" in n for n in names) == sum("lora_B" in n for n in names) == 8  # 2 layers' kinds, 4 layers


def test_adapters_without_their_head_are_refused_though_the_base_has_one(adapters):
    kept = {name: tensor for name, tensor in weights(adapters).items() if not name.startswith("head.")}
    save_file(kept, adapters / "adapters.safetensors")
    with pytest.raises(CheckpointError, match="holds no weights of its distime head"):
        load(adapters)
    with pytest.raises(CheckpointError, match="holds no weights of its distime head"):
        load(adapters, fresh_head=True)


def test_a_missing_adapter_is_named(adapters):
    kept = weights(adapters)
    gone = next(name for name in kept if "lora_A" in name)
    del kept[gone]
    save_file(kept, adapters / "adapters.safetensors")
    with pytest.raises(CheckpointError, match=gone):
        load(adapters)


def test_a_base_that_is_not_there_is_named(adapters):
    path = adapters / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"base": "gone/base"}))
    with pytest.raises(CheckpointError, match="gone/base: no such folder"):
        load(adapters)
    path.write_text(json.dumps({key: value for key, value in config.items() if key != "base"}))
    with pytest.raises(CheckpointError, match="config.json: no `base`"):
        load(adapters)


def test_a_base_with_adapters_or_of_another_model_is_refused(made, tmp_path):
    with pytest.raises(CheckpointError, match="has adapters itself; merge them first"):
        trained().save_adapters(tmp_path / "a", made / "whole")
    with pytest.raises(CheckpointError, match="is not what this model was trained on"):
        trained("etchat").save_adapters(tmp_path / "b", made / "base")


def test_the_command_merges_and_extracts(made, tmp_path, capsys):
    expected = trained()
    merge_lora(expected.model)
    assert main([str(made / "adapters"), str(tmp_path / "merged")]) == 0
    merged = load(tmp_path / "merged")
    state = expected.model.state_dict()
    assert merged.config.lora is None and set(merged.model.state_dict()) == set(state)
    assert loss(merged) == pytest.approx(loss(trained()), rel=1e-5)
    assert main([str(made / "whole"), str(tmp_path / "a"), "--adapters", str(made / "base")]) == 0
    found, before = weights(tmp_path / "a"), weights(made / "adapters")
    assert set(found) == set(before) and all(found[name].equal(before[name]) for name in found)
    capsys.readouterr()
    assert main([str(made / "base"), str(tmp_path / "b")]) == 2
    assert "has no adapters, so there is nothing to do" in capsys.readouterr().err
