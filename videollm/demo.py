"""Ask one or two models about clips in a browser: upload or pick a clip, ask, see when.

``videollm demo --model DIR [--model DIR] [--examples DIR] [--host HOST] [--port PORT] [key=value ...]``. It
needs the extra ``[demo]``. Knows no head.
"""

import argparse
import importlib.util
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from videollm.common.command import Parser, a_path, check_device, ended, seconds, whole
from videollm.common.config import need, together
from videollm.common.files import check_model
from videollm.inference.options import read_overrides

LOOPBACK = "127.0.0.1"


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = Parser(prog="videollm demo", description="Ask models about clips, in a browser.")
    several = "checkpoint folder; given twice, both answer every question, side by side"
    parser.add_argument("--model", required=True, action="append", metavar="DIR", help=several)
    clips = "folder with clips and annotation lines (.jsonl) about them (default: the first model's own folder)"
    parser.add_argument("--examples", type=a_path, metavar="DIR", help=clips)
    host = f"address to listen at (default: {LOOPBACK}, for this machine alone); with 0.0.0.0 everybody who reaches "
    host += "this machine can upload clips and ask: there is no password"
    parser.add_argument("--host", default=LOOPBACK, help=host)
    parser.add_argument("--port", type=whole(1), help="default: the first free one from 7860")
    parser.add_argument("--megabytes", type=whole(1), default=200, help="the largest clip (default: %(default)s)")
    parser.add_argument("--seconds", type=seconds, default=1800.0, help="the longest clip (default: %(default)g)")
    parser.add_argument("--device", help="default: a GPU where there is one")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="generate.max_new_tokens=64 sampler.fps=2")
    return parser.parse_intermixed_args(argv)


def run(args: argparse.Namespace) -> None:
    """Check what was given, load, serve until Ctrl-C."""
    there = importlib.util.find_spec("gradio") is not None
    need(there, "the demo needs gradio, which is not installed; run: pip install -e '.[demo]'")
    count = len(args.model)
    together(
        lambda: need(count <= 2, f"--model: {count} models; give one, or two to compare"),
        *(lambda model=model: check_model(model, "--model") for model in args.model),
        lambda: check_device(args.device),
        lambda: read_overrides(args.overrides),
    )
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that the uploads go then too
    with tempfile.TemporaryDirectory(prefix="videollm_demo_") as folder:  # uploads; at the end all of it goes
        os.environ["GRADIO_TEMP_DIR"] = folder
        from videollm.inference.session import open_session
        from videollm.show.demo import Demo, Limits, examples_in
        from videollm.show.viewer import names_of

        examples = args.examples or Path(args.model[0])
        found = examples_in(examples)
        need(found or args.examples is None, f"--examples: {examples} holds no clip with annotation lines (.jsonl)")
        names = names_of([Path(model) for model in args.model])
        options = read_overrides(args.overrides)
        models = {n: open_session(m, options, args.device) for n, m in zip(names, args.model, strict=True)}
        demo = Demo(models, examples, found, Limits(args.megabytes, args.seconds))
        print(f"open {demo.launch(args.host, args.port)} in a browser; Ctrl-C ends it", flush=True)
        demo.page.block_thread()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; a user's error is one line and exit status 2."""
    return ended(lambda: run(arguments(argv)))


if __name__ == "__main__":
    sys.exit(main())
