"""The published predictions and scores; a module of tests that imports this is skipped where they are not."""

import pytest

from tests.conftest import place

PAPER = place("PAPER_DIR")
if not PAPER.is_dir():
    pytest.skip(f"no published scores: {PAPER} is not a folder (set PAPER_DIR)", allow_module_level=True)


def leaves(table: dict, path: tuple[str, ...] = ()):
    """(keys, value) of every number of a table within tables."""
    for key, value in table.items():
        yield from leaves(value, (*path, key)) if isinstance(value, dict) else [((*path, key), value)]
