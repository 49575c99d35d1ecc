#!/usr/bin/env bash
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../_launch.sh"
recipe configs/d2vlm/sft_etchat_phi3.yaml \
    "Train D2VLM, supervised stage: from E.T. Chat stage 2 to grounding before answering (docs/d2vlm.md)." "$@"
