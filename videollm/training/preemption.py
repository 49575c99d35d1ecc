"""SIGTERM and Ctrl-C as a request: finish the step, save, stop. For time limits and pre-emption on a cluster.

Every rank is asked at the end of every step whether it has been told; if one has, all stop at that step. Data workers
outlive the signal, and end with the process. Knows the Trainer's callback interface and signals; nothing of models or
files.
"""

import atexit
import multiprocessing
import signal
import sys
import threading

import torch
import torch.distributed as dist
from transformers import TrainerCallback

from videollm.common.command import INTERRUPTED
from videollm.common.processes import this_rank

EXIT_STATUS = 75  # EX_TEMPFAIL of sysexits.h: start the same command again


class Preempted(Exception):
    """The run was told to stop, and has saved where it is; ``status`` is the exit status of its command."""

    def __init__(self, told: str, status: int = EXIT_STATUS):
        super().__init__(told)
        self.status = status


class StopOnSignal(TrainerCallback):
    """Saves and ends the training once any rank has got SIGTERM or SIGINT. Use as a context around the training.

    ``stopped`` says afterwards whether that was the reason for the end, ``status`` with what exit status to end then.
    A second SIGINT does not wait: it raises KeyboardInterrupt.
    """

    def __init__(self):
        self.told = 0  # 1 by SIGTERM, 2 by SIGINT
        self.stopped, self.status = False, EXIT_STATUS
        self.group = None

    def __enter__(self) -> "StopOnSignal":
        if threading.current_thread() is threading.main_thread():  # Python takes signals nowhere else
            self.before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        if dist.is_initialized() and dist.get_world_size() > 1:
            self.group = dist.new_group(backend="gloo")  # on the CPU: the answer must not wait for the GPU
        return self

    def __exit__(self, *_error) -> None:
        if threading.current_thread() is threading.main_thread():
            for number, before in self.before.items():
                signal.signal(number, before)

    def _note(self, number, _frame) -> None:
        if number == signal.SIGINT:
            if self.told == 2:
                raise KeyboardInterrupt
            if this_rank() == 0:
                print("\nCtrl-C: saves after this step; a second one ends at once", file=sys.stderr, flush=True)
        self.told = max(self.told, 2 if number == signal.SIGINT else 1)

    def on_step_end(self, args, state, control, **kwargs):
        """Ask all ranks."""
        told = self.told
        if self.group is not None:
            votes = torch.tensor(float(told))
            dist.all_reduce(votes, dist.ReduceOp.MAX, group=self.group)
            told = int(votes)
        if told:
            self.status = INTERRUPTED if told == 2 else EXIT_STATUS
            self.stopped = control.should_save = control.should_training_stop = True
        return control


def outlive_signal(_worker: int) -> None:
    """In a data worker: ignore what tells a job to stop, which all its processes get; the running step needs its batch.

    Workers end when their loader does, or by ``end_workers``.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


@atexit.register
def end_workers() -> None:
    """At the end of the process: end data workers that are still there, where an error holds on to their loader.

    Python's own end sends them SIGTERM and waits for ever. Registered later than that, so called before it.
    """
    workers = [child for child in multiprocessing.active_children() if child.daemon]
    if workers:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would raise for a killed worker
    for worker in workers:
        worker.kill()
