#!/usr/bin/env bash
set -euo pipefail
# Shared by the scripts that start trainings and inference. `launch MODULE ARGUMENTS...` ends in that module (source
# this file after _venv.sh). Two are whole scripts: `recipe CONFIG TEXT ARGUMENTS...`, train.sh on a config, with ZeRO-2,
# and `module NAME TEXT ARGUMENTS...`, a module run in the clone.

LAUNCH_HELP="environment (docs/cluster.md; within srun, what is not set comes from Slurm):
  GPUS                       processes on this node (default: its GPUs, or 1); without a GPU they run on the CPU
  NNODES, NODE_RANK          number of nodes, and which one this is, from 0 (default: 1 node)
  MASTER_ADDR, MASTER_PORT   where node 0 listens (several nodes; default port 29500)
  VIDEOLLM_PYTHON            an interpreter to use as it is, instead of making .venv"

launch() {
    exec "$PYTHON" -m videollm.launch "$@"
}

module() {
    local name="$1" text="$2"
    shift 2
    case "${1:-}" in -h | --help) echo "$text
  VIDEOLLM_PYTHON   an interpreter to use as it is, instead of making .venv" && exit 0 ;; esac
    source "$(dirname "${BASH_SOURCE[0]}")/_venv.sh"
    cd "$REPO"
    exec "$PYTHON" -m "$name" "$@"
}

recipe() {
    local config="$1" text="$2" root help
    shift 2
    root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
    help="$text

usage: bash $0 [key=value ...]
  key=value   lays a value over $config:
              model.checkpoint=DIR data.train=[FILE] data.videos=DIR train.output=DIR ...

$LAUNCH_HELP"
    case "${1:-}" in
    -h | --help) echo "$help" && exit 0 ;;
    -*) echo "$help" >&2 && exit 2 ;;
    esac
    exec bash "$root/scripts/train.sh" "$root/$config" "train.deepspeed=$root/configs/deepspeed/zero2.json" "$@"
}
