"""A training step gives the same numbers however the batch is cut, packed, cached or attended to."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy

from tests.models import BACKBONES, HEADS, LINES, NATIVE, PAIRS, gradients, make_batch, make_bundle, make_dataset, turns
from videollm.data.conversation import Role
from videollm.model.videollm import VideoLLM

ALL = list(LINES)
BROKEN = {"id": "b1", "video": "broken.mp4", "conversations": turns("<video>\nwhen?", "now")}
TOLERANCE = {"rtol": 1e-5, "atol": 1e-6}


@pytest.fixture(scope="module", params=PAIRS, ids="-".join)
def bundle(request):
    return make_bundle(*request.param)


def step(model: VideoLLM, batch: dict, **options):
    """(loss, terms, gradients) of one training step."""
    model.train()
    out = model(batch, **options)
    out.loss.backward()
    model.eval()
    return out.loss.item(), {k: v.item() for k, v in out.terms.items()}, gradients(model)


def assert_same_gradients(one: dict, other: dict, **tolerance):
    tolerance = tolerance or {"rtol": 1e-3, "atol": 2e-5}
    for name, grad in one.items():
        torch.testing.assert_close(grad, other[name], msg=lambda m, n=name: f"{n}: {m}", **tolerance)


# ---- every backbone with every head ----------------------------------------------------------------------------------


def test_a_training_step_moves_every_trainable_parameter(bundle):
    loss, terms, grads = step(bundle.model, make_batch(bundle, ALL))
    assert torch.isfinite(torch.tensor(loss)) and loss == pytest.approx(sum(terms.values()), rel=1e-5)
    wanted = {"d2vlm": {"lm", "grounding", "consistency"}, "distime": {"lm", "dfl", "diou"}, "text": {"lm"}}
    assert set(terms) == wanted[bundle.config.head["name"]] and all(v > 0 for v in terms.values())
    assert all(g is not None and torch.isfinite(g).all() for g in grads.values())
    still = [n for n, g in grads.items() if not g.any()]
    assert not [n for n in still if n.startswith("head.")], still
    assert not any(n.startswith("vision_tower") for n in grads)


@pytest.mark.parametrize("names", [["text"], [BROKEN], ["no_spans"], ["image", "text"]], ids=str)
def test_a_batch_without_spans_or_frames_still_reaches_every_parameter(bundle, names):
    """Otherwise one rank would wait for gradients that another never makes."""
    loss, terms, grads = step(bundle.model, make_batch(bundle, names))
    assert all(g is not None and torch.isfinite(g).all() for g in grads.values())
    if names == [BROKEN]:
        assert loss == 0 and not any(g.any() for g in grads.values())
    assert all(v == 0 for k, v in terms.items() if k != "lm")


def test_the_loss_of_a_batch_is_the_sum_of_its_samples_under_common_counts(bundle):
    batch = make_batch(bundle, ALL)
    counts = bundle.model.counts(batch)
    loss, terms, grads = step(bundle.model, batch, counts=counts)
    apart = [make_batch(bundle, [name]) for name in ALL]
    added = [bundle.model.counts(b) for b in apart]
    assert {k: sum(c[k] for c in added).item() for k in counts} == {k: v.item() for k, v in counts.items()}
    bundle.model.train()
    singles = [bundle.model(b, counts=counts) for b in apart]
    sum(s.loss for s in singles).backward()
    bundle.model.eval()
    assert sum(s.loss.item() for s in singles) == pytest.approx(loss, rel=1e-5)
    assert {k: sum(s.terms[k].item() for s in singles) for k in terms} == pytest.approx(terms, rel=1e-5)
    assert_same_gradients(grads, gradients(bundle.model))


def test_averaging_over_samples_weighs_each_conversation_alike(bundle):
    names = ["turns", "text"]
    batch = make_batch(bundle, names, average="samples")
    each = [bundle.model(make_batch(bundle, [n])).terms["lm"].item() for n in names]
    assert bundle.model(batch).terms["lm"].item() == pytest.approx(sum(each) / 2, rel=1e-5)


def test_eager_and_sdpa_attention_agree(bundle):
    if bundle.config.text_config.model_type == "gemma2":
        assert bundle.model.language_model.config._attn_implementation == "eager"
        return
    own = bundle.config.vision["type"], bundle.config.text_config.model_type
    backbone = next(
        b for b, parts in BACKBONES.items() if (parts["vision"]["type"], parts["language"]["model_type"]) == own
    )
    other = make_bundle(backbone, bundle.config.head["name"], attention="eager")
    other.model.load_state_dict(bundle.model.state_dict())
    assert other.model.language_model.config._attn_implementation == "eager"
    assert bundle.model.language_model.config._attn_implementation == "sdpa"
    batch = make_batch(bundle, ALL)
    loss, terms, grads = step(bundle.model, batch)
    eager_loss, eager_terms, eager_grads = step(other.model, batch)
    assert eager_terms == pytest.approx(terms, rel=1e-4)
    assert_same_gradients(grads, eager_grads)


# ---- packing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("backbone", ["internvl", "gemma2", *NATIVE])
def test_packed_questions_give_the_loss_and_gradients_of_single_ones(backbone, head):
    bundle = make_bundle(backbone, head)
    lines = [
        {"id": "q1", "video": "a.mp4", "tgt": [0, 2], "conversations": turns("<video>\nwhen?", "<span>")},
        {"id": "q2", "video": "a.mp4", "conversations": turns("<video>\nwhat is it, now?", "a dog runs")},
        {"id": "q3", "video": "b.mp4", "tgt": [1, 2, 3, 4], "conversations": turns("<video>\nboth?", "<span>, <span>")},
        {"id": "q4", "video": "a.mp4", "src": [1, 2], "tgt": [1, 3],
         "conversations": turns("<video>\nafter <span>?", "<span>", "sure?", "yes")},
        "text",
    ]  # fmt: skip
    apart, packed = make_batch(bundle, lines), make_batch(bundle, lines, pack=True)
    assert packed.input_ids.shape[0] == 3 < apart.input_ids.shape[0]
    once = 4 + 6 if bundle.model.patching is None else 2 * 24 + 3 * 8  # frames; patches of pairs of frames
    assert packed.pixel_values.shape[0] == once < apart.pixel_values.shape[0]
    loss, terms, grads = step(bundle.model, apart)
    packed_loss, packed_terms, packed_grads = step(bundle.model, packed)
    assert packed_terms == pytest.approx(terms, rel=1e-5) and packed_loss == pytest.approx(loss, rel=1e-5)
    assert_same_gradients(grads, packed_grads)


# ---- the two stages of evidence --------------------------------------------------------------------------------------


def reference_loss(bundle, batch: dict) -> torch.Tensor:
    """The evidence head's loss written out: two whole passes, nothing cached, transformers' own hidden states."""
    model, head = bundle.model, bundle.model.head
    tokens = model.frame_tokens(batch)
    frames = model.frame_batch(batch, tokens)
    refs = batch.refs
    embeds = model.embed(batch, tokens)
    length = embeds.shape[1]
    mask = model.attention_mask(batch, slice(0, length), embeds.dtype)
    answered = refs.role != Role.QUESTION

    def states(inputs):
        with model.added(batch, model.maps(tokens), length):
            out = model.decoder(
                inputs_embeds=inputs, attention_mask=mask, position_ids=batch.position_ids, output_hidden_states=True,
                use_cache=False,
            )  # fmt: skip
        return out.hidden_states

    def frame_means(layer):  # [B, L, D] -> [B, F, D], frame by frame
        means = torch.zeros(*batch.times_s.shape, layer.shape[-1])
        places = layer.flatten(0, 1)[batch.visual_index]
        each = len(places) // len(batch.frame_row)
        sizes = [size for frames, size in batch.runs or [(len(batch.frame_row), each)] for _ in range(frames)]
        for row, column, picked in zip(batch.frame_row, batch.frame_col, places.split(sizes), strict=True):
            if column >= 0:
                means[row, column] = means[row, column] + picked.mean(0)
        return means

    embeds = model.embed_refs(embeds, refs.select(~answered), frames)
    frames.states[head.inject_layer] = frame_means(states(embeds)[head.inject_layer])
    final = states(model.embed_refs(embeds, refs.select(answered), frames))
    frames.states[head.query_layer] = frame_means(final[head.query_layer])
    sums = head.loss(final[head.query_layer].flatten(0, 1)[refs.query_index], refs, frames)
    counts = head.counts(refs)
    logits = model.get_output_embeddings()(final[-1]).flatten(0, 1)
    if cap := getattr(model.config.text_config, "final_logit_softcapping", None):
        logits = cap * (logits / cap).tanh()
    lm = cross_entropy(logits[batch.label_index], batch.label_ids)
    return lm + sum(value / counts[name] for name, value in sums.items())


@pytest.mark.parametrize("backbone", ["internvl", "etchat", "llama", "gemma2", *NATIVE])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["cached", "checkpointed"])
def test_two_stage_training_equals_two_uncached_passes(backbone, checkpointing):
    bundle = make_bundle(backbone, "d2vlm")
    batch = make_batch(bundle, ALL)
    expected = reference_loss(bundle, batch)
    expected.backward()
    wanted = gradients(bundle.model)
    if checkpointing:
        bundle.model.gradient_checkpointing_enable({"use_reentrant": False})
    loss, _, grads = step(bundle.model, batch)
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    assert_same_gradients(wanted, grads)


@pytest.mark.parametrize(
    "pair", [("internvl", "distime"), ("etchat", "text"), ("gemma2", "distime"), ("qwen3_vl", "text")], ids="-".join
)
def test_gradient_checkpointing_changes_no_number(pair):
    bundle = make_bundle(*pair)
    batch = make_batch(bundle, ALL)
    loss, _, grads = step(bundle.model, batch)
    bundle.model.gradient_checkpointing_enable({"use_reentrant": False})
    again, _, checkpointed = step(bundle.model, batch)
    assert again == pytest.approx(loss, rel=1e-6)
    assert_same_gradients(grads, checkpointed)


@pytest.mark.parametrize("backbone", ["internvl", "etchat", "llama", "gemma2"])
def test_checkpointed_training_runs_the_prefix_only_up_to_the_injected_layer(backbone):
    bundle = make_bundle(backbone, "d2vlm")
    model, batch = bundle.model, make_batch(bundle, ALL)
    calls = []
    for k, layer in enumerate(model.decoder.layers):
        layer.register_forward_pre_hook(lambda _, args, k=k: calls.append((k, args[0].shape[1])))
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    with torch.no_grad():
        model(batch)
    prefix, length = batch.prefix_columns, batch.input_ids.shape[1]
    depth, count = model.head.inject_layer, len(model.decoder.layers)
    assert depth < count
    assert calls == [(k, prefix) for k in range(depth)] + [(k, length) for k in range(count)]


def test_a_video_behind_an_answer_with_spans_is_trained_as_it_is_asked():
    """The prefix then holds answered spans; their embeddings belong into the states behind them."""
    line = {
        "video": "a.mp4", "duration": 4, "tgt": [1, 3, 0, 2],
        "conversations": turns("hi, when?", "in <span>", "<video>\nand this?", "<span>"),
    }  # fmt: skip
    bundle = make_bundle("internvl", "d2vlm")
    batch = make_batch(bundle, [line, "two_spans"])
    expected = reference_loss(bundle, batch).item()
    assert bundle.model(batch).loss.item() == pytest.approx(expected, rel=1e-5)


def test_words_said_before_a_video_are_learnt_from_the_prefix():
    """As from all other places: the last layer runs over the prefix too."""
    early = {
        "video": "a.mp4", "duration": 4, "tgt": [1, 3],
        "conversations": turns("hi", "hello there", "<video>\nwhen?", "<span>"),
    }  # fmt: skip
    bundle = make_bundle("internvl", "d2vlm")
    for lines, labels in ((ALL, False), ([early, "two_spans"], True)):
        batch = make_batch(bundle, lines)
        in_prefix = batch.label_index % batch.input_ids.shape[1] < batch.prefix_columns
        assert batch.keep_prefix and in_prefix.any() == labels
        reference_loss(bundle, batch).backward()
        wanted = gradients(bundle.model)
        assert_same_gradients(wanted, step(bundle.model, batch)[2])


def test_the_injection_layer_must_exist():
    with pytest.raises(ValueError, match="layer 9"):
        make_bundle("internvl", "d2vlm", head={"name": "d2vlm", "inject_layer": 9})


# ---- tower and frames ------------------------------------------------------------------------------------------------


def test_a_trained_tower_gets_gradients_and_a_frozen_one_stays_in_evaluation_mode():
    bundle = make_bundle("internvl", "distime", train={"parts": {"vision_tower": {"train": True}}})
    _, _, grads = step(bundle.model, make_batch(bundle, ["two_spans"]))
    tower = {n: g for n, g in grads.items() if n.startswith("vision_tower")}
    assert tower and all(g is not None for g in tower.values())
    assert any(g.any() for g in tower.values())
    frozen = make_bundle("internvl", "distime").model.train()
    assert not frozen.vision_tower.training and frozen.language_model.training


@pytest.mark.parametrize("backbone", ["internvl", "etchat"])
def test_stored_features_give_the_loss_of_the_pixels(backbone):
    bundle = make_bundle(backbone, "d2vlm")
    names = ["two_spans", "asked"]
    batch = make_batch(bundle, names)
    stored = replace(batch, pixel_values=None, features=bundle.model.vision_tower(batch.pixel_values))
    assert bundle.model(stored).loss.item() == pytest.approx(bundle.model(batch).loss.item(), rel=1e-6)


def test_every_frame_and_its_order_matter():
    bundle = make_bundle("internvl", "d2vlm")
    batch = make_batch(bundle, ["two_spans"])
    loss = bundle.model(batch).loss.item()
    for f in range(4):
        pixels = batch.pixel_values.clone()
        pixels[f] += 1.0
        assert bundle.model(replace(batch, pixel_values=pixels)).loss.item() != pytest.approx(loss, rel=1e-6)


def test_padding_and_company_change_nothing():
    bundle = make_bundle("etchat", "d2vlm")
    dataset = make_dataset(bundle, ["two_spans", "turns"])
    collate = bundle.collator()
    alone = collate([dataset[0]])
    beside = collate([dataset[0], dataset[1]])
    counts = bundle.model.counts(beside)
    rest = bundle.model(collate([dataset[1]]), counts=counts).loss.item()
    mine = bundle.model(alone, counts=counts).loss.item()
    beside.input_ids[beside.segment_ids < 0] = 7
    assert bundle.model(beside, counts=counts).loss.item() == pytest.approx(mine + rest, rel=1e-5)


# ---- numbers that must not move --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pair, expected",
    [
        (("internvl", "d2vlm"), {"lm": 5.655115, "grounding": 7.169542, "consistency": 1.579169}),
        (("etchat", "distime"), {"lm": 6.098213, "dfl": 0.649228, "diou": 0.501639}),
    ],
    ids=["internvl-d2vlm", "etchat-distime"],
)
def test_loss_terms_of_fixed_tiny_models(pair, expected):
    bundle = make_bundle(*pair)
    terms = {k: v.item() for k, v in bundle.model(make_batch(bundle, ALL)).terms.items()}
    assert terms == pytest.approx(expected, rel=1e-4)
