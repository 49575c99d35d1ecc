"""The demonstration's commands: what is run with which options. How they run is the quickstart's (its stages.py).

Every stage goes on where an earlier run of it ended: archives, models, clips and towers that are whole stay, training
resumes from its last checkpoint, and answers that are there are not asked for again.
"""

import argparse
from collections.abc import Mapping, Sequence

from quickstart.stages import Stage, command
from realweights.align import QUESTION
from realweights.clips import SPLITS
from videollm.common.config import override, read_yaml
from videollm.training.assemble import read_settings
from videollm.training.settings import TrainSettings

HEADS = ("evidence", "distime", "text")
GRPO = "evidence_grpo"  # how the evidence head's model goes on: on its own answers
COMPUTED = ("generate.", "model.attention=", "train.precision=")  # keys of how, not what, it learns: GRPO's too
ASKED = ("test", "unseen", "wording")
# CPU-seconds of one core (docs/realweights.md): a clip, a frame of it in the tower, one drawn for the alignment and in
# the tower, an answer, a question in training.
CLIP_S, FRAME_S, VIEW_S, ANSWER_S = 0.1, 0.016, 0.013, 0.13
ITEM_S = {"evidence": 0.57, "distime": 0.67, "text": 0.75, GRPO: 1.9}
TIMES = "times.safetensors"  # the start of DisTime's head
FRAMES = 32  # of a clip, as in configs/realweights


def prepare_stages(args: argparse.Namespace) -> list[Stage]:
    """The language model, the clips, the tower and the start of DisTime's head, one after the other."""
    out, packages, seed = args.output, args.packages, ("--seed", args.seed)
    language = ("--gguf", packages / "language", "--output", out / "language", "--reader", packages / "gguf")
    counts = [f"--{split}={getattr(args, split)}" for split in SPLITS]
    clips = ("--packages", packages, "--output", out / "data", *counts, *seed)
    sizes = ("--size", args.size, "--views", args.views, "--steps", args.align_steps)
    tower = ("--packages", packages, "--language", out / "language", "--output", out / "tower", *sizes, *seed)
    jobs = {
        "convert language model": ("realweights.language", *language),
        "make clips": ("realweights.clips", *clips),
        "align tower": ("realweights.align", *tower),
    }
    if "distime" in args.heads:
        times = ("--language", out / "language", "--output", out / TIMES, *seed)
        jobs["say times in words"] = ("realweights.times", *times)
    return [stage(args, name, command(*words)) for name, words in jobs.items()]


def stage(args: argparse.Namespace, name: str, words: list[str]) -> Stage:
    """A command with its log."""
    return Stage(name, words, args.output / f"logs/{name.replace(' ', '_')}.txt")


def runs(heads: Sequence[str]) -> list[str]:
    """What is trained and answers: the heads, and the evidence head's model after reinforcement learning."""
    return [*heads, *[GRPO] * ("evidence" in heads)]


def overrides(args: argparse.Namespace, run: str) -> list[str]:
    """The user's key=value for a training: rates, steps and adapters are the heads', not those of GRPO after them."""
    return [given for given in args.overrides if run != GRPO or given.startswith(COMPUTED)]


def train_settings(args: argparse.Namespace, run: str) -> TrainSettings:
    """How a run is trained, by its config and the user's key=value."""
    return read_settings(override(read_yaml(args.configs / f"{run}.yaml"), overrides(args, run))).train


def train_stage(args: argparse.Namespace, run: str) -> Stage:
    """Train one head, or go on with it."""
    out = args.output
    values = {
        "data.train": f"[{out / 'data/train.jsonl'}]",
        "data.validation": f"[{out / 'data/val.jsonl'}]",
        "data.videos": out / "data/videos",
        "data.features": out / "features",
        "train.output": out / run,
        "train.seed": args.seed,
    }
    if run == GRPO:
        values["model.checkpoint"] = out / "evidence/final"
    else:
        values |= {
            "model.vision_weights": out / "tower",
            "model.vision.image_size": args.size,
            "model.language_weights": out / "language",
            "model.question_tokenizer": out / "tower" / QUESTION,
            "data.preprocess.size": args.size,
        }
    if run == "distime":
        values["model.head_weights"] = out / TIMES
    if args.steps:
        values["train.steps"] = args.steps
    placed = [f"{key}={value}" for key, value in values.items()]
    words = ("--config", args.configs / f"{run}.yaml", *placed, *overrides(args, run))
    return stage(args, f"train {run}", command("videollm.train", *words, processes=args.processes))


def answer_stage(args: argparse.Namespace, run: str) -> Stage:
    """Answer the questions of all splits by free generation, into one file, in the precision of training."""
    out = args.output
    files = ("--model", out / run / "final", "--videos", out / "data/videos", "--output", out / run / "answers.jsonl")
    words = (*files, "--annotations", *(out / f"data/{split}.jsonl" for split in ASKED), "--batch-size", 16)
    words += ("--precision", train_settings(args, run).precision)
    return stage(args, f"answer {run}", command("videollm.infer", *words, processes=args.processes))


def costs(args: argparse.Namespace, questions: Mapping[str, int]) -> dict[str, float]:
    """What each stage will cost a core, in seconds, by its name; ``questions`` that each run is trained with."""
    clips = {split: getattr(args, split) for split in SPLITS}
    asked = sum(clips[split] for split in ASKED)
    features = (clips["train"] + clips["val"]) * FRAMES * FRAME_S / len(args.heads)  # stored by whichever comes first
    return {
        "convert language model": 20,
        "make clips": sum(clips.values()) * CLIP_S,
        "align tower": 840 * args.views * VIEW_S + 57,
        "say times in words": 30,
        **{f"train {run}": number * ITEM_S[run] + features * (run != GRPO) for run, number in questions.items()},
        **{f"answer {run}": asked * (FRAMES * FRAME_S + 4 * ANSWER_S) for run in questions},
    }
