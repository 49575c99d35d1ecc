"""The one place where nncore is imported.

nncore imports OpenCV for parts that this project does not use, and takes a missing system library for a missing
package. Its registry works without OpenCV, so that warning is silenced here and nothing else of nncore is touched.
Each registry lives beside what it registers (``HEADS`` in ``heads/interface.py``); this module knows none of them.
"""

import difflib
import importlib
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from videollm.common.config import ConfigError, need
from videollm.common.declared import declared, file_of

try:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Please install opencv-python")
        from nncore import Registry
except ImportError as error:
    raise ImportError(
        f"nncore could not be imported ({error}). Install it with `pip install nncore`; if the error names a shared "
        "library such as libGL.so.1, install the system packages: apt install libgl1 libglib2.0-0 libxcb1"
    ) from error


_PLUG = re.compile(rb"^\s*(?:from|import)\s+videollm\b", re.MULTILINE)


def new_registry(name: str) -> Registry:
    """An empty registry; ``name`` appears in its error messages. Fill it with ``@registry.register(name=...)``."""
    return Registry(name)


ELSEWHERE = "One of another package is named by the module that registers it, PACKAGE.MODULE or PACKAGE.MODULE.NAME"


def registered(registry: Registry, name: str, key: str, remedy: str = ELSEWHERE) -> Any:
    """What is registered as ``name``; where there is no such thing yet, a module that may register it is imported.

    That module is the one which an entry point ``name`` of the group ``videollm.<registry>`` declares, ``name`` itself,
    or for ``PACKAGE.MODULE.NAME`` what registers NAME. See ``bring`` for what is never imported.

    Raises:
        ConfigError: there is no such thing, or its module cannot be imported; ``key`` is the option that names it,
            ``remedy`` ends the message, which lists what there is.
    """
    text, group = isinstance(name, str), f"videollm.{registry.name}"
    why = bring(name, group, key) if text and look_up(registry, name) is None else ""
    found = look_up(registry, name) if text else None
    if found is not None:
        return found
    known = {*registry.keys(), *(other for other, module in declared(group).items() if file_of(module))}
    own = [f"{name}.{other}" for other in sorted(registry.keys()) if module_of(registry.get(other)) == name]
    near = own or difflib.get_close_matches(str(name), known, n=1)
    raise ConfigError(
        f"{key}: no {registry.name.removesuffix('s')} {name!r}{why}; "
        f"{f'did you mean {near[0]}? ' if near else ''}known: {', '.join(sorted(known))}. {remedy}"
    )


def look_up(registry: Registry, name: str) -> Any:
    """What is registered as ``name``, or as NAME by the package or module in front of it; None if nothing is."""
    module, _, last = name.rpartition(".")
    part = registry.get(last) if module else None
    own = f"{module_of(part)}.".startswith(f"{module}.")
    return registry.get(name) or (part if own else None)


def module_of(part: Any) -> str:
    """The module in which something was written."""
    return getattr(part, "__module__", "")


def bring(name: str, group: str, key: str) -> str:
    """Import the module that may register ``name``; returns why one that is there was not imported, if so.

    A checkpoint's config names parts, too, and may come from anybody. So only a plug-in is imported: a module that an
    entry point of ``group`` declares, or one whose package imports this one. Its source is read for that, not run.
    """
    named = declared(group).get(name, "").partition(":")[0]
    dotted = name != "__main__" and all(part.isidentifier() for part in name.split("."))
    for module in (named, name, name.rpartition(".")[0]) if named or dotted else ():
        file = file_of(module) if module else None
        if file is None:
            continue
        if module != named and not plugs_in(file):
            return f" ({module} does not import videollm, so it is no plug-in and is not imported)"
        try:
            with torch.device("cpu"):  # a model may be planned on the meta device right now
                importlib.import_module(module)
        except ImportError as error:
            raise ConfigError(f"{key}: {module} cannot be imported ({error}); install what it needs") from None
        return ""
    return ""


def plugs_in(file: Path) -> bool:
    """Whether a module, or for a package any of its modules, imports this package."""
    files = sorted(file.parent.rglob("*.py")) if file.name == "__init__.py" else [file]
    return any(_PLUG.search(one.read_bytes()) for one in files if one.suffix == ".py")


def function_at(name: str, key: str) -> Callable:
    """The function ``package.module:function``; ConfigError if there is none, ``key`` is the option that names it."""
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{key}: no function {name!r} ({error}); write package.module:function") from None
    need(callable(found), f"{key}: {name!r} is no function but {found!r:.60}; write package.module:function")
    return found
