"""Files that are whole or not there, lines of JSON, and what is said of a folder or a record that cannot be used.

Knows nothing of what is in a file; whoever calls puts its own words around an error.
"""

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from videollm.common.config import ConfigError


class Bad(ValueError):
    """What is wrong with a record: ``what (key) - remedy``; whoever knows its file and line adds them."""

    def __init__(self, what: str, key: str, remedy: str):
        super().__init__(f"{what} ({key}) - {remedy}")


@contextlib.contextmanager
def replacing(path: Path, *, shared: bool = False) -> Iterator[Path]:
    """A path beside ``path`` to write to, which takes its name at the end: a kill leaves the old file or the new one.

    ``shared``: several processes may write ``path`` at once; else a new try overwrites what a killed one has left.
    """
    fresh = path.with_name(f"{path.name}.{os.getpid()}.tmp" if shared else f"{path.name}.tmp")
    try:
        yield fresh
        os.replace(fresh, path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str, *, shared: bool = False) -> None:
    """Write a text file in UTF-8, whole or not at all; see ``replacing``. Raises OSError."""
    with replacing(path, shared=shared) as fresh, open(fresh, "w", encoding="utf-8") as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())


def json_text(rows: Iterable[Any]) -> str:
    """The text of a JSON-lines file."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def an_object(value: Any) -> dict:
    """The value, if it is an object of JSON; else ValueError."""
    if not isinstance(value, dict):
        raise ValueError(f"expected an object, got {type(value).__name__}")
    return value


def json_lines(
    path: Path, bad: Callable[[int, str], None] | None = None, *, parse: Callable = an_object, torn: bool = False
) -> Iterator[tuple[int, Any]]:
    """(line number, what ``parse`` makes of its JSON data) of every line that is not blank.

    ``bad`` is told number and reason of a line that is not JSON or at which ``parse`` raises ValueError; it raises, or
    the line is left out. Without it that is a ValueError with FILE:LINE. ``torn``: a last line without its end, as a
    kill leaves it, is left out.
    """
    with open(path, "rb") as lines:  # bytes: a torn line may end within a character, and other breaks are text
        for number, line in enumerate(lines, start=1):
            if not line.strip() or (torn and not line.endswith(b"\n")):
                continue
            try:
                row = parse(json.loads(line))
            except (ValueError, RecursionError) as error:
                is_json = not isinstance(error, json.JSONDecodeError)
                why = str(error) if is_json else f"not JSON: {error.msg}, column {error.colno}"
                if bad is None:
                    raise ValueError(f"{path}:{number}: {why}") from None
                bad(number, why)
            else:
                yield number, row


def check_folder(path: str | Path, key: str) -> None:
    """ConfigError unless ``path``, the value of option ``key``, is the folder that paths are relative to."""
    if not Path(path).is_dir():
        raise ConfigError(f"{key}: {path} is not a folder; give the one that the paths are below")
