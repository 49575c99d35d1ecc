"""README.md and docs/*.md name nothing that is not there: links, paths, tests, Python modules; and are finished."""

import re
from pathlib import Path

import pytest

from tests.documents import (
    MADE,
    anchors,
    blocks,
    documents,
    links,
    named_paths,
    own_files,
    placeholders,
    shell_commands,
    spans,
)

REPOSITORY = Path(__file__).resolve().parents[2]
DOCUMENTS = pytest.mark.parametrize("path", documents(REPOSITORY), ids=lambda path: path.stem)
ELSEWHERE = {
    "ET-Instruct/evi.json",
    "center_width/__init__.py",
    "confident/__init__.py",
}  # in a data set; written by the reader


@DOCUMENTS
def test_nothing_is_left_to_be_written(path):
    assert not placeholders(path.read_text(encoding="utf-8"))


@DOCUMENTS
def test_every_link_leads_to_a_file_and_a_heading(path):
    broken = []
    for link in links(path.read_text(encoding="utf-8")):
        name, _, heading = link.partition("#")
        target = path.parent / name if name else path
        if re.match(r"\w+://", link):
            continue
        if not target.exists() or heading and heading not in anchors(target.read_text(encoding="utf-8")):
            broken.append(link)
    assert not broken


@DOCUMENTS
def test_every_path_is_there(path):
    folders = {entry.name for entry in REPOSITORY.iterdir() if entry.is_dir()} - MADE
    names = named_paths(path.read_text(encoding="utf-8"), folders)
    names = {name for name in names if name.split("/")[0] not in MADE} - ELSEWHERE
    assert not sorted(name for name in names if not any(REPOSITORY.glob(name)) and not any(path.parent.glob(name)))


@DOCUMENTS
def test_every_test_that_is_named_is_there(path):
    written = "".join(file.read_text(encoding="utf-8") for file in (REPOSITORY / "tests").rglob("test_*.py"))
    there = set(re.findall(r"def (test_\w+)\(", written))
    text = path.read_text(encoding="utf-8")
    named = [code for language, _, lines in blocks(text) if language is None for _, code in spans(lines)]
    assert not [name for name in named if re.fullmatch(r"test_\w+", name) and name not in there]


@DOCUMENTS
def test_every_import_of_an_example_works(path):
    for language, _, lines in blocks(path.read_text(encoding="utf-8")):
        if language == "python":
            compile("\n".join(lines), str(path), "exec")
            exec("\n".join(line for line in lines if re.match(r"(from|import) ", line)), {})


def test_the_pictures_of_the_documents_are_small():
    assert [p.name for p in (REPOSITORY / "docs").glob("*.png") if p.stat().st_size >= 300_000] == []


def test_the_index_links_every_page_and_the_readme_links_the_index():
    text = (REPOSITORY / "docs/index.md").read_text(encoding="utf-8")
    pages = {path.name for path in (REPOSITORY / "docs").glob("*.md")} - {"index.md"}
    assert pages - {link.partition("#")[0] for link in links(text)} == set()
    assert "docs/index.md" in links((REPOSITORY / "README.md").read_text(encoding="utf-8"))


# ---- what code, tests and configs cite -------------------------------------------------------------------------------

CITING = (".py", ".md", ".yaml", ".sh", ".toml", ".jsonl")
OUT_OF_REACH = re.compile(  # a specification, a section of one, an issue, a folder beside the repository
    r"\bspec\b (?:[A-Z\d§]|section)|§|\bissue #?\d|\b(?:ARCHITECTURE|BACKBONES|BENCHMARKS|D2VLM|DISTIME|HOUSE|LEARNING"
    r"|METRICS|PLATFORM|STYLE|TODAY)(?:\.md|(?: section)? \d+(?!\.8B))|\.\./shared"
)
KEPT = ("tests/old_files/", "CHANGELOG.md")  # what was written once


def cited_text() -> dict[str, str]:
    """{path: content} of all that may cite a page; this file shows what must not be."""
    files = own_files(REPOSITORY, *CITING)
    named = {str(f.relative_to(REPOSITORY)): f for f in files if f != Path(__file__).resolve()}
    return {n: f.read_text(encoding="utf-8") for n, f in named.items() if not n.startswith(KEPT)}


def out_of_reach(text: str) -> list[str]:
    """What a text cites that a reader of the repository cannot open."""
    return [match[0] for match in OUT_OF_REACH.finditer(text)]


def test_nothing_cites_a_document_that_is_not_in_the_repository():
    named = {name: found for name, text in cited_text().items() if (found := out_of_reach(text))}
    # Where a developer keeps the reference data of the tests is no citation.
    assert {name: set(found) - {"../shared"} for name, found in named.items()} == {"scripts/test.sh": set()}


def test_every_page_and_section_that_is_cited_is_there():
    missing = []
    for name, text in cited_text().items():
        for page, section in re.findall(r"(?:docs/|\b)(\w+\.md)#([\w-]+)", text):
            target = next((f for f in (REPOSITORY / "docs" / page, REPOSITORY / page) if f.is_file()), None)
            if target is None or section not in anchors(target.read_text(encoding="utf-8")):
                missing.append(f"{name}: {page}#{section}")
        missing += [
            f"{name}: {page}" for page in re.findall(r"\bdocs/\w+\.md", text) if not (REPOSITORY / page).is_file()
        ]
    assert sorted(missing) == [
        "tests/end_to_end/test_documents.py: docs/new.md"  # an example
    ]


@pytest.mark.parametrize(
    "text", ["(spec D2VLM 3)", "its spec §2", "DISTIME.md 4", "issue 13", "METRICS 10.2", "in ../shared/paper"]
)
def test_a_citation_of_what_is_not_there_is_found(text):
    assert out_of_reach(text) and not out_of_reach("docs/d2vlm.md, find_spec, METRICS = (), an issue")


# ---- how a document is read ------------------------------------------------------------------------------------------


def test_continued_lines_are_joined_loops_are_whole_and_comments_may_hold_a_command():
    block = """# a remark
python -m a --x 1 \\
    --y 2   # what it does
for i in 1 2; do
    python -m b $i
done
bash c.sh   # or: python -m d key=value"""
    assert list(shell_commands(block.splitlines())) == [
        (1, "python -m a --x 1 --y 2"),
        (3, "for i in 1 2; do\n    python -m b $i\ndone"),
        (6, "python -m d key=value"),
        (6, "bash c.sh"),
    ]


def test_of_a_console_only_what_follows_the_prompt_is_typed():
    assert list(shell_commands(["$ python -m a", "it prints", "$ bash b.sh"], True)) == [
        (0, "python -m a"),
        (2, "bash b.sh"),
    ]


@pytest.mark.parametrize("line", ["STEP_ROWS", "see below, TODO", "XXX"])
def test_a_forgotten_placeholder_is_found(line):
    assert placeholders(f"a line\n{line}\n`MASTER_ADDR` is set") == [f"2: {line}"]


def test_paths_are_told_from_other_words():
    text = "`configs/{a,b}.json`, `bash scripts/x.sh key=value`, `a / b`, `yes/no`, `docs/`\n```\n`docs/z.md`\n```\n"
    assert named_paths(text, {"docs"}) == ["configs/a.json", "configs/b.json", "scripts/x.sh", "docs/"]
