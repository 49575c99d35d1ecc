"""Files that are whole or not there, lines of JSON, and what is said of a folder or a record that cannot be used.

JSON data counts as read only if it can be written again. Knows nothing of what is in a file; whoever calls puts its own
words around an error.
"""

import contextlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from videollm.common.config import ConfigError, need

HOME = Path(__file__).resolve().parents[2]  # the folder of this package; in a clone ``configs/`` is there, too
A_MODEL = (
    "give the folder of a trained model, such as runs/NAME/final; released weights become one by videollm convert "
    "HUB-NAME FOLDER"
)
HUB_NAME = re.compile(r"(?P<name>(?:\w[\w.-]*/)?\w[\w.-]*)(?:@(?P<revision>[\w./-]+))?")  # owner/model@revision
DEEPEST = 100  # lists and objects within each other; what reads, copies and writes them calls itself as often


class Bad(ValueError):
    """What is wrong with a record: ``what (key) - remedy``; whoever knows its file and line adds them."""

    def __init__(self, what: str, key: str, remedy: str):
        super().__init__(f"{what} ({key}) - {remedy}")


@contextlib.contextmanager
def replacing(path: Path, *, shared: bool = False) -> Iterator[Path]:
    """A path beside ``path`` to write to, which takes its name at the end: a kill leaves the old file or the new one.
    The folder is made.

    ``shared``: several processes may write ``path`` at once; else a new try overwrites what a killed one has left.
    """
    fresh = path.with_name(f"{path.name}.{os.getpid()}.tmp" if shared else f"{path.name}.tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield fresh
        os.replace(fresh, path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder beside ``path`` to write into, which takes its name at the end; ``path`` is empty or not there.

    What fails or is interrupted leaves nothing, what is killed a folder that the next try clears.
    """
    fresh = path.with_name(f".{path.name}.unfinished")  # a name that no user's own folder has: it is removed
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    try:
        yield fresh
        os.replace(fresh, path)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
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


def read_json(data: bytes | str, **options: Any) -> Any:
    """JSON data that can be written again: see ``check_json``. ``options`` are those of ``json.loads``.

    Raises:
        ValueError: not JSON (``json.JSONDecodeError``), not text in its encoding, or of ``check_json``.
    """
    value = parse_json(data, **options)
    check_json(value)
    return value


def parse_json(data: bytes | str, **options: Any) -> Any:
    """JSON data as it stands, for callers that check its pieces by themselves; errors as of ``read_json``."""
    # Decoded here: json lets the bytes of half a character pass.
    text = data if isinstance(data, str) else data.decode(json.detect_encoding(data))
    try:
        return json.loads(text, **options)
    except RecursionError:
        raise _too_deep() from None


def check_json(value: Any) -> None:
    """Raises Bad for JSON data that nothing can write: half a character (a lone surrogate), or nested too deep."""
    try:
        text = json.dumps(value, ensure_ascii=False)
        text.encode()
    except UnicodeEncodeError as error:
        half = ascii(error.object[error.start])[1:-1]
        raise Bad(f"half a character, {half}", "line", "write the whole character, or leave it out") from None
    except RecursionError:
        raise _too_deep() from None
    depth, level = 0, [value] if text.count("[") + text.count("{") > DEEPEST else []
    while level := [one for one in level if isinstance(one, dict | list)]:
        depth += 1
        if depth > DEEPEST:
            raise _too_deep()
        level = [inner for one in level for inner in (one.values() if isinstance(one, dict) else one)]


def _too_deep() -> Bad:
    return Bad(f"more than {DEEPEST} lists and objects within each other", "line", "flatten them, or leave them out")


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
    the line is left out. Without it that is a ConfigError with FILE:LINE. ``torn``: a last line without its end, as a
    kill leaves it, is left out.
    """
    with open(path, "rb") as lines:  # bytes: a torn line may end within a character, and other breaks are text
        for number, line in enumerate(lines, start=1):
            if not line.strip() or (torn and not line.endswith(b"\n")):
                continue
            try:
                row = parse(read_json(line))
            except ValueError as error:
                is_json = not isinstance(error, json.JSONDecodeError)
                why = str(error) if is_json else f"not JSON: {error.msg}, column {error.colno}"
                if bad is None:
                    raise ConfigError(f"{path}:{number}: {why}") from None
                bad(number, why)
            else:
                yield number, row


def check_path(path: object, key: str) -> None:
    """ConfigError unless ``path``, the argument ``key`` of a function that programs call, may be one of a file."""
    text = os.fspath(path) if isinstance(path, str | os.PathLike) else None
    need(isinstance(text, str), f"{key}: {path!r:.60} is no path; give a text or a pathlib.Path")
    need(text, f"{key}: it is empty; give a path")
    need("\0" not in text, f"{key}: {text!r:.60} holds a NUL character, which no file's name has; write it without")


def check_folder(path: str | Path, key: str) -> None:
    """ConfigError unless ``path``, the value of option ``key``, is the folder that paths are relative to."""
    if not str(path):
        raise ConfigError(f"{key}: it is empty; give the folder that the paths are below")
    if not Path(path).is_dir():
        raise ConfigError(f"{key}: {path} is not a folder; give the one that the paths are below")


def check_file(path: str | Path, key: str) -> None:
    """ConfigError unless ``path``, the value of option ``key``, is a file."""
    if not Path(path).is_file():
        raise ConfigError(f"{key}: no file {path}; check the path")


def check_model(path: str | Path, key: str, remedy: str = A_MODEL) -> None:
    """ConfigError where ``path``, the value of option ``key``, cannot be a checkpoint; what is in it, loading sees.

    With a ``remedy`` of its own it is a folder, no name of the hub.
    """
    folder = Path(path)
    if (folder / "config.json").is_file() or (remedy is A_MODEL and maybe_on_hub(path)):
        return
    lacks = "no config.json" if folder.is_dir() else "no such folder"
    if (folder / "final" / "config.json").is_file():
        remedy = f"it is a run, its model is {folder / 'final'}"
    raise ConfigError(f"{key}: {folder}: {lacks}; {remedy}")


def maybe_on_hub(name: str | Path) -> bool:
    """Whether nothing is there, and ``name`` may be ``owner/name`` of the hub: no folder ``owner`` is here either."""
    owner, _, rest = str(name).partition("/")
    return bool(rest) and HUB_NAME.fullmatch(str(name)) is not None and not Path(owner).exists()


def ours(path: str | Path) -> Path:
    """``path``; where nothing is there and it begins with ``configs/``, that file of the clone this package is in."""
    own = Path(path).parts[:1] == ("configs",) and not Path(path).exists() and (HOME / path).is_file()
    return HOME / path if own else Path(path)


def check_writable(path: Path, key: str, read: Iterable[str | Path] = ()) -> None:
    """ConfigError where the file ``path``, the value of option ``key``, cannot be written, or where it is one of those
    that are ``read`` and would be lost. Nothing is made or left.

    Tried, not asked: to the administrator all rights are said to be there, also below /proc.
    """
    there = next(parent for parent in path.absolute().parents if parent.exists())
    try:
        with open(path, "ab") if path.exists() else tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise ConfigError(f"{key}: cannot write to {path} ({error.strerror}); choose another place") from None
    lost = path.exists() and any(Path(one).exists() and path.samefile(one) for one in read)
    need(not lost, f"{key}: {path} is read, too, and would be lost; choose another place")
