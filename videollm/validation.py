"""Validation while a model trains: held-out questions answered by free generation, held-out pairs compared.

In: the model as it is, records that no training saw. Out: ``{metric: value}``, the same on every rank. Teacher forcing
would show a head the true frames, so spans are scored as they are generated. Writes no file.
"""

import logging
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from videollm.batches.dataset import VideoDataset
from videollm.batches.reader import VisualReader
from videollm.checkpoint.bundle import Bundle
from videollm.data.record import Record
from videollm.model.objective import Objective

logger = logging.getLogger(__name__)


@torch.no_grad()
def held_out(
    bundle: Bundle, objective: Objective, records: Sequence[Record], reader: VisualReader, size: int
) -> dict[str, float]:
    """The objective's logged numbers over all answers of ``records``; each rank reads its share, ``size`` at a time.

    Records that cannot be read are named in a warning and left out.
    """
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    dataset = VideoDataset(
        records[rank::world], reader, bundle.encoder(), max_length=bundle.config.context_length,
        rejected=objective.rejected and "all",
    )  # fmt: skip
    collate, model = bundle.collator(rank=objective.rejected is not None), bundle.model
    device = next(model.parameters()).device
    total = torch.zeros(2, len(objective.logged), dtype=torch.float64, device=device)  # sums, counts
    for start in range(0, len(dataset), size):
        batch = collate([dataset[i] for i in range(start, min(start + size, len(dataset)))])
        for bad in batch["bad"]:
            logger.warning("validation leaves out %s", bad)
        batch = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}
        sums, counts = objective.sums(model, batch, model.read(batch))[1], objective.counts(model, batch)
        total += torch.stack([torch.stack([of[n].double() for n in objective.logged]) for of in (sums, counts)])
    if dist.is_initialized():
        dist.all_reduce(total)
    return dict(zip(objective.logged, (total[0] / total[1]).tolist(), strict=True))
