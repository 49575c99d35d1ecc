"""A model through several benchmarks: ``python -m all_benchmark_eval.evaluate MODEL --benchmarks a,b,c --data ROOT``.

Of each: questions -> ``videollm.infer`` (batched, over ``--gpus`` processes) -> predictions in the official form ->
scores under both protocols; then one table. Each benchmark's files are in ``OUTPUT/<name>/``, and a second run goes on
with them. One that fails does not stop the others. Knows no benchmark by name; ``summary.py`` writes the tables.
"""

import argparse
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from all_benchmark_eval import score
from all_benchmark_eval.benchmark import (
    WORDINGS,
    Benchmark,
    BenchmarkError,
    data_folder,
    find_annotations,
    get,
    names,
    read_answers,
    read_lines,
    worded,
    write_text,
)
from all_benchmark_eval.summary import Summary
from videollm import infer
from videollm.checkpoint.load import read_config
from videollm.checkpoint.tensors import CheckpointError
from videollm.common.answers import AnswerLine
from videollm.common.command import tell
from videollm.common.files import json_lines, json_text

WORDING_OF = {"d2vlm": "d2vlm", "distime": "distime", "text": "plain"}  # by head
INFER_OPTIONS = ("batch_size", "workers", "device", "backend")


@dataclass
class Run:
    """What holds for all benchmarks of a run. ``overrides`` (key=value) go over a benchmark's own sampling."""

    model: Path
    output: Path
    wording: str
    processes: int = 1
    infer_options: list[str] = field(default_factory=list)
    overrides: list[str] = field(default_factory=list)
    score_options: dict[str, Any] = field(default_factory=dict)


def evaluate(task: Benchmark, run: Run, annotations: Path, videos: Path) -> dict[str, Any]:
    """Ask, convert and score; returns the result of ``score.score_file``.

    Writes ``questions``, ``answers`` (of a second stage ``later_questions``, ``later_answers``), ``predictions`` and
    ``scores`` into ``OUTPUT/<name>/``. What is answered there is not asked again.

    Raises:
        BenchmarkError: files that cannot be used, or no question could be asked.
    """
    folder = run.output / task.name
    truth = task.load(annotations)
    answers = _ask(task, run, folder, videos, task.questions(truth, run.wording), "")
    later = task.later_questions(truth, answers, run.wording)
    if later:
        answers |= _ask(task, run, folder, videos, later, "later_")
    predictions, scores = folder / "predictions.json", folder / "scores.json"
    score.write_predictions(task, truth, answers, run.wording, predictions)
    variant = run.wording if run.wording in task.variants else None
    result = score.score_file(
        task.name, predictions, annotations, scores, variant=variant, wording=run.wording, **run.score_options
    )
    score.show(result, scores)
    return result


def _ask(
    task: Benchmark, run: Run, folder: Path, videos: Path, lines: Sequence[dict], stage: str
) -> dict[str, AnswerLine]:
    """The answers to one stage's questions, by id."""
    setting = worded(task.settings, run.wording)
    questions, answers = folder / f"{stage}questions.jsonl", folder / f"{stage}answers.jsonl"
    lines = [dict(setting.record) | line for line in lines]
    if questions.is_file():
        _keep_answers(questions, answers, lines, may_change=bool(stage))
    write_text(questions, json_text(lines))
    sampling = [f"sampler.{key}={json.dumps(value)}" for key, value in setting.sampler.items()]
    arguments = ["--model", run.model, "--annotations", questions, "--videos", videos, "--output", answers]
    arguments = [*map(str, arguments), *run.infer_options, *sampling, *run.overrides]
    if run.processes == 1:
        status = infer.main(arguments)
    else:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
        command = [*launcher, str(run.processes), "-m", "videollm.infer", *arguments]
        status = subprocess.run(command, check=False).returncode
    if status:
        raise BenchmarkError(f"{task.name}: videollm.infer ended with status {status}; its message stands above")
    return read_answers(answers)


def _keep_answers(questions: Path, answers: Path, lines: Sequence[dict], may_change: bool) -> None:
    """Hold the questions of an earlier run against ``lines``.

    Questions that stand on other answers may have changed since, where those were missing: their answers go. Raises
    BenchmarkError for questions of a first stage that are not the same.
    """
    now, before = ({line["id"]: line for line in group} for group in (lines, (row for _, row in read_lines(questions))))
    if now == before:
        return
    changed = {name for name in now.keys() | before.keys() if now.get(name) != before.get(name)}
    if not may_change:
        raise BenchmarkError(
            f"{questions}: {len(changed)} questions are others now ({min(changed)!r}, ...), as with other annotations "
            "or another wording; choose another --output or delete that folder"
        )
    for path in (answers, *answers.parent.glob(f"{answers.name}.part*")):
        if path.is_file():
            whole = json_lines(path, torn=True)  # a torn last line is asked again anyway
            write_text(path, json_text(line for _, line in whole if line["id"] not in changed))


# ---- the command -----------------------------------------------------------------------------------------------------


def _places(task: Benchmark, args: argparse.Namespace) -> tuple[Path, Path]:
    """(annotations, videos) as the command line says; without ``--annotations`` they lie beside the videos."""
    videos = args.videos or data_folder(task, args.data) / task.layout.videos
    return args.annotations or find_annotations(task, videos.parent), videos


def wording_of(model: Path) -> str:
    """The wording that a checkpoint's head was made with. Raises BenchmarkError for a head of one's own."""
    head = read_config(model).head.get("name")
    if head not in WORDING_OF:
        raise BenchmarkError(f"--wording: no wording is known for the head {head!r}; choose of {', '.join(WORDINGS)}")
    return WORDING_OF[head]


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="all_benchmark_eval.evaluate", description="Ask a model the questions of benchmarks, and score it."
    )
    parser.add_argument("model", type=Path, metavar="MODEL", help="checkpoint folder")
    parser.add_argument("--benchmarks", required=True, metavar="A,B,...", help=f"of {', '.join(names())}")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--data", type=Path, metavar="ROOT", help="folder with a folder for each (check says what)")
    where.add_argument(
        "--videos", type=Path, metavar="DIR", help="of a single benchmark; its annotations are beside it"
    )
    parser.add_argument("--annotations", type=Path, metavar="FILE", help="of a single benchmark, if they lie elsewhere")
    parser.add_argument("--output", type=Path, metavar="DIR", help="default: MODEL/evaluation")
    parser.add_argument("--gpus", type=infer.whole(1), metavar="N", help="processes (default: $GPUS, all GPUs, or 1)")
    parser.add_argument("--wording", choices=WORDINGS, help="of the questions (default: that of the model's head)")
    parser.add_argument("--batch-size", metavar="N", help="of videollm.infer, as the next three")
    parser.add_argument("--workers", metavar="N")
    parser.add_argument("--device")
    parser.add_argument("--backend")
    parser.add_argument("--bootstrap", type=infer.whole(0), default=0, metavar="N", help="resamples for intervals")
    parser.add_argument("--skip-meteor", action="store_true", help="score the rest where there is no Java")
    parser.add_argument("--sentence-model", metavar="PATH", help="all-MiniLM-L6-v2: folder or hub name")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="generate.max_new_tokens=64 ...")
    args = parser.parse_intermixed_args(argv)
    args.benchmarks = list(dict.fromkeys(filter(None, args.benchmarks.split(","))))
    if len(args.benchmarks) != 1 and (args.videos or args.annotations):
        parser.error("--videos and --annotations are for a single benchmark; use --data for several")
    return args


def processes(given: int | None) -> int:
    """How many processes answer. Raises BenchmarkError for a number that GPUS or the machine does not allow."""
    visible = torch.cuda.device_count()
    text = os.environ.get("GPUS") or str(max(visible, 1))
    if given is None and not (text.isdecimal() and int(text)):
        raise BenchmarkError(f"GPUS={text} must be a whole number from 1")
    count = given or int(text)
    if 0 < visible < count:
        raise BenchmarkError(f"--gpus: {count}, but this machine shows {visible}")
    return count


def prepare(args: argparse.Namespace) -> tuple[Run, Summary]:
    """Everything that can be said before the first question. Raises BenchmarkError, CheckpointError."""
    for name in args.benchmarks:
        get(name)
    passed = {name: getattr(args, name) for name in INFER_OPTIONS}
    options = [part for name, value in passed.items() if value for part in (f"--{name.replace('_', '-')}", value)]
    run = Run(
        model=args.model,
        output=args.output or args.model / "evaluation",
        wording=args.wording or wording_of(args.model),
        processes=processes(args.gpus),
        infer_options=options,
        overrides=args.overrides,
        score_options={k: getattr(args, k) for k in ("bootstrap", "skip_meteor", "sentence_model")},
    )
    return run, Summary.open(run.output, run.model, run.wording)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command: 0 if every benchmark was scored, 1 if one failed, 2 if none could be begun."""
    args = arguments(argv)
    try:
        run, summary = prepare(args)
    except (BenchmarkError, CheckpointError) as error:
        return tell(error)
    for name in args.benchmarks:
        try:
            summary.add(name, evaluate(get(name), run, *_places(get(name), args)))
        except Exception as error:  # of whatever kind: hours of the other benchmarks must not hang on it
            if not isinstance(error, BenchmarkError):
                traceback.print_exc()
            message = str(error) if isinstance(error, BenchmarkError) else f"{type(error).__name__}: {error}"
            print(f"error: {name}: {message}", file=sys.stderr, flush=True)
            summary.fail(name, message)
    summary.show()
    return 1 if summary.failed(args.benchmarks) else 0


if __name__ == "__main__":
    sys.exit(main())
