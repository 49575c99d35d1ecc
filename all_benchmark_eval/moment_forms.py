"""Files of moment retrieval that several benchmarks share: one span a query, whoever found it.

In: a ``Content`` and the ``Moments`` that it is held against. Out: ``Located``, or the rows of ``Moments.of``. A query
is found by its id, or by video and text; several windows are ranked by their scores, equal ones as they stand,
VideoMind's as they stand. How a text tells its times is ``videollm.reading``'s.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from all_benchmark_eval.forms import Content, Form, entries, need, rows_with
from all_benchmark_eval.items import (
    Questions,
    are_texts,
    as_object,
    duration_of,
    first_span,
    read_rows,
    read_span,
    seconds,
    stem,
)
from all_benchmark_eval.metrics.moments import Located, Moments
from videollm.reading import read_spans

MARK = ">>>"  # between video, query and true span
# place in the file, places of the query, (span, text of the answer where the file has one)
Found = Iterator[tuple[str, list[int], tuple[Any, str | None]]]
NO_TIME = [-1, -1]


def located(truth: Moments, found: Found, questions: Questions) -> Located:
    """``found`` as arrays over the truth; what is no span is unparsed."""
    result = Located.nowhere(len(truth))
    for row, (span, text) in questions.spread(found):
        result.put(row, span, text)
    return result


def reader(each: Callable[[str, Any, Questions], tuple[list[int], Any]]) -> Callable[[Content, Moments], Located]:
    """A form's ``read`` from what one row is: its place and its ``Questions`` -> places of the query, span."""

    def read(content: Content, truth: Moments) -> Located:
        questions = Questions(truth.asked())
        found = ((where, *each(where, row, questions)) for where, row in content.rows)
        return located(truth, ((where, rows, (span, None)) for where, rows, span in found), questions)

    return read


def _of_windows(where: str, row: Any, questions: Questions) -> tuple[list[int], Any]:
    row = as_object(row, where, ("pred_relevant_windows",))
    windows = row["pred_relevant_windows"]
    need(isinstance(windows, list), f"{where}: pred_relevant_windows is not a list of [start, end, score]")
    return asked_of(where, row, questions), _best_first(windows, [w[2] if _has_score(w) else 1.0 for w in windows])


def _of_confidences(where: str, row: Any, questions: Questions) -> tuple[list[int], Any]:
    row = as_object(row, where, ("pred", "conf"))
    spans, scores = row["pred"], row["conf"]
    each = isinstance(spans, list) and isinstance(scores, list) and len(spans) == len(scores)
    need(each, f"{where}: 'pred' and 'conf' are not lists of as many spans and numbers")
    return asked_of(where, row, questions), _best_first(spans, [0.0] * len(spans))  # in its verifier's order


def asked_of(where: str, row: Any, questions: Questions) -> list[int]:
    """By the id where it is one of the truth's own, else by video (its name, or VideoMind's path of it) and text."""
    rows = questions.by_id(row.get("qid"))
    if not rows:
        video, text = ("vid" if "vid" in row else "video_path"), ("query" if "query" in row else "question")
        named = "qid" not in row or video in row or text in row
        need(named, f"{where}: qid {row.get('qid')!r:.60} is not in the annotations; give those that have it")
        as_object(row, where, (video, text))
        rows = questions.find(row[video], row[text], where)
    return rows


def _best_first(windows: list, scores: list) -> list:
    """The usable windows by falling score, equal ones in order."""
    ranked = [(seconds(score), window) for score, window in zip(scores, windows, strict=True)]
    usable = [pair for pair in ranked if pair[0] is not None and isinstance(pair[1], list) and read_span(pair[1][:2])]
    return [window[:2] for _, window in sorted(usable, key=lambda pair: -pair[0])] or NO_TIME


def _has_score(window: Any) -> bool:
    return isinstance(window, list) and len(window) == 3


def keyed(content: Content, questions: Questions) -> Iterator[tuple[str, list[int], str, Any, float | None]]:
    """(place, places of the query, true span, answer, seconds of the video) of {"video>>>query>>>[s, e]": answer}."""
    for key, answer in content.object.items():
        where = f"{content.path}: {key!r:.200}"
        parts = key.split(MARK)
        need(len(parts) >= 3, f"{where}: not 'video{MARK}query{MARK}[start, end]'")
        rows = questions.find(parts[0], MARK.join(parts[1:-1]), where)
        yield where, rows, parts[-1], answer, questions.durations[rows[0]]


def _read_keyed(content: Content, truth: Moments) -> Located:
    """The true span in the key tells apart a query that is asked twice."""
    questions = Questions(truth.asked())

    def found() -> Found:
        for where, rows, told, answer, length in keyed(content, questions):
            true = next(iter(read_spans(told, length)), None)
            same = [row for row in rows if true is not None and truth.spans[row].tolist() == true]
            yield where, same if len(rows) > 1 and same else rows, _told(answer, where, length)

    return located(truth, found(), questions)


def _told(answer: Any, where: str, duration_s: float | None) -> tuple[Any, str | None]:
    """(spans, text if that tells them) of a text, {"timestamps": [[s, e]], "answers": text}, [[s, e]] or [s, e].

    An object may have either key; timestamps come first.
    """
    if isinstance(answer, dict):
        key = "answers" if "answers" in answer and "timestamps" not in answer else "timestamps"
        answer = as_object(answer, where, (key,))[key]
    if are_texts(answer) and answer:
        answer = answer[0]
    if isinstance(answer, str):
        return next(iter(read_spans(answer, duration_s)), NO_TIME), answer
    return answer, None


PREDICTIONS = (
    Form(
        "moment_detr lines", '{"qid", "vid", "query", "pred_relevant_windows": [[s, e, score]]}',
        rows_with("pred_relevant_windows"), reader(_of_windows),
    ),
    Form(
        "VideoMind lines", '{"vid" or "video_path", "query", "pred": [[s, e]], "conf": [score]}',
        rows_with("pred", "conf"), reader(_of_confidences),
    ),
    Form(
        "video>>>query>>>[s, e]", '{"video>>>query>>>[s, e]": text or {"timestamps", "answers"}}',
        entries(lambda key, value: key.count(MARK) >= 2), _read_keyed,
    ),
)  # fmt: skip


# ---- annotations -----------------------------------------------------------------------------------------------------

# id, video, text, true span, seconds of the video: a row of ``Moments.of``; then its kind, where there are kinds
Query = tuple[str, str, str, Any, float] | tuple[str, str, str, Any, float, str]


def _lines(spans: str) -> Callable[[Content], list[Query]]:
    """Rows {"vid" or "video_path", "query", "duration", ``spans``: [[s, e]]}; the id is ``qid``, or else video and
    query."""

    def read(content: Content) -> list[Query]:
        queries = []
        for where, row in content.rows:
            row = as_object(row, where)
            named = "vid" if "vid" in row else "video_path"
            as_object(row, where, (named, "query", "duration", spans))
            video, text = stem(row[named]), str(row["query"])
            name = str(row.get("qid", f"{video}/{text.strip()}"))
            queries.append((name, video, text, _only(row[spans], where), duration_of(row, where)))
        return queries

    return read


def of_moments(form: Form, wording: Callable[[str], str] = str) -> Form:
    """A form whose rows are those of ``Moments.of``, each with its kind behind it if there are kinds, read as
    ``Moments``; ``wording``: what is made of a query."""

    def read(content: Content) -> Moments:
        rows = [(name, video, wording(text), *rest) for name, video, text, *rest in form.read(content)]
        return Moments.of([row[:5] for row in rows], content.path, [row[5] for row in rows if len(row) > 5])

    return replace(form, read=read)


def rows_of(each: Callable[[str, Mapping[str, Any], int], Query], *keys: str) -> Callable[[Content], list[Query]]:
    """A form's ``read`` of rows with ``keys``, from what one row is: its place, itself, its number from 0."""
    return lambda content: [each(where, row, n) for n, (where, row) in enumerate(read_rows(content, keys))]


def tidy(query: str) -> str:
    """A query as TimeLens and VideoMind ask it: blanks made one, no period at either end."""
    return " ".join(query.split()).strip(".").strip()


def _by_video(content: Content) -> list[Query]:
    """{video: {"duration", "spans": [[s, e]], "queries": [text]}}."""
    queries = []
    for video, entry in content.object.items():
        where = f"{content.path}: {video!r:.200}"
        entry = as_object(entry, where, ("duration", "spans", "queries"))
        spans, texts = entry["spans"], entry["queries"]
        each = isinstance(spans, list) and are_texts(texts) and len(spans) == len(texts)
        need(each, f"{where}: 'spans' and 'queries' are not lists of as many spans and texts")
        length = duration_of(entry, where)
        for i, (span, text) in enumerate(zip(spans, texts, strict=True)):
            queries.append((f"{video}-{i}", stem(video), text, first_span(span), length))
    return queries


def _only(windows: Any, where: str) -> Any:
    """The one true window of a query."""
    listed = isinstance(windows, list) and windows
    need(listed, f"{where}: no true window; is it a test set without ground truth?")
    several = f"{where}: {len(windows)} true windows; score queries with several as qvhighlights, --variant moment_detr"
    need(len(windows) == 1 or not isinstance(windows[0], list), several)
    return first_span(windows)


BY_VIDEO = Form(
    "TimeLens", '{video: {"duration", "spans", "queries"}}',
    entries(lambda key, value: isinstance(value, dict) and "spans" in value and "queries" in value), _by_video,
)  # fmt: skip
TRUTHS = (
    Form(
        "moment_detr lines", '{"qid", "vid", "query", "duration", "relevant_windows": [[s, e]]}',
        rows_with("relevant_windows", "query"), _lines("relevant_windows"),
    ),
    Form(
        "VideoMind lines", '{"vid" or "video_path", "query", "duration", "span": [[s, e]]}',
        rows_with("query", "span"), _lines("span"),
    ),
    BY_VIDEO,
)  # fmt: skip
