"""Convert released checkpoints to ours, and ours to the layout they came from: ``videollm convert SRC DST [--back]``.

SRC is a folder or a hub name; its weights may be sharded. Every missing, unexpected and re-shaped key is printed.
``--head`` names the head that the checkpoint is for: a plain model becomes a base on which training starts that head,
and the head's package may read published checkpoints of its own.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from videollm.common.command import Parser, ended
from videollm.common.config import need, together, unknown
from videollm.common.declared import declared, file_of
from videollm.common.files import check_writable, maybe_on_hub

if TYPE_CHECKING:
    from videollm.checkpoint.conversion import Converter

TEXT = "text"  # the head that is in the core


def main(argv: Sequence[str] | None = None, only: "Converter | None" = None, prog: str = "videollm convert") -> int:
    """The command, for all families or ``only`` one; a user's error is one line and exit status 2."""
    return ended(lambda: run(argv, only, prog))


def run(argv: Sequence[str] | None, only: "Converter | None", prog: str) -> None:
    """Read the command line, whose options depend on the head, and convert."""
    first = argparse.ArgumentParser(prog=prog, add_help=False)
    first.add_argument("words", nargs="*")
    first.add_argument("--head", default=TEXT)
    early = first.parse_known_args(argv)[0]
    if only is None and early.head == TEXT:  # brings no options of its own
        args = parser_of(prog).parse_args(argv)
        check(args.source, args.target)
    elif len(early.words) == 2:  # else options of a head are among them
        check(*early.words, early.head)
    from videollm.checkpoint.conversion import convert, plugged
    from videollm.checkpoint.released import LAYOUTS

    converters = [only] if only else [*plugged(early.head), *(layout() for layout in LAYOUTS.values())]
    parser = parser_of(prog, heads=only is None)
    for converter in converters:
        converter.options(parser)
    args = parser.parse_args(argv)
    check(args.source, args.target)
    convert(args, converters)


def parser_of(prog: str, heads: bool = True) -> Parser:
    """What every family is converted by, with ``--head`` where there are several."""
    parser = Parser(prog=prog, description="Released checkpoints to ours, and back.")
    parser.add_argument("source", metavar="SRC", help="folder, or hub name such as Qwen/Qwen3-VL-4B-Instruct")
    parser.add_argument("target", metavar="DST", help="folder to write, new or empty")
    parser.add_argument("--back", action="store_true", help="from one of our checkpoints to the released layout")
    if heads:
        said = "of the checkpoint (default: the one in head.safetensors beside it, else text)"
        parser.add_argument("--head", metavar="NAME", help=said)
    return parser


def check(source: str, target: str, head: str = TEXT) -> None:
    """What can be said before torch is loaded: all of it. Raises ConfigError."""
    folder = Path(target)
    free = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    lost = f"{source}: no such folder, and no hub name (owner/model) either"
    heads = declared("videollm.heads")
    together(
        lambda: need(head in heads or (head.strip(".") and file_of(head)), unknown("--head", head, list(heads))),
        lambda: need(Path(source).is_dir() or maybe_on_hub(source), lost),
        lambda: need(free, f"{target}: exists and is not an empty folder; choose another place"),
        lambda: check_writable(folder / "config.json", "DST"),
    )


if __name__ == "__main__":
    sys.exit(main())
