"""Multiple choice with the moments that the answer stands on: ReXTime, CG-Bench.

Each question is asked twice about the whole video: *where* the moments are, and the *choice*. In: ``Grounded`` and
``Answered``, as the files have them. Out: ``Scores`` by the ``Script`` of a variant, or as ``corrected`` means it.
Official forms and metrics' names are the tasks'.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from all_benchmark_eval.benchmark import SETTINGS, Benchmark, Explanation, Options, Scores, worded
from all_benchmark_eval.forms import Content, Form, need, rows_with
from all_benchmark_eval.items import Answers, Asked, Questions, as_object, known_length, question_line
from all_benchmark_eval.metrics.choices import LETTERED, Question, chosen
from all_benchmark_eval.metrics.moments import (
    SLACK,
    Floats,
    Located,
    State,
    explain_span,
    means_of,
    no_length,
    order_and_clip,
    published_wordings,
)
from all_benchmark_eval.moment_forms import asked_of

WHERE, CHOICE = "where", "choice"  # the two questions, as the beginning of an id
MOMENT = published_wordings() | {"plain": "Which part of the video answers this question: '{query}'?"}
Of = Literal["span", "choice", "both"]  # what a metric is made of
Measures = Mapping[str, tuple[Of, NDArray]]  # {metric: (of what, [N])}


@dataclass(frozen=True)
class Grounded:
    """Ground truth of N questions; ``windows[i]`` [K, 2] are the true ones of question i, ordered."""

    questions: list[Question]
    windows: list[Floats]
    durations: Floats  # [N], NaN where unknown

    @staticmethod
    def of(rows: Iterable[tuple[Question, Floats, float | None]], path: object) -> "Grounded":
        """From (question, windows, seconds of the video). Raises BenchmarkError for none, and a repeated id."""
        rows = list(rows)
        need(rows, f"{path}: no question in it")
        questions, windows, lengths = map(list, zip(*rows, strict=True))
        seen: set[str] = set()
        for question in questions:
            need(question.id not in seen, f"{path}: {question.id!r} stands twice")
            seen.add(question.id)
        return Grounded(questions, windows, np.array([np.nan if n is None else n for n in lengths]))

    def row(self, name: str) -> int | None:
        return next((row for row, question in enumerate(self.questions) if question.id == name), None)


@dataclass(frozen=True)
class Answered(Located):
    """Spans of the N questions, in ``ranked`` where there are several, and each choice (its text) by its place."""

    choices: dict[int, Any] = field(default_factory=dict, kw_only=True)

    def all_spans(self, row: int) -> Floats:
        """[K, 2] of question ``row``, as the file has them."""
        own = [self.spans[row]] if self.state[row] == State.PARSED else []
        return np.array(self.ranked.get(row, own), np.float64).reshape(-1, 2)


@dataclass(frozen=True)
class Script:
    """How a published script scores an answer.

    Attributes:
        iou: spans [K, 2] of an answer (K >= 1), true windows [M, 2] -> in [0, 1], or several such overlaps.
        right: a choice (its text), its question -> whether it is right; None: nothing is read.
        read: the means are over what is read; else over the questions in the prediction file.
        dtype: in which an IoU is held against a threshold.
    """

    iou: Callable[[Floats, Floats], Any]
    right: Callable[[Any, Question], bool | None]
    read: bool = False
    dtype: type = np.float64


def lines(spans: str, choice: str) -> Callable[[Content, Grounded], Answered]:
    """A form's ``read``: rows with spans, of a score each or not, and a choice under these keys; which question a row
    is about: ``moment_forms.asked_of``."""

    def read(content: Content, truth: Grounded) -> Answered:
        nowhere, questions = Located.nowhere(len(truth.questions)), Questions(_asked(truth))
        found = Answered(nowhere.spans, nowhere.state)

        def given() -> Iterable[tuple[str, list[int], Mapping[str, Any]]]:
            for where, row in content.rows:
                row = as_object(row, where, (spans, choice))
                yield where, asked_of(where, row, questions), row

        for place, row in questions.spread(given()):
            windows = row[spans] if isinstance(row[spans], list) else []
            found.put(place, [window[:2] for window in windows if isinstance(window, list)] or [-1, -1])
            if isinstance(row[choice], str):
                found.choices[place] = row[choice]
        return found

    return read


def summed_iou(spans: Floats, true: Floats, dtype: type = np.float32) -> float:
    """All overlaps of pairs over all lengths, nothing merged; 0 where that is nothing."""
    spans, true = spans.astype(dtype), true.astype(dtype)
    starts, ends = np.maximum(spans[:, None, 0], true[:, 0]), np.minimum(spans[:, None, 1], true[:, 1])
    shared = np.maximum(ends - starts, 0).sum(dtype=dtype)
    union = np.diff(spans).sum(dtype=dtype) + np.diff(true).sum(dtype=dtype) - shared
    return float(shared / union) if union else 0.0


def merged(spans: Floats) -> Floats:
    """Spans [K, 2] as those of their union, in order."""
    found: list[list[float]] = []
    for start, end in sorted(spans.tolist(), key=lambda span: span[0]):
        if found and start <= found[-1][1]:
            found[-1][1] = max(found[-1][1], end)
        else:
            found.append([start, end])
    return np.array(found, np.float64).reshape(-1, 2)


def merged_iou(spans: Floats, true: Floats) -> float:
    """Of the unions; 0 where there is no union, or one of reversed spans only."""
    return max(summed_iou(merged(spans), merged(true), np.float64), 0.0)


def first_letter(text: str, question: Question) -> bool | None:
    """VideoMind: the first letter of the first word, whatever follows; None if it is no option's."""
    letter = text.lower().split(" ")[0].translate(str.maketrans("", "", "()."))[:1]
    options = "abcdefghij"[: len(question.options) or 4]
    return letter == question.right.lower() if letter and letter in options else None


def what_it_says(text: str, question: Question) -> bool | None:
    """The option that the text chooses, as ``corrected`` reads it."""
    choice = chosen(text, len(question.options) or 4, question.options).value
    return None if choice is None else choice == question.answer


class GroundedBenchmark(Benchmark):
    """A benchmark of grounded multiple choice; ids of its questions to a model are ``where-<id>``, ``choice-<id>``."""

    settings = SETTINGS
    scripts: ClassVar[Mapping[str, Script]]  # by variant
    nowhere: ClassVar[Any] = 0.0  # the overlap of an answer without a span
    meant_right = staticmethod(what_it_says)  # of the corrected protocol
    forms = (
        Form(
            "VideoMind lines", '{"qid" or "vid" and "question", "pred": [[s, e]], "response": text}',
            rows_with("pred", "response"), lines("pred", "response"),
        ),
    )  # fmt: skip

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        cls.variants = tuple(cls.scripts)

    @abstractmethod
    def measures(self, ious: Floats, right: NDArray[np.bool_], slack: float) -> Measures:
        """The metrics of N questions in printing order."""

    @staticmethod
    @abstractmethod
    def meant_iou(spans: Floats, true: Floats) -> float:
        """The IoU of the corrected protocol, of spans in the video."""

    def asked(self, truth: Grounded) -> Iterable[Asked]:
        """The questions without their options; one text may tell both, moments and choice."""
        return _asked(truth)

    def questions(self, truth: Grounded, wording: str) -> list[dict]:
        where, choice = worded(MOMENT, wording), worded(LETTERED, wording)
        found = []
        for q, length in zip(truth.questions, truth.durations, strict=True):
            need(q.text and q.options, f"{q.id!r}: no question or options in the annotations: they can only be scored")
            text = where.format(query=q.text, sentence=q.text)
            found.append(question_line(f"{WHERE}-{q.id}", f"{q.video}.mp4", text, duration=known_length(length)))
            line = replace(q, video=f"{q.video}.mp4").line(choice)
            found.append(line | {"id": f"{CHOICE}-{q.id}"})
        return found

    def from_answers(self, truth: Grounded, answers: Answers, wording: str) -> list[dict]:
        """VideoMind's lines. An answer under the question's own id tells both in one text."""
        found = []
        for q in truth.questions:
            where, choice = (answers.get(f"{kind}-{q.id}", answers.get(q.id)) for kind in (WHERE, CHOICE))
            spans = where.scored_spans if where and not where.error else []
            text = choice.text if choice and not choice.error else None
            if spans or text is not None or (where and not where.error):
                line = {"qid": q.id, "vid": q.video, "question": q.text, "pred": spans, "conf": [1.0] * len(spans)}
                found.append(line | {"response": text, "ans": q.right})
        return found

    def score(self, truth: Grounded, predictions: Answered, options: Options) -> Scores:
        """Metrics in percent. ``published``: IoU and right choices by the variant's ``Script``, means over the
        questions in the file, or over those that the script reads. ``corrected``: over all questions; spans ordered and
        cut to the video, or to the last true end where that is later; the choice that the text says; a threshold on
        paper is reached."""
        fixed = options.protocol == "corrected"
        script = Script(self.meant_iou, self.meant_right) if fixed else self.scripts[options.variant]
        ious, clipped = [], 0
        for row, true in enumerate(truth.windows):
            spans = predictions.all_spans(row)
            if fixed:
                spans, cut = order_and_clip(spans, np.full(len(spans), np.fmax(truth.durations[row], true.max())))
                clipped += bool(cut.any())
            ious.append(script.iou(spans, true) if len(spans) else self.nowhere)
        marks = [
            script.right(predictions.choices[row], q) if row in predictions.choices else None
            for row, q in enumerate(truth.questions)
        ]
        right = np.array([mark is True for mark in marks])
        inside = predictions.state != State.MISSING
        keep = dict.fromkeys(("span", "choice", "both"), np.ones_like(inside) if fixed else inside)
        if script.read:
            keep = {"span": predictions.parsed, "choice": np.array([mark is not None for mark in marks])}
            keep["both"] = keep["span"] & keep["choice"]
        counts, ids = predictions.counts(clipped), [q.id for q in truth.questions]
        scores = Scores(
            {}, "percent", counts, unread=predictions.unread(ids), notes=no_length(np.concatenate(truth.windows))
        )
        for name, (of, values) in self.measures(np.array(ious, script.dtype), right, SLACK if fixed else 0.0).items():
            one = means_of([ids[row] for row in np.flatnonzero(keep[of])], {name: values[keep[of]]}, counts)
            scores.metrics |= one.metrics
            scores.per_sample |= one.per_sample
        told = "the questions whose answer the script reads" if script.read else "the questions in the prediction file"
        scores.denominator = "" if fixed else told
        unread = sum(mark is None for mark in marks)
        scores.notes += [f"{unread} of {len(ids)} questions have no choice that is read"] * (unread > 0)
        return scores

    def explain(self, truth: Grounded, predictions: Answered, name: str) -> Explanation:
        """The first span of a question, and whether its choice is right."""
        row = truth.row(name)
        need(row is not None, f"--explain: there is no question {name!r}")
        found = explain_span(predictions, row, truth.windows[row].tolist(), float(truth.durations[row]))
        right = what_it_says(predictions.choices.get(row, ""), truth.questions[row])
        return replace(found, read=f"{found.read}, {'right' if right else 'wrong'} choice")

    def keep_texts(self, truth: Grounded, predictions: Answered, texts: Mapping[str, str]) -> None:
        """Of the question where, or of a text that answers both."""
        for row, q in enumerate(truth.questions):
            text = texts.get(f"{WHERE}-{q.id}", texts.get(q.id))
            predictions.told.update({} if text is None else {row: text})


def _asked(truth: Grounded) -> Iterable[Asked]:
    lengths = map(known_length, truth.durations)
    return (Asked(q.id, q.video, q.text, length) for q, length in zip(truth.questions, lengths, strict=True))
