"""An upgrade that takes away what we use beside public interfaces is told by name; nothing private is used unsaid."""

import ast
import importlib
import inspect

import pytest
from transformers import Trainer

from videollm.common.internals import INTERNALS
from videollm.training.trainer import VideoTrainer

ROOMS = ("videollm", "d2vlm", "distime", "all_benchmark_eval", "quickstart")
STANDARD = {"_exit", "_asdict"}  # of os and of named tuples, documented


@pytest.fixture(scope="module")
def code(repository):
    """{path: text} of our files, but for the list itself."""
    paths = [path for room in ROOMS for path in sorted((repository / room).rglob("*.py"))]
    return {str(p.relative_to(repository)): p.read_text("utf-8") for p in paths if p.name != "internals.py"}


def found(path: str):
    """The object at a dotted path; ``()`` behind a part calls it."""
    parts = path.split(".")
    for count in range(len(parts), 0, -1):
        try:
            value = importlib.import_module(".".join(parts[:count]))
        except (ImportError, TypeError):
            continue
        for part in parts[count:]:
            value = getattr(value, part.removesuffix("()"))
            value = value() if part.endswith("()") else value
        return value
    raise AttributeError(path)


@pytest.mark.parametrize("name", INTERNALS)
def test_what_has_no_public_way_is_still_there_and_still_used(code, name):
    path, _, parameter = name.partition(":")
    library, used = path.split(".")[0], parameter or path.split(".")[-1]
    users = [file for file, text in code.items() if used in text]
    assert users, f"nothing uses {used} any more: take it off the list"
    version = importlib.import_module(library).__version__
    gone = f"{library} {version} no longer has {name} ({INTERNALS[name]}): find another way in {', '.join(users)}"
    try:
        value = found(path)
    except AttributeError:
        pytest.fail(gone)
    assert not parameter or parameter in inspect.signature(value).parameters, gone


def private_names(text: str) -> set[str]:
    """Names with an underscore in front that are imported, or read from an object that is not one's own."""
    names = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) not in ("self", "cls"):
            names.add(node.attr)
        elif isinstance(node, ast.ImportFrom):
            names |= {*(node.module or "").split("."), *(alias.name for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {part for alias in node.names for part in alias.name.split(".")}
    return {name for name in names if name.startswith("_") and not name.endswith("__")}


def test_nothing_private_of_another_library_is_used_unsaid(code):
    listed = {part.removesuffix("()") for name in INTERNALS for part in name.split(".")} | STANDARD
    unsaid = {file: sorted(names) for file, text in code.items() if (names := private_names(text) - listed)}
    assert unsaid == {}, "take the public way, or list it in videollm/common/internals.py"


def test_the_trainer_replaces_nothing_private_of_transformers():
    ours = {name for name in vars(VideoTrainer) if name.startswith("_") and not name.endswith("__")}
    assert ours and not [name for name in sorted(ours) if hasattr(Trainer, name)]
