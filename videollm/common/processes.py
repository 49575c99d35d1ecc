"""The processes of one command, as a launcher starts them, and how one of them ends: alone, out of memory, by a peer.

They begin together: what one cannot read ends all (``one_fate``). In inference they share a few numbers over gloo and
otherwise work alone; a rank that has died is noticed when the others next speak to each other. Knows nothing of models
and files.
"""

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from datetime import timedelta
from itertools import count
from typing import TYPE_CHECKING, Any

from videollm.common.config import UserError

if TYPE_CHECKING:  # torch is loaded where several processes are, or something went wrong with one
    import torch.distributed as dist

LONGEST = timedelta(days=7)  # that one share may take longer than another
LAST_S = 10.0  # that rank 0 stays until all have heard: what the others read goes with it
AGAIN = "every answer so far is kept: run the same command again, with any number of processes"
MEETING = timedelta(minutes=30)  # that one process may begin later than another


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
    import torch

    said = ("can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(words in str(error) for words in said)


class RankError(UserError, RuntimeError):
    """Another process of the command is gone, or has said why it ends."""


@contextlib.contextmanager
def _noticed(remedy: str) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # the connection was closed by the peer
        gone = f"another process of this command has ended ({str(error).splitlines()[0][:200]})"
        raise RankError(f"{gone}; {remedy}") from None


_meetings = count()
_stores: list["dist.Store"] = []  # at most one, where the processes meet; kept, for rank 0 holds what is in it
_together = False  # within ``one_fate``


@contextlib.contextmanager
def one_fate() -> Iterator[None]:
    """Begin alike or not at all: what ends one process within this block ends all of them, with its message.

    They hear of it at their next ``meet``, at the latest at the end of the block. Else the others would wait for the
    lost one until a launcher ends them, and one on another machine does not know.
    """
    global _together
    if world_size() == 1:
        yield
        return
    import torch.distributed as dist

    if not _stores:  # at the address where process groups meet, too
        with _noticed("start all of them"):
            _stores.append(next(dist.rendezvous("env://", timeout=MEETING))[0])
    _together = True
    try:
        yield
        meet()
    except RankError:
        raise
    except BaseException as error:
        with contextlib.suppress(RankError):
            meet(error)
        raise
    finally:
        _together = False


def meet(error: BaseException | None = None) -> None:
    """Within ``one_fate``, wait for all processes; RankError with the message of one that brings an ``error``.

    To stand before whatever all of them have to come to, so that none waits there for one that has ended.
    """
    if not _together:
        return
    (store,), key, rank, world = _stores, f"videollm/{next(_meetings)}", this_rank(), world_size()
    with _noticed("it tells why"):
        store.set(f"{key}/{rank}", "" if error is None else str(error) or type(error).__name__)
        said = [store.get(f"{key}/{other}").decode() for other in range(world)]
        store.add(f"{key}/heard", 1)
        end = time.monotonic() + LAST_S
        while rank == 0 and store.add(f"{key}/heard", 0) < world and time.monotonic() < end:
            time.sleep(0.01)
    if any(said) and error is None:
        raise RankError("; ".join(f"rank {other}: {text}" for other, text in enumerate(said) if text))


class Ranks:
    """This process among those of the command; alone without a launcher's ``RANK`` and ``WORLD_SIZE``."""

    def __init__(self):
        import torch.distributed as dist

        self.rank, self.world = this_rank(), world_size()
        self.started = self.world > 1 and not dist.is_initialized()
        if self.started:
            with _noticed(AGAIN):
                dist.init_process_group("gloo", timeout=LONGEST)

    def told(self, value: Any) -> Any:
        """What rank 0 gives as ``value``."""
        if self.world == 1:
            return value
        import torch.distributed as dist

        found = [value]
        with _noticed(AGAIN):
            dist.broadcast_object_list(found)
        return found[0]

    def collected(self, value: Any) -> list[Any]:
        """Every rank's ``value``, once all have come here."""
        if self.world == 1:
            return [value]
        import torch.distributed as dist

        found: list[Any] = [None] * self.world
        with _noticed(AGAIN):
            dist.all_gather_object(found, value)
        return found

    def close(self) -> None:
        """Leave the group, if it was made here."""
        if self.started:
            import torch.distributed as dist

            dist.destroy_process_group()


def leave_interrupts(_worker: int) -> None:
    """In a data worker: Ctrl-C, which all processes get, is for the one that reads. torch says in its loader that the
    reader may hang where a signal ends a worker; here that was not seen."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
