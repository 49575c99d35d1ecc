"""One rule for models whose token embedding is their output layer: what trains, what files hold, what is refused."""

import json
import logging

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.models import BACKBONES, make_batch, make_bundle, settings
from videollm.checkpoint import CheckpointError, load
from videollm.common.config import ConfigError
from videollm.model.lora import merge_lora
from videollm.model.tying import EMBEDDINGS, OUTPUT, tied
from videollm.training.memory import Zero, held_states, planned_model
from videollm.training.optimizer import parameter_groups
from videollm.training.run import print_start

TIED = BACKBONES["internvl"]["language"] | {"tie_word_embeddings": True}
LORA = {"r": 2, "alpha": 8, "dropout": 0.0, "targets": ["q_proj"]}


def make(tie: bool = True, head: str = "distime", **train):
    return make_bundle("internvl", head, train, language=TIED | {"tie_word_embeddings": tie})


def loss(bundle) -> float:
    return bundle.model(make_batch(bundle, ["two_spans", "turns"])).loss.item()


def stored(folder, stem="model") -> set[str]:
    """Which of the two names the folder's file holds."""
    return {EMBEDDINGS, OUTPUT} & set(load_file(folder / f"{stem}.safetensors"))


def add_output(folder, output) -> None:
    """Put an output layer beside the embeddings in the folder's file."""
    state = load_file(folder / "model.safetensors")
    save_file(state | {OUTPUT: output.clone()}, folder / "model.safetensors", {"format": "pt"})


# ---- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tie, names", [(True, {EMBEDDINGS}), (False, {EMBEDDINGS, OUTPUT})])
def test_a_gathered_state_is_written_under_the_names_of_the_rule(tmp_path, tie, names):
    """DeepSpeed hands over copies, of which nothing but the config tells that two are one."""
    bundle = make(tie)
    bundle.save(tmp_path, {name: tensor.clone() for name, tensor in bundle.model.state_dict().items()})
    assert stored(tmp_path) == names
    assert loss(load(tmp_path)) == pytest.approx(loss(bundle), rel=1e-6)


def test_trained_embeddings_beside_a_base_of_two_names_are_the_output_layer_too(tmp_path):
    bundle = make(lora=LORA)
    make().save(tmp_path / "base")
    add_output(tmp_path / "base", load_file(tmp_path / "base" / "model.safetensors")[EMBEDDINGS])
    with torch.no_grad():
        bundle.model.get_input_embeddings().weight.add_(0.1)
    bundle.save_adapters(tmp_path / "adapters", tmp_path / "base")
    assert stored(tmp_path / "adapters", "adapters") == {EMBEDDINGS}
    again = load(tmp_path / "adapters")
    assert again.model.get_output_embeddings().weight is again.model.get_input_embeddings().weight
    assert loss(again) == pytest.approx(loss(bundle), rel=1e-6)


def test_adapters_that_older_code_stored_with_the_second_name_are_read(tmp_path):
    bundle = make(lora=LORA)
    make().save(tmp_path / "base")
    bundle.save_adapters(tmp_path / "adapters", tmp_path / "base")
    path = tmp_path / "adapters" / "adapters.safetensors"
    save_file(load_file(path) | {OUTPUT: bundle.model.state_dict()[EMBEDDINGS].clone()}, path, {"format": "pt"})
    again = load(tmp_path / "adapters")
    assert tied(again.config.text_config) and loss(again) == pytest.approx(loss(bundle), rel=1e-6)


def test_two_matrices_that_differ_are_two_whatever_the_config_says(tmp_path, caplog):
    bundle = make(tie=False)
    bundle.save(tmp_path / "two")
    path = tmp_path / "two" / "config.json"
    fields = json.loads(path.read_text())
    fields["text_config"]["tie_word_embeddings"] = True
    path.write_text(json.dumps(fields))
    with caplog.at_level(logging.WARNING):
        again = load(tmp_path / "two")
    assert f"{tmp_path / 'two'}: its config ties lm_head" in caplog.text
    assert not tied(again.config.text_config) and loss(again) == pytest.approx(loss(bundle), rel=1e-6)
    again.save(tmp_path / "again")
    assert stored(tmp_path / "again") == {EMBEDDINGS, OUTPUT}
    caplog.clear()
    assert loss(load(tmp_path / "again")) == pytest.approx(loss(bundle), rel=1e-6) and not caplog.text


def test_an_untied_model_without_its_output_layer_is_refused(tmp_path):
    make(tie=False).save(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    del state[OUTPUT]
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=f"missing: {OUTPUT}"):
        load(tmp_path)


def test_a_module_takes_what_its_file_holds(tmp_path):
    """As transformers resumes a run, which else warns of a missing key."""
    bundle, other = make(), make(seed=2)
    bundle.save(tmp_path)
    found = other.model.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=False)
    assert not found.missing_keys and loss(other) == pytest.approx(loss(bundle), rel=1e-6)


# ---- language weights ------------------------------------------------------------------------------------------------


@pytest.fixture
def words(tmp_path):
    """A function: a language model's folder and its tokenizer's, tied or not."""

    def write(tie: bool):
        source = make(tie, "text")
        source.model.language_model.save_pretrained(tmp_path / "language")
        source.tokenizer.save_pretrained(tmp_path / "language")
        return source.model.language_model

    return write


def grown(folder, **language):
    """A model from the language weights, with rows for the tokens of another head."""
    where = {"language_weights": str(folder / "language"), "tokenizer": None}
    return make_bundle("internvl", "d2vlm", language=language, **where).model


@pytest.mark.parametrize("untie", [False, True])
def test_new_tokens_keep_the_tie_and_untying_starts_with_a_copy(words, tmp_path, untie):
    old = words(True).get_input_embeddings().weight
    model = grown(tmp_path, **({"tie_word_embeddings": False} if untie else {}))
    first, second = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    assert len(first) > len(old) and first[: len(old)].equal(old) and second.equal(first)
    assert (second is first) is not untie and tied(model.config.text_config) is not untie


def test_two_matrices_are_not_made_one(words, tmp_path):
    words(False)
    with pytest.raises(ConfigError, match="model.language_weights: .* ties them; set .*tie_word_embeddings=false"):
        grown(tmp_path, tie_word_embeddings=True)
    assert not tied(grown(tmp_path).config.text_config)


# ---- what trains -----------------------------------------------------------------------------------------------------


def test_one_matrix_is_one_parameter_everywhere(capsys):
    bundle = make()
    model, count = bundle.model, bundle.model.get_input_embeddings().weight.numel()
    groups = parameter_groups(model, settings("internvl", "distime"))
    held = [id(p) for group in groups for p in group["params"]]
    assert len(held) == len(set(held)) == sum(p.requires_grad for p in model.parameters())
    estimated = held_states(planned_model(settings("internvl", "distime", language=TIED)), Zero())
    assert estimated["embeddings"]["trained"] == count and "lm_head" not in estimated
    print_start(bundle, {"videos": 1})
    (row,) = [line for line in capsys.readouterr().out.splitlines() if "lm_head" in line]
    assert "embeddings = lm_head" in row and row.count(f"{count:,}") == 2


def test_lm_head_of_a_tied_model_may_be_told_what_embeddings_are_told():
    same = {"embeddings": {"train": True, "lr": 0.1}, "lm_head": {"train": True, "lr": 0.1}}
    assert make(lora=LORA, parts=same).model.get_output_embeddings().weight.requires_grad
    assert make(parts={"lm_head": {"train": True}}).model.get_output_embeddings().weight.requires_grad


@pytest.mark.parametrize(
    "train",
    [
        {"lora": LORA, "parts": {"lm_head": {"train": True}}},
        {"parts": {"lm_head": {"train": False}}},
        {"parts": {"lm_head": {"lr": 0.1}}},
        {"parts": {"embeddings": {"weight_decay": 0.1}, "lm_head": {"train": True}}},
    ],
)
def test_lm_head_of_a_tied_model_cannot_be_told_anything_else(train):
    with pytest.raises(ConfigError, match="train.parts.lm_head: this language model has one matrix"):
        make(**train)
    make(tie=False, **train)


def test_a_part_without_parameters_cannot_train():
    for given in ({"train": True}, {"lr": 0.1}, {"only": ["x"]}):
        with pytest.raises(ConfigError, match="train.parts.lora: this model has no parameters there; train.lora adds"):
            make(parts={"lora": given})
    with pytest.raises(ConfigError, match="train.parts.head: this model has no parameters there; leave it out"):
        make(head="text", parts={"head": {"train": True}})
    make(head="text", parts={"head": {"train": False}})  # nothing is claimed
    parts = ("connector", "language_model", "embeddings", "head")
    with pytest.raises(ConfigError, match="train.parts: leaves nothing to train"):
        make(parts=dict.fromkeys(parts, {"train": False}))


# ---- adapters --------------------------------------------------------------------------------------------------------


def test_an_adapter_needs_an_output_layer_of_its_own():
    lora = LORA | {"targets": ["q_proj", "lm_head"]}
    with pytest.raises(ConfigError, match="train.lora.targets: lm_head shares its matrix"):
        make(lora=lora)
    assert loss(make(tie=False, lora=lora)) == pytest.approx(loss(make(tie=False)), rel=1e-6)


def test_merging_an_adapter_of_the_embeddings_leaves_the_output_layer_as_it_was(tmp_path):
    bundle = make(lora=LORA | {"targets": ["embed_tokens"]})
    with torch.no_grad():
        for name, parameter in bundle.model.named_parameters():
            if "lora_" in name:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
    expected, output = loss(bundle), bundle.model.get_output_embeddings().weight.clone()
    assert abs(expected - loss(make())) > 1e-3
    merge_lora(bundle.model)
    assert bundle.model.get_output_embeddings().weight.equal(output)
    bundle.save(tmp_path)
    again = load(tmp_path)
    assert not tied(again.config.text_config) and loss(again) == pytest.approx(expected, rel=1e-5)
