"""A loaded model that is asked about videos: from a Python program, the command line and the demo.

In: videos by path, questions as text, options by the names of the command line. Out: ``AnswerLine``s, whole or as they
grow. Questions go the way of all others, through ``answer_records``. Knows no annotation files, no sharding and no
benchmark.
"""

import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from videollm.batches.reader import VisualReader
from videollm.checkpoint import Bundle, load, read_config
from videollm.common.answers import AnswerLine, Span
from videollm.common.command import usable_device
from videollm.common.config import merge, need, unknown
from videollm.common.files import check_path
from videollm.data import Record
from videollm.inference.answer import answer_records
from videollm.inference.explain import explain
from videollm.inference.options import PRECISIONS, Options, options_of, refuse_picture
from videollm.inference.question import make_record
from videollm.video.decode import VideoError

BY_CALL = ("sampler", "preprocess", "generate")  # options that a single call may set

Video = str | os.PathLike[str]


@dataclass(frozen=True)
class Piece:
    """What an answer has got since its last piece: text and spans. The texts of all pieces are the answer's text.

    ``answer`` is all of it so far; its ``finish_reason`` is empty until the last piece. Should a model take back what
    it had said (evidence that ends behind text), the piece has all of the answer once more, on a new line.
    """

    text: str
    spans: list[Span]  # [[start, end], ...] in seconds
    answer: AnswerLine


def open_session(
    model: str | Path, given: dict | None = None, device: str | None = None, precision: str | None = None
) -> "Session":
    """Load a checkpoint folder or hub name onto ``device`` (by default a GPU where there is one).

    Raises:
        ConfigError: an unknown option or precision, or a device that is not there.
        CheckpointError: no checkpoint of this project, or an incomplete one.
    """
    check_path(model, "model")
    where = usable_device(device)
    need(precision in (None, *PRECISIONS), unknown("precision", precision, list(PRECISIONS)))
    options = options_of(given or {}, read_config(model), where, precision)
    bundle = load(model, head=options.head, dtype=PRECISIONS[options.precision])
    bundle.model.to(where)
    return Session(bundle, given)


class Session:
    """A model to ask. Its methods may be called from several threads: they take turns at the model.

    Options of a call (``sampler``, ``preprocess`` and ``generate``, each a mapping) are laid over those of the session,
    and these over the checkpoint's own.
    """

    def __init__(self, bundle: Bundle, given: dict | None = None):
        need(
            isinstance(bundle, Bundle),
            f"bundle: {bundle!r:.60} is no loaded model; videollm.load(FOLDER) gives a Session",
        )
        self.bundle, self.given, self.turn = bundle, given or {}, threading.RLock()

    def ask(self, video: Video, question: str, **options: dict) -> AnswerLine:
        """The answer to one question about a video file.

        Raises:
            ConfigError: no question, or an option that is unknown or does not fit the model.
            VideoError: the video cannot be read, or the question does not fit beside it.
        """
        (line,) = self.ask_many([(video, question)], **options)
        if line.error:
            raise VideoError(line.error)
        return line

    def ask_many(
        self, asked: Iterable[tuple[Video, str]], *, batch_size: int = 8, workers: int = 0, **options: dict
    ) -> list[AnswerLine]:
        """The answers to (video, question) pairs, in their order; every video is read and encoded once.

        A video that cannot be read gives an answer with ``error``, so that the others are not lost.

        Args:
            asked: pairs of a video file and a question about it, in a list or as an iterator gives them.
            batch_size: questions answered at a time.
            workers: processes that read videos meanwhile; 0: none.
            options: of this call.

        Raises:
            ConfigError: an empty question, an option that is unknown or does not fit the model, or a wrong number.
            VideoError: a picture in place of a video.
        """
        need(isinstance(asked, Iterable), f"asked: {asked!r:.60} is no list of pairs (video, question)")
        asked = list(asked)
        for k, pair in enumerate(asked):
            is_pair = isinstance(pair, tuple | list) and len(pair) == 2
            need(is_pair, f"asked[{k}]: {pair!r:.200} is no pair (video, question)")
        for name, value, least in (("batch_size", batch_size, 1), ("workers", workers, 0)):
            need(type(value) is int and value >= least, f"{name}: {value!r} is not a whole number from {least}")
        if not asked:
            return []
        records, reader, how = self.prepared(asked, options)
        rest = {"batch_size": batch_size, "workers": workers}
        with self.turn:
            lines = {line.id: line for line in answer_records(self.bundle, records, reader, how.generate, **rest)}
        return [lines[record.id] for record in records]

    def stream(self, video: Video, question: str, **options: dict) -> Iterator[Piece]:
        """The answer of ``ask`` in pieces, as they are made; errors as of ``ask``, when the first piece is asked for.

        Who stops early has the answer so far in the last piece; the model is free for others between two pieces.
        """
        records, reader, how = self.prepared([(video, question)], options)
        lines = answer_records(self.bundle, records, reader, how.generate, so_far=True)
        text, spans = "", 0
        try:
            while line := self.next_of(lines):
                if line.error:
                    raise VideoError(line.error)
                again = not line.text.startswith(text)
                new, found = ("\n" + line.text, line.spans) if again else (line.text[len(text) :], line.spans[spans:])
                text, spans = line.text, len(line.spans)
                if new or found or line.finish_reason:
                    yield Piece(new, found, line)
        finally:
            with self.turn:
                lines.close()

    def next_of(self, lines: Iterator[AnswerLine]) -> AnswerLine | None:
        """The next line, made while nobody else has the model; None behind the last."""
        with self.turn:
            return next(lines, None)

    def seen(self, video: Video, question: str, **options: dict) -> str:
        """What the model gets for a question, for people: see ``explain``.

        A video that cannot be read is told in this text; other errors are as of ``ask``.
        """
        (record,), reader, how = self.prepared([(video, question)], options)
        return explain(self.bundle, record, reader, how.generate)

    def prepared(self, asked: Sequence[tuple[Video, str]], given: dict) -> tuple[list[Record], VisualReader, Options]:
        """Records of the questions, a reader of their videos, and how they are asked.

        A link to a video elsewhere is fine: the reader's root is above where they really lie.
        """
        for key in given:
            need(key in BY_CALL, f"{key}: unknown option of a call; known are {', '.join(BY_CALL)}")
        for video, _ in asked:
            check_path(video, "video")
        bundle, device = self.bundle, next(self.bundle.model.parameters()).device
        how = options_of(merge(self.given, given), bundle.config, device)
        paths = [Path(video).resolve() for video, _ in asked]
        for path in set(paths):
            refuse_picture(path)
        root = os.path.commonpath([path.parent for path in paths])
        records = [
            make_record(os.path.relpath(path, root), question, f"ask {k}" if k else "ask")
            for k, (path, (_, question)) in enumerate(zip(paths, asked, strict=True))
        ]
        return records, bundle.reader(root, how.sampler, how.preprocess), how
