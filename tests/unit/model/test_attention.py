"""Masks of ours show what those of transformers do, and what an implementation cannot compute is refused by name."""

from dataclasses import replace

import pytest
import torch
import transformers

from tests.models import BACKBONES, NATIVE, _language, make_batch, make_bundle, settings, turns
from videollm.common.config import ConfigError
from videollm.model.generate import GenerateOptions
from videollm.training import assemble

WINDOW = 5  # tokens; the questions have many more
TEXTS = {
    "mistral": {"sliding_window": WINDOW},
    "qwen2": {"sliding_window": WINDOW, "use_sliding_window": True, "max_window_layers": 1},
    "qwen3": {"sliding_window": WINDOW, "use_sliding_window": True, "max_window_layers": 2, "head_dim": 8},
    "gemma2": {"sliding_window": WINDOW, "head_dim": 8},
    "gemma3_text": {
        "sliding_window": WINDOW,
        "head_dim": 8,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
    "starcoder2": {"sliding_window": WINDOW},
    "cohere2": {"sliding_window": WINDOW, "layer_types": ["sliding_attention"] * 3 + ["full_attention"]},
    "llama": {},
}
LINE = {"video": "b.mp4", "conversations": turns("<video>\nwhat is it, tell me?", "a dog that runs")}


@pytest.fixture(scope="module", params=TEXTS)
def bundle(request):
    """A model whose evidence head makes every pass bring masks of ours."""
    return make_bundle("internvl", "d2vlm", language=_language(request.param, **TEXTS[request.param]))


@pytest.fixture
def own(bundle):
    """What transformers computes from embeddings [B, L, D] alone: hidden states of a place that sees all before it."""

    def states(embeds, **given):
        return bundle.model.decoder(inputs_embeds=embeds, use_cache=False, **given).last_hidden_state

    return states


def embeds_of(model, batch):
    return model.embed(batch, model.frame_tokens(batch))


def test_a_window_changes_what_is_seen(bundle, own):
    """Else none of the tests below could fail."""
    model, kinds = bundle.model, set(bundle.model.windows.values())
    batch = make_batch(bundle, [LINE])
    whole = model.attention_mask(batch, slice(0, batch.input_ids.shape[1]), torch.float32)
    same = torch.equal(own(embeds_of(model, batch)), own(embeds_of(model, batch), attention_mask=whole))
    assert same == (kinds == {None})


@torch.no_grad()
def test_training_sees_as_transformers_does(bundle, own):
    """Over the shared prefix, over the text behind it, and over both at once."""
    model, batch = bundle.model, make_batch(bundle, [LINE])
    assert batch.prefix_columns > WINDOW and not batch.plain_causal
    wanted = own(embeds_of(model, batch), position_ids=batch.position_ids)
    found = model.read(batch).states
    torch.testing.assert_close(found, wanted.flatten(0, 1), rtol=1e-4, atol=1e-5)
    at_once = model.run(batch, embeds_of(model, batch), slice(0, batch.input_ids.shape[1]), {-1})[-1]
    torch.testing.assert_close(at_once, wanted, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_packed_question_sees_as_it_does_alone(bundle):
    second = {**LINE, "conversations": turns("<video>\nand who is with it, if any?", "nobody is there")}
    packed, alone = make_batch(bundle, [LINE, second], pack=True), make_batch(bundle, [LINE, second])
    assert len(packed) == 1 and len(alone) == 2
    states = [bundle.model.read(batch).states[batch.label_index] for batch in (packed, alone)]
    torch.testing.assert_close(*states, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("ours", [True, False], ids=["with masks of ours", "with transformers' own"])
@torch.no_grad()
def test_prefill_and_decoding_see_as_transformers_does(bundle, own, ours):
    """The ids that the whole text so far makes likeliest, step by step and without any cache."""
    short = {**LINE, "conversations": turns("<video>\nwhat?", "x")}
    batch = make_batch(bundle, [LINE, short], asked=True)  # the second is padded
    model, options = bundle.model, GenerateOptions(max_new_tokens=2 * WINDOW)
    ids, _ = model.generate_ids(replace(batch, plain_causal=not ours), 0, -1, options)
    for row in range(2):
        known = batch.segment_ids[row] >= 0
        embeds = embeds_of(model, batch)[row, known][None]
        for token in ids[row]:
            logits = model.language_model(inputs_embeds=embeds, use_cache=False).logits[0, -1]
            assert token == logits.argmax()
            embeds = torch.cat([embeds, model.get_input_embeddings()(token[None, None])], 1)


# ---- what cannot be --------------------------------------------------------------------------------------------------

FLASH = {"attention": "flash_attention_2"}
BF16 = {"precision": "bf16"}


@pytest.mark.parametrize(
    ("backbone", "head", "changes", "says"),
    [
        ("internvl", "text", {"train": BF16, "data": {"pack": True}}, "(needed by data.pack); set sdpa"),
        ("internvl", "text", {"train": BF16, "bidirectional_frames": True}, "(needed by model.bidirectional_frames)"),
        ("internvl", "d2vlm", {"train": BF16}, "(needed by the d2vlm head)"),
        ("qwen3_vl", "d2vlm", {"train": BF16}, "(needed by the d2vlm head)"),
        ("qwen2_5_vl", "text", {"train": BF16, "data": {"pack": True}}, "(needed by data.pack); set sdpa"),
        ("internvl", "text", {"train": BF16 | {"objective": {"name": "d2vlm.fpo"}}}, "(needed by train.objective)"),
        ("gemma2", "text", {"train": BF16, "bidirectional_frames": False}, "gemma2 caps its attention"),
        ("internvl", "text", {}, "needs train.precision=bf16, this run has fp32"),
        ("internvl", "text", {"train": BF16}, "needs a GPU and pip install flash-attn"),
    ],
)
def test_what_flash_attention_cannot_do_is_refused_before_anything_is_built(monkeypatch, backbone, head, changes, says):
    for name in ("VideoLLM", "load"):
        monkeypatch.setattr(assemble, name, lambda *_args, **_options: pytest.fail("built"))
    monkeypatch.setattr("videollm.model.attention.is_flash_attn_2_available", lambda: False)
    with pytest.raises(ConfigError, match=r"^model\.attention: ") as error:
        assemble.assemble(settings(backbone, head, **FLASH, **changes))
    assert says in str(error.value)


@pytest.mark.parametrize("backbone", ["internvl", *NATIVE])
def test_a_tower_for_which_flash_attention_is_not_there_names_its_key(monkeypatch, backbone):
    monkeypatch.setattr("videollm.model.attention.is_flash_attn_2_available", lambda: False)
    vision = BACKBONES[backbone]["vision"] | {"attn_implementation": "flash_attention_2"}
    with pytest.raises(ConfigError, match=r"^model\.vision\.attn_implementation: flash_attention_2 needs a GPU"):
        make_bundle(backbone, "text", vision=vision)


@pytest.mark.parametrize(("head", "changes"), [("d2vlm", {}), ("text", {"data": {"pack": True}})])
def test_a_checkpoint_is_held_to_the_same(tmp_path, monkeypatch, head, changes):
    make_bundle("internvl", head).save(tmp_path)
    given = settings("internvl", head, train=BF16, **changes)
    given.model = type(given.model)(checkpoint=str(tmp_path), **FLASH)
    monkeypatch.setattr(assemble, "load", lambda *_args, **_options: pytest.fail("loaded"))
    with pytest.raises(ConfigError, match=r"^model\.attention: flash_attention_2 is causal"):
        assemble.assemble(given)


def test_a_language_model_without_an_implementation_is_named(monkeypatch):
    monkeypatch.setattr(transformers.Qwen2ForCausalLM, "_supports_sdpa", False)
    with pytest.raises(ConfigError, match=r"^model\.attention: qwen2 has no sdpa; set eager"):
        assemble.assemble(settings("internvl", "text"))
    assert make_bundle("internvl", "text", attention="eager")


def test_layers_that_see_otherwise_are_refused():
    language = _language("qwen2", layer_types=["chunked_attention"] * 4)
    with pytest.raises(ConfigError, match=r"^model\.language: layers of qwen2 are chunked_attention"):
        assemble.assemble(settings("internvl", "text", language=language))


def test_a_window_that_phi3_would_not_keep_is_refused():
    with pytest.raises(ConfigError, match=r"^model\.language\.sliding_window: a phi3 sees all before it"):
        assemble.assemble(settings("etchat", "d2vlm", language=_language("phi3", sliding_window=WINDOW)))
