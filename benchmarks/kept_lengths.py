"""What a start costs to know the lengths of its training data: counted, counted and kept, and read again.

Records are questions about moving-shapes clips (benchmarks/tiny_checkpoint.py makes some), repeated under their own
names; the budget of tokens (train.max_tokens_per_batch) needs the length of every item, any run needs to know which
records are too long. Both files are then read by a second start.

    python -m benchmarks.kept_lengths FOLDER --records 164000
"""

import json
import sys
from pathlib import Path

from benchmarks.rounds import command_line, seconds
from benchmarks.tiny_checkpoint import make
from videollm.batches.dataset import VideoDataset
from videollm.batches.kept_lengths import KeptLengths
from videollm.batches.lengths import item_sizes, too_long
from videollm.checkpoint import load
from videollm.common.command import ended
from videollm.data import Record, load_records


def write_records(folder: Path, count: int) -> list[Record]:
    """``count`` records in a file, each with an id of its own."""
    lines = [json.loads(line) for line in (folder / "questions.jsonl").read_text(encoding="utf-8").splitlines()]
    file = folder / "many.jsonl"
    with open(file, "w", encoding="utf-8") as out:
        for k in range(count):
            out.write(json.dumps(lines[k % len(lines)] | {"id": str(k)}) + "\n")
    return load_records(str(file))


def main() -> None:
    """Measure and print."""
    parser = command_line(__doc__, records=20_000)
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    make(args.folder, 200)
    records, bundle = write_records(args.folder, args.records), load(args.folder / "model")
    encoder, limit = bundle.encoder(), bundle.config.context_length
    dataset = VideoDataset(records, bundle.reader(args.folder / "clips"), encoder, max_length=limit)
    kept = KeptLengths(args.folder / "lengths", writes=True)
    ways = {
        "too long?": (lambda: too_long(records, encoder, limit), lambda: kept.too_long(records, encoder, limit, False)),
        "sizes of items": (lambda: item_sizes(dataset, "sizes"), lambda: kept.item_sizes(dataset, "sizes")),
    }
    for name, (count, keep) in ways.items():
        spent = [seconds(work, "cpu") for work in (count, keep, keep)]
        print(f"{name}: {len(records)} counted {spent[0]:.2f} s, and kept {spent[1]:.2f} s, read {spent[2]:.2f} s")


if __name__ == "__main__":
    sys.exit(ended(main))
