"""One video, one question, one answer: as text with its times, and as a picture of the timeline.

``python -m videollm.ask --model DIR --video FILE --question TEXT [--output timeline.png] [--explain] [key=value ...]``.
On a terminal the answer is printed as it is made. What the user types stays literal, so a ``<span>`` or ``<video>`` in
it is text. Knows no annotations, no sharding and no benchmark.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from videollm.checkpoint import Bundle
from videollm.common.answers import AnswerLine
from videollm.common.command import ended
from videollm.common.config import need, override
from videollm.common.files import check_writable
from videollm.inference.options import PRECISIONS
from videollm.inference.question import check_video, describe, draw
from videollm.inference.session import Session, open_session


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="videollm.ask", description="Ask one question about one video.")
    parser.add_argument("--model", required=True, help="checkpoint folder")
    parser.add_argument("--video", required=True, help="video file")
    parser.add_argument("--question", required=True, help="what to ask, in the words the model was trained on")
    parser.add_argument("--output", type=Path, help="PNG of the answer on the video's timeline")
    parser.add_argument("--explain", action="store_true", help="first print what the model gets: prompt, frames, times")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    precision = "of weights and states (default: the model's own on a GPU, fp32 on a CPU)"
    parser.add_argument("--precision", choices=PRECISIONS, help=precision)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="generate.max_new_tokens=64 sampler.fps=2")
    return parser.parse_intermixed_args(argv)


def run(args: argparse.Namespace) -> None:
    """Check what was given, load, ask, print, draw."""
    if args.output is not None:
        need(
            args.output.suffix.lower() == ".png",
            f"--output: {args.output} is not named .png; the picture is a PNG file",
        )
        check_writable(args.output, "--output")
    check_video(args.video)
    session = open_session(args.model, override({}, args.overrides), args.device, args.precision)
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


def ask(bundle: Bundle, video: str | Path, question: str) -> AnswerLine:
    """The answer of a loaded checkpoint, asked as it says; programs that have no bundle call ``videollm.load``."""
    return Session(bundle).ask(video, question)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; a user's error is one line and exit status 2."""
    return ended(lambda: run(arguments(argv)))


if __name__ == "__main__":
    sys.exit(main())
