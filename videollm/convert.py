"""Released checkpoints -> ours, and ours -> the layout they came from: ``python -m videollm.convert SRC DST [--back]``.

SRC is a folder or a hub name; its weights may be sharded. Every missing, unexpected and re-shaped key is printed.
``--head`` names the head that the checkpoint is for: a plain model becomes a base on which training starts that head,
and the head's package may read published checkpoints of its own.
"""

import argparse
import sys
from collections.abc import Sequence

from videollm.checkpoint.conversion import Converter, convert, plugged
from videollm.checkpoint.released import LAYOUTS
from videollm.common.command import ended


def main(argv: Sequence[str] | None = None, only: Converter | None = None, prog: str = "videollm.convert") -> int:
    """The command, for all families or ``only`` one; a user's error is one line and exit status 2."""
    return ended(lambda: run(argv, only, prog))


def run(argv: Sequence[str] | None, only: Converter | None, prog: str) -> None:
    """Read the command line, whose options depend on the head, and convert."""
    first = argparse.ArgumentParser(add_help=False)
    first.add_argument("--head", default="text")
    head = first.parse_known_args(argv)[0].head
    converters = [only] if only else [*plugged(head), *(layout() for layout in LAYOUTS.values())]
    parser = argparse.ArgumentParser(prog=f"python -m {prog}", description="Released checkpoints to ours, and back.")
    parser.add_argument("source", metavar="SRC", help="folder, or hub name such as Qwen/Qwen3-VL-4B-Instruct")
    parser.add_argument("target", metavar="DST", help="folder to write, new or empty")
    parser.add_argument("--back", action="store_true", help="from one of our checkpoints to the released layout")
    if only is None:
        said = "of the checkpoint (default: the one in head.safetensors beside it, else text)"
        parser.add_argument("--head", metavar="NAME", help=said)
    for converter in converters:
        converter.options(parser)
    convert(parser.parse_args(argv), converters)


if __name__ == "__main__":
    sys.exit(main())
