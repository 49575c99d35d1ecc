"""Start a command as one process a GPU: ``videollm launch train --config FILE``, which scripts/train.sh ends in.

In: a command of ``videollm --help`` or a module, with its arguments; GPUS, NNODES, NODE_RANK, MASTER_ADDR and
MASTER_PORT, where what is not set comes from Slurm's step, if there is one. Out: the command's own exit status. SIGTERM
and Ctrl-C are passed on to the processes, which may take their time to save. Knows torchrun; nothing of training.
"""

import importlib
import logging
import os
import re
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import psutil

from videollm.common.command import ended
from videollm.common.config import ConfigError, need
from videollm.common.declared import COMMANDS, declared, sign


@dataclass(frozen=True)
class Plan:
    """Who runs where."""

    processes: int  # on this node
    nodes: int = 1
    node: int = 0  # which one this is
    address: str | None = None  # of node 0
    port: int | None = None

    def arguments(self) -> list[str]:
        """The same for torchrun."""
        given = ["--nnodes", str(self.nodes), "--nproc_per_node", str(self.processes)]
        if self.nodes == 1 and self.port is None:
            return [*given, "--standalone"]
        meeting = ["--node_rank", str(self.node), "--master_addr", self.address or "127.0.0.1"]
        return [*given, *meeting, "--master_port", str(self.port)]


def plan(environment: Mapping[str, str], gpus: int) -> Plan:
    """The launch that the environment asks for on a machine with ``gpus`` visible GPUs.

    Raises:
        ConfigError: a variable is no number, or they do not fit together or this machine.
    """
    values = dict(environment)
    if "SLURM_STEP_NODELIST" in values:
        values = from_slurm(values) | values
    processes, nodes = number(values, "GPUS", max(1, gpus), 1), number(values, "NNODES", 1, 1)
    if gpus and processes > gpus:
        raise ConfigError(f"GPUS={processes}, but this machine shows {gpus}")
    port = number(values, "MASTER_PORT", 29500, 1) if nodes > 1 or values.get("MASTER_PORT") else None
    if nodes == 1:
        return Plan(processes, port=port)
    if not values.get("MASTER_ADDR") or not values.get("NODE_RANK"):
        raise ConfigError(
            f"NNODES={nodes} needs MASTER_ADDR (address of node 0) and NODE_RANK (0 to {nodes - 1}), or srun"
        )
    node = number(values, "NODE_RANK", 0, 0)
    if node >= nodes:
        raise ConfigError(f"NODE_RANK={node}, but NNODES={nodes} counts from 0 to {nodes - 1}")
    return Plan(processes, nodes, node, values["MASTER_ADDR"], port)


def from_slurm(values: Mapping[str, str]) -> dict[str, str]:
    """GPUS, NNODES, NODE_RANK, MASTER_ADDR and MASTER_PORT of a task that srun started (a batch script has none)."""
    names = {"NNODES": "SLURM_STEP_NUM_NODES", "NODE_RANK": "SLURM_NODEID", "GPUS": "SLURM_GPUS_ON_NODE"}
    found = {ours: values[theirs] for ours, theirs in names.items() if theirs in values}
    tasks, nodes = values.get("SLURM_STEP_NUM_TASKS"), values.get("SLURM_STEP_NUM_NODES")
    if tasks != nodes:
        raise ConfigError(
            f"srun started {tasks} tasks on {nodes} nodes, but each task starts the processes of its node; give "
            "--ntasks-per-node=1"
        )
    found["MASTER_ADDR"] = first_host(values["SLURM_STEP_NODELIST"])
    if found.get("NNODES") != "1":  # jobs that share a node must not meet at one port
        found["MASTER_PORT"] = str(20000 + int(values.get("SLURM_JOB_ID", 0)) % 10000)
    return found


def first_host(nodes: str) -> str:
    """The first host of a Slurm list: ``gpu[003-007,9],b1`` -> ``gpu003``."""
    first = re.split(r",(?![^\[]*\])", nodes)[0]
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", first)


def number(values: Mapping[str, str], name: str, default: int, least: int) -> int:
    """A whole number from the environment; ConfigError if it is none."""
    text = values.get(name) or str(default)
    if not text.isdecimal() or int(text) < least:
        raise ConfigError(f"{name}={text} must be a whole number from {least}")
    return int(text)


def check_port(port: int) -> None:
    """ConfigError where something on this machine listens on the port at which the processes are to meet."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            raise ConfigError(
                f"MASTER_PORT={port} cannot be used on this machine ({error.strerror}); set another, the same on all "
                "nodes"
            ) from None


def pass_on(number: int, _frame) -> None:
    """Hand a signal to the processes. torchrun would kill them 30 s later, which may be too soon for a checkpoint."""
    for child in psutil.Process().children():
        child.send_signal(number)


def launch(plan: Plan, module: str, arguments: Sequence[str]) -> int:
    """Run the module in the plan's processes; the exit status is that of the first one that failed."""
    import torch
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    os.environ.setdefault("OMP_NUM_THREADS", "1")  # as torchrun does, with a warning
    options = [*plan.arguments(), "--signals_to_handle", "SIGHUP,SIGQUIT"]
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, pass_on)
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # what failed is said below, in a line
    try:
        torchrun.main([*options, "-m", module, *arguments])
    except ChildFailedError as failed:
        rank, failure = failed.get_first_failure()
        if failure.exitcode >= 0:
            return failure.exitcode
        name = signal.Signals(-failure.exitcode).name
        hint = " (often the machine ran out of memory)" if name == "SIGKILL" else ""
        print(f"error: rank {rank} was ended by {name}{hint}; the others ended with it", file=sys.stderr)
        return 128 - failure.exitcode
    except torch.distributed.DistError as error:
        where = f"{plan.address or '127.0.0.1'}:{plan.port}"
        print(f"error: the nodes could not meet at {where}: {str(error).splitlines()[0]}", file=sys.stderr)
        return 2
    return 0


def told(module: str, arguments: Sequence[str]) -> int:
    """2 where a command refuses its arguments before torch is loaded, as far as it has an ``ahead``; else 0."""
    ahead = getattr(importlib.import_module(module), "ahead", None)
    return ended(lambda: ahead(arguments)) if ahead else 0


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    given = sys.argv[1:] if argv is None else list(argv)
    if not given or given[0] in ("-h", "--help"):
        print(f"usage: videollm launch COMMAND [argument ...]\n\n{__doc__}")
        return 0 if given else 2
    module, *arguments = given
    module = declared(COMMANDS).get(module, module).partition(":")[0].removesuffix(".__main__")
    try:
        need(sign(module), f"{module}: no such command or module; see videollm --help")
        if given[0] in declared(COMMANDS) and plan(os.environ, 0).nodes == 1 and (status := told(module, arguments)):
            return status
        import torch  # behind the words of the command: a typo costs no second

        gpus = torch.cuda.device_count()
        planned = plan(os.environ, gpus)
        # Alone, a process needs no launcher; beside unused GPUs it does, or it would spread over all of them.
        if planned == Plan(1, port=planned.port) and gpus <= 1:
            os.execv(sys.executable, [sys.executable, "-m", module, *arguments])
        if planned.node == 0 and planned.port is not None:
            check_port(planned.port)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if not gpus and planned.processes > 1:
        print(f"starts {planned.processes} processes on the CPU: this machine shows no GPU", file=sys.stderr)
    return launch(planned, module, arguments)


if __name__ == "__main__":
    sys.exit(main())
