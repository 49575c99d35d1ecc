"""What becomes of data workers: they outlive SIGTERM, and no error leaves a process waiting for them."""

import subprocess
import sys
from pathlib import Path

RUN = """
import sys
from torch.utils.data import DataLoader
from videollm.training.preemption import outlive_signal

batches = iter(DataLoader(range(100), num_workers=2, worker_init_fn=outlive_signal))
next(batches)
raise RuntimeError("the step fails")
"""


def test_a_process_ends_whose_step_failed_while_workers_read_ahead():
    root = Path(__file__).parents[3]
    ended = subprocess.run([sys.executable, "-c", RUN], cwd=root, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert ended.stderr.strip().endswith("RuntimeError: the step fails")
