"""Files of NExT-GQA: the data set's own annotations, and predictions of moment and choice in one file or two.

In: a ``Content``. Out: ``Truth``, ``Answers``, in which a choice is what the published script takes for it and what
its text says. Metrics are not known here.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from all_benchmark_eval import items
from all_benchmark_eval.forms import BenchmarkError, Content, Form, need, rows_with
from all_benchmark_eval.items import Asked, Questions, as_object
from all_benchmark_eval.metrics.choices import Question, chosen
from all_benchmark_eval.metrics.grounded import Answered, Grounded
from all_benchmark_eval.metrics.moments import Located, State
from all_benchmark_eval.moment_forms import asked_of

LETTERS = "01234"
VIDEO_PATHS = "map_vid_vidorID.json"  # of the data set: {video: "1164/3238737531"}


@dataclass(frozen=True)
class Truth(Grounded):
    """Ground truth of N grounded questions, which have their keys ``<video>_<number>`` as ids and no text."""

    asked: list[Question]  # all of test.csv, ids <type>_<video>_<number>; empty without that file
    video_paths: Mapping[str, str]

    @property
    def keys(self) -> list[str]:
        return [question.id for question in self.questions]


@dataclass(frozen=True)
class Choice:
    """The choice of one question."""

    kind: str  # of the question; "unknown" where the file does not say
    number: int | None  # as the published script has it
    read: int | None  # as the text says it
    said: str
    target: int


@dataclass(frozen=True)
class Answers(Answered):
    """Spans and choices of the N grounded questions, and the choices of the ``others`` in the file."""

    others: list[Choice] = field(default_factory=list, kw_only=True)

    def unread_too(self) -> "Answers":
        """The same, but an answer without a choice is unparsed too; texts are those of what is not read."""
        state, told = self.state.copy(), dict(self.told)
        for row, choice in self.choices.items():
            if choice.read is None:
                told[row] = told.get(row, "") if state[row] == State.UNPARSED else choice.said
                state[row] = State.UNPARSED
        return replace(self, state=state, told=told)


# ---- predictions -----------------------------------------------------------------------------------------------------


class Answer(NamedTuple):
    """One answer of a file."""

    where: str
    kind: str  # type of question, or ""
    key: str  # <video>_<number>
    number: int | None
    read: int | None
    said: str
    target: Any
    span: Any


def _answers(given: Iterator[Answer], truth: Truth, path: Path) -> Answers:
    """Questions that are not grounded count for ``details`` only."""
    rows = {key: row for row, key in enumerate(truth.keys)}
    nowhere = Located.nowhere(len(rows))
    found = Answers(nowhere.spans, nowhere.state)
    answers = {_key(q): q.answer for q in truth.asked}
    seen: set[str] = set()
    first = ""
    for one in given:
        name = f"{one.kind}_{one.key}" if one.kind else one.key
        first = first or name
        need(one.key not in seen, f"{one.where}: there are two answers to {name!r}")
        seen.add(one.key)
        target = _number(one.target)
        need(target is not None, f"{one.where}: the target of {name!r} is not the number of an option")
        if answers.get(one.key, target) != target:
            raise BenchmarkError(f"{one.where}: {name!r} has target {one.target!r:.40}, test.csv {answers[one.key]}")
        row, choice = rows.get(one.key), Choice(one.kind or "unknown", one.number, one.read, one.said, target)
        if row is None:
            found.others.append(choice)
        else:
            found.choices[row] = choice
            point = items.seconds(one.span)  # one number t is [t, t]
            found.put(row, items.first_span(one.span) if point is None else [point, point])
    known = bool((found.state != State.MISSING).any())
    need(known, f"{path}: the annotations have none of its questions ({first!r:.80}, ...): another split?")
    return found


def _one_file(content: Content, truth: Truth) -> Answers:
    options = _options(truth)

    def given() -> Iterator[Answer]:
        rows = items.read_rows(content, ("qid", "prediction", "timestamp", "target"), "a list of answers")
        for where, item in rows:
            kind, _, key = str(item["qid"]).partition("_")
            need(kind and "_" in key, f"{where}: qid {str(item['qid'])[:80]!r} is not <type>_<video>_<number>")
            choice = _chosen(item["prediction"], item.get("text"), options.get(key, ()))
            yield Answer(where, kind, key, *choice, item["target"], item["timestamp"])

    return _answers(given(), truth, content.path)


def _two_files(content: Content, truth: Truth) -> Answers:
    """A folder with the choices, {"<video>_<number>": {"prediction", "answer"}}, and the spans, {..: [start, end]}."""
    choices, spans = [part for part in content.parts if _has_choices(part)], [*filter(_has_spans, content.parts)]
    for what, parts in (("choices", choices), ("spans", spans)):
        names = " and ".join(part.path.name for part in parts) or "none"
        need(len(parts) == 1, f"{content.path}: one file with {what} is needed, there are {names}")
    kinds, options = {_key(q): q.id.partition("_")[0] for q in truth.asked}, _options(truth)

    def given() -> Iterator[Answer]:
        for key, span in spans[0].object.items():
            where = f"{spans[0].path}: {key!r:.80}"
            choice = choices[0].object.get(key)
            need(choice is not None, f"{where}: {choices[0].path.name} has no choice for it")
            choice = as_object(choice, f"{choices[0].path}: {key!r:.80}", ("prediction", "answer"))
            read = _chosen(choice["prediction"], None, options.get(key, ()))
            yield Answer(where, kinds.get(key, ""), key, *read, choice["answer"], span)

    found = _answers(given(), truth, content.path)
    ends = found.spans[found.parsed, 1]
    shares = "its spans are shares of the video, as of Gaussian masks: multiply them by the durations"
    need(not len(ends) or ends.max() > 1, f"{spans[0].path}: no span ends behind second 1; {shares}")
    return found


def _videomind(content: Content, truth: Truth) -> Answers:
    """VideoMind's lines name a question by its video's path and its text, and options by letters (A) to (E)."""
    need(truth.asked, f"{content.path}: questions are found by their texts, which are in test.csv: put it beside")
    videos = (truth.video_paths.get(q.video, q.video) for q in truth.asked)
    by_text = Questions(Asked(q.id, video, q.text, None) for q, video in zip(truth.asked, videos, strict=True))

    def found() -> Iterator[tuple[str, list[int], Mapping]]:
        for where, row in content.rows:
            row = as_object(row, where, ("pred", "response", "options"))
            try:
                rows = asked_of(where, row, by_text)
            except BenchmarkError as error:
                lost = f"; VideoMind names videos as {VIDEO_PATHS} does, which is not beside the annotations"
                raise BenchmarkError(f"{error}{'' if truth.video_paths else lost}") from None
            yield where, rows, row | {"where": where}

    def given() -> Iterator[Answer]:
        for place, row in by_text.spread(found()):
            q, said = truth.asked[place], str(row["response"])
            letter = str(row.get("ans", q.right))
            need(letter == q.right, f"{row['where']}: {q.id!r} has the right option {letter!r}, test.csv {q.right!r}")
            read = chosen(said, len(q.options), q.options).value
            yield Answer(row["where"], q.id.partition("_")[0], _key(q), read, read, said, q.answer, row["pred"])

    return _answers(given(), truth, content.path)


def _key(question: Question) -> str:
    """<video>_<number>."""
    return question.id.partition("_")[2]


def _options(truth: Truth) -> dict[str, tuple[str, ...]]:
    return {_key(q): q.options for q in truth.asked}


def _chosen(prediction: Any, text: Any, options: tuple[str, ...]) -> tuple[int | None, int | None, str]:
    """(number as the published script has it, option that the text says, text). ``text``: what was said, if that is in
    the file beside the ``prediction``."""
    number, said = _number(prediction), str(prediction) if text is None else str(text)
    if text is None and (isinstance(prediction, int) or said.isdecimal()):
        return number, number if number in range(len(LETTERS)) else None, said
    return number, chosen(said, len(LETTERS), options, "digit").value, said


def _has_choices(content: Content) -> bool:
    value = (content.entry or ("", None))[1]
    return isinstance(value, dict) and "prediction" in value


def _has_spans(content: Content) -> bool:
    return isinstance((content.entry or ("", None))[1], list)


def _number(value: Any) -> int | None:
    """A whole number, from a number or a text; None if it is neither, and wrong then."""
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError):
        return None


# ---- annotations -----------------------------------------------------------------------------------------------------


def _beside(path: Path, name: str) -> Path | None:
    """A file in the same folder, plain or gzipped."""
    places = (path.with_name(name), path.with_name(f"{name}.gz"))
    return next((place for place in places if place.is_file()), None)


def _grounded(content: Content) -> Grounded:
    def rows() -> Iterator[tuple[Question, NDArray, float]]:
        for video, entry in as_object(content.object, f"{content.path}").items():
            where = f"{content.path}: {video!r:.80}"
            entry = as_object(entry, where, ("duration", "location"))
            duration = items.duration_of(entry, where)
            for number, windows in as_object(entry["location"], f"{where}: location").items():
                problem = f"{where}: question {number!r:.40}: not [[start, end], ...]: {str(windows)[:60]}"
                true = np.sort(items.read_spans(windows, problem), axis=-1)
                yield Question(f"{video}_{number}", video, "", (), -1), true, duration

    return Grounded.of(rows(), content.path)


def _questions(path: Path) -> list[Question]:
    """test.csv: video_id, question, answer (the text of an option), qid, type, a0 .. a4."""
    questions = []
    for number, row in enumerate(items.read_table(path), start=2):
        try:
            options = tuple(row[f"a{k}"] for k in LETTERS)
            kind, video, text = row["type"], row["video_id"], row["question"]
            answer = options.index(row["answer"])
        except (KeyError, ValueError):
            columns = "video_id, question, qid, type, a0 to a4, and answer, one of a0 to a4"
            raise BenchmarkError(f"{path}:{number}: needs {columns}") from None
        questions.append(Question(f"{kind}_{video}_{row['qid']}", video, text, options, answer))
    return questions


def _load(content: Content) -> Truth:
    """From gsub_*.json or *.csv; the other one is looked for beside it (gsub_test.json and test.csv)."""
    path = content.path
    name = path.name.removesuffix(".gz")
    if name.endswith(".csv"):
        wanted = f"gsub_{name.removesuffix('.csv')}.json"
        beside, table_path = _beside(path, wanted), path
        need(beside, f"{path}: the moments are in {wanted}, which is not beside it: put it there")
        moments = Content.of(beside)
    else:
        moments, table_path = content, _beside(path, name.removeprefix("gsub_").removesuffix(".json") + ".csv")
    questions = _questions(table_path) if table_path else []
    paths = _beside(path, VIDEO_PATHS)
    own = _grounded(moments)
    return Truth(own.questions, own.windows, own.durations, questions, items.read_object(paths) if paths else {})


TRUTHS = (
    Form(
        "NExT-GQA",
        'gsub_test.json: {video: {"duration", "location"}}, or test.csv',
        lambda content: content.object is not None or not content.rows,
        _load,
    ),
)
FORMS = (
    Form("DisTime", '[{"qid", "prediction", "timestamp", "target"}]', rows_with("qid", "prediction"), _one_file),
    Form(
        "NExT-GQA", 'folder with {"<video>_<number>": {"prediction", "answer"}} and {"<video>_<number>": [s, e]}',
        lambda content: any(map(_has_choices, content.parts)), _two_files,
    ),
    Form(
        "VideoMind", '[{"video_path", "question", "options", "pred": [[s, e]], "conf": [score], "response"}]',
        rows_with("pred", "conf"), _videomind,
    ),
)  # fmt: skip
