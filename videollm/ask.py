"""Ask one question about one video: the answer as text with its times, and as a picture of the timeline.

``videollm ask --model DIR --video FILE --question TEXT [--output timeline.png] [--explain] [key=value ...]``.
On a terminal the answer is printed as it is made. What the user types stays literal, so a ``<span>`` or ``<video>`` in
it is text. Knows no annotations, no sharding and no benchmark.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from videollm.common.command import Parser, a_path, check_device, ended, quieten
from videollm.common.config import need, together
from videollm.common.files import check_model, check_writable
from videollm.inference.options import PRECISIONS, check_question, check_video, read_overrides

if TYPE_CHECKING:  # a wrong word is told before torch is loaded
    from videollm.checkpoint import Bundle
    from videollm.common.answers import AnswerLine


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = Parser(prog="videollm ask", description="Ask one question about one video.")
    parser.add_argument("--model", required=True, help="checkpoint folder or hub name")
    parser.add_argument("--video", required=True, help="video file")
    parser.add_argument("--question", required=True, help="what to ask, in the words the model was trained on")
    parser.add_argument("--output", type=a_path, help="PNG of the answer on the video's timeline")
    parser.add_argument("--explain", action="store_true", help="first print what the model gets: prompt, frames, times")
    parser.add_argument("--device", help="default: cuda where there is a GPU, else cpu")
    precision = "of weights and states (default: the model's own on a GPU, fp32 on a CPU)"
    parser.add_argument("--precision", choices=PRECISIONS, help=precision)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="generate.max_new_tokens=64 sampler.fps=2")
    return parser.parse_intermixed_args(argv)


def check(args: argparse.Namespace) -> None:
    """What can be said without the model, and so before torch is loaded: all of it. Raises UserError."""
    checks = [
        lambda: check_model(args.model, "--model"),
        lambda: check_video(args.video),
        lambda: check_device(args.device),
        lambda: check_question(args.question),
        lambda: read_overrides(args.overrides),
    ]
    if args.output is not None:
        png = f"--output: {args.output} is not named .png; the picture is a PNG file"
        checks.append(lambda: need(args.output.suffix.lower() == ".png", png))
        checks.append(lambda: check_writable(args.output, "--output"))
    together(*checks)


def run(args: argparse.Namespace) -> None:
    """Check what was given, load, ask, print, draw."""
    check(args)
    quieten()
    from videollm.batches.unknown import warn_unknown
    from videollm.inference.question import describe, draw, make_record
    from videollm.inference.session import open_session

    session = open_session(args.model, read_overrides(args.overrides), args.device, args.precision)
    warn_unknown([make_record(args.video, args.question)], session.bundle.tokenizer, "--question")
    if args.explain:
        print(session.seen(args.video, args.question), end="\n\n")
    if sys.stdout.isatty():
        for piece in session.stream(args.video, args.question):
            print(piece.text, end="", flush=True)
        line = piece.answer
        print(describe(line).removeprefix(line.text))
    else:
        line = session.ask(args.video, args.question)
        print(describe(line))
    if args.output is not None:
        draw(args.output, args.video, line)
        print(f"picture: {args.output}")


def ask(bundle: "Bundle", video: str | Path, question: str) -> "AnswerLine":
    """The answer of a loaded checkpoint, asked as it says; programs that have no bundle call ``videollm.load``."""
    from videollm.inference.session import Session

    return Session(bundle).ask(video, question)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; a user's error is one line and exit status 2."""
    return ended(lambda: run(arguments(argv)))


if __name__ == "__main__":
    sys.exit(main())
