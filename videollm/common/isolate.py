"""A function in a child process that can be stopped: a call that hangs or crashes costs that call, not the run.

In: a function and its arguments; out: its result or its exception, or ``Stopped``. The child is a fork, so nothing is
imported anew, and it ends with its parent, however that ends. Results travel as bytes: return arrays, no tensors.
Knows no videos.
"""

import contextlib
import ctypes
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, as_completed, wait
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

PR_SET_PDEATHSIG = 1  # prctl: a signal when the parent is gone
PATIENCE_S = 1.0  # for a killed child; one that hangs in the kernel (a dead file server) is left behind


class Stopped(RuntimeError):
    """The call took too long, or its process ended before the answer."""


class Isolated:
    """Calls ``function`` in a child process, which is started when it is needed and kept.

    Raises ``Stopped`` where a call takes over ``timeout_s`` (None: no limit) or the process ends, and whatever the
    function raises. One call at a time.
    """

    def __init__(self, function: Callable, timeout_s: float | None):
        self.function, self.timeout_s = function, timeout_s
        self.child: tuple[int, Connection] | None = None
        self.owner = 0

    def __getstate__(self) -> dict:
        return {"function": self.function, "timeout_s": self.timeout_s, "child": None, "owner": 0}

    def __call__(self, *args: Any) -> Any:
        if self.child is None or self.owner != os.getpid():  # a fork of this process has to start its own
            self._start()
        _, pipe = self.child
        try:
            pipe.send_bytes(pickle.dumps(args))
            if not pipe.poll(self.timeout_s):
                self.close()
                raise Stopped(f"took more than {self.timeout_s:g} s")
            good, value = _receive(pipe)
        except (EOFError, OSError):
            raise Stopped(f"ended its process ({self.close()})") from None
        if not good:
            raise value
        return value

    def close(self) -> str:
        """End the child; returns how it ended."""
        if self.child is None or self.owner != os.getpid():
            return "not running"
        (pid, pipe), self.child = self.child, None
        pipe.close()
        end = time.monotonic() + PATIENCE_S
        found = os.waitpid(pid, os.WNOHANG)
        if not found[0]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        while not found[0] and time.monotonic() < end:
            time.sleep(0.005)
            found = os.waitpid(pid, os.WNOHANG)
        code = os.waitstatus_to_exitcode(found[1]) if found[0] else 0
        return signal.Signals(-code).name if code < 0 else f"status {code}"

    def __del__(self):
        with contextlib.suppress(Exception):  # at the interpreter's end modules may be gone
            self.close()

    def _start(self) -> None:
        parent, pipe, child_pipe = os.getpid(), *Pipe()
        pid = os.fork()
        if pid == 0:
            pipe.close()
            _serve(self.function, child_pipe, parent)
        child_pipe.close()
        self.child, self.owner = (pid, pipe), parent


def _serve(function: Callable, pipe: Connection, parent: int) -> None:
    """The child: answer calls until the other end is closed; never returns."""
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a training told to stop still needs the frames of its step
        if sys.platform == "linux":  # a hanging call would outlive a parent that was killed
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        import torch

        torch.set_num_threads(1)  # a pool of threads does not survive a fork
        while os.getppid() == parent:
            args = pickle.loads(pipe.recv_bytes())
            try:
                found = (True, function(*args))
            except Exception as error:
                found = (False, error)
            _send(pipe, found)
    except (EOFError, OSError):
        pass
    finally:
        os._exit(0)  # the parent's buffers and exit handlers are not ours


def _send(pipe: Connection, value: Any) -> None:
    """Write a value, its arrays from where they lie: a pickle of frames would be a second copy of them."""
    arrays: list[pickle.PickleBuffer] = []
    head = pickle.dumps(value, protocol=5, buffer_callback=arrays.append)
    left = [array.raw() for array in arrays]
    pipe.send_bytes(pickle.dumps((head, [data.nbytes for data in left])))
    for data in left:
        while data:
            data = data[os.write(pipe.fileno(), data) :]


def _receive(pipe: Connection) -> Any:
    """What ``_send`` wrote, its arrays read into the memory that they keep; EOFError where the other end is gone."""
    head, sizes = pickle.loads(pipe.recv_bytes())
    arrays = [bytearray(size) for size in sizes]
    for array in arrays:
        left = memoryview(array)
        while left:
            count = os.readv(pipe.fileno(), [left])
            if not count:
                raise EOFError
            left = left[count:]
    return pickle.loads(head, buffers=arrays)


def isolated_map(
    function: Callable[[Any], Any], jobs: Iterable, workers: int, timeout_s: float | None
) -> Iterator[tuple[Any, Any]]:
    """(job, result or exception) of every job as it is done, in ``workers`` children; at most twice as many wait."""
    own = threading.local()

    def run(job: Any) -> tuple[Any, Any]:
        if not hasattr(own, "call"):
            own.call = Isolated(function, timeout_s)
        try:
            return job, own.call(job)
        except Exception as error:
            return job, error

    with ThreadPoolExecutor(workers) as pool:
        pending: set = set()
        for job in jobs:
            pending.add(pool.submit(run, job))
            if len(pending) >= 2 * workers:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        yield from (future.result() for future in as_completed(pending))
