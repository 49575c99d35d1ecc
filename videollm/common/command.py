"""What every command needs: a user's error as one message on stderr and exit status 2, and checks of common options.

An error is an exception whose text is the message, as it was raised here or as a data worker passed it on (torch then
puts the worker's traceback into the text). This file knows no command and no model.
"""

import argparse
import sys
import time
from collections.abc import Callable

import torch

from videollm.common.config import ConfigError
from videollm.common.processes import this_rank

HEAD_START_S = 8.0  # for rank 0 to speak, to end, and for the launcher to see that


def ended(run: Callable[[], object], *errors: type[Exception]) -> int:
    """Run a command; returns its exit status: 0, or what ``tell`` says of one of the user's ``errors``."""
    try:
        run()
    except errors as error:
        return tell(error)
    return 0


def tell(error: Exception) -> int:
    """Print the message of ``error``; returns the exit status.

    What all ranks find, rank 0 says: the others wait, and the launcher ends them before they repeat it.
    """
    if this_rank() > 0:
        time.sleep(HEAD_START_S)
    name = f"{type(error).__module__}.{type(error).__qualname__}: "
    print(f"error: {str(error).rpartition(name)[2].strip()}", file=sys.stderr, flush=True)
    return 2


def usable_device(name: str) -> torch.device:
    """The device ``name``; ConfigError where it is unknown or not there."""
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"--device: {name!r} cannot be used here ({str(error).splitlines()[0]}); try cpu") from None


def whole(least: int) -> Callable[[str], int]:
    """Reads a whole number from ``least`` on, for argparse."""

    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least}")
        return int(text)

    return number
