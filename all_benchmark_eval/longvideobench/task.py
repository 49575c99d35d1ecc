"""LongVideoBench: multiple choice about videos of 8 s to an hour; validation set, 1337 questions (Wu et al., 2024).

Ground truth: the data set's ``lvb_val.json``; scoring needs ``id``, ``correct_choice``, ``duration_group`` and
``question_category`` of it, and without any file it gives the overall accuracy alone. Predictions::

    [{"id": "86CxyhFV9MI_0", "pred": "C", "gt": "B. run away"}]
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from all_benchmark_eval.benchmark import SETTINGS, Benchmark, BenchmarkError, Layout, Options, Scores, Setting, worded
from all_benchmark_eval.metrics.choices import (
    Mark,
    Question,
    letter_of,
    longvideobench_right,
    once,
    per_sample,
    read_choice,
    read_rows,
    share,
    state_counts,
    tally,
)
from all_benchmark_eval.metrics.moments import seconds
from all_benchmark_eval.mvbench.task import WORDINGS as MVBENCH_WORDINGS
from videollm.common.answers import AnswerLine

GROUPS = ("duration_group", "question_category")
NUM_OPTIONS = 5
WORDINGS = {
    "distime": {
        "text": (
            "Question: {question}\nOptions:\n{options}\n"
            "Answer with the option\u2019s letter from the given choices directly."
        ),
        "option": "{letter}. {option}",
    },
    "d2vlm": MVBENCH_WORDINGS["d2vlm"],  # none is published for this benchmark
    "plain": {
        "text": "{question}\n{options}\nAnswer with the letter of the right option.",
        "option": "{letter}. {option}",
    },
}


@dataclass(frozen=True)
class Row:
    """One prediction. ``text`` is None where the file has something else than a text."""

    id: str
    text: str | None
    true: str  # "B. the option", as the file has it


@dataclass(frozen=True)
class Predictions:
    """Rows, and ids of the annotations without one."""

    rows: Sequence[Row]
    missing: Sequence[str] = ()


class LongVideoBench(Benchmark):
    """Accuracy: overall, by length of the video and by category of the question; fractions."""

    name = "longvideobench"
    title = "LongVideoBench"
    layout = Layout(("lvb_val.json",))
    settings = SETTINGS | {"distime": Setting({"rule": "segments", "num_frames": 32, "pick": "middle"})}
    headline = ("accuracy",)
    own_truth = True

    def load(self, path: Path) -> dict[str, Question]:
        """By id."""
        return once(_questions(path), path)

    def questions(self, truth: Mapping[str, Question], wording: str) -> list[dict]:
        """Needs the whole ``lvb_val.json``: questions, candidates and paths."""
        words = worded(WORDINGS, wording)
        for name, question in truth.items():
            if not (question.text and question.options and question.video):
                raise BenchmarkError(f"{name!r}: no question, candidates or video_path; give the whole lvb_val.json")
        return [question.line(words) for question in truth.values()]

    def from_answers(
        self, truth: Mapping[str, Question], answers: Mapping[str, AnswerLine], wording: str
    ) -> list[dict]:
        worded(WORDINGS, wording)
        return [
            {"id": name, "pred": answers[name].text, "gt": f"{chr(ord('A') + q.answer)}. {q.options[q.answer]}"}
            for name, q in truth.items()
            if name in answers and not answers[name].error
        ]

    def read(self, path: Path, truth: Mapping[str, Question] | None) -> Predictions:
        """``gt`` is held against the annotations, where they are given."""
        rows = once(_rows(path), path)
        if truth is None:
            return Predictions(list(rows.values()))
        for name, row in rows.items():
            if name not in truth:
                raise BenchmarkError(f"{path}: the annotations have no question {name!r}")
            if letter_of(row.true) != truth[name].answer:
                right = chr(ord("A") + truth[name].answer)
                raise BenchmarkError(f"{path}: {name!r} has gt {row.true!r:.40}, but the annotations say {right}")
        return Predictions(list(rows.values()), [name for name in truth if name not in rows])

    def score(self, truth: Mapping[str, Question] | None, predictions: Predictions, options: Options) -> Scores:
        """``published``: the script's rule over the questions in the file; an empty answer is right, "(B)" is wrong.

        ``corrected``: the option that the answer's text chooses (``choices.read_choice``); an unclear, empty or missing
        answer is wrong. The break-downs are not of the published script.
        """
        published = options.protocol == "published"
        marks = [_mark(row, truth, published) for row in predictions.rows]
        marks += [
            Mark(name, False, "missing", counted=not published, groups=truth[name].groups)
            for name in predictions.missing
        ]
        found = {"overall": tally(marks, lambda mark: "overall")["overall"]}
        for kind in GROUPS if truth else ():
            of_kind = tally(marks, lambda mark, kind=kind: mark.groups[kind])
            found |= {f"{kind}/{value}": of_kind[value] for value in sorted(of_kind, key=lambda v: (len(v), v))}
        metrics = {("accuracy" if name == "overall" else name): share(entry) for name, entry in found.items()}
        tables = {"accuracy": per_sample(marks)}
        notes = [] if truth else ["no annotations given: no break-down by length and category"]
        if published and predictions.missing:
            notes.append(f"{len(predictions.missing)} questions have no answer; the published script does not see them")
        denominator = "the questions in the prediction file" if published else ""
        return Scores(metrics, "fraction", state_counts(marks), tables, denominator, {"accuracy": found}, notes)


def _mark(row: Row, truth: Mapping[str, Question] | None, published: bool) -> Mark:
    question = truth[row.id] if truth else None
    groups = question.groups if question else {}
    if row.text is None:
        return Mark(row.id, False, "unparsed", groups=groups)
    if published:
        return Mark(row.id, longvideobench_right(row.text, row.true), groups=groups)
    options = question.options if question else ()
    chosen = read_choice(row.text, len(options) or NUM_OPTIONS, options)
    return Mark(row.id, chosen == letter_of(row.true), "unparsed" if chosen is None else "scored", groups=groups)


def _rows(path: Path) -> Iterable[tuple[str, Row]]:
    for where, item in read_rows(path, ("id", "pred", "gt")):
        true = item["gt"]
        # The published files have a line break behind every character of gt; the letter comes first in either form.
        if not isinstance(true, str) or letter_of(true) is None or not true.partition(" ")[2]:
            raise BenchmarkError(f"{where}: {item['id']!r}: gt {true!r:.60} is not 'B. the option'")
        yield str(item["id"]), Row(str(item["id"]), item["pred"] if isinstance(item["pred"], str) else None, true)


def _questions(path: Path) -> Iterable[tuple[str, Question]]:
    for where, item in read_rows(path, ("id", "correct_choice", *GROUPS)):
        name, options, answer = str(item["id"]), item.get("candidates", []), item["correct_choice"]
        if not isinstance(options, list) or not all(isinstance(option, str) for option in options):
            raise BenchmarkError(f"{where}: {name!r}: candidates is not a list of texts")
        if isinstance(answer, bool) or not isinstance(answer, int) or not 0 <= answer < (len(options) or NUM_OPTIONS):
            raise BenchmarkError(f"{where}: {name!r}: correct_choice {answer!r:.40} is not the place of an option")
        duration = seconds(item.get("duration"))
        yield (
            name,
            Question(
                name,
                str(item.get("video_path", "")),
                str(item.get("question", "")),
                tuple(options),
                answer,
                {kind: str(item[kind]) for kind in GROUPS},
                _record(duration),
            ),
        )


def _record(duration: float | None) -> dict[str, Any]:
    return {} if duration is None or duration <= 0 else {"duration": duration}


TASK = LongVideoBench()
