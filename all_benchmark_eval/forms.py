"""Files of annotations and predictions: read once, and told apart by what stands in them, whatever they are called.

In: a path. Out: a ``Content``, and the one ``Form`` of a benchmark's list that it fits. A benchmark's forms stand in
one place, its class: ``truths`` and ``forms``. No benchmark, model or metric is known here.
"""

import gzip
import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from videollm.common import config, files
from videollm.video.names import nearest


class BenchmarkError(config.UserError, ValueError):
    """Something the user can mend: a message that names the file, line, id or key, and the remedy."""


need = partial(config.need, error=BenchmarkError)  # need(holds, message)

Rows = list[tuple[str, Any]]  # (place, item)


@dataclass(frozen=True)
class Content:
    """What a file holds.

    ``rows``: the items of a JSON list, or of JSON lines, each with its place. ``object``: one JSON object; it is a
    single row as well. A plain text has neither. ``parts``: the files of a folder, of which ``rows`` are all rows. It
    stands for its file wherever a path is wanted.
    """

    path: Path
    text: str = ""
    object: Mapping[str, Any] | None = None
    rows: Rows = field(default_factory=list)
    parts: tuple["Content", ...] = ()

    def __fspath__(self) -> str:
        return str(self.path)

    def __str__(self) -> str:
        return str(self.path)

    @staticmethod
    def of(path: "Path | Content") -> "Content":
        """A file, plain or gzipped, JSON or JSON lines whichever its name says, or a folder of such files.

        Raises BenchmarkError for what is missing, empty, torn or not JSON from its first bracket on.
        """
        if isinstance(path, Content):
            return path
        path = Path(path)
        if path.is_dir():
            return _folder(path)
        text = read_text(path)
        need(text.strip(), f"{path}: the file is empty")
        bracket = text.lstrip()[0]
        if bracket == "{" and _is_lines(text):
            return Content(path, text, rows=list(_lines(text, path)))
        if bracket not in "[{":
            return Content(path, text)
        data = _parse(text, path, path)
        if isinstance(data, dict):
            return Content(path, text, data, [(f"{path}", data)])
        return Content(path, text, rows=[(f"{path}: item {n}", row) for n, row in enumerate(data, start=1)])

    @property
    def row(self) -> Mapping[str, Any]:
        """The first row, if it is an object; else an empty one."""
        return self.rows[0][1] if self.rows and isinstance(self.rows[0][1], dict) else {}

    @property
    def entry(self) -> tuple[str, Any] | None:
        """The first (key, value) of the object whose value says something; the first of all if none does."""
        pairs = list(self.object.items())[:1000] if self.object else []
        return next(((key, value) for key, value in pairs if value), next(iter(pairs), None))


@dataclass(frozen=True)
class Form:
    """A way to write a file.

    Attributes:
        name: whose it is, as docs/evaluation.md lists it.
        shape: what it looks like, for messages.
        fits: whether a content is of it; it looks at the first items only, ``read`` checks all.
        read: (content, truth) -> what the benchmark makes of it; of annotations (content) alone.
    """

    name: str
    shape: str
    fits: Callable[[Content], bool]
    read: Callable[..., Any]


def rows_with(*keys: str, lacks: Sequence[str] = ()) -> Callable[[Content], bool]:
    """Fits a content whose first row has ``keys``, and none that it ``lacks``."""
    return lambda content: all(key in content.row for key in keys) and not any(key in content.row for key in lacks)


def has_key(key: str) -> Callable[[Content], bool]:
    """Fits one object with ``key``."""
    return lambda content: content.object is not None and key in content.object


def entries(test: Callable[[str, Any], bool]) -> Callable[[Content], bool]:
    """Fits an object of whose first (key, value) ``test`` holds."""
    return lambda content: content.entry is not None and test(*content.entry)


def pick(content: Content, forms: Sequence[Form], owner: str) -> Form:
    """The one of ``forms`` that a content is of. Raises BenchmarkError where none fits, or several do, naming them."""
    fitting = [form for form in forms if form.fits(content)]
    if len(fitting) == 1:
        return fitting[0]
    told = "; ".join(f"{form.name} {form.shape}" for form in fitting or forms)
    need(not fitting, f"{content.path}: may be of several forms, which say different things: {told}; keep one's keys")
    raise BenchmarkError(f"{_is_not(content)}, which is none of the forms of {owner}: {told}")


def _is_not(content: Content) -> str:
    """What a content is, for a message that it is nothing known."""
    if content.object is not None:
        keys = ", ".join(f"{key!r:.40}" for key in list(content.object)[:4])
        return f"{content.path}: an object with {f'the keys {keys}' if keys else 'no key'}"
    if not content.rows:
        if content.text.lstrip()[:1] != "[" and not content.parts:
            _parse(content.text, content.path, content.path)  # says where it is not JSON
        return f"{content.path}: no item in it"
    where, row = content.rows[0]
    if not isinstance(row, dict):
        raise BenchmarkError(f"{where}: expected an object, got {type(row).__name__}")
    return f"{where}: an item with the keys {', '.join(f'{key!r:.40}' for key in list(row)[:8])}"


def _folder(path: Path) -> Content:
    names = (f"*.{kind}{end}" for kind in ("json", "jsonl") for end in ("", ".gz"))
    files = sorted(file for name in names for file in path.glob(name) if "metrics" not in file.name)
    need(files, f"{path}: no .json or .jsonl file in this folder")
    parts = tuple(map(Content.of, files))
    return Content(path, rows=[row for part in parts for row in part.rows], parts=parts)


# ---- text and JSON ---------------------------------------------------------------------------------------------------


def read_text(path: Path) -> str:
    """A text file, gunzipped if it starts as gzip does. Raises BenchmarkError if missing, truncated or not UTF-8."""
    try:
        raw = Path(path).read_bytes()
        return (gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw).decode("utf-8-sig")
    except FileNotFoundError:
        meant = f" ({near})" if (near := nearest(Path(path))) else ""
        raise BenchmarkError(f"{path}: no such file{meant}; check the path") from None
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise BenchmarkError(f"{path}: cannot be read ({error}); is it complete and UTF-8 text?") from None


def read_json(path: Path) -> Any:
    """A JSON file. Raises BenchmarkError naming the place of what is not JSON; a repeated key is refused as well."""
    text = read_text(path)
    need(text.strip(), f"{path}: the file is empty")
    return _parse(text, path, path)


def read_lines(path: Path) -> Iterator[tuple[str, dict]]:
    """(FILE:LINE, object) of every line of a JSON-lines file that is not blank."""
    text = read_text(path)
    need(text.strip(), f"{path}: the file is empty")
    return _lines(text, path)


def _lines(text: str, path: Path) -> Iterator[tuple[str, dict]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            where = f"{path}:{number}"
            row = _parse(line, where, path, number)
            need(isinstance(row, dict), f"{where}: expected an object, got {type(row).__name__}")
            yield where, row


def _is_lines(text: str) -> bool:
    """Whether the first line is a whole object and another one follows."""
    first, _, more = text.strip().partition("\n")
    if not more:
        return False
    try:
        return isinstance(files.parse_json(first), dict)
    except ValueError:
        return False


def _parse(text: str, where: object, path: Path, first: int = 1) -> Any:
    """JSON data; ``first`` is the number of its first line."""
    try:
        value = files.parse_json(text, object_pairs_hook=lambda pairs: _unique(pairs, where))
        items = enumerate(value, start=1) if isinstance(value, list) else [(None, value)]
        for number, item in items:
            where = where if number is None else f"{path}: item {number}"
            files.check_json(item)
        return value
    except files.Bad as bad:
        raise BenchmarkError(f"{where}: {bad}") from None
    except json.JSONDecodeError as error:
        line = first + error.lineno - 1
        raise BenchmarkError(f"{path}:{line}: not JSON ({error.msg}, column {error.colno})") from None
    except BenchmarkError:
        raise
    except ValueError as error:
        raise BenchmarkError(f"{where}: a number that cannot be read ({error})") from None


def _unique(pairs: Sequence[tuple[str, Any]], where: object) -> dict:
    """An object of JSON whose keys are all different."""
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise BenchmarkError(
            f"{where}: the key {twice!r:.200} stands twice in one object; only one of them can be meant"
        )
    return found
