"""Video-MME: multiple choice about 900 videos of 11 s to an hour, 2700 questions (Fu et al., CVPR 2025), no subtitles.

A line of the annotations; a prediction is the same line with the answer as ``a``::

    [{"video_id": "001", "duration": "short", "domain": "Knowledge", "sub_category": "Law", "question_id": "001-1",
      "task_type": "OCR Problems", "question": "...", "options": ["A. ..", ...], "answer": "B", "a": "B. x"}]

or the official file, where a video has its ``"questions": [{"question_id", ..., "response": "B. x"}]``.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from all_benchmark_eval.benchmark import Layout, Scores
from all_benchmark_eval.forms import Content, Form, Rows, need, pick, rows_with
from all_benchmark_eval.items import are_texts, as_object, read_rows, video_file
from all_benchmark_eval.metrics import choices
from all_benchmark_eval.metrics.choices import Mark, Predictions, Question, Row, tally
from videollm.reading import Reading

DURATIONS = ("short", "medium", "long")
GROUPS = ("domain", "sub_category", "task_type")
VIDEOS = 300  # of each duration: the published script stops at another number
_PRINTED = {"domain": "Video Categories", "sub_category": "Video Sub Categories", "task_type": "Task Categories"}
_KEYS = ("video_id", "duration", *GROUPS, "question_id", "answer")
_LETTER_ONLY = (
    "Select the best answer to the following multiple-choice question based on the video. Respond with only "
    "the letter (A, B, C, or D) of the correct option.\n{question}\n{options}\nThe best answer is:",
    "{option}",
)
WORDINGS = dict.fromkeys(("d2vlm", "distime", "plain"), _LETTER_ONLY)  # DisTime published none for this benchmark


def _nested(content: Content) -> Rows:
    """The official file: a video's own keys, and its ``questions``; one item a question."""
    rows = []
    for where, video in content.rows:
        video = as_object(video, where, ("questions",))
        need(isinstance(video["questions"], list), f"{where}: questions is not a list")
        own = {key: value for key, value in video.items() if key != "questions"}
        for number, question in enumerate(video["questions"], start=1):
            place = f"{where}: question {number}"
            rows.append((place, own | dict(as_object(question, place))))
    return rows


def _questions(rows: Rows, keys: Sequence[str]) -> Iterable[tuple[Question, object]]:
    """Each question with its answer under the last of ``keys``."""
    for where, row in rows:
        row = dict(as_object(row, where, keys))
        name, video = str(row["question_id"]), video_file(str(row.get("videoID", row["video_id"])))
        where = f"{where}: {name!r}"
        odd = [key for key in ("video_id", "question_id", *GROUPS) if not isinstance(row[key], str | int)]
        need(not odd, f"{where}: {', '.join(odd)} is neither a text nor a number")
        duration, answer, options = row["duration"], row["answer"], row.get("options", [])
        need(duration in DURATIONS, f"{where}: duration {duration!r:.40} is none of {', '.join(DURATIONS)}")
        need(answer in ("A", "B", "C", "D"), f"{where}: answer {answer!r:.40} is not A, B, C or D")
        need(are_texts(options), f"{where}: options is not a list of texts")
        groups = {"duration": duration} | {kind: str(row[kind]) for kind in GROUPS}
        text, right = str(row.get("question", "")), "ABCD".index(answer)
        yield Question(name, video, text, tuple(options), right, groups, row=row), row[keys[-1]]


def _asked(rows: Callable[[Content], Rows]) -> Callable[[Content], Iterable[Question]]:
    return lambda content: (question for question, _ in _questions(rows(content), _KEYS))


def _answered(rows: Callable[[Content], Rows], key: str) -> Callable[[Content], Iterable[Row]]:
    """Rows with their questions; the answer is under ``key``."""

    def read(content: Content) -> Iterable[Row]:
        for question, answer in _questions(rows(content), (*_KEYS, key)):
            yield Row(question.id, answer if isinstance(answer, str) else None, question=question)

    return read


def _flat(content: Content) -> Rows:
    return read_rows(content, ())


class VideoMME(choices.ChoiceBenchmark):
    """Accuracy: overall, by length, domain, sub-category and task; percent."""

    name = "videomme"
    title = "Video-MME"
    layout = Layout(("videomme.json",))
    headline = ("accuracy", "short", "medium", "long")
    variants = ("d2vlm", "official")
    wordings = WORDINGS
    denominator = "the questions in which a letter was found"
    truths = (
        Form("Video-MME", '[{"video_id", "question_id", "answer", ...}]', rows_with("question_id"), _asked(_flat)),
        Form("Video-MME official", '[{"video_id", "questions": [...]}]', rows_with("questions"), _asked(_nested)),
    )
    forms = (
        Form("D2VLM", '[{"question_id", ..., "a": text}]', rows_with("question_id", "a"), _answered(_flat, "a")),
        Form(
            "Video-MME official", '[{"video_id", ..., "questions": [{"question_id", ..., "response": text}]}]',
            rows_with("questions"), _answered(_nested, "response"),
        ),
    )  # fmt: skip

    def read_questions(self, path: Path) -> Iterable[Question]:
        """Ids: question_id."""
        content = Content.of(path)
        return pick(content, self.truths, f"the annotations of {self.name}").read(content)

    def prediction(self, question: Question, text: str) -> dict[str, Any]:
        """The annotations' line with the answer."""
        return question.row | {"a": text}

    def difference(self, row: Row, question: Question) -> str:
        """The letter decides."""
        return "" if row.question.answer == question.answer else "another right answer than in the annotations"

    def right(self, variant: str) -> Callable[[str, str], str]:
        """The letter of the variant's script; an answer in which it finds none leaves the denominator."""
        return lambda text, _: choices.videomme_letter(text, variant)

    def broken_down(self, marks: Sequence[Mark], published: bool, known: bool) -> Scores:
        """By length, domain, sub-category and task."""
        found = _breakdown(marks)
        metrics = {"accuracy": found["overall"]["pct"]} | {d: found[d]["pct"] for d in DURATIONS if d in found}
        metrics |= {f"{kind}/{value}": e["pct"] for kind in GROUPS for value, e in found[kind].items()}
        tables = {"accuracy": choices.per_sample(marks)}
        for d in (d for d in DURATIONS if d in found):
            tables[d] = choices.per_sample(mark for mark in marks if mark.groups["duration"] == d)
        details = {"accuracy": found} | ({"as_printed": _as_printed(found)} if published else {})
        return Scores(metrics, "percent", {}, tables, details=details)

    def choice(self, row: Row, truth: Mapping[str, Question] | None) -> Reading[int | None]:
        """Options are shown with their letter."""
        shown = row.question.options
        bare = [option[2:].strip() if option[1:2] in (".", ")") else option for option in shown]  # "A. text" -> "text"
        return choices.chosen(row.text or "", max(len(bare), 4), bare)

    def mark(self, row: Row, truth: Mapping[str, Question] | None, right: Callable[[str, str], str] | None) -> Mark:
        """By the letter that a published script reads, or None: what the text says."""
        letter = right(row.text or "", "") if right else None
        chosen = ("ABCD".find(letter) if letter else None) if right else self.choice(row, truth).value
        state, counted = "unparsed" if chosen is None else "scored", chosen is not None or not right
        return Mark(row.id, chosen == row.question.answer, state, counted, row.question.groups)

    def stops(self, predictions: Predictions) -> list[str]:
        """Unless each length has 300 videos."""
        keys = ("video_id", "duration", "domain", "sub_category")
        groups = {tuple(row.question.row[key] for key in keys) for row in predictions.rows}
        videos = Counter(duration for _, duration, *_ in groups)
        other = [d for d in DURATIONS if videos[d] != VIDEOS]
        return [f"{videos[d]} {d} videos; the published script stops unless there are {VIDEOS}" for d in other]


def _breakdown(marks: Sequence[Mark]) -> dict:
    """correct, answered and percent: overall, by length, and by each kind of group with and without length."""
    found = {"overall": _entry(tally(marks, lambda mark: "all")["all"])}
    by_length = {d: [mark for mark in marks if mark.groups["duration"] == d] for d in DURATIONS}
    by_length = {d: some for d, some in by_length.items() if some}
    found |= {d: _entry(tally(some, lambda mark: "all")["all"]) for d, some in by_length.items()}
    for kind in GROUPS:
        found[kind] = _entries(marks, kind)
        found[f"{kind}_by_duration"] = {d: _entries(some, kind) for d, some in by_length.items()}
    return found


def _entries(marks: Iterable[Mark], kind: str) -> dict[str, dict]:
    return {value: _entry(entry) for value, entry in tally(marks, lambda mark: mark.groups[kind]).items()}


def _entry(entry: dict[str, int]) -> dict:
    """As the official names are; ``pct`` None where nothing was answered."""
    correct, answered = entry["correct"], entry["total"]
    return {"correct": correct, "answered": answered, "pct": 100 * correct / answered if answered else None}


def _as_printed(found: Mapping) -> dict:
    """The official tables, percent with one decimal; 0 where nothing was answered."""
    tables = {}
    for name in (*(d for d in DURATIONS if d in found), "entire"):
        whole = name == "entire"
        entries = {kind: found[kind] if whole else found[f"{kind}_by_duration"][name] for kind in GROUPS}
        overall = found["overall" if whole else name]
        tables[name] = {
            ("Video Domains" if whole and kind == "domain" else _PRINTED[kind]): {
                value: round(entry["pct"] or 0.0, 1) for value, entry in entries[kind].items()
            }
            for kind in GROUPS
        } | {"Overall Performance": {"Overall": round(overall["pct"] or 0.0, 1)}}
    return tables


TASK = VideoMME()
