"""The converter's command: every published form becomes ours, ours goes back; what does not fit is said in a line."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from d2vlm.convert import main
from d2vlm.names import TOWER, official
from tests.models import SIZE, make_batch, make_bundle, settings, tokenizer_folder
from videollm.checkpoint import CheckpointError, load, read_config
from videollm.checkpoint.tensors import write_tensors
from videollm.training.assemble import assemble

PREFIX = "base_model.model."
VISION = {
    "type": "instructblip", "image_size": SIZE, "patch_size": 14, "hidden_size": 88, "num_hidden_layers": 2,
    "num_attention_heads": 1, "intermediate_size": 64,
}  # fmt: skip
CONNECTOR = {
    "type": "qformer", "num_query_tokens": 4, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 1,
    "intermediate_size": 64, "vocab_size": 300,
}  # fmt: skip
PHI3 = {
    "model_type": "phi3", "hidden_size": 32, "num_hidden_layers": 7, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 64, "vocab_size": 300, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip


def make_own(folder, **language):
    """A tiny checkpoint of ours with the released sizes of attention heads."""
    model = {"vision": VISION, "connector": CONNECTOR, "language": PHI3 | language, "head": {"name": "d2vlm"}}
    make_bundle("etchat", "d2vlm", data={"preprocess": {"kind": "clip", "size": SIZE}}, **model).save(folder)
    return folder


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    return make_own(tmp_path_factory.mktemp("own"))


@pytest.fixture(scope="module")
def published(own, tmp_path_factory):
    """The same in the published form."""
    folder = tmp_path_factory.mktemp("published") / "full"
    main([str(own), str(folder), "--back"])
    return folder


@pytest.fixture
def copy(published, tmp_path):
    return shutil.copytree(published, tmp_path / "copy")


def command(source, output, *options) -> int:
    return main([str(source), str(output), "--question-tokenizer", tokenizer_folder(), *map(str, options)])


def convert(source, output, *options):
    assert command(source, output, *options) == 0
    return output


def change_config(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps({k: v for k, v in (json.loads(path.read_text()) | fields).items() if v is not None}))


def change_weights(folder, change):
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path)


def without(*prefixes):
    return lambda state: {n: t for n, t in state.items() if not n.startswith(prefixes)}


def make_adapter(published, folder):
    """An adapter beside ``published``: LoRA on two layers, a new lm_head; the state that they should give."""
    folder.mkdir()
    state, drawn = load_file(published / "model.safetensors"), torch.Generator().manual_seed(5)
    lora = {}
    for layer in ("model.layers.0.self_attn.qkv_proj", "model.layers.3.self_attn.o_proj"):
        rows, columns = state[f"{layer}.weight"].shape
        a, b = torch.randn(2, columns, generator=drawn), torch.randn(rows, 2, generator=drawn)
        lora |= {f"{PREFIX}{layer}.lora_A.weight": a, f"{PREFIX}{layer}.lora_B.weight": b}
        state[f"{layer}.weight"] = state[f"{layer}.weight"] + 4 * b @ a
    state["lm_head.weight"] = torch.randn(state["lm_head.weight"].shape, generator=drawn)
    save_file(lora, folder / "adapter_model.safetensors")
    save_file({PREFIX + "lm_head.weight": state["lm_head.weight"]}, folder / "pytorch_model.safetensors")
    options = {"peft_type": "LORA", "r": 2, "lora_alpha": 8, "target_modules": ["qkv_proj", "o_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(options))
    shutil.copy(published / "config.json", folder)
    return state


def make_parts(published, folder):
    """The raw parts of ``published``: language model, EVA with one block more, Q-Former."""
    state = load_file(published / "model.safetensors")
    language = {
        n: t for n, t in state.items() if n.startswith(("model.layers", "model.embed", "model.norm", "lm_head"))
    }
    write_tensors(folder / "language", language.items())
    (folder / "language" / "config.json").write_text(json.dumps(PHI3))
    shutil.copytree(tokenizer_folder(), folder / "language", dirs_exist_ok=True)
    eva = {n.removeprefix(TOWER): t for n, t in state.items() if n.startswith(TOWER)}
    eva |= {n.replace("blocks.1.", "blocks.2."): t + 1 for n, t in eva.items() if "blocks.1." in n}
    torch.save(eva, folder / "eva.pth")
    names = {
        "model.qformer_bert.": "Qformer.",
        "model.qformer_query": "query_tokens",
        "model.qformer_ln.": "ln_vision.",
    }
    bert = {new + n.removeprefix(old): t for old, new in names.items() for n, t in state.items() if n.startswith(old)}
    torch.save({"model": bert | {"Qformer.cls.predictions.bias": torch.zeros(3)}}, folder / "qformer.pth")
    return state


def same_state(folder, expected, prefix=""):
    found = load(folder).model.state_dict()
    wanted = {n: t for n, t in expected.items() if n.startswith(prefix)}
    assert wanted and all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


@pytest.fixture(scope="module")
def one_matrix(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tied")
    main([str(make_own(folder / "own", tie_word_embeddings=True)), str(folder / "published"), "--back"])
    return folder


@pytest.mark.parametrize("second", [None, 0.0, 0.1], ids=["one name", "two names", "two matrices"])
def test_one_matrix_stays_one_and_two_stay_two(one_matrix, tmp_path, second):
    folder, embeddings = shutil.copytree(one_matrix / "published", tmp_path / "published"), "model.embed_tokens.weight"
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    if second is not None:
        change_weights(folder, lambda state: state | {"lm_head.weight": state[embeddings] + second})
    model = load(convert(folder, tmp_path / "again")).model
    output, found = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    before = load(one_matrix / "own").model.get_input_embeddings().weight
    assert found.equal(before) and output.equal(before + (second or 0.0))
    assert (output is found) is not bool(second)
    main([str(tmp_path / "again"), str(tmp_path / "back"), "--back"])
    assert ("lm_head.weight" in load_file(tmp_path / "back" / "model.safetensors")) is bool(second)


def test_an_adapters_embeddings_are_the_output_layer_of_a_tied_base_too(one_matrix, tmp_path):
    base, embeddings = shutil.copytree(one_matrix / "published", tmp_path / "base"), "model.embed_tokens.weight"
    change_weights(base, lambda state: state | {"lm_head.weight": state[embeddings].clone()})
    make_adapter(base, tmp_path / "adapter")
    trained = load_file(base / "model.safetensors")[embeddings] + 1
    save_file({PREFIX + embeddings: trained}, tmp_path / "adapter" / "pytorch_model.safetensors")
    model = load(convert(tmp_path / "adapter", tmp_path / "ours", "--base", base)).model
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert model.get_output_embeddings().weight.equal(trained)


def test_there_and_back_gives_the_same_model(own, published, tmp_path):
    again = load(convert(published, tmp_path / "again"))
    before = load(own)
    state = again.model.state_dict()
    assert all(torch.equal(state[n], t) for n, t in before.model.state_dict().items())
    for part in ("vision", "connector", "preprocess", "sampler", "template", "token_ids", "bidirectional_frames"):
        wanted = getattr(before.config, part)
        own_part = getattr(again.config, part)
        assert own_part == wanted or {**own_part, **wanted} == {**wanted, **own_part}, part
    batch = make_batch(before, ["asked", "two_spans"])
    assert again.model(batch).loss.item() == pytest.approx(before.model(batch).loss.item(), rel=1e-6)


def test_the_published_form_samples_without_truncation(published):
    sampling = json.loads((published / "generation_config.json").read_text())
    assert sampling["top_k"] is None and sampling["top_p"] is None
    assert json.loads((published / "config.json").read_text())["architectures"] == ["ETChatPhi3ForCausalLM"]


def test_trained_adapters_of_ours_go_back_merged(own, tmp_path):
    given = settings("etchat", "d2vlm", train={"lora": {"r": 2, "alpha": 8, "targets": ["qkv_proj"]}})
    given.model = type(given.model)(checkpoint=str(own))
    given.data.preprocess = None
    bundle = assemble(given)
    lora = {n: p for n, p in bundle.model.named_parameters() if "lora_B" in n}
    for parameter in lora.values():
        torch.nn.init.normal_(parameter)
    bundle.save(tmp_path / "run")
    main([str(tmp_path / "run"), str(tmp_path / "back"), "--back"])
    merged = load_file(tmp_path / "back" / "model.safetensors")
    layer = bundle.model.language_model.model.layers[0].self_attn.qkv_proj
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    wanted = layer.base_layer.weight + 4 * b @ a
    torch.testing.assert_close(merged["model.layers.0.self_attn.qkv_proj.weight"], wanted)


def test_shards_and_bin_files_are_read_as_one_file_is(own, published, tmp_path):
    state = load_file(published / "model.safetensors")
    for name in ("shards", "bin"):
        folder = shutil.copytree(published, tmp_path / name)
        (folder / "model.safetensors").unlink()
        if name == "bin":
            torch.save(state, folder / "pytorch_model.bin")
        else:
            write_tensors(folder, state.items(), shard_bytes=200_000)
            assert len(list(folder.glob("model-*.safetensors"))) > 2
        same_state(convert(folder, tmp_path / f"{name}_ours"), load(own).model.state_dict())


def test_an_adapter_is_merged_into_its_base(published, tmp_path):
    expected = make_adapter(published, tmp_path / "adapter")
    output = convert(tmp_path / "adapter", tmp_path / "ours", "--base", published)
    found = official(load(output).model.state_dict())
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor)


@pytest.mark.parametrize("stored, precision", [("bfloat16", "bf16"), ("float32", None), (None, None)])
def test_a_model_keeps_the_precision_that_its_config_names(copy, tmp_path, stored, precision):
    change_config(copy, torch_dtype=stored)
    assert read_config(convert(copy, tmp_path / "ours")).precision == precision


def test_etchat_is_a_base_to_train_from_and_refused_for_evaluation(copy, own, tmp_path, capsys):
    """E.T. Chat has no evidence head, and its frame head reads another layer."""
    change_config(copy, arch_module=None, use_evidence=None, evidence_token_id=None, evidence_end_token_id=None)
    change_weights(copy, lambda s: without("evi_head.")(s) | {"vid_head.0.weight": torch.zeros(3)})
    output = convert(copy, tmp_path / "base")
    said = capsys.readouterr().out
    assert "unexpected: vid_head.0.weight" in said and "unexpected: unused.frm_head.0.weight" in said
    assert "missing: head.evi_head.0.weight" in said and "cannot be evaluated" in said
    with pytest.raises(CheckpointError, match="no weights of its d2vlm head"):
        load(output)
    given = settings("etchat", "d2vlm")
    given.model = type(given.model)(checkpoint=str(output))
    given.data.preprocess = None
    bundle = assemble(given)
    kept = {n: t for n, t in load(own).model.state_dict().items() if not n.startswith("head.")}
    state = bundle.model.state_dict()
    assert all(torch.equal(state[n], t) for n, t in kept.items())
    loss = bundle.model(make_batch(bundle, ["two_spans"])).loss
    assert loss.isfinite() and bundle.model.head.evi_head[1].weight.std() > 0


def test_raw_parts_become_a_base(published, tmp_path, capsys):
    state = make_parts(published, tmp_path)
    parts = ("--vision", tmp_path / "eva.pth", "--qformer", tmp_path / "qformer.pth")
    output = convert(tmp_path / "language", tmp_path / "ours", *parts)
    said = capsys.readouterr().out
    assert f"unexpected: unused.{TOWER}blocks.2.norm1.weight" in said
    assert "unexpected: model.qformer_bert.cls.predictions.bias" in said
    assert "missing: connector.token_proj.1.weight" in said
    own = official(load(output, fresh_head=True).model.state_dict())
    drawn = ("model.qformer_proj", "model.qformer_q_proj", "model.qformer_k_proj", "model.qformer_v_proj")
    for name, tensor in without(*drawn, "frm_head.", "evi_head.")(state).items():
        assert torch.equal(own[name], tensor), name
    assert all(
        own[f"{name}{rest}"].std() > 0 for name, rest in zip(drawn, (".weight", *[".1.weight"] * 3), strict=True)
    )


def test_a_vocabulary_without_spare_rows_grows_by_the_mean_row(copy, tmp_path, capsys):
    """llama3 and others have no spare rows for <evi>, </evi> and our <frame>."""
    words = load_file(copy / "model.safetensors")["model.embed_tokens.weight"]
    kept = len(load(convert(copy, tmp_path / "whole")).tokenizer) - 1
    names = ("model.embed_tokens.weight", "lm_head.weight")
    change_weights(copy, lambda s: {n: t[:kept].contiguous() if n in names else t for n, t in s.items()})
    change_config(copy, vocab_size=kept)
    grown = load(convert(copy, tmp_path / "ours")).model.get_input_embeddings().weight
    assert "re-shaped: language_model.model.embed_tokens.weight" in capsys.readouterr().out
    assert torch.equal(grown[:kept], words[:kept])
    torch.testing.assert_close(grown[kept:], words[:kept].mean(0).expand(1, -1))


def refused(capsys, source, output, *options) -> str:
    """The one line on the way out; nothing usable is left behind."""
    message = said(capsys, command(source, output, *options))
    assert not (output / "config.json").exists()
    assert str(source.name) in message
    return message


def said(capsys, status: int) -> str:
    """The one line with which the command has ended."""
    message = capsys.readouterr().err.strip()
    assert status == 2 and message.startswith("error: ") and "\n" not in message
    return message


@pytest.mark.parametrize(
    "kind, says",
    [
        ("videollm", "already one of our checkpoints; use it as it is, or add --back"),
        ("internvl_chat", "python -m distime.convert reads it"),
        ("phi3", "needs --vision and --qformer"),
        ("llava", "'llava', not etchat_phi3"),
    ],
)
def test_another_kind_of_checkpoint_is_refused_with_what_to_do(copy, tmp_path, capsys, kind, says):
    change_config(copy, model_type=kind)
    assert says in refused(capsys, copy, tmp_path / "ours")


def test_a_whole_checkpoint_is_not_converted_back_and_takes_no_base(published, own, tmp_path, capsys):
    assert "no adapter" in refused(capsys, published, tmp_path / "ours", "--base", published)
    assert "leave --back out" in refused(capsys, published, tmp_path / "back", "--back")
    assert "--base cannot be given with it" in said(capsys, command(own, tmp_path / "back", "--back", "--base", own))


def test_an_adapter_without_its_base_is_refused(published, tmp_path, capsys):
    make_adapter(published, tmp_path / "adapter")
    change_config(tmp_path / "adapter", model_name_or_path="runs/the_base")
    message = refused(capsys, tmp_path / "adapter", tmp_path / "ours")
    assert "an adapter" in message and "--base (runs/the_base)" in message


@pytest.mark.parametrize("name", ["model.qformer_query", "model.embed_tokens.weight", TOWER + "pos_embed"])
def test_a_checkpoint_of_something_else_is_named_by_what_it_lacks(copy, tmp_path, capsys, name):
    change_weights(copy, without(name))
    assert f"no {name}; is it complete" in said(capsys, command(copy, tmp_path / "ours"))


def test_half_an_adapter_is_refused(published, tmp_path, capsys):
    make_adapter(published, tmp_path / "adapter")
    (tmp_path / "adapter" / "adapter_config.json").unlink()
    assert "part of an adapter checkpoint" in refused(capsys, tmp_path / "adapter", tmp_path / "ours")


def test_an_adapter_of_another_kind_is_refused(published, tmp_path, capsys):
    make_adapter(published, tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"use_rslora": True}))
    assert "use_rslora" in refused(capsys, tmp_path / "adapter", tmp_path / "ours", "--base", published)


def test_a_missing_shard_is_named(copy, tmp_path, capsys):
    state = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    write_tensors(copy, state.items(), shard_bytes=200_000)
    lost = sorted(copy.glob("model-*.safetensors"))[1]
    lost.unlink()
    message = refused(capsys, copy, tmp_path / "ours")
    assert lost.name in message and "fetch the shard" in message


@pytest.mark.parametrize(
    "change, name",
    [
        (without("model.norm."), "language_model.model.norm.weight"),
        (without("evi_head.3."), "head.evi_head.3.bias"),
        (without("model.vision_tower.vision_tower.blocks.1.attn.v_bias"), "encoder.layers.1.self_attn.qkv.bias"),
        (lambda s: s | {"model.qformer_ln.bias": torch.zeros(5)}, "connector.cross_norm.bias"),
    ],
)
def test_a_missing_or_misshapen_tensor_is_named(copy, tmp_path, capsys, change, name):
    change_weights(copy, change)
    assert name in refused(capsys, copy, tmp_path / "ours")


@pytest.mark.parametrize(
    "fields, says",
    [
        ({"mm_projector": "mlp2x_gelu"}, "mm_projector is 'mlp2x_gelu'"),
        ({"use_time_tag": True}, "use_time_tag is True"),
        ({"conv_type": "vicuna_v1"}, "conv_type is 'vicuna_v1'"),
        ({"model_type": "etchat_other"}, "'etchat_other'"),
        ({"vision_processor": "clip"}, "vision_processor is 'clip'"),
    ],
)
def test_a_variant_that_was_never_released_is_refused(copy, tmp_path, capsys, fields, says):
    change_config(copy, **fields)
    message = said(capsys, command(copy, tmp_path / "ours"))
    assert message.startswith("error: config.json") and says in message


def test_a_tokenizer_with_other_ids_is_refused(copy, tmp_path, capsys):
    change_config(copy, evidence_token_id=7)
    message = refused(capsys, copy, tmp_path / "ours")
    assert "<evi> as token 7" in message and "--tokenizer" in message


def test_a_head_that_the_published_code_lacks_does_not_go_back(own, tmp_path, capsys):
    folder = shutil.copytree(own, tmp_path / "own")
    change_config(folder, head={"name": "d2vlm", "inject_layer": 4})
    says = "head.inject_layer is 4; the published code has 6 only"
    assert says in said(capsys, command(folder, tmp_path / "back", "--back"))


def test_raw_parts_come_together_and_hold_only_tensors(published, tmp_path, capsys):
    make_parts(published, tmp_path)
    language, eva, bert = tmp_path / "language", tmp_path / "eva.pth", tmp_path / "qformer.pth"
    given = (language, tmp_path / "ours", "--vision", eva)
    assert "give --vision and --qformer" in said(capsys, command(*given))
    assert "eva.pth: lacks model.qformer_query" in said(capsys, command(*given, "--qformer", eva))
    torch.save({"model": main}, bert)  # a function: unpickling it would import, and may run, what the file names
    assert "qformer.pth: cannot be read as tensors" in said(capsys, command(*given, "--qformer", bert))


def test_a_folder_in_use_and_a_folder_that_is_none_are_refused(published, own, tmp_path, capsys):
    assert "not an empty folder" in said(capsys, command(published, own))
    assert "no such folder" in said(capsys, command(tmp_path / "nowhere", tmp_path / "ours"))
