#!/usr/bin/env bash
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
source "$root/scripts/_launch.sh"

usage() {
    cat <<TEXT
Train D2VLM, supervised stage: from E.T. Chat stage 2 to grounding before answering (docs/training.md).

usage: bash scripts/d2vlm/train_sft.sh [key=value ...]
  key=value   lays a value over configs/d2vlm/sft_etchat_phi3.yaml:
              model.checkpoint=DIR data.train=[FILE] data.videos=DIR train.output=DIR ...

$LAUNCH_HELP
TEXT
}

case "${1:-}" in
-h | --help) usage && exit 0 ;;
-*) usage >&2 && exit 2 ;;
esac
exec bash "$root/scripts/train.sh" "$root/configs/d2vlm/sft_etchat_phi3.yaml" \
    "train.deepspeed=$root/configs/deepspeed/zero2.json" "$@"
