"""One question about one video as a record, and its answer described in words and drawn on the video's timeline.

What the user types stays literal, so a ``<span>`` or ``<video>`` in it is text. Knows no model and no annotation files.
"""

from pathlib import Path

import numpy as np
from PIL import Image

from videollm.common.answers import AnswerLine, span_text
from videollm.data import Record
from videollm.data.conversation import Turn, VisualMark
from videollm.inference.options import check_question
from videollm.inference.timeline import MAX_FRAMES, timeline
from videollm.video.read import read_video
from videollm.video.sampling import Sampler

ENDS = {"length": "generate.max_new_tokens", "time": "generate.time_limit_s"}  # what has cut an answer off
PICTURE_HEIGHT = 180  # pixels of a frame in the picture


def make_record(video: str, question: str, ident: str = "ask") -> Record:
    """A record that asks ``question`` about ``video`` (a path below the reader's root), marks in it left as text.

    Raises:
        ConfigError: there is no question, or it is no text.
    """
    check_question(question)
    turns = (Turn("user", (VisualMark(0), question)),)
    return Record(
        id=ident, video=video, images=(), duration_s=None, turns=turns, spans_s=(), task="", source="", extra={},
        line=1, path="--question",
    )  # fmt: skip


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
    if line.finish_reason in ENDS:
        rows.append(f"the answer was cut off: raise {ENDS[line.finish_reason]}")
    return "\n".join(rows)


def draw(path: str | Path, video: str | Path, line: AnswerLine) -> None:
    """Write a PNG of the video's frames above the spans of an answer line."""
    sampler = Sampler(rule="segments", num_frames=MAX_FRAMES)
    frames = read_video(video, sampler, resize=small)
    spans = {"answer": line.spans}
    if line.evidence_spans:
        spans["evidence"] = line.evidence_spans
    shown, texts = list(frames.pixels.numpy()), {"answer": line.text}
    timeline(path, shown, frames.times_s, frames.duration_s, {}, spans, line.question, texts)


def small(frame: np.ndarray, frames: int = 1) -> np.ndarray:
    """One RGB frame [H, W, 3] at the picture's size."""
    height, width = frame.shape[:2]
    size = (max(1, round(width * PICTURE_HEIGHT / height)), PICTURE_HEIGHT)
    return np.asarray(Image.fromarray(frame).resize(size))
