"""D2VLM's vision tower and frame compressor give the official numbers.

Arrays and tolerance (1e-4 absolute): golden/d2vlm/README.md. All sizes come from the folder's own config.json.
"""

import json

import pytest
import torch
from safetensors.torch import load_file

from tests.golden.d2vlm_model import SFT_CASES, golden_bundle, names, tokenizers
from tests.golden.distime_model import existing
from videollm.model.towers import encode_frames

TOLERANCE = {"rtol": 0, "atol": 1e-4}


@pytest.fixture(scope="module")
def model(folder):
    return golden_bundle(folder).model


@pytest.fixture(scope="module")
def tower(model):
    return model.vision_tower


@pytest.fixture(scope="module")
def connector(model):
    return model.connector


def outputs_of(modules, run):
    """What each of the named ``modules`` puts out while ``run`` runs; its own result under ``""``."""
    seen = {}
    handles = [
        module.register_forward_hook(lambda _, __, out, name=name: seen.__setitem__(name, out))
        for name, module in modules.items()
    ]
    with torch.no_grad():
        seen[""] = run()
    for handle in handles:
        handle.remove()
    return seen


def test_vision_tower_gives_the_official_features_block_by_block(folder, tower):
    expected = load_file(existing(folder / "vision.safetensors"))
    modules = {f"block.{i}": layer for i, layer in enumerate(tower.encoder.layers)}
    modules["patch_embed"] = tower.embeddings.patch_embedding
    seen = outputs_of(modules, lambda: tower(expected["input"]))
    torch.testing.assert_close(seen["patch_embed"].flatten(2).mT, expected["patch_embed"], **TOLERANCE)
    for name in (n for n in expected if n.startswith("block.")):
        torch.testing.assert_close(seen[name], expected[name], **TOLERANCE)
    torch.testing.assert_close(seen[""], expected["output"][:, 1:], **TOLERANCE)


@pytest.mark.parametrize(
    "case", [name for name in names("qformer_", [f"qformer_{k}" for k in range(3)]) if name != "qformer_multi"]
)
def test_frame_compressor_gives_the_official_frame_tokens(folder, connector, case):
    expected = load_file(existing(folder / f"{case}.safetensors"))
    modules = {
        "embeddings": connector.qformer.embeddings.dropout,  # behind it they are made once a question
        "query_embeds_proj": connector.state_proj,
        "q_embed": connector.attend_query,
        "k_embed": connector.attend_key[1],
        **{f"layer.{i}": layer for i, layer in enumerate(connector.qformer.encoder.layer)},
    }
    modules["last_hidden"] = connector.qformer.encoder.layer[-1]
    features = expected["patch_features"]
    owner = torch.zeros(len(features), dtype=torch.int64)
    pooled = []
    handle = connector.token_proj.register_forward_pre_hook(lambda _, args: pooled.append(args[0]))
    seen = outputs_of(
        modules, lambda: connector(features, expected["text_input_ids"], expected["text_attention_mask"], owner)
    )
    handle.remove()
    with torch.no_grad():
        seen["encoder_states_ln"] = connector.cross_norm(features)
    assert {*modules, "encoder_states_ln"} <= set(expected)
    for name in (*modules, "encoder_states_ln"):  # where the file is short, it holds the first frames only
        torch.testing.assert_close(seen[name][: len(expected[name])], expected[name], **TOLERANCE)
    torch.testing.assert_close(pooled[0], expected["pooled"], **TOLERANCE)
    torch.testing.assert_close(seen[""].squeeze(1), expected["frame_embeds"], **TOLERANCE)


def test_padding_of_a_shorter_question_changes_no_frame_token(folder, connector):
    expected = load_file(existing(folder / "qformer_multi.safetensors"))
    num_texts, num_frames = expected["frame_embeds"].shape[:2]
    features = expected["patch_features"].repeat(num_texts, 1, 1)
    owner = torch.arange(num_texts).repeat_interleave(num_frames)
    with torch.no_grad():
        tokens = connector(features, expected["text_input_ids"], expected["text_attention_mask"], owner)
    torch.testing.assert_close(tokens.view_as(expected["frame_embeds"]), expected["frame_embeds"], **TOLERANCE)


@pytest.mark.parametrize("case", SFT_CASES)
def test_frames_of_a_training_sample_become_the_official_frame_tokens(folder, tower, connector, case):
    expected = load_file(existing(folder / f"{case}.safetensors"))
    queries = [of_visual[0] for of_visual in json.loads((folder / f"{case}.json").read_text())["query"]]
    ids, mask = tokenise(folder, queries)
    frames = [expected[f"image.{i}"] for i in range(len(queries))]
    owner = torch.arange(len(frames)).repeat_interleave(torch.tensor([len(f) for f in frames]))
    features = encode_frames(tower, torch.cat(frames), chunk=4)
    with torch.no_grad():
        tokens = connector(features, ids, mask, owner).squeeze(1)
    wanted = torch.cat([expected[f"frame_embeds.{i}"] for i in range(len(queries))])
    torch.testing.assert_close(tokens, wanted, **TOLERANCE)


def tokenise(folder, queries):
    _, tokenizer = tokenizers(folder)
    batch = tokenizer(queries, padding=True, truncation=True, max_length=256, return_tensors="pt")
    return batch["input_ids"], batch["attention_mask"]
