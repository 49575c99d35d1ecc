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
REFERENCE = {"GOLDEN_DIR": "golden", "PAPER_DIR": "paper", "PEERS_DIR": "peers", "VIDEO_DIR": "videos"}


def place(variable: str) -> Path:
    """Where a folder of reference data should be: an environment variable, or ``shared/`` beside the repository."""
    return Path(os.environ.get(variable, REPOSITORY.parent / "shared" / REFERENCE[variable]))


def _shared(variable: str) -> Path:
    """A folder of reference data; skips where it is not."""
    folder = place(variable)
    if not folder.is_dir():
        pytest.skip(f"no reference data: {folder} is not a folder (set {variable})")
    return folder


def skip_what_a_folder_lacks(error: FileNotFoundError) -> None:
    """Skip a test whose case is not in a folder of reference data; any other missing file is a failure."""
    for folder in filter(Path.is_dir, map(place, REFERENCE)):
        if str(folder) in str(error):
            raise pytest.skip.Exception(f"not in this folder: {error}", _use_item_location=True) from error
    raise error


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item):
    try:
        return (yield)
    except FileNotFoundError as error:
        skip_what_a_folder_lacks(error)


pytest_runtest_call = pytest_runtest_setup


def pytest_collection_modifyitems(items):
    """All tests of a folder that a marker is named after have it."""
    for item in items:
        room = item.path.relative_to(REPOSITORY / "tests").parts[0]
        if room in ("golden", "paper", "end_to_end"):
            item.add_marker(room)


@pytest.fixture(scope="session")
def repository() -> Path:
    return REPOSITORY


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    return _shared("GOLDEN_DIR")


@pytest.fixture(scope="session")
def paper_dir() -> Path:
    return _shared("PAPER_DIR")


@pytest.fixture(scope="session")
def video_dir() -> Path:
    return _shared("VIDEO_DIR")
