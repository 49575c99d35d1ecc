"""Rank training questions by how hard a model finds them: ``videollm difficulty --annotations FILE ...``."""

import argparse
import sys
from collections.abc import Sequence
from functools import partial

from videollm.common.command import Parser, a_path, ended, quieten
from videollm.common.config import build, override, together
from videollm.common.files import check_file, check_writable, json_text, write_text
from videollm.data.filters import DifficultyOptions


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = Parser(prog="videollm difficulty", description="Questions by how hard a model finds them.")
    parser.add_argument("--annotations", required=True, nargs="+", help="the questions with their right answers")
    parser.add_argument(
        "--answers", required=True, nargs="+", type=a_path, help="of videollm.infer, to the same questions"
    )
    parser.add_argument("--output", required=True, type=a_path, help="annotations of those that are drawn")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="count=2500 mean=0.05 spread=0.2 seed=1 ...")
    return parser.parse_intermixed_args(argv)


def run(args: argparse.Namespace) -> None:
    """Check what can be said before torch is loaded, rank, write, print."""
    options, *_ = together(
        lambda: build(DifficultyOptions, override({}, args.overrides)),
        *(partial(check_file, path, "--annotations") for path in args.annotations),
        *(partial(check_file, path, "--answers") for path in args.answers),
        lambda: check_writable(args.output, "--output", [*args.annotations, *args.answers]),
    )
    quieten()
    from rich.console import Console
    from rich.table import Table

    from videollm.data import load_records, neutral_json
    from videollm.grpo.difficulty import read_answers, scored, subset, tenths
    from videollm.grpo.rewards import Rewards

    rewards = Rewards.named(options.rewards, "rewards")
    records = load_records(args.annotations)
    scores = scored(records, read_answers(args.answers), rewards)
    drawn = subset(records, scores, options)
    write_text(args.output, json_text(neutral_json(records[index]) for index in drawn))
    table = Table("score", "questions", "drawn")
    for k, row in enumerate(zip(tenths(list(scores.values())), tenths([scores[i] for i in drawn]), strict=True)):
        table.add_row(f"{k / 10:.1f} to {(k + 1) / 10:.1f}", *map(str, row))
    Console(width=100).print(table)
    print(f"{args.output}: {len(drawn)} drawn, of {len(scores)} answered, of {len(records)} questions")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; a user's error is one line and exit status 2."""
    args = arguments(argv)
    return ended(lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
