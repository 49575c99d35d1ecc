"""What a step of reinforcement learning costs beside a supervised step on as many answers: a ratio, paired.

Needs a folder that the quickstart has made. Both kinds take turns on the same questions: roll-outs, forward and
backward of ``grpo``; and forward and backward of the same answers as labels, behind the same prefixes. Also how much
longer roll-outs take with each answer's prompt computed on its own. Once all parts but the tower train, once the head
alone, for which no step goes back through the language model. A ratio is the median of those of its rounds.

    python -m benchmarks.grpo_step --quickstart runs/quickstart --questions 12 --answers 8 --repeats 5
"""

import argparse
import statistics
import sys
from functools import partial
from pathlib import Path

import torch

from benchmarks.fpo_ablation import ALL_PARTS
from benchmarks.rounds import command_line, seconds
from videollm.batches.batch import Batch
from videollm.batches.dataset import VideoDataset
from videollm.checkpoint import load
from videollm.common.command import ended
from videollm.common.config import build, override, read_yaml
from videollm.data import load_records
from videollm.grpo import GRPO, GRPOOptions
from videollm.grpo.rollout import Questions
from videollm.model.objective import Supervised
from videollm.training.optimizer import set_trainable
from videollm.training.settings import Settings

timed = partial(seconds, device="cpu")  # the time of its cores: others may share the machine


def measure(args: argparse.Namespace, parts: list[str]) -> None:
    """Both kinds of steps where ``parts`` of the config are overridden, and their ratio."""
    bundle = load(args.quickstart / "d2vlm/final")
    model = bundle.model
    given = override(read_yaml("configs/tiny/d2vlm_grpo.yaml"), [f"train.output={args.quickstart}", *parts])
    settings = build(Settings, given)
    set_trainable(model, settings.train)
    objective = GRPO(GRPOOptions(answers=args.answers, show_every=10**9))
    objective.prepare(bundle, settings)
    records = load_records([args.quickstart / "data/train.jsonl"])
    reader = bundle.reader(args.quickstart / "data/videos")
    dataset = VideoDataset(records, reader, bundle.encoder(), max_length=208, answers=False)
    model.train()

    def learn(batch: Batch, of) -> None:
        model.objective = of
        model(batch).loss.backward()
        model.zero_grad(set_to_none=True)

    spent: dict[str, list[float]] = {"roll-outs": [], "its forward and backward": [], "supervised step": []}
    alone = []
    for step in range(1, args.repeats + 1):  # the step's number is no multiple of ``show_every``
        items = objective.rollouts.encoded([dataset[step * args.questions + k] for k in range(args.questions)])
        (batch,) = objective.made([Questions(items)], step)
        spent["roll-outs"].append(timed(lambda items=items, step=step: objective.made([Questions(items)], step)))
        spent["its forward and backward"].append(timed(lambda batch=batch: learn(batch, objective)))
        spent["supervised step"].append(timed(lambda batch=batch: learn(batch, Supervised(None))))
        asked = objective.rollouts.ask([item for item in items for _ in range(args.answers)])
        generate = (bundle.tokenizer, bundle.stop_id, objective.rollouts.options, 1)
        with torch.no_grad():
            alone.append(timed(lambda asked=asked, generate=generate: model.drawn(asked, *generate)))
    for name, values in spent.items():
        print(f"{name}: {statistics.median(values):.3f} s")
    rolled, own, supervised = spent.values()
    ratios = [(r + o) / s for r, o, s in zip(rolled, own, supervised, strict=True)]
    print(f"a step of grpo / a supervised step on as many answers: {statistics.median(ratios):.2f}")
    ratios = [a / r for a, r in zip(alone, rolled, strict=True)]
    print(f"roll-outs with every prompt on its own / with one for all answers: {statistics.median(ratios):.2f}")


def main() -> None:
    """Measure, print."""
    sizes = {"questions": 12, "answers": 8, "repeats": 5}
    args = command_line(__doc__, quickstart=Path("runs/quickstart"), **sizes).parse_args()
    for name, parts in (("all parts but the tower train", ALL_PARTS), ("the head alone trains", [])):
        print(f"{name}:")
        measure(args, parts)


if __name__ == "__main__":
    sys.exit(ended(main))
