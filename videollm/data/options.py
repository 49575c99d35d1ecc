"""How a question is asked, beside its words: what of the video is looked at, and how the answer is produced.

In: the keys ``bound``, ``frames``, ``after_video`` and ``generate`` of an annotation line (docs/annotations.md); out:
``Asking``, and back. Most records have none of them. ``GenerateOptions`` are those of a whole run; what a record's own
``generate`` may hold is checked by ``videollm.infer``. Seconds here; it knows no files, sampling rules or models.
"""

import importlib.util
import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from videollm.common.config import need, needs
from videollm.common.files import Bad
from videollm.video.view import WHOLE, FrameFolder, View

KEYS = ("bound", "frames", "after_video", "generate")
NO_GRAPHS = "generate.graphs: true, but only a GPU records steps; set it to false here"
MOST_TOKENS = 512  # of an answer, by default


@dataclass(frozen=True)
class Asking:
    """``after_video``: the text between the video and what follows it, None: the model's own (mostly a newline).

    ``generate``: decoding options of this record, over those of the run.
    """

    view: View = WHOLE
    after_video: str | None = None
    generate: Mapping[str, Any] = field(default_factory=dict)


def parse_asking(item: Mapping[str, Any], duration_s: float | None) -> Asking:
    """The four keys of an annotation line; a key that is left out or null means its default.

    Raises:
        Bad: a value of another form, a key for a record without a video, or a bound beside the video.
    """
    given = {key: item[key] for key in KEYS if item.get(key) is not None}
    for key in ("bound", "frames", "after_video"):
        if key in given and item.get("video") is None:
            raise Bad("for a record without a video", key, "name the video, or leave the key out")
    after, generate = given.get("after_video"), given.get("generate", {})
    if not isinstance(after, str | None):
        raise Bad(f"{after!r:.40} is no text", "after_video", 'write a string, such as "" or "\\n"')
    if not isinstance(generate, dict):
        raise Bad(f"{generate!r:.40} is no object", "generate", 'write {"repetition_penalty": 1.2}')
    bound = _bound(given["bound"], duration_s) if "bound" in given else None
    return Asking(View(bound, _frames(given["frames"]) if "frames" in given else None), after, generate)


def asking_json(asking: Asking) -> dict[str, Any]:
    """The keys as they stand in an annotation line; parsing them gives an equal ``Asking``."""
    view, found = asking.view, {}
    if view.bound_s is not None:
        found["bound"] = list(view.bound_s)
    if view.frames is not None:
        found["frames"] = {"fps": view.frames.fps, "first": view.frames.first}
    if asking.after_video is not None:
        found["after_video"] = asking.after_video
    return found | ({"generate": dict(asking.generate)} if asking.generate else {})


def _bound(value: Any, duration_s: float | None) -> tuple[float, float]:
    if not isinstance(value, list) or len(value) != 2 or not all(map(_is_number, value)):
        raise Bad(f"{value!r:.60} is not [start, end]", "bound", "write two numbers of seconds")
    start, end = map(float, value)
    if start > end:
        raise Bad(f"the start {start:g} is behind the end {end:g}", "bound", "write the start first")
    if end < 0 or (duration_s is not None and start > duration_s):
        video = "starts at 0 s" if end < 0 else f"has {duration_s:g} s"
        raise Bad(f"[{start:g}, {end:g}] lies outside the video, which {video}", "bound", "correct it")
    return start, end


def _frames(value: Any) -> FrameFolder:
    if not isinstance(value, dict) or not {"fps"} <= value.keys() <= {"fps", "first"}:
        raise Bad(f"{value!r:.60} is not a kind of folder", "frames", 'write {"fps": 3, "first": 1}')
    fps, first = value["fps"], value.get("first", 1)
    if not _is_number(fps) or fps <= 0:
        raise Bad(f"{fps!r:.40} is no number of frames a second", "frames.fps", "write a number above 0")
    if isinstance(first, bool) or not isinstance(first, int) or first < 0:
        raise Bad(f"{first!r:.40} is no number of a file", "frames.first", "write a whole number from 0 on")
    return FrameFolder(float(fps), first)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e15 and math.isfinite(value)


@dataclass
class GenerateOptions:
    """How answers are produced; the defaults are greedy and therefore reproducible."""

    max_new_tokens: int | None = None  # by default 512; where the context has no room for so many, a quarter of it
    min_new_tokens: int = 0  # before them an answer does not stop
    time_limit_s: float | None = None  # from its prompt's pass on; then an answer ends with what there is of it
    do_sample: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    draw_spans: bool = False  # when sampling: spans too are drawn by the head, with the temperature, not its best ones
    seed: int = 0  # of sampling; with the question's id it decides on every draw
    repetition_penalty: float = 1.0  # of words in prompt and answer; never of span tokens: an answer may hold many
    compile_tower: bool = False  # a frozen tower goes through torch.compile, in few numbers of frames
    graphs: bool = False  # on a GPU: a step's operations are recorded and replayed, instead of launched one by one
    encode_spans: bool = True  # span tokens of question and history stand for their times; published DisTime: do not

    def __post_init__(self):
        least, most = self.min_new_tokens, self.max_new_tokens
        above = {name: getattr(self, name) for name in ("temperature", "repetition_penalty", "time_limit_s")}
        needs(
            (most is None or most >= 1, f"generate.max_new_tokens: {most}, but it must be at least 1"),
            (
                0 <= least <= (most or least),
                f"generate.min_new_tokens: {least}, but it must be from 0 to generate.max_new_tokens",
            ),
            *(
                (v is None or 0 < v < math.inf, f"generate.{k}: {v}, but it must be above 0 and finite")
                for k, v in above.items()
            ),
            (0 < self.top_p <= 1, f"generate.top_p: {self.top_p} is not in (0, 1]"),
            (
                self.do_sample or not self.draw_spans,
                "generate.draw_spans: draws only when sampling; set generate.do_sample=true, or leave it out",
            ),
        )

    def check_machine(self, gpu: bool) -> None:
        """ConfigError for what this machine, with or without a ``gpu``, cannot do."""
        need(gpu or not self.graphs, NO_GRAPHS)
        compiler = os.environ.get("CXX") or "g++"  # of code for a CPU, and of what starts a GPU's kernels
        lacking = [] if shutil.which(compiler) else [compiler]
        lacking += ["triton"] * (gpu and importlib.util.find_spec("triton") is None)
        needed = f"{' and '.join(lacking)} is missing, which torch.compile needs; install it, or set it to false"
        need(not lacking or not self.compile_tower, f"generate.compile_tower: true, but {needed}")

    @property
    def of_all(self) -> "GenerateOptions":
        """What has to be the same for answers that are made beside each other; the rest is each one's own."""
        return replace(self, max_new_tokens=None, min_new_tokens=0, seed=0, time_limit_s=None)

    def within(self, context: int) -> "GenerateOptions":
        """The options for a model that takes ``context`` tokens."""
        if self.max_new_tokens is not None:
            return self
        return replace(self, max_new_tokens=MOST_TOKENS if context > MOST_TOKENS else max(1, context // 4))
