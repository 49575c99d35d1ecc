#!/usr/bin/env bash
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"

usage() {
    cat <<'TEXT'
Get E.T. Instruct 164K and the D2VLM annotations from the Hugging Face hub, and lay them out as the configs expect them
(docs/data.md).

usage: bash scripts/d2vlm/prepare_data.sh [DATA] [STEP ...]
  DATA      folder to write to (default: data)
  STEP      download   what is missing of both data sets; goes on where it stopped
            unpack     every .tar, .tar.gz, .tgz and .zip of E.T. Instruct into ET-Instruct-164K/videos, once each
            check      every record, and that its video is there and opens; CLEAN=FILE.jsonl writes the good ones
            (default: all three)

environment:
  VIDEOLLM_PYTHON, HF_TOKEN, HF_ENDPOINT
TEXT
}

case "${1:-}" in
-h | --help) usage && exit 0 ;;
-*) usage >&2 && exit 2 ;;
esac
data="${1:-data}"
if [ $# -gt 0 ]; then shift; fi
if [ $# -eq 0 ]; then set -- download unpack check; fi
for step in "$@"; do
    case "$step" in download | unpack | check) ;; *) usage >&2 && exit 2 ;; esac
done
source "$root/scripts/_venv.sh"
instruct="$data/ET-Instruct-164K" own="$data/D2VLM-Dataset"
videos="$instruct/videos" annotations="$own/ET-Instruct/evi.json"

download() { # hub name, folder
    "$PYTHON" -c 'import sys; from huggingface_hub import snapshot_download as get
get(sys.argv[1], repo_type="dataset", local_dir=sys.argv[2])' "$1" "$2"
}

unpack() {
    local archive found=0
    mkdir -p "$videos"
    while IFS= read -r -d '' archive; do
        found=1
        if [ -e "$archive.unpacked" ]; then continue; fi
        echo "unpacking $archive" >&2
        case "$archive" in
        *.zip) "$PYTHON" -m zipfile -e "$archive" "$videos" ;;
        *) tar -xf "$archive" -C "$videos" ;;
        esac
        touch "$archive.unpacked" # last, so that an interrupted one is done again
    done < <(find "$instruct" -type f \( -name '*.tar' -o -name '*.tar.gz' -o -name '*.tgz' -o -name '*.zip' \) -print0)
    if [ "$found" = 0 ]; then
        echo "$instruct: no archive in it; put the videos below $videos" >&2
    fi
}

for step in "$@"; do
    case "$step" in
    download)
        download PolyU-ChenLab/ET-Instruct-164K "$instruct"
        download wenzhengzeng/D2VLM-Dataset "$own"
        ;;
    unpack) unpack ;;
    check)
        if [ ! -f "$annotations" ]; then
            echo "error: no $annotations; download it first, or see docs/data.md for where it belongs" >&2
            exit 1
        fi
        "$PYTHON" -m videollm.data check --annotations "$annotations" --videos "$videos" ${CLEAN:+--output "$CLEAN"}
        ;;
    esac
done
