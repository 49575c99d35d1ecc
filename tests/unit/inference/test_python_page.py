"""docs/python.md does what it shows, at the root of the repository, on the checkpoint that ships with it."""

import doctest
import re

import pytest


@pytest.fixture(scope="module")
def page(repository):
    return (repository / "docs/python.md").read_text(encoding="utf-8")


def test_every_example_gives_what_the_page_says(page, repository, monkeypatch):
    monkeypatch.chdir(repository)
    blocks = re.findall(r"```pycon\n(.*?)```", page, re.DOTALL)
    test = doctest.DocTestParser().get_doctest("\n".join(blocks), {}, "docs/python.md", None, 0)
    said = []
    failed, tried = doctest.DocTestRunner().run(test, out=said.append)
    assert len(blocks) == page.count("```pycon") >= 5 and tried >= 15 and not failed, "".join(said)
