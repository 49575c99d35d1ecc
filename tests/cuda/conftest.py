"""The GPU that the tests here run on; without one they are skipped, and without PyAV those that open videos.

Helpers of other tests import PyAV and nncore: stand-ins take their place where these cannot be installed.
"""

import pytest
import torch

import benchmarks.stand_ins  # noqa: F401 - before anything of the core


@pytest.fixture
def device() -> str:
    """The device of the tests; in full float32, since limits are those of float32."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA: needs a GPU")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    return "cuda"
