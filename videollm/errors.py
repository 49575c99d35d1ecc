"""How a command tells a user's error: one message on stderr and exit status 2.

In: an exception whose text is the message, as it was raised here or as a data worker passed it on (torch then puts the
worker's traceback into the text). This file knows no error class, no config and no model.
"""

import os
import sys
import time

HEAD_START_S = 8.0  # for rank 0 to speak, to end, and for the launcher to see that


def tell(error: Exception) -> int:
    """Print the message of ``error``; returns the exit status.

    What all ranks find, rank 0 says: the others wait, and the launcher ends them before they repeat it.
    """
    if int(os.environ.get("RANK", 0)) > 0:
        time.sleep(HEAD_START_S)
    name = f"{type(error).__module__}.{type(error).__qualname__}: "
    print(f"error: {str(error).rpartition(name)[2].strip()}", file=sys.stderr, flush=True)
    return 2
