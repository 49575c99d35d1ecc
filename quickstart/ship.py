"""The checkpoint that the repository ships: ``python -m quickstart.ship RUN --output quickstart/model``.

In: a run of a finished quickstart, such as runs/quickstart/d2vlm_grpo. Out: one small folder with its model in bf16,
scores that were measured again with it on the test clips, a card, and two of these clips with their questions. Nothing
of it is drawn by chance.
"""

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from all_benchmark_eval import evaluate
from videollm.checkpoint import load
from videollm.checkpoint.card import model_card, without_places
from videollm.common.command import Parser, a_path, ended
from videollm.common.config import need
from videollm.common.files import check_writable, json_lines, json_text, write_text

LICENCE = "apache-2.0"
CLIPS, EVENTS = 2, 2  # that are shipped: the first of the test clips in which so many things happen
BENCHMARK = "moving_shapes"
NOTES = """Made by the quickstart of the repository, on a CPU and from nothing but drawn clips of coloured shapes:

    bash scripts/quickstart.sh
    python -m quickstart.ship runs/quickstart/{run} --output quickstart/model

It knows {words} words, and questions as `clips.jsonl` has them. Its clips are the first {clips} of the test clips in
which at least {events} things happen; no training has seen them. Its choice among four options (`mc_accuracy`) is no
better than chance, 0.25.

Data: `{data}`."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; a user's error is one line and exit status 2."""
    parser = Parser(prog="quickstart.ship", description="Make the checkpoint that is shipped.")
    parser.add_argument("run", type=a_path, metavar="RUN", help="folder of a run of the quickstart")
    parser.add_argument("--output", type=a_path, required=True, metavar="DIR", help="folder to write, new")
    args = parser.parse_args(argv)
    return ended(lambda: ship(args.run, args.output))


def ship(run: Path, output: Path) -> None:
    """Write, measure, describe."""
    need(not output.exists(), f"--output: {output} is there; delete it, or choose another folder")
    data = run.parent / "data"
    need((data / "manifest.json").is_file(), f"RUN: {run} is no run of a quickstart: there is no {data}/manifest.json")
    check_writable(output / "config.json", "--output")
    bundle = load(run / "final", dtype=torch.bfloat16)
    bundle.save(output)
    (output / "model.safetensors").chmod(0o644)
    copy_clips(data, output)
    scores = measured(output, data, run / "shipped")
    write_text(output / "scores.json", json.dumps(scores, indent=1) + "\n")
    manifest = json.loads((data / "manifest.json").read_text(encoding="utf-8"))
    notes = NOTES.format(
        run=run.name, words=len(bundle.tokenizer), clips=CLIPS, events=EVENTS, data=json.dumps(manifest)
    )
    card = model_card("quickstart/model", output, LICENCE, [scores], run, notes)
    write_text(output / "README.md", without_places(card.replace(str(run.parent), "runs/quickstart")))
    print(f"{output}: {sum(path.stat().st_size for path in output.rglob('*') if path.is_file()):,} bytes")


def copy_clips(data: Path, output: Path) -> None:
    """The clips that are shipped, with their lines of the annotations in clips.jsonl."""
    lines = [line for _, line in json_lines(data / "test.jsonl")]
    chosen = list(dict.fromkeys(line["video"] for line in lines if len(line["events"]) >= EVENTS))[:CLIPS]
    names = {video: f"clips/{Path(video).name}" for video in chosen}
    (output / "clips").mkdir()
    for video, name in names.items():
        shutil.copyfile(data / "videos" / video, output / name)
    kept = [line | {"video": names[line["video"]]} for line in lines if line["video"] in names]
    write_text(output / "clips.jsonl", json_text(kept))


def measured(model: Path, data: Path, folder: Path) -> dict:
    """The scores of the model on all test clips, by free generation; what was answered is below ``folder``."""
    shutil.rmtree(folder, ignore_errors=True)
    files = {"--annotations": data / "test.jsonl", "--videos": data / "videos", "--output": folder}
    words = [str(word) for pair in files.items() for word in pair]
    status = evaluate.main([str(model), "--benchmarks", BENCHMARK, *words, "--batch-size", "64", "--device", "cpu"])
    need(not status, f"{BENCHMARK}: could not be scored; its message stands above")
    found = json.loads((folder / BENCHMARK / "scores.json").read_text(encoding="utf-8"))
    return {key: found[key] for key in ("benchmark", "title", "variant", "protocols", "commit")}


if __name__ == "__main__":
    sys.exit(main())
