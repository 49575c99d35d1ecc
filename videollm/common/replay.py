"""A step that does the same operations on the same tensors again and again: recorded once, then played back.

In: a function without arguments and results, which reads and writes tensors that stay where they are, and a key that
tells which recording holds. On a GPU a recording is a CUDA graph: one launch where the host launched every operation.
Knows no model.
"""

from collections.abc import Callable, Hashable

import torch

Step = Callable[[], None]


def cuda_graph(step: Step) -> Step:
    """Run ``step`` once, as a CUDA graph, and give what runs it again."""
    graph = torch.cuda.CUDAGraph()
    # Threads that read ahead go on: only this one must not allocate pinned memory or wait meanwhile.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        step()
    graph.replay()  # recording alone computes nothing
    return graph.replay


class Replay:
    """``step``, recorded by ``record`` the second time that a key is met: the first time it may make buffers and choose
    kernels. Without ``record`` it just runs."""

    def __init__(self, step: Step, record: Callable[[Step], Step] | None):
        self.step, self.record = step, record
        self.recordings: dict[Hashable, Step | None] = {}

    def __call__(self, key: Hashable) -> None:
        if self.record is None:
            self.step()
        elif key not in self.recordings:
            self.recordings[key] = None
            self.step()
        elif self.recordings[key] is None:
            self.recordings[key] = self.record(self.step)
        else:
            self.recordings[key]()
