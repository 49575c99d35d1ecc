#!/usr/bin/env bash
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../_launch.sh"
recipe configs/d2vlm/fpo_etchat_phi3.yaml \
    "Train D2VLM, preference stage: from the supervised model, with rejected answers (docs/fpo.md)." "$@"
