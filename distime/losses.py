"""The numbers behind the time token: gaussians over time bins, distribution focal loss, one-dimensional DIoU.

Pure functions of tensors. Bins run from 0 (start of the video) to R (its end), K = R + 1 of them. They know no video,
no batch and no head; what a value is averaged over is the caller's business.
"""

import torch
from torch import Tensor

EPS = 1e-6


def gaussian(peaks: Tensor, reg_max: int, sigma: float, bf16: bool = False) -> Tensor:
    """Normalised gaussian over the bins 0..reg_max around each peak. [...] bins -> [..., K].

    ``bf16`` rounds after every operation, beginning with the peaks, as the published code does; the result is then
    bfloat16, else float32.
    """
    dtype = torch.bfloat16 if bf16 else torch.float32
    bins = torch.arange(reg_max + 1, device=peaks.device).to(dtype)  # [K]
    distance = (bins - peaks.to(dtype).unsqueeze(-1)) / sigma
    density = torch.exp(-0.5 * distance**2)
    return density / density.sum(-1, keepdim=True)


def dfl(logits: Tensor, target: Tensor) -> Tensor:
    """Distribution focal loss: cross-entropy with the two bins around each target, by their nearness.

    logits [M, K], target [M] in bins -> [M] float32. A target of exactly R falls in the last pair of bins.
    """
    low = target.long().clamp(0, logits.shape[-1] - 2)  # [M]
    log_p = logits.float().log_softmax(-1)
    log_low, log_high = log_p.gather(1, torch.stack([low, low + 1], -1)).unbind(-1)
    return (target - (low + 1)) * log_low - (target - low) * log_high


def diou(pred: Tensor, target: Tensor, ordered: bool) -> Tensor:
    """1 - IoU + (distance of the centres / length of the common hull)^2. [N, 2] seconds each -> [N] float32.

    ``ordered`` puts the smaller predicted end first; without it lengths are signed, as published (docs/distime.md,
    surprise 3). An end that is not a number counts as 0 s.
    """
    pred, target = (torch.where(ends.isnan(), 0.0, ends.float()) for ends in (pred, target))
    if ordered:
        pred = torch.stack([pred.amin(-1), pred.amax(-1)], -1)
    (start, end), (true_start, true_end) = pred.unbind(-1), target.unbind(-1)
    overlap = (torch.minimum(end, true_end) - torch.maximum(start, true_start)).clamp(min=0)
    union = (end - start) + (true_end - true_start) - overlap
    hull = torch.maximum(end, true_end) - torch.minimum(start, true_start)
    centres = (start + end) / 2 - (true_start + true_end) / 2
    return 1 - overlap / union.clamp(min=EPS) + (centres / hull.clamp(min=EPS)) ** 2
