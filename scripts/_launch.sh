#!/usr/bin/env bash
set -euo pipefail
# Shared by train.sh and infer.sh; source it after _venv.sh: `launch MODULE ARGUMENTS...` ends in that module.
# It reads GPUS, NNODES, NODE_RANK, MASTER_ADDR and MASTER_PORT, as LAUNCH_HELP says.

LAUNCH_HELP="environment:
  GPUS                       processes on this node (default: its GPUs, or 1); without a GPU they run on the CPU
  NNODES, NODE_RANK          number of nodes, and which one this is, from 0 (default: 1 node)
  MASTER_ADDR, MASTER_PORT   where node 0 listens (several nodes; default port 29500)
  VIDEOLLM_PYTHON            an interpreter to use as it is, instead of making .venv"

launch() {
    local visible processes nodes="${NNODES:-1}" meeting
    visible="$("$PYTHON" -c 'import torch; print(torch.cuda.device_count())')"
    processes="${GPUS:-$((visible > 1 ? visible : 1))}"
    if ! [[ "$processes" =~ ^[1-9][0-9]*$ && "$nodes" =~ ^[1-9][0-9]*$ ]]; then
        echo "error: GPUS=$processes and NNODES=$nodes must be whole numbers from 1" >&2
        exit 2
    fi
    if [ "$visible" -gt 0 ] && [ "$processes" -gt "$visible" ]; then
        echo "error: GPUS=$processes, but this machine shows $visible" >&2
        exit 2
    fi
    # Alone, a process needs no launcher; beside unused GPUs it does, or it would spread over all of them.
    if [ "$nodes" = 1 ] && [ "$processes" = 1 ] && [ "$visible" -le 1 ]; then exec "$PYTHON" -m "$@"; fi
    if [ "$nodes" = 1 ]; then
        meeting=(--standalone)
    elif [ -n "${MASTER_ADDR:-}" ] && [ -n "${NODE_RANK:-}" ]; then
        meeting=(--node_rank "$NODE_RANK" --master_addr "$MASTER_ADDR" --master_port "${MASTER_PORT:-29500}")
    else
        echo "error: NNODES=$nodes needs MASTER_ADDR (address of node 0) and NODE_RANK (0 to $((nodes - 1)))" >&2
        exit 2
    fi
    exec "$PYTHON" -m torch.distributed.run --nnodes "$nodes" --nproc_per_node "$processes" "${meeting[@]}" -m "$@"
}
