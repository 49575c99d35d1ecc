"""One question about one video: asked, described in words, drawn on the video's timeline.

The question goes the way of every other one, through ``answer_records``; what the user types stays literal, so a
``<span>`` or ``<video>`` in it is text. Knows no annotation files, no sharding and no benchmark.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from videollm.batches.reader import VisualReader
from videollm.checkpoint import Bundle
from videollm.common.answers import AnswerLine, span_text
from videollm.common.config import build
from videollm.data import Record
from videollm.data.conversation import Turn, VisualMark
from videollm.inference.answer import answer_records
from videollm.inference.explain import explain
from videollm.inference.options import check_question, kept_generate
from videollm.inference.timeline import MAX_FRAMES, timeline
from videollm.model.generate import GenerateOptions
from videollm.video.decode import VideoError
from videollm.video.read import read_video
from videollm.video.sampling import Sampler

PICTURE_HEIGHT = 180  # pixels of a frame in the picture


@dataclass
class AskOptions:
    """How one question is asked; ``sampler`` is laid over the checkpoint's own."""

    generate: GenerateOptions = field(default_factory=GenerateOptions)
    sampler: dict = field(default_factory=dict)


def make_record(video: str, question: str) -> Record:
    """A record that asks ``question`` about ``video`` (a path below the reader's root), marks in it left as text.

    Raises:
        ConfigError: there is no question, or it is no text.
    """
    check_question(question)
    turns = (Turn("user", (VisualMark(0), question)),)
    return Record(
        id="ask", video=video, images=(), duration_s=None, turns=turns, spans_s=(), task="", source="", extra={},
        line=1, path="--question",
    )  # fmt: skip


def ask(bundle: Bundle, video: str | Path, question: str, options: AskOptions | None = None) -> AnswerLine:
    """Answer one question; the line of ``answer_records``. The model keeps its device.

    Without ``options`` it is asked as it was trained to be.

    Raises:
        ConfigError: no question, options that do not fit the model, or a question too long for it.
        VideoError: the video cannot be read.
    """
    options = options or AskOptions(build(GenerateOptions, kept_generate(bundle.config), "generate"))
    reader, record = reader_of(bundle, video, options), make_record(Path(video).resolve().name, question)
    (line,) = answer_records(bundle, [record], reader, options.generate)
    if line.error:
        raise VideoError(line.error)
    return line


def seen_of(bundle: Bundle, video: str | Path, question: str, options: AskOptions) -> str:
    """What the model gets for a question, for people; see ``explain``. ConfigError as of ``ask``."""
    reader, record = reader_of(bundle, video, options), make_record(Path(video).resolve().name, question)
    return explain(bundle, record, reader, options.generate)


def reader_of(bundle: Bundle, video: str | Path, options: AskOptions) -> VisualReader:
    """Reads ``video``. A link to a video elsewhere is fine: its root is where it really lies."""
    sampler = build(Sampler, bundle.config.sampler | options.sampler, "sampler")
    return bundle.reader(Path(video).resolve().parent, sampler)


def describe(line: AnswerLine) -> str:
    """An answer line as text for people: the answer, its spans with their scores, the evidence."""
    rows = [line.text or "(empty answer)", ""]
    for name, spans, scores in (("spans", line.spans, line.scores), ("evidence spans", line.evidence_spans, None)):
        if not spans and scores is None:
            continue
        rows.append(f"{name}:" if spans else "spans: none")
        for k, span in enumerate(spans):
            score = "" if scores is None else f"  score {scores[k]:.2f}"
            rows.append(f"  {k + 1}. {span_text(*span)}{score}")
    if line.thinned:
        rows.append(
            f"the model's context has room for {line.frames} of the {line.frames + line.thinned} frames that the "
            "sampler chose; they were thinned uniformly"
        )
    if line.finish_reason == "length":
        rows.append("the answer was cut off: raise generate.max_new_tokens")
    return "\n".join(rows)


def draw(path: str | Path, video: str | Path, line: AnswerLine) -> None:
    """Write a PNG of the video's frames above the spans of an answer line."""
    sampler = Sampler(rule="segments", num_frames=MAX_FRAMES)
    frames = read_video(video, sampler, resize=small)
    spans = {"answer": line.spans}
    if line.evidence_spans:
        spans["evidence"] = line.evidence_spans
    timeline(path, list(frames.pixels.numpy()), frames.times_s, frames.duration_s, {}, spans, line.question)


def small(frame: np.ndarray, frames: int = 1) -> np.ndarray:
    """One RGB frame [H, W, 3] at the picture's size."""
    height, width = frame.shape[:2]
    size = (max(1, round(width * PICTURE_HEIGHT / height)), PICTURE_HEIGHT)
    return np.asarray(Image.fromarray(frame).resize(size))
