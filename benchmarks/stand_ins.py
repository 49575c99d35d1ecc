"""What lets a model be measured where packages of the data side are missing: stand-ins for nncore and PyAV.

A lent GPU machine often has torch and transformers and nothing can be installed there. The model needs of nncore a
mapping of names, and of PyAV only that ``import av`` works, as long as no video is opened. Import this before anything
of ``videollm``; packages that are there are used as they are. Only measuring scripts and tests may import it.
"""

import sys
from importlib.util import find_spec
from types import ModuleType


def missing(*packages: str) -> list[str]:
    """Those of ``packages`` that are not installed; a stand-in does not count as installed."""
    return [name for name in packages if name in STANDING_IN or not (name in sys.modules or find_spec(name))]


class Registry(dict):
    """The part of ``nncore.Registry`` that the core uses: names of classes and functions."""

    def __init__(self, name: str):
        super().__init__()
        self.name = name

    def register(self, *, name: str):
        """A decorator that keeps what it decorates under ``name``."""

        def keep(value):
            self[name] = value
            return value

        return keep


class Absent(ModuleType):
    """A module whose names are there and whose classes cannot be made: that says what is missing."""

    __path__: tuple[str, ...] = ()  # a package, so that its modules can be imported

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        if name.islower():
            return Absent(f"{self.__name__}.{name}")
        top = self.__name__.split(".")[0]

        def refuse(*_, **__):
            raise ModuleNotFoundError(f"{top} is not installed", name=top)

        return type(name, (Exception,), {"__new__": refuse})


MODULES = {"nncore": (), "av": ("sidedata", "sidedata.sidedata", "video", "video.reformatter")}
STANDING_IN: list[str] = []


def stand_in() -> None:
    """Put stand-ins into the place of nncore and PyAV, where they are not installed."""
    for name in missing(*MODULES):
        for module in (name, *(f"{name}.{inner}" for inner in MODULES[name])):
            sys.modules[module] = Absent(module)
        STANDING_IN.append(name)
    if "nncore" in STANDING_IN:
        sys.modules["nncore"].Registry = Registry


stand_in()
