"""What batches by cost save on moving shapes: padding, and time a question, for six ways to cut a pass over the data.

One question a row or all questions of a video behind one prefix (data.pack); and a fixed number of rows a batch in
random order, the same grouped by length, or as many rows as fit a budget of tokens (train.max_tokens_per_batch). The
budget is what the largest batch of the fixed number takes with its padding, so that all need the same memory. Padding
is that of a whole pass; processor time is of steps (forward, backward) spread over it, all kinds taking turns. Needs a
folder that the quickstart has made (clips, tower, tokenizer, features).

    python -m benchmarks.batching --quickstart runs/quickstart
"""

import argparse
import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import BatchSampler, RandomSampler

from benchmarks.rounds import command_line, seconds
from quickstart.stages import overrides
from videollm.batches.batch import Batch
from videollm.batches.dataset import VideoDataset
from videollm.batches.lengths import item_sizes
from videollm.batches.order import LengthGroupedSampler, TokenBudgetBatches
from videollm.batches.reader import VisualReader
from videollm.checkpoint import Bundle
from videollm.common.command import ended
from videollm.common.config import override, read_yaml
from videollm.data import Record, load_records
from videollm.training.assemble import assemble, read_settings
from videollm.training.features import FeatureStore
from videollm.training.optimizer import set_trainable

ROWS = {"one question a row": 48, "packed": 12}  # of about the same number of tokens


def load(folder: Path, head: str) -> tuple[Bundle, VisualReader, list[Record]]:
    """The quickstart's model, a reader of its stored features, and its training records."""
    given = overrides(argparse.Namespace(output=folder, seed=0, steps=None), head)
    settings = read_settings(override(read_yaml(f"configs/tiny/{head}.yaml"), given))
    bundle = assemble(settings)
    set_trainable(bundle.model, settings.train)
    reader = bundle.reader(folder / "data/videos", settings.data.sampler)
    reader.stored = FeatureStore(folder / "features", reader, bundle.model.vision_tower)
    return bundle, reader, load_records([str(folder / "data/train.jsonl")])


def ways(dataset: VideoDataset, sizes: np.ndarray, rows: int, aligned: bool) -> dict[str, list[list[int]]]:
    """A pass over the data as batches, by how it is cut."""
    budget = rows * int(sizes.max(0).sum() if aligned else sizes.sum(1).max())
    torch.manual_seed(0)
    grouped = LengthGroupedSampler(dataset, sizes.sum(1), rows, 1, 0)
    return {
        f"{rows} rows": list(BatchSampler(RandomSampler(dataset), rows, drop_last=False)),
        f"{rows} rows, grouped by length": list(BatchSampler(grouped, rows, drop_last=False)),
        f"{budget} tokens": list(TokenBudgetBatches(dataset, sizes, budget, 1, 0, aligned)),
    }


def padding(sizes: np.ndarray, batches: list[list[int]], aligned: bool) -> float:
    """Share of padding in all places of a pass."""
    places = sum(len(b) * int(sizes[b].max(0).sum() if aligned else sizes[b].sum(1).max()) for b in batches)
    return 1 - sizes.sum() / places


def step(bundle: Bundle, batch: Batch) -> None:
    """Forward and backward."""
    bundle.model(batch).loss.backward()
    bundle.model.zero_grad()


def main() -> None:
    """Measure and print."""
    steps = (12, "of each way; timed, spread over the pass")
    args = command_line(__doc__, quickstart=Path("runs/quickstart"), head="d2vlm", steps=steps).parse_args()
    torch.set_num_threads(1)
    bundle, reader, records = load(args.quickstart, args.head)
    bundle.model.train()
    kinds = {}
    for form, rows in ROWS.items():
        pack = form == "packed"
        dataset = VideoDataset(records, reader, bundle.encoder(), max_length=bundle.config.context_length, pack=pack)
        collate = bundle.collator(pack=pack)
        sizes = item_sizes(dataset, "benchmark")
        for way, batches in ways(dataset, sizes, rows, collate.split_prefix).items():
            kinds[f"{form}, {way}"] = (dataset, collate, batches, padding(sizes, batches, collate.split_prefix))
    spent, questions = dict.fromkeys(kinds, 0.0), dict.fromkeys(kinds, 0)
    for turn in range(-1, args.steps):  # the first one warms up
        for kind, (dataset, collate, batches, _) in kinds.items():
            chosen = batches[len(batches) * max(turn, 0) // args.steps]
            batch = collate([dataset[i] for i in chosen])
            spent_s = seconds(partial(step, bundle, batch), "cpu")
            if turn >= 0:
                spent[kind] += spent_s
                questions[kind] += batch.num_samples
    print("| a pass over the data | steps | padding | ms a question | ms a step |\n|---|---|---|---|---|")
    for kind, (*_, batches, share) in kinds.items():
        each, whole = 1000 * spent[kind] / questions[kind], 1000 * spent[kind] / args.steps
        print(f"| {kind} | {len(batches)} | {share:.1%} | {each:.2f} | {whole:.0f} |")


if __name__ == "__main__":
    sys.exit(ended(main))
