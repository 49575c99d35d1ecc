"""What reading ahead, batches and asking a video's questions together bring to inference, each in one process.

Claims: (1) with one worker that reads ahead, a run over clips reaches at least 0.85 of the best possible speed-up,
(decode + compute) / max(decode, compute), both measured in the same runs without the worker: with all questions about
each clip and answers of 48 tokens, and with one question and a length at which the two take about as long. (2) A batch
of 8 generates at least 3 times the tokens per second of batches of 1. (3) With 4 questions a video the tower costs a
question at most 0.3 of what it costs asked one by one.

    python -m benchmarks.inference --clips 150 --repeats 3
"""

import json
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.rounds import command_line
from benchmarks.tiny_checkpoint import QUESTIONS_A_CLIP, make
from videollm.checkpoint import Bundle, load
from videollm.common.command import ended
from videollm.data import Record, load_records
from videollm.inference.answer import Speed, answer_records
from videollm.model.generate import GenerateOptions

READ_AHEAD, BATCHING, TOGETHER = 0.85, 3.0, 0.3  # what is claimed
TOKENS = 48  # of an answer


def run(bundle: Bundle, records: list[Record], videos: Path, tokens: int, batch: int = 8, workers: int = 0) -> Speed:
    """Answer the records with a fresh reader; what it cost."""
    speed = Speed()
    options, reader = GenerateOptions(max_new_tokens=tokens), bundle.reader(videos, timeout_s=300.0)
    begin = time.perf_counter()
    for _ in answer_records(bundle, records, reader, options, batch_size=batch, workers=workers, speed=speed):
        pass
    speed.seconds = time.perf_counter() - begin
    return speed


def balanced(bundle: Bundle, records: list[Record], videos: Path) -> int:
    """The length of answers at which decoding and computing take about as long, with one question a clip."""
    few = run(bundle, records[:40], videos, 2)
    many = run(bundle, records[:40], videos, 10)
    a_token = (many.seconds - many.wait_s - few.seconds + few.wait_s) / 8
    return max(1, round(2 + (few.wait_s - (few.seconds - few.wait_s)) / a_token))


def reading_ahead(bundle: Bundle, records: list[Record], videos: Path, tokens: int, repeats: int) -> dict:
    """Without and with a worker, in turns."""
    found = []
    for _ in range(repeats):
        plain, ahead = (run(bundle, records, videos, tokens, workers=workers) for workers in (0, 1))
        decode, compute = plain.wait_s, plain.seconds - plain.wait_s
        bound = (decode + compute) / max(decode, compute)
        found.append((plain.seconds / ahead.seconds / bound, bound, decode, compute, ahead.seconds))
    reached, bound, decode, compute, ahead_s = (statistics.median(column) for column in zip(*found, strict=True))
    return {
        "questions": len(records), "tokens": tokens, "decode_s": decode, "compute_s": compute, "with_worker_s": ahead_s,
        "bound": bound, "share_of_bound": reached, "held": reached >= READ_AHEAD,
    }  # fmt: skip


def batching(bundle: Bundle, records: list[Record], videos: Path, repeats: int) -> dict:
    """Tokens a second of the model, reading left out, in batches of 8 and of 1."""
    rates: dict[int, list[float]] = {8: [], 1: []}
    for _ in range(repeats):
        for size, found in rates.items():
            speed = run(bundle, records[:32], videos, TOKENS, batch=size)
            found.append(speed.tokens / (speed.seconds - speed.wait_s))
    eight, one = (statistics.median(rates[size]) for size in (8, 1))
    return {"tokens_per_s_of_8": eight, "tokens_per_s_of_1": one, "ratio": eight / one, "held": eight / one >= BATCHING}


def together(bundle: Bundle, records: list[Record], videos: Path, repeats: int) -> dict:
    """Seconds of the tower for a question, with 4 about each clip together and one by one."""
    asked = [replace(r, id=f"{r.id}/{k}") for r in records[:12] for k in range(4)]
    tower, spent = bundle.model.vision_tower, [0.0]
    forward = tower.forward

    def timed(pixels):
        begin = time.perf_counter()
        features = forward(pixels)
        spent[0] += time.perf_counter() - begin
        return features

    tower.forward, ratios = timed, []
    for _ in range(repeats):
        spent[0] = 0.0
        run(bundle, asked, videos, 2)
        all_at_once, spent[0] = spent[0], 0.0
        for record in asked:
            run(bundle, [record], videos, 2)
        ratios.append(all_at_once / spent[0])
    tower.forward = forward
    ratio = statistics.median(ratios)
    return {"tower_share_of_one_by_one": ratio, "held": ratio <= TOGETHER}


def main() -> int:
    """Measure and print; exit status 0 if all claims hold."""
    args = command_line(__doc__, clips=150, repeats=3).parse_args()
    torch.set_num_threads(1)  # the worker needs a core of its own
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        make(folder, args.clips * QUESTIONS_A_CLIP)
        bundle, videos = load(folder / "model"), folder / "clips/videos"
        by_clip = {record.video: record for record in load_records(folder / "questions.jsonl")}
        records, every = list(by_clip.values()), load_records(folder / "questions.jsonl")
        run(bundle, records[:8], videos, 4)  # warm
        half = balanced(bundle, records, videos)
        found = {
            "reading_ahead": reading_ahead(bundle, every, videos, TOKENS, args.repeats),
            "reading_ahead, balanced": reading_ahead(bundle, records, videos, half, args.repeats),
            "batching": batching(bundle, records, videos, args.repeats),
            "together": together(bundle, records, videos, args.repeats),
        }
    rounded = {
        name: {key: round(value, 3) if isinstance(value, float) else value for key, value in part.items()}
        for name, part in found.items()
    }
    print(json.dumps({"clips": len(records)} | rounded, indent=1))
    return 0 if all(part["held"] for part in found.values()) else 1


if __name__ == "__main__":
    sys.exit(ended(main))
