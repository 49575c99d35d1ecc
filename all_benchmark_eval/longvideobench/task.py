"""LongVideoBench: multiple choice about videos of 8 s to an hour; validation set, 1337 questions (Wu et al., 2024).

Ground truth: the data set's ``lvb_val.json``; scoring needs ``id``, ``correct_choice``, ``duration_group`` and
``question_category`` of it, and without any file it gives the overall accuracy alone. Predictions::

    [{"id": "86CxyhFV9MI_0", "pred": "C", "gt": "B. run away"}]
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from all_benchmark_eval.benchmark import SETTINGS, Layout, Scores, Setting
from all_benchmark_eval.forms import Content, Form, need, rows_with
from all_benchmark_eval.items import are_texts, read_rows, seconds
from all_benchmark_eval.metrics import choices
from all_benchmark_eval.metrics.choices import Mark, Question, Row, letter_of, tally
from all_benchmark_eval.mvbench.task import WORDINGS as MVBENCH_WORDINGS
from videollm.reading import Reading

GROUPS = ("duration_group", "question_category")
NUM_OPTIONS = 5
WORDINGS = {
    "distime": (
        "Question: {question}\nOptions:\n{options}\n"
        "Answer with the option\u2019s letter from the given choices directly.",
        "{letter}. {option}",
    ),
    "d2vlm": MVBENCH_WORDINGS["d2vlm"],  # none is published for this benchmark
    "plain": ("{question}\n{options}\nAnswer with the letter of the right option.", "{letter}. {option}"),
}


def _answers(content: Content) -> Iterable[Row]:
    """The published files have a line break behind every character of gt; the letter comes first in either form."""
    for where, item in read_rows(content, ("id", "pred", "gt")):
        choices.check_true(item["gt"], f"{where}: {item['id']!r}: gt {item['gt']!r:.60} is not 'B. the option'")
        yield Row(str(item["id"]), item["pred"] if isinstance(item["pred"], str) else None, item["gt"])


class LongVideoBench(choices.ChoiceBenchmark):
    """Accuracy: overall, by length of the video and by category of the question; fractions."""

    name = "longvideobench"
    title = "LongVideoBench"
    layout = Layout(("lvb_val.json",))
    settings = SETTINGS | {"distime": Setting({"rule": "segments", "num_frames": 32, "pick": "middle"})}
    headline = ("accuracy",)
    wordings = WORDINGS
    forms = (Form("DisTime", '[{"id", "pred", "gt"}]', rows_with("id", "pred", "gt"), _answers),)
    incomplete = "no question, candidates or video_path; give the whole lvb_val.json"

    def read_questions(self, path: Path) -> Iterable[Question]:
        """To be asked, they need the whole ``lvb_val.json``: questions, candidates and paths."""
        for where, item in read_rows(path, ("id", "correct_choice", *GROUPS)):
            name, options, answer = str(item["id"]), item.get("candidates", []), item["correct_choice"]
            need(are_texts(options), f"{where}: {name!r}: candidates is not a list of texts")
            number = isinstance(answer, int) and not isinstance(answer, bool)
            place = number and 0 <= answer < (len(options) or NUM_OPTIONS)
            need(place, f"{where}: {name!r}: correct_choice {answer!r:.40} is not the place of an option")
            video, text, duration = item.get("video_path", ""), item.get("question", ""), seconds(item.get("duration"))
            record = {"duration": duration} if duration and duration > 0 else {}
            groups = {kind: str(item[kind]) for kind in GROUPS}
            yield Question(name, str(video), str(text), tuple(options), answer, groups, record)

    def prediction(self, question: Question, text: str) -> dict[str, Any]:
        """As published, ``gt`` on one line."""
        return {"id": question.id, "pred": text, "gt": f"{question.right}. {question.options[question.answer]}"}

    def difference(self, row: Row, question: Question) -> str:
        """The letter decides."""
        other = f"gt {row.true!r:.40}, but the annotations say {question.right}"
        return "" if letter_of(row.true) == question.answer else other

    def right(self, variant: str) -> Callable[[str, str], bool]:
        """The script's rule; an empty answer is right, "(B)" is wrong."""
        return choices.longvideobench_right

    def broken_down(self, marks: Sequence[Mark], published: bool, known: bool) -> Scores:
        """By length and category, which the published script does not do."""
        found = {"overall": tally(marks, lambda mark: "overall")["overall"]}
        for kind in GROUPS if known else ():
            of_kind = tally(marks, lambda mark, kind=kind: mark.groups[kind])
            found |= {f"{kind}/{value}": of_kind[value] for value in sorted(of_kind, key=lambda v: (len(v), v))}
        metrics = {("accuracy" if name == "overall" else name): choices.share(entry) for name, entry in found.items()}
        notes = [] if known else ["no annotations given: no break-down by length and category"]
        per_sample = {"accuracy": choices.per_sample(marks)}
        return Scores(metrics, "fraction", {}, per_sample, details={"accuracy": found}, notes=notes)

    def choice(self, row: Row, truth: Mapping[str, Question] | None) -> Reading[int | None]:
        """Without the annotations there may be as many options as any question has."""
        options = truth[row.id].options if truth else ()
        return choices.chosen(row.text, len(options) or NUM_OPTIONS, options)


TASK = LongVideoBench()
