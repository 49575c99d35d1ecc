"""A process for the tests of the launcher: ends as it is told, without importing torch.

``python -m tests.launched RANK0 RANK1 ...``: what each rank does. A number is its exit status; ``killed`` ends it by
SIGKILL; ``saves`` waits for SIGTERM, takes a second, and ends with status 75; ``waits`` waits for ever. FOLDER gets a
file ``up.RANK`` once the rank is there.
"""

import os
import signal
import sys
import time
from pathlib import Path


def main() -> int:
    rank = int(os.environ.get("RANK", 0))
    what, told = sys.argv[1 + rank], []
    signal.signal(signal.SIGTERM, lambda *_: told.append(1))
    Path(os.environ["FOLDER"], f"up.{rank}").write_text(os.environ.get("WORLD_SIZE", "alone"))
    if what.isdecimal():
        print(f"error: rank {rank} says why", file=sys.stderr)
        return int(what)
    if what == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    while not told:
        time.sleep(0.05)
    if what == "saves":
        time.sleep(1)
        Path(os.environ["FOLDER"], f"saved.{rank}").touch()
        return 75
    return 0


if __name__ == "__main__":
    sys.exit(main())
