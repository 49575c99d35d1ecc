"""The command ``videollm.convert`` on the golden checkpoints of today's backbones: to ours, and back to equal logits.

Everything is read from the folders of golden/backbones; their tokenizers get the token that ends an answer, since they
are no chat models. What goes back is loaded by transformers.
"""

import json
import shutil

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, PreTrainedTokenizerFast

from tests.models import byte_tokenizer, clips, read_log, write_config
from videollm.checkpoint import internvl, load
from videollm.checkpoint.released import LAYOUTS, Native
from videollm.checkpoint.tensors import write_tensors
from videollm.convert import main
from videollm.infer import main as infer
from videollm.train import main as train

FAMILIES = ("qwen2_5_vl", "qwen3_vl", "internvl3", "internvl3_5")
STOP = "<|im_end|>"


@pytest.fixture(scope="module")
def released(golden_dir, tmp_path_factory):
    """{family: a folder as on the hub}, its tokenizer with the files that transformers writes."""
    made = {}

    def get(family):
        if family not in made:
            source, folder = golden_dir / "backbones" / family, tmp_path_factory.mktemp(family) / "hub"
            folder.mkdir()
            for name in ("config.json", "model.safetensors"):
                shutil.copy(source / name, folder)
            tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(source / "tokenizer.json"))
            tokenizer.add_special_tokens({"extra_special_tokens": [STOP]}, replace_extra_special_tokens=False)
            tokenizer.save_pretrained(folder)
            made[family] = folder
        return made[family]

    return get


def run(capsys, *words):
    """(exit status, what was printed) of the command."""
    capsys.readouterr()
    status = main([str(word) for word in words])
    out = capsys.readouterr()
    return status, out.out + out.err


def logits(folder, arrays):
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    names = ("input_ids", "attention_mask", "pixel_values", "pixel_values_videos", "image_grid_thw", "video_grid_thw")
    given = {name: arrays[name] for name in names if name in arrays}
    if "position_ids" in arrays:
        given["position_ids"] = arrays["position_ids"]
    with torch.no_grad():
        return model(**given).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_a_backbone_goes_to_ours_and_back_to_equal_logits(released, golden_dir, family, tmp_path, capsys):
    folder = released(family)
    status, said = run(capsys, folder, tmp_path / "ours")
    assert status == 0 and "0 missing, 0 unexpected, 0 re-shaped keys" in said, said
    assert "no preprocessor_config.json: limits of pixels and tiles are the family's own" in said
    bundle = load(tmp_path / "ours")
    assert bundle.config.head["name"] == "text" and not bundle.config.headless
    status, said = run(capsys, tmp_path / "ours", tmp_path / "again", "--back")
    assert status == 0 and "0 missing, 0 unexpected, 0 re-shaped keys" in said
    again, before = (load_file(place / "model.safetensors") for place in (tmp_path / "again", folder))
    assert {name: tensor.shape for name, tensor in again.items()} == {n: t.shape for n, t in before.items()}
    assert all(torch.equal(again[name], before[name]) for name in before)
    assert json.loads((tmp_path / "again" / "config.json").read_text()) == json.loads(
        (folder / "config.json").read_text()
    )
    arrays = load_file(golden_dir / "backbones" / family / "case_a.safetensors")
    found = logits(tmp_path / "again", arrays)
    assert torch.equal(found, logits(folder, arrays))
    torch.testing.assert_close(found[:, -arrays["logits"].shape[1] :], arrays["logits"], rtol=0, atol=3e-4)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("head", ["d2vlm", "distime"])
def test_a_backbone_becomes_the_base_of_a_head_which_goes_back_in_a_file_beside(
    released, family, head, tmp_path, capsys, monkeypatch
):
    layers = {"inject_layer": 1} if head == "d2vlm" else {}  # the tiny models have few
    monkeypatch.setattr("videollm.checkpoint.released.head_options", lambda name, _: {"name": name} | layers)
    status, said = run(capsys, released(family), tmp_path / "base", "--head", head)
    assert status == 0 and f"a base, without {head} head" in said, said
    bundle = load(tmp_path / "base", fresh_head=True)
    bundle.save(tmp_path / "trained")
    assert run(capsys, tmp_path / "trained", tmp_path / "back", "--back")[0] == 0
    AutoModelForImageTextToText.from_pretrained(tmp_path / "back")
    status, said = run(capsys, tmp_path / "back", tmp_path / "again", "--head", head)
    assert status == 0 and "0 missing, 0 unexpected, 0 re-shaped keys" in said
    again = load(tmp_path / "again").model.state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in bundle.model.state_dict().items())


def test_sharded_weights_of_a_backbone_are_read(released, tmp_path, capsys):
    folder = shutil.copytree(released("qwen3_vl"), tmp_path / "hub")
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    write_tensors(folder, state.items(), shard_bytes=20_000)
    assert (folder / "model.safetensors.index.json").is_file()
    assert run(capsys, folder, tmp_path / "ours")[0] == 0
    assert len(load(tmp_path / "ours").model.state_dict()) == len(state)


def as_chat(folder, target):
    """A folder of transformers' layout of InternVL in OpenGVLab's own."""
    fields = json.loads((folder / "config.json").read_text())
    vision, text = fields["vision_config"], dict(fields["text_config"])
    kind = {"qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}[text["model_type"]]
    same = {key: vision[key] for key in internvl.SAME_VISION}
    same |= {key: value[0] for key, value in same.items() if isinstance(value, list)}
    chat = {
        "model_type": "internvl_chat", "architectures": ["InternVLChatModel"], "template": "internvl2_5",
        "llm_config": text | {"architectures": [kind]}, "downsample_ratio": fields["downsample_ratio"],
        "vision_config": same | {"qkv_bias": True, "qk_normalization": vision["use_qk_norm"]},
        "select_layer": -1, "ps_version": "v2", "dynamic_image_size": True, "max_dynamic_patch": 4,
    }  # fmt: skip
    shutil.copytree(folder, target)
    (target / "config.json").write_text(json.dumps(chat))
    ours = Native.to_ours(LAYOUTS["internvl"](), load_file(folder / "model.safetensors"))
    save_file(dict(internvl.to_released(ours).items()), target / "model.safetensors")
    return target


@pytest.mark.parametrize("family", ["internvl3", "internvl3_5"])
def test_both_layouts_of_internvl_give_one_model_and_each_its_own_back(released, family, tmp_path, capsys):
    chat = as_chat(released(family), tmp_path / "chat")
    assert run(capsys, chat, tmp_path / "ours")[0] == 0 and run(capsys, released(family), tmp_path / "native")[0] == 0
    ours, native = (load(tmp_path / name) for name in ("ours", "native"))
    assert all(torch.equal(ours.model.state_dict()[n], t) for n, t in native.model.state_dict().items())
    one, other = (bundle.config.text_config.to_dict() for bundle in (ours, native))
    told = ("hidden_size", "num_key_value_heads", "rope_parameters", "vocab_size", "rms_norm_eps", "head_dim")
    assert [one.get(key) for key in told] == [other.get(key) for key in told]
    assert run(capsys, tmp_path / "ours", tmp_path / "again", "--back")[0] == 0
    again, before = (load_file(place / "model.safetensors") for place in (tmp_path / "again", chat))
    assert "vision_model.encoder.layers.0.attn.qkv.weight" in again
    assert again.keys() == before.keys() and all(torch.equal(again[n], before[n]) for n in before)


def change(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (
            lambda f: change(f, model_type="llava"),
            "model_type is 'llava'; known are qwen2_5_vl, qwen3_vl, internvl, internvl_chat, and what",
        ),
        (lambda f: (f / "config.json").unlink(), "config.json: no such file; is the checkpoint complete?"),
        (lambda f: (f / "model.safetensors").unlink(), "pytorch_model.bin.index.json; fetch one (of shards"),
        (lambda f: lose(f, "model.visual.merger.norm.weight"), "missing: connector.merger.norm.weight (1)"),
        (lambda f: lose(f, "model.language_model.embed_tokens.weight"), "no token embeddings among its weights"),
        (lambda f: reshape(f, "model.visual.pos_embed.weight"), "of another shape: vision_tower.pos_embed.weight"),
        (lambda f: tokenizer_of_a_stranger(f), "its tokenizer lacks <|im_end|>, <|image_pad|>"),
    ],
)
def test_a_spoilt_backbone_is_one_line_and_nothing_is_written(released, spoil, said, tmp_path, capsys):
    folder = shutil.copytree(released("qwen3_vl"), tmp_path / "hub")
    spoil(folder)
    status, printed = run(capsys, folder, tmp_path / "ours")
    lines = printed.strip().splitlines()
    assert status == 2 and said in lines[-1] and lines[-1].startswith("error: ")
    assert not (tmp_path / "ours").exists()


def lose(folder, name):
    state = load_file(folder / "model.safetensors")
    del state[name]
    save_file(state, folder / "model.safetensors")


def reshape(folder, name):
    state = load_file(folder / "model.safetensors")
    save_file(state | {name: state[name][:-1].clone()}, folder / "model.safetensors")


def tokenizer_of_a_stranger(folder):
    for path in folder.glob("tokenizer*"):
        path.unlink()
    byte_tokenizer([]).save_pretrained(folder)


def test_an_unexpected_key_is_reported_and_left_out(released, tmp_path, capsys):
    folder = shutil.copytree(released("qwen3_vl"), tmp_path / "hub")
    state = load_file(folder / "model.safetensors")
    save_file(state | {"model.visual.new.weight": torch.zeros(2)}, folder / "model.safetensors")
    status, said = run(capsys, folder, tmp_path / "ours")
    assert status == 0 and "unexpected: vision_tower.new.weight\n" in said and "0 missing, 1 unexpected" in said
    load(tmp_path / "ours")


def test_what_has_no_released_layout_or_is_in_it_already_is_one_line(released, tmp_path, capsys):
    folder = released("qwen3_vl")
    assert "it is in a released layout; leave --back out" in run(capsys, folder, tmp_path / "x", "--back")[1]
    assert run(capsys, folder, tmp_path / "ours")[0] == 0
    assert "already a checkpoint of this project" in run(capsys, tmp_path / "ours", tmp_path / "x")[1]
    assert "exists and is not an empty folder" in run(capsys, folder, tmp_path / "ours")[1]
    path = tmp_path / "ours" / "config.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "published"}))
    assert "only a converted model can go back" in run(capsys, tmp_path / "ours", tmp_path / "x", "--back")[1]


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl", "internvl3_5"])
def test_a_converted_backbone_answers_as_it_is(released, golden_dir, family, tmp_path, capsys):
    """Limits and normalisation come from the processor's files; no head has to be trained."""
    folder = shutil.copytree(released(family), tmp_path / "hub")
    processor = json.loads((golden_dir / "backbones" / family / "cases.json").read_text())["processor"]
    image = {"image_mean": processor["mean"], "image_std": processor["std"], "size": processor.get("image_size")}
    (folder / "preprocessor_config.json").write_text(json.dumps(image))
    if "video_size" in processor:
        (folder / "video_preprocessor_config.json").write_text(json.dumps({"size": processor["video_size"]}))
    status, said = run(capsys, folder, tmp_path / "ours")
    assert status == 0 and "preprocessor_config" not in said
    preprocess = load(tmp_path / "ours").model.preprocess
    if preprocess.dynamic:
        assert preprocess.max_pixels == processor["video_size"]["longest_edge"]
        assert preprocess.image_min_pixels == processor["image_size"]["shortest_edge"]
        factor = processor["patch_size"] * processor["merge_size"]
        assert list(preprocess.mean) == processor["mean"] and preprocess.factor == factor
    questions, out = tmp_path / "questions.jsonl", tmp_path / "out.jsonl"
    name = next(path.name for path in sorted(clips().glob("*.mp4")) if path.stem != "broken")
    ask = {"from": "human", "value": "<video>\nwhen?"}
    questions.write_text(json.dumps({"id": "a", "video": name, "conversations": [ask]}) + "\n")
    given = ["--model", tmp_path / "ours", "--videos", clips(), "--annotations", questions, "--output", out]
    assert infer([*map(str, given), "--device", "cpu", "generate.max_new_tokens=4"]) == 0
    (line,) = map(json.loads, out.read_text().splitlines())
    assert not line["error"] and line["finish_reason"]


CELLS = [("qwen3_vl", "distime"), ("qwen2_5_vl", "text"), ("internvl3_5", "distime")]


@pytest.mark.parametrize(("family", "head"), CELLS)
def test_a_converted_backbone_is_trained_as_the_recipes_train_it_and_goes_back(
    released, golden_dir, family, head, tmp_path, capsys
):
    """Adapters, merger, head and new tokens on the base that the command made; then transformers loads what is left."""
    assert run(capsys, released(family), tmp_path / "base", "--head", head)[0] == 0
    path = write_config(tmp_path, head)
    config = yaml.safe_load(path.read_text())
    options = {"unit": "seconds", "style": family} if head == "text" else {}
    config["model"] = {"checkpoint": str(tmp_path / "base"), "head": {"name": head, **options}}
    rule = "internvl" if family.startswith("internvl") else family
    config["data"]["sampler"] = {"rule": rule, "fps": 2.0, "max_frames": 8, "num_frames": 4}
    processor = json.loads((golden_dir / "backbones" / family / "cases.json").read_text())["processor"]
    if rule == "internvl":
        config["data"]["preprocess"] = {"kind": "internvl", "size": processor["size"]}
    else:
        factor = processor["patch_size"] * processor["merge_size"]
        limits = {"min_pixels": factor**2, "max_pixels": 64 * factor**2, "image_min_pixels": factor**2}
        config["data"]["preprocess"] = {"kind": family, "factor": factor, **limits}
    config["train"] |= {"steps": 2, "lora": {"r": 2, "alpha": 4, "dropout": 0.0, "targets": ["q_proj", "down_proj"]}}
    config["train"]["parts"] = {"connector": {"train": True, "lr": 1e-4}, "vision_tower": {"train": False}}
    if head != "text":
        config["train"]["parts"] |= {"embeddings": {"train": True}, "lm_head": {"train": True}}
    path.write_text(yaml.safe_dump(config))
    assert train(["--config", str(path)]) == 0
    assert [entry["step"] for entry in read_log(tmp_path / "run")] == [1, 2]
    assert run(capsys, tmp_path / "run/final", tmp_path / "back", "--back")[0] == 0
    AutoModelForImageTextToText.from_pretrained(tmp_path / "back")
    assert (tmp_path / "back" / "head.safetensors").is_file() == (head != "text")


def test_the_own_layout_of_internvl_keeps_two_matrices_whatever_its_config_says(released, tmp_path, capsys):
    chat = as_chat(released("internvl3"), tmp_path / "chat")
    fields = json.loads((chat / "config.json").read_text())
    change(chat, llm_config=fields["llm_config"] | {"tie_word_embeddings": True})
    state = load_file(chat / "model.safetensors")
    embeddings = state["language_model.model.embed_tokens.weight"]
    save_file(state | {"language_model.lm_head.weight": embeddings.clone()}, chat / "model.safetensors")
    assert run(capsys, chat, tmp_path / "ours")[0] == 0
    assert not load(tmp_path / "ours").config.text_config.tie_word_embeddings
    assert run(capsys, tmp_path / "ours", tmp_path / "again", "--back")[0] == 0
    assert load_file(tmp_path / "again/model.safetensors").keys() == state.keys()


def test_a_tied_backbone_stays_tied(released, tmp_path, capsys):
    folder = shutil.copytree(released("qwen3_vl"), tmp_path / "hub")
    fields = json.loads((folder / "config.json").read_text())
    change(folder, tie_word_embeddings=True, text_config=fields["text_config"] | {"tie_word_embeddings": True})
    lose(folder, "lm_head.weight")
    status, said = run(capsys, folder, tmp_path / "ours")
    assert status == 0 and "0 missing" in said
    assert run(capsys, tmp_path / "ours", tmp_path / "again", "--back")[0] == 0
    again, before = (load_file(place / "model.safetensors") for place in (tmp_path / "again", folder))
    assert again.keys() == before.keys() and all(torch.equal(again[name], before[name]) for name in before)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "again")
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
