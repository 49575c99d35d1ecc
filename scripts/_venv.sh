#!/usr/bin/env bash
# Shared set-up; source it: it sets PYTHON (an interpreter with the requirements) and REPO, and goes nowhere.
#   VIDEOLLM_PYTHON=/path/to/python   use this interpreter as it is and install nothing
# A script that sets versions=oldest first gets .venv-oldest with the lowest versions of setup.py (scripts/test.sh does),
# one that sets venv=FOLDER an environment of its own there.
set -euo pipefail

REPO="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
export PYTHONPATH="$REPO${PYTHONPATH:+:$PYTHONPATH}"
# Two spinning threads a process can be ten times slower than one where processes share the cores.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-passive}"
# Where a CPU computes, blocks over 32 MiB go back to the system after each use and cost page faults anew: at batch 8 an
# eighth of a step. glibc keeps blocks of up to 1 GiB, and 4 GiB that are free, for what comes next.
if [ ! -e /dev/nvidiactl ]; then
    export MALLOC_MMAP_THRESHOLD_="${MALLOC_MMAP_THRESHOLD_:-1073741824}"
    export MALLOC_TRIM_THRESHOLD_="${MALLOC_TRIM_THRESHOLD_:-4294967296}"
fi

use_given_python() {
    PYTHON="$(command -v "$VIDEOLLM_PYTHON")" || {
        echo "error: VIDEOLLM_PYTHON=$VIDEOLLM_PYTHON is not an executable" >&2
        exit 1
    }
    echo "using $PYTHON (VIDEOLLM_PYTHON)" >&2
}

# use_own_venv FOLDER TEXT LIST: a venv in FOLDER with the packages of LIST, whose source the user knows as TEXT.
use_own_venv() {
    local venv="$REPO/$1" source="$2" list="$3" wanted
    wanted="$(sha256sum <<<"$list" | cut -d' ' -f1)"
    PYTHON="$venv/bin/python"
    # The stamp is written last, so an interrupted installation is done again.
    if [ -x "$venv/bin/videollm" ] && [ "$(cat "$venv/requirements.sha256" 2>/dev/null)" = "$wanted" ]; then
        echo "using $venv" >&2
        return
    fi
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
        echo "error: $source needs Python >= 3.11, python3 is $(python3 --version 2>&1)." \
            "Put a newer python3 first on PATH, or set VIDEOLLM_PYTHON (not for --oldest) to one with" \
            "the packages of setup.py." >&2
        exit 1
    }
    echo "installing $source into $venv (once, some minutes)" >&2
    python3 -m venv "$venv"
    "$PYTHON" -m pip install --quiet --disable-pip-version-check -r /dev/stdin <<<"$list" >&2
    printf '#!/bin/sh\nPYTHONPATH="%s${PYTHONPATH:+:$PYTHONPATH}" exec "%s" -m videollm "$@"\n' "$REPO" "$PYTHON" \
        >"$venv/bin/videollm"
    chmod +x "$venv/bin/videollm"
    echo "$wanted" >"$venv/requirements.sha256"
}

if [ "${versions:-}" = oldest ]; then
    floors="$(python3 "$REPO/scripts/_floors.py")"
    use_own_venv .venv-oldest "the lowest versions of setup.py" "$floors"
elif [ -n "${VIDEOLLM_PYTHON:-}" ]; then
    use_given_python
else
    use_own_venv "${venv:-.venv}" requirements.txt "$(cat "$REPO/requirements.txt")"
fi
export PYTHON REPO
