"""METEOR's process, which scoring captions starts, ends with each module."""

import pytest

from all_benchmark_eval.metrics import captions


@pytest.fixture(scope="module", autouse=True)
def no_java_left():
    yield
    for process in captions._running:
        process.close()
