"""What every golden test starts from: its system's folder (test_SYSTEM_*.py), and for DisTime each language model."""

import pytest

from tests.golden.d2vlm_model import golden_bundle
from tests.golden.distime_model import LLMS, existing

FOLDERS = {"backbone": "backbones"}


@pytest.fixture(scope="module")
def folder(request, golden_dir):
    system = request.module.__name__.rpartition(".")[2].split("_")[1]
    return existing(golden_dir / FOLDERS.get(system, system))


@pytest.fixture(scope="module", params=LLMS)
def llm(request):
    return request.param


@pytest.fixture(scope="module")
def bundle(folder):
    """D2VLM's model; where it is another, a module says so."""
    return golden_bundle(folder)
