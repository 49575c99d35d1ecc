"""The house of docs/architecture.md: imports go one way, none in a circle, no room is full, no plug-in in the core."""

import ast
import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
CORE = REPOSITORY / "videollm"
FULL, LONG, TALL = 14, 400, 60  # files of a room, lines of a file, lines of a function
OUTSIDE = ("d2vlm", "distime", "all_benchmark_eval", "quickstart", "realweights", "benchmarks", "tests")
FILES = sorted(CORE.rglob("*.py"))
CODE = [f for top in ("videollm", *OUTSIDE) for f in sorted((REPOSITORY / top).rglob("*.py"))]


def drawn() -> list[str]:
    """The rooms in the order in which the page lists them."""
    page = (REPOSITORY / "docs/architecture.md").read_text(encoding="utf-8")
    return re.findall(r"^\| `videollm/(\w+)/` \|", page, re.MULTILINE)


@cache
def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def imports(file: Path) -> set[str]:
    """Modules of this repository that a file imports anywhere in it, also for types only."""
    found = set()
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: a relative import hides where it leads"
            # ``from a.b import c`` may mean the module a.b.c.
            own = {
                a.name for a in node.names if (REPOSITORY / node.module.replace(".", "/") / f"{a.name}.py").is_file()
            }
            found |= {f"{node.module}.{name}" for name in own} | (
                {node.module} if own != {a.name for a in node.names} else set()
            )
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name.split(".")[0] in ("videollm", *OUTSIDE)}


def name_of(file: Path) -> str:
    return ".".join(file.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")


def test_the_page_draws_every_room():
    assert sorted(drawn()) == sorted(f.name for f in CORE.iterdir() if f.is_dir() and f.name != "__pycache__")


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_a_file_imports_only_what_stands_above_it(file):
    order = drawn()
    room = file.relative_to(CORE).parts[0]
    door = room not in order or file.name == "__main__.py"  # which may import everything
    above = order if door else order[: order.index(room) + 1]
    for name in imports(file):
        top, *rest = name.split(".")
        assert top == "videollm", f"{name} is outside the core"
        assert rest and rest[0] in above, f"{name} is below {room}"


def test_no_import_runs_in_a_circle():
    modules = {name_of(file): file for file in FILES}
    graph = {name: {m for m in imports(file) if m in modules} for name, file in modules.items()}
    while ready := {name for name, needs in graph.items() if not needs & graph.keys()}:
        graph = {name: needs for name, needs in graph.items() if name not in ready}
    assert not graph, f"in circles, or importing one: {sorted(graph)}"


def test_no_room_is_too_full():
    rooms = {file.parent for file in FILES}
    assert {r.name: n for r in rooms if (n := len(list(r.glob("*.py")))) > FULL} == {}


def test_no_file_is_too_long_and_no_function_too_tall():
    long = {name_of(f): n for f in CODE if (n := f.read_text(encoding="utf-8").count("\n")) > LONG}
    functions = ((f, n) for f in CODE for n in ast.walk(tree(f)) if isinstance(n, ast.FunctionDef))
    tall = {f"{name_of(f)}.{n.name}" for f, n in functions if n.end_lineno - n.lineno >= TALL}
    assert not long and not tall


def spoken(file: Path) -> set[str]:
    """Strings and names of a file's code; docstrings and comments may cite papers."""
    nodes = list(ast.walk(tree(file)))
    bodies = (n.body[0] for n in nodes if isinstance(n, ast.Module | ast.ClassDef | ast.FunctionDef) and n.body)
    docs = {id(b.value) for b in bodies if isinstance(b, ast.Expr)}
    texts = {n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str) and id(n) not in docs}
    return (
        texts
        | {n.id for n in nodes if isinstance(n, ast.Name)}
        | {n.attr for n in nodes if isinstance(n, ast.Attribute)}
    )


def test_the_core_names_no_head_and_no_benchmark():
    tasks = [f.parent.name for f in (REPOSITORY / "all_benchmark_eval").glob("*/task.py")]
    plugged = re.compile("|".join(rf"\b{name}\b" for name in (*OUTSIDE[:-2], *tasks)))
    marks = re.compile("<evi>|<TIME_STAMP>")  # of published annotation files: they are read in one place
    found = {name_of(f): said for f in FILES if (said := [s for s in spoken(f) if plugged.search(s)])}
    marked = {name_of(f) for f in FILES if any(marks.search(s) for s in spoken(f))}
    assert found == {} and marked == {"videollm.data.published"}


def test_the_top_level_holds_what_the_readme_names():
    """A run with its output in the clone once left its files here, and they were committed."""
    listed = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("this copy of the repository has no git")
    folders = {*OUTSIDE, "videollm", "cards", "configs", "docs", "scripts"}
    files = {"README.md", "CHANGELOG.md", "CITATION.cff", "LICENSE", "pyproject.toml", "requirements.txt", "setup.py"}
    tops = {name.split("/")[0] for name in listed.stdout.splitlines()}
    assert {top for top in tops if not top.startswith(".")} <= folders | files
