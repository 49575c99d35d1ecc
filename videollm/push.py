"""A checkpoint to the hub, with a card: ``videollm push FOLDER owner/name --licence ID [--private]``.

Pushed are the model's own files, as loading reads them, and a README.md that is made of its config, its run and its
scores; ``--dry-run`` prints that and touches no network. One that lies in FOLDER already is taken as it is. Knows no
benchmark.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from videollm.common.command import Parser, a_path, ended
from videollm.common.config import ConfigError, need, together
from videollm.common.files import HUB_NAME, check_model
from videollm.training.saving import MANIFEST, UNFINISHED, read_checkpoint

LICENCES = "apache-2.0, mit, cc-by-4.0, cc-by-nc-4.0 or other"
OF_THE_HUB = (  # names as SPDX has them, in the hub's spelling, and the hub's own of models; all others are "other"
    "apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "isc", "mpl-2.0", "gpl-2.0", "gpl-3.0", "lgpl-2.1", "lgpl-3.0",
    "agpl-3.0", "unlicense", "wtfpl", "zlib", "artistic-2.0", "bsl-1.0", "epl-2.0", "eupl-1.1", "eupl-1.2", "ms-pl",
    "cc0-1.0", "cc-by-2.0", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0",
    "cc-by-nc-4.0", "cc-by-nd-4.0", "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0",
    "cc-by-nc-sa-4.0", "openrail", "openrail++", "bigscience-openrail-m", "creativeml-openrail-m", "gemma", "llama2",
    "llama3", "llama3.1", "llama3.2", "llama3.3", "llama4", "other",
)  # fmt: skip
ALSO = ("README.md", "scores.json", "clips.jsonl", "clips/*")  # taken along where they lie beside the weights


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = Parser(prog="videollm push", description="Push a checkpoint to the hub, with a card.")
    parser.add_argument("folder", type=a_path, metavar="FOLDER", help="checkpoint folder, such as runs/NAME/final")
    parser.add_argument("name", metavar="OWNER/NAME", help="on the hub; made if there is none")
    told = f"of the weights, as the hub spells it: {LICENCES}"
    parser.add_argument("--licence", metavar="ID", choices=OF_THE_HUB, help=told)
    parser.add_argument("--private", action="store_true", help="nobody else sees it")
    told = "as the scoring command writes them (default: FOLDER/scores.json, FOLDER/evaluation/*/scores.json)"
    parser.add_argument("--scores", type=a_path, nargs="+", metavar="FILE", help=told)
    parser.add_argument("--dry-run", action="store_true", help="print the card and the files, push nothing")
    return parser.parse_args(argv)


def check(args: argparse.Namespace) -> None:
    """What can be said before torch is loaded: all of it. Raises ConfigError."""
    match = HUB_NAME.fullmatch(args.name)
    plain = match is not None and match["revision"] is None and "/" in args.name
    together(
        lambda: need(plain, f"OWNER/NAME: {args.name!r} is no name of a model on the hub, such as lab/moments-4b"),
        lambda: need(args.licence, f"--licence: under which licence may others use the weights? Give it: {LICENCES}"),
        lambda: check_model(args.folder.absolute(), "FOLDER"),
        lambda: check_whole(args.folder),
        *(partial(read_scores, path) for path in args.scores or ()),
    )


def check_whole(folder: Path) -> None:
    """ConfigError where a run did not write ``folder`` to its end, or a file of it is lost."""
    resumable = (folder / MANIFEST).is_file()
    half = (folder / UNFINISHED).exists() or (folder.name.startswith("checkpoint-") and not resumable)
    need(not half, f"{folder}: no {MANIFEST}, so it was not written to the end; push another one, or runs/NAME/final")
    if resumable:
        try:
            read_checkpoint(folder)
        except ValueError as error:
            raise ConfigError(f"{folder}: {error}; push another checkpoint of its run") from None


def run(args: argparse.Namespace) -> None:
    """See that it is whole, make the card, push."""
    check(args)
    from videollm.checkpoint import read_config
    from videollm.checkpoint.adapters import has_adapters
    from videollm.checkpoint.card import model_card, without_places
    from videollm.checkpoint.hub import files_of, pushed

    folder, run_folder = args.folder, args.folder.resolve().parent
    base = getattr(read_config(folder), "base", None) or ""
    alone = not has_adapters(folder) or HUB_NAME.fullmatch(base)
    need(alone, f"{folder}: adapters of {base}, which others lack; first videollm checkpoint {folder} DST")
    found = [*folder.glob("scores.json"), *sorted(folder.glob("evaluation/*/scores.json"))]
    scores = [read_scores(path) for path in (args.scores or found)]
    told = all((run_folder / name).is_file() for name in ("config.yaml", "starts.jsonl"))
    card = without_places(model_card(args.name, folder, args.licence, scores, run_folder if told else None))
    own, licence = folder / "README.md", f"license: {args.licence}"
    card = own.read_text(encoding="utf-8") if own.is_file() else card
    need(f"{licence}\n" in card, f"{own}: does not say {licence}; give the one that it says")
    files = [*files_of(folder), *(path for pattern in ALSO for path in folder.glob(pattern) if not path.is_dir())]
    for path in files:
        here = path.is_file() and path.resolve() == folder.resolve() / path.relative_to(folder)
        need(here, f"{path}: is a link, or no file; only the folder's own are pushed: put a copy there, or take it out")
    names = {str(path.relative_to(folder)): path for path in files} | {"README.md": card.encode()}
    if args.dry_run:
        print(card, *(f"would push: {name}" for name in sorted(names)), sep="\n")
    else:
        print(pushed(args.name, names, args.private))


def read_scores(path: Path) -> dict:
    """A score file; ConfigError for one that is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if {"title", "variant", "commit", "protocols"} <= found.keys():
            return found
        why = "it has no protocols"
    except (OSError, ValueError, AttributeError) as error:
        why = " ".join(str(error).split())
    raise ConfigError(f"--scores: {path} is no file of scores ({why}); give one, or leave it out")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; a user's error is one line and exit status 2."""
    return ended(lambda: run(arguments(argv)))


if __name__ == "__main__":
    sys.exit(main())
