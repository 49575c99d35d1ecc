"""A step of generation costs few operations and no wait for the device, at the depth of the published models."""

import pytest
import torch
from transformers import LogitsProcessorList

from tests.models import _language, make_batch, make_bundle
from tests.ops import Operations
from tests.unit.model.test_generate import likely_spans
from videollm.common.config import ConfigError
from videollm.model.generate import GenerateOptions

LOOK = 8
NAMES = ["two_spans", "turns", "text"]  # of unequal length: padded
CASES = {  # the most operations a token that was reached, greedily; 900 and 700 are the goals, and are held
    "d2vlm": ("etchat", _language("phi3", num_hidden_layers=32), 897),
    "distime": ("internvl", _language("qwen2", num_hidden_layers=24), 694),
}
SAMPLED = {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "repetition_penalty": 1.1, "min_new_tokens": 3 * LOOK}


def steps(head, **options):
    """The operations of ``LOOK`` steps and a look, of a deep and narrow model in bf16."""
    backbone, language, _ = CASES[head]
    bundle = make_bundle(backbone, head, language=language)
    bundle.model.to(torch.bfloat16)
    batch = make_batch(bundle, NAMES, asked=True)
    found = bundle.model.stream(batch, 0, -1, GenerateOptions(max_new_tokens=3 * LOOK, **options), look=LOOK)
    next(found)
    with Operations() as counted:
        next(found)
    return counted


@pytest.mark.parametrize("options", [{}, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("head", CASES)
def test_a_step_waits_for_nothing(head, options):
    """But for the look. A number put into places is a tensor on a CPU, a fill on a GPU: top-p, masks."""
    filled = ("lift_fresh in generation/", "lift_fresh in model/cache.py")
    waits = [place for place in steps(head, **options).waits.elements() if not place.startswith(filled)]
    assert len(waits) == 1 and waits[0].startswith("_local_scalar_dense in model/decoding.py")


@pytest.mark.parametrize("head", CASES)
def test_a_step_has_few_operations(head):
    counted, most = steps(head), CASES[head][-1]
    each = counted.total / LOOK
    assert each <= most, f"{each:.0f} operations a token: {counted.calls.most_common()}"


@pytest.mark.parametrize("share", [0, 1], ids=["no span", "spans only"])
def test_a_host_that_looks_in_each_step_asks_the_head_only_where_there_is_a_span(share, monkeypatch):
    """As on a CPU; where a look costs a wait, the head runs in every step."""
    bundle, asked = make_bundle("internvl", "d2vlm"), []
    predict = bundle.model.head.predict
    monkeypatch.setattr(bundle.model.head, "predict", lambda *given: asked.append(1) or predict(*given))
    batch = make_batch(bundle, NAMES, asked=True)
    chosen = bundle.model.span_ids[0] if share else 1
    always = LogitsProcessorList([lambda _ids, scores: scores.index_fill(1, torch.tensor([chosen]), 1e9)])
    monkeypatch.setattr(bundle.model, "processors", lambda *_: always)
    for look, wanted in ((1, share * 6), (2, 6)):
        asked.clear()
        *_, state = bundle.model.stream(batch, 0, -1, GenerateOptions(max_new_tokens=6), look=look)
        assert len(asked) == wanted and (state.ids[:, :6] == chosen).all()


@pytest.mark.parametrize("head", ["d2vlm", "distime"])
def test_tokens_do_not_depend_on_how_often_the_host_looks(head):
    bundle = likely_spans(make_bundle("internvl", head))
    batch = make_batch(bundle, NAMES, asked=True)
    first = bundle.model.generate_ids(batch, 0, -1, GenerateOptions(max_new_tokens=11))[0]
    stop = first[0, 4].item()  # ends a row early, within a look
    wanted, one = bundle.model.generate_ids(batch, 0, stop, GenerateOptions(max_new_tokens=11))
    for look in (3, LOOK, 50):
        *_, state = bundle.model.stream(batch, 0, stop, GenerateOptions(max_new_tokens=11), look=look)
        found = state.sequences()
        assert found.equal(wanted)
        for (_, own), (ids, same) in zip(state.answers(range(3)), one.answers(range(3)), strict=True):
            spans = torch.isin(torch.tensor(ids), one.span_ids)  # of others the head is not asked
            torch.testing.assert_close(own.seconds[spans], same.seconds[spans], rtol=0, atol=0)


def test_several_answers_share_one_pass_over_their_prompt():
    """The first is that of the question alone; greedy ones are all alike, sampled ones are not."""
    bundle = make_bundle("etchat", "d2vlm")
    batch, lengths = make_batch(bundle, ["two_spans", "text"], asked=True), []  # with no earlier answer
    bundle.model.decoder.register_forward_pre_hook(
        lambda _m, _a, given: lengths.append(tuple(given["inputs_embeds"].shape[:2])), with_kwargs=True
    )
    for sampled in (False, True):
        options = GenerateOptions(max_new_tokens=6, do_sample=sampled)
        alone = bundle.model.generate_ids(batch, 0, -1, options)[0]
        lengths.clear()
        found = bundle.model.generate_ids(batch, 0, -1, options, answers=3)[0].unflatten(0, (-1, 3))
        assert lengths == [tuple(batch.input_ids.shape)] + [(6, 1)] * 5
        assert found[:, 0].equal(alone)
        assert found[:, 1].equal(alone) != sampled


def test_an_answer_does_not_stop_before_its_least_length():
    bundle = make_bundle("internvl", "text")
    batch = make_batch(bundle, NAMES, asked=True)
    stop = bundle.model.generate_ids(batch, 0, -1, GenerateOptions(max_new_tokens=1))[0][0].item()
    for least in (0, 4):
        ids = bundle.model.generate_ids(batch, 0, stop, GenerateOptions(max_new_tokens=6, min_new_tokens=least))[0]
        assert (ids[0, 0] == stop) == (least == 0) and stop not in ids[0, :least]
    for wrong in (-1, 7):
        with pytest.raises(ConfigError, match=r"^generate\.min_new_tokens: "):
            GenerateOptions(max_new_tokens=6, min_new_tokens=wrong)
