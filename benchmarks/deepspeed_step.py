"""What DeepSpeed itself costs a step: the same tiny training with and without it, run in turns.

Needs a folder that the quickstart has made (clips, tower, tokenizer, features). Each run is a process of its own, since
DeepSpeed's engine keeps global state; runs alternate, and the ratio is that of the medians.

    python -m benchmarks.deepspeed_step --quickstart runs/quickstart --steps 100 --repeats 3
"""

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

from benchmarks.rounds import command_line, run_alone
from quickstart.stages import overrides
from videollm.common.command import ended


def seconds_a_step(folder: Path, head: str, deepspeed: str, steps: int) -> float:
    """Wall time of a step, start-up left out, as the Trainer reports it."""
    with tempfile.TemporaryDirectory() as output:
        given = overrides(argparse.Namespace(output=folder, seed=42, steps=steps), head)
        command = [sys.executable, "-m", "videollm.train", "--config", f"configs/tiny/{head}.yaml", *given]
        command += [f"train.output={output}/run", f"train.deepspeed={deepspeed}"]
        run_alone(command)
        lines = [json.loads(x) for x in Path(output, "run/log.jsonl").read_text(encoding="utf-8").splitlines()]
        return next(line["train_runtime"] for line in lines if "train_runtime" in line) / steps


def main() -> None:
    """Measure and print."""
    args = command_line(__doc__, quickstart=Path("runs/quickstart"), head="d2vlm", steps=100, repeats=3).parse_args()
    kinds = {"without": "null", "ZeRO-2": "configs/deepspeed/zero2.json"}
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(args.repeats):
        for kind, config in kinds.items():
            times[kind].append(seconds_a_step(args.quickstart, args.head, config, args.steps))
            print(f"{kind:8} {1000 * times[kind][-1]:.1f} ms a step", flush=True)
    plain, zero = (statistics.median(times[kind]) for kind in kinds)
    print(f"DeepSpeed adds {1000 * (zero - plain):.1f} ms to {1000 * plain:.1f} ms a step ({zero / plain:.2f}x)")


if __name__ == "__main__":
    sys.exit(ended(main))
