"""An upgrade that takes away what we use beside public interfaces is told by name; nothing private is used unsaid."""

import ast
import importlib
import inspect

import pytest
from transformers import Trainer

from videollm.common.internals import INTERNALS
from videollm.training.trainer import VideoTrainer

ROOMS = ("videollm", "d2vlm", "distime", "all_benchmark_eval", "quickstart")
OURS = {"self", "cls"}
STANDARD = {"_exit", "_asdict"}  # of os and of named tuples, documented


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


@pytest.mark.parametrize("name, file, why", INTERNALS, ids=[f"{name}-{file}" for name, file, _ in INTERNALS])
def test_what_has_no_public_way_is_still_there_and_still_used(repository, name, file, why):
    path, _, parameter = name.partition(":")
    library = path.split(".")[0]
    gone = f"{library} {importlib.import_module(library).__version__} no longer has {name}; find another way in {file}"
    try:
        value = found(path)
    except AttributeError:
        pytest.fail(f"{gone} ({why})")
    assert not parameter or parameter in inspect.signature(value).parameters, f"{gone} ({why})"
    used = parameter or path.split(".")[-1]
    assert used in (repository / file).read_text(), f"{file} does not use {used} any more: take it off the list"


def private_names(tree: ast.AST) -> set[str]:
    """Names with an underscore in front that are imported, or read from an object that is not one's own."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and not (isinstance(node.value, ast.Name) and node.value.id in OURS):
            names.add(node.attr)
        elif isinstance(node, ast.ImportFrom):
            names |= {*(node.module or "").split("."), *(alias.name for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {part for alias in node.names for part in alias.name.split(".")}
    return {name for name in names if name.startswith("_") and not name.endswith("__")}


def test_nothing_private_of_another_library_is_used_unsaid(repository):
    listed = {(file, part.removesuffix("()")) for name, file, _ in INTERNALS for part in name.split(".")}
    unsaid = [
        f"{path.relative_to(repository)}: {name}"
        for room in ROOMS
        for path in sorted((repository / room).rglob("*.py"))
        for name in sorted(private_names(ast.parse(path.read_text(encoding="utf-8"))) - STANDARD)
        if (str(path.relative_to(repository)), name) not in listed
    ]
    assert not unsaid, f"take the public way, or list it in videollm/common/internals.py: {unsaid}"


def test_the_trainer_replaces_nothing_private_of_transformers():
    ours = {name for name in vars(VideoTrainer) if name.startswith("_") and not name.endswith("__")}
    assert ours and not [name for name in sorted(ours) if hasattr(Trainer, name)]
