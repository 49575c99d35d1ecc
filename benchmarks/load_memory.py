"""What a rank's start costs the machine: the most memory of every process until the model is there to be trained.

A model of about 300 million random parameters is written in bf16, as released ones are, and read as training reads it:
by one process in float32, by one under DeepSpeed in bf16, by two under ZeRO-3 in either. Beside it, what the imports
need alone.

    python -m benchmarks.load_memory
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks.rounds import command_line
from quickstart.tower import build_word_tokenizer
from videollm.common.command import ended
from videollm.common.config import UserError, build, need
from videollm.training.assemble import assemble, spreading
from videollm.training.preflight import prepare_process
from videollm.training.run import training_arguments
from videollm.training.settings import Settings

PORT = 29611
SIZES = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "num_key_value_heads": 16}
WAYS = {  # processes, DeepSpeed file, precision
    "written, million parameters": (1, None, "fp32"),
    "no model": (1, None, "fp32"),
    "plain, fp32": (1, None, "fp32"),
    "ZeRO-2, bf16": (1, "configs/deepspeed/zero2.json", "bf16"),
    "ZeRO-3, bf16, two ranks": (2, "configs/deepspeed/zero3.json", "bf16"),
    "ZeRO-3, fp32, two ranks": (2, "configs/deepspeed/zero3.json", "fp32"),
}


def make(folder: Path, layers: int) -> float:
    """Write the checkpoint; millions of parameters."""
    build_word_tokenizer(["a b c"]).save_pretrained(folder / "tokenizer")
    language = {"model_type": "qwen2", "num_hidden_layers": layers, "vocab_size": 32_000, **SIZES}
    model = {
        "vision": {"type": "conv"}, "connector": {"type": "linear"}, "language": language, "head": {"name": "text"},
        "tokenizer": str(folder / "tokenizer"), "template": "bare",
    }  # fmt: skip
    preprocess = {"kind": "plain", "size": 64, "frame_difference": True}
    bundle = assemble(build(Settings, {"model": model, "data": {"preprocess": preprocess}}))
    bundle.model.to(torch.bfloat16)
    bundle.save(folder / "model")
    return sum(p.numel() for p in bundle.model.parameters()) / 1e6


def start(folder: Path, way: str, layers: int) -> None:
    """Be one rank: read the model, and tell the peak in MiB."""
    if way == next(iter(WAYS)):
        return print(json.dumps(make(folder, layers)))
    _, file, precision = WAYS[way]
    train = {"deepspeed": file, "precision": precision, "output": str(folder / "run"), "report_to": []}
    if way != "no model":
        model = {"checkpoint": str(folder / "model")}
        settings = build(Settings, {"model": model, "data": {}, "train": train})
        prepare_process(settings)
        held = assemble(settings, spreading(settings))
        training_arguments(settings)  # the ranks meet
        if torch.distributed.is_initialized():
            torch.distributed.barrier()
        del held
    print(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))


def peaks(folder: Path, way: str, layers: int) -> list[float]:
    """MiB of every rank, as ``start`` tells them; nothing is done in this process, whose peak is a child's first."""
    world = WAYS[way][0]
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(PORT), "WORLD_SIZE": str(world), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "benchmarks.load_memory", str(folder), "--way", way, "--layers", str(layers)]
    given = [os.environ | where | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(world)]
    ranks = [subprocess.Popen(command, stdout=subprocess.PIPE, env=env) for env in given]
    said = [rank.communicate()[0].split() for rank in ranks]
    need(not any(rank.returncode for rank in ranks), f"{way}: a rank has failed, see above", UserError)
    return [float(words[-1]) for words in said]


def main() -> None:
    """Measure and print."""
    parser = command_line(__doc__, layers=14)
    parser.add_argument("folder", type=Path, nargs="?", help=argparse.SUPPRESS)
    parser.add_argument("--way", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.way:
        return start(args.folder, args.way, args.layers)
    with tempfile.TemporaryDirectory() as scratch:
        for way in WAYS:
            print(
                f"{way}: {' and '.join(f'{peak:.0f}' for peak in peaks(Path(scratch), way, args.layers))}", flush=True
            )


if __name__ == "__main__":
    sys.exit(ended(main))
