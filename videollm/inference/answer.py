"""Batches of questions become lines of answers: every video through the tower once, batches that do not fit split.

In: a bundle, records and a reader of their videos; out: a line a question, as it is answered, and what it cost in
``Speed``. The batches come from plan.py. Knows neither files of answers nor ranks.
"""

import gc
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

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
from videollm.model.generate import GenerateOptions
from videollm.model.towers import CHUNK, encode_frames, encode_patches
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
    batches: Sequence[Alike] | None = None,
    speed: Speed | None = None,
) -> Iterator[AnswerLine]:
    """Answer every record, or those of ``batches``; one whose video cannot be read gives a line with ``error``.

    Questions about one video stand together, and so do those that are decoded alike: see ``plan.plan``. The model
    keeps the mode and device it has.
    """
    if batches is None:
        options = options.within(bundle.config.context_length)
        batches = [batch for unit in plan(records, options, batch_size) for batch in unit]
    answerer = Answerer(bundle)
    groups = read_ahead(VideoGroups(bundle, records, reader, batches), workers, answerer.device.type == "cuda")
    speed, ready = speed or Speed(), {}
    waiting = list(reversed(batches))
    start = time.perf_counter()
    total = sum(len(alike) for _, alike in batches)
    with tqdm(total=total, unit="question", disable=not progress, desc="answering") as bar:
        for group in timed(groups, speed):
            answerer.encode(group)
            ready |= {item.ids[0]: item for item in group.items}
            while waiting and all(record.id in ready for record in waiting[-1][1]):
                own, alike = waiting.pop()
                lines, tokens = answerer.answer(alike, [ready.pop(record.id) for record in alike], own)
                speed.questions, speed.tokens = speed.questions + len(lines), speed.tokens + tokens
                speed.seconds += time.perf_counter() - start
                start = time.perf_counter()
                bar.update(len(lines))
                yield from lines


def timed(groups: Iterable[Asked], speed: Speed) -> Iterator[Asked]:
    """The groups; the time until each is there goes to ``speed.wait_s``."""
    start = time.perf_counter()
    for group in groups:
        speed.wait_s += time.perf_counter() - start
        yield group
        start = time.perf_counter()


def free_memory() -> None:
    """Give back what a failed attempt has left."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class Answerer:
    """Encodes videos and answers batches on the model's device; what does not fit is tried in smaller pieces."""

    def __init__(self, bundle: Bundle):
        self.bundle, self.chunk = bundle, CHUNK  # halved where it does not fit
        self.collate, self.stop = bundle.collator(left=True), bundle.stop_id
        self.device = next(bundle.model.parameters()).device

    def encode(self, group: Asked) -> None:
        """The tower's features of a group, computed once, into all of its items."""
        try:
            own = group.features
            shared = self.features(group.pixels, group.grids) if own is None else own.to(self.device)
            for item in group.items:
                if item.pixels is not None:
                    item.features, item.pixels = self.features(item.pixels, item.grids), None
                elif item.features is None and shared is not None and not item.bad:
                    kept = None if item.kept is None else torch.as_tensor(item.kept, device=self.device)
                    item.features = shared if kept is None else shared[kept]
            return
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
        free_memory()
        for item in group.items:
            item.bad = item.bad or "its frames do not fit into memory, one at a time; lower sampler.num_frames or fps"

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
                    return encode_patches(model.vision_tower, pixels, np.asarray(grids), self.chunk, prepare)
                return encode_frames(model.vision_tower, pixels, self.chunk, model.as_the_tower_takes)
            except RuntimeError as error:
                if not out_of_memory(error) or self.chunk == 1:
                    raise
            free_memory()
            self.chunk //= 2

    def answer(
        self, records: Sequence[Record], items: Sequence[Item], options: GenerateOptions
    ) -> tuple[list[AnswerLine], int]:
        """The lines of one batch, and how many tokens were generated for them."""
        pairs = list(zip(records, items, strict=True))
        lines = [error_line(record, item.bad) for record, item in pairs if item.bad]
        good = [(record, item) for record, item in pairs if not item.bad]
        found, tokens = self._good(good, options) if good else ([], 0)
        return lines + found, tokens

    def _good(self, pairs: list[tuple[Record, Item]], options: GenerateOptions) -> tuple[list[AnswerLine], int]:
        """Answers of readable items; a batch that does not fit into memory is halved."""
        try:
            return self._together(pairs, options)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
        free_memory()  # here the failed attempt's tensors are out of reach
        if len(pairs) == 1:
            ((record, item),) = pairs
            size = f"{item.frames or len(item.times_s)} frames and {item.longest} tokens"
            remedy = "lower sampler.num_frames, sampler.fps or generate.max_new_tokens"
            return [error_line(record, f"does not fit into memory with {size}; {remedy}")], 0
        half = len(pairs) // 2
        (first, a), (second, b) = self._good(pairs[:half], options), self._good(pairs[half:], options)
        return first + second, a + b

    def _together(self, pairs: list[tuple[Record, Item]], options: GenerateOptions) -> tuple[list[AnswerLine], int]:
        model, tokenizer = self.bundle.model, self.bundle.tokenizer
        batch = self.collate([item for _, item in pairs]).to(self.device, non_blocking=True)
        answers = model.answer(batch, tokenizer, self.stop, options)
        lines = [
            answer_line(record, answer, reason, item)
            for (record, item), (answer, reason) in zip(pairs, answers, strict=True)
        ]
        return lines, sum(answer.tokens for answer, _ in answers)


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
