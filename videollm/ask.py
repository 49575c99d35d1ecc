"""One video, one question, one answer: as text with its times, and as a picture of the timeline.

``python -m videollm.ask --model DIR --video FILE --question TEXT [--output timeline.png] [--explain] [key=value ...]``.
The question goes the way of every other one, through ``answer_records``; what the user types stays literal, so a
``<span>`` or ``<video>`` in it is text. Knows no annotations, no sharding and no benchmark.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from videollm.checkpoint import load, read_config
from videollm.common.command import ended, usable_device
from videollm.common.config import need, to_dict
from videollm.common.files import check_writable
from videollm.inference.options import PRECISIONS, read_options
from videollm.inference.question import AskOptions, ask, check_video, describe, draw, seen_of


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
    device, config = usable_device(args.device), read_config(Path(args.model))
    options = read_options(args.overrides, config, device, args.precision)
    if args.output is not None:
        need(
            args.output.suffix.lower() == ".png",
            f"--output: {args.output} is not named .png; the picture is a PNG file",
        )
        check_writable(args.output, "--output")
    check_video(args.video)
    bundle = load(args.model, head=options.head, dtype=PRECISIONS[options.precision])
    bundle.model.to(device)
    how = AskOptions(options.generate, to_dict(options.sampler))
    if args.explain:
        print(seen_of(bundle, args.video, args.question, how), end="\n\n")
    line = ask(bundle, args.video, args.question, how)
    print(describe(line))
    if args.output is not None:
        draw(args.output, args.video, line)
        print(f"picture: {args.output}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; a user's error is one line and exit status 2."""
    return ended(lambda: run(arguments(argv)))


if __name__ == "__main__":
    sys.exit(main())
