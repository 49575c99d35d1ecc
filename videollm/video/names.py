"""A path that may not be what its writer means -> what is wrong with it, and the name that was meant.

Names change on their way between systems: capitals, backslashes, letters with marks in one code or in two (NFC, NFD).
Knows no formats; looks at names and never into files.
"""

import difflib
import os
import stat
import unicodedata
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

COMPARED = 1000  # names of a folder that are compared letter by letter; the check may meet many missing files
ONLY_FILES = {"protocol_whitelist": "file"}  # for FFmpeg: a playlist, say, could name places in the network
LISTED = 10_000  # names of a folder that are looked at at all


def as_url(path: str | Path) -> str:
    """The path as FFmpeg takes it for a file, whatever stands in it: ``12:30.mp4`` alone would be a protocol."""
    return f"file:{path}"


def spellings(relative: str) -> Iterator[str]:
    """The name as it stands, then as other systems write it."""
    slashed = relative.replace("\\", "/")
    forms = (unicodedata.normalize(form, name) for name in (relative, slashed) for form in ("NFC", "NFD"))
    yield from dict.fromkeys((relative, slashed, *forms))


def unusable(path: Path, folder: bool = False) -> tuple[str, str] | None:
    """(what is wrong, the remedy) where there is no file, or no ``folder``, at ``path``; None where there is one."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        hint = nearest(path)
        return f"does not exist{hint and f' ({hint})'}", "check the path and the folder of the videos"
    except (OSError, ValueError) as error:
        return f"cannot be opened ({getattr(error, 'strerror', None) or error})", "correct the path"
    if (stat.S_ISDIR if folder else stat.S_ISREG)(mode):
        return None
    return f"is not a {'folder' if folder else 'file'}", "check the path and the folder of the videos"


def nearest(path: Path) -> str:
    """Why nothing is at ``path``: the existing name that it may mean and by what they differ; empty where none is."""
    if path.is_symlink():
        return f"a link to {os.readlink(path)}, which is not there"
    while path != path.parent and not path.parent.is_dir():
        path = path.parent
    try:
        with os.scandir(path.parent) as entries:
            names = sorted(entry.name for entry in islice(entries, LISTED))
    except OSError:
        return ""
    wanted = path.name
    for name in names:
        if unicodedata.normalize("NFC", name) == unicodedata.normalize("NFC", wanted):
            return f"{path.parent} has {name!r}, written in another Unicode form (NFC, NFD): rename it"
    for differ, alike in (("capitals", str), ("the suffix", lambda name: os.path.splitext(name)[0])):
        for name in names:
            if alike(folded(name)) == alike(folded(wanted)):
                return f"{path.parent} has {name!r}, which differs in {differ}"
    close = difflib.get_close_matches(wanted, names[:COMPARED], n=1, cutoff=0.75)
    if close:
        return f"the nearest name in {path.parent} is {close[0]!r}"
    return "its backslashes are no separators here: write /" if "\\" in wanted else ""


def folded(name: str) -> str:
    """The name without what people do not see as another one."""
    return unicodedata.normalize("NFC", name).casefold()
