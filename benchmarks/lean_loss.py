"""What logits for supervised places only save: one step of the loss against full logits, in one process, in pairs.

1,240 tokens of which 60 are supervised, a vocabulary of 150,000. Both ways give the same loss and the same
gradients, which is checked first. Time is that of the cores, and the ratio that of the medians of interleaved
repetitions; memory is the peak beyond what is there before the step (states, weights and their gradients), each way in
a process of its own.

    python -m benchmarks.lean_loss --dtype bfloat16 --json lean_loss.json
"""

import argparse
import resource
import statistics
import sys
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.rounds import command_line, rounds, run_alone, write_json
from videollm.common.command import ended
from videollm.model.loss import supervised_cross_entropy

TARGET_TIME, TARGET_MEMORY = 4.0, 0.25


class Output(nn.Module):
    """A language model of nothing but its output layer, as the loss asks it."""

    config = None

    def __init__(self, width: int, vocabulary: int, dtype: torch.dtype):
        super().__init__()
        self.lm_head = nn.Linear(width, vocabulary, bias=False, dtype=dtype)

    def get_output_embeddings(self) -> nn.Module:
        """The output layer."""
        return self.lm_head


def full_logits(model: Output, states: Tensor, index: Tensor, labels: Tensor) -> Tensor:
    """As the official code does: logits of all places, shifted against labels that are -100 but where supervised."""
    every = torch.full((len(states),), -100).index_copy(0, index + 1, labels)
    logits = model.lm_head(states).float()
    return cross_entropy(logits[:-1].contiguous(), every[1:], reduction="sum")


def lean(model: Output, states: Tensor, index: Tensor, labels: Tensor) -> Tensor:
    """Ours."""
    return supervised_cross_entropy(model, states, index, labels, torch.ones(len(index)))


WAYS = {"full": full_logits, "lean": lean}


def case(args: argparse.Namespace) -> tuple[Output, Tensor, Tensor, Tensor]:
    """Model, states [L, D], supervised places [M] and their labels [M]."""
    torch.manual_seed(0)
    dtype = getattr(torch, args.dtype)
    model = Output(args.width, args.vocabulary, dtype)
    states = torch.randn(args.tokens, args.width, dtype=dtype, requires_grad=True)
    index = torch.arange(args.tokens - args.supervised - 1, args.tokens - 1)
    return model, states, index, torch.randint(args.vocabulary, (args.supervised,))


def step(way: str, model: Output, states: Tensor, index: Tensor, labels: Tensor) -> float:
    """One forward and backward pass; the loss. Gradients are set to 0 in place, as an optimiser leaves them."""
    model.zero_grad(set_to_none=False)
    states.grad = None
    loss = WAYS[way](model, states, index, labels)
    loss.backward()
    return loss.item()


def extra_memory(args: argparse.Namespace, way: str) -> float:
    """MiB that a step needs beyond what is there, in a process of its own, since peaks are never forgotten."""
    sizes = [f"--{name}={getattr(args, name)}" for name in ("tokens", "supervised", "vocabulary", "width", "dtype")]
    command = [sys.executable, "-m", "benchmarks.lean_loss", "--memory", way, *sizes]
    return float(run_alone(command))


def measure_memory(args: argparse.Namespace) -> None:
    """Print the MiB that one step of ``args.memory`` adds to the peak."""
    model, *rest = case(args)
    model.lm_head.weight.grad = torch.zeros_like(model.lm_head.weight).fill_(0.0)  # touched: the step only adds to it
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB, the largest resident size so far
    step(args.memory, model, *rest)
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)


def assert_equal(args: argparse.Namespace) -> None:
    """Both ways: the same loss, and the same gradients of states and weights."""
    found = []
    for way in WAYS:
        model, states, index, labels = case(args)
        loss = step(way, model, states, index, labels)
        found.append((torch.tensor(loss), states.grad, model.lm_head.weight.grad))
    exact = args.dtype == "float32"
    torch.testing.assert_close(*found, rtol=1e-4 if exact else 0.02, atol=1e-5 if exact else 1e-3)


def main() -> None:
    """Check, measure and print."""
    width = (896, "of the hidden states (896: the 1B model)")
    sizes = {"tokens": 1240, "supervised": 60, "vocabulary": 150_000, "width": width, "repeats": 5}
    parser = command_line(__doc__, dtype="float32", file=True, **sizes)
    parser.add_argument("--memory", choices=list(WAYS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory:
        return measure_memory(args)
    memory = {way: extra_memory(args, way) for way in WAYS}  # first: a child starts with the peak of its parent
    assert_equal(args)
    given = case(args)
    times = rounds({way: partial(step, way, *given) for way in WAYS}, args.repeats, "cpu")
    seconds = {way: statistics.median(of) for way, of in times.items()}
    ratio, share = seconds["full"] / seconds["lean"], memory["lean"] / memory["full"]
    print("same loss, same gradients")
    for way in WAYS:
        print(f"{way:5} {seconds[way]:.2f} s, {memory[way]:.0f} MiB beyond weights and their gradients, {args.dtype}")
    told = f"lean is {ratio:.1f}x faster (target {TARGET_TIME:g}x)"
    print(f"{told} in {share:.2f} of the memory (target {TARGET_MEMORY})")
    found = {"seconds": seconds, "extra_mib": memory, "speedup": ratio, "memory_share": share}
    write_json(args.json, found | vars(args))


if __name__ == "__main__":
    sys.exit(ended(main))
