"""Decode videos once: frames are kept as they are, uint8, so that training and inference read pictures, not mp4 files.

    videollm frames build --annotations FILE --videos DIR --output STORE (--config FILE | --model DIR)

What a store is, ``video/store.py`` says. Knows no records beyond the names of videos.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from videollm.common.command import Parser, ended, quieten, seconds, whole
from videollm.common.config import build, merge, need, override, together, typed
from videollm.common.files import check_file, check_folder, check_model, check_writable
from videollm.training.settings import DataSettings, check_values, read_values
from videollm.video.decode import BACKENDS
from videollm.video.preprocess import Preprocess
from videollm.video.sampling import Sampler
from videollm.video.view import WHOLE


def wanted_frames(args: argparse.Namespace) -> tuple[Sampler, Preprocess]:
    """Sampler and preprocessing of a training config or of a checkpoint, with the command line over it."""
    from videollm.checkpoint import read_config
    from videollm.model.videollm import VideoLLMConfig
    from videollm.training.assemble import read_settings

    values = override({}, args.overrides)
    given, folder = DataSettings(), args.model
    if args.config:
        settings, values = read_settings(read_values(args.config, args.overrides)), {}
        given, folder = settings.data, settings.model.checkpoint
    kept = read_config(folder) if folder else VideoLLMConfig()
    sampler = given.sampler or build(Sampler, merge({"sampler": kept.sampler}, values)["sampler"], "sampler")
    return sampler, given.preprocess or build(Preprocess, kept.preprocess, "preprocess")


def main(argv: Sequence[str] | None = None) -> int:
    """``videollm frames build``; a user's error is one line and exit status 2."""
    parser = Parser(prog="videollm frames", description="Decode videos once.")
    make = parser.add_subparsers(dest="command", required=True).add_parser("build", help="make a store, or go on")
    make.add_argument("--annotations", nargs="+", required=True, metavar="FILE", help="whose videos are stored")
    make.add_argument("--videos", required=True, metavar="DIR", help="folder that video paths are relative to")
    make.add_argument("--output", required=True, metavar="STORE", help="folder of the store")
    source = make.add_mutually_exclusive_group(required=True)
    source.add_argument("--config", help="training config that says which frames")
    source.add_argument("--model", help="checkpoint folder or hub name that says which frames")
    make.add_argument("--backend", choices=list(BACKENDS), default="pyav")
    make.add_argument("--workers", type=whole(1), default=os.cpu_count() or 1, metavar="N", help="decoding processes")
    make.add_argument("--decode-timeout", type=seconds, default=300.0, metavar="S", help="seconds a video may take")
    make.add_argument("overrides", nargs="*", help="data.sampler.num_frames=32 (--config), sampler.fps=2 (--model)")
    args = parser.parse_args(argv)
    return ended(lambda: build_frames(args))


def check(args: argparse.Namespace) -> None:
    """What can be said before torch is loaded: all of it. Raises UserError."""

    def keys() -> None:
        if args.config:
            check_values(read_values(args.config, args.overrides), args.config, ("model",))
            return
        for key, value in override({}, args.overrides).items():
            need(key == "sampler", f"{key}: unknown key; with --model the known key is sampler")
            typed(Sampler, value, key)

    together(
        *(partial(check_file, path, "--annotations") for path in args.annotations),
        lambda: check_folder(args.videos, "--videos"),
        lambda: check_writable(Path(args.output, "store.json"), "--output"),
        *[lambda: check_model(args.model, "--model")] * (args.model is not None),
        keys,
    )


def build_frames(args: argparse.Namespace) -> None:
    """Read the settings and the names of the videos, and make the store."""
    check(args)
    quieten()
    from videollm.data import load_records
    from videollm.data.check import check_some
    from videollm.video.store import SKIPPED, build_store

    sampler, preprocess = wanted_frames(args)
    records = load_records(args.annotations)
    check_some(records, args.videos, "--videos")
    names = [r.video for r in records if r.video is not None and r.asking.view == WHOLE]
    held, bad = build_store(
        args.output, names, args.videos, sampler, preprocess,
        backend=args.backend, workers=args.workers, timeout_s=args.decode_timeout,
    )  # fmt: skip
    print(f"{args.output}: {held} videos stored, {len(bad)} bad" + (f" (named in {SKIPPED} there)" if bad else ""))


if __name__ == "__main__":
    sys.exit(main())
