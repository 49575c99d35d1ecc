"""Video-MME: multiple choice about 900 videos of 11 s to an hour, 2700 questions (Fu et al., CVPR 2025), no subtitles.

A line of the annotations; a prediction is the same line with the answer as ``a``::

    [{"video_id": "001", "duration": "short", "domain": "Knowledge", "sub_category": "Law", "question_id": "001-1",
      "task_type": "OCR Problems", "question": "...", "options": ["A. ..", ...], "answer": "B", "a": "B. x"}]
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from all_benchmark_eval.benchmark import Benchmark, BenchmarkError, Layout, Options, Scores, worded
from all_benchmark_eval.metrics.choices import (
    Mark,
    Question,
    once,
    per_sample,
    read_choice,
    read_rows,
    state_counts,
    tally,
    videomme_letter,
)
from videollm.common.answers import AnswerLine

DURATIONS = ("short", "medium", "long")
GROUPS = ("domain", "sub_category", "task_type")
VIDEOS = 300  # of each duration: the published script stops at another number
_PRINTED = {"domain": "Video Categories", "sub_category": "Video Sub Categories", "task_type": "Task Categories"}
_KEYS = ("video_id", "duration", *GROUPS, "question_id", "answer")
_LETTER_ONLY = {
    "text": (
        "Select the best answer to the following multiple-choice question based on the video. Respond with only the "
        "letter (A, B, C, or D) of the correct option.\n{question}\n{options}\nThe best answer is:"
    ),
    "option": "{option}",
}
# DisTime published none for this benchmark.
WORDINGS = {"d2vlm": _LETTER_ONLY, "distime": _LETTER_ONLY, "plain": _LETTER_ONLY}


@dataclass(frozen=True)
class Item:
    """One question, its options with their letters. ``text`` is the answer, None if it is no text."""

    question: Question
    row: dict
    text: str | None = None


@dataclass(frozen=True)
class Predictions:
    """Answered questions, and those of the annotations that the file does not answer."""

    items: Sequence[Item]
    missing: Sequence[Item] = ()


class VideoMME(Benchmark):
    """Accuracy: overall, by length, domain, sub-category and task; percent."""

    name = "videomme"
    title = "Video-MME"
    layout = Layout(("videomme.json",))
    headline = ("accuracy", "short", "medium", "long")
    variants = ("d2vlm",)
    own_truth = True

    def load(self, path: Path) -> dict[str, Item]:
        """By question_id."""
        return once(((item.question.id, item) for item in _items(path, answers=False)), path)

    def questions(self, truth: Mapping[str, Item], wording: str) -> list[dict]:
        words = worded(WORDINGS, wording)
        for name, item in truth.items():
            if not (item.question.text and item.question.options):
                raise BenchmarkError(f"{name!r}: no question or options in the annotations")
        return [item.question.line(words) for item in truth.values()]

    def from_answers(self, truth: Mapping[str, Item], answers: Mapping[str, AnswerLine], wording: str) -> list[dict]:
        worded(WORDINGS, wording)
        return [
            item.row | {"a": answers[name].text}
            for name, item in truth.items()
            if name in answers and not answers[name].error
        ]

    def read(self, path: Path, truth: Mapping[str, Item] | None) -> Predictions:
        items = once(((item.question.id, item) for item in _items(path, answers=True)), path)
        if truth is None:
            return Predictions(list(items.values()))
        for name, item in items.items():
            if name not in truth:
                raise BenchmarkError(f"{path}: the annotations have no question {name!r}")
            if item.question.answer != truth[name].question.answer:
                raise BenchmarkError(f"{path}: {name!r} has another right answer than in the annotations")
        return Predictions(list(items.values()), [item for name, item in truth.items() if name not in items])

    def score(self, truth: Mapping[str, Item] | None, predictions: Predictions, options: Options) -> Scores:
        """``published``: the script's letter; an answer in which it finds none leaves the denominator.

        ``corrected``: the option that the answer's text chooses (``choices.read_choice``); an unclear, empty or missing
        answer is wrong and stays in.
        """
        published = options.protocol == "published"
        marks = [_mark(item, published) for item in predictions.items]
        marks += [
            Mark(item.question.id, False, "missing", counted=not published, groups=item.question.groups)
            for item in predictions.missing
        ]
        found = _breakdown(marks)
        metrics = {"accuracy": found["overall"]["pct"]} | {d: found[d]["pct"] for d in DURATIONS if d in found}
        metrics |= {f"{kind}/{value}": e["pct"] for kind in GROUPS for value, e in found[kind].items()}
        tables = {"accuracy": per_sample(marks)}
        tables |= {d: per_sample(m for m in marks if m.groups["duration"] == d) for d in DURATIONS if d in found}
        details = {"accuracy": found} | ({"as_printed": _as_printed(found)} if published else {})
        denominator = "the questions in which a letter was found" if published else ""
        notes = _notes(predictions) if published else []
        return Scores(metrics, "percent", state_counts(marks), tables, denominator, details, notes)


def _mark(item: Item, published: bool) -> Mark:
    question = item.question
    if published:
        letter = videomme_letter(item.text or "")
        chosen = "ABCD".find(letter) if letter else None
    else:
        texts = [_without_letter(option) for option in question.options]
        chosen = read_choice(item.text or "", max(len(texts), 4), texts)
    state = "unparsed" if chosen is None else "scored"
    counted = chosen is not None or not published
    return Mark(question.id, chosen == question.answer, state, counted, question.groups)


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


def _notes(predictions: Predictions) -> list[str]:
    """Where the published script would stop, and what it does not see."""
    groups = {
        tuple(item.row[key] for key in ("video_id", "duration", "domain", "sub_category")) for item in predictions.items
    }
    videos = Counter(duration for _, duration, *_ in groups)
    notes = [
        f"{videos[d]} {d} videos; the published script stops unless there are {VIDEOS}"
        for d in DURATIONS
        if videos[d] != VIDEOS
    ]
    if predictions.missing:
        notes.append(f"{len(predictions.missing)} questions have no answer; the published script does not see them")
    return notes


def _items(path: Path, answers: bool) -> Iterable[Item]:
    for where, row in read_rows(path, (*_KEYS, "a") if answers else _KEYS):
        name = str(row["question_id"])
        if row["duration"] not in DURATIONS:
            raise BenchmarkError(
                f"{where}: {name!r}: duration {row['duration']!r:.40} is none of {', '.join(DURATIONS)}"
            )
        if row["answer"] not in ("A", "B", "C", "D"):
            raise BenchmarkError(f"{where}: {name!r}: answer {row['answer']!r:.40} is not A, B, C or D")
        options = row.get("options", [])
        if not isinstance(options, list) or not all(isinstance(option, str) for option in options):
            raise BenchmarkError(f"{where}: {name!r}: options is not a list of texts")
        question = Question(
            name,
            f"{row.get('videoID', row['video_id'])}.mp4",
            str(row.get("question", "")),
            tuple(options),
            "ABCD".index(row["answer"]),
            {"duration": row["duration"]} | {kind: str(row[kind]) for kind in GROUPS},
        )
        text = row.get("a")
        yield Item(question, row, text if isinstance(text, str) else None)


def _without_letter(option: str) -> str:
    """ "A. text" -> "text"."""
    return option[2:].strip() if option[1:2] in (".", ")") else option


TASK = VideoMME()
