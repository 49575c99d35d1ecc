"""Merge adapters: ``videollm checkpoint SRC DST``; with ``--adapters BASE`` store them and the head alone."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from videollm.checkpoint.load import load
from videollm.checkpoint.tensors import CheckpointError
from videollm.common.command import Parser, ended
from videollm.common.files import check_writable
from videollm.model.lora import merge_lora


def main(argv: Sequence[str] | None = None) -> int:
    """The command: adapters folded into whole weights, or taken out of them; returns the exit status."""
    parser = Parser(prog="videollm checkpoint", description="Merge or extract adapters.")
    parser.add_argument("source", metavar="SRC", help="checkpoint folder with adapters")
    parser.add_argument("target", metavar="DST", help="folder to write")
    parser.add_argument("--adapters", metavar="BASE", help="store only adapters and head, beside this checkpoint")
    args = parser.parse_args(argv)
    return ended(lambda: run(args))


def run(args: argparse.Namespace) -> None:
    """Load, fold or take out, write."""
    check_writable(Path(args.target, "config.json"), "DST")
    bundle = load(args.source)
    if not bundle.config.lora:
        raise CheckpointError(f"{args.source}: has no adapters, so there is nothing to do")
    if args.adapters:
        print(f"{len(bundle.save_adapters(args.target, args.adapters))} tensors that {args.adapters} has not")
    else:
        merge_lora(bundle.model)
        bundle.save(args.target)


if __name__ == "__main__":
    sys.exit(main())
