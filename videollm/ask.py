"""One video, one question, one answer: as text with its times, and as a picture of the timeline.

``python -m videollm.ask --model DIR --video FILE --question TEXT [--output timeline.png] [key=value ...]``. The
question goes the way of every other one, through ``answer_records``; what the user types stays literal, so a
``<span>`` or ``<video>`` in it is text. Knows no annotations, no sharding and no benchmark.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from videollm.answering import answer_records
from videollm.checkpoint.bundle import Bundle
from videollm.checkpoint.load import load
from videollm.checkpoint.tensors import CheckpointError
from videollm.common.command import tell, usable_device
from videollm.common.config import ConfigError, build, override
from videollm.data.annotations import AnnotationError
from videollm.data.conversation import Turn, VisualMark
from videollm.data.record import Record
from videollm.heads.interface import span_text
from videollm.model.generate import GenerateOptions
from videollm.plots import MAX_FRAMES, timeline
from videollm.video.decode import VideoError, probe
from videollm.video.read import read_video
from videollm.video.sampling import Sampler

PICTURE_HEIGHT = 180  # pixels of a frame in the picture


@dataclass
class AskOptions:
    """What ``key=value`` may set; ``sampler`` is laid over the checkpoint's own."""

    generate: GenerateOptions = field(default_factory=GenerateOptions)
    sampler: dict = field(default_factory=dict)


def make_record(video: str, question: str) -> Record:
    """A record that asks ``question`` about ``video`` (a path below the reader's root), marks in it left as text.

    Raises:
        ConfigError: there is no question.
    """
    if not question.strip():
        raise ConfigError("--question: it is empty; ask something")
    turns = (Turn("user", (VisualMark(0), question)),)
    return Record(
        id="ask", video=video, images=(), duration_s=None, turns=turns, spans_s=(), task="", source="", extra={},
        line=1, path="--question",
    )  # fmt: skip


def ask(bundle: Bundle, video: str | Path, question: str, options: AskOptions | None = None) -> dict:
    """Answer one question; the line of ``answer_records``. The model keeps its device.

    Raises:
        ConfigError: no question, options that do not fit the model, or a question too long for it.
        VideoError: the video cannot be read.
    """
    options = options or AskOptions()
    context = bundle.config.context_length
    if options.generate.max_new_tokens >= context:
        raise ConfigError(
            f"generate.max_new_tokens: {options.generate.max_new_tokens} leave no room for the question in the model's "
            f"{context} tokens; set generate.max_new_tokens={context // 4}"
        )
    video = Path(video).resolve()  # a link to a video elsewhere is fine: its root is where it really lies
    reader = bundle.reader(video.parent, build(Sampler, bundle.config.sampler | options.sampler, "sampler"))
    (line,) = answer_records(bundle, [make_record(video.name, question)], reader, options.generate)
    if line["error"]:
        raise VideoError(line["error"])
    return line


def describe(line: dict) -> str:
    """An answer line as text for people: the answer, its spans with their scores, the evidence."""
    rows = [line["text"] or "(empty answer)", ""]
    for name, scores in (("spans", line["scores"]), ("evidence_spans", None)):
        spans = line[name]
        if not spans and scores is None:
            continue
        rows.append(f"{name.replace('_', ' ')}:" if spans else "spans: none")
        for k, span in enumerate(spans):
            score = "" if scores is None else f"  score {scores[k]:.2f}"
            rows.append(f"  {k + 1}. {span_text(*span)}{score}")
    if line["finish_reason"] == "length":
        rows.append("the answer was cut off: raise generate.max_new_tokens")
    return "\n".join(rows)


def draw(path: str | Path, video: str | Path, line: dict) -> None:
    """Write a PNG of the video's frames above the spans of an answer line."""
    sampler = Sampler(rule="segments", num_frames=MAX_FRAMES)
    frames = read_video(video, sampler, resize=small)
    spans = {"answer": line["spans"]}
    if line["evidence_spans"]:
        spans["evidence"] = line["evidence_spans"]
    timeline(path, list(frames.pixels.numpy()), frames.times_s, frames.duration_s, {}, spans, line["question"])


def small(frame: np.ndarray) -> np.ndarray:
    """One RGB frame [H, W, 3] at the picture's size."""
    height, width = frame.shape[:2]
    size = (max(1, round(width * PICTURE_HEIGHT / height)), PICTURE_HEIGHT)
    return np.asarray(Image.fromarray(frame).resize(size))


# ---- the command -----------------------------------------------------------------------------------------------------


def check_video(path: str) -> None:
    """See that the video can be read, before a model is loaded for it.

    Raises:
        VideoError: not a readable video, or a picture.
    """
    if Path(path).is_file() and is_picture(path):
        raise VideoError(
            f"{path}: is a picture, which has no time to ask about; give a video, or ask about pictures with "
            "videollm.infer and an annotation that has `image` (docs/annotations.md)"
        )
    probe(path)


def is_picture(path: str) -> bool:
    """Whether a file is a still image."""
    try:
        with Image.open(path) as image:  # Pillow also names MPEG files, without reading them
            return image.format != "MPEG" and not getattr(image, "is_animated", False)
    except Image.DecompressionBombError:
        return True
    except (OSError, ValueError, SyntaxError):
        return False


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="videollm.ask", description="Ask one question about one video.")
    parser.add_argument("--model", required=True, help="checkpoint folder")
    parser.add_argument("--video", required=True, help="video file")
    parser.add_argument("--question", required=True, help="what to ask, in the words the model was trained on")
    parser.add_argument("--output", type=Path, help="PNG of the answer on the video's timeline")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="generate.max_new_tokens=64 sampler.fps=2")
    return parser.parse_intermixed_args(argv)


def run(args: argparse.Namespace) -> None:
    """Check what was given, load, ask, print, draw."""
    options = build(AskOptions, override({}, args.overrides))
    if args.output is not None and args.output.suffix.lower() != ".png":
        raise ConfigError(f"--output: {args.output} is not named .png; the picture is a PNG file")
    device = usable_device(args.device)
    check_video(args.video)
    bundle = load(args.model)
    bundle.model.to(device)
    line = ask(bundle, args.video, args.question, options)
    print(describe(line))
    if args.output is not None:
        draw(args.output, args.video, line)
        print(f"picture: {args.output}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; a user's error is one line and exit status 2."""
    try:
        run(arguments(argv))
    except (AnnotationError, CheckpointError, ConfigError, VideoError, OSError) as error:
        return tell(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
