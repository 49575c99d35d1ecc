"""NExT-GQA: choose an answer and find the moment that it stands on (test: 5553 grounded questions, 990 videos).

Two stages: *where* the question's moment is, then the *choice* with frames of that moment only. Ground truth: the data
set's ``gsub_test.json`` (moments) with ``test.csv`` (questions) in the same folder; scoring needs the first only.
Predictions, of the grounded questions or of all of NExT-QA's::

    [{"qid": "TN_2574374895_8", "prediction": "4", "timestamp": [8.79, 25.07], "target": 2}]

``prediction`` may be any text; ours have the answer's own words as ``text`` beside it.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from all_benchmark_eval import items
from all_benchmark_eval.benchmark import Explanation, Layout, Options, Scores, worded
from all_benchmark_eval.forms import need
from all_benchmark_eval.metrics.choices import CAREFULLY, Question, chosen
from all_benchmark_eval.metrics.grounded import CHOICE, WHERE, GroundedBenchmark, Measures, Script
from all_benchmark_eval.metrics.intervals import iou_union, nextgqa_overlap
from all_benchmark_eval.metrics.moments import THRESHOLDS, explain_span, published_wordings
from all_benchmark_eval.nextgqa.files import FORMS, TRUTHS, Answers, Choice, Truth
from videollm.common.answers import AnswerLine
from videollm.reading import span_beside

# by stage; D2VLM published none: its wordings for Charades-STA and for multiple choice
WORDINGS = {
    "distime": {
        WHERE: "Give you the textual query: '{question}'. When does the described content occur in the video? "
        "Please return the timestamp in seconds.",
        CHOICE: CAREFULLY.format(comma=",") + "\nQuestion1: {question}\nOptions:\n{options}\n"
        "Only give the best option.",
        "option": "({number}) {text}",
    },
    "d2vlm": {
        WHERE: published_wordings()["d2vlm"].replace("{sentence}", "{question}"),
        CHOICE: CAREFULLY.format(comma="") + "Question: {question}\nOptions:\n{options}\nBest Option: (",
        "option": "({number}) {text}.",
    },
    "plain": {
        WHERE: "Which part of the video answers this question: '{question}'?",
        CHOICE: "{question}\n{options}\nAnswer with the number of the right option.",
        "option": "({number}) {text}",
    },
}
_NUMBER = re.compile(r"(\d+)")


def _published_overlaps(spans: NDArray, true: NDArray) -> NDArray:
    """Best IoU and IoP over the true spans, each by itself."""
    return np.nan_to_num(nextgqa_overlap(spans[:1], true)).max(-1, initial=0.0)


class NextGQA(GroundedBenchmark):
    """IoP, IoU, accuracy, and accuracy where IoP is at least 0.5."""

    name = "nextgqa"
    title = "NExT-GQA"
    layout = Layout(("gsub_test.json",))
    truths, forms, nowhere = TRUTHS, FORMS, (0.0, 0.0)
    scripts = {"default": Script(_published_overlaps, lambda choice, _: choice.number == choice.target)}

    def asked(self, truth: Truth) -> Iterable[items.Asked]:
        """The questions without their options; one text answers both stages."""
        videos = (question.video for question in truth.questions)
        lengths = dict(zip(videos, map(items.known_length, truth.durations), strict=True))
        return (items.Asked(q.id, q.video, q.text, lengths.get(q.video)) for q in _asked(truth))

    def questions(self, truth: Truth, wording: str) -> list[dict]:
        """Stage 1, where: ids ``where-<qid>``. Stage 2: :meth:`choice_questions`."""
        text = worded(WORDINGS, wording)[WHERE]
        return [_line(truth, q, WHERE, text.format(question=q.text)) for q in _asked(truth)]

    def choice_questions(self, truth: Truth, located: Mapping[str, AnswerLine], wording: str) -> list[dict]:
        """Stage 2, the choice: ids ``choice-<qid>``. ``located``: the answers of stage 1 by id.

        ``bound`` is the first span found, where the frames are to be sampled; without one, the whole video counts.
        """
        words = worded(WORDINGS, wording)
        lines = []
        for q in _asked(truth):
            options = "\n".join(words["option"].format(number=k, text=text) for k, text in enumerate(q.options))
            text = words[CHOICE].format(question=q.text, options=options)
            lines.append(_line(truth, q, CHOICE, text, bound=_found(located.get(f"{WHERE}-{q.id}"))))
        return lines

    later_questions = choice_questions

    def from_answers(self, truth: Truth, answers: items.Answers, wording: str) -> list[dict]:
        """From the answers of *both* stages (one file after the other), by question: see the form above.

        An answer under the question's own id, of another model, tells moment and choice in one text. ``prediction`` is
        the first number, as published; ``text``, which the script does not see, is what ``corrected`` reads.
        """
        lines, questions = [], _asked(truth)
        both = {f"{CHOICE}-{q.id}": answers[q.id] for q in questions if q.id in answers} | dict(answers)
        for choice, _, q in items.answered(both, [f"{CHOICE}-{q.id}" for q in questions], questions):
            number = _NUMBER.search(choice.text)
            span = _found(answers.get(f"{WHERE}-{q.id}", answers.get(q.id)))
            found = number.group(1) if number else -1
            if q.id in answers:
                found, span = _chosen(choice.text, q), span or span_beside(choice.text, choice.duration)
            line = {"qid": q.id, "prediction": found, "timestamp": span or [-1, -1], "target": q.answer}
            line["text"] = choice.text
            lines.append(line)
        return lines

    def measures(self, ious: NDArray, right: NDArray[np.bool_], slack: float) -> Measures:
        iou, iop = ious.T
        found = {"Acc@GQA": right & (iop >= 0.5 - slack), "mIoP": iop}
        found |= {f"IoP@{t}": iop >= t - slack for t in THRESHOLDS} | {"mIoU": iou}
        found |= {f"IoU@{t}": iou >= t - slack for t in THRESHOLDS} | {"Acc@QA": right}
        return {name: ("both", values) for name, values in found.items()}

    @staticmethod
    def meant_iou(spans: NDArray, true: NDArray) -> NDArray:
        """A span of no length has neither."""
        overlap = np.minimum(spans[0, 1], true[:, 1]) - np.maximum(spans[0, 0], true[:, 0])
        length = spans[0, 1] - spans[0, 0]
        iop = np.maximum(overlap, 0) / length if length > 0 else np.zeros_like(overlap)
        return np.nan_to_num([iou_union(spans[:1], true), iop]).max(-1)

    @staticmethod
    def meant_right(choice: Choice, question: Question) -> bool | None:
        return None if choice.read is None else choice.read == choice.target

    def score(self, truth: Truth, predictions: Answers, options: Options) -> Scores:
        """See ``GroundedBenchmark.score``; ``details`` has accuracy by type of question.

        ``published``: IoU and IoP may be negative before they are floored at 0, a point has IoU 0 and IoP 1 inside a
        true span. Unparsed is an answer of which the span or the choice could not be read; what was, counts.
        """
        scores, read = super().score(truth, predictions, options), predictions.unread_too()
        scores.counts, scores.unread = read.counts(scores.counts["clipped"]), read.unread(truth.keys)
        corrected, grounded = options.protocol == "corrected", list(predictions.choices.values())
        scores.denominator = "" if corrected else "the grounded questions in the prediction file"
        parts = {"grounded": grounded, "all in the file": grounded + predictions.others}
        scores.details = {f"Acc@QA by type, {part}": _by_type(some, corrected) for part, some in parts.items()}
        if others := len(predictions.others):
            scores.notes.append(f"{others} answers are to questions that are not grounded: in the details only")
        return scores

    def explain(self, truth: Truth, predictions: Answers, name: str) -> Explanation:
        """The span of a question ``<video>_<number>``, and whether its choice is right."""
        row = truth.row(name)
        need(row is not None, f"--explain: there is no grounded question {name!r}; an id is <video>_<number>")
        found = explain_span(predictions, row, truth.windows[row].tolist(), float(truth.durations[row]))
        choice = predictions.choices.get(row)
        told = "no choice" if choice is None or choice.read is None else f"choice {choice.read}"
        right = f"{found.true}, {choice.target}" if choice else found.true
        return replace(found, read=f"{found.read}, {told}", true=right)

    def keep_texts(self, truth: Truth, predictions: Answers, texts: Mapping[str, str]) -> None:
        """Of the first stage, which tells the span, or of a text that answers both; the choice's is in the file."""
        rows = {key: row for row, key in enumerate(truth.keys)}
        by_key = ((name.partition("_")[2], text) for name, text in texts.items() if not name.startswith(f"{CHOICE}-"))
        predictions.told.update({rows[key]: text for key, text in by_key if key in rows})


def _by_type(choices: list[Choice], corrected: bool) -> dict[str, dict]:
    """{type, first letter of types, "all": {"correct", "total", "pct"}}; TP counts as TN, as published."""
    right, total = Counter(), Counter()
    for choice in choices:
        kind = "TN" if choice.kind == "TP" else choice.kind
        correct = (choice.read if corrected else choice.number) == choice.target
        right.update(dict.fromkeys((kind, kind[0], "all"), int(correct)))
        total.update((kind, kind[0], "all"))
    return {k: {"correct": right[k], "total": n, "pct": 100 * right[k] / n} for k, n in sorted(total.items())}


def _chosen(text: str, question: Question) -> int:
    """The number of the option that a text with a moment in it chooses; -1 for none."""
    found = chosen(text, len(question.options), question.options, "digit").value
    return -1 if found is None else found


def _found(answer: AnswerLine | None) -> list[float] | None:
    """The first span of an answer, if there is one."""
    return answer.scored_spans[0] if answer and not answer.error and answer.scored_spans else None


# ---- questions -------------------------------------------------------------------------------------------------------


def _asked(truth: Truth) -> list[Question]:
    need(truth.asked, "the questions are in test.csv, which is not beside gsub_test.json: put it there")
    return truth.asked


def _line(truth: Truth, question: Question, stage: str, text: str, **more: Any) -> dict:
    """A line for ``videollm.infer``."""
    video = truth.video_paths.get(question.video, question.video)
    return items.question_line(f"{stage}-{question.id}", f"{video}.mp4", text, **more)


TASK = NextGQA()
