#!/usr/bin/env bash
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
source "$root/scripts/_launch.sh"

usage() {
    cat <<TEXT
Train DisTime from InternVL2.5-1B with LoRA (docs/distime.md). A step sees 128 items whatever GPUS and NNODES are:
accumulation follows from them (train.global_batch).

usage: bash scripts/distime/train_internvl2_5_1b.sh [key=value ...]
  key=value   lays a value over configs/distime/internvl2_5_1b_lora.yaml:
              model.checkpoint=DIR data.train=[meta.json] data.videos=DIR train.output=DIR ...

$LAUNCH_HELP
TEXT
}

case "${1:-}" in
-h | --help) usage && exit 0 ;;
-*) usage >&2 && exit 2 ;;
esac
exec bash "$root/scripts/train.sh" "$root/configs/distime/internvl2_5_1b_lora.yaml" \
    "train.deepspeed=$root/configs/deepspeed/zero2.json" "$@"
