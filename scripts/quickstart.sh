#!/usr/bin/env bash
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_launch.sh"
module quickstart \
    "Make moving-shapes clips, train the D2VLM, DisTime and plain-text heads on them, go on with D2VLM's by preferences (FPO)
and without, answer unseen clips, write a report.

usage: bash scripts/quickstart.sh [--output DIR] [options of python -m quickstart]

environment:
  SEED=n            seed of data and training (default 0)
  GPUS=n            processes of each training: GPUs, or CPU processes on a machine without (default: all GPUs, or 1)" "$@"
