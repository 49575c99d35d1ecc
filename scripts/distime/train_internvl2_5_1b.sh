#!/usr/bin/env bash
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../_launch.sh"
recipe configs/distime/internvl2_5_1b_lora.yaml \
    "Train DisTime from InternVL2.5-1B with LoRA (docs/distime.md). A step sees 128 items whatever GPUS and NNODES are:
accumulation follows from them (train.global_batch)." "$@"
