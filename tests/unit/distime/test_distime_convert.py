"""The DisTime converter on folders that are made here: every way of storing weights, bases, and what it refuses."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import Qwen2Tokenizer
from transformers.utils import sentencepiece_model_pb2_new as sentencepiece

from distime.convert import convert, main
from distime.names import BINS, WRAPPER
from distime.tokenizer import IMAGE_TOKENS, TIME_TOKENS, read_tokenizer
from tests.models import SIZE, SPECIAL, byte_tokenizer, make_batch, make_bundle
from videollm.checkpoint import CheckpointError, load, read_config
from videollm.common.config import build
from videollm.training.assemble import assemble
from videollm.training.settings import Settings

BACKBONES = {"internvl": "qwen2", "llama": "internlm2"}
IMG = {"token": "<IMG_CONTEXT>", "start": "<img>", "end": "</img>"}
WQKV = "language_model.model.layers.0.attention.wqkv"


@pytest.fixture(scope="module")
def official_of(tmp_path_factory):
    """{backbone: an official folder}, made of a tiny model of ours."""
    made = {}

    def get(backbone):
        if backbone not in made:
            folder = tmp_path_factory.mktemp(backbone)
            bundle = make_bundle(backbone, "distime", template="internvl2_5", visual_tokens=IMG)
            bundle.save(folder / "ours")
            convert(str(folder / "ours"), str(folder / "official"), back=True)
            made[backbone] = folder
        return made[backbone]

    return get


@pytest.fixture
def official(official_of, tmp_path):
    """A copy of the Qwen2 one, to be spoilt."""
    return shutil.copytree(official_of("internvl") / "official", tmp_path / "official")


def change(folder, **fields):
    path = folder / "config.json"
    config = json.loads(path.read_text()) | {k: v for k, v in fields.items() if k != "llm_config"}
    config["llm_config"] |= fields.get("llm_config", {})
    path.write_text(json.dumps(config))


def weights(folder):
    return load_file(folder / "model.safetensors")


def store(state, folder, shards=1, binary=False):
    """``state`` in place of the folder's weights, in shards, each as .safetensors or .bin, with an index."""
    (folder / "model.safetensors").unlink()
    stem, end = ("pytorch_model", "bin") if binary else ("model", "safetensors")
    names, where = list(state), {}
    for i in range(shards):
        file = f"{stem}.{end}" if shards == 1 else f"{stem}-{i}-of-{shards}.{end}"
        part = {name: state[name] for name in names[i::shards]}
        torch.save(part, folder / file) if binary else save_file(part, folder / file)
        where |= dict.fromkeys(part, file)
    if shards > 1:
        (folder / f"{stem}.{end}.index.json").write_text(json.dumps({"weight_map": where}))


def refused(folder, *words):
    """Converting ``folder`` fails with one message that holds ``words``, and writes nothing."""
    target = folder.parent / "target"
    with pytest.raises(CheckpointError) as error:
        convert(str(folder), str(target))
    assert all(word in str(error.value) for word in words), error.value
    assert not target.exists()


def same(state, other):
    assert set(state) == set(other)
    assert all(torch.equal(state[name], other[name]) for name in state)


# ---- there and back --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_model_returns_from_the_official_layout_as_it_left(official_of, tmp_path, capsys, backbone):
    folder = official_of(backbone)
    layout = json.loads((folder / "official" / "config.json").read_text())["llm_config"]["model_type"]
    assert layout == BACKBONES[backbone]
    assert main([str(folder / "official"), str(tmp_path / "again")]) == 0
    assert "0 missing, 0 unexpected, 0 re-shaped" in capsys.readouterr().out
    before, after = load(folder / "ours"), load(tmp_path / "again")
    same(before.model.state_dict(), after.model.state_dict())
    batches = [make_batch(bundle, ["two_spans", "turns", "image"]) for bundle in (before, after)]
    assert batches[0].input_ids.equal(batches[1].input_ids)
    assert before.model(batches[0]).loss == after.model(batches[1]).loss


@pytest.mark.parametrize("shards, binary", [(3, False), (1, True), (2, True)])
def test_every_way_of_storing_weights_is_read(official, tmp_path, shards, binary):
    state = weights(official)
    convert(str(official), str(tmp_path / "whole"))
    store(state, official, shards, binary)
    convert(str(official), str(tmp_path / "parts"))
    same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))


def test_bf16_weights_stay_bf16(official, tmp_path):
    store({name: tensor.bfloat16() for name, tensor in weights(official).items()}, official)
    change(official, torch_dtype="bfloat16")
    convert(str(official), str(tmp_path / "ours"))
    assert read_config(tmp_path / "ours").precision == "bf16"  # and so it answers on a GPU
    assert {tensor.dtype for tensor in weights(tmp_path / "ours").values()} == {torch.bfloat16}
    convert(str(tmp_path / "ours"), str(tmp_path / "back"), back=True)
    same(weights(tmp_path / "back"), weights(official))


def test_an_adapter_on_the_fused_projection_is_merged_before_the_split(official_of, tmp_path):
    folder = shutil.copytree(official_of("llama") / "official", tmp_path / "official")
    state = weights(folder)
    a, b = torch.randn(2, state[f"{WQKV}.weight"].shape[1]), torch.randn(state[f"{WQKV}.weight"].shape[0], 2)
    merged = state | {f"{WQKV}.weight": state[f"{WQKV}.weight"] + 2 * b @ a}
    store(merged, folder)
    convert(str(folder), str(tmp_path / "merged"))
    wrapped = {name.replace("language_model.", WRAPPER, 1): tensor for name, tensor in state.items()}
    layer = WQKV.replace("language_model.", WRAPPER, 1)
    wrapped[f"{layer}.base_layer.weight"] = wrapped.pop(f"{layer}.weight")
    store(wrapped | {f"{layer}.lora_A.default.weight": a, f"{layer}.lora_B.default.weight": b}, folder)
    change(folder, use_llm_lora=2)
    convert(str(folder), str(tmp_path / "unmerged"))
    found, expected = weights(tmp_path / "unmerged"), weights(tmp_path / "merged")
    assert set(found) == set(expected)
    for name in found:
        torch.testing.assert_close(found[name], expected[name], atol=1e-5, rtol=0)


# ---- a base ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def base(official):
    """An InternVL checkpoint: no time head, no time tokens."""
    state = {n: t for n, t in weights(official).items() if not n.startswith("time_")}
    tokenizer = byte_tokenizer((*SPECIAL, *IMAGE_TOKENS))
    rows = len(tokenizer)
    for name in ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight"):
        state[name] = state[name][:rows].contiguous()
    store(state, official)
    tokenizer.save_pretrained(official)
    change(official, llm_config={"vocab_size": rows})
    return official


def test_a_base_gets_the_time_tokens_and_can_be_trained_but_not_asked(base, tmp_path, capsys, caplog):
    convert(str(base), str(tmp_path / "ours"))
    said = capsys.readouterr().out
    assert "no time head" in said and "missing: head.time_gen.layers.0.weight" in said
    old, new = weights(base), weights(tmp_path / "ours")
    rows = old["language_model.lm_head.weight"].shape[0]
    assert f"re-shaped: language_model.lm_head.weight [{rows}, 32] -> [{rows + 2}, 32]" in said
    output = new["language_model.lm_head.weight"]
    assert output[:rows].equal(old["language_model.lm_head.weight"])
    torch.testing.assert_close(output[rows:], output[:rows].mean(0, keepdim=True).expand(2, -1))
    fresh = new["language_model.model.embed_tokens.weight"][rows:]
    assert 0.01 < fresh.std() < 0.04 and not fresh[0].equal(fresh[1])
    with pytest.raises(CheckpointError, match="no weights of its distime head .* it is a base model: train the head"):
        load(tmp_path / "ours")
    data = {"preprocess": {"kind": "plain", "size": SIZE}}
    given = build(Settings, {"model": {"checkpoint": str(tmp_path / "ours")}, "data": data, "train": {"seed": 5}})
    bundle = assemble(given)
    assert "its head starts fresh" in caplog.text
    assert [bundle.config.token_ids[name] for name in TIME_TOKENS] == [rows, rows + 1]
    layer = bundle.model.head.time_gen.layers[0]
    assert layer.weight.abs().max() <= (6 / 64) ** 0.5 + 1e-6 and not layer.bias.any()  # Xavier, zeros
    assert layer.weight.equal(assemble(given).model.head.time_gen.layers[0].weight)  # from the run's seed
    assert bundle.model(make_batch(bundle, ["two_spans"])).loss.isfinite()


def test_a_base_goes_back_without_a_head(base, tmp_path):
    convert(str(base), str(tmp_path / "ours"))
    convert(str(tmp_path / "ours"), str(tmp_path / "back"), back=True)
    assert set(weights(tmp_path / "back")) == set(weights(base)) and BINS not in weights(tmp_path / "back")


@pytest.mark.parametrize("both", [False, True], ids=["one name", "two names"])
def test_a_base_is_tied_where_its_config_says_so_and_its_file_holds_one_name(base, tmp_path, both):
    """With two names the official code has two matrices, whatever its config says."""
    state = weights(base)
    first, second = "language_model.model.embed_tokens.weight", "language_model.lm_head.weight"
    rows = len(state[first])
    if not both:
        del state[second]
        store(state, base)
        refused(base, f"missing: {second}")
    change(base, llm_config={"tie_word_embeddings": True})
    convert(str(base), str(tmp_path / "ours"))
    new = weights(tmp_path / "ours")
    assert (second in new) is both and new[first][:rows].equal(state[first])
    mean = state[second if both else first].mean(0, keepdim=True).expand(2, -1)
    torch.testing.assert_close(new[second if both else first][rows:], mean)
    data = {"preprocess": {"kind": "plain", "size": SIZE}}
    model = assemble(build(Settings, {"model": {"checkpoint": str(tmp_path / "ours")}, "data": data})).model
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) is not both


# ---- tokenizers ------------------------------------------------------------------------------------------------------


def test_a_tokenizer_in_qwens_own_files_is_read(tmp_path):
    raw = Tokenizer(models.BPE({c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
    vocab, merges = raw.get_vocab() | {"he": 256, "Ġhe": 257}, [("h", "e"), ("Ġ", "he")]
    added = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *IMAGE_TOKENS]
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in merges))
    tokens = {258 + i: {"content": name, "special": True} for i, name in enumerate(added)}
    plain = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
    config = {"tokenizer_class": "Qwen2Tokenizer", "added_tokens_decoder": {i: t | plain for i, t in tokens.items()}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "internvl_chat"}))
    tokenizer = read_tokenizer(tmp_path)
    assert isinstance(tokenizer, Qwen2Tokenizer)
    assert tokenizer("<|im_start|>he he<img>").input_ids == [259, 256, 257, 261]


@pytest.fixture
def pieces(tmp_path):
    """A sentencepiece model of a few words with InternLM2's tokens added."""
    model = sentencepiece.ModelProto()
    model.trainer_spec.model_type, model.trainer_spec.unk_piece = 2, "<unk>"
    model.normalizer_spec.add_dummy_prefix = False
    parts = [("<unk>", 2), ("<s>", 3), ("</s>", 3), *((f"<0x{i:02X}>", 6) for i in range(256))]
    parts += [(text, 1) for text in ("he", "▁he", "h", "e", "▁", "[UNUSED_TOKEN]")]
    for i, (text, kind) in enumerate(parts):
        model.pieces.add(piece=text, score=-float(i), type=kind)
    (tmp_path / "tokenizer.model").write_bytes(model.SerializeToString())
    added = {len(parts) - 1 + i: name for i, name in enumerate(("<|im_start|>", "<|im_end|>", *IMAGE_TOKENS))}
    config = {
        "tokenizer_class": "InternLM2Tokenizer", "bos_token": "<s>",
        "auto_map": {"AutoTokenizer": ["tokenization_internlm2.InternLM2Tokenizer", None]},
        "added_tokens_decoder": {str(i): {"content": name, "special": True} for i, name in added.items()},
    }  # fmt: skip
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    return tmp_path


def test_internlms_sentencepiece_model_is_read_without_its_code(pieces):
    tokenizer = read_tokenizer(pieces)
    first = 3 + 256
    start = tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert start == first + 5 and tokenizer.pad_token_id == 2
    assert tokenizer("<|im_start|>he he").input_ids == [1, start, first, first + 1]
    assert tokenizer("é", add_special_tokens=False).input_ids == [3 + 0xC3, 3 + 0xA9]
    assert tokenizer.decode([first, first + 1, 3 + 0xC3, 3 + 0xA9]) == "he heé"


def test_tokenizer_files_of_different_checkpoints_are_refused(pieces):
    path = pieces / "tokenizer_config.json"
    path.write_text(path.read_text().replace('"265"', '"300"'))
    with pytest.raises(CheckpointError, match="of different checkpoints"):
        read_tokenizer(pieces)


# ---- bad input -------------------------------------------------------------------------------------------------------


def test_another_architecture_is_named(official):
    change(official, llm_config={"architectures": ["Phi3ForCausalLM"]})
    refused(official, "config.json", "Phi3ForCausalLM", "Qwen2ForCausalLM and InternLM2ForCausalLM")


def test_another_kind_of_model_is_named(official):
    (official / "config.json").write_text(json.dumps({"model_type": "llava", "text_config": {}}))
    refused(official, "'llava'", "neither InternVL2.5 nor DisTime", "without -hf")


def test_a_checkpoint_that_is_ours_already_is_named(official_of):
    refused(official_of("internvl") / "ours", "already a checkpoint of this project", "--back")


@pytest.mark.parametrize(
    "field, value",
    [("template", "internlm2-chat"), ("ps_version", "v1"), ("select_layer", -4), ("system_message", "X")],
)
def test_what_our_model_cannot_be_told_is_refused(official, field, value):
    change(official, **{field: value})
    refused(official, "config.json", field)


def test_a_missing_shard_is_named(official):
    store(weights(official), official, shards=3)
    (official / "model-1-of-3.safetensors").unlink()
    refused(official, "model-1-of-3.safetensors", "fetch the shard")


def test_missing_weights_and_configs_are_named(official):
    (official / "model.safetensors").unlink()
    refused(official, "no weights", "model.safetensors", "pytorch_model.bin")
    (official / "config.json").unlink()
    refused(official, "config.json: no such file")


def test_a_damaged_file_is_named(official):
    (official / "model.safetensors").write_bytes(b"no tensors")
    refused(official, "model.safetensors: cannot be read as tensors")


def test_objects_in_a_bin_are_not_unpickled(official):
    store(weights(official), official, binary=True)
    torch.save({"a": shutil.rmtree}, official / "pytorch_model.bin")
    refused(official, "pytorch_model.bin: cannot be read as tensors")


def test_another_vocabulary_size_is_named(official):
    change(official, llm_config={"vocab_size": 999})
    rows = weights(official)["language_model.lm_head.weight"].shape[0]
    refused(official, f"embeddings of {rows} tokens", "llm_config.vocab_size in config.json is 999")


def test_a_tokenizer_with_more_tokens_than_weights_is_refused(official):
    byte_tokenizer((*SPECIAL, *IMAGE_TOKENS, *TIME_TOKENS, *(f"<{i}>" for i in range(50)))).save_pretrained(official)
    refused(official, "its tokenizer has", "take both from one checkpoint")


def test_a_tokenizer_without_the_time_tokens_of_its_head_is_refused(official):
    byte_tokenizer((*SPECIAL, *IMAGE_TOKENS)).save_pretrained(official)
    refused(official, "has a time head", "<TIME_STAMP> and <FRAME_TIME_REF>", "copy the tokenizer files")


def test_a_tokenizer_without_image_tokens_is_refused(official):
    byte_tokenizer().save_pretrained(official)
    refused(official, "<img>, </img>, <IMG_CONTEXT>", "is this InternVL2.5 or DisTime")


def test_adapters_of_unknown_scale_are_refused(official):
    state, layer = weights(official), "language_model.model.layers.0.self_attn.q_proj"
    pair = {f"{layer}.lora_A.default.weight": torch.ones(2, 32), f"{layer}.lora_B.default.weight": torch.ones(32, 2)}
    store(state | pair, official)
    refused(official, "use_llm_lora is 0", "adapters of rank 2", "write the rank there")
    change(official, use_llm_lora=4)
    refused(official, "use_llm_lora is 4", "have rank 2")


def test_half_an_adapter_is_refused(official):
    layer = "language_model.model.layers.0.self_attn.q_proj"
    store(weights(official) | {f"{layer}.lora_A.default.weight": torch.ones(2, 32)}, official)
    change(official, use_llm_lora=2)
    refused(official, layer, "no lora_B")


def test_missing_and_reshaped_weights_are_refused_and_printed(official, capsys):
    state = weights(official)
    del state["mlp1.1.bias"], state["time_enc.layers.0.bias"]
    state["mlp1.3.bias"] = torch.zeros(7)
    store(state, official)
    refused(official, "do not fit its config.json", "connector.linear_1.bias", "head.time_enc.layers.0.bias")
    assert "re-shaped: connector.linear_2.bias [7] -> [32]" in capsys.readouterr().out


def test_an_unexpected_weight_is_printed_and_left_out(official, tmp_path, capsys):
    store(weights(official) | {"audio.weight": torch.ones(2)}, official)
    convert(str(official), str(tmp_path / "ours"))
    assert "unexpected: audio.weight" in capsys.readouterr().out
    assert load(tmp_path / "ours").model.head.options.reg_max == 8


def test_a_target_that_holds_something_is_left_alone(official, tmp_path):
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "mine.txt").write_text("x")
    with pytest.raises(CheckpointError, match="not an empty folder"):
        convert(str(official), str(tmp_path / "target"))


def test_a_name_that_is_no_folder_and_cannot_be_fetched_is_one_line(tmp_path, capsys):
    assert main(["nobody/nothing", str(tmp_path / "x")]) == 2
    assert (
        "nobody/nothing: no such folder, HF_HUB_OFFLINE is set and the hub's cache lacks it" in capsys.readouterr().err
    )
    assert main(["not a folder", str(tmp_path / "x")]) == 2
    assert "no hub name (owner/model) either" in capsys.readouterr().err


def test_a_model_without_an_official_layout_is_refused(tmp_path):
    make_bundle("etchat", "distime").save(tmp_path / "ours")
    with pytest.raises(
        CheckpointError, match="instructblip, qformer, distime, phi3, phi3; an official layout has only"
    ):
        convert(str(tmp_path / "ours"), str(tmp_path / "back"), back=True)
