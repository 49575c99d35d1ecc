"""What a benchmark is: ground truth, questions, predictions in its own format, and metrics.

``all_benchmark_eval/<name>/task.py`` holds one subclass of ``Benchmark`` and makes it available as ``TASK``; the
commands (``score``, ``compare``, ``evaluate``, ``check``) find it by the folder's name. Nothing here knows which model
or head wrote an answer, so other people's prediction files are scored the same way.
"""

import hashlib
import importlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from all_benchmark_eval.forms import BenchmarkError as BenchmarkError
from all_benchmark_eval.forms import Content, Form, Rows, need, pick, read_lines
from all_benchmark_eval.forms import read_json as read_json
from all_benchmark_eval.forms import read_text as read_text
from all_benchmark_eval.items import Asked, known_length
from videollm.common import files
from videollm.common.answers import NEEDED, AnswerLine
from videollm.common.config import nearest
from videollm.reading.styles import STYLES

Protocol = Literal["published", "corrected"]
PROTOCOLS: tuple[Protocol, ...] = ("published", "corrected")
WORDINGS = ("d2vlm", "distime", "plain", *STYLES)


@dataclass
class Scores:
    """The outcome of scoring one prediction file under one protocol and variant.

    Attributes:
        metrics: flat ``{name: value}`` in printing order; None where there is nothing to measure (named in ``notes``).
        unit: "percent" or "fraction"; of every metric that is a share.
        counts: whole numbers; at least ``samples`` (in the ground truth), ``scored``, ``unparsed``, ``missing`` and
            ``clipped`` (a span that was cut at the video's borders; always 0 where the protocol does not cut), where
            scored + unparsed + missing = samples.
        denominator: what the means are over, in words, where the published protocol's is not ``samples``.
        per_sample: ``{metric: {sample id: value}}``, for significance tests; fractions (IoU, 0/1, F1). Where a metric
            is a mean over samples the two have one name, and the ids are those of its denominator.
        details: break-downs (by task, type, video), any depth.
        notes: what a reader of the table must know (metrics skipped, quirks that changed a number here).
        unread: {sample id: text} of the unparsed answers; "" where the file keeps no text of them.
    """

    metrics: dict[str, float | None]
    unit: Literal["percent", "fraction"]
    counts: dict[str, int]
    per_sample: dict[str, dict[str, float]] = field(default_factory=dict)
    denominator: str = ""
    details: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    unread: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Explanation:
    """What was read of one answer under the corrected protocol.

    Attributes:
        text: the answer, or what the file has in its place; None where the file keeps no text of it.
        read: what counts, in words.
        rule: how it was read, or why nothing was.
        true: the ground truth, in words.
    """

    text: str | None
    read: str
    rule: str
    true: str


@dataclass(frozen=True)
class Options:
    """What the user may choose for a scoring run.

    Attributes:
        protocol: "published" (the official script to the letter) or "corrected" (what the metric means).
        variant: one of the benchmark's ``variants``.
        skip_meteor: leave METEOR and what needs it out (None, with a note) instead of asking for Java.
        sentence_model: folder or hub name of all-MiniLM-L6-v2, for sentence similarity; None: look for a local copy.
        seed: of random strings.
    """

    protocol: Protocol
    variant: str
    skip_meteor: bool = False
    sentence_model: str | None = None
    seed: int = 0


@dataclass(frozen=True)
class Layout:
    """Where a benchmark's data lie below a data root, for ``evaluate`` and ``check``.

    Attributes:
        annotations: names below ``folder``; the first that is there counts, plain or with ``.gz``.
        folder: below the data root; the benchmark's name if empty.
        videos: the folder below ``folder`` that the questions' video paths are relative to.
    """

    annotations: tuple[str, ...]
    folder: str = ""
    videos: str = "videos"


@dataclass(frozen=True)
class Setting:
    """How the questions of one wording are asked.

    Attributes:
        sampler: which frames, laid over the sampling that the checkpoint was trained with (``Sampler``).
        record: keys that every question's line gets (docs/annotations.md).
    """

    sampler: Mapping[str, Any] = field(default_factory=dict)
    record: Mapping[str, Any] = field(default_factory=dict)


# As published (published_systems.md#distime-frames). DisTime's evaluation mostly puts no line break between video and
# question.
DISTIME_FRAMES = {"rule": "segments", "num_frames": 16, "pick": "midpoint"}
SETTINGS = {
    "distime": Setting(DISTIME_FRAMES),
    "d2vlm": Setting({"rule": "fps", "fps": 1.0, "max_frames": None}),
    "plain": Setting(),
}
WITHOUT_BREAK = SETTINGS | {"distime": Setting(DISTIME_FRAMES, {"after_video": ""})}


class Benchmark(ABC):
    """One benchmark. Methods in the order of their use; all errors are ``BenchmarkError``."""

    name: ClassVar[str]  # the folder's name
    title: ClassVar[str]  # for tables
    layout: ClassVar[Layout]
    settings: ClassVar[Mapping[str, Setting]] = SETTINGS  # by wording
    variants: ClassVar[tuple[str, ...]] = ("default",)  # the first is the default
    headline: ClassVar[tuple[str, ...]] = ()  # metrics that stand for it in a table of many benchmarks; none: all
    own_truth: ClassVar[bool] = False  # the predictions carry the ground truth: no annotation file is needed to score
    truths: ClassVar[tuple[Form, ...]] = ()  # of annotation files
    forms: ClassVar[tuple[Form, ...]] = ()  # of prediction files; every benchmark reads those of ``answer_forms`` too

    def load(self, path: Path) -> Any:
        """The ground truth of an annotation file in one of the ``truths``, plain or ``.gz``, checked."""
        content = Content.of(path)
        return pick(content, self.truths, f"the annotations of {self.name}").read(content)

    @abstractmethod
    def questions(self, truth: Any, wording: str) -> list[dict]:
        """The lines that ``videollm.infer`` reads (docs/annotations.md: id, video, duration, conversations ending with
        the question, ...), worded for ``wording`` ("d2vlm", "distime" or "plain"). No true time of an answer."""

    def later_questions(self, truth: Any, answers: Mapping[str, AnswerLine], wording: str) -> list[dict]:
        """The lines of a second stage, which stand on the answers to ``questions``; most benchmarks have none."""
        return []

    def asked(self, truth: Any) -> Iterable[Asked]:
        """Every question as the annotations have it, by which other people's answers are found and read."""
        for line in self.questions(truth, "plain"):
            text = line["conversations"][-1]["value"].removeprefix("<video>\n")
            yield Asked(line["id"], line["video"], text, known_length(line.get("duration")))

    @abstractmethod
    def from_answers(self, truth: Any, answers: Mapping[str, AnswerLine], wording: str) -> Any:
        """``videollm.infer`` output lines by id -> a prediction file in the benchmark's official form (JSON data)."""

    def read(self, path: Path | Content, truth: Any) -> Any:
        """Predictions from a file in one of the ``forms``, matched with the truth.

        The commands turn our ``infer`` output into the official form first (``from_answers``), so it need not be known
        here. An answer without a usable prediction is unparsed, an absent one missing; an error is what shows that the
        file is not meant for this truth: unknown or repeated ids, keys that are not there.
        """
        content = Content.of(path)
        return pick(content, self.forms, self.name).read(content, truth)

    @abstractmethod
    def score(self, truth: Any, predictions: Any, options: Options) -> Scores:
        """The metrics. ``truth`` is None where ``own_truth`` and no annotation file was given."""

    def explain(self, truth: Any, predictions: Any, name: str) -> Explanation:
        """What was read of the answer of sample ``name``, under the corrected protocol."""
        raise BenchmarkError(f"--explain: {self.name} does not say how it reads an answer")

    def joined(self, truths: Sequence[Any]) -> Any:
        """One ground truth from those of several annotation files, where a benchmark has several references."""
        need(len(truths) == 1, f"--annotations: {self.name} takes one file, not {len(truths)}")
        return truths[0]

    def keep_texts(self, truth: Any, predictions: Any, texts: Mapping[str, str]) -> None:
        """Note in ``predictions`` the texts of answers by the question's id, where the official form has none."""
        return None


def get(name: str) -> Benchmark:
    """The benchmark of a folder. Raises BenchmarkError listing the known ones."""
    need(name in names(), f"unknown benchmark {name!r}; {nearest(name, names(), noun='benchmarks')}")
    return importlib.import_module(f"all_benchmark_eval.{name}.task").TASK


def names() -> list[str]:
    """Folders with a ``task.py``, without TEMPLATE."""
    here = Path(__file__).parent
    return sorted({path.parent.name for path in here.glob("*/task.py")} - {"TEMPLATE"})


# ---- data ------------------------------------------------------------------------------------------------------------


def find_annotations(task: Benchmark, folder: Path) -> Path:
    """The annotations in a folder laid out as ``task.layout``. Raises BenchmarkError naming what was looked for."""
    places = [folder / f"{name}{end}" for name in task.layout.annotations for end in ("", ".gz")]
    found = next(filter(Path.exists, places), None)
    what = f"no {' or '.join(task.layout.annotations)}, the annotations of {task.title}"
    need(found, f"{folder}: {what}; where to get them: all_benchmark_eval/{task.name}/README.md")
    return found


def data_folder(task: Benchmark, root: Path) -> Path:
    """Where a benchmark's data lie below a data root."""
    return root / (task.layout.folder or task.name)


# ---- files -----------------------------------------------------------------------------------------------------------


def answer_lines(source: Path | Rows, needed: Sequence[str] = NEEDED) -> Iterator[tuple[str, AnswerLine]]:
    """(FILE:LINE, answer) of every line of an ``infer`` output. Raises BenchmarkError for a line without ``needed``."""
    for where, row in read_lines(source) if isinstance(source, Path) else source:
        try:
            yield where, AnswerLine.from_json(row, needed)
        except ValueError as error:
            raise BenchmarkError(f"{where}: not an output line of videollm.infer ({error})") from None


def read_answers(source: Path | Rows) -> dict[str, AnswerLine]:
    """The lines of an ``infer`` output by id. Raises BenchmarkError for a line that is none, or stands twice."""
    answers: dict[str, AnswerLine] = {}
    for where, answer in answer_lines(source):
        need(answer.id not in answers, f"{where}: the id {answer.id!r} stands twice")
        answers[answer.id] = answer
    return answers


def worded(wordings: Mapping[str, Any], wording: str) -> Any:
    """The entry of a task's table of wordings; where it has none of a released model's, the plain one.

    Raises BenchmarkError listing the known ones.
    """
    need(wording in wordings or wording in STYLES, f"unknown wording {wording!r}; known: {', '.join(wordings)}")
    return wordings[wording if wording in wordings else "plain"]


def sha256(path: Path) -> str:
    """Of a file's bytes as they lie on disk; of a folder, of the names and sums of its files."""
    path = Path(path)
    if path.is_dir():
        lines = (f"{f.relative_to(path)} {sha256(f)}\n" for f in sorted(path.rglob("*")) if f.is_file())
        return hashlib.sha256("".join(lines).encode()).hexdigest()
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all. Raises BenchmarkError where it cannot be written."""
    try:
        files.write_text(path, text, shared=True)
    except OSError as error:
        raise BenchmarkError(f"{path}: cannot be written ({error}); choose another file") from None
