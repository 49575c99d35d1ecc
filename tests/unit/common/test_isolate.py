"""Results come out of a child whole, and their arrays are not held twice on the way."""

import os
import resource
import signal

import numpy as np
import pytest

from videollm.common.isolate import Isolated, Stopped

MIB = 1 << 20


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # given in KiB on Linux


def made(what):
    """In the child: what the test asks for."""
    if what == "peak":
        return peak_mib()
    if what == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "arrays":
        return {"a": np.arange(7.0), "none": np.zeros((0, 3)), "turned": np.arange(6).reshape(2, 3).T[::-1], "n": 3}
    return np.ones(what * MIB, np.uint8)


def test_arrays_come_out_as_they_are_and_can_be_written_to():
    found = Isolated(made, 60.0)("arrays")
    assert found["a"].tolist() == list(range(7)) and found["none"].shape == (0, 3) and found["n"] == 3
    assert found["turned"].tolist() == [[2, 5], [1, 4], [0, 3]]
    found["a"] += 1


def test_neither_end_holds_a_second_copy_of_an_array():
    child = Isolated(made, 60.0)
    before, own = child("peak"), peak_mib()
    assert child(200).sum() == 200 * MIB
    assert child("peak") - before < 300 and peak_mib() - own < 300


def test_a_child_that_dies_is_told_and_started_again():
    child = Isolated(made, 60.0)
    with pytest.raises(Stopped, match="ended its process"):
        child("dies")
    assert child(1).nbytes == MIB
