#!/usr/bin/env bash
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

usage() {
    cat <<'TEXT'
Ask a model the questions of a benchmark, and score the answers; called as DisTime's evaluate.sh.

usage: [GPUS=8] bash scripts/evaluate.sh CHECKPOINT DATASET [option ...] [key=value ...]
  DATASET     charades, anet, qvh, youcook2_dvc, anet_dvc, nextgqa, mvbench, longvideobench, or any other benchmark of
              all_benchmark_eval; behind nextgqa a 1 or 2 is accepted: both stages run, what is done is not done again
  option      of all_benchmark_eval.evaluate; key=value: generate.max_new_tokens=64

environment:
  DATA        data root (default: data); 'python -m all_benchmark_eval.check $DATA' says what should be there
  GPUS, VIDEOLLM_PYTHON   as for all_benchmark_eval/*/inference.sh
TEXT
}

case "${1:-}" in -h | --help) usage && exit 0 ;; esac
if [ $# -lt 2 ]; then usage >&2 && exit 2; fi
model="$1" name="$2" && shift 2
case "$name" in
qvh) name=qvhighlights ;;
youcook2_dvc) name=youcook2 ;;
nextgqa) case "${1:-}" in 1 | 2) shift ;; esac ;;
esac
source "$root/scripts/_venv.sh"
exec "$PYTHON" -m all_benchmark_eval.evaluate "$model" --benchmarks "$name" --data "${DATA:-data}" "$@"
