"""``python`` for tests that run many commands: a command starts in a tenth of a second, with the libraries imported.

In: a folder for the stand-ins of ``python`` and of what starts it elsewhere (``PROGRAMS``); put it first on PATH. Out:
each call goes to one server that has imported the libraries and forks, with the caller's folder, environment and files.
What is not ``-m MODULE``, and everything in a process of its own, is the real interpreter's. Imports nothing of this
repository, so that every command imports it anew. $WARM_MODE says what a call of ``python -m`` does:

    run        what it says
    parse      reads its command line with argparse, and ends there; launchers (``LAUNCHERS``) are looked through
    settings   the same, but a training builds its model without memory (``python -m videollm.memory``), once for the
               same settings
"""

import argparse
import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

PROGRAMS = ("python", "torchrun", "deepspeed", "srun", "sbatch")
TOOLS = ("pytest", "ruff")  # -m of it is not started
LAUNCHERS = ("videollm.launch", "torch.distributed.run")
SMALL = ("--frames", "2", "--text", "8", "--questions", "1")  # of a batch without memory
RELEASED = ("size: 224", "size: 448")  # in a config; the models that stand in for released ones take 28 pixels
LIBRARIES = (  # what most commands import
    "torch", "torch.distributed.run", "torch.utils.data", "transformers", "transformers.trainer", "peft", "accelerate",
    "transformers.models.auto", "transformers.models.qwen2.modeling_qwen2", "transformers.models.phi3.modeling_phi3",
    "av", "scipy.optimize", "rich.console", "matplotlib.figure", "nncore", "safetensors.torch",
)  # fmt: skip


@contextlib.contextmanager
def warm_python(folder: Path) -> Iterator[dict[str, str]]:
    """Make the stand-ins in ``folder`` and run their server; yields the environment that commands need."""
    folder.mkdir(parents=True)
    for name in PROGRAMS:
        (folder / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "{Path(__file__)}" call {name} "$@"\n')
        (folder / name).chmod(0o755)
    place = str(folder / "server")
    command = [sys.executable, str(Path(__file__)), "serve", place, str(folder / "python")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as server:
        try:
            if not server.stdout.readline():
                raise RuntimeError(f"{__file__}: the server did not start")
            yield {"PATH": f"{folder}:{os.environ['PATH']}", "VIDEOLLM_PYTHON": str(folder / "python"), "WARM": place}
        finally:
            server.terminate()


# ---- a call ----------------------------------------------------------------------------------------------------------


def call(name: str, arguments: list[str]) -> int:
    """What a stand-in does; the exit status."""
    mode = os.environ.get("WARM_MODE", "run")
    if name == "sbatch":
        os.execvp("bash", ["bash", *arguments])
    if name == "srun":
        command = arguments[next(i for i, word in enumerate(arguments) if not word.startswith("-")) :]
        os.execvp(command[0], command)
    while arguments[:1] == ["-u"]:
        arguments = arguments[1:]
    if name == "python" and arguments[0] == "-c" and "snapshot_download" in arguments[1]:
        return 0  # the tests have no network
    if name == "python" and arguments[0] != "-m":
        os.execv(sys.executable, [sys.executable, *arguments])
    if mode == "run" and name != "python":
        raise SystemExit(f"{name} is not run in tests")
    return send(mode, planned(mode, name, arguments))


def planned(mode: str, name: str, arguments: list[str]) -> list[str]:
    """MODULE and its arguments, as they are to run in that mode."""
    if mode == "run":
        return arguments[1:]
    if name != "python" or arguments[1] in ("torch.distributed.run",):
        start = next(i for i, word in enumerate(arguments) if word in ("-m", "--module") and i + (name != "python"))
        arguments = arguments[start:]
    while arguments[1] in LAUNCHERS:
        arguments = arguments[1:]
    module, *rest = arguments[1:]
    if mode == "settings" and module == "videollm.train":
        config = Path(rest[rest.index("--config") + 1]) if "--config" in rest else None
        text = config.read_text(encoding="utf-8") if config and config.is_file() else ""
        sized = ("data.preprocess.size=28",) if any(size in text for size in RELEASED) else ()
        return ["videollm.memory", *rest, *sized, *SMALL]
    return [module, *rest]


def send(mode: str, arguments: list[str]) -> int:
    """Let the server run it with this process' files; the exit status."""
    if arguments[0] in TOOLS and mode != "run":
        return 0
    told = json.dumps(arguments).replace(os.environ.get("PYTHONPATH", "").split(os.pathsep)[0], "")
    passed = Path(os.environ["WARM"] + ".passed")
    if mode == "settings" and passed.is_file() and told in passed.read_text().splitlines():
        return 0
    request = {"mode": mode, "arguments": arguments, "cwd": os.getcwd(), "environment": dict(os.environ)}
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(os.environ["WARM"])
        socket.send_fds(server, [b"."], [0, 1, 2])
        server.sendall(json.dumps(request).encode() + b"\n")
        status = int(server.makefile().readline() or 1)
    if mode == "settings" and status == 0:
        with passed.open("a") as lines:
            lines.write(told + "\n")
    return status


# ---- the server ------------------------------------------------------------------------------------------------------


def serve(place: str, executable: str) -> None:
    """Import the libraries, then answer calls until it is ended. A call returns here as a process of its own."""
    for name in LIBRARIES:
        with contextlib.suppress(ImportError):  # then each command imports what it needs
            importlib.import_module(name)
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(place)
    listening.listen(64)
    gc.freeze()  # else each process copies what it collects
    print("ready", flush=True)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the keepers
    while True:
        caller, _ = listening.accept()
        if os.fork() == 0:
            listening.close()
            leave(execute, keep(caller, executable))
        caller.close()


def keep(caller: socket.socket, executable: str) -> dict:
    """Fork the process of a call and tell its exit status; ends it if the caller goes. Returns in the new process."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _, files, _, _ = socket.recv_fds(caller, 1, 3)
    request = json.loads(caller.makefile().readline())
    worker = os.fork()
    if worker == 0:
        caller.close()
        os.setpgid(0, 0)
        for place, file in enumerate(files):
            os.dup2(file, place)
            os.close(file)
        sys.executable = executable
        return request
    ended = os.pidfd_open(worker)
    ready, _, _ = select.select([ended, caller], [], [])
    if ended not in ready:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(worker, signal.SIGKILL)
    _, status = os.waitpid(worker, 0)
    code = os.waitstatus_to_exitcode(status)
    with contextlib.suppress(BrokenPipeError):
        caller.sendall(f"{code if code >= 0 else 128 - code}\n".encode())
    os._exit(0)


def leave(work: Callable, *arguments) -> None:
    """Do ``work`` and end the process as the interpreter does, but for taking every library apart (seconds)."""
    status = 0
    try:
        work(*arguments)
    except SystemExit as asked:
        status = asked.code if isinstance(asked.code, int) else int(asked.code is not None)
        if status and not isinstance(asked.code, int):
            print(asked.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        status = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status & 255)


def execute(request: dict) -> None:
    """``python -m MODULE arguments``, in a process of its own."""
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environment"])
    module, *rest = request["arguments"]
    more = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[:1] = [os.getcwd(), *more]
    sys.argv = [module, *rest]
    if request["mode"] != "run" and module != "videollm.memory":
        for name in ("parse_args", "parse_intermixed_args"):
            setattr(argparse.ArgumentParser, name, parsed(getattr(argparse.ArgumentParser, name)))
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def parsed(read):
    """``read`` of argparse, after which the process ends."""

    def stop(self, args=None, namespace=None):
        read(self, args, namespace)
        raise SystemExit(0)

    return stop


if __name__ == "__main__":
    what, *given = sys.argv[1:]
    if what == "call":
        sys.exit(call(given[0], given[1:]))
    serve(*given)
