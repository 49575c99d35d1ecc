"""Weights come one parameter at a time; under ZeRO-3 two ranks hold what a plain start holds, each its share of it."""

import json
import os
from functools import partial
from pathlib import Path

import pytest
import torch

from tests.models import make_bundle, model_settings, settings
from tests.ranks import forked
from videollm.common.config import ConfigError, build, to_dict
from videollm.common.spread import elements, fill, misfits, without_weights
from videollm.training.assemble import assemble, spreading
from videollm.training.preflight import prepare_process
from videollm.training.settings import Settings

ZERO3 = str(Path(__file__).parents[3] / "configs/deepspeed/zero3.json")


def described(model: dict, train: dict, data: dict | None = None) -> Settings:
    """The settings of a run, whose frames are as the tiny towers take them."""
    preprocess = to_dict(settings("internvl", "text").data.preprocess)
    return build(Settings, {"model": model, "data": {"preprocess": preprocess} | (data or {}), "train": train})


def spread_ranks(folder: Path, model: dict, train: dict, data: dict | None = None) -> None:
    """Two processes assemble under ZeRO-3; rank 0 writes the gathered weights, each how much it held of them."""
    pids = forked(2, lambda rank: be_rank(folder, rank, model, train, data))
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0, 0]


def be_rank(folder: Path, rank: int, model: dict, train: dict, data: dict | None) -> None:
    """One of the ranks."""
    import deepspeed

    given = described(model, train | {"deepspeed": ZERO3}, data)
    prepare_process(given)
    spread = spreading(given)
    built = assemble(given, spread).model
    whole = [name for name, p in built.named_parameters() if not hasattr(p, "ds_id")]
    spread.rest(built, finished=True)
    own = sum(p.ds_tensor.numel() for p in built.parameters())
    state, every = {}, sum(elements(p) for p in built.parameters())
    tie = built.get_output_embeddings().weight is built.get_input_embeddings().weight
    for name, parameter in built.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter]):
            state[name] = parameter.detach().clone()
    torch.save(state, folder / f"weights{rank}.pt")
    (folder / f"held{rank}.json").write_text(json.dumps({"own": own, "all": every, "whole": whole, "tied": tie}))


def plain(model: dict, train: dict):
    """The model as a plain run starts it."""
    return assemble(described(model, train)).model


def language_of(folder: Path, tie: bool) -> dict:
    """A model of parts whose language model is a released one, with rows to be added, and words to be written."""
    language = {**model_settings("internvl", "text")["language"], "tie_word_embeddings": tie}
    source = make_bundle("internvl", "text", language=language)
    source.model.language_model.to(torch.bfloat16).save_pretrained(folder / "language")
    changes = {"language": {}, "language_weights": str(folder / "language")}
    return model_settings("internvl", "d2vlm", **changes)


def checkpoint_of(folder: Path, headless: bool = False) -> dict:
    """A checkpoint; or a base, whose head training has to start."""
    bundle = make_bundle("internvl", "distime")
    bundle.config.headless = headless
    kept = {n: t for n, t in bundle.model.state_dict().items() if not (headless and n.startswith("head."))}
    bundle.model.save_pretrained(folder / "model", state_dict=kept)
    bundle.save_tokenizers(folder / "model")
    return {"checkpoint": str(folder / "model")}


def adapters_of(folder: Path) -> dict:
    """Adapters beside the base that they belong to."""
    base = checkpoint_of(folder)
    bundle = assemble(described(base, {"seed": 4, "lora": {"r": 2}}))
    bundle.save_adapters(folder / "adapters", folder / "model")
    return {"checkpoint": str(folder / "adapters")}


MODELS = {
    "checkpoint": checkpoint_of,
    "base": partial(checkpoint_of, headless=True),
    "adapters": adapters_of,
    "tied language": partial(language_of, tie=True),
    "language": partial(language_of, tie=False),
    "parts": lambda _: model_settings("internvl", "distime"),
}


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_two_ranks_hold_the_weights_of_a_plain_start(tmp_path, kind, precision):
    train = {"precision": precision, "seed": 3, "lora": {"r": 2}}
    model = MODELS[kind](tmp_path)
    expected = plain(model, train)
    assert {p.dtype for p in expected.parameters()} == {torch.float32}  # also of a language model released in bf16
    spread_ranks(tmp_path, model, train)
    held = [json.loads((tmp_path / f"held{rank}.json").read_text()) for rank in range(2)]
    count = sum(p.numel() for p in expected.parameters())
    assert all(h["all"] == count and h["own"] < 0.52 * count and not h["whole"] for h in held)
    assert all(h["tied"] == (kind == "tied language") for h in held)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    for rank in range(2):
        found = torch.load(tmp_path / f"weights{rank}.pt")
        for name, parameter in expected.named_parameters():
            assert torch.equal(found[name], parameter.detach().to(dtype)), name


def test_a_tower_whose_features_are_kept_is_whole_and_in_float32_first(tmp_path):
    make_bundle("internvl", "distime").save(tmp_path / "model")
    model, data = {"checkpoint": str(tmp_path / "model")}, {"features": str(tmp_path / "features")}
    spread_ranks(tmp_path, model, {"precision": "bf16"}, data)
    whole = json.loads((tmp_path / "held1.json").read_text())["whole"]
    tower = [n for n, _ in plain(model, {}).named_parameters() if n.startswith("vision_tower.")]
    assert whole == tower


def test_modules_without_weights_have_buffers_and_draw_nothing():
    before = torch.get_rng_state()
    with without_weights():
        made = torch.nn.BatchNorm1d(3)
    assert made.weight.is_meta and made.running_var.tolist() == [1, 1, 1]
    assert torch.equal(before, torch.get_rng_state())
    values = {**torch.nn.BatchNorm1d(3).state_dict(), "bias": torch.arange(3.0), "running_mean": torch.ones(3)}
    assert misfits(made, values) == [] and misfits(made, {**values, "bias": torch.ones(2)}) == ["bias"]
    fill(made, values)
    assert made.bias.tolist() == [0, 1, 2] and made.running_mean.tolist() == [1, 1, 1]


def test_language_weights_of_another_shape_are_one_line(tmp_path):
    model = language_of(tmp_path, tie=False) | {"language": {"num_hidden_layers": 3}}
    with pytest.raises(ConfigError, match="model.language_weights: .* does not fit .*model.layers.3"):
        plain(model, {})
