"""Check annotation files and their videos, or bring other groups' files into our schema: ``videollm data check`` prints
a report for people, ``videollm data import`` writes records.

A door, as the files of ``videollm/`` are: what stands behind may be any room.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from videollm.common.command import Parser, a_path, ended, seconds, whole
from videollm.common.config import ConfigError, UserError, need
from videollm.common.files import check_folder, check_writable, json_text, write_text
from videollm.data.check import Visuals, check_visuals, report_on, write_clean
from videollm.data.filters import long_line
from videollm.data.imports import FORMS, import_file
from videollm.data.load import own_ids
from videollm.data.mixture import load_to_check
from videollm.data.record import Record, ending

if TYPE_CHECKING:
    from videollm.batches.prompt import PromptEncoder


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = Parser(prog="videollm data", description="Annotation files.")
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser("check", help="check annotation files")
    check.add_argument("--annotations", nargs="+", required=True, metavar="FILE", help=".json, .jsonl, or list of sets")
    check.add_argument("--videos", metavar="FOLDER", help="folder that video paths are relative to; opens every video")
    check.add_argument("--decode", action="store_true", help="decode frames all over each video, too")
    check.add_argument(
        "--model", type=a_path, metavar="MODEL", help="checkpoint or config: are records too long for it?"
    )
    check.add_argument("--max-length", type=whole(1), metavar="N", help="tokens, in place of the model's own limit")
    check.add_argument("--workers", type=whole(1), default=os.cpu_count() or 1, metavar="N", help="processes that look")
    check.add_argument("--timeout", type=seconds, default=300.0, metavar="S", help="seconds a video may take")
    check.add_argument("--output", type=a_path, metavar="CLEAN.jsonl", help="write the records that are good")
    imports = commands.add_parser("import", help="other groups' training files in our own schema")
    imports.add_argument("form", metavar="FORM", help=", ".join(FORMS))
    imports.add_argument("file", type=a_path, metavar="FILE", help=".json or .jsonl, optionally with .gz")
    imports.add_argument("--output", type=a_path, required=True, metavar="RECORDS.jsonl")
    imports.add_argument("--videos", type=a_path, metavar="FOLDER", help="that absolute paths of videos are below")
    return parser.parse_args(argv)


def planned(model: Path) -> tuple["PromptEncoder", int, bool]:
    """Of ``planned_encoder``, which loads transformers: no other check needs it. ConfigError for no model."""
    from videollm.training.assemble import planned_encoder

    try:
        return planned_encoder(model)
    except UserError as error:
        raise ConfigError(f"--model: {error}") from None


def lengths(records: Sequence[Record], encoder: "PromptEncoder", limit: int) -> dict[str, str]:
    """What is said of each record that is too long for a model, by id."""
    from videollm.batches.lengths import too_long

    found = too_long(records, encoder, limit, rejected=True)
    return {records[i].id: long_line(records[i], tokens, limit) for i, tokens in found.items()}


def main(argv: Sequence[str] | None = None) -> int:
    """``check``: print a report; 1 if anything is wrong, 2 for a user's error, else 0. ``import``: 0, or 2."""
    options = arguments(argv)
    return ended(lambda: run(options) if options.command == "check" else bring(options))


def bring(options: argparse.Namespace) -> None:
    """Write the records of another group's file, and beside them what was dropped and why."""
    _writable(options.output, [options.file])
    found = import_file(options.form, options.file, options.videos)
    kinds = "; ".join(f"{kind}: {len(which)}" for kind, which in found.dropped.items())
    need(
        found.records, f"{options.file}: no record can be made of its {found.rows} rows ({kinds or 'nothing in them'})"
    )
    write_text(options.output, json_text(found.records))
    beside = options.output.with_name(f"{options.output.name}.report.json")
    write_text(beside, json.dumps(found.report(), indent=1, ensure_ascii=False) + "\n")
    print(f"{options.file}: {found}\n{options.output}: {len(found.records)} records; what was dropped: {beside}")


def _writable(output: Path, read: Sequence[str]) -> None:
    need(ending(output) == ".jsonl", f"--output: {output} must end in .jsonl")
    check_writable(output, "--output", read)


def run(options: argparse.Namespace) -> int:
    """Check, print, write; the exit status."""
    if options.output:
        _writable(options.output, options.annotations)
    need(options.model or not options.max_length, "--max-length: tokens depend on the model; name it with --model")
    if options.videos is not None:
        check_folder(options.videos, "--videos")
    encoder, context, raw_spans = planned(options.model) if options.model else (None, 0, False)
    records, problems, root = load_to_check(options.annotations, options.videos or ".", raw_spans)
    records, renamed = own_ids(records)
    long = lengths(records, encoder, options.max_length or context) if encoder else {}
    report, visuals = report_on(records, problems), Visuals()
    print(report)
    if options.model:
        print("\n".join([f"{len(long)} records are too long for {options.model}", *long.values()]))
    if options.videos:
        visuals = check_visuals(
            records, root, decode=options.decode, workers=options.workers, timeout_s=options.timeout
        )
        print(visuals)
    if options.output:
        kept = write_clean(options.output, records, problems, visuals, long=long, renamed=renamed)
        print(f"{options.output}: {kept} of {len(records)} good lines; what is left out: {options.output}.report.json")
        if renamed:
            print(f"{len(renamed)} of them have a new id, for an earlier record has theirs (named there, too)")
        if root != Path(options.videos or "."):
            print(f"their videos are below {root}")
    return 0 if report.ok and visuals.ok and not long else 1


if __name__ == "__main__":
    sys.exit(main())
