"""Train a model: ``videollm train --config FILE [key=value ...]``; see ``training/run.py``."""

import argparse
import sys
from collections.abc import Sequence

from videollm.common.command import Parser, ended, quieten
from videollm.common.processes import lost_peer, one_fate, this_rank
from videollm.training.settings import check_values, read_values

GO_ON = "add train.resume=auto: it goes on from the last checkpoint, if there is one"


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = Parser(prog="videollm train", description="Train a temporally grounded video model.")
    where = "YAML file; one of the clone's configs/ is found from any folder"
    parser.add_argument("--config", required=True, metavar="FILE", help=where)
    parser.add_argument("--local_rank", "--local-rank", help=argparse.SUPPRESS)  # the deepspeed launcher adds it
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="train.steps=100 data.videos=DIR ...")
    return parser.parse_intermixed_args(argv)


def ahead(argv: Sequence[str] | None) -> None:
    """For the launcher: what can be said of a command line before torch is loaded, all of it. Raises UserError."""
    checked(arguments(argv))


def checked(args: argparse.Namespace) -> dict:
    """The values of the config and the words over them. Raises UserError for what is wrong with them."""
    values = read_values(args.config, args.overrides)
    check_values(values, args.config)
    return values


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; a user's error is one line and exit status 2, a stop by SIGTERM status 75, by Ctrl-C 130."""
    args = arguments(argv)
    return ended(lambda: run(args), GO_ON)


def run(args: argparse.Namespace) -> int:
    """Check, before torch is loaded, and train; the exit status."""
    with one_fate():
        values = checked(args)
    quieten()
    import torch.distributed as dist

    from videollm.training.assemble import read_settings
    from videollm.training.preemption import Preempted
    from videollm.training.run import train

    status = 0
    try:
        said = f"final model: {train(read_settings(values))}"
    except Preempted as reason:
        status, said = reason.status, str(reason)
    except RuntimeError as error:
        if not lost_peer(error):
            raise
        print(f"rank {this_rank()}: ends because another process has ended", file=sys.stderr)
        return 1
    if this_rank() == 0:
        print(said, flush=True)
    if dist.is_initialized():
        dist.destroy_process_group()
    return status


if __name__ == "__main__":
    sys.exit(main())
