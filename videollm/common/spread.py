"""A model that gets its weights one parameter at a time, and under ZeRO-3 spreads each over the ranks at once.

In: modules without weights (``without_weights``) and tensors by name, or a model that is there. Out: the model with
weights; a spread one as DeepSpeed's engine takes it, each rank with its share of every parameter. Of a spread parameter
``numel()`` is 0 and ``elements`` tells the size. A rank never holds more than its shares and one parameter. It knows
no files and no settings.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
import torch.distributed as dist
from accelerate import init_empty_weights
from torch import Tensor, nn

from videollm.common.config import UserError
from videollm.common.processes import meet


@contextmanager
def without_weights() -> Iterator[None]:
    """Modules that are built here have their parameters on the meta device and real buffers; no number is drawn.

    Parameters that modules share come apart: ``tie_weights`` of transformers' models puts them together again.
    """
    with torch.random.fork_rng(devices=[]), init_empty_weights(include_buffers=False):
        yield


def elements(parameter: nn.Parameter) -> int:
    """How many numbers a parameter has, over all ranks."""
    return getattr(parameter, "ds_numel", parameter.numel())


class Spread:
    """Spreads parameters over the ranks, as ZeRO-3 does; starts the process group. For one model.

    Args:
        zero: DeepSpeed's config, without "auto" where it needs a number.
        dtype: of the spread parameters.
        whole: parameters whose names begin so stay whole, in float32, until ``rest``; None for none.
    """

    def __init__(self, zero: dict, dtype: torch.dtype, whole: str | None = None):
        import deepspeed  # takes seconds, and only ZeRO-3 needs it

        meet()
        deepspeed.init_distributed(auto_mpi_discovery=False)
        self.zero, self.dtype, self.whole = zero, dtype, whole
        self.room = torch.empty(0, dtype=dtype)  # for the parameter that is read
        self.failed: Exception | None = None  # what could not be read here; the others wait for a share all the same
        self.first: nn.Parameter | None = None  # of those that are spread: it can spread others

    def keeps(self, name: str) -> bool:
        """Whether the parameter ``name`` stays whole for now."""
        return self.whole is not None and name.startswith(self.whole)

    def parameter(self, name: str, values: Mapping[str, Tensor], empty: nn.Parameter) -> nn.Parameter:
        """The parameter ``name`` in place of ``empty``; rank 0 reads it for all. ``end`` raises what went wrong."""
        if self.keeps(name):
            value = torch.empty(empty.shape)
            self._read(value, values, name)
            return nn.Parameter(value, empty.requires_grad)
        # One place for all in turn: tensors of many sizes, made and freed between the shares, would leave holes.
        if empty.numel() > self.room.numel():
            self.room = torch.empty(empty.numel(), dtype=self.dtype)
        value = self.room[: empty.numel()].view(empty.shape)
        if dist.get_rank() == 0:
            self._read(value, values, name)
        made = nn.Parameter(value, empty.requires_grad)
        self._spread(made)
        return made

    def _read(self, value: Tensor, values: Mapping[str, Tensor], name: str) -> None:
        try:
            if self.failed is None:
                value.copy_(values[name])
        except (UserError, OSError) as error:
            self.failed = error

    def end(self) -> None:
        """All ranks have been through all parameters; raises what one of them could not read."""
        if self.failed is not None:
            raise self.failed
        meet()

    def rest(self, model: nn.Module, finished: bool = False) -> None:
        """Spread what of ``model`` is whole yet, as rank 0 has it, and move its buffers to where it trains.

        All of it, if ``finished``; else without what is to stay ``whole``.
        """
        meet()
        self.whole, self.room = None if finished else self.whole, self.room.new_empty(0)
        for name, parameter in model.named_parameters():
            if not self.keeps(name) and not hasattr(parameter, "ds_id"):
                parameter.data = parameter.data.to(self.dtype)
                self._spread(parameter)
        for buffer in model.buffers():
            buffer.data = buffer.data.to(self.first.device)

    def _spread(self, parameter: nn.Parameter) -> None:
        """Leave of ``parameter`` this rank's share."""
        import deepspeed

        if self.first is None:
            deepspeed.zero.Init(module=nn.ParameterList([parameter]), config_dict_or_path=self.zero)
            self.first = parameter
        else:
            self.first.convert_to_zero_parameters([parameter])


def fill(model: nn.Module, values: Mapping[str, Tensor], spread: Spread | None = None) -> None:
    """Give ``model`` the weights ``values``, and spread them if asked; in its own precision otherwise.

    Each is read once, when its turn comes. A parameter that has weights stays as it is; one for which there are none
    gets arbitrary ones.
    """
    places: dict[nn.Parameter, list[tuple[nn.Module, str, str]]] = {}
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(prefix, recurse=False):
            places.setdefault(parameter, []).append((module, name.rpartition(".")[2], name))
    if spread is not None:
        meet()
    for empty, at in places.items():
        if not empty.is_meta:
            continue
        name = at[0][2]
        if name not in values:
            made = nn.Parameter(torch.empty(empty.shape), empty.requires_grad)
        elif spread is not None:
            made = spread.parameter(name, values, empty)
        else:
            made = nn.Parameter(values[name].to(empty.dtype, copy=True), empty.requires_grad)
        for module, leaf, _ in at:
            setattr(module, leaf, made)
    if spread is not None:
        spread.end()
    parameters = {name for at in places.values() for *_, name in at}
    for name in model.state_dict().keys() & values.keys() - parameters:
        model.get_buffer(name).copy_(values[name])


def misfits(model: nn.Module, values: Mapping[str, Tensor]) -> list[str]:
    """Names that only one of the two has, or that have another shape; of a parameter with two names one is enough."""
    state = model.state_dict()
    known = {name for name, _ in model.named_parameters()} | {name for name, _ in model.named_buffers()}
    missing = (state.keys() & known) - values.keys()
    other = {name for name in state.keys() & values.keys() if values[name].shape != state[name].shape}
    return sorted(missing | (values.keys() - state.keys()) | other)
