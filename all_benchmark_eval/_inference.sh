#!/usr/bin/env bash
set -euo pipefail
# What every <benchmark>/inference.sh does, with the benchmark's name as first argument.
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
name="$1" && shift

usage() {
    cat <<TEXT
Ask a model the questions of $name, and score the answers (all_benchmark_eval/$name/README.md).

usage: [GPUS=8] bash all_benchmark_eval/$name/inference.sh MODEL [VIDEOS [ANNOTATIONS [OUTPUT]]] [option ...] [key=value ...]
  MODEL         checkpoint folder, such as runs/NAME/final
  VIDEOS        folder of the videos (default: as 'python -m all_benchmark_eval.check' expects them below \$DATA)
  ANNOTATIONS   the data set's own file (default: the one beside VIDEOS)
  OUTPUT        folder to write $name/ and the tables to (default: MODEL/evaluation); goes on with what is there
  option        of all_benchmark_eval.evaluate: --batch-size 8, --workers 4, --skip-meteor
  key=value     generate.max_new_tokens=64 sampler.num_frames=32

environment:
  GPUS              processes (default: all GPUs, or 1); without a GPU they run on the CPU
  DATA              data root, where VIDEOS is not given (default: data)
  VIDEOLLM_PYTHON   an interpreter to use as it is, instead of making .venv
TEXT
}

case "${1:-}" in
-h | --help) usage && exit 0 ;;
"" | -*) usage >&2 && exit 2 ;;
esac
arguments=("$1" --benchmarks "$name") && shift
places=(--videos --annotations --output)
given=0
while [ $# -gt 0 ] && [ $given -lt 3 ] && [[ "$1" != -* && ! "$1" =~ ^[a-z_.]+= ]]; do
    arguments+=("${places[given]}" "$1")
    given=$((given + 1)) && shift
done
if [ $given = 0 ]; then arguments+=(--data "${DATA:-data}"); fi
source "$root/scripts/_venv.sh"
exec "$PYTHON" -m all_benchmark_eval.evaluate "${arguments[@]}" "$@"
