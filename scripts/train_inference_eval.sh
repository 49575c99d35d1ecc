#!/usr/bin/env bash
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
source "$root/scripts/_launch.sh"

usage() {
    cat <<TEXT
All of D2VLM: supervised training from E.T. Chat stage 2, preference training (FPO), E.T. Bench inference and metrics.

usage: [GPUS=8] bash scripts/train_inference_eval.sh ANNOTATIONS [key=value ...]
  ANNOTATIONS       etbench_vid_v1.0.json; VIDEOS as for scripts/inference.sh
  sft.KEY=VALUE     over configs/d2vlm/sft_etchat_phi3.yaml: sft.data.videos=DIR sft.train.output=DIR ...
  fpo.KEY=VALUE     over configs/d2vlm/fpo_etchat_phi3.yaml: fpo.data.train=[FILE] ...
  KEY=VALUE         of the inference: generate.max_new_tokens=64
  It runs in the current folder, which the configs' paths are relative to.

$LAUNCH_HELP
TEXT
}

case "${1:-}" in
-h | --help) usage && exit 0 ;;
"" | -* | *=*) usage >&2 && exit 2 ;;
esac
annotations="$1" && shift
sft=() fpo=() asked=() sft_output=runs/d2vlm_sft fpo_output=runs/d2vlm_fpo
for argument in "$@"; do
    case "$argument" in
    sft.train.output=*) sft_output="${argument#*=}" ;;
    fpo.train.output=*) fpo_output="${argument#*=}" ;;
    sft.*) sft+=("${argument#sft.}") ;;
    fpo.*) fpo+=("${argument#fpo.}") ;;
    *) asked+=("$argument") ;;
    esac
done
bash "$root/scripts/d2vlm/train_sft.sh" "train.output=$sft_output" "${sft[@]}"
bash "$root/scripts/d2vlm/train_fpo.sh" "model.checkpoint=$sft_output/final" "train.output=$fpo_output" "${fpo[@]}"
exec bash "$root/scripts/inference.sh" "$fpo_output/final" "$annotations" "${asked[@]}"
