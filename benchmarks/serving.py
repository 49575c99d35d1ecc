"""What rows that are never left empty save, and what further questions and answers to one prompt cost: paired ratios.

Claims, each in one process in turns: (1) answers of 8 to 200 tokens come at 1.6 times the tokens a second of batches
that wait for their longest answer; with it how long a question waits for its first token (of a D2VLM answer, a span)
and for its whole answer, if all are asked at once; and what is possible: the same prompts, and no more steps than each
row has tokens, none of them empty. (2) A further question on a video of 16 x 256 visual tokens and 60 of text costs at
most 0.15 of the first, and (3) of what several answers to one prompt can save at most, 0.9 is saved. A Phi-3 with the
evidence head and 128 frames for (1) and (3); DisTime at InternVL2.5-1B's width, cut in depth by ``--scale``, for (2).
Weights are random and features given, so no tower runs. On a CPU the clock is the time of its cores.

    python -m benchmarks.serving --layers 8 --width 256 --rows 8
"""

import argparse
import heapq
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from benchmarks import d2vlm_step, distime_step
from benchmarks.rounds import Times as Rounds
from benchmarks.rounds import command_line, rounds, write_json
from videollm.batches.dataset import Item
from videollm.checkpoint import Bundle
from videollm.common.command import ended
from videollm.data import parse_record
from videollm.heads import Answer
from videollm.inference import plan
from videollm.inference.rows import Question, Seating
from videollm.model.generate import GenerateOptions
from videollm.model.lora import merge_lora
from videollm.model.videollm import VideoLLM
from videollm.training.memory import word_bundle

SHORT, LONG = 8, 200  # tokens of an answer
FURTHER, FRAMES, TEXT = 4, 16, 60  # questions behind the first on a video, its frames, the tokens of each question
STEADY, MOST_FURTHER, LEAST_SHARE = 1.6, 0.15, 0.9  # what is claimed
Times = dict[str, float]  # seconds by question


@dataclass
class Endless(Bundle):
    """A bundle whose answers end at their length only."""

    stop_id = -1


def endless(model: VideoLLM) -> Endless:
    """The model, its answers not read: tokens of random weights mean nothing."""
    model.read_answer = lambda ids, *_: (Answer("", "", tokens=len(ids)), "length")
    found = word_bundle(model)
    return Endless(found.model, found.tokenizer)


def question(item: Item, name: str, tokens: int) -> Question:
    """One that is answered with so many tokens."""
    record = parse_record({"id": name, "conversations": [{"from": "human", "value": "?"}]}, 1, "benchmark")
    return Question(record, replace(item, ids=[name]), GenerateOptions(max_new_tokens=tokens))


# ---- mixed lengths ---------------------------------------------------------------------------------------------------


def small_model(args: argparse.Namespace) -> Endless:
    """A Phi-3 with the evidence head whose frame tokens are given."""
    model = d2vlm_step.make_model(args, VideoLLM, "sdpa").eval()
    model.frame_tokens = lambda batch: batch.features  # given: neither tower nor connector runs
    return endless(model)


def asked(args: argparse.Namespace, count: int, answer: list[int]) -> list[Question]:
    """``count`` questions of 10 to 60 tokens, each about a video of its own."""
    rng, found = np.random.default_rng(0), []
    for k in range(count):
        words = rng.integers(20, args.vocabulary, rng.integers(10, 61)).tolist()
        prompt = d2vlm_step.framed(words)
        generator = torch.Generator().manual_seed(k)
        features = torch.randn(d2vlm_step.FRAMES, 1, args.width, generator=generator).to(args.device)
        item = Item([prompt], [np.zeros((0, 2))], features=features, times_s=np.arange(d2vlm_step.FRAMES) + 0.5,
                    duration_s=float(d2vlm_step.FRAMES))  # fmt: skip
        found.append(question(item, str(k), answer[k]))
    return found


class Clocked(Seating):
    """Notes when the first token of a question can be seen, and when its answer is whole."""

    def __init__(self, clock: Callable[[], float], *given):
        super().__init__(*given)
        self.clock, self.first, self.whole = clock, {}, {}

    def leave(self, rows, so_far):
        now = self.clock()
        for inside in self.inside.values():
            self.first.setdefault(inside.record.id, now)
        found = super().leave(rows, so_far)
        self.whole |= {left.record.id: now for left, *_ in found}
        return found


def steady(bundle: Bundle, questions: list[Question], rows: int, clock: Callable[[], float]) -> tuple[Times, Times]:
    """Rows that the next question enters as one leaves; when each question's first token and its last were there."""
    start, options = clock(), GenerateOptions(max_new_tokens=LONG)
    seating = Clocked(lambda: clock() - start, bundle, options, rows)
    tokens = [answer.tokens for _, answer, _ in seating.run(iter(questions))]
    assert sum(tokens) == sum(asked.options.max_new_tokens for asked in questions)
    return seating.first, seating.whole


@torch.no_grad()
def batched(bundle: Bundle, questions: list[Question], rows: int, clock: Callable[[], float]) -> tuple[Times, Times]:
    """Batches that wait for their longest answer."""
    start, first, whole = clock(), {}, {}
    collate = bundle.collator(asked=True)
    for k in range(0, len(questions), rows):
        some = questions[k : k + rows]
        batch = collate([asked.item for asked in some]).to(bundle.model.device)
        most = GenerateOptions(max_new_tokens=max(asked.options.max_new_tokens for asked in some))
        for _ in bundle.model.stream(batch, 0, -1, most):
            first |= dict.fromkeys((asked.record.id for asked in some if asked.record.id not in first), clock() - start)
        whole |= dict.fromkeys((asked.record.id for asked in some), clock() - start)
    return first, whole


def lengths(args: argparse.Namespace, kind: str) -> list[int]:
    """Of the answers: every length as often as any other, or short ones more often (evenly over the logarithm)."""
    rng, count = np.random.default_rng(1), plan.LONG * args.rows
    if kind == "even":
        return rng.integers(SHORT, LONG + 1, count).tolist()
    return np.exp(rng.uniform(np.log(SHORT), np.log(LONG), count)).round().astype(int).tolist()


def mixed(args: argparse.Namespace, bundle: Bundle) -> dict:
    """A unit of questions both ways, by how the lengths of answers are spread."""
    found, clock = {}, time.process_time if args.device == "cpu" else synchronised
    for kind in ("even", "short"):
        answer = lengths(args, kind)
        questions, waits = asked(args, len(answer), answer), {"steady": [], "batched": []}

        def run(way: Callable, questions=questions, waits=waits) -> None:
            waits[way.__name__].append(way(bundle, questions, args.rows, clock))

        kinds = {way.__name__: partial(run, way) for way in (steady, batched)}
        once = [question(one.item, one.record.id, 1) for one in questions]
        times = rounds(kinds | {"prompts": partial(batched, bundle, once, args.rows, clock)}, args.repeats, args.device)
        speed = {name: sum(answer) / statistics.median(times[name]) for name in kinds}
        ratio = statistics.median(b / a for a, b in zip(times["steady"], times["batched"], strict=True))
        told = {name: quantiles(kept[1:]) for name, kept in waits.items()}
        found[kind] = {"mean tokens": statistics.mean(answer), "tokens/s": speed, "ratio": ratio, "waits": told}
        found[kind] |= {"steps": steps_of(answer, args.rows), "most": most(answer, args.rows, times)}
    return found


def steps_of(answer: list[int], rows: int) -> dict[str, float]:
    """Steps of batches that wait, of rows that the next question enters, and of rows that are never empty."""
    ends = [0] * rows
    for tokens in answer:
        heapq.heapreplace(ends, ends[0] + tokens)
    waiting = sum(max(answer[k : k + rows]) for k in range(0, len(answer), rows))
    return {"batched": waiting, "steady": max(ends), "least": sum(answer) / rows}


def most(answer: list[int], rows: int, times: Rounds) -> float:
    """The ratio at which rows are never empty and a step costs what it costs in a batch; the prompts cost the same."""
    batched, prompts = (statistics.median(times[kind]) for kind in ("batched", "prompts"))
    steps = steps_of(answer, rows)
    return batched / (prompts + (batched - prompts) * steps["least"] / steps["batched"])


def synchronised() -> float:
    """The time when the device has done what it was given."""
    torch.cuda.synchronize()
    return time.perf_counter()


def quantiles(runs: list[tuple[Times, Times]]) -> dict[str, list[float]]:
    """Seconds to the first token and to the whole answer, p50 and p95, over all questions and rounds."""
    return {
        name: np.percentile([value for run in runs for value in run[k].values()], [50, 95]).round(2).tolist()
        for k, name in enumerate(("first", "whole"))
    }


# ---- several answers, further questions ------------------------------------------------------------------------------


def several(args: argparse.Namespace, bundle: Bundle) -> dict:
    """``args.answers`` answers to one prompt that runs once, and to as many prompts: the share of what can be saved."""
    (one,) = asked(args, 1, [SHORT])
    alike = [replace(one.item, features=one.item.features.clone()) for _ in range(args.answers)]
    batches = [bundle.collator(asked=True)(alike[:number]).to(args.device) for number in (1, args.answers)]

    def answer(batch, tokens: int, answers: int = 1) -> Callable[[], object]:
        return lambda: bundle.model.generate_ids(batch, 0, -1, GenerateOptions(max_new_tokens=tokens), answers)

    kinds = {"prompt": answer(batches[0], 1), "prompts": answer(batches[1], 1), "apart": answer(batches[1], SHORT)}
    times = rounds(kinds | {"shared": answer(batches[0], SHORT, args.answers)}, 3 * args.repeats, args.device)
    ms = {name: 1000 * statistics.median(spent) for name, spent in times.items()}
    return {"ms": ms, "share": (ms["apart"] - ms["shared"]) / (ms["prompts"] - ms["prompt"])}


def further(args: argparse.Namespace) -> dict:
    """Questions behind the first on a video of 16 x 256 visual tokens: the cost of one, in costs of the first."""
    model = distime_step.make_model(args)
    merge_lora(model)  # as a finished run is asked
    item = distime_step.make_item(args, 0, answered=False, frames=FRAMES)
    (prompt,), rng = item.prompts, np.random.default_rng(2)
    item.features, found = item.features.to(args.device, model.dtype), []
    for k in range(1 + FURTHER):
        words = rng.integers(20, distime_step.VOCABULARY // args.scale, TEXT).tolist()
        ids = prompt.ids[: prompt.prefix_length] + words
        own = replace(prompt, ids=ids, supervised=[False] * len(ids), block=[-1] * len(ids))
        found.append(question(replace(item, prompts=[own]), str(k), 1))
    bundle, once = endless(model.eval()), GenerateOptions(max_new_tokens=1)

    def run(some: list[Question], rows: int) -> Callable[[], object]:
        return lambda: list(Seating(bundle, once, rows).run(iter(some)))

    kinds = {"first": run(found[:1], 1), "one row": run(found, 1), "rows": run(found, 1 + FURTHER)}
    times = rounds(kinds, args.repeats, args.device)
    costs = {
        name: statistics.median((b - a) / FURTHER / a for a, b in zip(times["first"], times[name], strict=True))
        for name in ("one row", "rows")
    }
    return {"first_s": statistics.median(times["first"]), "further": costs, "visual tokens": len(prompt.visual)}


def main() -> int:
    """Measure and print; exit status 0 if all claims hold."""
    parser = command_line(
        __doc__, layers=(8, "of the Phi-3"), width=(256, "Phi-3-mini has 3072"), vocabulary=(2004, "it has 32064"),
        rows=(8, "questions answered at a time"), answers=(8, "to one prompt"), repeats=3, dtype="float32", file=True,
        scale=(8, "cut the depth of DisTime and its vocabulary"),
        device="cuda" if torch.cuda.is_available() else "cpu",
    )  # fmt: skip
    args = parser.parse_args()
    args.batch = 1
    bundle = small_model(args)
    found = {"mixed": mixed(args, bundle)}
    for kind, told in found["mixed"].items():
        print(f"answers of {SHORT} to {LONG} tokens, {kind}, {told['mean tokens']:.0f} on average, {args.rows} rows:")
        for way, speed in told["tokens/s"].items():
            first, whole = told["waits"][way]["first"], told["waits"][way]["whole"]
            print(f"  {way:8} {speed:6.0f} tokens/s; p50, p95 of the first token {first} s, of the answer {whole} s")
        print(
            f"  {told['ratio']:.2f}x (target {STEADY}, possible {told['most']:.2f}x)",
            "; ".join(f"{way}: {steps:.0f} steps" for way, steps in told["steps"].items()),
            flush=True,
        )
    found["several"] = several(args, bundle)
    share = found["several"]["share"]
    print(f"{args.answers} answers to a prompt: {share:.2f} of what can be saved is (target {LEAST_SHARE})", flush=True)
    found["further"] = further(args)
    costs = found["further"]["further"]
    said = ", ".join(f"{cost:.3f} in {name}" for name, cost in costs.items())
    print(f"a further question on {found['further']['visual tokens']} visual tokens: {said} (target {MOST_FURTHER})")
    write_json(args.json, found | {"arguments": vars(args)})
    held = min(told["ratio"] for told in found["mixed"].values()) >= STEADY
    return 0 if held and share >= LEAST_SHARE and max(costs.values()) <= MOST_FURTHER else 1


if __name__ == "__main__":
    sys.exit(ended(main))
