"""Runs of frames: which are best, how likely each is, what they are in seconds, and the mean of what they show.

In: similarities, states and times of frames. Out: the first and the last frame of a run, N of them at a time, and what
follows from it. They know no head, no token and no loss.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from videollm.heads import FrameBatch

NEVER = -1e30  # a log-weight of nothing; infinity has no gradient


def ordered(ends: Tensor) -> Tensor:
    """[..., 2] with the smaller end first."""
    return torch.stack([ends.amin(-1), ends.amax(-1)], -1)


def frame_position(seconds: Tensor, owner: Tensor, frames: FrameBatch) -> Tensor:
    """Times as fractional frame indices, interpolated between the true frame times and extrapolated beyond them.

    seconds [N, 2], owner [N] -> [N, 2] float32. A video of one frame counts one frame a second.
    """
    mask = frames.mask[owner]  # [N, F]
    times = frames.times_s[owner].masked_fill(~mask, torch.inf)  # [N, F]
    last = mask.sum(-1, keepdim=True) - 1  # [N, 1]
    after = torch.searchsorted(times, seconds.to(times.dtype).contiguous(), right=True)  # [N, 2]
    after = torch.minimum(after.clamp(min=1), last).clamp(min=0)
    before = (after - 1).clamp(min=0)
    time_before, time_after = times.gather(1, before), times.gather(1, after)
    gap = torch.where(time_after > time_before, time_after - time_before, 1.0)
    return before + (seconds - time_before) / gap


def mean_over_run(states: Tensor, run: Tensor, owner: Tensor, mask: Tensor) -> Tensor:
    """Mean of ``states`` [B, F, D] over frames run[:, 0]..run[:, 1] (inclusive) of row ``owner``. [N, D] float32."""
    frame = torch.arange(mask.shape[1], device=mask.device)
    inside = (frame >= run[:, :1]) & (frame <= run[:, 1:]) & mask[owner]  # [N, F]
    weight = inside / inside.sum(-1, keepdim=True).clamp(min=1)
    own = owner[:, None] == torch.arange(mask.shape[0], device=owner.device)  # [N, B]
    blocks = own.unsqueeze(-1) * weight.unsqueeze(1)  # [N, B, F]: one matmul, no [N, F, D] copy of the states
    with torch.autocast(states.device.type, enabled=False):
        return blocks.flatten(1) @ states.float().flatten(0, 1)


def best_run(similarity: Tensor, mask: Tensor, keep_ratio: float) -> tuple[Tensor, Tensor]:
    """The run of frames with the highest mean similarity, among frames of at least keep_ratio x the peak.

    Equally good runs give one interval from the first one's start to the last one's end; a vector without a peak
    (NaN) gives the whole video with score 0.

    Args:
        similarity: [N, F], at least 0.
        mask: [N, F] bool, real frames.

    Returns:
        First and last frame [N, 2] int64, mean similarity [N] float32.
    """
    values = similarity.float().masked_fill(~mask, 0)
    kept = mask & (values >= keep_ratio * values.amax(-1, keepdim=True))  # [N, F]
    starts = kept & ~pad(kept[:, :-1], (1, 0))
    run = starts.cumsum(-1)  # [N, F], the run each kept frame belongs to, from 1; 0 is before the first one
    # In float64 these sums are exact, so that equal runs tie whatever the order of summation.
    zeros = values.new_zeros(len(values), values.shape[1] + 1, dtype=torch.float64)
    total = zeros.scatter_add(1, run, torch.where(kept, values, 0).double())
    length = zeros.scatter_add(1, run, kept.double())
    mean = (total / length.clamp(min=1)).float()  # [N, F + 1], by run
    best = mean.amax(-1, keepdim=True)
    chosen = kept & (mean.gather(1, run) == best)
    found = chosen.any(-1, keepdim=True)
    chosen = torch.where(found, chosen, mask).int()
    first, last = chosen.argmax(-1), chosen.cumsum(-1).argmax(-1)  # of the highest values the first one
    return torch.stack([first, last], -1), torch.where(found, best, 0).squeeze(-1)


def run_weights(logits: Tensor, mask: Tensor, temperature: float | Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What the log-weights of all runs of frames consist of: a run a..b weighs ``starts[a] + ends[b]``, a <= b.

    Cumulative sums, in float64: the sums of a long video are large, and their differences are what counts.

    Args:
        logits: [N, F].
        mask: [N, F] bool, real frames; a row without any counts as one of a single frame.
        temperature: divides the logits; a number, or one of each row [N, 1].

    Returns:
        ``starts`` and ``ends`` [N, F] float64, and the log of the summed weights of all runs that begin at a frame
        [N, F]; ``NEVER`` at frames that are none.
    """
    frame = torch.arange(mask.shape[1], device=mask.device)
    mask = mask | ((frame == 0) & ~mask.any(-1, keepdim=True))
    scaled = torch.where(mask, logits.double() / temperature, 0)
    total = scaled.cumsum(-1)
    starts, ends = scaled - total, total.masked_fill(~mask, NEVER)
    behind = ends.flip(-1).logcumsumexp(-1).flip(-1)  # [N, F], of all ends from this frame on
    return starts, ends, (starts + behind).masked_fill(~mask, NEVER)


def run_entropy(logits: Tensor, mask: Tensor, temperature: float) -> Tensor:
    """Entropy of the distribution of all runs of frames, in nats. [N, F], [N, F] -> [N] float64.

    The log of the summed weights less the mean log-weight, which is how fast that log grows with the weights' scale.
    """
    with torch.enable_grad():
        scale = torch.ones(len(logits), 1, dtype=torch.float64, device=logits.device, requires_grad=True)
        total = run_weights(logits.detach(), mask, temperature / scale)[2].logsumexp(-1)
        (mean,) = torch.autograd.grad(total.sum(), scale)
    return total.detach() - mean[:, 0]


def run_seconds(run: Tensor, owner: Tensor, frames: FrameBatch, edges: str) -> Tensor:
    """Frames run[:, 0]..run[:, 1] as [start, end] seconds inside the video. [N, 2] -> [N, 2] float32.

    ``frame_times`` is the first and the last frame's time; ``half_gap`` reaches half way to the neighbouring frames
    (as far again beyond the first and the last frame of the video, and over all of it if it has one frame).
    """
    ends = frames.once(f"ends by {edges}", lambda: frame_ends(frames, edges))  # [B, F, 2]
    return ends[owner].gather(1, run[:, None])[:, 0]


def frame_ends(frames: FrameBatch, edges: str) -> Tensor:
    """Where a run begins whose first frame this is, and where one ends whose last frame it is. [B, F, 2] float32."""
    times, duration = frames.times_s, frames.duration_s[:, None, None]  # [B, F], [B, 1, 1]
    ends = times[:, :, None].expand(-1, -1, 2)
    if edges == "half_gap":
        frame = torch.arange(times.shape[1], device=times.device)[:, None]  # [F, 1]
        last = frames.mask.sum(-1)[:, None, None] - 1  # [B, 1, 1]
        step = 2 * torch.arange(2, device=times.device) - 1  # before the start, after the end
        outside = (frame + step < 0) | (frame + step > last)
        neighbour = torch.where(outside, frame - step, frame + step)  # at the border the gap on the other side counts
        neighbour = torch.minimum(neighbour.clamp(min=0), last.clamp(min=0))  # [B, F, 2]
        gap = (ends - ends.gather(1, neighbour)).abs()
        gap = torch.where(last > 0, gap, 2 * duration)
        ends = ends + step * gap / 2
    return torch.minimum(ends.clamp(min=0), duration)
