"""A command of the repository that knows this package's tower: ``python -m realweights.door videollm.train ...``.

A checkpoint names its tower by type only, so whoever loads one has to have imported ``realweights.tower``.
"""

import runpy
import sys

import realweights.tower  # noqa: F401 - registers efficientnet_lite

if __name__ == "__main__":
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
