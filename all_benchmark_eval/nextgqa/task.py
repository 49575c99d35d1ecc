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
from all_benchmark_eval.benchmark import Benchmark, Explanation, Layout, Options, Scores, worded
from all_benchmark_eval.forms import need
from all_benchmark_eval.metrics.choices import CAREFULLY, Question, chosen
from all_benchmark_eval.metrics.intervals import iou_union, nextgqa_overlap
from all_benchmark_eval.metrics.moments import (
    SLACK,
    State,
    explain_span,
    means_of,
    no_length,
    order_and_clip,
    published_wordings,
)
from all_benchmark_eval.nextgqa.files import FORMS, TRUTHS, Answers, Grounded
from videollm.common.answers import AnswerLine
from videollm.reading import span_beside

THRESHOLDS = (0.3, 0.5, 0.7)
WHERE, CHOICE = "where", "choice"  # the two stages, as the beginning of a question's id

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


class NextGQA(Benchmark):
    """IoP, IoU, accuracy, and accuracy where IoP is at least 0.5."""

    name = "nextgqa"
    title = "NExT-GQA"
    layout = Layout(("gsub_test.json",))
    truths, forms = TRUTHS, FORMS

    def asked(self, truth: Grounded) -> Iterable[items.Asked]:
        """The questions without their options; one text answers both stages."""
        videos = (key.rpartition("_")[0] for key in truth.keys)
        lengths = dict(zip(videos, map(items.known_length, truth.durations), strict=True))
        return (items.Asked(q.id, q.video, q.text, lengths.get(q.video)) for q in _asked(truth))

    def questions(self, truth: Grounded, wording: str) -> list[dict]:
        """Stage 1, where: ids ``where-<qid>``. Stage 2: :meth:`choice_questions`."""
        text = worded(WORDINGS, wording)[WHERE]
        return [_line(truth, q, WHERE, text.format(question=q.text)) for q in _asked(truth)]

    def choice_questions(self, truth: Grounded, located: Mapping[str, AnswerLine], wording: str) -> list[dict]:
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

    def from_answers(self, truth: Grounded, answers: items.Answers, wording: str) -> list[dict]:
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

    def score(self, truth: Grounded, predictions: Answers, options: Options) -> Scores:
        """Metrics in percent; ``details`` has accuracy by type of question.

        ``published``: over the grounded questions in the file; IoU and IoP may be negative before they are floored
        at 0, a point has IoU 0 and IoP 1 inside a true span. ``corrected``: over all grounded questions, a missing or
        unparsed answer is wrong; a reversed span is ordered, a span is cut to the video (or to the last true end, if
        that is later); a span of no length scores 0; a value that is a threshold on paper reaches it; the choice is
        what its text says. Unparsed is an answer of which the span or the choice could not be read; what was, counts.
        """
        corrected = options.protocol == "corrected"
        spans, clipped = predictions.spans, 0
        if corrected:
            limits = truth.durations.copy()
            np.maximum.at(limits, truth.owner, truth.spans[:, 1])
            spans, cut = order_and_clip(spans, limits)
            clipped = int(cut.sum())
        iou, iop = _overlaps(spans, truth, corrected)
        rows = np.arange(len(iou)) if corrected else np.flatnonzero(predictions.state != State.MISSING)
        scores = _scores(truth, predictions, rows, iou, iop, corrected)
        read = predictions.unread_too()
        scores.counts = read.counts(clipped)
        scores.denominator = "" if corrected else "the grounded questions in the prediction file"
        scores.unread = read.unread(truth.keys)
        scores.notes += no_length(truth.spans)
        other = len(predictions.choices) - int((predictions.state != State.MISSING).sum())
        if other:
            scores.notes.append(f"{other} answers are to questions that are not grounded: in the details only")
        return scores

    def explain(self, truth: Grounded, predictions: Answers, name: str) -> Explanation:
        """The span of a question ``<video>_<number>``, and whether its choice is right."""
        need(name in truth.keys, f"--explain: there is no grounded question {name!r}; an id is <video>_<number>")
        row = truth.keys.index(name)
        true = truth.spans[truth.owner == row].tolist()
        found = explain_span(predictions, row, true, float(truth.durations[row]))
        choice = predictions.chosen().get(row)
        told = "no choice" if choice is None or choice.read is None else f"choice {choice.read}"
        right = f"{found.true}, {choice.target}" if choice else found.true
        return replace(found, read=f"{found.read}, {told}", true=right)

    def keep_texts(self, truth: Grounded, predictions: Answers, texts: Mapping[str, str]) -> None:
        """Of the first stage, which tells the span, or of a text that answers both; the choice's is in the file."""
        rows = {key: row for row, key in enumerate(truth.keys)}
        by_key = ((name.partition("_")[2], text) for name, text in texts.items() if not name.startswith(f"{CHOICE}-"))
        predictions.told.update({rows[key]: text for key, text in by_key if key in rows})


def _overlaps(spans: NDArray, truth: Grounded, corrected: bool) -> tuple[NDArray, NDArray]:
    """Best IoU and IoP of each question over its true spans, each by itself -> [N], [N]; 0 without a span."""
    own = spans[truth.owner]  # [K, 2]
    if corrected:
        iou = iou_union(own, truth.spans)
        overlap = np.minimum(own[:, 1], truth.spans[:, 1]) - np.maximum(own[:, 0], truth.spans[:, 0])
        length = own[:, 1] - own[:, 0]
        iop = np.divide(np.maximum(overlap, 0), length, out=np.zeros_like(overlap), where=length > 0)
    else:
        iou, iop = nextgqa_overlap(own, truth.spans)
    best = np.zeros((2, len(spans)))
    for row, values in zip(best, (iou, iop), strict=True):
        np.maximum.at(row, truth.owner, np.nan_to_num(values, nan=0.0))
    return best[0], best[1]


def _scores(truth: Grounded, given: Answers, rows: NDArray, iou: NDArray, iop: NDArray, corrected: bool) -> Scores:
    """Means over the questions ``rows``."""
    ids, slack = [truth.keys[i] for i in rows], SLACK if corrected else 0.0
    iou, iop, right = iou[rows], iop[rows], given.right(corrected)[rows]
    samples = {"Acc@GQA": right & (iop >= 0.5 - slack), "mIoP": iop}
    samples |= {f"IoP@{t}": iop >= t - slack for t in THRESHOLDS} | {"mIoU": iou}
    samples |= {f"IoU@{t}": iou >= t - slack for t in THRESHOLDS} | {"Acc@QA": right}
    scores = means_of(ids, samples, {})
    scores.details = {
        "Acc@QA by type, grounded": _by_type([(c.kind, c.right(corrected)) for c in given.chosen().values()]),
        "Acc@QA by type, all in the file": _by_type([(c.kind, c.right(corrected)) for c in given.choices]),
    }
    return scores


def _by_type(answers: list[tuple[str, bool]]) -> dict[str, dict]:
    """{type, first letter of types, "all": {"correct", "total", "pct"}}; TP counts as TN, as published."""
    right, total = Counter(), Counter()
    for kind, correct in answers:
        kind = "TN" if kind == "TP" else kind
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


def _asked(truth: Grounded) -> list[Question]:
    need(truth.questions, "the questions are in test.csv, which is not beside gsub_test.json: put it there")
    return truth.questions


def _line(truth: Grounded, question: Question, stage: str, text: str, **more: Any) -> dict:
    """A line for ``videollm.infer``."""
    video = truth.video_paths.get(question.video, question.video)
    return items.question_line(f"{stage}-{question.id}", f"{video}.mp4", text, **more)


TASK = NextGQA()
