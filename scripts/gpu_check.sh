#!/usr/bin/env bash
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_launch.sh"
module benchmarks.gpu_check \
    "Measure the published systems on one GPU (at most 8 minutes, random weights, nothing to download) and run its tests.

usage: bash scripts/gpu_check.sh --output DIR [--tiny] [--device cuda|cpu]

environment:" "$@"
