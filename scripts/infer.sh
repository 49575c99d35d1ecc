#!/usr/bin/env bash
set -euo pipefail
here="$(dirname "${BASH_SOURCE[0]}")"
source "$here/_launch.sh"

usage() {
    cat <<TEXT
Answer every question of an annotation file. Asks only what OUTPUT does not hold yet.

usage: bash scripts/infer.sh MODEL ANNOTATIONS VIDEOS OUTPUT [option ...] [key=value ...]
  MODEL         checkpoint folder, such as runs/NAME/final
  ANNOTATIONS   .json or .jsonl (docs/annotations.md)
  VIDEOS        folder that its video paths are relative to
  OUTPUT        FILE.jsonl, one line an answer
  option        of videollm.infer: --batch-size 8, --workers 4, --backend decord
  key=value     generate.max_new_tokens=64 sampler.num_frames=32

$LAUNCH_HELP
TEXT
}

case "${1:-}" in -h | --help) usage && exit 0 ;; esac
if [ $# -lt 4 ]; then usage >&2 && exit 2; fi
source "$here/_venv.sh"
launch videollm.infer --model "$1" --annotations "$2" --videos "$3" --output "$4" "${@:5}"
