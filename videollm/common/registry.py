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
from typing import Any

from videollm.common.config import ConfigError
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


def new_registry(name: str) -> Registry:
    """An empty registry; ``name`` appears in its error messages. Fill it with ``@registry.register(name=...)``."""
    return Registry(name)


def registered(registry: Registry, name: str, key: str, remedy: str, group: str) -> Any:
    """What is registered as ``name``; imports the module of that name if there is nothing yet.

    Raises:
        ConfigError: there is no such thing; ``key`` is the option that names it, ``remedy`` ends the message, which
            lists what is registered, and what can be, as it is declared in the entry-point ``group``.
    """
    text = isinstance(name, str)
    if text and name not in registry and re.fullmatch(r"[a-z_]\w*(\.[a-z_]\w*)*", name):
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if not f"{name}.".startswith(f"{error.name}."):
                raise
    if not text or name not in registry:
        known = sorted({*registry.keys(), *(name for name, module in declared(group).items() if file_of(module))})
        near = difflib.get_close_matches(str(name), known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ";"
        raise ConfigError(f"{key}: no {key.split('.')[1]} {name!r}{hint} known: {', '.join(known)}. {remedy}")
    return registry.get(name)


def function_at(name: str, key: str) -> Callable:
    """The function ``package.module:function``; ConfigError if there is none, ``key`` is the option that names it."""
    module, _, function = name.partition(":")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{key}: no function {name!r} ({error}); write package.module:function") from None
