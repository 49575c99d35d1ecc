"""Batches by cost: which items stand together, so that every batch, on every rank, needs little padding.

In: a ``VideoDataset``, its lengths (lengths.py), and the shape of a batch: a number of items, or a budget of tokens.
Out: an order that depends on seed, epoch and lengths alone, so all ranks have the same and a resumed run goes on in it.
"""

import math
import random
from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler as Order

from videollm.batches.dataset import VideoDataset

POOL = 50  # batches of all ranks among which lengths are sorted; the more, the less padding and the less chance
STEPS = 6  # so many rough lengths of a prefix before it has doubled
SLACK = 1.02  # batches of an epoch, against the fewest that are possible
CHANCE = (0.1, 0.05, 0.02, 0.01, 0.005, 0.0)  # by which lengths are taken for larger or smaller before they are sorted


class LengthGroupedSampler(Order):
    """Indices in an order whose consecutive batches, dealt to the ranks in turn, are of similar length.

    Drawn anew for each epoch of ``dataset``. Within a random pool items are sorted by length and cut into one batch for
    each rank; these then come in random order, the longest first, so that memory runs out at once or not at all.
    """

    def __init__(self, dataset: VideoDataset, lengths: Sequence[int], batch_size: int, ranks: int, seed: int):
        self.dataset, self.lengths, self.seed = dataset, lengths, seed
        self.block = batch_size * ranks

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        rng = random.Random(f"{self.seed}/{self.dataset.epoch}/order")
        order, blocks = list(range(len(self))), []
        rng.shuffle(order)
        for start in range(0, len(order), POOL * self.block):
            pool = sorted(order[start : start + POOL * self.block], key=lambda i: -self.lengths[i])
            blocks += [pool[k : k + self.block] for k in range(0, len(pool), self.block)]
        last = [blocks.pop()] if blocks and len(blocks[-1]) < self.block else []  # a short one would shift all others
        rng.shuffle(blocks)
        longest = max(order, key=self.lengths.__getitem__, default=None)
        blocks.sort(key=lambda block: block[0] != longest)
        return iter([i for block in blocks + last for i in block])


class TokenBudgetBatches(Order):
    """Batches that hold at most ``budget`` tokens with their padding; those of one step on all ranks are alike.

    ``sizes`` [N, 2] are of ``item_sizes``; the collator aligns prefixes (``aligned``) or does not. Only an item that is
    larger than the budget by itself exceeds it. Every epoch of ``dataset`` has each item once, in other batches than
    the last, and as many batches as any other, a multiple of ``ranks``: items are sorted by size with as much chance as
    that number allows, cut where the budget is full, and the fullest batches halved until there are enough. Where that
    takes more batches than there are items, less than one for each rank is empty, which the collator allows.
    """

    def __init__(self, dataset: VideoDataset, sizes: np.ndarray, budget: int, ranks: int, seed: int, aligned: bool):
        self.dataset, self.budget, self.ranks, self.seed = dataset, budget, ranks, seed
        sizes = np.asarray(sizes, np.int64).reshape(-1, 2)
        self.sizes = sizes if aligned else np.stack([0 * sizes[:, 0], sizes.sum(1)], 1)
        fewest = len(self._cut(self._order(np.random.default_rng(seed), 0.0)))
        self.length = math.ceil(min(SLACK * fewest, len(sizes)) / ranks) * ranks

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[list[int]]:
        rng = np.random.default_rng([self.seed, self.dataset.epoch])
        for chance in CHANCE:  # at none it is the order that ``length`` was counted in
            batches = self._cut(self._order(rng, chance))
            if len(batches) <= self.length:
                break
        batches = self._halved(batches)
        costs = [self._places(batch) for batch in batches]
        costliest = costs.index(max(costs)) // self.ranks if costs else 0
        batches += [[]] * (self.length - len(batches))
        steps = rng.permutation(self.length // self.ranks).tolist()
        # The costliest first, so that memory runs out at once or not at all.
        for step in sorted(steps, key=lambda step: step != costliest):
            yield from batches[step * self.ranks : (step + 1) * self.ranks]

    def _order(self, rng: np.random.Generator, chance: float) -> list[int]:
        """All items, the largest first: by prefix, roughly, and then by what stands behind it."""
        prefix, rest = (self.sizes * (1 + chance * (rng.random(self.sizes.shape) - 0.5))).T
        rough = np.ceil(np.log2(np.maximum(prefix, 1)) * STEPS)
        order = rng.permutation(len(rest))
        return order[np.lexsort((-rest[order], -rough[order]))].tolist()

    def _cut(self, order: list[int]) -> list[list[int]]:
        """Items in batches, in this order, each as large as the budget allows."""
        batches: list[list[int]] = []
        prefix = rest = 0
        for item, (p, r) in zip(order, self.sizes[order].tolist(), strict=True):
            wider, longer = max(prefix, p), max(rest, r)
            if not batches or (len(batches[-1]) + 1) * (wider + longer) > self.budget:
                batches.append([])
                wider, longer = p, r
            batches[-1].append(item)
            prefix, rest = wider, longer
        return batches

    def _halved(self, batches: list[list[int]]) -> list[list[int]]:
        """``length`` batches, made by splitting the fullest; fewer only where none of two items is left."""
        while len(batches) < min(self.length, len(self.sizes)):
            lack = self.length - len(batches)
            fullest = sorted((b for b in batches if len(b) > 1), key=self._places, reverse=True)[:lack]
            split = set(map(id, fullest))
            halves = [(b[: len(b) // 2], b[len(b) // 2 :]) if id(b) in split else (b,) for b in batches]
            batches = [half for pair in halves for half in pair]
        return batches

    def _places(self, batch: list[int]) -> int:
        """Tokens of a batch with its padding."""
        return len(batch) * int(self.sizes[batch].max(0).sum())
