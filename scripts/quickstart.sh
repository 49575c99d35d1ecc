#!/usr/bin/env bash
set -euo pipefail

usage() {
    cat <<'TEXT'
Make moving-shapes clips, train the D2VLM, DisTime and plain-text heads on them, go on with D2VLM's by preferences (FPO)
and without, answer unseen clips, write a report.

usage: bash scripts/quickstart.sh [--output DIR] [options of python -m quickstart]

environment:
  SEED=n            seed of data and training (default 0)
  GPUS=n            processes of each training: GPUs, or CPU processes on a machine without (default: all GPUs, or 1)
  VIDEOLLM_PYTHON   an interpreter to use as it is, instead of making .venv
TEXT
}

case "${1:-}" in
-h | --help) usage && exit 0 ;;
esac

source "$(dirname "${BASH_SOURCE[0]}")/_venv.sh"
cd "$REPO"
exec "$PYTHON" -m quickstart "$@"
