"""Files of Charades-STA: annotations of four groups, and predictions of as many.

In: a ``Content``. Out: the queries of an annotation file, or ``Located`` predictions over ``Moments``. ``TRUTHS`` and
``FORMS`` tell which form a file has; metrics are not known here.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from all_benchmark_eval import moment_forms
from all_benchmark_eval.forms import BenchmarkError, Content, Form, entries, has_key, need, rows_with
from all_benchmark_eval.items import Questions, as_object, known_length, read_table, seconds, stem
from all_benchmark_eval.metrics.moments import Located, Moments
from all_benchmark_eval.metrics.parsing import evidence_and_answer_spans, split_evidence
from videollm.reading import read_spans

DURATIONS = "Charades_v1_test.csv"  # of the Charades data set: columns id, length
_LINE = re.compile(r"(\S+) (\S+) (\S+?)##(.*)")

Query = tuple[str, str, Any, float]  # video, sentence, [start, end], seconds of the video (NaN: unknown)

# ---- annotation files ------------------------------------------------------------------------------------------------


def _text_queries(content: Content) -> Iterator[Query]:
    for number, line in enumerate(content.text.splitlines(), start=1):
        if not line.strip():
            continue
        match = _LINE.fullmatch(line)
        try:
            video, start, end, sentence = match.groups()
            yield video, sentence, [float(start), float(end)], np.nan
        except (AttributeError, ValueError):
            raise BenchmarkError(f"{content.path}:{number}: not 'VID start end##sentence': {line[:80]!r}") from None


def _umt_queries(content: Content) -> Iterator[Query]:
    for video, entry in as_object(content.object["database"], f"{content.path}: database").items():
        where = f"{content.path}: {video!r}"
        entry = as_object(entry, where, ("duration", "annotations"))
        length = seconds(entry["duration"])
        good = length and length > 0 and isinstance(entry["annotations"], list)
        need(good, f"{where}: needs a duration in seconds and a list of annotations")
        for item in entry["annotations"]:
            item = as_object(item, where, ("label", "segment"))
            yield video, _sentence(item["label"], where), item["segment"], length


def _timechat_queries(content: Content) -> Iterator[Query]:
    annotations = content.object["annotations"]
    need(isinstance(annotations, list), f"{content.path}: annotations is not a list")
    for place, item in enumerate(annotations):
        where = f"{content.path}: annotations[{place}]"
        item = as_object(item, where, ("image_id", "caption", "timestamp", "id"))
        need(item["id"] == place, f"{where}: its id is {item['id']!r:.40}; ids must count the queries from 0")
        yield stem(item["image_id"]), _sentence(item["caption"], where), item["timestamp"], np.nan


def _sentence(value: Any, where: str) -> str:
    need(isinstance(value, str), f"{where}: the sentence is not a text")
    return value


def lengths_beside(path: Path) -> dict[str, float]:
    """Length of each video, from the Charades data set's own table in the same folder; empty if it is not there."""
    beside = Path(path).with_name(DURATIONS)
    if not beside.is_file():
        return {}
    try:
        return {row["id"]: float(row["length"]) for row in read_table(beside)}
    except (KeyError, TypeError, ValueError) as error:
        raise BenchmarkError(f"{beside}: not the table of Charades (columns id and length): {error!r}") from None


# ---- prediction files ------------------------------------------------------------------------------------------------


def _by_sentence(content: Content, truth: Moments) -> Located:
    """``{video: {sentence: {"start", "end"}}}``."""
    questions = Questions(truth.asked())

    def found() -> moment_forms.Found:
        for video, sentences in content.object.items():
            for sentence, span in as_object(sentences, f"{content.path}: {video!r:.200}").items():
                where = f"{content.path}: {video!r:.200}: {sentence[:200]!r}"
                span = as_object(span, where, ("start", "end"))
                yield where, questions.find(video, sentence, where), ([span["start"], span["end"]], None)

    return moment_forms.located(truth, found(), questions)


def _numbered(content: Content, truth: Moments) -> Located:
    """``{number of the query: [start, end] or {"timestamp", "vid"}}``."""
    entries = ((f"{content.path}: {key[:60]!r}", key, value) for key, value in content.object.items())
    return _by_number(entries, truth)


def _d2vlm(content: Content, truth: Moments) -> Located:
    """D2VLM's answers; the published parser finds less in them than they say
    (published_systems.md#d2vlms-charades-sta-answers)."""
    published, meant = [], []
    lengths = {str(row): known_length(length) for row, length in enumerate(truth.durations)}
    for where, sample in content.rows:
        sample = as_object(sample, where, ("idx", "video", "a"))
        need(isinstance(sample["a"], str), f"{where}: the answer 'a' is not a text")
        evidence, answer = evidence_and_answer_spans(sample["a"])
        about = {"vid": sample["video"], "text": sample["a"]}
        published.append((where, sample["idx"], {"timestamp": (answer or evidence)[:1]} | about))
        length = lengths.get(str(sample["idx"]))
        evidence, answer = (read_spans(part, length) for part in split_evidence(sample["a"]))
        meant.append((where, sample["idx"], {"timestamp": (answer or evidence)[:1]} | about))
    return replace(_by_number(meant, truth), published=_by_number(published, truth))


def _by_number(entries: Iterable[tuple[str, Any, Any]], truth: Moments) -> Located:
    """From (place, number of the query, [start, end] or {"timestamp", "vid", "text"}) of each."""
    located, seen = Located.nowhere(len(truth)), set[int]()
    rows = {str(row): row for row in range(len(truth))}
    for where, key, entry in entries:
        row = rows.get(str(key))
        known = f"the annotations have queries 0 to {len(truth) - 1}, not {str(key)[:40]!r}"
        need(row is not None, f"{where}: {known}")
        need(row not in seen, f"{where}: there are two predictions for query {key}")
        seen.add(row)
        if isinstance(entry, dict):
            _check_video(where, row, entry, truth)
        text = entry.get("text") if isinstance(entry, dict) else None
        located.put(row, entry["timestamp"] if isinstance(entry, dict) else entry, text)
    return located


def _check_video(where: str, row: int, entry: Mapping[str, Any], truth: Moments) -> None:
    as_object(entry, where, ("timestamp",))
    video, true = entry.get("vid", truth.videos[row]), truth.videos[row]
    other = f"is about video {video!r:.80}, but query {row} of the annotations is about {true!r}"
    need(stem(video) == stem(true), f"{where}: {other}; are they in another order?")


def _is_sentences(key: str, value: Any) -> bool:
    """Whether an entry is of the first form: what it has by sentence is neither a text nor a list."""
    if not isinstance(value, dict) or "timestamp" in value:
        return False
    return not isinstance(next(iter(value.values()), None), str | list)


def _is_by_sentence(content: Content) -> bool:
    """Also an empty file, of a model that answered nothing."""
    return content.object == {} or entries(_is_sentences)(content)


def _is_numbered(key: str, value: Any) -> bool:
    """Whether an entry is of the second form, keyed by the number of the query."""
    return isinstance(value, list) or (isinstance(value, dict) and "timestamp" in value)


def _without_id(form: Form) -> Callable[[Content], Iterator[Query]]:
    """A form that other benchmarks share: the sentence is the id here."""
    return lambda content: (query for _, *query in form.read(content))


TRUTHS = (
    Form("Charades-STA text", "VID start end##sentence", lambda content: "##" in content.text[:2000], _text_queries),
    Form("UMT", '{"database": {video: {"duration", "annotations"}}}', has_key("database"), _umt_queries),
    Form("TimeChat", '{"annotations": [{"image_id", "caption", ...}]}', has_key("annotations"), _timechat_queries),
    *(replace(form, read=_without_id(form)) for form in moment_forms.TRUTHS),
)
FORMS = (
    Form("DisTime", '{video: {sentence: {"start", "end"}}}', _is_by_sentence, _by_sentence),
    Form("D2VLM converted, TimeChat", '{number: {"timestamp", "vid"}}', entries(_is_numbered), _numbered),
    Form("D2VLM answers", '[{"idx", "video", "a": text}]', rows_with("idx", "video", "a"), _d2vlm),
    *moment_forms.PREDICTIONS,
)
