"""Ask a model the questions of benchmarks and score it: ``videollm evaluate MODEL --benchmarks a,b,c --data ROOT``.

Of each: questions -> ``videollm.infer`` (batched, over ``--gpus`` processes) -> predictions in the official form ->
scores under both protocols; then one table. Each benchmark's files are in ``OUTPUT/<name>/``, and a second run goes on
with them. One that fails does not stop the others. Knows no benchmark by name; ``summary.py`` writes the tables.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from all_benchmark_eval import benchmark, score
from all_benchmark_eval.benchmark import WORDINGS, Benchmark, BenchmarkError, get, worded, write_text
from all_benchmark_eval.items import Answers, need
from all_benchmark_eval.summary import Summary
from videollm import infer
from videollm.common.command import INTERRUPTED, USERS, Parser, a_path, ended, message, quieten, whole
from videollm.common.config import ConfigError, together
from videollm.common.files import check_file, check_folder, check_model, check_writable, json_lines, json_text
from videollm.inference.options import PRECISIONS, read_overrides
from videollm.inference.output import files_of
from videollm.video.decode import BACKENDS

INFER_OPTIONS = ("batch_size", "workers", "device", "backend", "precision")


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
    options = {"variant": variant, "wording": run.wording} | run.score_options
    texts = {name: answer.text for name, answer in answers.items()}
    result = score.score_file(task.name, predictions, [annotations], scores, texts=texts, **options)
    score.show(result, scores)
    return result


def _ask(task: Benchmark, run: Run, folder: Path, videos: Path, lines: Sequence[dict], stage: str) -> Answers:
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
        before = signal.signal(signal.SIGINT, lambda *_: None)  # Ctrl-C is for the launcher, which is waited for
        environment = os.environ | {"GPUS": str(run.processes)}
        command = [sys.executable, "-m", "videollm.launch", "videollm.infer", *arguments]
        status = subprocess.run(command, check=False, env=environment).returncode
        signal.signal(signal.SIGINT, before)
    if status == INTERRUPTED:
        raise SystemExit(status)  # it has said so
    need(not status, f"{task.name}: videollm.infer ended with status {status}; its message stands above")
    return benchmark.read_answers(answers)


def _keep_answers(questions: Path, answers: Path, lines: Sequence[dict], may_change: bool) -> None:
    """Hold the questions of an earlier run against ``lines``.

    Questions that stand on other answers may have changed since, where those were missing: their answers go. Raises
    BenchmarkError for questions of a first stage that are not the same.
    """
    earlier = [row for _, row in benchmark.read_lines(questions)]
    now, before = ({line["id"]: line for line in group} for group in (lines, earlier))
    if now == before:
        return
    changed = {name for name in now.keys() | before.keys() if now.get(name) != before.get(name)}
    files = [path for path in files_of(answers) if path.is_file()]
    kept = any(not line.get("error") for path in files for _, line in json_lines(path, torn=True))
    need(may_change or not kept, f"{questions}: {_others(changed, before, now)}; choose another --output or delete it")
    for path in files:
        whole = json_lines(path, torn=True)  # a torn last line is asked again anyway
        write_text(path, json_text(line for _, line in whole if line["id"] not in changed))


def _others(changed: set[str], before: Mapping[str, dict], now: Mapping[str, dict]) -> str:
    """How the questions of another annotation file or wording differ, at the first one that does."""
    name = min(changed)
    old, new = before.get(name, {}), now.get(name, {})
    key = next(key for key in (*old, *new) if old.get(key) != new.get(key))
    was, is_now = (f"{json.dumps(line.get(key), ensure_ascii=False):.150}" for line in (old, new))
    return f"{len(changed)} questions are others now, such as {name!r}: its {key} was {was}, now {is_now}"


def _places(task: Benchmark, args: argparse.Namespace) -> tuple[Path, Path]:
    """(annotations, videos) as the command line says; without ``--annotations`` they lie as in the task's layout."""
    videos = args.videos or benchmark.data_folder(task, args.data) / task.layout.videos
    folder = videos.joinpath(*[".."] * len(Path(task.layout.videos).parts))
    return args.annotations or benchmark.find_annotations(task, folder), videos


def wording_of(model: Path) -> str:
    """The wording that a checkpoint's head was made with. Raises BenchmarkError for a head that is not there."""
    from videollm.checkpoint import read_config
    from videollm.heads import head_class

    options = read_config(model).head
    head = options.get("name")
    try:
        return head_class(head).wording_with(options)
    except ConfigError:
        known = ", ".join(WORDINGS)
        raise BenchmarkError(f"--wording: no wording is known for the head {head!r}; choose of {known}") from None


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    told = "Ask a model the questions of benchmarks, and score it."
    parser = Parser(prog="videollm evaluate", description=told)
    parser.add_argument("model", type=a_path, metavar="MODEL", help="checkpoint folder or hub name")
    parser.add_argument("--benchmarks", required=True, metavar="A,B,...", help=f"of {', '.join(benchmark.names())}")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--data", type=a_path, metavar="ROOT", help="folder with a folder for each (check says what)")
    beside = "of a single benchmark; its annotations are beside it"
    where.add_argument("--videos", type=a_path, metavar="DIR", help=beside)
    parser.add_argument(
        "--annotations", type=a_path, metavar="FILE", help="of a single benchmark, if they lie elsewhere"
    )
    parser.add_argument("--output", type=a_path, metavar="DIR", help="default: MODEL/evaluation")
    parser.add_argument("--gpus", type=whole(1), metavar="N", help="processes (default: $GPUS, all GPUs, or 1)")
    parser.add_argument("--wording", choices=WORDINGS, help="of the questions (default: that of the model's head)")
    parser.add_argument("--batch-size", type=whole(1), metavar="N", help="of videollm.infer, as the next four")
    parser.add_argument("--workers", type=whole(0), metavar="N")
    parser.add_argument("--device")
    parser.add_argument("--backend", choices=list(BACKENDS))
    parser.add_argument("--precision", choices=list(PRECISIONS))
    score.add_options(parser)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="generate.max_new_tokens=64 ...")
    args = parser.parse_intermixed_args(argv)
    args.benchmarks = list(dict.fromkeys(filter(None, args.benchmarks.split(","))))
    if not args.benchmarks:
        parser.error("--benchmarks: names none")
    if len(args.benchmarks) != 1 and (args.videos or args.annotations):
        parser.error("--videos and --annotations are for a single benchmark; use --data for several")
    return args


def processes(given: int | None) -> int:
    """How many processes answer. Raises BenchmarkError for a number that GPUS or the machine does not allow."""
    import torch

    visible = torch.cuda.device_count()
    text = os.environ.get("GPUS") or str(max(visible, 1))
    need(given or (text.isdecimal() and int(text)), f"GPUS={text} must be a whole number from 1")
    count = given or int(text)
    need(count <= visible or not visible, f"--gpus: {count}, but this machine shows {visible}")
    return count


def check(args: argparse.Namespace, output: Path) -> None:
    """What can be said before torch is loaded: all of it. Raises UserError."""
    given = {"--data": args.data, "--videos": args.videos}
    together(
        lambda: check_model(args.model, "MODEL"),
        *(partial(get, name) for name in args.benchmarks),
        *(partial(check_folder, path, key) for key, path in given.items() if path is not None),
        *[lambda: check_file(args.annotations, "--annotations")] * (args.annotations is not None),
        lambda: check_writable(output / "results.json", "--output"),
        lambda: read_overrides(args.overrides),
    )


def prepare(args: argparse.Namespace) -> tuple[Run, Summary]:
    """Everything that can be said before the first question. Raises BenchmarkError, CheckpointError."""
    need(args.output or args.model.is_dir(), f"--output: needed, as {args.model} is no folder to put results beside")
    output = args.output or args.model / "evaluation"
    check(args, output)
    quieten()
    passed = {f"--{name.replace('_', '-')}": getattr(args, name) for name in INFER_OPTIONS}
    options = [part for name, value in passed.items() if value is not None for part in (name, str(value))]
    wording = args.wording or wording_of(args.model)
    scored = {key: getattr(args, key) for key in ("bootstrap", "skip_meteor", "sentence_model")}
    run = Run(args.model, output, wording, processes(args.gpus), options, args.overrides, scored)
    return run, Summary.open(run.output, run.model, run.wording)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command: 0 if every benchmark was scored, 1 if one failed, 2 if none could be begun."""
    args = arguments(argv)
    return ended(lambda: evaluate_all(args), infer.GO_ON)


def evaluate_all(args: argparse.Namespace) -> int:
    """Evaluate every benchmark, whatever becomes of the others; the exit status."""
    run, summary = prepare(args)
    for name in args.benchmarks:
        try:
            summary.add(name, evaluate(get(name), run, *_places(get(name), args)))
        except Exception as error:  # of whatever kind: hours of the other benchmarks must not hang on it
            known = isinstance(error, USERS)
            if not known:
                traceback.print_exc()
            told = message(error) if known else f"{type(error).__name__}: {error}"
            print(f"error: {name}: {told}", file=sys.stderr, flush=True)
            summary.fail(name, told)
    summary.show()
    return 1 if summary.failed(args.benchmarks) else 0


if __name__ == "__main__":
    sys.exit(main())
