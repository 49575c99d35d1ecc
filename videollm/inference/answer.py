"""Questions become lines of answers, in rows that are never left empty; every video goes through the tower once.

In: a bundle, records and a reader of their videos; out: a line a question, as it is answered, and what it cost in
``Speed``. What is asked together comes from plan.py, who is answered in which row from rows.py. Knows neither files of
answers nor ranks.
"""

import gc
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from videollm.batches.dataset import Item
from videollm.batches.reader import VisualReader
from videollm.checkpoint import Bundle
from videollm.common.answers import AnswerLine
from videollm.common.processes import out_of_memory
from videollm.data import Record
from videollm.heads import Answer
from videollm.inference.plan import Alike, Asked, VideoGroups, plan, read_ahead
from videollm.inference.rows import Question, Seating
from videollm.model.cache import row_bytes
from videollm.model.generate import GenerateOptions
from videollm.model.towers import CHUNK, CompiledTower, encode_frames, encode_patches
from videollm.video.patching import Grid


@dataclass
class Speed:
    """What one process did: answers and errors, generated tokens, seconds in all and those it waited for videos."""

    questions: int = 0
    tokens: int = 0
    seconds: float = 0.0
    wait_s: float = 0.0


def answer_records(
    bundle: Bundle,
    records: Sequence[Record],
    reader: VisualReader,
    options: GenerateOptions,
    *,
    batch_size: int = 8,
    workers: int = 0,
    progress: bool = False,
    asked: Sequence[Alike] | None = None,
    speed: Speed | None = None,
    so_far: bool = False,
) -> Iterator[AnswerLine]:
    """Answer every record, or those of ``asked``, ``batch_size`` at a time; lines come as answers end.

    One whose video cannot be read gives a line with ``error``. With ``so_far`` lines come at every look, too, those of
    answers that go on without a ``finish_reason``. Questions about one video stand together, and so do
    those that are decoded alike: see ``plan.plan``. The model keeps the mode and device it has.
    """
    if asked is None:
        asked = [alike for unit in plan(records, options, batch_size) for alike in unit]
    context = bundle.config.context_length
    asked = [[(record, own.within(context)) for record, own in alike] for alike in asked]
    answerer = Answerer(bundle, any(own.compile_tower for alike in asked for _, own in alike))
    groups = read_ahead(
        VideoGroups(bundle, records, reader, asked), batch_size, workers, answerer.device.type == "cuda"
    )
    speed, ready = speed or Speed(), {}
    waiting = timed(groups, speed)
    start, total = time.perf_counter(), sum(map(len, asked))
    with tqdm(total=total, unit="question", disable=not progress, desc="answering") as bar:
        for alike in asked:
            ready_ones, rows = encoded(alike, ready, waiting, answerer), min(batch_size, len(alike))
            for line, tokens in answerer.answer(ready_ones, of_any(alike), rows, so_far):
                if line.finish_reason:
                    speed.questions, speed.tokens = speed.questions + 1, speed.tokens + tokens
                    speed.seconds += time.perf_counter() - start
                    start = time.perf_counter()
                    bar.update()
                yield line


def of_any(alike: Alike) -> GenerateOptions:
    """The options of questions that are decoded alike, with the bounds of all in ``max_`` and ``min_new_tokens``."""
    bounds = {f"{of}_new_tokens": max(getattr(own, f"{of}_new_tokens") for _, own in alike) for of in ("max", "min")}
    return replace(alike[0][1], **bounds)


def encoded(alike: Alike, ready: dict[str, Item], groups: Iterator[Asked], answerer: "Answerer") -> Iterator[Question]:
    """The questions, each as soon as its video has been through the tower; what comes with it waits in ``ready``."""
    for record, own in alike:
        while record.id not in ready:
            group = next(groups)
            answerer.encode(group)
            ready |= {item.ids[0]: item for item in group.items}
        yield Question(record, ready.pop(record.id), own)


def timed(groups: Iterable[Asked], speed: Speed) -> Iterator[Asked]:
    """The groups; the time until each is there goes to ``speed.wait_s``."""
    start = time.perf_counter()
    for group in groups:
        speed.wait_s += time.perf_counter() - start
        yield group
        start = time.perf_counter()


def taken(lines: list) -> Iterator:
    """The lines in order, which are then gone from the list."""
    while lines:
        yield lines.pop(0)


def free_memory() -> None:
    """Give back what a failed attempt has left."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class Answerer:
    """Encodes videos and answers questions on the model's device; what does not fit is tried in smaller pieces."""

    def __init__(self, bundle: Bundle, compiled: bool):
        self.bundle, self.chunk = bundle, CHUNK  # halved where it does not fit
        self.tower = CompiledTower(bundle.model.vision_tower) if compiled else bundle.model.vision_tower
        self.device = next(bundle.model.parameters()).device

    def encode(self, group: Asked) -> None:
        """The tower's features of a group, computed once, into all of its items."""
        made: dict[bytes, Tensor] = {}
        try:
            own = group.features
            shared = self.features(group.pixels, group.grids) if own is None else own.to(self.device)
            for item in group.items:
                if item.pixels is not None:
                    item.features, item.pixels = self.features(item.pixels, item.grids), None
                elif item.features is None and shared is not None and not item.bad:
                    item.features = self.thinned(shared, item.kept, made)
            return
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
        free_memory()
        for item in group.items:
            item.bad = item.bad or "its frames do not fit into memory, one at a time; lower sampler.num_frames or fps"

    def thinned(self, shared: Tensor, kept: np.ndarray | None, made: dict[bytes, Tensor]) -> Tensor:
        """The ``kept`` rows of ``features``, one tensor (in ``made``) for all questions that keep the same ones."""
        if kept is None:
            return shared
        if kept.tobytes() not in made:
            made[kept.tobytes()] = shared[torch.as_tensor(kept, device=self.device)]
        return made[kept.tobytes()]

    def features(self, pixels: Tensor | None, grids: list[Grid]) -> Tensor | None:
        """Frames as they travel -> [F, P, Dv], those of any size with their grids -> [T, Dv]; raises out of memory only
        where one frame at a time does not fit."""
        if pixels is None:
            return None
        model = self.bundle.model
        while True:
            try:
                pixels = pixels.to(self.device, non_blocking=True)
                if grids:
                    prepare = model.as_the_tower_takes
                    return encode_patches(self.tower, pixels, np.asarray(grids), self.chunk, prepare)
                return encode_frames(self.tower, pixels, self.chunk, model.as_the_tower_takes)
            except RuntimeError as error:
                if not out_of_memory(error) or self.chunk == 1:
                    raise
            free_memory()
            self.chunk //= 2

    def answer(
        self, questions: Iterator[Question], options: GenerateOptions, number: int, so_far: bool = False
    ) -> Iterator[tuple[AnswerLine, int]]:
        """A line for every question, as it is answered, and how many tokens were generated for it; with ``so_far`` also
        at every look before.

        ``number`` are answered at a time. Where they do not fit into memory, half as many are, and the others wait.
        """
        unasked: list[tuple[AnswerLine, int]] = []
        tried: dict[str, Question] = {}  # those that have no answer yet, in order

        def readable() -> Iterator[Question]:
            yield from list(tried.values())
            for question in questions:
                if question.item.bad:
                    unasked.append((error_line(question.record, question.item.bad), 0))
                    continue
                tried[question.record.id] = question
                yield question

        rows, full = number, True
        while full:
            full = False
            try:
                for question, answer, reason in Seating(self.bundle, options, rows).run(readable(), so_far):
                    if reason:
                        del tried[question.record.id]
                    yield answer_line(question.record, answer, reason, question.item), answer.tokens
                    yield from taken(unasked)
            except RuntimeError as error:
                full = out_of_memory(error)
                if not full:
                    raise
            if full:
                free_memory()  # here the failed attempt's tensors are out of reach
                if rows == 1:
                    unasked.append((self.too_large(tried.pop(next(iter(tried)))), 0))
                rows = rows // 2 or number
            yield from taken(unasked)

    def too_large(self, question: Question) -> AnswerLine:
        """The line of a question that does not fit into memory with nobody beside it."""
        item, model = question.item, self.bundle.model
        places = item.longest + question.options.max_new_tokens
        size = row_bytes(model.language_model.config, places, model.dtype) / 2**20
        frames = item.frames or len(item.times_s)
        what = f"{frames} frames and {item.longest} tokens, whose keys and values take {size:.0f} MiB"
        remedy = "lower sampler.num_frames, sampler.fps or generate.max_new_tokens"
        return error_line(question.record, f"does not fit into memory with {what}; {remedy}")


def answer_line(record: Record, answer: Answer, reason: str, item: Item) -> AnswerLine:
    """One output line; times rounded to the millisecond."""
    return AnswerLine(
        id=record.id, video=record.video, question=record.question,
        text=answer.text, raw_text=answer.raw_text,
        spans=[[round(s, 3), round(e, 3)] for s, e in answer.spans],
        evidence_spans=[[round(s, 3), round(e, 3)] for s, e in answer.evidence_spans],
        scores=[round(s, 4) for s in answer.scores],
        duration=round(item.duration_s, 3), finish_reason=reason, frames=item.frames or len(item.times_s),
        thinned=item.thinned, error=None,
    )  # fmt: skip


def error_line(record: Record, reason: str) -> AnswerLine:
    """The output line of a question that could not be asked."""
    return AnswerLine(
        id=record.id, video=record.video, question=record.question, text="", raw_text="", spans=[], evidence_spans=[],
        duration=record.duration_s, finish_reason="error", error=reason,
    )  # fmt: skip
