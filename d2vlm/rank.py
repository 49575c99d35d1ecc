"""How models rank right and wrong answers: preference accuracy, margin and log-probabilities, in all and by factor.

``python -m d2vlm.rank --model DIR [DIR ...] --annotations FILE [FILE ...] --videos DIR --output FILE.json [key=value
...]``. In: checkpoints, and preference records that none of them was trained on (docs/annotations.md). Out: for every
model the means over the pairs, all of them and those of each factor. Options are those of the objective ``d2vlm.fpo``.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from tqdm import tqdm

from d2vlm.fpo import FACTORS, FPO, FPOOptions
from videollm.batches.dataset import VideoDataset
from videollm.batches.reader import VisualReader
from videollm.checkpoint import Bundle, load, read_config
from videollm.common.command import Parser, a_path, ended, usable_device, whole
from videollm.common.config import ConfigError, build, override, to_dict
from videollm.common.files import check_folder, check_writable
from videollm.data import Record, load_records
from videollm.data.check import check_some
from videollm.inference.options import PRECISIONS, own_precision

COLUMNS = (*FACTORS, "margin")


@torch.no_grad()
def compare(
    bundle: Bundle, records: Sequence[Record], reader: VisualReader, objective: FPO, size: int
) -> tuple[list[str], Tensor, list[str]]:
    """Read every pair, ``size`` records at a time.

    Returns:
        factor of each pair [P], its ``COLUMNS`` [P, 5], and what could not be read.
    """
    dataset = VideoDataset(records, reader, bundle.encoder(), max_length=bundle.config.context_length, rejected="all")
    collate, model, by_id = bundle.collator(rank=True), bundle.model, {record.id: record for record in records}
    device = next(model.parameters()).device
    names, rows, bad = [], [torch.zeros(0, len(COLUMNS))], []
    for start in tqdm(range(0, len(dataset), size), unit="batch", desc="ranking"):
        batch = collate([dataset[i] for i in range(start, min(start + size, len(dataset)))]).to(device)
        bad += batch.bad
        reading = model.read(batch)
        chosen, rejected, margin = objective.pairs(objective.factors(model, batch, reading)[1], batch, reading)
        rows.append(torch.cat([chosen, rejected, margin[:, None]], -1).float().cpu())
        names += [answer.factor for i in batch.ids for answer in by_id[i].rejected]
    return names, torch.cat(rows), bad


def summary(names: Sequence[str], rows: Tensor) -> dict:
    """Means over all pairs, and under ``by_factor`` over those of each factor."""

    def means(picked: Tensor) -> dict:
        found = dict(zip(COLUMNS, picked.mean(0).tolist(), strict=True))
        return {"pairs": len(picked), "accuracy": (picked[:, -1] > 0).float().mean().item(), **found}

    of = torch.tensor([sorted(set(names)).index(name) for name in names])
    return means(rows) | {"by_factor": {name: means(rows[of == k]) for k, name in enumerate(sorted(set(names)))}}


def run(args: argparse.Namespace) -> None:
    """Rank with every model, write, print."""
    options = build(FPOOptions, override({}, args.overrides), "")
    if options.reference is not None:
        raise ConfigError("reference: a margin without one is compared; name the model beside the others instead")
    records = [record for record in load_records(args.annotations) if record.rejected]
    if not records:
        raise ConfigError("--annotations: no record has rejected answers; make some with `python -m d2vlm.preference`")
    check_folder(args.videos, "--videos")
    check_some(records, args.videos, "--videos")
    check_writable(args.output, "--output", args.annotations)
    device, found = usable_device(args.device), {}
    for folder in args.model:
        bundle = load(folder, dtype=PRECISIONS[own_precision(read_config(folder), device)])
        bundle.model.to(device)
        names, rows, bad = compare(bundle, records, bundle.reader(args.videos), FPO(options), args.batch_size)
        if not names:
            raise ConfigError(f"none of the {len(records)} records could be read, first {bad[0]}")
        if bad:
            print(f"{len(bad)} records could not be read, first {bad[0]}", file=sys.stderr)
        found[str(folder)] = summary(names, rows) | {"unreadable": bad}
    report = {"annotations": args.annotations, "options": to_dict(options), "models": found}
    args.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    tell_ranks(found)


def tell_ranks(found: dict[str, dict]) -> None:
    """A table: accuracy and margin of every model, in all and by factor."""
    table = Table("", "pairs", *(f"{Path(folder)}" for folder in found), box=None, title="accuracy (margin)")
    first = next(iter(found.values()))
    for name in ("all", *first["by_factor"]):
        cells = [of if name == "all" else of["by_factor"].get(name) for of in found.values()]
        told = [f"{cell['accuracy']:.3f} ({cell['margin']:.2f})" if cell else "" for cell in cells]
        table.add_row(name, str(cells[0]["pairs"]), *told)
    Console().print(table)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; a user's error is one line and exit status 2."""
    parser = Parser(prog="python -m d2vlm.rank", description="Rank right and wrong answers.")
    parser.add_argument("--model", nargs="+", required=True, metavar="DIR", help="checkpoint folders or hub names")
    parser.add_argument("--annotations", nargs="+", required=True, metavar="FILE", help="records with rejected answers")
    parser.add_argument("--videos", required=True, metavar="DIR", help="folder below which the videos lie")
    parser.add_argument("--output", required=True, type=a_path, metavar="FILE.json")
    parser.add_argument("--batch-size", type=whole(1), default=8, metavar="N", help="records at a time")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="beta=0.1 text_weight=0 ...")
    args = parser.parse_intermixed_args(argv)
    return ended(lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
