"""Answer every question of an annotation file: one JSON line a question, appended as it comes.

``videollm infer --model DIR --annotations FILE --videos DIR --output FILE.jsonl``; under torchrun every rank
answers whole videos of its share and rank 0 merges them. What the output already answers is not asked again, whatever
ended the run before; an output of another model or other settings is refused. Knows no benchmark: tasks build on its
lines.
"""

import argparse
import sys
from collections.abc import Sequence
from functools import partial

from videollm.common.command import Parser, a_path, check_device, ended, quieten, seconds, whole
from videollm.common.config import together
from videollm.common.files import check_file, check_folder, check_model, check_writable
from videollm.common.processes import one_fate
from videollm.inference.options import PRECISIONS, read_overrides
from videollm.video.decode import BACKENDS

GO_ON = "run the same command again; every answer so far is kept"


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = Parser(prog="videollm infer", description="Answer every question of an annotation file.")
    parser.add_argument("--model", required=True, help="checkpoint folder or hub name")
    parser.add_argument("--annotations", required=True, nargs="+", help="annotation files (docs/annotations.md)")
    parser.add_argument("--videos", required=True, help="folder below which the videos lie")
    parser.add_argument("--output", required=True, type=a_path, help="FILE.jsonl, one line an answer")
    parser.add_argument("--batch-size", type=whole(1), default=8, metavar="N")
    parser.add_argument("--workers", type=whole(0), metavar="N", help="processes that read videos; by default up to 4")
    parser.add_argument("--decode-timeout", type=seconds, default=300.0, metavar="S", help="seconds a video may take")
    parser.add_argument("--frames", metavar="STORE", help="decoded frames of videollm frames build")
    seen = "first print what the model gets of the first N questions: prompt, frames, times"
    parser.add_argument("--explain", type=whole(1), default=0, metavar="N", help=seen)
    parser.add_argument("--device", help="default: cuda where there is a GPU, else cpu")
    told = "of weights and states; by default that of the training on a GPU, fp32 on the CPU"
    parser.add_argument("--precision", choices=list(PRECISIONS), help=told)
    parser.add_argument("--backend", choices=list(BACKENDS), default="pyav")
    parser.add_argument("overrides", nargs="*", help="sampler.num_frames=32 compatibility=published ...")
    return parser.parse_intermixed_args(argv)


def check(args: argparse.Namespace) -> None:
    """What can be said without the model, and so before torch is loaded: all of it. Raises UserError."""
    together(
        lambda: check_model(args.model, "--model"),
        *(partial(check_file, path, "--annotations") for path in args.annotations),
        lambda: check_folder(args.videos, "--videos"),
        lambda: check_writable(args.output, "--output", args.annotations),
        *[partial(check_folder, args.frames, "--frames")] * (args.frames is not None),
        lambda: check_device(args.device),
        lambda: read_overrides(args.overrides),
    )


def ahead(argv: Sequence[str] | None) -> None:
    """For the launcher: as ``check`` of a command line."""
    check(arguments(argv))


def begin(args: argparse.Namespace) -> None:
    """Check, and answer."""
    with one_fate():
        check(args)
    quieten()
    from videollm.inference.run import run

    run(args)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; a user's error is one line and exit status 2."""
    args = arguments(argv)
    return ended(lambda: begin(args), GO_ON)


if __name__ == "__main__":
    sys.exit(main())
