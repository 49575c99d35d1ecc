"""A saved model is the same model; a folder that is none says what it lacks."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.models import LINES, PAIRS, byte_tokenizer, make_batch, make_bundle, settings
from videollm.checkpoint import CheckpointError, load
from videollm.common.config import ConfigError
from videollm.model.generate import GenerateOptions
from videollm.model.lora import merge_lora
from videollm.training.assemble import assemble
from videollm.training.optimizer import part_of, set_trainable

ALL = list(LINES)
LORA = {"r": 2, "alpha": 8, "dropout": 0.0}


def answers(bundle):
    batch = make_batch(bundle, ALL, asked=True)
    found = bundle.model.answer(batch, bundle.tokenizer, bundle.stop_id, GenerateOptions(max_new_tokens=8))
    return [(a.raw_text, a.spans, a.evidence_spans, reason) for a, reason in found]


def loss(bundle) -> float:
    return bundle.model(make_batch(bundle, ALL)).loss.item()


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_a_loaded_model_answers_and_learns_as_the_saved_one(tmp_path, pair):
    bundle = make_bundle(*pair)
    bundle.save(tmp_path)
    again = load(tmp_path)
    assert not again.model.training
    assert answers(again) == answers(bundle)
    assert loss(again) == pytest.approx(loss(bundle), rel=1e-6)
    assert again.encoder().visual == bundle.encoder().visual
    assert again.reader("x").preprocess == bundle.reader("x").preprocess
    assert again.reader("x").sampler == bundle.reader("x").sampler


def test_tied_embeddings_stay_tied(tmp_path):
    bundle = make_bundle("gemma2", "d2vlm")
    bundle.save(tmp_path)
    model = load(tmp_path).model
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    make_bundle("internvl", "d2vlm").save(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "copy")


def weights(folder, change):
    path = folder / "model.safetensors"
    tensors = change(load_file(path))
    save_file(tensors, path, metadata={"format": "pt"})


def refusal(folder) -> str:
    with pytest.raises((CheckpointError, ConfigError)) as error:
        load(folder)
    assert str(folder) in str(error.value) and "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    "files, named", [("config.json",) * 2, ("tokenizer*", "tokenizer"), ("model.safetensors",) * 2]
)
def test_a_folder_without_one_of_its_files_is_refused(folder, files, named):
    for path in folder.glob(files):
        path.unlink()
    assert named in refusal(folder)


def test_a_broken_config_is_refused(folder):
    (folder / "config.json").write_text("{")
    assert "JSON" in refusal(folder)


CANNOT_BE = {
    "text_config": [5, {"model_type": "nothing"}], "head": [["distime"]], "precision": ["fp8"], "template": [None, "x"],
    "visual_tokens": [3], "token_ids": [None, {"<TIME_STAMP>": "x"}], "context_length": [0, "long", None],
    "sampler": ["x"], "preprocess": [[]], "max_tiles": [-3, None], "lora": ["x", {"r": 2}], "generate": [[]],
    "headless": ["no"], "base": [3],
}  # fmt: skip


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in CANNOT_BE.items() for value in values])
def test_a_config_with_a_value_that_cannot_be_is_refused(folder, key, value):
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(fields | {key: value}))
    assert key in refusal(folder)


def test_a_model_of_another_kind_is_refused(folder):
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    assert "'qwen2'" in refusal(folder)


def test_truncated_weights_are_refused(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    assert "weights" in refusal(folder)


def test_a_model_whose_head_was_never_trained_is_refused(folder):
    weights(folder, lambda t: {k: v for k, v in t.items() if not k.startswith("head.")})
    message = refusal(folder)
    assert "d2vlm head" in message and "head.frm_head.0.weight" in message or "head.evi_head" in message


def test_missing_unexpected_and_reshaped_weights_are_named(folder):
    def change(tensors):
        tensors["connector.more"] = torch.zeros(2)
        tensors["connector.linear_2.bias"] = torch.zeros(3)
        del tensors["connector.linear_1.bias"]
        return tensors

    weights(folder, change)
    message = refusal(folder)
    for part in ("missing: connector.linear_1.bias", "unexpected: connector.more", "shape: connector.linear_2.bias"):
        assert part in message


def test_a_tokenizer_without_the_span_tokens_is_refused(folder):
    byte_tokenizer().save_pretrained(folder)
    assert "evi>" in refusal(folder)


def test_a_tokenizer_with_other_ids_for_the_span_tokens_is_refused(folder):
    other = byte_tokenizer()
    names = ["<evi>", "</evi>", "<IMG_CONTEXT>", "<img>", "</img>"]
    other.add_special_tokens({"extra_special_tokens": names}, replace_extra_special_tokens=False)
    other.save_pretrained(folder)
    assert "evi>" in refusal(folder)


def test_a_missing_question_tokenizer_is_refused(tmp_path):
    make_bundle("etchat", "text").save(tmp_path)
    shutil.rmtree(tmp_path / "question_tokenizer")
    assert "question_tokenizer" in refusal(tmp_path)


# ---- adapters --------------------------------------------------------------------------------------------------------


def train_adapters(bundle, steps=3):
    optimizer = torch.optim.SGD([p for p in bundle.model.parameters() if p.requires_grad], lr=0.5)
    bundle.model.train()
    for _ in range(steps):
        bundle.model(make_batch(bundle, ["two_spans"])).loss.backward()
        torch.nn.utils.clip_grad_norm_(bundle.model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    bundle.model.eval()


@pytest.mark.parametrize("backbone", ["internvl", "etchat"])
def test_merged_adapters_compute_what_trained_ones_did(tmp_path, backbone):
    targets = ["qkv_proj", "o_proj"] if backbone == "etchat" else ["q_proj", "k_proj", "v_proj", "o_proj"]
    bundle = make_bundle(backbone, "d2vlm", train={"lora": LORA | {"targets": targets}})
    untrained = loss(bundle)
    assert untrained == pytest.approx(loss(make_bundle(backbone, "d2vlm")), rel=1e-6)
    trained = {part_of(n) for n, p in bundle.model.named_parameters() if p.requires_grad}
    assert trained == {"lora", "connector", "head"}
    train_adapters(bundle)
    expected, said = loss(bundle), answers(bundle)
    assert abs(expected - untrained) > 1e-3
    bundle.save(tmp_path / "apart")
    apart = load(tmp_path / "apart")
    assert loss(apart) == pytest.approx(expected, rel=1e-6) and answers(apart) == said
    merge_lora(bundle.model)
    assert loss(bundle) == pytest.approx(expected, rel=1e-5)
    bundle.save(tmp_path / "merged")
    merged = load(tmp_path / "merged")
    assert merged.config.lora is None and not any("lora" in n for n, _ in merged.model.named_parameters())
    assert loss(merged) == pytest.approx(expected, rel=1e-5)
    assert [a[0] for a in answers(merged)] == [a[0] for a in said]


def test_an_adapter_target_that_does_not_exist_is_named():
    with pytest.raises(ConfigError, match=r"train\.lora\.targets.*nothing_proj"):
        make_bundle("internvl", "text", train={"lora": LORA | {"targets": ["nothing_proj"]}})


# ---- starting from a checkpoint --------------------------------------------------------------------------------------


def test_training_may_start_from_a_checkpoint_with_new_data_settings(saved):
    given = settings("internvl", "d2vlm")
    given.model = type(given.model)(checkpoint=str(saved))
    given.data.max_length = 77
    bundle = assemble(given)
    assert bundle.config.context_length == 77
    set_trainable(bundle.model, given.train)
    assert loss(bundle) == pytest.approx(loss(load(saved)), rel=1e-6)


@pytest.mark.parametrize(
    "changes, words",
    [({"head": {"name": "text"}}, "model.head.name"), ({"language": {"model_type": "llama"}}, "model.language")],
)
def test_a_checkpoints_parts_cannot_be_exchanged_by_the_config(saved, changes, words):
    given = settings("internvl", "d2vlm")
    given.model = type(given.model)(checkpoint=str(saved), **changes)
    with pytest.raises(ConfigError, match=words):
        assemble(given)


def test_pretrained_parts_keep_their_weights(tmp_path):
    """A language model and a tower from folders, the vocabulary grown by the head's tokens."""
    source = make_bundle("internvl", "text")
    source.model.language_model.save_pretrained(tmp_path / "language")
    source.tokenizer.save_pretrained(tmp_path / "language")
    (tmp_path / "tower").mkdir()
    save_file(source.model.vision_tower.state_dict(), tmp_path / "tower" / "model.safetensors")
    bundle = make_bundle(
        "internvl", "d2vlm", language={}, tokenizer=None, language_weights=str(tmp_path / "language"),
        vision_weights=str(tmp_path / "tower"),
    )  # fmt: skip
    old, new = source.model.language_model.state_dict(), bundle.model.language_model.state_dict()
    assert old.keys() == new.keys()
    for name, tensor in old.items():
        assert torch.equal(new[name][: len(tensor)], tensor), name
    assert len(new["lm_head.weight"]) > len(old["lm_head.weight"])
    for name, tensor in source.model.vision_tower.state_dict().items():
        assert torch.equal(bundle.model.vision_tower.state_dict()[name], tensor)


def test_a_quantised_language_model_and_a_misspelt_field_of_one_are_told_before_any_weight_is_read(tmp_path):
    source = make_bundle("internvl", "text")
    source.model.language_model.save_pretrained(tmp_path)
    source.tokenizer.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    parts = {"tokenizer": None, "language_weights": str(tmp_path)}
    with pytest.raises(ConfigError, match=r"^model\.language\.hidden_sise: unknown key; did you mean hidden_size\?"):
        make_bundle("internvl", "d2vlm", language={"hidden_sise": 1}, **parts)
    config = json.loads((tmp_path / "config.json").read_text()) | {"quantization_config": {"quant_method": "gguf"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"^model\.language_weights: .*quantised \(gguf\).* in bf16"):
        make_bundle("internvl", "d2vlm", language={}, **parts)


@pytest.mark.parametrize("key", ["language_weights", "vision_weights", "tokenizer"])
def test_a_folder_that_does_not_exist_is_named_by_its_key(tmp_path, key):
    with pytest.raises(ConfigError, match=rf"model\.{key}"):
        make_bundle("internvl", "text", **{key: str(tmp_path / "none")})


@pytest.mark.parametrize("key", ["vision_weights", "word_vectors"])
def test_a_file_that_is_no_safetensors_is_named_by_its_key(tmp_path, key):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"no tensors")
    given = tmp_path if key == "vision_weights" else path
    with pytest.raises(ConfigError, match=rf"model\.{key}: .*model\.safetensors cannot be read as safetensors"):
        make_bundle("internvl", "text", **{key: str(given)})


def test_shards_without_their_index_are_told(folder):
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    with pytest.raises(CheckpointError, match=r"in 1 shards, .*, but model\.safetensors\.index\.json is missing"):
        load(folder)


def test_a_transform_that_does_not_fit_the_tower_is_told_before_anything_is_asked(folder):
    """As with an empty one: the default makes frames of another size."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"preprocess": {}}))
    with pytest.raises(ConfigError, match=r"config\.json: preprocess: makes frames of \(3, 448, 448\)"):
        load(folder).reader(folder)


def test_a_model_that_has_read_questions_is_saved_as_the_same_files(tmp_path):
    """A tokenizer remembers how it padded last; with that in its file answers would not go on with the model."""
    bundle = make_bundle("etchat", "text")
    bundle.save(tmp_path / "before")
    make_batch(bundle, ALL)
    bundle.save(tmp_path / "behind")
    for file in ("tokenizer.json", "question_tokenizer/tokenizer.json"):
        assert (tmp_path / "behind" / file).read_bytes() == (tmp_path / "before" / file).read_bytes()
