"""What the documents show: the commands that a reader would type, the links, the paths.

In: the text of a Markdown file. Out: ``Command``s with their lines, as they stand there; names of files and folders.
Knows how a command is set in a document; nothing of what the commands do.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from videollm.common.declared import COMMANDS, declared

SHELLS = ("bash", "sh", "console")
STARTS = (
    "python3? -m ",
    "bash ",
    "sh ",
    "torchrun ",
    "deepspeed ",
    "srun ",
    "sbatch ",
    "pytest ",
    "pip ",
    "apt",
    "videollm ",
)
TYPED = re.compile(rf"(?:\w+=\S+ )*(?:{'|'.join(STARTS)})")
OPENS = re.compile(r"(for|while|if|case)\b")
CLOSES = re.compile(r"(done|fi|esac)\b")
PATH = r"[\w.*{},/-]+"
MADE = {"runs", "data", "checkpoints"}  # by the reader's commands, in the repository's root
FILE = re.compile(rf"{PATH}\.(?:py|sh|sbatch|md|yaml|json|toml|cff|txt|cfg|png)")


@dataclass(frozen=True)
class Command:
    """What a reader would type."""

    file: str  # of the document, below the repository
    line: int
    text: str  # with its lines joined, without the comment behind it

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.text}"


def own_files(repository: Path, *suffixes: str) -> list[Path]:
    """The files of the repository with these suffixes: none of an environment or another hidden folder, none made."""
    return [
        path
        for top in sorted(repository.iterdir())
        if top.name[0] != "." and top.name not in MADE
        for path in ([top] if top.is_file() else sorted(top.rglob("*")))
        if path.suffix in suffixes
    ]


def documents(repository: Path) -> list[Path]:
    """README.md and docs/*.md."""
    return [repository / "README.md", *sorted((repository / "docs").glob("*.md"))]


def commands(repository: Path, path: Path) -> list[Command]:
    """All commands of a document, in its order: of fenced and indented blocks, and in backticks."""
    found, text = [], path.read_text(encoding="utf-8")
    name = str(path.relative_to(repository))
    for language, start, lines in blocks(text):
        if language in SHELLS:
            found += [Command(name, start + at, typed) for at, typed in shell_commands(lines, language == "console")]
        elif language is None:
            found += [Command(name, start + at, typed) for at, typed in prose_commands(lines)]
        else:
            found += [Command(name, start + i, line.strip()) for i, line in enumerate(lines) if TYPED.match(line)]
    found = [replace(command, text=as_modules(command.text)) for command in found]
    return sorted(found, key=lambda command: command.line)


def as_modules(text: str) -> str:
    """``videollm NAME`` as ``python -m MODULE``, which a clone has without an installation."""

    def module(match: re.Match) -> str:
        found = declared(COMMANDS).get(match[2])
        return match[0] if found is None else match[1] + found.partition(":")[0].removesuffix(".__main__")

    text = re.sub(r"(^|(?<=\s))videollm ", "python -m videollm ", text)
    text = re.sub(r"(python -m )videollm (\w+)", module, text)
    return re.sub(r"(python -m videollm\.launch )(\w+)(?= )", module, text)


def blocks(text: str) -> Iterator[tuple[str | None, int, list[str]]]:
    """(language, number of the first line, lines) of every fenced block, language None of what stands between them."""
    language, start, lines = None, 1, []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.startswith("```"):
            lines.append(line)
            continue
        yield language, start, lines
        language = (line.strip("` ") or "text") if language is None else None
        start, lines = number + 1, []
    assert language is None, f"a block that starts at line {start - 1} never ends"
    yield None, start, lines


def shell_commands(lines: list[str], prompted: bool = False) -> Iterator[tuple[int, str]]:
    """(place, command) of a shell block: continued lines joined, loops whole; also what a comment says to type."""
    start, held, depth = 0, [], 0
    for at, line in enumerate(lines):
        if prompted and not held:
            if not line.startswith("$ "):
                continue  # what the command prints
            line = line[2:]
        if not held:
            start = at
        code, _, comment = line.partition(" #") if not line.startswith("#") else ("", "", line)
        if hint := re.search(rf"{TYPED.pattern}.*", comment):
            yield at, hint[0].strip()
        held.append(code.rstrip())
        depth += bool(OPENS.match(code.strip())) - bool(CLOSES.match(code.strip()))
        if depth or held[-1].endswith("\\"):
            continue
        if whole := re.sub(r"\\\n\s*", "", "\n".join(held)).strip():
            yield start, whole
        held = []
    assert not held, f"unfinished command: {held}"


def prose_commands(lines: list[str]) -> Iterator[tuple[int, str]]:
    """(place, command) of indented blocks and of what stands in backticks, over the end of a line if need be."""
    for at, line in enumerate(lines):
        if line.startswith("    ") and TYPED.match(line.strip()):
            yield at, line.strip()
    for at, code in spans(lines):
        if TYPED.match(code):
            yield at, code


def spans(lines: list[str]) -> Iterator[tuple[int, str]]:
    """(place, content) of what stands in single backticks."""
    text = "\n".join(lines)
    for match in re.finditer(r"(?<!`)`([^`]+)`(?!`)", text):
        yield text.count("\n", 0, match.start()), " ".join(match[1].split())


def placeholders(text: str) -> list[str]:
    """Lines that somebody meant to write later."""
    left = re.compile(r"[A-Z]+(_[A-Z]+)+\s*$|.*\b(TODO|FIXME|XXX|TBD)\b")
    lines = enumerate(text.splitlines(), start=1)
    return [f"{number}: {line}" for number, line in lines if left.match(line)]


def links(text: str) -> list[str]:
    """Targets of all links and pictures outside of fenced blocks, as they stand there."""
    prose = "\n".join(line for language, _, lines in blocks(text) if language is None for line in lines)
    return re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`]*`", "", prose))


def anchors(text: str) -> set[str]:
    """What ``#name`` may follow a document's name: its headings, as they are shown on the web."""
    prose = (line for language, _, lines in blocks(text) if language is None for line in lines)
    headings = [line.lstrip("#").strip().lower() for line in prose if re.match("#+ ", line)]
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in headings}


def named_paths(text: str, folders: set[str]) -> list[str]:
    """What stands in backticks, alone or in a command, and looks like a path: a file with a folder before it, or what
    begins with one of ``folders``; ``{a,b}`` spelled out."""
    found = []
    for language, _, lines in blocks(text):
        for _, code in spans(lines) if language is None else ():
            words = code.split() if TYPED.match(code) else [code]
            paths = [word for word in words if "/" in word and re.fullmatch(PATH, word)]
            found += [path for path in paths if FILE.fullmatch(path) or path.split("/")[0] in folders]
    return [name for path in found for name in spelled(path)]


def spelled(path: str) -> list[str]:
    """``a/{b,c}.json`` -> ``a/b.json``, ``a/c.json``."""
    if not (choice := re.search(r"\{([^{}]*)\}", path)):
        return [path]
    return [path[: choice.start()] + one + path[choice.end() :] for one in choice[1].split(",")]
