"""Who runs where: what the environment asks for, on one node, on several, and within Slurm."""

import socket

import pytest

from videollm.common.config import ConfigError
from videollm.launch import Plan, check_port, first_host, plan

NODES = {"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "node0", "GPUS": "8"}
SLURM = {
    "SLURM_STEP_NUM_NODES": "3", "SLURM_STEP_NUM_TASKS": "3", "SLURM_STEP_NODELIST": "gpu[07-09]", "SLURM_NODEID": "2",
    "SLURM_GPUS_ON_NODE": "4", "SLURM_JOB_ID": "1234567", "SLURM_JOB_NUM_NODES": "3",
}  # fmt: skip


def test_processes_are_gpus_and_default_to_all_of_them():
    assert plan({}, 0) == Plan(1) and plan({}, 8) == Plan(8) and plan({"GPUS": "2"}, 8) == Plan(2)
    assert plan({"GPUS": "3"}, 0) == Plan(3)
    assert plan({"GPUS": "2"}, 0).arguments() == ["--nnodes", "1", "--nproc_per_node", "2", "--standalone"]


def test_several_nodes_meet_at_the_named_address():
    expected = Plan(8, 2, 1, "node0", 29500)
    assert plan(NODES, 8) == expected and plan(NODES | {"MASTER_PORT": "1234"}, 8).port == 1234
    meeting = ["--node_rank", "1", "--master_addr", "node0", "--master_port", "29500"]
    assert expected.arguments() == ["--nnodes", "2", "--nproc_per_node", "8", *meeting]


def test_a_port_is_used_on_one_node_too():
    given = plan({"GPUS": "2", "MASTER_PORT": "1234"}, 0)
    assert given.arguments()[-4:] == ["--master_addr", "127.0.0.1", "--master_port", "1234"]


def test_within_slurm_nothing_has_to_be_set():
    assert plan(SLURM, 4) == Plan(4, 3, 2, "gpu07", 24567)
    own = {"MASTER_PORT": "99", "GPUS": "1", "MASTER_ADDR": "10.0.0.1"}
    assert plan(SLURM | own, 4) == Plan(1, 3, 2, "10.0.0.1", 99)


def test_a_batch_script_without_srun_uses_its_own_node():
    batch = {name: value for name, value in SLURM.items() if "STEP" not in name} | {"SLURM_NODEID": "0"}
    assert plan(batch, 4) == Plan(4)


@pytest.mark.parametrize(
    "environment, says",
    [
        ({"GPUS": "two"}, "GPUS=two must be a whole number from 1"),
        ({"GPUS": "0"}, "GPUS=0 must be"),
        ({"GPUS": "8"}, "GPUS=8, but this machine shows 4"),
        ({"NNODES": "2"}, "NNODES=2 needs MASTER_ADDR (address of node 0) and NODE_RANK (0 to 1), or srun"),
        (NODES | {"GPUS": "1", "NODE_RANK": "2"}, "NODE_RANK=2, but NNODES=2 counts from 0 to 1"),
        (NODES | {"GPUS": "1", "MASTER_PORT": "http"}, "MASTER_PORT=http must be"),
        (SLURM | {"SLURM_STEP_NUM_TASKS": "12"}, "srun started 12 tasks on 3 nodes"),
    ],
)
def test_a_launch_that_cannot_work_is_named(environment, says):
    with pytest.raises(ConfigError) as error:
        plan(environment, 4)
    assert says in str(error.value)


@pytest.mark.parametrize(
    "nodes, first",
    [("gpu1", "gpu1"), ("a,b", "a"), ("gpu[003-7,9],b1", "gpu003"), ("r[1-2]n[5,7]", "r1n5"), ("n[1,4].hpc", "n1.hpc")],
)
def test_the_first_host_of_a_slurm_list(nodes, first):
    assert first_host(nodes) == first


def test_a_port_in_use_is_named():
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"MASTER_PORT={port} cannot be used on this machine"):
            check_port(port)
    check_port(port)
