"""The training entry point: ``python -m videollm.train --config FILE [key=value ...]``; see ``training/run.py``."""

import argparse
import sys
from collections.abc import Sequence

import torch.distributed as dist

from videollm.common.command import USERS, tell
from videollm.common.config import override, read_yaml
from videollm.common.processes import lost_peer, this_rank
from videollm.training.assemble import read_settings
from videollm.training.preemption import EXIT_STATUS, Preempted
from videollm.training.run import train


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; a user's error is one line and exit status 2, a stop by SIGTERM status 75."""
    rank = this_rank()
    parser = argparse.ArgumentParser(
        prog="videollm.train", description="Train a temporally grounded video-language model."
    )
    parser.add_argument("--config", required=True, help="YAML file, see configs/")
    parser.add_argument("--local_rank", "--local-rank", help=argparse.SUPPRESS)  # the deepspeed launcher adds it
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="train.steps=100 data.videos=DIR ...")
    args = parser.parse_intermixed_args(argv)
    try:
        final = train(read_settings(override(read_yaml(args.config), args.overrides)))
    except USERS as error:
        return tell(error)
    except Preempted as reason:
        status, message = EXIT_STATUS, str(reason)
    except RuntimeError as error:
        if not lost_peer(error):
            raise
        print(f"rank {rank}: ends because another process has ended", file=sys.stderr)
        return 1
    else:
        status, message = 0, f"final model: {final}"
    if rank == 0:
        print(message, flush=True)
    if dist.is_initialized():
        dist.destroy_process_group()
    return status


if __name__ == "__main__":
    sys.exit(main())
