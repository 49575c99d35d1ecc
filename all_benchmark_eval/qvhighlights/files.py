"""Files of QVHighlights: the ground truth, and predictions of both forms, as arrays in the order of the truth.

What is no window (text that cannot be read, a time that is not finite) becomes [-1, -1], the published way to say
"no time". A file that does not fit its ground truth is an error with the qid; metrics are not known here.
"""

import ast
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from all_benchmark_eval.forms import BenchmarkError, Content, Form, Rows, entries, need, rows_with
from all_benchmark_eval.items import (
    Asked,
    Questions,
    as_object,
    duration_of,
    known_length,
    read_span,
    read_spans,
    seconds,
)
from all_benchmark_eval.metrics.moments import State
from all_benchmark_eval.metrics.parsing import split_evidence
from all_benchmark_eval.moment_forms import MARK, keyed
from videollm.reading import read_spans as read_spans_told

CLIP_S = 2
PREFIX = "QVHighlight_"  # of DisTime's qids
NO_WINDOW = [-1, -1]
WINDOWS = ("pred_relevant_windows", "pred_saliency_scores")
_LIST = re.compile(r"\[\[.*\]\]")

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Queries:
    """Ground truth of Q queries; ``saliency`` [clips, 3] each, or None where the file has none."""

    qids: list[str]  # without the prefix
    videos: list[str]
    queries: list[str]
    durations: Floats  # [Q]
    windows: list[Floats]  # [K, 2] each, at least one
    saliency: list[Floats] | None = None

    def asked(self) -> Iterable[Asked]:
        """The queries by ``PREFIX`` and qid."""
        ids = (PREFIX + qid for qid in self.qids)
        return map(Asked, ids, self.videos, self.queries, map(known_length, self.durations))


@dataclass(frozen=True)
class Submission:
    """Predictions for the Q queries of ``truth``. ``windows`` [K, 3]: start, end, score (1 if the file has none)."""

    truth: Queries
    windows: list[Floats] | None  # None: not in the file
    saliency: list[Floats | None] | None  # None: not in the file, or for this query
    state: NDArray[np.int8]  # [Q], of the windows, or of the saliency where there are none
    published: "Submission | None" = None  # what a published script reads in the same file, where that is another
    told: dict[int, str] = field(default_factory=dict)  # the text of an answer by the place of its query, where known


def qid_of(row: Any, where: str) -> str:
    """The query's number as text: 2579, "2579" and "QVHighlight_2579" are one."""
    qid = as_object(row, where, ("qid",))["qid"]
    text = str(qid).removeprefix(PREFIX)
    need(isinstance(qid, int | str) and not isinstance(qid, bool) and text, f"{where}: {str(qid)[:80]!r} is no qid")
    return text


def read_truth(content: Content) -> Queries:
    """The data set's json lines, or DisTime's list. Raises BenchmarkError for a query without windows (test split)."""
    seen: set[str] = set()
    rows = []
    for where, row in content.rows:
        qid = qid_of(row, where)
        row = as_object(row, where, ("query", "duration", "relevant_windows"))
        duration = seconds(row["duration"]) or 0.0
        need(qid not in seen, f"{where}: the qid {qid} stands twice")
        least = f"duration {row['duration']!r} is not a number of seconds from {CLIP_S} on"
        need(duration >= CLIP_S, f"{where}: {least}")
        seen.add(qid)
        saliency = true_saliency(row, int(duration / CLIP_S), where) if "saliency_scores" in row else None
        windows = true_windows(row["relevant_windows"], where)
        rows.append((qid, str(row.get("vid", row.get("video"))), str(row["query"]), duration, windows, saliency))
    need(rows, f"{content.path}: no query in it")
    qids, videos, queries, durations, windows, saliency = map(list, zip(*rows, strict=True))
    whole = None if any(scores is None for scores in saliency) else saliency
    return Queries(qids, videos, queries, np.array(durations), windows, whole)


def true_windows(windows: Any, where: str) -> Floats:
    """[K, 2], ordered."""
    problem = f"{where}: the true windows {str(windows)[:60]} are not [[start, end], ...] in seconds"
    spans = read_spans(windows, problem)
    return np.sort(np.array(spans, np.float64), axis=-1)


def true_saliency(row: Mapping[str, Any], clips: int, where: str) -> Floats:
    """[clips, 3]: 0 for clips that the row does not name."""
    full = np.zeros((clips, 3))
    try:
        places = np.array(as_object(row, where, ("relevant_clip_ids",))["relevant_clip_ids"], int)
        if places.min(initial=0) < 0:
            raise IndexError(f"clip {places.min()}")
        full[places] = np.array(row["saliency_scores"], np.float64).reshape(len(places), 3)
    except (ValueError, TypeError, IndexError) as error:
        wanted = f"three scores for each of relevant_clip_ids (0 to {clips - 1})"
        raise BenchmarkError(f"{where}: saliency_scores must hold {wanted}: {error}") from None
    return full


def read_submission(content: Content, truth: Queries | None) -> Submission:
    """DisTime's or moment_detr's lines; without ``truth`` the targets of DisTime's are the truth."""
    return _submission(content.path, content.rows, truth)


def _submission(path: Path, given: Rows, truth: Queries | None) -> Submission:
    found: dict[str, tuple[str, dict]] = {}
    for where, row in given:
        qid = qid_of(row, where)
        need(qid not in found, f"{where}: the qid {qid} stands twice")
        known = row.keys() & {"prediction", *WINDOWS}
        need(known, f"{where}: no 'prediction', 'pred_relevant_windows' or 'pred_saliency_scores'")
        found[qid] = (where, row)
    need(found, f"{path}: no prediction in it")
    targets = _targets(found)
    truth = truth or targets
    need(truth, f"{path}: it does not carry its ground truth: give the data set's file by --annotations")
    _check_targets(truth, targets, found)
    rows = [found.get(qid, ("", {}))[1] for qid in truth.qids]
    meant = _as_arrays(truth, rows, meant=True)
    texts = any(isinstance(row.get("prediction"), str) for row in rows)
    return replace(meant, published=_as_arrays(truth, rows, meant=False)) if texts else meant


def _as_arrays(truth: Queries, rows: Sequence[Mapping[str, Any]], meant: bool) -> Submission:
    """``meant``: a text that is no list is read for what it says."""
    keys = set().union(*rows)
    windows, lengths = None, map(known_length, truth.durations)
    if keys & {"prediction", "pred_relevant_windows"}:
        windows = [_windows(row, meant, length) for row, length in zip(rows, lengths, strict=True)]
    saliency = [_saliency(row) for row in rows] if "pred_saliency_scores" in keys else None
    if windows is None:
        usable = np.array([scores is not None for scores in saliency])
    else:
        usable = np.array([bool((spans[:, :2] != NO_WINDOW).any()) for spans in windows])
    state = np.where(usable, State.PARSED, State.UNPARSED)
    state = np.where([bool(row) for row in rows], state, State.MISSING)
    texts = {place: row["prediction"] for place, row in enumerate(rows) if isinstance(row.get("prediction"), str)}
    return Submission(truth, windows, saliency, state, told=texts)


def _keyed(content: Content, truth: Queries | None) -> Submission:
    """``{"video>>>query>>>[[s, e], ...]": text or {"timestamps", "answers"}}``, all spans of each."""
    need(truth, f"{content.path}: it does not carry its ground truth: give the data set's file by --annotations")
    questions, found = Questions(truth.asked()), []
    for where, rows, _, answer, length in keyed(content, questions):
        told = answer.get("timestamps") if isinstance(answer, dict) else answer
        windows = read_spans_told(told, length) if isinstance(told, str) else told
        found.append((where, rows, (windows, told if isinstance(told, str) else None)))
    qids, given = questions.ids, dict(questions.spread(found))
    rows = [("", {"qid": qids[row], "pred_relevant_windows": windows}) for row, (windows, _) in given.items()]
    texts = {row: text for row, (_, text) in given.items() if text is not None}
    return replace(_submission(content.path, rows, truth), told=texts)


def parse_windows(text: Any) -> list:
    """DisTime's reading of a predicted list in text; [[-1, -1]] where it is none.

    It must start with ``[[``, have a ``]]`` in the same line, and be a Python literal as a whole; inner lists of
    another length than 2 become [-1, -1]. What stands in them may be anything. A list is taken as it is.
    """
    if isinstance(text, str):
        try:
            text = ast.literal_eval(text) if _LIST.match(text) else None
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            text = None
    if not isinstance(text, list) or not text or not all(isinstance(window, list) for window in text):
        return [NO_WINDOW]
    return [window if len(window) == 2 else NO_WINDOW for window in text]


def _windows(row: Mapping[str, Any], meant: bool, duration_s: float | None) -> Floats:
    """[K, 3] of one query; [0, 3] if it has no entry."""
    if "prediction" in row:
        told = parse_windows(row["prediction"])
        if meant and told == [NO_WINDOW] and isinstance(row["prediction"], str):
            told = read_spans_told(split_evidence(row["prediction"])[1], duration_s) or told
        scored = [[*(read_span(window) or NO_WINDOW), 1.0] for window in told]
    else:
        given = row.get("pred_relevant_windows") or []
        scored = [_scored(window) for window in given] if isinstance(given, list) else []
    return np.array(scored, np.float64).reshape(-1, 3)


def _scored(window: Any) -> list[float]:
    """[start, end, score] of moment_detr; score 1 if left out."""
    if not isinstance(window, list) or len(window) not in (2, 3):
        return [*NO_WINDOW, 0.0]
    score = seconds(window[2]) if len(window) == 3 else 1.0
    span = read_span(window[:2])
    return [*NO_WINDOW, 0.0] if span is None or score is None else [*span, score]


def _saliency(row: Mapping[str, Any]) -> Floats | None:
    """[K], or None if it is no list of finite numbers."""
    values = row.get("pred_saliency_scores")
    if not isinstance(values, list) or not values or None in map(seconds, values):
        return None
    return np.array(values, np.float64)


def _targets(found: Mapping[str, tuple[str, dict]]) -> Queries | None:
    """The truth that DisTime's predictions carry; None where not all do."""
    if not all("target" in row and "duration" in row for _, row in found.values()):
        return None
    durations = [duration_of(row, where) for where, row in found.values()]
    windows = [true_windows(parse_windows(row["target"]), where) for where, row in found.values()]
    queries = [str(row.get("query", "")) for _, row in found.values()]
    return Queries(list(found), [""] * len(found), queries, np.array(durations), windows)


def _check_targets(truth: Queries, targets: Queries | None, found: Mapping[str, tuple[str, dict]]) -> None:
    """Raises BenchmarkError for a qid that the truth has not, and for a target that is another one than the truth's."""
    known = dict(zip(truth.qids, truth.windows, strict=True))
    for qid, (where, _) in found.items():
        need(qid in known, f"{where}: the annotations have no qid {qid}; are they of another split?")
    for qid, target in zip(targets.qids, targets.windows, strict=True) if targets else ():
        where, true = found[qid][0], known[qid]
        told = f"has the target {target.tolist()}, but the annotations say {true.tolist()}"
        need(np.array_equal(true, target), f"{where}: qid {qid} {told}; score it against its own annotations")


TRUTHS = (
    Form(
        "moment_detr lines", '{"qid", "query", "duration", "relevant_windows"}', rows_with("qid", "query"), read_truth
    ),
)
FORMS = (
    Form("DisTime", '{"qid", "prediction": "[[s, e], ...]"}', rows_with("qid", "prediction"), read_submission),
    Form(
        "moment_detr, TimeChat", '{"qid", "pred_relevant_windows" or "pred_saliency_scores"}',
        lambda content: "qid" in content.row and any(key in content.row for key in WINDOWS), read_submission,
    ),
    Form(
        "video>>>query>>>[s, e]", '{"video>>>query>>>[[s, e], ...]": text or {"timestamps", "answers"}}',
        entries(lambda key, value: key.count(MARK) >= 2), _keyed,
    ),
)  # fmt: skip
