#!/usr/bin/env bash
set -euo pipefail
here="$(dirname "${BASH_SOURCE[0]}")"
source "$here/_launch.sh"

usage() {
    cat <<TEXT
Train a model (docs/training.md).

usage: bash scripts/train.sh CONFIG [key=value ...]
  CONFIG      a YAML file, see configs/
  key=value   lays a value over it: train.steps=100 data.videos=/path/to/videos

$LAUNCH_HELP
TEXT
}

case "${1:-}" in
-h | --help) usage && exit 0 ;;
"" | -*) usage >&2 && exit 2 ;;
esac
source "$here/_venv.sh"
launch videollm.train --config "$@"
