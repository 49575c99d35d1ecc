"""Answers do not depend on what else is in the batch, and a span token's time is fed back as the head says."""

from dataclasses import replace

import pytest
import torch

from tests.models import LINES, PAIRS, make_batch, make_bundle, make_dataset
from videollm.heads import Prediction
from videollm.model.decoding import SpanPenalty
from videollm.model.generate import GenerateOptions

ALL = list(LINES)
OPTIONS = GenerateOptions(max_new_tokens=12)


def ask(bundle, batch, options=OPTIONS):
    return bundle.model.answer(batch, bundle.tokenizer, bundle.stop_id, options)


def likely_spans(bundle, names=ALL):
    """Scale the span tokens' output rows until greedy answers mix spans and words; gives the bundle back."""
    rows, spans = bundle.model.get_output_embeddings().weight.data, bundle.model.span_ids
    if not spans:
        return bundle
    original, batch = rows[spans].clone(), make_batch(bundle, names, asked=True)
    for factor in (2, -2, 3, -3, 1.5, -1.5, 4, -4, 1.2, -1.2, 6, -6):
        rows[spans] = factor * original
        ids = bundle.model.generate_ids(batch, 0, bundle.stop_id, OPTIONS)[0]
        if 0.15 < torch.isin(ids, torch.tensor(spans)).float().mean() < 0.85:
            return bundle
    raise AssertionError("no answers of spans and words")


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_a_batch_is_answered_as_its_questions_one_by_one(pair):
    bundle = likely_spans(make_bundle(*pair))
    together = ask(bundle, make_batch(bundle, ALL, asked=True))
    for name, (answer, reason) in zip(ALL, together, strict=True):
        ((alone, alone_reason),) = ask(bundle, make_batch(bundle, [name], asked=True))
        assert (answer.raw_text, answer.text, reason) == (alone.raw_text, alone.text, alone_reason), name
        for field in ("spans", "evidence_spans", "scores"):
            one, other = getattr(answer, field), getattr(alone, field)
            assert len(one) == len(other)
            torch.testing.assert_close(torch.tensor(one), torch.tensor(other), rtol=1e-4, atol=1e-4)
    limit = {"image": 0.0, "text": 0.0, "two_spans": 4.0}
    for name, (answer, _) in zip(ALL, together, strict=True):
        spans = answer.spans + answer.evidence_spans
        assert all(0 <= start <= end <= limit.get(name, 6.0) for start, end in spans)


@torch.no_grad()
def by_hand(bundle, batch, steps):
    """Greedy answering with nothing cached: every step runs the whole sequence again."""
    model, head = bundle.model, bundle.model.head
    tokens = model.frame_tokens(batch)
    base, refs = model.embed(batch, tokens), batch.refs
    frames = model.frame_batch(batch, tokens)
    embeds = model.embed_refs(base, refs, frames)
    prompt_length, ids, predictions, fed = embeds.shape[1], [], [], []
    for _ in range(steps):
        length = embeds.shape[1]
        more = length - prompt_length
        now = replace(batch, position_ids=torch.arange(length)[None], input_ids=torch.zeros(1, length))
        now.segment_ids = torch.nn.functional.pad(batch.segment_ids, (0, more), value=1)
        now.block_ids = torch.nn.functional.pad(batch.block_ids, (0, more), value=-1)
        mask = model.attention_mask(now, slice(0, length), embeds.dtype)
        out = model.decoder(
            inputs_embeds=embeds, attention_mask=mask, position_ids=now.position_ids, output_hidden_states=True,
            use_cache=False,
        )  # fmt: skip
        frames = model.frame_batch(batch, tokens)
        for layer in {*head.frame_layers, head.inject_layer} - {None}:
            frames.states[layer] = model.states_of_frames(now, out.hidden_states[layer])
        token = model.get_output_embeddings()(out.last_hidden_state[:, -1]).argmax(-1)
        embed = model.get_input_embeddings()(token)
        if token.item() in model.span_ids:
            owner = torch.zeros(1, dtype=torch.long)
            predictions.append(head.predict(out.hidden_states[head.query_layer][:, -1], owner, frames))
            embed = head.embed_predicted(embed, predictions[-1], owner, frames)
        ids.append(token.item())
        fed.append(embed)
        if ids[-1] == bundle.stop_id:
            break
        embeds = torch.cat([embeds, embed[:, None]], 1)
    return ids, Prediction.cat(predictions), torch.cat(fed)


@pytest.mark.parametrize("pair", [("internvl", "d2vlm"), ("etchat", "d2vlm"), ("etchat", "distime")], ids="-".join)
def test_generation_equals_a_loop_without_a_cache(pair):
    """Ids, seconds, and what is fed after each token: for a span token the head's embedding, not the word's."""
    name = "asked" if pair[1] == "distime" else "two_spans"
    bundle = likely_spans(make_bundle(*pair), [name])
    batch = make_batch(bundle, [name], asked=True)
    ids, prediction, fed = by_hand(bundle, batch, 10)
    assert any(i in bundle.model.span_ids for i in ids[:-1]) and len(set(ids)) > 1
    seen = []
    hook = bundle.model.decoder.register_forward_pre_hook(
        lambda _m, _a, kwargs: seen.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    sequences, state = bundle.model.generate_ids(batch, 0, bundle.stop_id, GenerateOptions(max_new_tokens=10))
    hook.remove()
    assert sequences[0].tolist() == ids
    found = state.found.seconds[0, : len(ids)][torch.isin(sequences[0], torch.tensor(bundle.model.span_ids))]
    torch.testing.assert_close(found, prediction.seconds, rtol=1e-4, atol=1e-4)
    after = torch.cat([e[:, 0] for e in seen[1:]])
    torch.testing.assert_close(after, fed[: len(after)], rtol=1e-4, atol=1e-5)
    words = bundle.model.get_input_embeddings()(sequences[0])[: len(after)]
    is_span = torch.isin(sequences[0][: len(after)], torch.tensor(bundle.model.span_ids))
    assert torch.equal(after[~is_span], words[~is_span])
    assert ((after - words)[is_span].abs().amax(-1) > 1e-3).all()


def test_earlier_answers_are_seen_with_their_spans():
    """A second question's prompt holds the first answer's true spans, embedded as in training."""
    bundle = make_bundle("internvl", "d2vlm")
    dataset = make_dataset(bundle, ["turns"], answers=False)
    item = dataset[0]
    collate = bundle.collator(asked=True)
    logits = []
    bundle.model.get_output_embeddings().register_forward_hook(lambda _m, _i, out: logits.append(out))
    for seconds in (1.0, 0.0):
        item.spans_s[0][0] = [seconds, 3.0]
        ask(bundle, collate([item]), GenerateOptions(max_new_tokens=1))
    trained = make_bundle("internvl", "d2vlm")
    item.spans_s[0][0] = [1.0, 3.0]
    whole = make_batch(trained, ["turns"])
    trained.model.get_output_embeddings().register_forward_hook(lambda _m, _i, out: logits.append(out))
    trained.model(whole)
    first, moved, teacher = logits
    assert not torch.allclose(first, moved, atol=1e-4)
    open_place = sum(dataset[0].prompts[0].supervised)  # labels before the last answer's first
    torch.testing.assert_close(first[0], teacher[open_place], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("head", ["d2vlm", "distime"])
def test_a_span_token_cut_off_by_the_length_limit_still_gets_its_seconds(head):
    bundle = likely_spans(make_bundle("internvl", head), ["two_spans"])
    batch = make_batch(bundle, ["two_spans"], asked=True)
    ids = bundle.model.generate_ids(batch, 0, bundle.stop_id, OPTIONS)[0][0].tolist()
    last = next(i for i, t in enumerate(ids) if t in bundle.model.span_ids)
    ((answer, reason),) = ask(bundle, batch, GenerateOptions(max_new_tokens=last + 1))
    count = sum(t in bundle.model.span_ids for t in ids[: last + 1])
    assert reason == "length" and len(answer.spans) == count == len(answer.scores)


def test_an_answer_ends_at_its_stop_token():
    bundle = make_bundle("internvl", "text")
    stop = bundle.stop_id
    batch = make_batch(bundle, ["two_spans", "text"], asked=True)
    first = bundle.model.generate_ids(batch, 0, stop, GenerateOptions(max_new_tokens=3))[0][:, 1].tolist()
    answers = bundle.model.answer(batch, bundle.tokenizer, first[0], GenerateOptions(max_new_tokens=8))
    assert answers[0][1] == "stop" and bundle.tokenizer.decode([first[0]]) not in answers[0][0].raw_text


def test_sampled_answers_follow_from_seed_and_question_alone():
    """Not from torch's generator, the other rows, or their order; and another seed gives others."""
    bundle = make_bundle("etchat", "distime")
    options = GenerateOptions(max_new_tokens=8, do_sample=True, temperature=1.5, top_p=0.95, seed=3)
    together = dict(zip(ALL, ask(bundle, make_batch(bundle, ALL, asked=True), options), strict=True))
    texts = {name: answer.raw_text for name, (answer, _) in together.items()}
    assert len(set(texts.values())) == len(ALL)
    for k, some in enumerate((ALL[::-1], ALL[:2], *([name] for name in ALL))):
        torch.manual_seed(k)
        answers = ask(bundle, make_batch(bundle, some, asked=True), options)
        assert [answer.raw_text for answer, _ in answers] == [texts[name] for name in some]
    other = ask(bundle, make_batch(bundle, ALL, asked=True), replace(options, seed=4))
    assert all(answer.raw_text != texts[name] for name, (answer, _) in zip(ALL, other, strict=True))


def test_sampling_takes_temperature_and_top_p():
    bundle = make_bundle("internvl", "text")
    batch = make_batch(bundle, ALL, asked=True)
    greedy = bundle.model.generate_ids(batch, 0, bundle.stop_id, OPTIONS)[0]
    for narrow in ({"temperature": 1e-4}, {"top_p": 1e-6}):
        options = replace(OPTIONS, do_sample=True, **narrow)
        assert torch.equal(bundle.model.generate_ids(batch, 0, bundle.stop_id, options)[0], greedy)
    wide = bundle.model.generate_ids(batch, 0, bundle.stop_id, replace(OPTIONS, do_sample=True))[0]
    assert not torch.equal(wide[:, :2], greedy[:, :2])


def test_a_repetition_penalty_leaves_span_tokens_alone():
    scores = torch.tensor([[2.0, -2.0, 3.0, 4.0]])
    words = torch.tensor([[True, True, False, True]])
    penalised = SpanPenalty(2.0, torch.tensor([3]), words)(None, scores.clone())
    assert penalised.tolist() == [[1.0, -4.0, 3.0, 4.0]]


def test_a_penalty_keeps_an_answer_from_repeating_itself():
    bundle = likely_spans(make_bundle("internvl", "d2vlm"))
    batch = make_batch(bundle, ["two_spans"], asked=True)
    stop = bundle.stop_id
    options = GenerateOptions(max_new_tokens=16, repetition_penalty=1e6)
    ids = bundle.model.generate_ids(batch, 0, stop, options)[0][0].tolist()
    words = [i for i in ids if i not in bundle.model.span_ids]
    assert len(set(words)) == len(words)
    free = bundle.model.generate_ids(batch, 0, stop, GenerateOptions(max_new_tokens=16))[0][0].tolist()
    assert ids != free


@pytest.mark.parametrize("context, tokens", [(256, 64), (512, 128), (513, 512), (4096, 512)])
def test_an_answer_has_by_default_room_in_any_context(context, tokens):
    assert GenerateOptions().within(context).max_new_tokens == tokens < context
    assert GenerateOptions(max_new_tokens=9).within(context).max_new_tokens == 9
