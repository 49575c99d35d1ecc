"""QVHighlights: the windows and the clips of a video that a query is about (validation set: 1550 queries).

Ground truth: the data set's ``highlight_val_release.jsonl``, or DisTime's json list without saliency. Predictions::

    [{"qid": "QVHighlight_2579", "prediction": "[[76.77, 130.68]]", "target": "[[82, 150]]", "duration": 150.02}]
    {"qid": 2579, "pred_relevant_windows": [[0.0, 70.0, 0.9986]], "pred_saliency_scores": [-0.24, -0.37, ...]}

The first (DisTime) carries its ground truth; the second (moment_detr: json lines; TimeChat: a list without windows)
needs a file. Either is scored under either variant.
"""

from collections.abc import Iterable, Mapping

import numpy as np

from all_benchmark_eval.benchmark import WITHOUT_BREAK, Benchmark, Explanation, Layout, Options, Scores, worded
from all_benchmark_eval.forms import need
from all_benchmark_eval.items import Answers, Asked, answered, known_length
from all_benchmark_eval.metrics.moments import State, moment_questions, no_length, published_wordings, unread_of
from all_benchmark_eval.metrics.parsing import split_evidence
from all_benchmark_eval.qvhighlights.files import FORMS, NO_WINDOW, PREFIX, TRUTHS, Queries, Submission
from all_benchmark_eval.qvhighlights.metrics import VARIANTS
from videollm.reading.spans import explain_spans

# D2VLM published none: its wording for Charades-STA, with this data set's kind of video
WORDINGS = published_wordings(" about daily activities")


class QVHighlights(Benchmark):
    """R@1 and mAP over IoU 0.5 to 0.95; Hit@1 and mAP of highlights."""

    name = "qvhighlights"
    title = "QVHighlights"
    layout = Layout(("highlight_val_release.jsonl",))
    settings = WITHOUT_BREAK
    variants = tuple(VARIANTS)
    own_truth = True
    truths, forms = TRUTHS, FORMS

    def asked(self, truth: Queries) -> Iterable[Asked]:
        return truth.asked()

    def questions(self, truth: Queries, wording: str) -> list[dict]:
        """One question a query, ids ``QVHighlight_<qid>``; videos are ``<vid>.mp4``."""
        ids = [PREFIX + qid for qid in truth.qids]
        return moment_questions(ids, truth.videos, truth.queries, truth.durations, worded(WORDINGS, wording))

    def from_answers(self, truth: Queries, answers: Answers, wording: str) -> list[dict]:
        """The first form above; an answer without a span is written as [[-1, -1]]."""
        lines = []
        ids = [PREFIX + qid for qid in truth.qids]
        columns = (truth.queries, truth.durations.tolist(), truth.windows)
        for answer, name, query, duration, windows in answered(answers, ids, *columns):
            found = str(answer.scored_spans or [NO_WINDOW])
            line = {"qid": name, "query": query, "prediction": found, "target": str(windows.tolist())}
            lines.append(line | {"duration": duration})
        return lines

    def score(self, truth: Queries | None, predictions: Submission, options: Options) -> Scores:
        """Metrics in percent.

        ``published``: over the queries in the file; R1 and mAP rounded to 2 decimals. ``distime``: windows in the given
        order; "R1 avg" is the mean of the rounded ones. ``moment_detr``: R1 of the first window in the file, mAP of
        the first 10 by score; short, middle and long keep the true windows of that length only, and all predictions.
        Highlights: see ``highlight_scores``.

        ``corrected``: windows are ordered, cut to the video (or to the last true end, if that is later) and sorted by
        score, for R1 as well; none is left out; what is no window is dropped, not ranked; an IoU that is a threshold
        on paper is a hit; nothing is rounded; missing and unparsed answers score 0, and all queries count.
        """
        if options.protocol == "published":
            predictions = predictions.published or predictions
        scores = VARIANTS[options.variant](predictions, corrected=options.protocol == "corrected")
        scores.unread = unread_of(predictions.truth.qids, predictions.state, predictions.told)
        scores.notes += no_length(np.concatenate(predictions.truth.windows))
        return scores

    def explain(self, truth: Queries | None, predictions: Submission, name: str) -> Explanation:
        """The windows of query ``qid`` (its number), and how they were read."""
        qids, told = predictions.truth.qids, predictions.told
        qid = name.removeprefix(PREFIX)
        need(qid in qids, f"--explain: there is no query {name!r}")
        need(predictions.windows is not None, "--explain: the predictions hold saliency but no windows")
        row = qids.index(qid)
        windows, true = predictions.windows[row].tolist(), str(predictions.truth.windows[row].tolist())
        if predictions.state[row] == State.MISSING:
            return Explanation(None, "nothing", "no answer in the file", true)
        spans = [window[:2] for window in windows if window[:2] != NO_WINDOW]
        reading = explain_spans(split_evidence(told.get(row, ""))[1], known_length(predictions.truth.durations[row]))
        as_it_is = "as the file has them" if spans else "no window in the file"
        rule = reading.rule if row in told and reading.value == spans else as_it_is
        return Explanation(told.get(row), str(spans or "nothing"), rule, true)

    def keep_texts(self, truth: Queries, predictions: Submission, texts: Mapping[str, str]) -> None:
        rows = {PREFIX + qid: row for row, qid in enumerate(truth.qids)}
        predictions.told.update({rows[name]: text for name, text in texts.items() if name in rows})


TASK = QVHighlights()
