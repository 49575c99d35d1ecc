"""The demo's command, and what it does beside drawing: where clips may lie, when they go, what is refused."""

import importlib.util
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.models import clips, make_bundle
from videollm.demo import main

GRADIO = importlib.util.find_spec("gradio") is not None
needs_gradio = pytest.mark.skipif(not GRADIO, reason="gradio is not installed: pip install '.[demo]'")


def test_without_gradio_one_line_names_the_extra(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["--model", "quickstart/model"]) == 2
    told = "the demo needs gradio, which is not installed; run: pip install -e '.[demo]'"
    assert capsys.readouterr().err == f"error: {told}\n"


@needs_gradio
def test_a_clip_outside_the_upload_folder_is_not_read(tmp_path, monkeypatch):
    from videollm.show.demo import inside

    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    own, other = tmp_path / "uploads/a/clip.mp4", tmp_path / "secret.mp4"
    own.parent.mkdir(parents=True)
    for path in (own, other):
        path.write_bytes(b"x")
    (own.parent / "link.mp4").symlink_to(other)
    assert inside(str(own)) == own
    for path in (str(other), f"{own.parent}/../../secret.mp4", f"{own.parent}/link.mp4", f"{own}x", "", None):
        assert inside(path) is None


@needs_gradio
def test_a_clip_stays_while_any_page_has_it(tmp_path):
    from videollm.show.demo import Uploads

    first, second, uploads = tmp_path / "first.mp4", tmp_path / "second.mp4", Uploads()
    for path in (first, second):
        path.write_bytes(b"x")
    uploads.keep("one", first)
    uploads.keep("two", first)  # the same file has the same place
    uploads.keep("one", second)
    assert first.exists()
    uploads.keep("two", None)
    assert not first.exists() and second.exists()


@needs_gradio
def test_the_command_serves_this_machine_and_leaves_nothing(tmp_path):
    make_bundle("internvl", "text").save(tmp_path / "model")
    command = [sys.executable, "-m", "videollm.demo", "--model", str(tmp_path / "model"), "--device", "cpu"]
    kept = tmp_path / "tmp"
    kept.mkdir()
    environment = os.environ | {"TMPDIR": str(kept)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as server:
        try:
            address = server.stdout.readline().split()[1]
            assert address.startswith("http://127.0.0.1:")
            with urllib.request.urlopen(address) as answer:
                page = answer.read().decode()
            assert "const Show" in page and "fonts.googleapis.com" not in page
            folder = next(kept.glob("videollm_demo_*"))
            for place in (clips() / "clip0.mp4", Path(folder, "..", "..", "model/config.json")):
                with pytest.raises(urllib.error.HTTPError):
                    urllib.request.urlopen(f"{address}gradio_api/file={place}")
        finally:
            server.send_signal(signal.SIGTERM)
    assert server.returncode == 0 and not list(kept.glob("videollm_demo_*"))
