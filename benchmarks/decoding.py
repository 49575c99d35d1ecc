"""What a generated token costs beside the bare forward pass of the language model over the same cache: ratios, paired.

A Phi-3 with the evidence head, 128 frames and a question, frame tokens given, so no tower and no connector. "loop" is
all of a step: masks, choice of the token, stop test, span decoding; "bare" feeds one fixed embedding again and again.
Both kinds run the prompt first, which is measured alone and taken off; they take turns in one process.

    python -m benchmarks.decoding --layers 8 --width 576 --answers 16
"""

import argparse
import statistics
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.d2vlm_step import FRAMES, QUESTION, make_items, make_model
from benchmarks.rounds import command_line, rounds, write_json
from videollm.batches.batch import Batch
from videollm.batches.collate import Collator
from videollm.batches.prompt import Prompt
from videollm.model.cache import RowCache
from videollm.model.generate import GenerateOptions
from videollm.model.videollm import VideoLLM

NEVER = -1  # a stop token that no answer has


def make_batch(args: argparse.Namespace, model: VideoLLM) -> Batch:
    """``args.batch`` questions without their answers."""
    items = make_items(args, 1)
    for item in items:
        (whole,) = item.prompts
        end = whole.prefix_length + QUESTION
        item.prompts = [
            Prompt(
                ids=whole.ids[:end], supervised=[False] * end, block=whole.block[:end], visual=whole.visual, refs=[],
                prefix_length=whole.prefix_length,
            )
        ]  # fmt: skip
        item.spans_s = [item.spans_s[0][:0]]
    batch = Collator(pad_id=0, split_prefix=False, bidirectional=True, average="samples")(items)
    batch.features = torch.randn(len(items) * FRAMES, 1, args.width, generator=torch.Generator().manual_seed(1))
    return batch.to(args.device)


@torch.no_grad()
def bare(model: VideoLLM, batch: Batch, tokens: int) -> Tensor:
    """The prompt's pass and ``tokens`` - 1 passes of one token, nothing decided; the last states."""
    rows, whole = torch.arange(len(batch), device=batch.input_ids.device), slice(0, batch.input_ids.shape[1])
    cache, position = RowCache(len(model.decoder.layers), len(batch), False, rows.device), batch.last[:, None].clone()
    embeds, *_ = model.prompt(batch, GenerateOptions())
    cache.hold(whole.stop + tokens)
    with cache.filled(rows, whole):
        states = model.run(batch, embeds, whole, {-1}, cache)[-1]
    cache.begin(range(len(batch)), rows, batch.segment_ids >= 0, batch.last)
    logits, steps = model.get_output_embeddings()(states[rows, batch.last]), torch.zeros_like(rows)
    embeds = embeds[:, -1:]
    for _ in range(tokens - 1):
        cache.advance()
        cache.go_to(steps.add_(1))
        out = model.decoder(
            inputs_embeds=embeds, attention_mask=cache.masks(model.windows, embeds.dtype),
            position_ids=position.add_(1), past_key_values=cache, use_cache=True,
        )  # fmt: skip
        logits = model.get_output_embeddings()(out.last_hidden_state[:, -1])
    return logits


def measure(args: argparse.Namespace, model: VideoLLM, batch: Batch) -> dict:
    """Milliseconds a token of both kinds, and the median of the rounds' ratios."""

    def loop(tokens: int) -> Callable[[], object]:
        return lambda: model.generate_ids(batch, 0, NEVER, GenerateOptions(max_new_tokens=tokens))

    counts = (1, args.tokens)
    kinds = {f"loop {n}": loop(n) for n in counts} | {f"bare {n}": lambda n=n: bare(model, batch, n) for n in counts}
    times = rounds(kinds, args.repeats, args.device)
    cost = {}
    for kind in ("loop", "bare"):
        one, all_ = (times[f"{kind} {n}"] for n in counts)
        cost[kind] = [1000 * (b - a) / (args.tokens - 1) for a, b in zip(one, all_, strict=True)]
    ratio = statistics.median(a / b for a, b in zip(cost["loop"], cost["bare"], strict=True))
    return {"ms": {kind: statistics.median(each) for kind, each in cost.items()}, "ratio": ratio}


def main() -> None:
    """Measure and print."""
    parser = command_line(
        __doc__, layers=(8, "of the language model; Phi-3-mini has 32"), width=(576, "Phi-3-mini has 3072"),
        vocabulary=(2004, "Phi-3-mini has 32064"), answers=(16, "the larger batch"), tokens=(48, "of an answer"),
        repeats=5, device="cuda" if torch.cuda.is_available() else "cpu", dtype="float32", file=True,
    )  # fmt: skip
    args = parser.parse_args()
    model, found = make_model(args, VideoLLM, "sdpa").eval(), {}
    for batch in (1, args.answers):
        args.batch = batch
        found[batch] = part = measure(args, model, make_batch(args, model))
        ms = part["ms"]
        print(f"batch {batch}: {ms['loop']:.2f} ms a token, bare {ms['bare']:.2f} ms, {part['ratio']:.2f}x")
    write_json(args.json, found)


if __name__ == "__main__":
    main()
