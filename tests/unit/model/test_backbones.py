"""Native backbones against transformers' own classes as they are installed."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText, Qwen3NextConfig

from tests.models import LINES, NATIVE, make_batch, make_bundle, turns
from tests.ops import Operations
from videollm.common.config import ConfigError
from videollm.model.attention import windows
from videollm.model.backbones import FAMILIES
from videollm.model.backbones.shared import SEGMENTS
from videollm.model.loss import logits_of

# By which rule of positions ``get_rope_index`` goes, where it is not the released one any more (docs/backbones.md).
INSTALLED = {"qwen2_5_vl": {"positions": "5.3", "even_times": True}}
TWO_IMAGES = {"image": ["x.png", "y.png"], "conversations": turns("<image>\nor <image>\nwhich?", "the first")}
NAMES = ["two_spans", "text", "asked", "image", TWO_IMAGES, "turns"]


def released(bundle, family):
    """transformers' whole model with the bundle's weights."""
    text, vision = bundle.config.text_config.to_dict(), bundle.model.vision_tower.config.to_dict()
    encoder = bundle.encoder()
    ids = {name: encoder.special[getattr(encoder.visual, name)][0] for name in ("token", "image", "start", "end")}
    vision["out_hidden_size"] = text["hidden_size"]
    config = AutoConfig.for_model(
        family, text_config=text, vision_config=vision, video_token_id=ids["token"], image_token_id=ids["image"],
        vision_start_token_id=ids["start"], vision_end_token_id=ids["end"], tie_word_embeddings=False,
    )  # fmt: skip
    model = AutoModelForImageTextToText.from_config(config, attn_implementation="sdpa").eval()
    names, state = FAMILIES[family].NAMES, bundle.model.state_dict()
    found = {}
    for name in model.state_dict():
        start = next(start for start in names if name.startswith(start))
        found[name] = state[names[start] + name.removeprefix(start)]
    model.load_state_dict(found)
    return model, ids


@pytest.mark.parametrize("family", NATIVE)
@torch.no_grad()
def test_positions_and_logits_are_those_of_the_installed_transformers(family):
    vision = make_bundle(family, "text").config.vision | INSTALLED.get(family, {})
    bundle = make_bundle(family, "text", vision=vision)
    model, ids = released(bundle, family)
    for name in NAMES:
        batch = make_batch(bundle, [name], asked=True)
        words, seen = batch.input_ids, batch.grids
        kinds = (words == ids["image"]).long() + 2 * (words == ids["token"]).long()
        grids, more = {}, {}
        if seen is not None:
            grid = torch.tensor([[1, *one] for one in seen.tolist()])
            kind = "image" if batch.frame_col[0] < 0 else "video"
            if kind == "video":
                grid = torch.tensor([[len(seen), *seen[0].tolist()]])
                more = {"second_per_grid_ts": torch.tensor([2.0])} if family == "qwen2_5_vl" else {}
            grids = {f"{kind}_grid_thw": grid}
            pixels = bundle.model.as_the_tower_takes(batch.pixel_values)
        known = {"attention_mask": torch.ones_like(words), **grids, **more, "mm_token_type_ids": kinds}
        places, _ = model.model.get_rope_index(words, **known)
        assert torch.equal(batch.position_ids, places), name
        if seen is not None:
            known["pixel_values" if kind == "image" else "pixel_values_videos"] = pixels
        theirs = model(input_ids=words, position_ids=places, use_cache=False, **known).logits
        tokens = bundle.model.frame_tokens(batch)
        states = bundle.model.run(
            batch, bundle.model.embed(batch, tokens), slice(0, words.shape[1]), {-1}, maps=bundle.model.maps(tokens)
        )
        ours = logits_of(bundle.model.language_model, states[-1])
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=0)


@torch.no_grad()
def test_a_family_that_was_added_by_its_file_alone_is_what_transformers_has():
    """SmolVLM2: patches, connector and words, square frames."""
    bundle = make_bundle("smolvlm", "text")
    text, vision = bundle.config.text_config.to_dict(), bundle.model.vision_tower.config.to_dict()
    batch = make_batch(bundle, ["two_spans"], asked=True)
    token = int(batch.input_ids.flatten()[batch.visual_index[0]])
    config = AutoConfig.for_model(
        "smolvlm", text_config=text, vision_config=vision, image_token_id=token, scale_factor=2
    )  # fmt: skip
    parts = FAMILIES["smolvlm"].parts(config.to_dict())
    assert parts["connector"] == {"type": "smolvlm", "merge": 2}
    assert parts["vision"].items() >= bundle.config.vision.items()
    model = AutoModelForImageTextToText.from_config(config).eval()
    names, state = FAMILIES["smolvlm"].NAMES, bundle.model.state_dict()
    given = {
        name: state[names[s] + name.removeprefix(s)] for name in model.state_dict() for s in names if name.startswith(s)
    }
    model.load_state_dict(given)
    theirs = model(input_ids=batch.input_ids, pixel_values=batch.pixel_values[None], use_cache=False).logits
    tokens = bundle.model.frame_tokens(batch)
    whole = slice(0, batch.input_ids.shape[1])
    ours = logits_of(
        bundle.model.language_model, bundle.model.run(batch, bundle.model.embed(batch, tokens), whole, {-1})[-1]
    )
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=0)


@torch.no_grad()
def test_a_tapped_layer_has_what_deepstack_adds_behind_it():
    """As the next layer receives it; and only at visual tokens."""
    bundle = make_bundle("qwen3_vl", "text")
    model, batch = bundle.model, make_batch(bundle, ["two_spans", "text"])
    tokens, received = model.frame_tokens(batch), []
    hook = model.decoder.layers[1].register_forward_pre_hook(lambda _, args: received.append(args[0]))
    embeds, whole = model.embed(batch, tokens), slice(0, batch.input_ids.shape[1])
    with_maps = model.run(batch, embeds, whole, {1, -1}, maps=model.maps(tokens))[1]
    without = model.run(batch, embeds, whole, {1, -1})[1]
    hook.remove()
    assert torch.equal(received[0], with_maps)
    added = (with_maps - without).flatten(0, 1)
    torch.testing.assert_close(added[batch.visual_index], tokens[:, 1], atol=1e-5, rtol=0)
    added[batch.visual_index] = 0
    assert not added.any()
    assert not any(layer._forward_hooks for layer in model.decoder.layers)


@pytest.mark.parametrize("family", NATIVE)
def test_a_step_waits_for_no_value(family):
    """From stored features on, in batches of several sizes, packed, an image and text among them."""
    bundle = make_bundle(family, "d2vlm")
    model = bundle.model.train()
    for pack in (False, True):
        batch = make_batch(bundle, list(LINES), pack=pack)
        with torch.no_grad():
            features = model.encode_frames(batch.pixel_values, batch.grids)
        batch = replace(batch, pixel_values=None, grids=None, features=features)
        for _ in range(2):  # what is made once is there in the second
            with Operations() as found:
                model(batch).loss.backward()
        assert not found.waits


@pytest.mark.parametrize("family", NATIVE)
@torch.no_grad()
def test_attention_by_pictures_is_that_of_one_after_the_other(family):
    """In few calls, windows of all frames together; windows at the edge of a picture are narrower."""
    tower = make_bundle(family, "text").model.vision_tower
    assert tower.config._attn_implementation == SEGMENTS
    grids = np.asarray([[6, 10]] * 5 + [[4, 4]] * 2)
    patches = torch.randn(int(grids.prod(1).sum()), 96, generator=torch.Generator().manual_seed(0))
    found, calls = [], []
    for kind in (SEGMENTS, "sdpa"):
        tower.config._attn_implementation = kind
        with Operations() as seen:
            found.append(tower(patches, grids))
        calls.append(sum(count for name, count in seen.calls.items() if "attention" in name))
    tower.config._attn_implementation = SEGMENTS
    torch.testing.assert_close(*found, atol=1e-6, rtol=0)
    assert 3 * calls[0] <= calls[1]


def test_layers_without_attention_are_refused_by_name():
    """Packing, masks of ours and prefix caches are impossible there."""
    with pytest.raises(ConfigError, match="layers of qwen3_next are linear_attention"):
        windows(Qwen3NextConfig(num_hidden_layers=4))


def test_windows_beside_positions_of_three_axes_are_refused():
    language = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0}
    given = make_bundle("qwen2_5_vl", "text").config.text_config
    wanted = {"model_type": given.model_type, "vocab_size": given.vocab_size} | language
    with pytest.raises(ConfigError, match=r"model.language: layers with a window"):
        make_bundle("qwen2_5_vl", "text", language={**_fields(given), **wanted})


def _fields(config):
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size",
             "rope_parameters")  # fmt: skip
    return {name: getattr(config, name) for name in names}
