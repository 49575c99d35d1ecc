"""Which option an answer's text chooses, and what multiple-choice benchmarks share: questions, rows, accuracies.

The ``mvbench_*``, ``longvideobench_*``, ``videomme_*`` and ``etbench_*`` rules are the published scripts', quirks
included (published_systems.md#choices); ``read_choice`` is what the text says, the same for every benchmark. Accuracies
are over ``Mark``s, one a question. Official formats and sentence similarity are not known here.
"""

import re
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from all_benchmark_eval.benchmark import Benchmark, Explanation, Options, Scores, worded
from all_benchmark_eval.forms import Content, pick
from all_benchmark_eval.items import Answers, Asked, answered, asked_questions, need, once, question_line
from all_benchmark_eval.metrics.parsing import split_evidence
from videollm.reading import Reading
from videollm.reading.choice import explain_choice

# ---- published -------------------------------------------------------------------------------------------------------


def mvbench_right(text: str, true: str, variant: Literal["distime", "d2vlm"]) -> bool:
    """Whether MVBench's scripts count ``text`` as right; ``true`` is "(A) the option".

    The first words are compared, each in the other: an empty answer, "(" or "." is always right. Raises IndexError, as
    the scripts do, where ``true`` has no text behind its letter.
    """
    word, _, true_word, _ = _first_words(text.replace("Answer: " if variant == "distime" else "</evi>", ""), true)
    return word.replace(".", "") in true_word or true_word in word


def longvideobench_right(text: str, true: str) -> bool:
    """Whether LongVideoBench's script counts ``text`` as right; ``true`` is "A. the option".

    The answer's first word within the true one, or the true option within what follows the first word: an empty answer
    is always right. Raises IndexError, as the script does, where ``true`` has no text behind its letter.
    """
    word, rest, true_word, true_rest = _first_words(text.strip(), true)
    return word.replace(".", "") in true_word or true_rest in rest


def _first_words(text: str, true: str) -> tuple[str, str, str, str]:
    word, _, rest = text.lower().partition(" ")
    true_word, _, true_rest = true.lower().partition(" ")
    if not true_rest:
        raise IndexError(f"no text behind the letter of {true!r}")
    return word, rest, true_word, true_rest[:-1] if true_rest.endswith(".") else true_rest


_VIDEOMME_PHRASES = (
    *("The best answer is", "The correct answer is", "The answer is", "The answer", "Best answer:", "Best option: "),
    *("Answer:", "Option:", "The correct answer", "The correct option"),
)


# Of Video-MME's own script; two phrases that lack a comma are one, which no answer holds.
_OFFICIAL_PHRASES = (
    *("The best answer is", "The correct answer is", "The answer is", "The answer"),
    *("The best option isThe correct option is", "Best answer:Best option:"),
)


def videomme_letter(text: str, variant: Literal["d2vlm", "official"]) -> str:
    """The letter that Video-MME's script reads, "" for none: "Because it is D" gives B.

    ``official``: the leaderboard's, which looks through the whole text. ``d2vlm``: as D2VLM ships it, with more phrases
    that are cut out, and nothing behind the first period.
    """
    text = text.strip()
    for phrase in _OFFICIAL_PHRASES if variant == "official" else _VIDEOMME_PHRASES:
        text = text.replace(phrase, "")
    if variant == "d2vlm":
        text = text.replace("</evi>", "").split(".")[0]
    found = re.search("[A-D]", text)
    return found.group() if found else ""


@dataclass(frozen=True)
class Verdict:
    """What a letter rule makes of an answer.

    ``right`` is None where no letter decides: then the option most like ``rest`` is taken, and an empty ``rest`` is
    wrong. ``matched``: the scripts do not count the answer as failed.
    """

    right: bool | None
    matched: bool
    rest: str = ""


def etbench_verdict(text: str, true: int, count: int, *, bracketed: bool, final: bool) -> Verdict:
    """E.T. Bench's letter rules for an answer to one of ``count`` options (published_systems.md#choices).

    ``bracketed``: the first "(letter)" anywhere comes first, and any letter counts as matched (the original scripts).
    ``final``: a letter that is wrong but an option decides as well; else only a right one does.
    """
    letters = [found.group(1)] if bracketed and (found := re.search(r"\(([A-Za-z])\)", text)) else []
    rest = text[len("best option:") :] if text.lower().startswith("best option:") else text
    rest = rest.lstrip().lstrip("(").lstrip()
    if rest and (len(rest) == 1 or rest[1] in "., )"):
        letters.append(rest[0])
    for letter in letters:
        choice = "abcde"[:count].find(letter.lower())
        if choice == true or (final and choice >= 0):
            return Verdict(choice == true, matched=True)
    return Verdict(None, matched=bracketed and bool(letters) and bool(rest), rest=rest)


def letter_of(true: str) -> int | None:
    """The index of the option that a ground truth such as "(B) text" or "B. text" names."""
    found = re.match(r"\s*\(?\s*([A-Za-z])\s*(?:[).]|$)", true)
    return ord(found.group(1).upper()) - ord("A") if found else None


def check_true(true: Any, problem: str) -> None:
    """Raises BenchmarkError with ``problem`` where a prediction file's ground truth is not a letter and an option."""
    need(isinstance(true, str) and letter_of(true) is not None and true.partition(" ")[2], problem)


# ---- what the text says ----------------------------------------------------------------------------------------------


def chosen(
    text: str, count: int, options: Sequence[str] = (), labels: Literal["letter", "digit"] = "letter"
) -> Reading[int | None]:
    """The option that an answer chooses, and by which rule; evidence before it is no part of it."""
    return explain_choice(split_evidence(text)[1], count, options, labels)


# ---- accuracies ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mark:
    """One question's outcome. ``counted``: it is in the denominator. ``groups``: {kind: value}, for break-downs."""

    id: str
    right: bool
    state: Literal["scored", "unparsed", "missing"] = "scored"
    counted: bool = True
    groups: dict[str, str] = field(default_factory=dict)


def tally(marks: Iterable[Mark], key: Callable[[Mark], str]) -> dict[str, dict[str, int]]:
    """``{key: {"correct", "total"}}`` of the counted marks, keys in the order in which they come up."""
    found: dict[str, dict[str, int]] = {}
    for mark in marks:
        entry = found.setdefault(key(mark), {"correct": 0, "total": 0})
        entry["correct"] += mark.counted and mark.right
        entry["total"] += mark.counted
    return found


def share(entry: dict[str, int], whole: int = 1) -> float | None:
    """correct / total, in percent if the ``whole`` is 100; None of nothing."""
    return whole * (entry["correct"] / entry["total"]) if entry["total"] else None


def state_counts(marks: Sequence[Mark]) -> dict[str, int]:
    """Of ``Scores.counts``."""
    states = [mark.state for mark in marks]
    counts = {state: states.count(state) for state in ("scored", "unparsed", "missing")}
    return {"samples": len(states)} | counts | {"clipped": 0}


def per_sample(marks: Iterable[Mark]) -> dict[str, float]:
    """{id: 1.0 if right} of the counted marks."""
    return {mark.id: float(mark.right) for mark in marks if mark.counted}


# ---- questions and rows ----------------------------------------------------------------------------------------------

# Of the published questions; the two systems differ in the comma.
CAREFULLY = (
    "Carefully watch the video and pay attention to the cause and sequence of events, the detail and movement of "
    "objects{comma} and the action and pose of persons. Based on your observations, select the best option that "
    "accurately addresses the question.\n"
)
LETTERED = {
    "d2vlm": (
        CAREFULLY.format(comma="") + "Question: {question}\nOptions:\n{options}\nBest Option: (",
        "({letter}) {option}.",
    ),
    "distime": (
        CAREFULLY.format(comma=",") + "\nQuestion: {question}\nOptions:\n{options}\nOnly give the best option.",
        "({letter}) {option}",
    ),
    "plain": ("{question}\n{options}\nAnswer with the letter of the right option.", "({letter}) {option}"),
}


@dataclass(frozen=True)
class Question:
    """One question of a ground truth. ``record``: more keys of its line for ``videollm.infer`` (bound, frames)."""

    id: str
    video: str
    text: str
    options: tuple[str, ...]
    answer: int  # the right option
    groups: dict[str, str] = field(default_factory=dict)
    record: dict[str, Any] = field(default_factory=dict)
    row: dict[str, Any] = field(default_factory=dict, repr=False)  # of the file, where predictions repeat it

    @property
    def right(self) -> str:
        """The letter of the right option."""
        return chr(ord("A") + self.answer)

    def line(self, wording: tuple[str, str]) -> dict:
        """For ``videollm.infer``. ``wording``: a text with places {question} and {options}, and how an option is shown
        ({letter}, {option})."""
        options = [wording[1].format(letter=chr(ord("A") + k), option=option) for k, option in enumerate(self.options)]
        text = wording[0].format(question=self.text, options="\n".join(options))
        return question_line(self.id, self.video, text, **self.record)


@dataclass(frozen=True)
class Row:
    """One prediction. ``text`` is None where the file has something else than a text."""

    id: str
    text: str | None
    true: str = ""  # "(A) the option" or "A. the option", as the file has it
    task: str = ""  # as the file names it
    question: Question | None = None  # where the file repeats it


@dataclass(frozen=True)
class Predictions:
    """Rows, and the questions of the annotations without one."""

    rows: Sequence[Row]
    missing: Sequence[Question] = ()

    def marks(self, published: bool, mark: Callable[[Row], Mark]) -> list[Mark]:
        """Of the rows as ``mark`` has them; missing ones are wrong, and as ``published`` not counted."""
        missing = [Mark(q.id, False, "missing", counted=not published, groups=q.groups) for q in self.missing]
        return [*map(mark, self.rows), *missing]

    def unread(self, marks: Iterable[Mark]) -> dict[str, str]:
        """Of ``Scores.unread``."""
        texts = {row.id: row.text or "" for row in self.rows}
        return {mark.id: texts[mark.id] for mark in marks if mark.state == "unparsed"}

    def notes(self, published: bool) -> list[str]:
        """What the published script does not say."""
        unseen = f"{len(self.missing)} questions have no answer; the published script does not see them"
        return [unseen] * bool(published and self.missing)


class ChoiceBenchmark(Benchmark):
    """A benchmark of multiple choice: ground truth {id: Question}, and ``Predictions`` that carry the right answers."""

    own_truth = True
    wordings: ClassVar[Mapping[str, tuple[str, str]]]  # see ``Question.line``
    incomplete: ClassVar[str] = "no question or options in the annotations"  # to be asked
    denominator: ClassVar[str] = "the questions in the prediction file"  # as published

    @abstractmethod
    def read_questions(self, path: Path) -> Iterable[Question]:
        """The questions of an annotation file."""

    @abstractmethod
    def prediction(self, question: Question, text: str) -> dict[str, Any]:
        """The item of an official prediction file for an answer's text."""

    @abstractmethod
    def choice(self, row: Row, truth: Mapping[str, Question] | None) -> Reading[int | None]:
        """The option that the text of a row chooses, and by which rule (corrected protocol)."""

    @abstractmethod
    def broken_down(self, marks: Sequence[Mark], published: bool, known: bool) -> Scores:
        """Metrics, per-sample scores, details and notes; ``known``: the annotations are given."""

    def score(self, truth: Mapping[str, Question] | None, predictions: Predictions, options: Options) -> Scores:
        """``published``: by the rule of the variant's script (``right``), means over the questions in the file.

        ``corrected``: the option that the answer's text chooses (``chosen``); an unclear, empty or missing answer is
        wrong.
        """
        published = options.protocol == "published"
        right = self.right(options.variant) if published else None
        marks = predictions.marks(published, lambda row: self.mark(row, truth, right))
        scores = self.broken_down(marks, published, truth is not None)
        scores.counts, scores.unread = state_counts(marks), predictions.unread(marks)
        scores.denominator = self.denominator if published else ""
        scores.notes += self.stops(predictions) + predictions.notes(published) if published else []
        return scores

    @abstractmethod
    def right(self, variant: str) -> Callable[[str, str], Any]:
        """The rule of a variant's script: an answer's text and the ground truth -> whether it is right."""

    def stops(self, predictions: Predictions) -> list[str]:
        """Notes on where the published script would stop."""
        return []

    @abstractmethod
    def difference(self, row: Row, question: Question) -> str:
        """What a row has in place of the question's right answer, for a message "<id> has ..."; "" if it is that."""

    def mark(self, row: Row, truth: Mapping[str, Question] | None, right: Callable[[str, str], bool] | None) -> Mark:
        """By the rule of a published script (text and ground truth -> whether it is right), or None: what the text
        says."""
        groups = truth[row.id].groups if truth else {"task": row.task}
        if row.text is None:
            return Mark(row.id, False, "unparsed", groups=groups)
        if right:
            return Mark(row.id, right(row.text, row.true), groups=groups)
        chosen = self.choice(row, truth).value
        return Mark(row.id, chosen == letter_of(row.true), "unparsed" if chosen is None else "scored", groups=groups)

    def asked(self, truth: Mapping[str, Question]) -> Iterable[Asked]:
        """The questions without their options."""
        return asked_questions(truth)

    def load(self, path: Path) -> dict[str, Question]:
        """By id."""
        return once(((question.id, question) for question in self.read_questions(Path(path))), path)

    def questions(self, truth: Mapping[str, Question], wording: str) -> list[dict]:
        """One line a question."""
        words = worded(self.wordings, wording)
        for name, question in truth.items():
            need(question.text and question.options and question.video, f"{name!r}: {self.incomplete}")
        return [question.line(words) for question in truth.values()]

    def from_answers(self, truth: Mapping[str, Question], answers: Answers, wording: str) -> list[dict]:
        """One form for every wording."""
        worded(self.wordings, wording)
        return [self.prediction(q, answer.text) for answer, _, q in answered(answers, truth, truth.values())]

    def read(self, path: Path | Content, truth: Mapping[str, Question] | None) -> Predictions:
        """The right answers in the file are held against the annotations, where they are given."""
        content = Content.of(path)
        given: Iterable[Row] = pick(content, self.forms, self.name).read(content)
        rows = once(((row.id, row) for row in given), path)
        if truth is None:
            return Predictions(list(rows.values()))
        for name, row in rows.items():
            of_task = f" ({row.task})" if row.task else ""
            need(name in truth, f"{path}: the annotations have no question {name!r}{of_task}")
            other = self.difference(row, truth[name])
            need(not other, f"{path}: {name!r} has {other}")
        return Predictions(list(rows.values()), [question for name, question in truth.items() if name not in rows])

    def explain(self, truth: Mapping[str, Question] | None, predictions: Predictions, name: str) -> Explanation:
        """The option that counts, and how it was read."""
        row = next((row for row in predictions.rows if row.id == name), None)
        missing = next((question for question in predictions.missing if question.id == name), None)
        need(row or missing, f"--explain: there is no question {name!r}")
        question = missing or row.question or (truth or {}).get(name)
        true = f"({question.right})" if question else row.true
        if row is None or row.text is None:
            return Explanation(None, "nothing", "no answer in the file" if row is None else "not a text", true)
        found = self.choice(row, truth)
        read = "nothing" if found.value is None else f"({chr(ord('A') + found.value)})"
        return Explanation(row.text, read, found.rule, true)
