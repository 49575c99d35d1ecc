"""What one encoding of video and question saves in a training step of D2VLM's language model: ratios, paired.

Claims: the supervised step with one prefix against the two-pass form (the prefix first, then the whole
sequence), with the same losses and gradients; the preference step with both answers behind one prefix against two
sequences; SDPA against eager. 128 frames, 60 text tokens, frame tokens given, so no tower and no connector. All kinds
take turns in one process, and a ratio is the median of the ratios of its rounds.

    python -m benchmarks.d2vlm_step --layers 8 --width 512 --repeats 5 --json out.json
"""

import argparse
import statistics
import sys
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

import d2vlm.evidence  # noqa: F401 - registers the head
from benchmarks.rounds import command_line, peak_mib, ratio, rounds, write_json
from d2vlm.fpo import FPO, FPOOptions
from videollm.batches.batch import Batch
from videollm.batches.collate import Collator
from videollm.batches.dataset import Item
from videollm.batches.prompt import Prompt, Ref
from videollm.common.command import ended
from videollm.data.conversation import Role
from videollm.model.videollm import VideoLLM, VideoLLMConfig

FRAMES, QUESTION, ANSWER = 128, 20, 40  # 60 text tokens behind the frames
BEFORE = 4  # tokens before the frames
EVENTS = 2
EVIDENCE, EVIDENCE_END = 10, 11  # token ids


class TwoPass(VideoLLM):
    """The published order: the prefix through all layers for the frames' states, then the whole sequence anew."""

    def training_states(self, batch, embeds, refs, frames, maps=None):
        layer, length = self.head.inject_layer, embeds.shape[1]
        embeds = self.embed_refs(embeds, refs.select(batch.early_refs), frames)
        prefix = self.run(batch, embeds, slice(0, batch.prefix_columns), {layer, -1})
        frames.states[layer] = self.states_of_frames(batch, prefix[layer])
        embeds = self.embed_refs(embeds, refs.select(batch.late_refs), frames)
        return self.run(batch, embeds, slice(0, length), {-1, self.head.query_layer, *self.head.frame_layers})


def make_model(args: argparse.Namespace, kind: type[VideoLLM], attention: str) -> VideoLLM:
    """A scaled-down Phi-3 with the evidence head; the same weights for every kind."""
    heads = max(1, args.width // 64)
    text = {
        "model_type": "phi3", "vocab_size": args.vocabulary, "hidden_size": args.width,
        "num_hidden_layers": args.layers,
        "num_attention_heads": heads, "num_key_value_heads": heads, "intermediate_size": args.width * 8 // 3,
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    config = VideoLLMConfig(
        text_config=text, vision={"type": "conv", "num_channels": 3}, connector={"type": "linear"},
        head={"name": "d2vlm"}, token_ids={"<evi>": EVIDENCE, "</evi>": EVIDENCE_END}, bidirectional_frames=True,
        attn_implementation=attention,
    )  # fmt: skip
    torch.manual_seed(0)
    model = kind(config).to(args.device, getattr(torch, args.dtype))
    model.frame_tokens = lambda batch: batch.features  # given: neither tower nor connector runs
    model.frozen_tower = True
    return model.train()


def framed(words: list[int]) -> Prompt:
    """Frames, and ``words`` behind them that are not supervised."""
    start = BEFORE + FRAMES
    ids = [12] * BEFORE + [13] * FRAMES + words
    block = [0 if BEFORE <= i < start else -1 for i in range(len(ids))]
    return Prompt(ids, [False] * len(ids), block, list(range(BEFORE, start)), prefix_length=start)


def prompt(rng: np.random.Generator, question: list[int], vocabulary: int) -> Prompt:
    """Frames, a question, and an answer of its own with evidence stage."""
    words = rng.integers(20, vocabulary, ANSWER).tolist()
    stage = [EVIDENCE] * EVENTS + [EVIDENCE_END]
    words[: len(stage)] = stage
    places = [len(stage) + 4 + 12 * event for event in range(EVENTS)]
    for place in places:
        words[place] = EVIDENCE
    found = framed(question + words)
    answer = found.prefix_length + QUESTION
    roles = [(answer + k, Role.EVIDENCE, k) for k in range(EVENTS)]
    roles += [(answer + place, Role.ANSWER, k) for k, place in enumerate(places)]
    found.supervised = [i >= answer for i in range(len(found))]
    found.refs = [Ref(place, role, span=k) for place, role, k in roles]
    return found


def make_items(args: argparse.Namespace, answers: int) -> list[Item]:
    """``args.batch`` videos with one question each, and ``answers`` answers to it behind one prefix."""
    rng, items = np.random.default_rng(0), []
    for _ in range(args.batch):
        question = rng.integers(20, args.vocabulary, QUESTION).tolist()
        prompts = [prompt(rng, question, args.vocabulary) for _ in range(answers)]
        for one in prompts:
            one.prefix_length += QUESTION * (answers > 1)
        spans = [np.sort(rng.uniform(0, FRAMES, (EVENTS, 2)), -1) for _ in prompts]
        times = np.arange(FRAMES) + 0.5
        items.append(Item(prompts, spans, times_s=times, duration_s=float(FRAMES), ids=["x"] * answers))
    return items


def make_batch(args: argparse.Namespace, model: VideoLLM, items: list[Item], rank: bool) -> Batch:
    """A batch with given frame tokens, which learn, as a connector behind them would."""
    batch = Collator(pad_id=0, split_prefix=True, bidirectional=True, rank=rank)(items)
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randn(len(items), FRAMES, 1, args.width, generator=generator)
    if len(items) > args.batch:  # two sequences of one video each: chosen ones, then rejected ones
        tokens = torch.cat([tokens[: args.batch]] * 2)
    return replace(batch.to(args.device), features=tokens.flatten(0, 1).to(args.device, model.dtype).requires_grad_())


def sft_step(model: VideoLLM, batch: Batch) -> float:
    """Forward and backward; returns the loss."""
    loss = model(batch).loss
    loss.backward()
    return loss.item()


def fpo_step(model: VideoLLM, batch: Batch, apart: bool) -> float:
    """The preference loss and the chosen answers' language-model loss, of one row a pair, or of two."""
    objective = FPO(FPOOptions())
    token, factors = objective.factors(model, batch, model.read(batch))
    half = len(factors) // 2
    chosen, rejected = (factors[:half], factors[half:]) if apart else (factors[::2], factors[1::2])
    own = batch.pairs.label_sample < half if apart else batch.pairs.label_sample % 2 == 0
    loss = -nn.functional.logsigmoid(0.1 * (chosen - rejected).sum(-1)).mean() + token[own].sum() / own.sum()
    loss.backward()
    return loss.item()


def apart_batch(args: argparse.Namespace, model: VideoLLM, items: list[Item]) -> Batch:
    """Chosen and rejected answers as sequences of their own: all chosen ones, then all rejected ones."""
    rows = []
    for k in range(2):
        for item in items:
            rows.append(Item([item.prompts[k]], [item.spans_s[k]], times_s=item.times_s, duration_s=item.duration_s))
    return make_batch(args, model, rows, rank=True)


def gradients(model: VideoLLM, step: Callable[[], float], tokens: Tensor, videos: int) -> tuple[float, list[Tensor]]:
    """Loss, and the gradients of all weights and of the frame tokens of each video."""
    model.zero_grad(set_to_none=True)
    tokens.grad = None
    loss = step()
    grads = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    return loss, [*grads, tokens.grad.view(-1, videos * FRAMES, tokens.shape[-1]).sum(0)]


def difference(one: tuple[float, list[Tensor]], other: tuple[float, list[Tensor]]) -> float:
    """The largest difference of two losses or gradients, relative to the norm of each tensor."""
    assert len(one[1]) == len(other[1])
    pairs = zip(one[1], other[1], strict=True)
    found = [((a - b).norm() / b.norm().clamp(min=1e-12)).item() for a, b in pairs]
    return max(abs(one[0] - other[0]) / abs(other[0]), *found)


def step_of(args: argparse.Namespace, kind: type[VideoLLM], attention: str, batch_size: int) -> tuple:
    """(model, one supervised step, its frame tokens)."""
    own = argparse.Namespace(**vars(args) | {"batch": batch_size})
    model = make_model(own, kind, attention)
    batch = make_batch(own, model, make_items(own, 1), rank=False)
    return model, lambda: sft_step(model, batch), batch.features


def supervised(args: argparse.Namespace) -> dict:
    """One prefix against two passes, at batch 1 and at ``args.batch``, and SDPA against eager."""
    steps, checked = {}, {}
    for size in (1, args.batch):
        made = {
            "one prefix": step_of(args, VideoLLM, "sdpa", size), "two passes": step_of(args, TwoPass, "sdpa", size),
            "one prefix, eager": step_of(args, VideoLLM, "eager", size),
        }  # fmt: skip
        grads = {name: gradients(model, step, tokens, size) for name, (model, step, tokens) in made.items()}
        checked[size] = max(difference(grads[name], grads["one prefix"]) for name in made)
        steps |= {f"{name}, batch {size}": step for name, (_, step, _) in made.items()}
    times = rounds(steps, args.repeats, args.device)
    peaks = {name: peak_mib(step, args.device) for name, step in steps.items()}
    many = f"batch {args.batch}"
    found = {
        "two passes / one prefix, batch 1": ratio(times, "two passes, batch 1", "one prefix, batch 1"),
        f"two passes / one prefix, {many}": ratio(times, f"two passes, {many}", f"one prefix, {many}"),
        f"per sample: two passes, batch 1 / one prefix, {many}":
            ratio(times, "two passes, batch 1", f"one prefix, {many}", 1 / args.batch),
        "eager / SDPA, batch 1": ratio(times, "one prefix, eager, batch 1", "one prefix, batch 1"),
        f"eager / SDPA, {many}": ratio(times, f"one prefix, eager, {many}", f"one prefix, {many}"),
    }  # fmt: skip
    return {"seconds": times, "ratios": found, "peak MiB": peaks, "largest difference": max(checked.values())}


def preference(args: argparse.Namespace) -> dict:
    """Both answers behind one prefix against two sequences, each with one prefix."""
    steps, differences = {}, []
    for size in (1, args.batch):
        own = argparse.Namespace(**vars(args) | {"batch": size})
        model, items = make_model(own, VideoLLM, "sdpa"), make_items(own, 2)
        together, apart = make_batch(own, model, items, rank=True), apart_batch(own, model, items)
        pair = {
            f"one row a pair, batch {size}": lambda m=model, b=together: fpo_step(m, b, apart=False),
            f"two sequences, batch {size}": lambda m=model, b=apart: fpo_step(m, b, apart=True),
        }
        both = zip(pair.values(), (together, apart), strict=True)
        differences.append(difference(*(gradients(model, step, batch.features, size) for step, batch in both)))
        steps |= pair
    times = rounds(steps, args.repeats, args.device)
    sizes = [f"batch {size}" for size in (1, args.batch)]
    found = {
        f"two sequences / one row, {size}": ratio(times, f"two sequences, {size}", f"one row a pair, {size}")
        for size in sizes
    }
    peaks = {name: peak_mib(step, args.device) for name, step in steps.items()}
    return {"seconds": times, "ratios": found, "peak MiB": peaks, "largest difference": max(differences)}


def main() -> None:
    """Measure and print."""
    parser = command_line(
        __doc__, layers=(8, "of the language model; Phi-3-mini has 32"), width=(512, "Phi-3-mini has 3072"),
        vocabulary=(2004, "Phi-3-mini has 32064"), batch=(8, "the larger batch"), repeats=5,
        device="cuda" if torch.cuda.is_available() else "cpu", dtype="float32", file=True,
    )  # fmt: skip
    args = parser.parse_args()
    found = {"supervised": supervised(args), "preference": preference(args)}
    for name, part in found.items():
        print(f"{name}: largest relative difference of a loss or a gradient {part['largest difference']:.1e}")
        for what, value in part["ratios"].items():
            low, high = value["quartiles"]
            print(f"  {what}: {value['median']:.2f}x (quartiles {low:.2f}-{high:.2f})")
        for what, times in part["seconds"].items():
            print(f"  {what}: {1000 * statistics.median(times):.0f} ms, peak {part['peak MiB'][what]:.0f} MiB")
    write_json(args.json, {"settings": vars(args) | {"json": None}, **found})


if __name__ == "__main__":
    sys.exit(ended(main))
