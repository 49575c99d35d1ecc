"""A whole training pass of D2VLM gives the published activations, from the annotation to the logits.

Arrays and tolerance (1e-4 absolute, here also 1e-5 relative): golden/d2vlm/README.md. Rows that the published code
pads in their middle are compared with the file of their single sample, as the README says.
"""

import pytest
import torch
from torch import Tensor

from tests.golden.d2vlm_model import SFT_CASES, case_files, padded_rows, read_config, sft_batch
from videollm.data.conversation import Role
from videollm.model.loss import logits_of
from videollm.model.videollm import VideoLLM

CLOSE = {"atol": 1e-4, "rtol": 1e-5}  # hidden states reach 20, where float32 itself is 2e-6 coarse


class Trace:
    """One training pass over a golden case, and what goes through its decoder."""

    def __init__(self, bundle, folder, name):
        self.info, self.arrays = case_files(folder, name)
        self.model, self.batch = bundle.model, sft_batch(bundle, folder, self.info["samples"])
        self.inject = self.model.head.inject_layer
        self.passes: list[tuple[slice, dict[int, Tensor]]] = []
        self.model.run = self.run
        try:
            with torch.no_grad():
                self.tokens = self.model.frame_tokens(self.batch)
                self.frames = self.model.frame_batch(self.batch, self.tokens)
                embeds = self.model.embed(self.batch, self.tokens)
                self.refs = self.batch.refs
                self.model.training_states(self.batch, embeds, self.refs, self.frames)
        finally:
            del self.model.run

    def run(self, batch, embeds, columns, layers, cache=None, **others):
        """``VideoLLM.run`` with more layers kept: of a pass that ends early, none behind its end."""
        more = {0, self.inject, -2} if -1 in layers else {0}
        states = VideoLLM.run(self.model, batch, embeds, columns, layers | more, cache, **others)
        self.passes.append((columns, states))
        return states

    def states(self, layer: int) -> Tensor:
        """[B, L, D]; up to the injected layer the second pass runs behind the prefix only."""
        (_, prefix), (_, states) = self.passes
        whole = states[layer].shape[1] == self.batch.input_ids.shape[1]
        return states[layer] if whole else torch.cat([prefix[layer], states[layer]], 1)

    def real(self, row: int) -> Tensor:
        """Columns of a row that are no padding, in order."""
        return (self.batch.segment_ids[row] >= 0).nonzero().squeeze(-1)

    def expected(self, folder, row: int):
        """(json, arrays, row) to compare row ``row`` with."""
        if row not in padded_rows(self.arrays):
            return self.info, self.arrays, row
        return *case_files(folder, f"sft_single_{self.info['samples'][row]}"), 0


@pytest.fixture(scope="module")
def traced(bundle, folder):
    found = {}
    return lambda name: found[name] if name in found else found.setdefault(name, Trace(bundle, folder, name))


def rows(trace, folder):
    for row in range(len(trace.info["samples"])):
        info, arrays, at = trace.expected(folder, row)
        yield row, trace.real(row), info, arrays, at


@pytest.mark.parametrize("name", SFT_CASES)
def test_prompts_are_the_published_ids_and_labels(traced, bundle, folder, name):
    trace = traced(name)
    batch, length = trace.batch, trace.batch.input_ids.shape[1]
    supervised = {int(i): int(t) for i, t in zip(batch.label_index, batch.label_ids, strict=True)}
    placeholder = bundle.tokenizer.convert_tokens_to_ids("<frame>")
    for row, real, info, arrays, at in rows(trace, folder):
        part1 = arrays["input_ids_part1"][at][arrays["attention_mask_part1"][at].bool()]
        ids = [*part1[:-1].tolist(), *[placeholder] * len(info["tag"][at]), *arrays[f"input_ids_part2.{at}"].tolist()]
        assert batch.input_ids[row, real].tolist() == ids
        assert batch.position_ids[row, real].tolist() == list(range(len(ids)))
        labels = arrays["pass2_labels"][at, : len(ids)].tolist()
        # A label stands at its token; ours at the place that predicts it.
        wanted = {int(row * length + real[k - 1]): label for k, label in enumerate(labels) if label != -100}
        assert {place: t for place, t in supervised.items() if place // length == row} == wanted


@pytest.mark.parametrize("name", SFT_CASES)
def test_frames_become_the_published_pixels_and_tokens(traced, folder, name):
    trace = traced(name)
    owner = trace.batch.frame_row
    for row, _, _, arrays, at in rows(trace, folder):
        torch.testing.assert_close(trace.batch.pixel_values[owner == row], arrays[f"image.{at}"], **CLOSE)
        torch.testing.assert_close(trace.tokens[owner == row, 0], arrays[f"frame_embeds.{at}"], **CLOSE)


@pytest.mark.parametrize("name", SFT_CASES)
def test_attention_sees_what_the_published_masks_show(traced, folder, name):
    trace = traced(name)
    length = trace.batch.input_ids.shape[1]
    mask = trace.model.attention_mask(trace.batch, slice(0, length), torch.float32)[:, 0] == 0  # [B, L, L]
    for row, real, info, arrays, at in rows(trace, folder):
        own = mask[row][real][:, real]
        assert torch.equal(own, arrays["pass2_attend"][at, : len(real), : len(real)].bool())
        first = info["img_token_pos"][at][0][1]  # part 1 ends with the frames
        assert torch.equal(own[:first, :first], arrays["pass1_attend"][at, :first, :first].bool())


@pytest.mark.parametrize("name", SFT_CASES)
def test_the_prefix_gives_the_published_frame_states(traced, folder, name):
    trace = traced(name)
    for row, _, info, arrays, at in rows(trace, folder):
        states = trace.frames.states[trace.inject][row, : len(info["tag"][at])]
        torch.testing.assert_close(states, arrays[f"pass1_hidden6_frames.{at}"], **CLOSE)
        if "pass1_inputs_embeds" in arrays:
            first = info["img_token_pos"][at][0][1]
            columns = trace.real(row)[:first]
            torch.testing.assert_close(
                trace.states(0)[row, columns], arrays["pass1_inputs_embeds"][at, :first], **CLOSE
            )


@pytest.mark.parametrize("name", SFT_CASES)
def test_every_layer_that_is_read_equals_the_published_one(traced, folder, name):
    trace = traced(name)
    layers = {"pass2_inputs_embeds": 0, "pass2_hidden6": trace.inject, "pass2_hidden_m2": -2}
    layers["pass2_hidden_last_normed"] = -1
    for row, real, _, arrays, at in rows(trace, folder):
        for key in layers.keys() & arrays.keys():
            torch.testing.assert_close(trace.states(layers[key])[row, real], arrays[key][at, : len(real)], **CLOSE)
        logits = logits_of(trace.model.language_model, trace.states(-1)[row, real])
        torch.testing.assert_close(logits, arrays["pass2_logits"][at, : len(real)], **CLOSE)


@pytest.mark.parametrize("name", SFT_CASES)
def test_similarities_and_targets_equal_the_published_ones(traced, folder, name):
    trace = traced(name)
    head, frames = trace.model.head, trace.frames
    spans = trace.refs.select(trace.refs.role != Role.QUESTION)
    if not len(spans):
        assert not any(key.startswith("grounding_sim_logits") for key in trace.arrays)
        return
    frames.states[-2] = trace.model.states_of_frames(trace.batch, trace.states(-2))
    with torch.no_grad():
        logits = head.similarity(trace.states(-2).flatten(0, 1)[spans.query_index], spans.owner, frames)
        targets = head.targets(spans, frames, rounded=True)
    for row, _, info, arrays, at in rows(trace, folder):
        own, count = spans.owner == row, len(info["tag"][at])
        if own.any():
            k = sum(bool(info["tgt"][before]) for before in range(at))  # only samples with tgt are counted
            torch.testing.assert_close(logits[own, :count], arrays[f"grounding_sim_logits.{k}"], **CLOSE)
            torch.testing.assert_close(targets[own, :count], arrays[f"grounding_target.{k}"], **CLOSE)


def test_evidence_tokens_of_the_golden_model_are_where_its_config_says(bundle, folder):
    config = read_config(folder)
    assert bundle.model.span_ids == [config["evidence_token_id"]]
    assert bundle.config.head["alpha"] == config["llm"]["alpha"]
