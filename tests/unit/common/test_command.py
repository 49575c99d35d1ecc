"""``key=value`` words may stand anywhere on a command line, also behind an option that takes several values."""

import itertools
from pathlib import Path

import pytest

import realweights.__main__ as realweights
from videollm.common.command import Parser

REPOSITORY = Path(__file__).resolve().parents[3]
PIECES = (["--files", "a", "b"], ["--text", "c=d"], ["--flag"], ["x.y=1"], ["z=[1, 2]"], ["--more", "e"])


def parser(prog="try"):
    made = Parser(prog=prog)
    made.add_argument("--files", nargs="+")
    made.add_argument("--more", nargs="*")
    made.add_argument("--text")
    made.add_argument("--flag", action="store_true")
    made.add_argument("overrides", nargs="*")
    return made


def test_any_order_of_words_says_the_same():
    orders = [sum(pieces, []) for pieces in itertools.permutations(PIECES)]
    for words in (*orders, ["--files", "a", "x.y=1", "b", "--flag", "z=[1, 2]", "--text", "c=d", "--more", "e"]):
        got = vars(parser().parse_intermixed_args(words))
        assert vars(parser().parse_args(words)) == got, words
        assert sorted(got.pop("overrides")) == ["x.y=1", "z=[1, 2]"]
        assert got == {"files": ["a", "b"], "more": ["e"], "text": "c=d", "flag": True}


def test_a_file_of_such_a_name_and_words_behind_a_double_dash_stay(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("lr=1.json").touch()
    got = parser().parse_intermixed_args(["--files", "lr=1.json", "runs/lr=1/a.json", "--text=t", "x=1", "--", "y=2"])
    assert got.files == ["lr=1.json", "runs/lr=1/a.json"] and sorted(got.overrides) == ["x=1", "y=2"]


def test_realweights_takes_settings_behind_its_heads(capsys):
    args = realweights.arguments(["--heads", "evidence", "train.precision=bf16", "--train", "8"])
    assert (args.heads, args.overrides, args.train) == (["evidence"], ["train.precision=bf16"], 8)
    with pytest.raises(SystemExit):
        realweights.arguments(["--heads", "evidenc"])
    assert capsys.readouterr().err.startswith("error: argument --heads: 'evidenc' is unknown")


def test_every_command_with_overrides_has_that_parser():
    code = [file for top in REPOSITORY.glob("*/") if top.name[0] != "." for file in top.rglob("*.py")]
    texts = {file: file.read_text(encoding="utf-8") for file in code if "tests" not in file.parts}
    found = {file for file, text in texts.items() if 'add_argument("overrides"' in text}
    assert len(found) > 10 and not [file for file in found if "argparse.ArgumentParser(" in texts[file]]
