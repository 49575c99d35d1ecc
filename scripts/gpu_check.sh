#!/usr/bin/env bash
set -euo pipefail

usage() {
    cat <<'TEXT'
Measure the published systems on one GPU (at most 8 minutes, random weights, nothing to download) and run its tests.

usage: bash scripts/gpu_check.sh --output DIR [--tiny] [--device cuda|cpu]

environment:
  VIDEOLLM_PYTHON   an interpreter to use as it is, instead of making .venv
TEXT
}

case "${1:-}" in
-h | --help) usage && exit 0 ;;
esac

source "$(dirname "${BASH_SOURCE[0]}")/_venv.sh"
cd "$REPO"
exec "$PYTHON" -m benchmarks.gpu_check "$@"
