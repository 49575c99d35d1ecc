"""How near a step is to the least that it can take: the same step beside its bare matrix products, in turns.

The steps are those of benchmarks/d2vlm_step.py and benchmarks/distime_step.py, and of a Q-Former that learns. A step
runs once while shapes, strides and types of all its products are noted, those of linear layers forward and backward and
those within attention (two forward, five backward); then just these products are computed, on tensors that are there
already. What a step takes beyond them is everything else: norms, softmax, losses, copies, Python. Convolutions are not
counted.

    python -m benchmarks.floor --layers 8 --width 512 --repeats 5 --json out.json
"""

import argparse
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import d2vlm_step, distime_step, vision_cost
from benchmarks.rounds import command_line, ratio, rounds, write_json
from videollm.common.command import ended

Operand = tuple[tuple[int, ...], tuple[int, ...], torch.dtype]  # size, strides
PLAIN = {"mm": 0, "bmm": 0, "addmm": 1, "baddbmm": 1}  # where the first of the two operands stands


def operand(tensor: Tensor) -> Operand:
    """What is to be made again of a tensor."""
    return tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype


def dense(dtype: torch.dtype, *size: int) -> Operand:
    """A contiguous operand."""
    return operand(torch.empty(size, dtype=dtype, device="meta"))


class Products(TorchDispatchMode):
    """While active, counts pairs of operands that are multiplied, by shape, strides and type."""

    def __init__(self):
        super().__init__()
        self.found: Counter[tuple[Operand, Operand]] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("aten::")
        if name in PLAIN:
            first = PLAIN[name]
            self.found[operand(args[first]), operand(args[first + 1])] += 1
        elif "scaled_dot_product" in name:
            backward = "backward" in name
            self.found.update(attention(*args[backward : backward + 2], backward=backward))
        return func(*args, **(kwargs or {}))


def attention(query: Tensor, key: Tensor, backward: bool) -> Iterable[tuple[Operand, Operand]]:
    """The products within attention of ``query`` [B, H, L, D] and ``key`` [B, H', S, D], as batches of matrices."""
    (rows, heads, length, width), seen, kind = query.shape, key.shape[2], query.dtype
    batch = rows * heads
    scores = dense(kind, batch, length, width), dense(kind, batch, width, seen)  # q k, and in backward of p
    values = dense(kind, batch, length, seen), dense(kind, batch, seen, width)  # p v, and the gradient of q
    keys = dense(kind, batch, seen, length), dense(kind, batch, length, width)  # gradients of k and v
    return [scores, scores, values, keys, keys] if backward else [scores, values]


def products_of(step: Callable[[], object]) -> Counter[tuple[Operand, Operand]]:
    """All products of a step."""
    with Products() as seen:
        step()
    return seen.found


def bare(found: Counter[tuple[Operand, Operand]], device: str) -> Callable[[], None]:
    """A function that computes just these products."""
    pairs = []
    for (one, other), count in found.items():
        operands = [torch.empty_strided(*o[:2], dtype=o[2], device=device).fill_(0.5) for o in (one, other)]
        pairs.append((*operands, count))

    def compute() -> None:
        for a, b, count in pairs:
            for _ in range(count):
                torch.matmul(a, b)

    return compute


def operations(found: Counter[tuple[Operand, Operand]]) -> int:
    """Multiplications and additions of all products."""
    total = 0
    for (one, other), count in found.items():
        size = 1
        for side in one[0]:
            size *= side
        total += 2 * size * other[0][-1] * count
    return total


def steps_of(args: argparse.Namespace) -> dict[str, Callable[[], object]]:
    """The steps that the two scripts measure, by name."""
    found = {}
    for size in (1, args.batch):
        d2vlm = argparse.Namespace(**vars(args) | {"batch": size})
        model, step, _ = d2vlm_step.step_of(d2vlm, d2vlm_step.VideoLLM, "sdpa", size)
        found[f"D2VLM, supervised, batch {size}"] = step
        pairs = d2vlm_step.make_batch(d2vlm, model, d2vlm_step.make_items(d2vlm, 2), rank=True)
        found[f"D2VLM, preference, batch {size}"] = lambda m=model, b=pairs: d2vlm_step.fpo_step(m, b, apart=False)
    distime = argparse.Namespace(**vars(args) | {"dtype": "bfloat16"})
    model = distime_step.make_model(distime)
    for size in (1, args.batch):
        batch = distime_step.make_batch(distime, [distime_step.make_item(distime, seed) for seed in range(size)])
        found[f"DisTime, features stored, batch {size}"] = lambda m=model, b=batch: distime_step.train_step(m, [b])
    compressor, features = vision_cost.compressor_of(384, 4, 704), torch.randn(16, 256, 704)
    compressor, features = compressor.to(args.device), features.to(args.device)
    for count in (1, 4):
        found[f"Q-Former, {count} questions"] = lambda n=count: vision_cost.read(compressor, features, n)
    return found


def main() -> None:
    """Measure and print."""
    parser = command_line(
        __doc__, layers=(8, "of D2VLM's language model"), width=(512, "of D2VLM's"), vocabulary=2004, batch=8,
        scale=(8, "DisTime's depth and vocabulary are cut by so much"), frames=(2, "of DisTime"), repeats=5,
        device="cuda" if torch.cuda.is_available() else "cpu", dtype="float32", file=True,
    )  # fmt: skip
    args, told = parser.parse_args(), {}
    for name, step in steps_of(args).items():
        found = products_of(step)
        times = rounds({"step": step, "products": bare(found, args.device)}, args.repeats, args.device)
        above = ratio(times, "step", "products")
        told[name] = {"seconds": times, "ratio": above, "products": found.total(), "operations": operations(found)}
        spent, least = (1000 * statistics.median(times[kind]) for kind in ("step", "products"))
        low, high = above["quartiles"]
        print(
            f"{name}: {spent:.0f} ms, its {found.total()} products alone {least:.0f} ms: {above['median']:.2f}x "
            f"(quartiles {low:.2f}-{high:.2f})",
            flush=True,
        )
    write_json(args.json, {"settings": vars(args) | {"json": None}, "steps": told})


if __name__ == "__main__":
    sys.exit(ended(main))
