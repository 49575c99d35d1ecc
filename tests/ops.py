"""Counts what a step asks of a device: its operations, and its waits. On a CPU, where there is no device to ask.

An operation is a call that reaches torch's dispatcher; views, which move nothing, are left out. A wait is an operation
for whose result the host waits where the tensor is on a GPU (``WAITS``, an index of booleans among them), or a tensor
made of Python's numbers, which is a copy to the device. What never reaches the dispatcher on a CPU is not seen:
``cpu``, ``numpy`` and ``tolist`` of a whole tensor. What is one kernel on CUDA and several operations on a CPU counts
as one (``rms_norm``). Used by the tests that hold steps to a number of both.
"""

import traceback
from collections import Counter

import torch
from torch import Tensor
from torch.library import Library
from torch.utils._python_dispatch import TorchDispatchMode

WAITS = {  # operator -> what waits there
    "aten::_local_scalar_dense": "a value is read: item, bool, int, float",
    "aten::nonzero": "the size of the result depends on values",
    "aten::masked_select": "as nonzero",
    "aten::_unique2": "as nonzero",
    "aten::repeat_interleave": "as nonzero, without output_size",
    "aten::equal": "a value is read",
    "aten::lift_fresh": "a copy to the device: a tensor of Python's numbers",
}
INDEXED = ("aten::index", "aten::index_put", "aten::index_put_")
NO_WORK = {"aten::_unsafe_view", "aten::lift_fresh"}  # beside the operators whose schema says that they are views


class Operations(TorchDispatchMode):
    """``with Operations() as found:`` fills ``found.calls``, by operator, and ``found.waits``, by place in the code."""

    def __init__(self):
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()
        self.kernels: Library | None = None

    def __enter__(self) -> "Operations":
        self.kernels = Library("aten", "IMPL")
        self.kernels.impl("_fused_rms_norm", normed, "CPU")
        self.kernels.impl("_fused_rms_norm_backward", normed_back, "CPU")
        return super().__enter__()

    def __exit__(self, *error) -> None:
        super().__exit__(*error)
        self.kernels._destroy()

    @property
    def total(self) -> int:
        """Operations of all kinds."""
        return self.calls.total()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().split(".")[0]
        if not func.is_view and name not in NO_WORK:
            self.calls[name] += 1
        if name in WAITS or (name in INDEXED and any(is_mask(index) for index in args[1])) or moves(name, args, kwargs):
            self.waits[f"{name.removeprefix('aten::')} in {place()}"] += 1
        return func(*args, **kwargs or {})


def is_mask(index: Tensor | None) -> bool:
    """Whether an index picks by booleans."""
    return index is not None and index.dtype in (torch.bool, torch.uint8)


def moves(name: str, args: tuple, kwargs: dict | None) -> bool:
    """Whether a tensor is copied to another device, and the host waits until it is there."""
    device, given = (kwargs or {}).get("device"), kwargs or {}
    return name == "aten::_to_copy" and device not in (None, args[0].device) and not given.get("non_blocking")


def place() -> str:
    """File and line of the innermost call that is neither torch's nor this file's."""
    calls = [c for c in traceback.extract_stack() if "/torch/" not in c.filename and c.filename != __file__]
    return f"{'/'.join(calls[-1].filename.split('/')[-2:])}:{calls[-1].lineno}" if calls else "?"


def normed(states: Tensor, _shape: list[int], weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """What CUDA's kernel behind ``rms_norm`` gives: the normed states, and 1 / their root mean square in float32."""
    inverse = (states.float().square().mean(-1, keepdim=True) + eps).rsqrt()
    return (states.float() * inverse * weight).to(states.dtype), inverse


def normed_back(
    grad: Tensor, states: Tensor, _shape: list[int], inverse: Tensor, weight: Tensor, _wanted: list[bool]
) -> tuple[Tensor, Tensor]:
    """The gradients of states and weight."""
    unit, own = states.float() * inverse, grad.float() * weight
    of_states = inverse * (own - unit * (own * unit).mean(-1, keepdim=True))
    return of_states.to(states.dtype), (grad.float() * unit).flatten(0, -2).sum(0).to(weight.dtype)
