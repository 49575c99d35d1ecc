#!/usr/bin/env bash
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

usage() {
    cat <<'TEXT'
E.T. Bench, called as D2VLM's inference.sh: answers and scores under MODEL/evaluation/etbench.

usage: [GPUS=8] bash scripts/inference.sh MODEL ANNOTATIONS [ARCH] [option ...] [key=value ...]
  ANNOTATIONS   etbench_vid_v1.0.json
  ARCH          accepted and not needed: the checkpoint says what it is
  option        of all_benchmark_eval.evaluate; key=value: generate.max_new_tokens=64

environment:
  VIDEOS        folder of the videos (default: the folder videos beside ANNOTATIONS)
  GPUS, VIDEOLLM_PYTHON   as for all_benchmark_eval/*/inference.sh
TEXT
}

case "${1:-}" in -h | --help) usage && exit 0 ;; esac
if [ $# -lt 2 ]; then usage >&2 && exit 2; fi
model="$1" annotations="$2" && shift 2
if [[ $# -gt 0 && "$1" != -* && "$1" != *=* ]]; then shift; fi
videos="${VIDEOS:-$(dirname "$annotations")/videos}"
exec bash "$root/all_benchmark_eval/_inference.sh" etbench "$model" "$videos" "$annotations" "$@"
