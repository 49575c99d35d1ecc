"""Every command under one name: ``videollm COMMAND ...``, or ``python -m videollm COMMAND ...`` in a clone.

In: the name of a command, which a package declares in the entry-point group ``videollm.commands``, and its arguments,
which it reads by itself. Out: its exit status. Knows no command; nothing but the chosen one is imported.
"""

import importlib
import sys
from collections.abc import Sequence

from videollm.common.command import ended
from videollm.common.config import nearest
from videollm.common.declared import COMMANDS, declared, sign, versions

ABSENT = "not part of this installation"


def overview() -> str:
    """The commands, a line each."""
    names = declared(COMMANDS)
    width = max(map(len, names)) + 2
    lines = (f"  {name:{width}}{sign(value.partition(':')[0]) or ABSENT}" for name, value in names.items())
    return "\n".join(
        [
            "usage: videollm COMMAND ...",
            "",
            *lines,
            "",
            "videollm COMMAND --help tells what it takes.",
            "videollm --version tells what is installed.",
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; 2 where there is none of that name."""
    name, *rest = (sys.argv[1:] if argv is None else argv) or [""]
    if name in ("", "-h", "--help"):
        return ended(lambda: print(overview())) or (0 if name else 2)
    if name == "--version":
        return ended(lambda: print(versions()))
    names = declared(COMMANDS)
    if name not in names:
        remedy = nearest(name, list(names), noun="commands")
        print(f"error: videollm {name}: no such command; {remedy}", file=sys.stderr)
        return 2
    module, _, function = names[name].partition(":")
    if not sign(module):
        print(f"error: videollm {name}: {ABSENT}; its module {module} is missing", file=sys.stderr)
        return 2
    return ended(lambda: getattr(importlib.import_module(module), function)(rest))


if __name__ == "__main__":
    sys.exit(main())
