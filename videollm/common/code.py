"""What ran: the git commit, installed versions, and one start of a command with all of it.

In: facts that only the command knows. Out: plain dicts for a log or a meta file. Knows git and installed packages.
"""

import os
import platform
import shlex
import subprocess
import sys
import time
import uuid
from importlib import metadata
from pathlib import Path

PACKAGES = ("torch", "transformers", "accelerate", "peft", "deepspeed", "safetensors", "numpy", "av")


def this_start(**facts) -> dict:
    """One start of a command: its own ``facts``, and where, when and with what code it ran."""
    commit, changed = code()
    return {
        "id": uuid.uuid4().hex,
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        **facts,
        "command": shlex.join(sys.orig_argv),
        "folder": os.getcwd(),
        "host": platform.node(),
        "commit": commit,
        "changed": changed,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
    }


def code() -> tuple[str | None, bool | None]:
    """The git commit of this code and whether files differ from it; None outside a checkout."""
    git = ["git", "-C", str(Path(__file__).resolve().parent)]
    try:
        found, status = (
            subprocess.run([*git, *words], capture_output=True, text=True, check=True).stdout
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except (OSError, subprocess.CalledProcessError):
        return None, None
    return found.strip(), bool(status.strip())


def version(package: str) -> str | None:
    """The installed version, None if there is none."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
