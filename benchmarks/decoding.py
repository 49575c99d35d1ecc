"""What a generated token costs beside the bare forward pass of the language model over the same cache: ratios, paired.

A Phi-3 with the evidence head, 128 frames and a question, frame tokens given, so no tower and no connector. "loop" is
all of a step: masks, choice of the token, stop test, on a CPU the head only where a token is a span's (here none is);
"head" has it in every step, as on a GPU; "bare" feeds the same embedding to the same place of the same cache, behind
every step. Medians and the least of all steps.

    python -m benchmarks.decoding --layers 8 --width 576 --answers 16
"""

import argparse
import statistics

import torch

from benchmarks.d2vlm_step import FRAMES, QUESTION, framed, make_items, make_model
from benchmarks.rounds import command_line, seconds, write_json
from videollm.batches.batch import Batch
from videollm.batches.collate import Collator
from videollm.model.decoding import LOOK
from videollm.model.generate import GenerateOptions, Rows
from videollm.model.videollm import VideoLLM

NEVER = -1  # a stop token that no answer has
KINDS = {"loop": 1, "head": LOOK}  # kind of a step -> steps between two looks of the host


def make_batch(args: argparse.Namespace, model: VideoLLM) -> Batch:
    """``args.batch`` questions without their answers."""
    items = make_items(args, 1)
    for item in items:
        (whole,) = item.prompts
        item.prompts = [framed(whole.ids[whole.prefix_length :][:QUESTION])]
        item.spans_s = [item.spans_s[0][:0]]
    batch = Collator(pad_id=0, split_prefix=False, bidirectional=True, average="samples")(items)
    batch.features = torch.randn(len(items) * FRAMES, 1, args.width, generator=torch.Generator().manual_seed(1))
    return batch.to(args.device)


@torch.no_grad()
def measure(args: argparse.Namespace, model: VideoLLM, batch: Batch) -> dict:
    """Milliseconds of ``args.tokens`` steps of each kind, each followed by the bare pass over the same place."""
    spent: dict[str, list[float]] = {f"{kind}{of}": [] for kind in KINDS for of in ("", " bare")}
    with Rows(model, len(batch), GenerateOptions(max_new_tokens=2 * args.tokens + 3), NEVER, 0, model.device) as rows:
        rows.enter(batch, range(len(batch)))
        rows.decide()

        def step() -> None:
            rows.feed()
            rows.decide()

        def bare() -> None:
            out = model.decoder(
                inputs_embeds=fed, attention_mask=rows.cache.masks(model.windows, model.dtype), use_cache=True,
                position_ids=rows.prompt_end + rows.state.steps[:, None] - 1, past_key_values=rows.cache,
            )  # fmt: skip
            model.get_output_embeddings()(out.last_hidden_state[:, -1])

        for k in range(args.tokens + 1):
            for kind, look in KINDS.items():
                rows.look, fed = look, rows.fed[:, None]
                for name, run in ((kind, step), (f"{kind} bare", bare)):
                    spent[name] += [1000 * seconds(run, args.device)] * (k > 0)  # the first warms up
    ms = {name: [statistics.median(each), min(each)] for name, each in spent.items()}
    above = {kind: [a / b for a, b in zip(ms[kind], ms[f"{kind} bare"], strict=True)] for kind in KINDS}
    return {"ms": ms, "ratios": above}


def main() -> None:
    """Measure and print."""
    parser = command_line(
        __doc__, layers=(8, "of the language model; Phi-3-mini has 32"), width=(576, "Phi-3-mini has 3072"),
        vocabulary=(2004, "Phi-3-mini has 32064"), answers=(16, "the larger batch"), tokens=(60, "of each kind"),
        device="cuda" if torch.cuda.is_available() else "cpu", dtype="float32", file=True,
    )  # fmt: skip
    args = parser.parse_args()
    model, found = make_model(args, VideoLLM, "sdpa").eval(), {}
    for batch in (1, args.answers):
        args.batch = batch
        found[batch] = part = measure(args, model, make_batch(args, model))
        for kind, (median, least) in part["ratios"].items():
            own, bare = ([f"{value:.2f}" for value in part["ms"][name]] for name in (kind, f"{kind} bare"))
            told = f"median {own[0]} ms, bare {bare[0]} ms, {median:.3f}x; least {own[1]}, {bare[1]} ms, {least:.3f}x"
            print(f"batch {batch}, {kind}: {told}", flush=True)
    write_json(args.json, found)


if __name__ == "__main__":
    main()
