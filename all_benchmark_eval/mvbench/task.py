"""MVBench: twenty tasks of multiple choice about short videos, 200 questions each (Li et al., CVPR 2024).

Ground truth: the data set's folder ``json`` with a file a task, ``[{"video", "question", "candidates", "answer"}]``.
Predictions in DisTime's form, a list, or in D2VLM's, a folder with a file a task::

    [{"task_type": "Action Sequence", "pred": "(B)", "gt": "(B) The table."}]
    action_sequence.json: [{"pred": "</evi>(B) right.", "A": "(B) right.", "task_type": "action_sequence"}]
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from all_benchmark_eval.benchmark import WITHOUT_BREAK, Benchmark, BenchmarkError, Layout, Options, Scores, worded
from all_benchmark_eval.metrics.choices import (
    Mark,
    Question,
    letter_of,
    mvbench_right,
    once,
    per_sample,
    read_choice,
    read_rows,
    share,
    state_counts,
    tally,
)
from all_benchmark_eval.metrics.moments import seconds
from all_benchmark_eval.mvbench.tasks import FRAMES, TASKS, stem
from videollm.common.answers import AnswerLine

_CAREFULLY = (
    "Carefully watch the video and pay attention to the cause and sequence of events, the detail and movement of "
    "objects{comma} and the action and pose of persons. Based on your observations, select the best option that "
    "accurately addresses the question.\n"
)
WORDINGS = {
    "d2vlm": {
        "text": _CAREFULLY.format(comma="") + "Question: {question}\nOptions:\n{options}\nBest Option: (",
        "option": "({letter}) {option}.",
    },
    "distime": {
        "text": _CAREFULLY.format(comma=",")
        + "\nQuestion: {question}\nOptions:\n{options}\nOnly give the best option.",
        "option": "({letter}) {option}",
    },
    "plain": {
        "text": "{question}\n{options}\nAnswer with the letter of the right option.",
        "option": "({letter}) {option}",
    },
}


@dataclass(frozen=True)
class Row:
    """One prediction. ``text`` is None where the file has something else than a text."""

    id: str
    task: str  # as the file names it
    text: str | None
    true: str  # "(A) the option"


@dataclass(frozen=True)
class Predictions:
    """Rows, and questions of the annotations without one, as (id, task)."""

    rows: Sequence[Row]
    missing: Sequence[tuple[str, str]] = ()


class MVBench(Benchmark):
    """Accuracy of each task and of all questions, percent."""

    name = "mvbench"
    title = "MVBench"
    layout = Layout(("json",))
    settings = WITHOUT_BREAK
    headline = ("Avg",)
    variants = ("distime", "d2vlm")
    own_truth = True

    def load(self, path: Path) -> dict[str, Question]:
        """One task's file, the folder of them, or the folder above it. Ids: ``<file>/<place>``."""
        path = Path(path)
        folder = path / "json" if (path / "json").is_dir() else path
        files = [folder] if folder.is_file() else [f for f in sorted(folder.glob("*.json*")) if _stem(f) in TASKS]
        if not files:
            raise BenchmarkError(f"{path}: no annotation file of MVBench (action_sequence.json, ...)")
        return {name: question for file in files for name, question in _questions(file)}

    def questions(self, truth: Mapping[str, Question], wording: str) -> list[dict]:
        """``bound``: only these seconds are asked about. ``frames``: the video is a folder of frames (see tasks.py)."""
        words = worded(WORDINGS, wording)
        return [question.line(words) for question in truth.values()]

    def from_answers(
        self, truth: Mapping[str, Question], answers: Mapping[str, AnswerLine], wording: str
    ) -> list[dict]:
        """DisTime's form for every wording, with the question's id."""
        worded(WORDINGS, wording)
        return [
            {"id": name, "task_type": q.groups["task"], "pred": answers[name].text, "gt": _shown(q)}
            for name, q in truth.items()
            if name in answers and not answers[name].error
        ]

    def read(self, path: Path, truth: Mapping[str, Question] | None) -> Predictions:
        """Either form. Rows without ``id`` count as the first ones of their task."""
        path = Path(path)
        files = sorted(path.glob("*.json*")) if path.is_dir() else [path]
        if not files:
            raise BenchmarkError(f"{path}: no prediction file (<task>.json) in this folder")
        rows = once(((row.id, row) for file in files for row in _rows(file, path.is_dir())), path)
        if truth is None:
            return Predictions(list(rows.values()))
        known = {name: question.groups["task"] for name, question in truth.items()}
        for name, row in rows.items():
            if name not in known:
                raise BenchmarkError(f"{path}: the annotations have no question {name!r} ({row.task})")
            if letter_of(row.true) != truth[name].answer:
                raise BenchmarkError(
                    f"{path}: {name!r} has {row.true!r:.60} as right answer, not {_shown(truth[name])!r:.60} as in the "
                    "annotations; rows without 'id' must be the first ones of their task, in order"
                )
        return Predictions(list(rows.values()), [(name, task) for name, task in known.items() if name not in rows])

    def score(self, truth: Mapping[str, Question] | None, predictions: Predictions, options: Options) -> Scores:
        """``published``: the letter rule of the variant's script, over the questions in the file; an empty answer is
        right.

        ``corrected``: the option that the answer's text chooses (``choices.read_choice``); an unclear, empty or missing
        answer is wrong.
        """
        published = options.protocol == "published"
        marks = [_mark(row, truth, options) for row in predictions.rows]
        marks += [
            Mark(name, False, "missing", counted=not published, groups={"task": task})
            for name, task in predictions.missing
        ]
        tasks = tally(marks, lambda mark: mark.groups["task"])
        total = tally(marks, lambda mark: "Total")["Total"]
        metrics = {task: _percent(entry) for task, entry in tasks.items()} | {"Avg": _percent(total)}
        by_task = {task: per_sample(m for m in marks if m.groups["task"] == task) for task in tasks}
        printed = {name: None if value is None else round(value, 2) for name, value in metrics.items()}
        details = {"tasks": tasks, "Total": total} | ({"as_printed": printed} if published else {})
        notes = [] if len(tasks) == len(TASKS) else [f"{len(tasks)} of the {len(TASKS)} tasks"]
        if published and predictions.missing:
            notes.append(f"{len(predictions.missing)} questions have no answer; the published script does not see them")
        return Scores(
            metrics,
            "percent",
            state_counts(marks),
            by_task | {"Avg": per_sample(marks)},
            "the questions in the prediction file" if published else "",
            details,
            notes,
        )


def _mark(row: Row, truth: Mapping[str, Question] | None, options: Options) -> Mark:
    groups = truth[row.id].groups if truth else {"task": row.task}
    if row.text is None:
        return Mark(row.id, False, "unparsed", groups=groups)
    if options.protocol == "published":
        return Mark(row.id, mvbench_right(row.text, row.true, options.variant), groups=groups)
    shown = truth[row.id].options if truth else (row.true.partition(" ")[2],)
    right = letter_of(row.true)
    chosen = _chosen(row.text, shown, right, several=truth is not None)
    return Mark(row.id, chosen == right, "unparsed" if chosen is None else "scored", groups=groups)


def _chosen(text: str, options: Sequence[str], right: int, several: bool) -> int | None:
    """The option chosen. Without the annotations only the right option's words are known, not how many there are."""
    if several:
        return read_choice(text, len(options), options)
    chosen = read_choice(text, 26)
    return right if chosen is None and read_choice(text, 1, options) == 0 else chosen


def _percent(entry: dict[str, int]) -> float | None:
    value = share(entry)
    return None if value is None else 100 * value


def _shown(question: Question) -> str:
    return f"({chr(ord('A') + question.answer)}) {question.options[question.answer]}"


def _stem(path: Path) -> str:
    return stem(path.name.partition(".")[0])


def _rows(path: Path, by_file: bool) -> Iterable[Row]:
    places: dict[str, int] = {}
    for where, item in read_rows(path, ("pred",)):
        key = "gt" if "gt" in item else "A"
        if key not in item:
            raise BenchmarkError(f"{where}: no key 'gt' (DisTime's form) or 'A' (D2VLM's)")
        task = path.name.partition(".")[0] if by_file else str(item.get("task_type") or path.name.partition(".")[0])
        true = item[key]
        if not isinstance(true, str) or letter_of(true) is None or not true.partition(" ")[2]:
            raise BenchmarkError(f"{where}: {key} {true!r:.80} is not '(A) the option'")
        place = places.setdefault(task, 0)
        places[task] += 1
        text = item["pred"] if isinstance(item["pred"], str) else None
        yield Row(str(item.get("id", f"{stem(task)}/{place}")), task, text, true)


def _questions(path: Path) -> Iterable[tuple[str, Question]]:
    task = TASKS.get(_stem(path))
    if task is None:
        raise BenchmarkError(f"{path}: not named after a task of MVBench (action_sequence.json, ...)")
    for place, (where, item) in enumerate(read_rows(path, ("video", "question", "candidates", "answer"))):
        options = item["candidates"]
        if not isinstance(options, list) or not all(isinstance(o, str) and o for o in options):
            raise BenchmarkError(f"{where}: candidates is not a list of texts")
        if item["answer"] not in options:
            raise BenchmarkError(f"{where}: the answer {item['answer']!r:.60} is none of the candidates")
        record: dict[str, Any] = {"frames": FRAMES} if task.frames else {}
        if task.timed:
            record["bound"] = _bound(item, where)
        name = f"{_stem(path)}/{place}"
        yield (
            name,
            Question(
                name,
                f"{task.folder}/{item['video']}",
                str(item["question"]),
                tuple(options),
                options.index(item["answer"]),
                {"task": task.title},
                record,
            ),
        )


def _bound(item: Mapping[str, Any], where: str) -> list[float]:
    bound = [seconds(item.get("start")), seconds(item.get("end"))]
    if None in bound or bound[0] > bound[1]:
        raise BenchmarkError(f"{where}: this task needs 'start' and 'end' in seconds, in order")
    return bound


TASK = MVBench()
