"""The D2VLM data script: it downloads both repositories, unpacks each archive once, and checks what is there."""

import json
import os
import subprocess
import sys
import tarfile

import pytest

from tests.models import clip_lines, clips


@pytest.fixture
def prepare(tmp_path, repository):
    def run(*arguments, python=sys.executable, **environment):
        command = ["bash", str(repository / "scripts/d2vlm/prepare_data.sh"), *arguments]
        environment = os.environ | {"VIDEOLLM_PYTHON": str(python)} | environment
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)

    return run


@pytest.fixture
def data(tmp_path):
    """A data folder as the hub leaves it: annotations, and the videos in an archive."""
    folder = tmp_path / "data"
    annotations = folder / "D2VLM-Dataset/ET-Instruct"
    annotations.mkdir(parents=True)
    (annotations / "evi.json").write_text(json.dumps(clip_lines(4)))
    (folder / "ET-Instruct-164K/parts").mkdir(parents=True)
    with tarfile.open(folder / "ET-Instruct-164K/parts/a.tar.gz", "w:gz") as archive:
        for k in range(4):
            archive.add(clips() / f"clip{k}.mp4", f"clip{k}.mp4")
    return folder


def test_archives_are_unpacked_once_and_the_records_checked(prepare, data):
    done = prepare("data", "unpack")
    assert done.returncode == 0 and "unpacking" in done.stderr, done.stderr
    assert len(list((data / "ET-Instruct-164K/videos").glob("*.mp4"))) == 4
    (data / "ET-Instruct-164K/videos/clip3.mp4").unlink()
    again = prepare("data", "unpack", "check", CLEAN="clean.jsonl")
    assert again.returncode == 1 and "unpacking" not in again.stderr and "clip3.mp4" in again.stdout + again.stderr
    assert len((data.parent / "clean.jsonl").read_text().splitlines()) == 3


def test_both_repositories_are_downloaded_to_where_the_configs_look(prepare, tmp_path):
    fake = tmp_path / "python"
    fake.write_text('#!/bin/bash\nprintf "%s|" "${@:3}"\n')
    fake.chmod(0o755)
    done = prepare("there", "download", python=fake)
    instruct = "PolyU-ChenLab/ET-Instruct-164K|there/ET-Instruct-164K|"
    assert done.returncode == 0 and done.stdout == instruct + "wenzhengzeng/D2VLM-Dataset|there/D2VLM-Dataset|"


def test_what_is_missing_is_said(prepare, tmp_path):
    done = prepare("data", "check")
    assert done.returncode == 1 and "no data/D2VLM-Dataset/ET-Instruct/evi.json" in done.stderr
    assert prepare("data", "chek").returncode == 2 and prepare("--what").returncode == 2
    assert prepare("--help").returncode == 0
