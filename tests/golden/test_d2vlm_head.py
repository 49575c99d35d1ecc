"""The evidence head against tensors of the published implementation: every file of golden/d2vlm that it touches."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import d2vlm  # noqa: F401  registers the head
from d2vlm.evidence import project
from d2vlm.runs import best_run, mean_over_run
from tests.golden.d2vlm_model import FPO_CASES as FPO
from tests.golden.d2vlm_model import INFER_CASES, infer_case, infer_cases, read_config
from tests.golden.d2vlm_model import SFT_CASES as SFT
from tests.golden.distime_model import existing
from videollm.data.conversation import Role
from videollm.heads import FrameBatch, Prediction, SpanRefs, build_head

CLOSE = {"atol": 1e-4, "rtol": 1e-4}


@pytest.fixture(scope="module")
def weights(folder) -> dict:
    return load_file(folder / "model.safetensors")


@pytest.fixture(scope="module")
def published(folder, weights):
    return make_head(folder, weights, "published")


def make_head(folder: Path, weights: dict, compatibility: str):
    config = json.loads((folder / "config.json").read_text())
    width = config["heads"]["frm_head"][0]
    options = {"name": "d2vlm", "alpha": config["llm"]["alpha"], "inject_layer": config["hidden_add_index"]}
    head = build_head({**options, "compatibility": compatibility}, width)
    own = {k: v for k, v in weights.items() if k.startswith(("frm_head.", "evi_head."))}
    head.load_state_dict(own, strict=True)
    return head.eval()


class Case:
    """One golden run as the head's inputs: frames, and the refs of each kind of place."""

    def __init__(self, folder: Path, name: str):
        if not (folder / f"{name}.safetensors").is_file():
            pytest.skip(f"{name} is not in this golden folder")
        self.arrays = load_file(folder / f"{name}.safetensors")
        self.info = json.loads((folder / f"{name}.json").read_text())
        self.inject = read_config(folder)["hidden_add_index"]
        self.tags = [torch.tensor(t) for t in self.info["tag"]]
        self.length = self.arrays["pass2_hidden_m2"].shape[1]
        starts, places = self.info["pass1_lengths"], self.info["evi_positions_part2"]
        self.evidence = [[start + p for p in row] for start, row in zip(starts, places, strict=True)]

    def frames(self) -> FrameBatch:
        count, width = max(map(len, self.tags)), self.arrays["pass2_hidden_m2"].shape[-1]
        rows = len(self.tags)
        batch = FrameBatch(
            torch.zeros(rows, count),
            torch.zeros(rows, count, dtype=torch.bool),
            torch.tensor([float(len(t)) for t in self.tags]),
            torch.zeros(rows, count, width),
            {self.inject: torch.zeros(rows, count, width), -2: torch.zeros(rows, count, width)},
        )
        for i, tag in enumerate(self.tags):
            n = len(tag)
            ((start, end),) = self.info["img_token_pos"][i]
            batch.times_s[i, :n], batch.mask[i, :n] = tag, True
            batch.embeds[i, :n] = self.arrays[f"frame_embeds.{i}"]
            batch.states[self.inject][i, :n] = self.arrays[f"pass1_hidden6_frames.{i}"]
            batch.states[-2][i, :n] = self.arrays["pass2_hidden_m2"][i, start:end]
        return batch

    def refs(self, places: list[dict]) -> SpanRefs:
        """``places``: row, position, query position, role, event, seconds (sample = row)."""

        def column(name, dtype=torch.int64):
            return torch.tensor([p[name] for p in places], dtype=dtype)

        row = column("row")
        index, query = row * self.length + column("position"), row * self.length + column("query")
        seconds = column("seconds", torch.float32).reshape(-1, 2)
        frame = torch.full_like(row, -1)
        return SpanRefs(index, query, row, row, column("role"), column("event"), frame, seconds, len(self.tags))

    def injected(self) -> SpanRefs:
        """Every <evi> of the sequence, question, chosen and rejected alike."""
        places = []
        for row, positions in enumerate(self.evidence):
            asked = pairs(self.info["src"][row])
            answers = [pairs(self.info[k][row]) for k in ("tgt", "tgt_reject") if k in self.info]
            spans = [(s, Role.QUESTION) for s in asked]
            for answer in answers:
                spans += [(s, Role.EVIDENCE) for s in answer] + [(s, Role.ANSWER) for s in answer]
            assert len(spans) == len(positions)
            for position, (span, role) in zip(positions, spans, strict=True):
                places.append(place(row, position, position - 1, role, 0, span))
        return self.refs(places)

    def grounded(self) -> SpanRefs:
        """The true spans' evidence and answer places of a fine-tuning run, with their query places."""
        places = []
        for row, positions in enumerate(self.evidence):
            spans = pairs(self.info["tgt"][row])
            first = len(pairs(self.info["src"][row]))
            for k, position in enumerate(positions[first : first + 2 * len(spans)]):
                role = Role.EVIDENCE if k < len(spans) else Role.ANSWER
                places.append(place(row, position, position - 1, role, k % len(spans), spans[k % len(spans)]))
        return self.refs(places)

    def preferred(self, which: str) -> SpanRefs:
        """The places of the chosen or rejected answers of a preference run."""
        places = []
        for row, events in enumerate(self.info["conflict_events"]):
            for event in events:
                grounding = event[which].get("grounding")
                spans = pairs(self.info["tgt" if which == "chosen" else "tgt_reject"][row])
                for k, index in enumerate(grounding["input_index"] if grounding else []):
                    role = Role.EVIDENCE if k < len(spans) else Role.ANSWER
                    query = self.info["relative_offset"][row] + index
                    places.append(place(row, query + 1, query, role, k % len(spans), grounding["tgt"][k]))
        return self.refs(places)

    def queries(self, refs: SpanRefs) -> torch.Tensor:
        return self.arrays["pass2_hidden_m2"].flatten(0, 1)[refs.query_index]


def place(row, position, query, role, event, seconds) -> dict:
    return {"row": row, "position": position, "query": query, "role": role, "event": event, "seconds": seconds}


def pairs(flat: list | None) -> list[list[float]]:
    return [list(p) for p in zip(flat[::2], flat[1::2], strict=True)] if flat else []


@pytest.mark.parametrize("name", SFT + FPO)
def test_both_projections_equal_the_published_ones(folder, published, name):
    case = Case(folder, name)
    hidden = case.arrays["pass2_hidden_m2"]
    torch.testing.assert_close(project(published.frm_head, hidden), case.arrays["frm_tokens"], **CLOSE)
    torch.testing.assert_close(project(published.evi_head, hidden), case.arrays["evi_tokens"], **CLOSE)


@pytest.mark.parametrize("name", SFT + FPO)
@pytest.mark.parametrize("compatibility", ["published", "default"])
def test_evidence_tokens_carry_the_published_embedding(folder, weights, name, compatibility):
    case, head = Case(folder, name), make_head(folder, weights, compatibility)
    refs = case.injected()
    token_id = json.loads((folder / "config.json").read_text())["evidence_token_id"]
    words = weights["model.embed_tokens.weight"][token_id].expand(len(refs), -1)
    expected = case.arrays["pass2_inputs_embeds"].flatten(0, 1)[refs.index]
    torch.testing.assert_close(head.embed(words, refs, case.frames()), expected, **CLOSE)
    if len(refs):
        assert (expected - words).abs().max() > 1e-3


@pytest.mark.parametrize("name", SFT + FPO)
def test_similarities_targets_and_losses_equal_the_published_ones(folder, published, name):
    case = Case(folder, name)
    refs = case.preferred("chosen") if name in FPO else case.grounded()
    frames, queries = case.frames(), case.queries(refs)
    grounded = sorted(set(refs.owner.tolist()))
    if len(refs):
        logits = published.similarity(queries, refs.owner, frames)
        targets = published.targets(refs, frames, rounded=True)
    for k, row in enumerate(grounded):
        own, count = refs.owner == row, len(case.tags[row])
        torch.testing.assert_close(logits[own, :count], case.arrays[f"grounding_sim_logits.{k}"], **CLOSE)
        torch.testing.assert_close(targets[own, :count], case.arrays[f"grounding_target.{k}"], atol=1e-6, rtol=0)
    loss, counts = published.loss(queries, refs, frames), published.counts(refs)
    for term in ("grounding", "consistency"):
        assert counts[term] == case.info["losses"]["avg_factor"] == len(grounded)
        mean = loss[term] / counts[term].clamp(min=1)
        assert mean.item() == pytest.approx(case.info["losses"][term], rel=1e-4)


@pytest.mark.parametrize("name", SFT + FPO)
def test_default_gives_the_published_losses_for_ordered_spans(folder, weights, name):
    case, head = Case(folder, name), make_head(folder, weights, "default")
    spans = [(span, len(tag)) for tag, tgt in zip(case.tags, case.info["tgt"], strict=True) for span in pairs(tgt)]
    if not spans or not all(0 <= start <= min(end, count - 1) for (start, end), count in spans):
        pytest.skip(f"{name} has no span, or one that is reversed or outside the video")
    refs = case.preferred("chosen") if name in FPO else case.grounded()
    loss, counts = head.loss(case.queries(refs), refs, case.frames()), head.counts(refs)
    for term in ("grounding", "consistency"):
        assert (loss[term] / counts[term]).item() == pytest.approx(case.info["losses"][term], rel=1e-4)


@pytest.mark.parametrize("name", FPO)
@pytest.mark.parametrize("which", ["chosen", "reject"])
def test_preference_log_probabilities_equal_the_published_ones(folder, published, name, which):
    case = Case(folder, name)
    refs = case.preferred(which)
    log_prob = published.log_prob(case.queries(refs), refs, case.frames())
    for row, expected in enumerate(case.info["losses"]["logps"]):
        own = log_prob[refs.owner == row].sum().item()
        assert own == pytest.approx(expected[which].get("grounding", 0.0), rel=1e-4)


def test_best_run_equals_every_published_vector(folder):
    for vector in json.loads(existing(folder / "find_and_merge.json").read_text()):
        values = torch.tensor([[float("nan") if v is None else v for v in vector["sim"]]])
        run, score = best_run(values, torch.ones_like(values, dtype=torch.bool), 0.6)
        assert run.tolist() == vector["result_fp32"]
        assert 0 <= score.item() <= 1


def test_best_run_of_all_published_vectors_at_once_ignores_the_padding(folder):
    vectors = json.loads(existing(folder / "find_and_merge.json").read_text())
    rows = [torch.tensor([float("nan") if v is None else v for v in x["sim"]]) for x in vectors]
    values = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=9.0)
    lengths = torch.tensor([len(r) for r in rows])
    run, _ = best_run(values, torch.arange(values.shape[1]) < lengths[:, None], 0.6)
    assert run.tolist() == [v["result_fp32"][0] for v in vectors]


@pytest.mark.parametrize("name", INFER_CASES)
def test_generation_finds_the_published_intervals_and_feeds_the_published_embeddings(folder, weights, published, name):
    case, arrays = infer_case(folder, name)
    word = weights["model.embed_tokens.weight"][json.loads((folder / "config.json").read_text())["evidence_token_id"]]
    count = arrays["sim"].shape[1]
    mask = torch.ones(1, count, dtype=torch.bool)
    run, _ = best_run(arrays["sim"], mask.expand_as(arrays["sim"]), 0.6)
    assert run.tolist() == [step[0] for step in case["intervals_per_step"]]

    steps = torch.tensor([s for s in case["match_inds"] if s < len(arrays["step_inputs_embeds"])], dtype=torch.int64)
    times = torch.arange(count).float().unsqueeze(0)
    inside = {read_config(folder)["hidden_add_index"]: arrays["hidden6_frames"].unsqueeze(0)}
    frames = FrameBatch(times, mask, torch.tensor([float(count)]), states=inside)
    owner = torch.zeros(len(steps), dtype=torch.int64)
    predicted = Prediction(times[0, run[steps]], torch.ones(len(steps)), run[steps])
    fed = published.embed_predicted(word.expand(len(steps), -1), predicted, owner, frames)
    torch.testing.assert_close(fed, arrays["step_inputs_embeds"][steps], **CLOSE)


@pytest.mark.parametrize("name", INFER_CASES)
def test_question_spans_are_prefilled_with_the_published_embeddings(folder, weights, published, name):
    case, arrays = infer_case(folder, name)
    config = json.loads((folder / "config.json").read_text())
    spans = [[case["src"][0]] * 2] if case["src"] and len(case["src"]) == 1 else pairs(case["src"])
    ids, count = arrays["input_ids"], len(arrays["frame_embeds"])
    places = (ids == config["evidence_token_id"]).nonzero().squeeze(-1)[: len(spans)]
    n, zeros = len(spans), torch.zeros(len(spans), dtype=torch.int64)
    seconds = torch.tensor(spans).reshape(-1, 2)
    refs = SpanRefs(places, places, zeros, zeros, zeros + Role.QUESTION, zeros, zeros - 1, seconds, 1)
    frames = FrameBatch(
        torch.arange(count).float().unsqueeze(0),
        torch.ones(1, count, dtype=torch.bool),
        torch.tensor([float(count)]),
        arrays["frame_embeds"].unsqueeze(0),
    )
    words = weights["model.embed_tokens.weight"][config["evidence_token_id"]].expand(n, -1)
    embedded = published.embed(words, refs, frames)
    torch.testing.assert_close(embedded, arrays["prefill_inputs_embeds"][places + count - 1], **CLOSE)


def test_mean_over_run_is_the_mean_of_the_frames_inclusive(folder):
    states = infer_cases(folder)[0][1]["hidden6_frames"].unsqueeze(0)
    mask, last = torch.ones(states.shape[:2], dtype=torch.bool), states.shape[1] - 1
    for first in range(last + 1):
        mean = mean_over_run(states, torch.tensor([[first, last]]), torch.tensor([0]), mask)
        torch.testing.assert_close(mean[0], states[0, first:].mean(0))
