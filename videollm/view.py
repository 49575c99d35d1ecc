"""Make a page of answers, to look through in a browser without a server: player, timeline, filters.

``videollm view ANSWERS.jsonl [OTHER.jsonl] --videos DIR [--annotations FILE ...] --output DIR``, then open
``DIR/index.html``. Two files are compared, side by side. Knows no model.
"""

import argparse
import sys
from collections.abc import Sequence

from videollm.common.command import Parser, a_path, ended
from videollm.common.config import need, together
from videollm.common.files import check_folder, check_writable
from videollm.data import load_records
from videollm.show.viewer import check_page, names_of, of_record, read_answers, write_page


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = Parser(prog="videollm view", description="Make a page of answers, to open in a browser.")
    parser.add_argument("answers", type=a_path, nargs="+", metavar="ANSWERS", help="a file of videollm.infer, or two")
    linked = (
        "folder of the videos, which are linked: as seen from the page if DIR is relative, else by their whole path"
    )
    parser.add_argument("--videos", type=a_path, required=True, metavar="DIR", help=linked)
    parser.add_argument("--annotations", type=a_path, nargs="+", metavar="FILE", default=[], help="with the true spans")
    parser.add_argument("--output", type=a_path, required=True, metavar="DIR", help="of the page")
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    """Read, compare with the truth, write."""
    count = len(args.answers)
    together(
        lambda: need(count <= 2, f"{count} files of answers: give one, or two to compare"),
        lambda: check_folder(args.videos, "--videos"),
        lambda: check_writable(args.output / "index.html", "--output"),
        lambda: check_page(args.output),
    )
    runs = dict(zip(names_of(args.answers), map(read_answers, args.answers), strict=True))
    asked = {record.id: of_record(record) for record in load_records(args.annotations)} if args.annotations else {}
    for told in write_page(args.output, runs, args.videos, asked):
        print(told)
    print(f"written to {args.output / 'index.html'}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; a user's error is one line and exit status 2."""
    return ended(lambda: run(arguments(argv)))


if __name__ == "__main__":
    sys.exit(main())
