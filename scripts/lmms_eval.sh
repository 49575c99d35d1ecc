#!/usr/bin/env bash
set -euo pipefail

usage() {
    cat <<'TEXT'
Make an environment with lmms-eval (.venv-lmms) and test our plug-in for it.

usage: bash scripts/lmms_eval.sh [pytest arguments]

environment:
  VIDEOLLM_PYTHON   an interpreter to use as it is, instead of making .venv-lmms
TEXT
}

case "${1:-}" in
-h | --help) usage && exit 0 ;;
esac

venv=.venv-lmms
source "$(dirname "${BASH_SOURCE[0]}")/_venv.sh"
cd "$REPO"
if [ -z "${VIDEOLLM_PYTHON:-}" ] && ! "$PYTHON" -c 'import lmms_eval.evaluator' 2>/dev/null; then
    install=("$PYTHON" -m pip install --quiet --disable-pip-version-check)
    # filelock 4 has not what it imports. It asks for av < 16, which crashes on damaged files: ours is put back.
    "${install[@]}" lmms-eval==0.7.3 'filelock<4' -c <(grep -v '^av=' requirements.txt) >&2
    "${install[@]}" "$(grep '^av=' requirements.txt)" >&2
    # Only some of its own models need torchvision, and beside a torch of another build nothing can be imported.
    "$PYTHON" -c 'import torchvision' 2>/dev/null || "$PYTHON" -m pip uninstall --quiet --yes torchvision timm >&2
fi
exec "$PYTHON" -m pytest tests/end_to_end/test_lmms_eval.py "$@"
