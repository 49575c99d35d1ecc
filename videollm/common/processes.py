"""The processes of one command, as a launcher starts them, and how one of them ends: alone, out of memory, by a peer.

In inference they share a few numbers over gloo and otherwise work alone; a rank that has died is noticed when the
others next speak to each other. Knows nothing of models and files.
"""

import contextlib
import os
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from videollm.common.config import UserError

LONGEST = timedelta(days=7)  # that one share may take longer than another


def this_rank() -> int:
    """Which of its processes this one is, as the launcher says; 0 without one."""
    return int(os.environ.get("RANK", 0))


def local_rank() -> int:
    """Which of the processes on this machine this one is."""
    return int(os.environ.get("LOCAL_RANK", 0))


def world_size() -> int:
    """Processes of this command, as the launcher says."""
    return int(os.environ.get("WORLD_SIZE", 1))


def lost_peer(error: BaseException) -> bool:
    """Whether a collective failed because another process has ended, which then has the reason to tell."""
    said = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process exited")
    return world_size() > 1 and any(words in str(error) for words in said)


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, of a GPU or of the machine, in any of torch's ways of saying so."""
    said = ("can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(words in str(error) for words in said)


class RankError(UserError, RuntimeError):
    """Another process of the command is gone."""


@contextlib.contextmanager
def _noticed() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # gloo: the connection was closed by the peer
        raise RankError(
            f"another process of this command has ended ({str(error).splitlines()[0][:200]}); every answer so far is "
            "kept: run the same command again, with any number of processes"
        ) from None


class Ranks:
    """This process among those of the command; alone without a launcher's ``RANK`` and ``WORLD_SIZE``."""

    def __init__(self):
        self.rank, self.world = this_rank(), world_size()
        self.started = self.world > 1 and not dist.is_initialized()
        if self.started:
            with _noticed():
                dist.init_process_group("gloo", timeout=LONGEST)

    def told(self, value: Any) -> Any:
        """What rank 0 gives as ``value``."""
        if self.world == 1:
            return value
        found = [value]
        with _noticed():
            dist.broadcast_object_list(found)
        return found[0]

    def collected(self, value: Any) -> list[Any]:
        """Every rank's ``value``, once all have come here."""
        if self.world == 1:
            return [value]
        found: list[Any] = [None] * self.world
        with _noticed():
            dist.all_gather_object(found, value)
        return found

    def close(self) -> None:
        """Leave the group, if it was made here."""
        if self.started:
            dist.destroy_process_group()
