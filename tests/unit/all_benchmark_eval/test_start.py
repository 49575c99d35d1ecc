"""What a scoring command loads: a start costs more than most benchmarks' scores."""

import subprocess
import sys

from all_benchmark_eval.benchmark import names

HEAVY = ("torch", "scipy.optimize", "transformers", "av")


def test_scoring_loads_nothing_heavy_before_it_needs_it(repository):
    code = f"import sys, all_benchmark_eval.score, all_benchmark_eval.benchmark as b; [b.get(n) for n in {names()}]; "
    code += f"print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
