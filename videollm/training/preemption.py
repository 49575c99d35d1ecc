"""SIGTERM as a request: finish the step, save, stop. For time limits and pre-emption on a cluster.

Every rank is asked at the end of every step whether it has been told; if one has, all stop at that step. Data workers
outlive the signal, and end with the process. Knows the Trainer's callback interface and signals; nothing of models or
files.
"""

import atexit
import multiprocessing
import signal
import threading

import torch
import torch.distributed as dist
from transformers import TrainerCallback

EXIT_STATUS = 75  # EX_TEMPFAIL of sysexits.h: start the same command again


class Preempted(Exception):
    """The run was told to stop, and has saved where it is."""


class StopOnSignal(TrainerCallback):
    """Saves and ends the training once any rank has got SIGTERM. Use as a context around the training.

    ``stopped`` says afterwards whether that was the reason for the end.
    """

    def __init__(self):
        self.told = self.stopped = False
        self.group = None

    def __enter__(self) -> "StopOnSignal":
        if threading.current_thread() is threading.main_thread():  # Python takes signals nowhere else
            self.before = signal.signal(signal.SIGTERM, self._note)
        if dist.is_initialized() and dist.get_world_size() > 1:
            self.group = dist.new_group(backend="gloo")  # on the CPU: the answer must not wait for the GPU
        return self

    def __exit__(self, *_error) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self.before)

    def _note(self, _number, _frame) -> None:
        self.told = True

    def on_step_end(self, args, state, control, **kwargs):
        """Ask all ranks."""
        told = self.told
        if self.group is not None:
            votes = torch.tensor(float(told))
            dist.all_reduce(votes, dist.ReduceOp.MAX, group=self.group)
            told = bool(votes)
        if told:
            self.stopped = control.should_save = control.should_training_stop = True
        return control


def outlive_signal(_worker: int) -> None:
    """In a data worker: ignore SIGTERM, which all processes of a job get; the running step needs its batch.

    Workers end when their loader does, or by ``end_workers``.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


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
