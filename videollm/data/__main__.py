"""``python -m videollm.data check``: a report about annotation files and their videos, for people."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from videollm.common.config import ConfigError
from videollm.common.files import check_folder
from videollm.data.check import check_visuals, own_ids, report_on, write_clean
from videollm.data.mixture import load_to_check
from videollm.data.record import ending


def main(arguments: Sequence[str] | None = None) -> int:
    """``python -m videollm.data check``: print a report; 1 if anything is wrong, else 0."""
    parser = argparse.ArgumentParser(prog="python -m videollm.data", description="Annotation files.")
    check = parser.add_subparsers(dest="command", required=True).add_parser("check", help="check annotation files")
    check.add_argument(
        "--annotations", nargs="+", required=True, metavar="FILE", help="a .json, .jsonl (also .gz), or list of sets"
    )
    check.add_argument("--videos", metavar="FOLDER", help="folder that video paths are relative to; opens every video")
    check.add_argument("--decode", action="store_true", help="decode frames all over each video, too")
    check.add_argument("--workers", type=int, default=os.cpu_count() or 1, metavar="N", help="processes that look")
    check.add_argument("--timeout", type=float, default=300.0, metavar="S", help="seconds a video may take")
    check.add_argument("--output", type=Path, metavar="CLEAN.jsonl", help="write the records that are good")
    options = parser.parse_args(arguments)
    if options.workers < 1 or (options.output and ending(options.output) != ".jsonl"):
        check.error("--workers must be at least 1, and the name of --output end in .jsonl")
    if options.videos:
        try:
            check_folder(options.videos, "--videos")
        except ConfigError as error:
            check.error(str(error))
    records, problems, root = load_to_check(options.annotations, options.videos or ".")
    records, renamed = own_ids(records)
    report, visuals = report_on(records, problems), None
    print(report)
    if options.videos:
        visuals = check_visuals(
            records, root, decode=options.decode, workers=options.workers, timeout_s=options.timeout
        )
        print(visuals)
    if options.output:
        try:
            kept = write_clean(options.output, records, problems, visuals, renamed)
        except OSError as error:
            check.error(f"--output: cannot write {options.output} ({error.strerror}); choose another file")
        print(f"{options.output}: {kept} of {len(records)} good lines; what is left out: {options.output}.report.json")
        if renamed:
            print(f"{len(renamed)} of them have a new id, for an earlier record has theirs (named there, too)")
        if root != Path(options.videos or "."):
            print(f"their videos are below {root}")
    return 0 if report.ok and (visuals is None or visuals.ok) else 1


if __name__ == "__main__":
    sys.exit(main())
