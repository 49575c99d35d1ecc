"""What every test may ask for: the reference data's folders. Also one thread and no network, before torch loads."""

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"

import hypothesis  # noqa: E402  the environment has to be set before anything imports torch
import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)
hypothesis.settings.register_profile("any_machine", deadline=None)  # a busy machine is no failure
hypothesis.settings.load_profile("any_machine")

REPOSITORY = Path(__file__).resolve().parents[1]


def _shared(variable: str, name: str) -> Path:
    """The folder of reference data: an environment variable, or ``shared/<name>`` beside the repository."""
    folder = Path(os.environ.get(variable, REPOSITORY.parent / "shared" / name))
    if not folder.is_dir():
        pytest.skip(f"no reference data: {folder} is not a folder (set {variable})")
    return folder


@pytest.fixture(scope="session")
def repository() -> Path:
    return REPOSITORY


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    return _shared("GOLDEN_DIR", "golden")


@pytest.fixture(scope="session")
def paper_dir() -> Path:
    return _shared("PAPER_DIR", "paper")


@pytest.fixture(scope="session")
def video_dir() -> Path:
    return _shared("VIDEO_DIR", "videos")
