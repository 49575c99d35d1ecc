"""Moving-shapes clips, questions about them, and a small model with random weights: what other benchmarks run on.

    python -m benchmarks.tiny_checkpoint FOLDER --questions 200

writes ``FOLDER/{clips, questions.jsonl, model}``; what is there already is kept. The model is configs/tiny/distime.yaml
with nothing trained, so its answers mean nothing and mostly run to their token limit.
"""

import json
import sys
from pathlib import Path

from benchmarks.rounds import command_line
from quickstart.clips import write_dataset
from quickstart.tower import build_word_tokenizer
from videollm.common.command import ended
from videollm.common.config import override, read_yaml
from videollm.training.assemble import assemble, read_settings

CONFIG = Path(__file__).resolve().parents[1] / "configs/tiny/distime.yaml"
QUESTIONS_A_CLIP = 3  # at least: one an event, a dense caption, a choice


def make(folder: Path, questions: int) -> None:
    """Write clips, ``questions`` questions and the model."""
    clips = -(-questions // QUESTIONS_A_CLIP)
    write_dataset(folder / "clips", {"test": clips}, workers=1)
    lines = (folder / "clips/test.jsonl").read_text(encoding="utf-8").splitlines()[:questions]
    (folder / "questions.jsonl").write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    if (folder / "model").is_dir():
        return
    texts = (turn["value"] for line in map(json.loads, lines) for turn in line["conversations"])
    build_word_tokenizer(texts).save_pretrained(folder / "tokenizer")
    untrained = ("vision_weights=null", "word_vectors=null", "feature_mean=null", f"tokenizer={folder / 'tokenizer'}")
    values = override(read_yaml(CONFIG), [*(f"model.{key}" for key in untrained), "train.deepspeed=null"])
    assemble(read_settings(values)).save(folder / "model")


def main() -> None:
    """The command."""
    parser = command_line(__doc__, questions=200)
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    make(args.folder, args.questions)


if __name__ == "__main__":
    sys.exit(ended(main))
