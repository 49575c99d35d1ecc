"""The folder of a run: its resolved config, and a line of ``starts.jsonl`` for each start with code, versions, command.

In: settings and what only the run knows. Out: a folder in which the logs end where the run goes on, seen by every
rank. Knows no model and no trainer.
"""

import json
import platform
import time
from pathlib import Path

import torch.distributed as dist
import yaml

from videollm.batches.kept_lengths import KeptLengths
from videollm.common.code import this_start
from videollm.common.config import ConfigError, to_dict
from videollm.common.processes import this_rank
from videollm.training.saving import rewind, tidy
from videollm.training.settings import Settings

PATIENCE_S = 10  # for a file to appear on another node


def open_run(settings: Settings, step: int, processes: int, rank: int) -> None:
    """Rank 0 makes the folder ready to go on from ``step``; all ranks then look whether they see the same one.

    Raises:
        ConfigError: it cannot be written, or nodes do not share it.
    """
    output = Path(settings.train.output)
    start = this_start(step=step, processes=processes) if rank == 0 else {}
    if rank == 0:
        try:
            output.mkdir(parents=True, exist_ok=True)
            tidy(output)
            rewind(output / "log.jsonl", step)
            for name in ("skipped.jsonl", "rollouts.jsonl"):  # written while a step runs, under the number before it
                rewind(output / name, step - 1)
            (output / "config.yaml").write_text(yaml.safe_dump(to_dict(settings), sort_keys=False), encoding="utf-8")
            with open(output / "starts.jsonl", "a", encoding="utf-8") as out:
                out.write(json.dumps(start) + "\n")
        except OSError as error:
            raise ConfigError(f"train.output: cannot write to {output} ({error}); choose another folder") from None
    if processes > 1 and dist.is_initialized():
        token = [start.get("id")]
        dist.broadcast_object_list(token)
        check_shared(output, token[0])


def kept_lengths(settings: Settings) -> KeptLengths:
    """Lengths of the training data, kept in the run's folder ``lengths``; rank 0 writes them."""
    return KeptLengths(Path(settings.train.output) / "lengths", writes=this_rank() == 0)


def check_shared(output: Path, token: str) -> None:
    """ConfigError where this rank does not see what rank 0 has written: every rank writes a part of a checkpoint."""
    starts = output / "starts.jsonl"
    for _ in range(PATIENCE_S):
        if starts.is_file() and token in starts.read_text(encoding="utf-8"):
            return
        time.sleep(1)
    raise ConfigError(
        f"train.output: {output.absolute()} on {platform.node()} is not the folder that rank 0 writes; give a path "
        "that all nodes share"
    )
