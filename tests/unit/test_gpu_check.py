"""The GPU check ends with a table whatever its parts do: fail, die, hang, lack a package; models need no PyAV there."""

import argparse
import json
import os
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from benchmarks import gpu_check
from benchmarks.gpu_check import Part, rows_of, table
from tests.documents import documents


def fails(run):
    run.row("first", "ok", ms=2.0)
    raise RuntimeError("no such thing\nand more")


def dies(run):
    run.row("first", "ok", ms=2.0)
    os._exit(7)


def hangs(run):
    run.row("first", "ok", ms=2.0)
    time.sleep(60)


@pytest.fixture
def part(monkeypatch, tmp_path):
    """Runs a stand-in part; its rows."""

    def run_of(name, system, device, tiny, folder, file):
        def row(case, status, note="", **figures):
            line = gpu_check.row(name, case, status, note) | {"figures": figures}
            with open(file, "a", encoding="utf-8") as out:
                out.write(json.dumps(line) + "\n")

        return SimpleNamespace(row=row)

    module = SimpleNamespace(Run=run_of, fails=fails, dies=dies, hangs=hangs)
    monkeypatch.setattr(gpu_check, "import_module", lambda name: module)
    options = argparse.Namespace(device="cpu", tiny=True)
    return lambda work, left_s=100.0, **own: rows_of(Part("p", work, **own), options, tmp_path / "part", left_s)


@pytest.mark.parametrize(
    "work, limit_s, says",
    [("fails", 60, "RuntimeError: no such thing"), ("dies", 60, "status 7"), ("hangs", 1, "more than 1 s")],
)
def test_what_a_part_had_measured_is_kept_and_the_reason_is_a_row(part, work, limit_s, says):
    first, last = part(work, limit_s=limit_s)
    assert first["figures"] == {"ms": 2.0} and first["status"] == "ok"
    assert last["status"] == "failed" and says in last["note"] and "\n" not in last["note"]


def test_a_part_without_its_packages_or_without_time_is_skipped_by_name(part):
    (lacking,) = part("fails", needs=("json", "no_such_package"))
    assert (lacking["status"], lacking["note"]) == ("skipped", "not installed: no_such_package")
    (late,) = part("fails", left_s=3.0)
    assert late["status"] == "skipped" and "time" in late["note"]


def test_a_row_of_the_table_is_one_line_with_all_figures():
    row = gpu_check.row("p", "c", "ok", "a | b") | {"figures": {"ms": 0.01234, "tokens/s": 12345.6}}
    assert table([row]).splitlines()[2] == "| p | c | ok | ms 0.0123, tokens/s 12,346; a / b |"


def test_bad_places_and_sizes_are_one_line(capsys, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    for words, says in (["--tiny", "--output", str(tmp_path / "file")], "--output"), (
        ["--device", "cpu", "--output", str(tmp_path)], "add --tiny",
    ):  # fmt: skip
        monkeypatch.setattr(sys, "argv", ["gpu_check", *words])
        with pytest.raises(SystemExit) as ended:
            gpu_check.main()
        assert ended.value.code == 2 and says in capsys.readouterr().err.splitlines()[-1]


def test_the_table_has_a_place_in_the_documents(repository):
    pages = "".join(path.read_text(encoding="utf-8") for path in documents(repository))
    assert "bash scripts/gpu_check.sh --output" in pages


HIDDEN = """
import importlib.util, sys
gone, real = ("av", "nncore"), importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name in gone else real(name, *rest)
class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in gone:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Hide())
"""


def test_parts_can_be_imported_and_build_models_without_pyav_and_nncore(repository, tmp_path):
    build = f"""
from pathlib import Path
from benchmarks import gpu_parts
from benchmarks.stand_ins import STANDING_IN
run = gpu_parts.Run("answers", "DisTime 1B", "cpu", True, Path({str(tmp_path)!r}), Path({str(tmp_path / "rows")!r}))
gpu_parts.generation(run)
gpu_parts.frames(run)
print(STANDING_IN)
"""
    done = subprocess.run([sys.executable, "-c", HIDDEN + build], cwd=repository, capture_output=True, text=True)
    assert done.returncode == 0 and "['nncore', 'av']" in done.stdout, done.stderr[-2000:]
    rows = [json.loads(line) for line in (tmp_path / "rows").read_text().splitlines()]
    assert [row["status"] for row in rows] == ["ok", "ok", "skipped", "ok", "skipped", "skipped"], rows
