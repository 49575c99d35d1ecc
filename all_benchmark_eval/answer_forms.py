"""Answers in a model's own words: the forms that every benchmark's predictions may have.

In: a file of ``videollm.infer``, of any model's texts by question, or of lmms-eval's samples. Out: an ``AnswerLine`` a
question, which the task turns into its official form. What a text says is ``videollm.reading``'s, official forms are
the tasks'.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from all_benchmark_eval.benchmark import Benchmark, read_answers
from all_benchmark_eval.forms import Content, Form, entries, need, pick, rows_with
from all_benchmark_eval.items import Answers, Asked, Questions, as_object
from all_benchmark_eval.metrics.parsing import split_evidence
from all_benchmark_eval.moment_forms import MARK
from videollm.common.answers import NEEDED, AnswerLine
from videollm.reading import read_spans

IDS = ("id", "question_id", "qid")
VIDEOS = ("video", "vid", "video_id", "vname", "video_path", "videoID", "image_id")
QUESTIONS = ("question", "query", "sentence", "caption")
TEXTS = ("text", "response", "prediction", "pred", "output", "generated_cap")


def answer_form(content: Content, task: Benchmark) -> Form | None:
    """The form of ``ANSWERS`` that a content is of; None for one of the task's own, which come first."""
    if any(form.fits(content) for form in task.forms):
        return None
    fitting = [form for form in ANSWERS if form.fits(content)]
    return pick(content, fitting or (*task.forms, *ANSWERS), task.name)


def read_texts(content: Content, asked: Iterable[Asked]) -> dict[str, AnswerLine]:
    """Texts by question: {id: text}, {video: {question: text}}, or rows with id (or video and question) and text."""
    questions = Questions(asked)
    if content.object is not None and not _is_row(content.row):
        found = _by_key(content, questions)
    else:
        found = (_of_row(where, row, questions) for where, row in content.rows)
    return _answers(questions, found)


def read_samples(content: Content, asked: Iterable[Asked]) -> dict[str, AnswerLine]:
    """lmms-eval's logged samples: the question is told by its ``doc``, or by what a metric logs in place of a number;
    the text by ``filtered_resps``."""
    questions = Questions(asked)

    def found() -> Iterator[tuple[str, list[int], str | None]]:
        for where, row in content.rows:
            row = as_object(row, where)
            doc, text = _doc_of(row), row.get("filtered_resps", row.get("resps"))
            need(doc, f"{where}: neither 'doc' nor a metric says what was asked; log the samples with the docs")
            while isinstance(text, list) and text:
                text = text[0]
            yield where, _places(where, doc, questions), text if isinstance(text, str) else None

    return _answers(questions, found())


def _doc_of(row: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What says which question a sample answers; lmms-eval 0.7 logs no ``doc``, but the entries of metrics."""
    for value in [row.get("doc"), *row.values()]:
        if isinstance(value, dict) and (value is row.get("doc") or any(key in value for key in (*IDS, *VIDEOS))):
            return value
        if isinstance(value, dict) and (key := next(iter(value), "")).count(MARK) >= 2:
            video, *query, _ = key.split(MARK)
            return {"video": video, "query": MARK.join(query)}
    return None


def free_answer(name: str, text: str, duration_s: float | None) -> AnswerLine:
    """An answer of which only the text is known: its spans are those that the text tells of a video so long."""
    evidence, answer = split_evidence(text)
    spans, before = (read_spans(part, duration_s) for part in (answer, evidence))
    return AnswerLine(id=name, text=answer, raw_text=text, spans=spans, evidence_spans=before, duration=duration_s)


def _answers(questions: Questions, found: Iterable[tuple[str, list[int], Any]]) -> dict[str, AnswerLine]:
    ids, durations = questions.ids, questions.durations
    return {ids[row]: free_answer(ids[row], text or "", durations[row]) for row, text in questions.spread(found)}


def _by_key(content: Content, questions: Questions) -> Iterator[tuple[str, list[int], str]]:
    for key, value in content.object.items():
        where = f"{content.path}: {key!r:.200}"
        if isinstance(value, dict):
            for question, text in value.items():
                at = f"{where}: {question!r:.200}"
                need(isinstance(text, str), f"{at}: the answer is not a text")
                yield at, questions.find(key, question, at), text
            continue
        need(isinstance(value, str), f"{where}: the answer is not a text")
        yield where, questions.by_id(key) or questions.find(key, "", where), value


def _of_row(where: str, row: Any, questions: Questions) -> tuple[str, list[int], str | None]:
    row = as_object(row, where)
    given = [key for key in TEXTS if key in row] or [key for key in ("answer",) if key in row]
    need(given, f"{where}: no text of an answer under {', '.join(TEXTS)} or answer")
    text = row[given[0]]
    same = all(row[key] == text for key in given)
    need(same, f"{where}: {' and '.join(map(repr, given))} are different texts: which one is the answer?")
    return where, _places(where, row, questions), text if isinstance(text, str) else None


def _places(where: str, row: Mapping[str, Any], questions: Questions) -> list[int]:
    """Which question a row is about: by its id, else by video and question; the id alone may be another group's."""
    rows = next(filter(None, (questions.by_id(row[key]) for key in IDS if key in row)), [])
    if rows:
        return rows
    video, text = (_first(row, keys) for keys in (VIDEOS, QUESTIONS))
    name = _first(row, IDS)
    need(video is not None, f"{where}: no question of the annotations has the id {name!r:.200}, and no video is named")
    return questions.by_id(video) or questions.find(video, text or "", where)


def _first(row: Mapping[str, Any], keys: Sequence[str]) -> Any:
    return next((row[key] for key in keys if key in row), None)


def _is_row(row: Mapping[str, Any]) -> bool:
    """Whether an object is an answer to one question, not many answers by key."""
    return any(key in row for key in (*IDS, *VIDEOS)) and any(key in row for key in (*TEXTS, "answer"))


def _is_texts(content: Content) -> bool:
    """Rows or an object of texts, and none of the other forms here."""
    if _INFER(content) or _SAMPLES(content):  # of one line, too, which is an object
        return False
    if content.object is not None and not _is_row(content.row):
        return entries(_is_text_entry)(content)
    return _is_row(content.row)


def _is_text_entry(key: str, value: Any) -> bool:
    if isinstance(value, dict) and value:
        value = next(iter(value.values()))
    return isinstance(value, str)


_INFER, _SAMPLES = rows_with(*NEEDED), rows_with("doc_id", "target")
INFER = Form(
    "videollm.infer", '{"id", "text", "spans", ...} lines', _INFER, lambda content, asked: read_answers(content.rows)
)
ANSWERS = (
    INFER,
    Form("lmms-eval samples", '{"doc_id", "target", "filtered_resps", "doc" or metrics} lines', _SAMPLES, read_samples),
    Form("texts", '{"id" or "video" and "question", "text"} lines, {id: text}', _is_texts, read_texts),
)


def official_answers(content: Content, form: Form, task: Benchmark, truth: Any) -> Answers:
    """The answers of a content by the task's ids. Raises BenchmarkError where the truth is needed and not there."""
    need(truth is not None, f"--annotations: {content.path} ({form.name}) has no ground truth: give it")
    return form.read(content, () if form is INFER else task.asked(truth))
