#!/usr/bin/env bash
set -euo pipefail
# Shared by train.sh and infer.sh; source it after _venv.sh: `launch MODULE ARGUMENTS...` ends in that module.

LAUNCH_HELP="environment (docs/cluster.md; within srun, what is not set comes from Slurm):
  GPUS                       processes on this node (default: its GPUs, or 1); without a GPU they run on the CPU
  NNODES, NODE_RANK          number of nodes, and which one this is, from 0 (default: 1 node)
  MASTER_ADDR, MASTER_PORT   where node 0 listens (several nodes; default port 29500)
  VIDEOLLM_PYTHON            an interpreter to use as it is, instead of making .venv"

launch() {
    exec "$PYTHON" -m videollm.launch "$@"
}
