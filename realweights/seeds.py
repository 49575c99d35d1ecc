"""The reports of several seeds as one table: mean and spread of every run on every split, and each seed's skill.

In: output folders of ``bash scripts/realweights.sh``, one a seed. Out: a table in Markdown, printed.

    python -m realweights.seeds runs/realweights runs/seed1 runs/seed2
"""

import statistics
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from videollm.common.command import Parser, ended
from videollm.common.config import ConfigError, need
from videollm.common.files import read_json

COLUMNS = ["split", "run", "mIoU", "R@1 0.5", "R@1 0.7", "best guess", "oracle"]
COLUMNS += ["dense F1", "choice", "skill", "of each"]


def read_reports(folders: Sequence[Path]) -> list[dict]:
    """The reports, in the order of their seeds.

    Raises:
        ConfigError: a folder without a report, two reports of one seed, or reports of other runs.
    """
    reports = {}
    for folder in folders:
        file = folder / "report.json"
        need(file.is_file(), f"{file}: no report; let bash scripts/realweights.sh --output {folder} run to its end")
        try:
            report = read_json(file.read_bytes())
            seed, runs, _ = report["seed"], set(report["validation_mIoU"]), (report["splits"], report["commit"])
        except (ValueError, KeyError, TypeError):
            raise ConfigError(f"{file}: not a report of scripts/realweights.sh; run it again") from None
        need(seed not in reports, f"{file}: seed {seed} is given twice; name each folder once")
        reports[seed] = report | {"file": file, "runs": runs}
    for one, other in pairwise(reports.values()):
        differ = one["runs"] ^ other["runs"]
        told = f"{other['file']}: {', '.join(sorted(differ))} not in all reports; run all with the same heads"
        need(not differ, told)
    return [reports[seed] for seed in sorted(reports)]


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Mean and standard deviation (n - 1) of the seeds; of one seed the value alone."""
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def rows(reports: Sequence[dict]) -> list[list[str]]:
    """A row for every run on every split, then what validation said of each run."""
    made = []
    for split, found in reports[0]["splits"].items():
        parts = [report["splits"][split] for report in reports]
        guess = spread([max(guess["mIoU"] for guess in part["baselines"].values()) for part in parts])
        oracle = spread([part["oracle"]["mIoU"] for part in parts])
        for run in found["heads"]:
            heads = [part["heads"][run] for part in parts]
            recalls = [spread([head["R@1"][at] for head in heads]) for at in ("0.5", "0.7")]
            more = [spread([head[key] for head in heads]) for key in ("dense_F1", "mc_accuracy")]
            skills = [head["skill"] for head in heads]
            miou = spread([head["mIoU"] for head in heads])
            each = ", ".join(f"{skill:.2f}" for skill in skills)
            made.append([split, run, miou, *recalls, guess, oracle, *more, spread(skills, 2), each])
    for run in reports[0]["validation_mIoU"]:
        told = [report["validation_mIoU"][run] for report in reports]
        if None not in told:
            each = ", ".join(f"{value:.3f}" for value in told)
            made.append(["validation", run, spread(told), *[""] * (len(COLUMNS) - 4), each])
    return made


def markdown(reports: Sequence[dict]) -> str:
    """The table; the last column is the skill of each seed, of validation its mIoU. Below it, which code made each."""
    lines = [COLUMNS, ["---"] * len(COLUMNS), *rows(reports)]
    made = ", ".join(f"{report['seed']} ({report['commit']})" for report in reports)
    return "\n".join([*(f"| {' | '.join(line)} |" for line in lines), "", f"Seed (commit): {made}"])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; a user's error is one line and exit status 2."""
    parser = Parser(prog="python -m realweights.seeds", description=__doc__.split("\n")[0])
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="output folder of one seed")
    args = parser.parse_args(argv)
    return ended(lambda: print(markdown(read_reports(args.folders))))


if __name__ == "__main__":
    sys.exit(main())
