"""What every command needs: a parser, a user's error as one line on stderr and exit status 2, checks of common options.

An error of the user is a ``UserError``, whose text is the message, or an ``OSError``: a file that is not there, a place
that cannot be written. It is told as it was raised here or as a data worker passed it on (torch then puts the worker's
traceback into the text). This file knows no command and no model. torch is loaded where it is needed only: that takes
seconds, and scoring does without.
"""

import argparse
import contextlib
import logging
import math
import os
import re
import select
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from videollm.common.config import ConfigError, UserError, nearest, need
from videollm.common.processes import local_rank, this_rank

if TYPE_CHECKING:
    import torch

USERS = (UserError, OSError)
DEVICES = ("cpu", "cuda", "mps", "xpu", "npu", "hpu", "xla")  # kinds that torch, or an extension of it, may compute on
HEAD_START_S = 8.0  # for rank 0 to speak, to end, and for the launcher to see that


_OVERRIDE = re.compile(r"[A-Za-z_][\w.]*=")
INTERRUPTED = 130  # exit status of a command that Ctrl-C has ended, as shells have it
UNREAD = 141  # of one whose output nobody reads any more


class Parser(argparse.ArgumentParser):
    """argparse's, which answers wrong words with one line in place of its usage.

    Misspelt options are told before what argparse finds missing, which may be just what the misspelt word meant. Of a
    misspelt value of an option that has ``choices`` the nearest one is named, too.
    """

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        """As argparse's, of words whose options are all known; a command of a command looks at its own."""
        words = list(sys.argv[1:] if args is None else args)
        if self._subparsers is None:
            own = words[: words.index("--")] if "--" in words else words
            options = [name for name in self._option_string_actions if name.startswith("--")]
            for option in (word.partition("=")[0] for word in own if word.startswith("--")):
                if not any(name.startswith(option) for name in options):
                    self.error(f"{option}: unknown option; {nearest(option, options, noun='options')}")
        return super().parse_known_args(self.gathered(words), namespace)

    def gathered(self, words: list[str]) -> list[str]:
        """``words`` with all key=value in one place, where no option of several values takes them for more of these.

        They may then stand anywhere. The value of an option of one, and a file of such a name, stay where they are.
        """
        if all(action.dest != "overrides" for action in self._actions):
            return words
        others, own, place, value = [], [], None, False
        for number, word in enumerate(words):
            if word == "--":
                others += words[number:]
                break
            if word.startswith("--"):
                named = (action for name, action in self._option_string_actions.items() if name.startswith(word))
                takes = next((action.nargs for action in named), 0)
                value = takes is None
                place = len(others) if place is None and takes in ("+", "*") else place
            elif not value and _OVERRIDE.match(word) and not os.path.exists(word):
                own.append(word)
                continue
            else:
                value = False
            others.append(word)
        return [*others[:place], *own, *others[len(others) if place is None else place :]]

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Of argparse: raises ArgumentError for a value that is none of the choices."""
        if action.choices is not None and value not in action.choices:
            known = nearest(str(value), [str(choice) for choice in action.choices], noun="values")
            raise argparse.ArgumentError(action, f"{value!r} is unknown; {known}")

    def error(self, message: str) -> NoReturn:
        """End the command."""
        remedy = "" if ";" in message else f"; {self.prog} --help tells what it takes"
        self.exit(2, f"error: {message}{remedy}\n")


def ended(run: Callable[[], int | None], go_on: str = "run the same command again") -> int:
    """Run a command; returns its exit status: what it returns (None: 0), or what ``tell`` says of a user's error.

    Where Ctrl-C ends it, that is one line, too: ``go_on`` says what to do then.
    """
    try:
        try:
            return run() or 0
        finally:
            sys.stdout.flush()  # here, where it can be told; --help leaves by an exception
    except BrokenPipeError as error:
        return unread(error)
    except USERS as error:
        return tell(error)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second one would break the end
        if this_rank() == 0:
            print(f"\ninterrupted: to go on, {go_on}", file=sys.stderr, flush=True)
        return INTERRUPTED


def unread(error: BrokenPipeError) -> int:
    """Exit status where what reads stdout has had enough, as ``head`` has: no error. Of other pipes: see ``tell``."""
    gone = select.poll()
    gone.register(sys.stdout.fileno(), 0)  # errors alone: a writer's pipe has one once nobody reads it
    if not gone.poll(0):
        return tell(error)
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what the interpreter flushes at its end
    return UNREAD


def quieten() -> None:
    """To be called before torch is loaded: leave out what other libraries say and nobody who starts a command can mend,
    and on all ranks but the first what rank 0 says as well. Bad videos are named by the rank that reads them."""
    libraries = r"(torch|transformers|accelerate|deepspeed|peft)\b"
    warnings.filterwarnings("ignore", category=FutureWarning, module=libraries)
    # DeepSpeed's value, which is train.accumulation, is the one that is meant.
    logging.getLogger("accelerate.accelerator").addFilter(lambda said: "steps mismatch" not in str(said.msg))
    if this_rank() == 0:
        return
    warnings.simplefilter("ignore")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    logging.getLogger("videollm").setLevel(logging.ERROR)
    for own in ("videollm.training.validation", "videollm.video"):  # of a share of the data
        logging.getLogger(own).setLevel(logging.WARNING)


@contextlib.contextmanager
def without_bars() -> Iterator[None]:
    """Within it transformers draws no bar of progress while it reads or writes weights; downloads keep theirs."""
    from huggingface_hub import utils as hub
    from transformers.utils import logging as theirs

    drawn, fetching = theirs.is_progress_bar_enabled(), not hub.are_progress_bars_disabled()
    theirs.disable_progress_bar()
    if fetching:
        hub.enable_progress_bars()
    try:
        yield
    finally:
        if drawn:
            theirs.enable_progress_bar()
        if not fetching:
            hub.disable_progress_bars()


def tell(error: Exception) -> int:
    """Print the message of ``error``; returns the exit status.

    What all ranks find, rank 0 says: the others wait, and the launcher ends them before they repeat it.
    """
    if this_rank() > 0:
        time.sleep(HEAD_START_S)
    for line in message(error).split("\n"):
        print(f"error: {line}", file=sys.stderr, flush=True)
    return 2


def message(error: Exception) -> str:
    """The text of an error without a worker's traceback; of an ``OSError`` the path and what the system says of it."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}; check the path and the right to use it"
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    return str(error).rpartition(f"{name}: ")[2].strip()


def usable_device(name: str | None) -> "torch.device":
    """The device ``name``, or this process's GPU, or the CPU; ConfigError where it is unknown or not there."""
    check_device(name)
    import torch

    if name in (None, "cuda"):
        name = f"cuda:{local_rank()}" if name or torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"--device: {name!r} cannot be used here ({str(error).splitlines()[0]}); try cpu") from None


def check_device(name: str | None) -> None:
    """ConfigError for a ``name`` that no device has; whether it is there, torch knows: see ``usable_device``."""
    kind, colon, number = str(name).partition(":")
    known = name is None or (kind in DEVICES and (number.isdecimal() or not colon))
    need(known, f"--device: {name!r} is no device; {nearest(kind, DEVICES, noun='devices')}")


def whole(least: int) -> Callable[[str], int]:
    """Reads a whole number from ``least`` on, for argparse."""

    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least}")
        return int(text)

    return number


def a_path(text: str) -> Path:
    """Reads a path, for argparse: an empty one would silently be the folder that one is in."""
    if not text:
        raise argparse.ArgumentTypeError("it is empty (an empty variable?); give a path")
    return Path(text)


def seconds(text: str) -> float:
    """Reads a number of seconds above 0, for argparse."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return number
