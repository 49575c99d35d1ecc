"""Several ranks, or one process that may be killed, as forks of the test: they cost no import of torch.

``run`` starts the ranks of one training and waits for them; a ``hook`` runs in each before it starts, to make it die or
to look into it. What a rank prints is in ``RUN.rank0`` and so on.
"""

import faulthandler
import json
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from torch.utils.data import SequentialSampler

from videollm import train
from videollm.training import trainer
from videollm.training.trainer import VideoTrainer


def free_port() -> int:
    """A port of the loopback address that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run(
    config: Path, *overrides: str, ranks: int = 1, hook: Callable[[int], None] | None = None, timeout_s: float = 240
) -> list[int]:
    """Train with ``ranks`` processes; returns their exit statuses (-9 for a killed one).

    Raises:
        TimeoutError: a rank hangs; all are killed. The message holds what they wrote.
    """
    pids = forked(ranks, lambda rank: become(config, rank, hook, ["--config", str(config), *overrides]))
    return wait(pids, config, timeout_s)


def forked(ranks: int, be: Callable[[int], int | None]) -> list[int]:
    """The processes that are to meet; what ``be`` returns of a rank is its exit status (None: 0).

    Each has the variables of a session of its own: DeepSpeed starts without a launcher only where it finds no other
    rank's.
    """
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(ranks)}
    pids = []
    for rank in range(ranks):
        if not (pid := os.fork()):
            status = 1
            try:
                os.environ.update(where, RANK=str(rank), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(ranks))
                status = be(rank) or 0
            finally:  # never back into the test, whose files a second process would clean up
                os._exit(status)
        pids.append(pid)
    return pids


def ran(config: Path, *words: str, ranks: int = 1, hook: Callable[[int], None] | None = None, status=0) -> None:
    """``run``, and check how the ranks ended."""
    ended = run(config, *words, ranks=ranks, hook=hook)
    assert ended == [status] * ranks, "\n".join(output_of(config, r).read_text()[-3000:] for r in range(ranks))


def noting(folder: Path, then: Callable[[int], None] | None = None) -> Callable[[int], None]:
    """A hook that writes the ids of each step's items to a file of the rank, and then does what ``then`` does."""

    def hook(rank: int) -> None:
        get = VideoTrainer.get_batch_samples

        def noted(self, *args):
            found = get(self, *args)
            if found[0]:
                with open(folder / f"order{rank}", "a") as out:
                    out.write(json.dumps([self.state.global_step, [batch.ids for batch in found[0]]]) + "\n")
            return found

        VideoTrainer.get_batch_samples = noted
        if then is not None:
            then(rank)

    return hook


def order(folder: Path, rank: int) -> dict:
    """{step: ids of its batches' items}, as noted; of a step that was made twice, the second time."""
    return dict(json.loads(line) for line in (folder / f"order{rank}").read_text().splitlines())


def become(config: Path, rank: int, hook: Callable[[int], None] | None, arguments: list[str]) -> None:
    """The rest of this process's life is one rank."""
    status = 99
    try:
        out = os.open(output_of(config, rank), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        faulthandler.register(signal.SIGUSR1)  # a rank that hangs is asked where
        try:
            if hook is not None:
                hook(rank)
            status = train.main(arguments)
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:  # never back into the test, whose files a second process would clean up
        os._exit(status)


def wait(pids: list[int], config: Path, timeout_s: float) -> list[int]:
    """Exit statuses of all; as a launcher does, a failed rank ends the others."""
    statuses: dict[int, int] = {}
    end = time.monotonic() + timeout_s
    while len(statuses) < len(pids):
        for pid in set(pids) - set(statuses):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                statuses[pid] = os.waitstatus_to_exitcode(status)
                if statuses[pid] != 0:
                    end = min(end, time.monotonic() + 5)
        if time.monotonic() > end:
            for number in (signal.SIGUSR1, signal.SIGKILL):
                for pid in set(pids) - set(statuses):
                    os.kill(pid, number)
                time.sleep(0.5)
            if not any(statuses.values()):
                said = "\n\n".join(output_of(config, rank).read_text()[-6000:] for rank in range(len(pids)))
                raise TimeoutError(f"{len(pids) - len(statuses)} of {len(pids)} ranks hang:\n{said}")
            end += 1000
        time.sleep(0.02)
    return [statuses[pid] for pid in pids]


def output_of(config: Path, rank: int) -> Path:
    """What a rank of the last training with this config wrote."""
    return config.with_name(f"{config.name}.rank{rank}")


def kill_after(
    step: int, number: int = signal.SIGKILL, rank: int | None = None, group: bool = False
) -> Callable[[int], None]:
    """A hook: the rank (every rank) sends itself a signal once it has finished ``step`` and what follows it.

    With ``group`` its data workers get the signal too.
    """

    def hook(me: int) -> None:
        if group:
            os.setpgid(0, 0)
        batches = VideoTrainer.get_batch_samples

        def get(self, *args, **kwargs):
            if self.state.global_step == step and rank in (None, me):
                (os.killpg if group else os.kill)(0 if group else os.getpid(), number)
            return batches(self, *args, **kwargs)

        VideoTrainer.get_batch_samples = get

    return hook


def in_order(_rank: int) -> None:
    """A hook: items come in the order of the file, so that with batches of one, rank r of n gets items r, n + r, ..."""
    trainer.RandomSampler = SequentialSampler
