#!/usr/bin/env bash
set -euo pipefail

usage() {
    cat <<'TEXT'
Check the style (ruff) and run the tests (pytest).

usage: bash scripts/test.sh [--all | --oldest] [pytest arguments]
  --all      the slow tests too (-n 0 runs all in one process)
  --oldest   on the lowest versions that setup.py allows, always in .venv-oldest

environment:
  GOLDEN_DIR, PAPER_DIR, PEERS_DIR, VIDEO_DIR   reference data (default: ../shared/{golden,paper,peers,videos}); tests skip without it
  VIDEOLLM_PYTHON                    an interpreter to use as it is, instead of making .venv
TEXT
}

selection=(-m "not slow")
case "${1:-}" in
-h | --help) usage && exit 0 ;;
--all) selection=() && shift ;;
--oldest) versions=oldest && shift ;;
esac

here="$(dirname "${BASH_SOURCE[0]}")"
source "$here/_venv.sh"
cd "$REPO"
"$PYTHON" -m ruff check .
exec "$PYTHON" -m pytest -n 2 --dist loadfile "${selection[@]}" "$@"
