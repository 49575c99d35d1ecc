"""What scoring costs: every published prediction file through the command a user types, start of Python included.

Needs the folder of the published predictions (``PAPER_DIR``). Beside each time stand the
seconds that the published script took on two shared cores, so the ratio is of different runs, not of a pair.

    python -m benchmarks.scoring --repeats 3
"""

import os
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.rounds import command_line, run_alone
from videollm.common.command import ended

PAPER = Path(os.environ.get("PAPER_DIR", "paper"))
RUNS = {  # name -> (benchmark, predictions, annotations, options, target in seconds, seconds of the published script)
    "Charades-STA": ("charades", "preds/charades_1b.json.gz", "gt/charades_sta_test.json.gz", [], 1, "2.8-3.3"),
    "ActivityNet": ("anet", "preds/anet_mr_1b.json.gz", "gt/anet_val_2.json.gz", [], 1, "0.5-0.9"),
    "QVHighlights": ("qvhighlights", "preds/qvhighlights_1b.json.gz", "gt/qvhighlights_val.json.gz", [], 1, "2-5"),
    "QVHighlights, highlights": (
        "qvhighlights", "corner/moment_detr_sample_val_preds.jsonl.gz",
        "gt/qvhighlights_highlight_val_release.jsonl.gz", ["--variant", "moment_detr"], 3, "42-47",
    ),
    "NExT-GQA": ("nextgqa", "preds/nextgqa_1b.json.gz", "gt/nextgqa_gsub_test.json.gz", [], 1, "0.5"),
    "YouCook2": ("youcook2", "preds/youcook2_dvc_1b.json.gz", "gt/youcook2_val.json.gz", [], 15, "47-88"),
    "ActivityNet captions": ("anet_dvc", "preds/anet_dvc_1b.jsonl.gz", "gt/anet_val_2.json.gz", [], 40, "150-260"),
    "E.T. Bench corner set": ("etbench", "corner/etbench_plain.json", None, ["--variant", "etchat"], 15, "366"),
}  # fmt: skip


def once(benchmark: str, predictions: str, annotations: str | None, options: list[str]) -> tuple[float, float]:
    """(wall seconds, CPU seconds of it and its Java) of one scoring command, published protocol."""
    with tempfile.TemporaryDirectory() as folder:
        call = [sys.executable, "-m", "all_benchmark_eval.score", benchmark, "--output", f"{folder}/scores.json"]
        call += ["--predictions", str(PAPER / predictions), "--protocol", "published", *options]
        call += ["--annotations", str(PAPER / annotations)] if annotations else []
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
        run_alone(call)
        wall, after = time.monotonic() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Measure and print."""
    parser = command_line(__doc__, repeats=3)
    args = parser.parse_args()
    if not PAPER.is_dir():
        parser.error(f"{PAPER} is no folder: set PAPER_DIR to the folder of the published predictions")
    table = Table(title="scoring a published prediction file (median)", title_justify="left")
    for name in ("", "wall s", "CPU s", "target s", "published script s"):
        table.add_column(name, justify="right" if name else "left")
    for name, (*call, target, published) in RUNS.items():
        runs = [once(*call) for _ in range(args.repeats)]
        wall, cpu = (statistics.median(column) for column in zip(*runs, strict=True))
        table.add_row(name, f"{wall:.2f}", f"{cpu:.2f}", str(target), published)
    Console().print(table)


if __name__ == "__main__":
    sys.exit(ended(main))
