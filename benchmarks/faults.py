"""Kill -9 at random moments of resumed inference runs: nothing is lost, nothing is there twice, answers are the same.

A run over ``--samples`` questions is started again and again, alone or with two ranks under torchrun, and killed:
while it starts, after some answers, in the middle of a line (the end of a file is cut off, as a kernel may leave it),
or by killing one rank of two, or their launcher. A run that gets to its end is held against an unbroken one, and the
next round begins. Exit status 0 only if every answer that was complete at a kill is still there at the next one, and
every finished file equals that of an unbroken run, byte for byte.

    python -m benchmarks.faults --kills 50 --samples 200
"""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from benchmarks.rounds import command_line
from videollm.common.command import ended

REPOSITORY = Path(__file__).resolve().parents[1]
TWO_RANKS = 0.2  # share of the runs
AT_START = 0.2  # share of the kills before the first new answer
TORN = 0.3  # share of the kills after which the end of a file is cut off
PATIENCE_S = 180.0  # for a run to answer or to end
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "TOKENIZERS_PARALLELISM": "false"}


def start(folder: Path, output: Path, ranks: int, log: Path) -> subprocess.Popen:
    """One inference command in a process group of its own."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)] if ranks > 1 else []
    command = [sys.executable, *launcher, "-m", "videollm.infer", "--model", folder / "model", "--videos"]
    command += [folder / "clips/videos", "--annotations", folder / "questions.jsonl", "--output", output]
    command += ["--device", "cpu", "--batch-size", "4", "--workers", "1", "generate.max_new_tokens=24"]
    with open(log, "ab") as out:
        options = {"cwd": REPOSITORY, "env": ENVIRONMENT, "stdout": out, "stderr": out, "start_new_session": True}
        return subprocess.Popen([str(x) for x in command], **options)


def files(output: Path) -> list[Path]:
    """The output and the parts of ranks."""
    return [path for path in (output, *sorted(output.parent.glob(f"{output.name}.part*"))) if path.is_file()]


def complete(output: Path) -> dict[str, str]:
    """id -> line of every complete line in the output and its parts."""
    texts = [text for path in files(output) for text in path.read_bytes().decode().split("\n")[:-1]]
    return {json.loads(text)["id"]: text for text in texts}


def size(output: Path) -> int:
    """Complete lines, cheaply and while files come and go."""
    total = 0
    for path in files(output):
        try:
            total += path.read_bytes().count(b"\n")
        except FileNotFoundError:  # merged just now
            continue
    return total


def kill(run: subprocess.Popen, ranks: int, rng: random.Random) -> str:
    """Kill -9 the process, one of two ranks, or their launcher; wait until all of the run is gone."""
    launcher = psutil.Process(run.pid)
    inner = [p for p in launcher.children() if "videollm.infer" in " ".join(p.cmdline())] if ranks > 1 else []
    victim = rng.choice([*inner, launcher])
    everyone = [launcher, *launcher.children(recursive=True)]
    victim.send_signal(signal.SIGKILL)
    what = "process" if ranks == 1 else "launcher" if victim == launcher else "rank"
    if what == "launcher":  # nobody is left to end the ranks; a cluster's scheduler would
        time.sleep(rng.uniform(0, 1))
        os.killpg(run.pid, signal.SIGKILL)
    run.wait(PATIENCE_S)
    psutil.wait_procs(everyone, timeout=PATIENCE_S)
    return what


def broken_run(folder: Path, output: Path, log: Path, rng: random.Random, pace: int) -> tuple[str | None, int | None]:
    """Start a run and kill it: -> (what was killed and when, None); or (None, its status) if it ended before."""
    ranks = 2 if rng.random() < TWO_RANKS else 1
    before, begin = size(output), time.monotonic()
    run = start(folder, output, ranks, log)
    if rng.random() < AT_START:
        time.sleep(rng.uniform(0, 15))
        when = "after a while"
    else:
        wanted, when = rng.randint(1, 2 * pace), "after some answers"
        while run.poll() is None and size(output) < before + wanted and time.monotonic() < begin + PATIENCE_S:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.1))
    if run.poll() is not None:
        return None, run.wait()
    return f"{kill(run, ranks, rng)} {when}", None


def tear(output: Path, rng: random.Random) -> None:
    """Cut off the end of one file within its last line."""
    paths = [path for path in files(output) if path.stat().st_size]
    if paths:
        path = rng.choice(paths)
        data = path.read_bytes()
        last = data.rstrip(b"\n").rfind(b"\n") + 1
        os.truncate(path, rng.randint(last, len(data) - 1))


def finished(status: int, output: Path, whole: Path, samples: int) -> dict[str, bool]:
    """What has to hold of a run that got to its end."""
    ids = [json.loads(line)["id"] for line in output.read_text(encoding="utf-8").splitlines()]
    return {
        "status 0": status == 0,
        "every id exactly once": len(ids) == len(set(ids)) == samples,
        "the same bytes as an unbroken run": output.read_bytes() == whole.read_bytes(),
        "nothing left beside the output": not list(output.parent.glob(f"{output.name}.part*")),
    }


def main() -> int:
    """Measure and print; the exit status says whether all held."""
    args = command_line(__doc__, kills=50, samples=200, seed=0).parse_args()
    rng, begin, pace = random.Random(args.seed), time.monotonic(), max(1, args.samples // args.kills)
    lost, kinds, rounds = [], [], []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        log, whole, output = folder / "log.txt", folder / "whole.jsonl", folder / "broken.jsonl"
        setup = [sys.executable, "-m", "benchmarks.tiny_checkpoint", scratch, "--questions", str(args.samples)]
        with open(log, "ab") as out:
            subprocess.run(setup, cwd=REPOSITORY, env=ENVIRONMENT, stdout=out, stderr=out, check=True)
        if start(folder, whole, 1, log).wait(600):
            print(log.read_text(), file=sys.stderr)
            return 1
        print(f"unbroken run: {time.monotonic() - begin:.0f} s with making the clips", flush=True)
        while len(kinds) < args.kills:
            known = complete(output)
            kind, status = broken_run(folder, output, log, rng, pace)
            now = complete(output)
            lost += [f"after {len(kinds)} kills: {i}" for i, text in known.items() if now.get(i) != text]
            if kind is None:
                rounds.append(finished(status, output, whole, args.samples))
                output.unlink()
                continue
            kinds.append(kind)
            if rng.random() < TORN:
                tear(output, rng)
            print(f"{len(kinds)} kills: {kind}; {len(now)} answers; {time.monotonic() - begin:.0f} s", flush=True)
        rounds.append(finished(start(folder, output, 1, log).wait(600), output, whole, args.samples))
        held = {name: all(found[name] for found in rounds) for name in rounds[0]} | {"nothing lost": not lost}
        if not all(held.values()):
            print(*log.read_text().splitlines()[-40:], *lost[:10], sep="\n", file=sys.stderr)
    counts = {kind: kinds.count(kind) for kind in sorted(set(kinds))}
    summary = {"kills": len(kinds), "samples": args.samples, "finished runs": len(rounds), "kinds": counts}
    print(json.dumps(summary | {"seconds": round(time.monotonic() - begin), "held": held}, indent=1))
    return 0 if all(held.values()) else 1


if __name__ == "__main__":
    sys.exit(ended(main))
