"""What batches and stored features save with DisTime at InternVL2.5-1B's proportions: ratios, paired, in one process.

Claims: a training step (LoRA, embeddings, output and head learn) costs no more per sample in a batch of 8 than alone,
with the same losses; a step on stored tower features against one that runs the frozen tower; a batch of 16 answered
against one answer at a time, in tokens a second after the prompt, and with it. Weights are random; widths are the
real ones, depth and vocabulary are cut by ``--scale`` alike (8: 3 of 24 layers in the tower and in the language model).
bf16, as the recipe has it. All kinds take turns, and a ratio is the median over the rounds. On a CPU the clock is the
time of its cores.

    python -m benchmarks.distime_step --json distime_step.json
    python -m benchmarks.distime_step --device cuda --scale 1 --frames 16 --tokens 128
"""

import argparse
import statistics
import sys
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from benchmarks.rounds import command_line, ratio, rounds, write_json
from videollm.batches.batch import Batch
from videollm.batches.collate import Collator
from videollm.batches.dataset import Item
from videollm.batches.prompt import Prompt, Ref
from videollm.common.command import ended
from videollm.data.conversation import Role
from videollm.model.generate import GenerateOptions
from videollm.model.lora import add_lora, merge_lora
from videollm.model.videollm import VideoLLM, VideoLLMConfig
from videollm.training.optimizer import set_trainable
from videollm.training.settings import LoraSettings, PartSettings, TrainSettings

STAMP, FRAME_TIME, CONTEXT = 10, 11, 12  # token ids; words begin behind them
PER_FRAME, SIZE = 256, 448  # tokens and pixels of a frame
BEFORE, QUESTION, ANSWER = 40, 40, 60  # words; of the answer some more or less
LAYERS, VOCABULARY = 24, 151_676
TRAINED = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def make_model(args: argparse.Namespace) -> VideoLLM:
    """InternVL2.5-1B with a time head, cut by ``args.scale``; what trains is what the recipe trains."""
    layers, vocabulary = LAYERS // args.scale, VOCABULARY // args.scale
    vision = {
        "type": "internvl", "hidden_size": 1024, "num_hidden_layers": layers, "num_attention_heads": 16,
        "intermediate_size": 4096, "image_size": [SIZE, SIZE], "patch_size": [14, 14], "attention_bias": True,
    }  # fmt: skip
    text = {
        "model_type": "qwen2", "vocab_size": vocabulary, "hidden_size": 896, "num_hidden_layers": layers,
        "num_attention_heads": 14, "num_key_value_heads": 2, "intermediate_size": 4864, "tie_word_embeddings": False,
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    config = VideoLLMConfig(
        text_config=text, vision=vision, connector={"type": "mlp"}, head={"name": "distime"},
        token_ids={"<TIME_STAMP>": STAMP, "<FRAME_TIME_REF>": FRAME_TIME}, attn_implementation="sdpa",
    )  # fmt: skip
    torch.manual_seed(0)
    model = VideoLLM(config)
    model.head.reset_parameters()
    lora = LoraSettings(dropout=0.0, targets=list(TRAINED))
    add_lora(model.language_model, vars(lora))
    learns = {"connector": PartSettings(train=False)}
    learns |= {part: PartSettings(train=True) for part in ("embeddings", "lm_head")}
    set_trainable(model, TrainSettings(lora=lora, parts=learns))
    return model.to(args.device, getattr(torch, args.dtype)).train()


def make_item(args: argparse.Namespace, seed: int, answered: bool = True, frames: int | None = None) -> Item:
    """One video of 30 s with a question, and (``answered``) an answer with two stamps; lengths differ by seed."""
    rng, prompt, count = np.random.default_rng(seed), Prompt(), args.frames if frames is None else frames

    def add(ids, supervised: bool = False) -> None:
        prompt.ids += list(ids)
        prompt.supervised += [supervised] * len(ids)

    def words(length: int) -> list[int]:
        return rng.integers(20, VOCABULARY // args.scale, length).tolist()

    add(words(BEFORE))
    for frame in range(count):
        prompt.refs.append(Ref(len(prompt), Role.FRAME, frame=frame))
        add([FRAME_TIME, 13, 14])
        prompt.visual += range(len(prompt), len(prompt) + PER_FRAME)
        add([CONTEXT] * PER_FRAME + [15])
    prompt.prefix_length = len(prompt)
    add(words(QUESTION))
    if answered:
        answer = words(ANSWER + int(rng.integers(-10, 11)))
        for event, place in enumerate((5, 25)):
            answer[place] = STAMP
            prompt.refs.append(Ref(len(prompt) + place, Role.ANSWER, span=event))
        add(answer, supervised=True)
    prompt.block = [-1] * len(prompt)
    times = np.linspace(0, 29, count)
    features = torch.randn(count, 1024, 1024, generator=torch.Generator().manual_seed(seed))
    spans = np.asarray([[1.0, 5.0], [7.5, 20.0]])
    return Item([prompt], [spans], features=features, times_s=times, duration_s=30.0, ids=[str(seed)])


def make_batch(args: argparse.Namespace, items: list[Item]) -> Batch:
    """The collator's batch, on the device."""
    batch = Collator(pad_id=0, split_prefix=False, bidirectional=False, average="samples")(items)
    return batch.to(args.device)


def train_step(model: VideoLLM, batches: list[Batch]) -> list[float]:
    """One optimisation step's gradients over ``batches``; the loss of each."""
    model.zero_grad(set_to_none=True)
    losses = []
    for batch in batches:
        loss = model(batch).loss
        (loss / len(batches)).backward()
        losses.append(loss.item())
    return losses


def batches(args: argparse.Namespace, model: VideoLLM) -> dict:
    """``args.batch`` samples at once against one by one, in one optimisation step each; the losses are the same."""
    items = [make_item(args, seed) for seed in range(args.batch)]
    alone, together = [make_batch(args, [item]) for item in items], [make_batch(args, items)]
    losses = [statistics.mean(train_step(model, kind)) for kind in (alone, together)]
    kinds = {"alone": lambda: train_step(model, alone), "together": lambda: train_step(model, together)}
    times = rounds(kinds, args.repeats, args.device)
    return {"losses": losses, "seconds": times, "speedup": ratio(times, "alone", "together")["median"]}


def stored(args: argparse.Namespace, model: VideoLLM) -> dict:
    """A step that runs the frozen tower on its frames against one that has its features; the losses are the same."""
    item = make_item(args, 0)
    pixels = torch.randn(args.frames, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        features = model.vision_tower(pixels.to(args.device, model.dtype)).cpu()
    found = make_batch(args, [item])
    kept = replace(found, features=features.to(args.device))
    run = replace(found, features=None, pixel_values=pixels.to(args.device))
    losses = [train_step(model, [batch])[0] for batch in (run, kept)]
    kinds = {"tower": lambda: train_step(model, [run]), "stored": lambda: train_step(model, [kept])}
    times = rounds(kinds, args.repeats, args.device)
    return {"losses": losses, "seconds": times, "speedup": ratio(times, "tower", "stored")["median"]}


def answers(args: argparse.Namespace, model: VideoLLM) -> dict:
    """``args.answers`` questions at once against one, ``args.tokens`` tokens each; tokens a second and their ratio."""
    items = [make_item(args, seed, answered=False, frames=1) for seed in range(args.answers)]
    one, many = (make_batch(args, some) for some in (items[:1], items))
    merge_lora(model)  # as a finished run is asked
    model.eval()

    def generate(batch: Batch, tokens: int) -> Callable[[], object]:
        options = GenerateOptions(max_new_tokens=tokens)
        return lambda: model.generate_ids(batch, 0, 2, options)  # token 2 is as unlikely as any

    with torch.no_grad():
        kinds = {f"{name}, {n}": generate(b, n) for name, b in (("1", one), ("all", many)) for n in (1, args.tokens)}
        times = rounds(kinds, args.repeats, args.device)
    whole = {name: times[f"{name}, {args.tokens}"] for name in ("1", "all")}
    after = {name: [a - b for a, b in zip(whole[name], times[f"{name}, 1"], strict=True)] for name in whole}
    size = {"1": 1, "all": args.answers}
    speed = {name: size[name] * (args.tokens - 1) / statistics.median(after[name]) for name in whole}
    return {
        "prompt": one.input_ids.shape[1], "tokens a second after the prompt": speed, "seconds": times,
        "speedup after the prompt": ratio(after, "1", "all")["median"] * args.answers,
        "speedup with the prompt": ratio(whole, "1", "all")["median"] * args.answers,
    }  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = command_line(
        __doc__, frames=2, batch=(8, "samples of a training step"), answers=(16, "questions answered at once"),
        tokens=(48, "of an answer"), repeats=3, dtype="bfloat16", file=True,
    )  # fmt: skip
    parser.add_argument("--scale", type=int, default=8, choices=(1, 2, 3, 4, 6, 8, 12), help="cut depth and vocabulary")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    args = parser.parse_args()
    model = make_model(args)
    found = {"batches": batches(args, model), "stored": stored(args, model), "answers": answers(args, model)}
    for name in ("batches", "stored"):
        one, other = found[name]["losses"]
        assert abs(one - other) < (1e-3 if args.dtype == "float32" else 0.05) * abs(one), (name, one, other)
    told = found["answers"]
    behind, whole = told["speedup after the prompt"], told["speedup with the prompt"]
    print(f"{LAYERS // args.scale} of {LAYERS} layers, {args.frames} frames, {args.device}, {args.dtype}")
    print(f"batch {args.batch} against one by one: {found['batches']['speedup']:.2f}x a sample, same losses")
    print(f"stored features against the tower: {found['stored']['speedup']:.2f}x a step, same losses")
    print(f"{args.answers} answers at once against one, in tokens a second (target 5x): {behind:.1f}x after the prompt")
    print(f"of {told['prompt']} tokens, {whole:.1f}x with it")
    write_json(args.json, found | {"arguments": vars(args)})


if __name__ == "__main__":
    sys.exit(ended(main))
