"""What this package and its plug-ins declare as entry points, by name: commands, and what registries hold.

In: an entry-point group. Out: {name: ``module`` or ``module:function``}. In a clone ``setup.py`` holds over what is
installed, so that a new name counts at once, and without any installation. Nothing that is named here is imported.
"""

import ast
import platform
from functools import cache
from importlib import metadata, util
from pathlib import Path
from typing import Any

from videollm.common.code import PACKAGES, code, version
from videollm.common.files import HOME

COMMANDS = "videollm.commands"


@cache
def declared(group: str) -> dict[str, str]:
    """{name: value} of every entry point of ``group``, those of this package first."""
    own = of_clone(HOME / "setup.py").get(group, ())
    listed = {name.strip(): value.strip() for name, _, value in (line.partition("=") for line in own)}
    return listed | {e.name: e.value for e in metadata.entry_points(group=group) if e.name not in listed}


def of_clone(setup: Path) -> dict[str, list[str]]:
    """The entry points of a ``setup.py``; nothing where there is no such file."""
    return stated(setup, "entry_points") or {}


def stated(setup: Path, key: str) -> Any:
    """What a ``setup.py`` gives as ``key``. It is parsed, not run; None where there is no such file or key."""
    if not setup.is_file():
        return None
    calls = (node for node in ast.walk(ast.parse(setup.read_text(encoding="utf-8"))) if isinstance(node, ast.Call))
    return next((ast.literal_eval(k.value) for call in calls for k in call.keywords if k.arg == key), None)


def versions() -> str:
    """This package, its commit and what it stands on, for a report of a fault; nothing of it is imported."""
    commit, changed = code()
    own = stated(HOME / "setup.py", "version") or version("videollm")
    at = f"commit {commit}{', with changes' * bool(changed)}" if commit else "no git checkout"
    others = (f"{name} {version(name) or 'missing'}" for name in PACKAGES)
    return f"videollm {own} ({at})\nPython {platform.python_version()}, {', '.join(others)}"


def file_of(module: str) -> Path | None:
    """The file of a module, found without importing a package above it; None where there is none."""
    top, *below = module.split(".")
    spec = util.find_spec(top)
    for place in (spec and spec.submodule_search_locations) or ():
        file = Path(place, *below)
        for path in (file.with_suffix(".py"), file / "__init__.py"):
            if below and path.is_file():
                return path
    return Path(spec.origin) if spec and spec.origin and not below else None


def sign(module: str) -> str:
    """What a module's docstring says first, up to a colon or full stop; empty where the module is not there."""
    path = file_of(module)
    said = path and ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    return "" if not said else said.split("\n\n")[0].replace("\n", " ").split(": ")[0].split(". ")[0].rstrip(".")
