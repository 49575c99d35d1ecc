"""What the dense-captioning benchmarks share: ground truth with one or several references, predictions, tokens.

Texts go in as they were written and are tokenized here, all of a run in one call. Files, official formats, and how a
benchmark averages its measures (``dense_measures``) are the tasks'.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import compress
from typing import Any, ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray

from all_benchmark_eval.benchmark import WITHOUT_BREAK, Benchmark, Explanation, Options, Scores, worded
from all_benchmark_eval.items import Asked, known_length, need, read_span
from all_benchmark_eval.metrics import captions
from all_benchmark_eval.metrics.dense import Events, Floats
from all_benchmark_eval.metrics.java import JavaError, find_java
from all_benchmark_eval.metrics.moments import State, moment_questions, no_length, order_and_clip, table, unread_of
from all_benchmark_eval.metrics.parsing import split_evidence
from videollm.common.answers import AnswerLine, split_spans
from videollm.reading import read_steps
from videollm.reading.steps import explain_steps


@dataclass(frozen=True)
class DenseTruth:
    """V videos with their true events. ``durations`` [V] is NaN where unknown.

    ``others``: further references of the same videos, each [V]; a video that a reference lacks has no event in it.
    """

    names: list[str]
    durations: Floats
    spans: list[list[list[float]]]  # [V], seconds, ordered
    captions: list[list[str]]  # [V]
    others: tuple["DenseTruth", ...] = ()

    @staticmethod
    def of(videos: Iterable[tuple[str, float | None, Any, list[str]]], path: object) -> "DenseTruth":
        """From the (name, duration, spans, captions) of each. Raises BenchmarkError for one that is not usable."""
        found: dict[str, tuple] = {}
        for name, duration, spans, texts in videos:
            where = f"{path}: {name!r}"
            need(name not in found, f"{path}: the video {name!r} stands twice")
            need(all(isinstance(text, str) for text in texts), f"{where}: a caption is not a text")
            each = isinstance(spans, list) and len(spans) == len(texts)
            need(each, f"{where}: {len(texts)} captions, but not a list of as many spans")
            need(spans, f"{where}: no event")
            odd = [span for span in spans if read_span(span) is None]
            need(not odd, f"{where}: the span {next(iter(odd), None)!r} is not [start, end] in seconds")
            ordered = [sorted(read_span(span)) for span in spans]
            found[name] = (np.nan if duration is None else duration, ordered, texts)
        need(found, f"{path}: no video in it")
        durations, spans, texts = map(list, zip(*found.values(), strict=True))
        return DenseTruth(list(found), np.array(durations), spans, texts)

    @staticmethod
    def joined(truths: Sequence["DenseTruth"]) -> "DenseTruth":
        """Several references as one truth about all videos that any of them has."""
        names = list(dict.fromkeys(name for truth in truths for name in truth.names))
        parts = [[truth.rows.get(name) for name in names] for truth in truths]
        whole = [truth.placed(names, rows) for truth, rows in zip(truths, parts, strict=True)]
        lengths = np.array([truth.durations for truth in whole])  # [R, V]
        known = np.argmax(~np.isnan(lengths), axis=0)
        return replace(whole[0], durations=lengths[known, np.arange(len(names))], others=tuple(whole[1:]))

    def placed(self, names: list[str], rows: Sequence[int | None]) -> "DenseTruth":
        """The videos ``rows``, of which None is one without events."""
        spans, texts = ([[] if row is None else values[row] for row in rows] for values in (self.spans, self.captions))
        return DenseTruth(
            names, np.array([np.nan if row is None else self.durations[row] for row in rows]), spans, texts
        )

    def __len__(self) -> int:
        return len(self.names)

    @property
    def references(self) -> list["DenseTruth"]:
        """Every reference, this one first."""
        return [self, *self.others]

    @cached_property
    def ends(self) -> Floats:
        """The last true end of each video, [V]."""
        return np.array([max(span[1] for ref in self.references for span in ref.spans[v]) for v in range(len(self))])

    @cached_property
    def lengths(self) -> list[float | None]:
        """What is known of the durations, [V]."""
        return list(map(known_length, self.durations))

    @cached_property
    def rows(self) -> dict[str, int]:
        """{name: place of the video}."""
        return {name: row for row, name in enumerate(self.names)}

    def select(self, keep: NDArray[np.bool_]) -> "DenseTruth":
        """The videos where ``keep`` [V] holds."""
        names, spans, texts = (list(compress(values, keep)) for values in (self.names, self.spans, self.captions))
        return DenseTruth(names, self.durations[keep], spans, texts, tuple(ref.select(keep) for ref in self.others))

    def no_length(self) -> list[str]:
        """A note on true spans without length, if there are any."""
        spans = [span for ref in self.references for video in ref.spans for span in video]
        return no_length(np.array(spans).reshape(-1, 2))


@dataclass(frozen=True)
class DenseAnswers:
    """Predicted events of V videos in the order of the truth, as the file has them.

    ``published``: what a published script reads in the same file, where that is something else. ``told``: the text of
    an answer, by the place of the video, where the reader of the file knows it.
    """

    spans: list[list[list[float]]]  # [V]
    captions: list[list[str]]  # [V]
    state: NDArray[np.int8]  # [V], a State
    notes: list[str] = field(default_factory=list)
    published: "DenseAnswers | None" = None
    told: dict[int, str] = field(default_factory=dict)

    @staticmethod
    def none(count: int) -> "DenseAnswers":
        """``count`` videos, all missing."""
        spans, texts = ([[] for _ in range(count)] for _ in range(2))
        return DenseAnswers(spans, texts, np.full(count, State.MISSING, np.int8))

    def put(self, row: int, spans: list[list[float]], texts: list[str], text: str | None = None) -> None:
        """The events of video ``row``; unparsed without any. ``text``: what the answer says, where the file has it."""
        self.spans[row], self.captions[row] = spans, texts
        self.state[row] = State.PARSED if spans else State.UNPARSED
        if text is not None:
            self.told[row] = text

    def select(self, keep: NDArray[np.bool_]) -> "DenseAnswers":
        spans, texts = (list(compress(values, keep)) for values in (self.spans, self.captions))
        place = np.cumsum(keep) - 1
        told = {int(place[row]): text for row, text in self.told.items() if keep[row]}
        return replace(self, spans=spans, captions=texts, state=self.state[keep], told=told)

    def unread(self, names: Sequence[str]) -> dict[str, str]:
        """Of ``Scores.unread``."""
        return unread_of(names, self.state, self.told)


Side = TypeVar("Side", DenseTruth, DenseAnswers)


def answer_events(answer: AnswerLine, duration_s: float | None) -> list[tuple[list[float], str]]:
    """(span, caption) of every event of an answer: the text behind each span, up to the next one.

    An event without a caption is left out. Text without spans in our own notation is read as any answer
    (``videollm.reading``), of a video of ``duration_s`` seconds.
    """
    (_, *texts), spans = split_spans(answer.text)
    if not spans:
        spans, texts = read_steps(answer.text, duration_s)
    elif len(answer.spans) == len(spans):
        spans = answer.spans  # the same, not rounded
    events = zip(spans, (re.sub(r"^[\s,.:;]+", "", text).rstrip(" \t\r\n,") for text in texts), strict=True)
    return [(list(span), text) for span, text in events if text]


class Words:
    """The texts of a run as tokens, and which caption scores can be made.

    ``meteor``: METEOR is running (it is started here, before the caller goes on); ``tokens``: captions are tokenized.
    ``skip_meteor`` switches the first off, and the second as well where there is no Java.
    """

    def __init__(self, options: Options):
        self.meteor, self.tokens, self.notes = not options.skip_meteor, True, list[str]()
        self._known: dict[str, str] = {}
        if self.meteor:
            captions.start_meteor()
            return
        self.notes.append("METEOR and SODA_c are left out (--skip-meteor)")
        try:
            find_java()
        except JavaError:
            self.tokens = False
            self.notes.append("all caption scores are left out: there is no Java for the PTB tokenizer")

    def add(self, texts: Sequence[str]) -> None:
        """Tokenize texts. One call with all texts of a run."""
        if self.tokens:
            self._known.update(zip(texts, captions.tokenize(texts), strict=True))

    def __getitem__(self, text: str) -> str:
        """The tokens of a text; the text itself where nothing is tokenized."""
        return self._known[text] if self.tokens else text

    def events(self, spans: Sequence[Sequence[Sequence[float]]], texts: Sequence[Sequence[str]]) -> Events:
        """Events with tokenized captions."""
        return Events.of(spans, [[self[text] for text in video] for video in texts])

    def both(self, answers: DenseAnswers, truth: DenseTruth) -> list[Events]:
        """(predicted, true of each reference) events of all videos of a run, with tokenized captions."""
        sides = [answers, *truth.references]
        self.add([text for side in sides for video in side.captions for text in video])
        return [self.events(side.spans, side.captions) for side in sides]


class DenseBenchmark(Benchmark):
    """A benchmark whose ground truth is ``DenseTruth``, its predictions ``DenseAnswers``; files are the task's."""

    settings = WITHOUT_BREAK
    headline = ("SODA_c", "CIDEr", "METEOR", "F1")
    wordings: ClassVar[Mapping[str, str]]
    metrics: ClassVar[tuple[str, ...]]  # in printing order

    def asked(self, truth: DenseTruth) -> Iterable[Asked]:
        """The videos, of each of which the same is asked."""
        return (Asked(name, name, "", length) for name, length in zip(truth.names, truth.lengths, strict=True))

    def questions(self, truth: DenseTruth, wording: str) -> list[dict]:
        """One question a video; videos are ``<video>.mp4`` where they name no container."""
        videos, text = [name.removesuffix(".mp4") for name in truth.names], worded(self.wordings, wording)
        return moment_questions(truth.names, videos, [""] * len(videos), truth.durations, text)

    def explain(self, truth: DenseTruth, predictions: DenseAnswers, name: str) -> Explanation:
        """The events that count, and how they were read."""
        need(name in truth.rows, f"--explain: the annotations have no video {name!r}")
        row = truth.rows[name]
        true = _listed(truth.spans[row], truth.captions[row])
        if predictions.state[row] == State.MISSING:
            return Explanation(None, "nothing", "no answer in the file", true)
        text, read = predictions.told.get(row), _listed(predictions.spans[row], predictions.captions[row])
        told = None if text is None else explain_steps(split_evidence(text)[1], truth.lengths[row])
        rule = "as the file has them" if predictions.spans[row] else "no list of events"
        if told is not None and told.value[0] == predictions.spans[row]:
            rule = told.rule
        return Explanation(text, read, rule, true)

    def keep_texts(self, truth: DenseTruth, predictions: DenseAnswers, texts: Mapping[str, str]) -> None:
        predictions.told.update({row: texts[name] for name, row in truth.rows.items() if name in texts})

    def scores(
        self, names: Sequence[str], means: Mapping[str, float], flat: Mapping[str, Floats], counts: dict, notes: list
    ) -> Scores:
        """``means`` in percent, None where there is none, and the values [V] of each video."""
        metrics = {name: means.get(name) for name in self.metrics}
        per_sample = {name: table(names, flat[name]) for name in self.metrics if name in flat}
        return Scores(metrics, "percent", counts, per_sample, notes=notes)


def _listed(spans: Sequence[Sequence[float]], texts: Sequence[str]) -> str:
    """Events in words."""
    return "; ".join(f"{list(span)} {text.strip()}" for span, text in zip(spans, texts, strict=True)) or "nothing"


def plain(text: str) -> str:
    """A caption as some scripts hand it to the tokenizer: a blank for every character that is not ASCII."""
    return "".join(char if ord(char) < 128 else " " for char in text)


def plain_captions(side: Side) -> Side:
    """Answers, or a truth with all its references, with ``plain`` captions."""
    more = {"others": tuple(map(plain_captions, side.others))} if isinstance(side, DenseTruth) else {}
    return replace(side, captions=[[plain(text) for text in video] for video in side.captions], **more)


def clip_events(truth: DenseTruth, answers: DenseAnswers) -> tuple[DenseAnswers, int]:
    """The answers with every span ordered and cut to its video, and how many spans that cut.

    A video ends with its last true event where that lies behind the noted duration; nothing is cut where none is noted.
    """
    last = truth.ends
    sizes = [len(video) for video in answers.spans]
    limits = np.repeat(np.where(np.isnan(truth.durations), np.nan, np.maximum(truth.durations, last)), sizes)
    flat = np.array([span for video in answers.spans for span in video], np.float64).reshape(-1, 2)
    inside, cut = order_and_clip(flat, limits)
    parts = np.split(inside, np.cumsum(sizes)[:-1])
    return replace(answers, spans=[part.tolist() for part in parts]), int(cut.sum())
