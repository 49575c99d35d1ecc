"""From records to model-ready items: decode or look up the visuals, thin them to the context, tokenise.

An item holds one video (or image, or nothing) and the prompts that ask about it: one, or with packing all questions
of the video, so that it is decoded and encoded once. A video that cannot be read gives an empty item that names it:
it adds nothing to any loss, and the trainer counts it. Knows records, the prompt encoder and the frame reader; no
network.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from videollm.batches.prompt import Prompt, PromptEncoder, Visual
from videollm.batches.reader import VisualReader
from videollm.data import Record
from videollm.data.annotations import SLACK_S
from videollm.data.conversation import SpanMark, Turn, VisualMark
from videollm.data.letter import without_times
from videollm.video.decode import VideoError
from videollm.video.patching import Grid
from videollm.video.sampling import thinned_places

KEPT = 5000  # items; more would cost memory that matters


@dataclass
class Item:
    """One visual and its conversations.

    ``pixels`` of F frames as ``reader.Seen`` has them, or ``features`` [F, P, Dv] from a frozen tower; ``times_s`` [F]
    is empty for images. ``spans_s[i]`` are the spans of ``prompts[i]``. ``bad`` says why the visual could not be read.

    For a tower that takes frames of any size, frames become groups in the end (``VideoDataset._grouped``): ``pixels``
    are then patches [N, W] of all groups and images, ``features`` [T, X] of all their tokens (before that [G, rows,
    columns, X]), ``times_s`` those of the groups, and ``grids`` says how many patches belong to each.
    """

    prompts: list[Prompt] = field(default_factory=list)
    spans_s: list[np.ndarray] = field(default_factory=list)
    pixels: Tensor | None = None
    features: Tensor | None = None
    times_s: np.ndarray = field(default_factory=lambda: np.zeros(0))
    duration_s: float = 0.0
    tiles: list[int] = field(default_factory=list)  # tiles of each image
    grids: list[Grid] = field(default_factory=list)  # [F] rows and columns of patches; empty: all frames are alike
    frames: int = 0  # of the video, where the F of ``times_s`` are groups of them
    question: str = ""
    ids: list[str] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)  # that they are of
    thinned: int = 0  # frames dropped to fit the context
    kept: np.ndarray | None = None  # which of the frames that were read are left by that; None: all
    bad: str | None = None

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt."""
        return max(map(len, self.prompts))


class VideoDataset(Dataset):
    """Records as items; with ``pack``, the records of one video together (at most ``max_questions`` an item).

    Args:
        records: neutral records.
        reader: reads their visuals.
        encoder: tokenises them; its head decides the wording.
        max_length: tokens of one prompt; frames are dropped uniformly until it fits (counted in ``Item.thinned``).
        answers: keep the last answer (training), or cut every conversation before it (generation).
        rejected: behind each answer its rejected ones too, all or one drawn anew for every epoch; all behind one
            prompt, which they share. Every record must have some, and ``pack`` be off.
        seed: of the random frame sampling; the draw depends on (seed, epoch, index) only.
    """

    def __init__(
        self,
        records: Sequence[Record],
        reader: VisualReader,
        encoder: PromptEncoder,
        *,
        max_length: int,
        answers: bool = True,
        pack: bool = False,
        max_questions: int = 16,
        rejected: Literal["one", "all"] | None = None,
        seed: int = 0,
    ):
        self.records, self.reader, self.encoder = list(records), reader, encoder
        self.max_length, self.answers, self.seed, self.epoch = max_length, answers, seed, 0
        self.rejected = rejected
        self.groups = pack_by_video(self.records, max_questions) if pack else [[i] for i in range(len(self.records))]
        # A small data set with fixed frames is tokenised once, not once an epoch: item -> (prompts, spans).
        self.kept: dict[tuple[int, ...], tuple[list[Prompt], list[np.ndarray]]] = {}
        self.rooms: dict[tuple[int, ...], int] = {}
        self.patched: tuple[Tensor | list[Tensor] | None, Tensor | None] = (None, None)  # the newest frames, grouped
        self.keeps = reader.fixed and len(self.groups) <= KEPT

    def __len__(self) -> int:
        return len(self.groups)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch's frame draws."""
        self.epoch = epoch

    def __getitem__(self, index: int) -> Item:
        return self.item(index, (self.room(index),))

    def item(self, index: int, limits: tuple[int, ...]) -> Item:
        """An item, its video read for all whose ``room`` is in ``limits``, this item's among them."""
        records = [self.records[i] for i in self.groups[index]]
        drawn = self._draw(records[0], index)
        key = (index, *drawn)
        rng = random.Random(f"{self.seed}/{self.epoch}/{index}")
        try:
            item = self._read(records[0], rng, limits, self.room(index))
            item.ids, item.records, item.question = [r.id for r in records], records, records[0].question
            if key in self.kept:
                item.prompts, item.spans_s = self.kept[key]
                return self._grouped(item)
            worse = [records[0].rejected[k] for k in drawn]
            self._encode(item, [*records, *map(records[0].answered_by, worse)])
            if worse:
                text_only = all(answer.text_only for answer in worse)
                share_prompt(item.prompts, text_only, to_the_letter=records[0].turns[-1].written is not None)
        except VideoError as error:  # also of a span or a question that does not fit this video
            return Item(ids=[r.id for r in records], bad=str(error))
        if self.keeps and not item.thinned:
            self.kept[key] = (item.prompts, item.spans_s)
        return self._grouped(item)

    def __getitems__(self, indices: Sequence[int]) -> list[Item]:
        """The items of a batch, for torch's loader: those of one video are made one after another, to read it once."""
        together: dict[tuple, list[int]] = {}
        for index in indices:
            record = self.records[self.groups[index][0]]
            alone = None if self.reader.fixed and record.video else index
            together.setdefault((record.video, record.asking.view, alone), []).append(index)
        found = {}
        for same in together.values():
            limits = tuple(sorted({self.room(index) for index in same}))
            found |= {index: self.item(index, limits) for index in same}
        return [found[index] for index in indices]

    def room(self, index: int) -> int:
        """To how many frames a video is thinned for this item, by the lengths of its prompts with one frame.

        The video is not open yet: where a text is as long as a duration says that the annotation lacks, this is a good
        guess, and ``_thin`` sees to what is too long. Without a video: 1.
        """
        records = [self.records[i] for i in self.groups[index]]
        if records[0].video is None:
            return 1
        drawn = self._draw(records[0], index)
        key = (index, *drawn)
        if key not in self.rooms:
            asked = [*records, *(records[0].answered_by(records[0].rejected[k]) for k in drawn)]
            longest = max(self._length_with_one_frame(record) for record in asked)
            room = max(1, (self.max_length - longest) // self.encoder.tokens_per_frame + 1)
            room *= self.encoder.group  # ``longest`` has one group, and each further one has at least so many tokens
            if not self.keeps:
                return room
            self.rooms[key] = room
        return self.rooms[key]

    def _length_with_one_frame(self, record: Record) -> int:
        turns = self._turns(record)
        duration_s = record.duration_s or max((end for _, end in record.spans_s), default=0.0) or 1.0
        return len(self.encoder.encode(turns, record.spans_s, [("video", 1)], duration_s, record.asking.after_video))

    def _draw(self, record: Record, index: int) -> tuple[int, ...]:
        """Which of the record's rejected answers stand beside its own in this epoch."""
        if self.rejected != "one":
            return tuple(range(len(record.rejected))) if self.rejected else ()
        return (random.Random(f"{self.seed}/{self.epoch}/{index}/rejected").randrange(len(record.rejected)),)

    def _read(self, record: Record, rng: random.Random, limits: tuple[int, ...], room: int) -> Item:
        """The visual part of an item, its frames thinned to ``room``."""
        if record.video is not None:
            seen = self.reader.video(record.video, rng, record.asking.view, limits)
            item = Item(pixels=seen.pixels, features=seen.features, times_s=np.asarray(seen.times_s))
            item.duration_s, item.thinned = float(seen.duration_s), seen.chosen - len(seen.places)
            stored = item.features is not None  # of these all are there
            wanted = np.searchsorted(seen.places, thinned_places(seen.chosen, room))
            _keep(item, self._thinned_places(item, room) if stored else wanted)
            return item
        if record.images:
            how = {"jpeg": rng} if record.asking.view.jpeg else {}
            how |= {"max_tiles": record.max_tiles} if record.max_tiles else {}
            pixels, tiles = self.reader.images(record.images, **how)
            return Item(pixels=pixels, tiles=tiles)
        return Item()

    def _grouped(self, item: Item) -> Item:
        """The item as its tower takes it: frames of any size as groups of patches."""
        patching = self.encoder.patching
        if patching is None or (item.pixels is None and item.features is None):
            return item
        visuals = self._visuals(item)
        item.grids, item.frames = [grid for visual in visuals for grid in visual.grids], len(item.times_s)
        if item.features is not None:
            item.features, item.times_s = item.features.flatten(0, 2), np.asarray(visuals[0].times_s)
            return item
        if item.pixels is not self.patched[0]:  # items that show the same share it, as they do frames
            made = torch.cat([patching.group(frames).flatten(0, 1) for frames in pictures(item)])
            self.patched = item.pixels, made
        item.pixels = self.patched[1]
        item.times_s = item.times_s if item.tiles else np.asarray(visuals[0].times_s)
        return item

    def _encode(self, item: Item, records: Sequence[Record]) -> None:
        """Tokenise every conversation about the item's visual, thinning the frames until all of them fit."""
        conversations = [self._conversation(r, item.duration_s) for r in records]
        item.spans_s = [np.asarray(spans, np.float64).reshape(-1, 2) for _, spans, _ in conversations]
        item.prompts = self._prompts(item, conversations)
        if item.longest > self.max_length and records[0].video is not None:
            self._thin(item, conversations)
        if item.longest > self.max_length:
            record = records[[len(p) for p in item.prompts].index(item.longest)]
            seen = max(len(prompt.visual) for prompt in item.prompts)
            tokens, pixels = f"{record.where}: {item.longest} tokens with the fewest frames", seen > item.longest / 2
            tokens += f", {seen} of them of what is seen" if pixels else ""
            if self.answers:  # known before only where no image and no real duration decides (lengths.py)
                remedy = "lower the pixels in data.preprocess or data.max_tiles" if pixels else "shorten the text"
                raise VideoError(f"{tokens}, over data.max_length={self.max_length}; raise it or {remedy}")
            smaller = "lower the pixels under preprocess, or max_tiles, in its config.json"
            remedy = smaller if pixels else "shorten the question or lower generate.max_new_tokens"
            raise VideoError(f"{tokens}, and the model has room for {self.max_length} beside its answer; {remedy}")

    def _prompts(self, item: Item, conversations: Sequence[tuple[list, list, str | None]]) -> list[Prompt]:
        """The conversations tokenised."""
        visuals = self._visuals(item)
        return [
            self.encoder.encode(turns, spans, visuals, item.duration_s, after) for turns, spans, after in conversations
        ]

    def _visuals(self, item: Item) -> list[Visual]:
        """What a prompt has to know of an item's frames or images, before they are grouped."""
        patching = self.encoder.patching
        if patching is None:
            return [Visual("image", n) for n in item.tiles] or [Visual("video", len(item.times_s), item.times_s)]
        if item.tiles:
            return [Visual("image", 1, grids=[patching.grid(*picture.shape[1:3])]) for picture in pictures(item)]
        if not len(item.times_s):
            return []
        times_s, starts_s = patching.times(item.times_s)
        size = (
            [patching.factor * n for n in item.features.shape[1:3]] if item.pixels is None else item.pixels.shape[1:3]
        )
        return [Visual("video", len(times_s), times_s, [patching.grid(*size)] * len(times_s), starts_s)]

    def _conversation(self, record: Record, duration_s: float) -> tuple[list, list, str | None]:
        """Turns and spans to encode, and the text behind the video: all, or what stands before the answer to generate.

        Raises:
            VideoError: a span wholly behind the end of the video as it was decoded, unless the record is raw.
        """
        turns = self._turns(record)
        limit = duration_s if record.video is not None and not record.raw else np.inf
        for mark in (p for turn in turns for p in turn.parts if isinstance(p, SpanMark)):
            start, end = record.spans_s[mark.span]
            if start > limit + SLACK_S:
                raise VideoError(
                    f"{record.where}: span [{start:g}, {end:g}] lies outside {record.video}, which has {limit:g} s "
                    "(src or tgt); correct it, or fetch the video again if it should be longer"
                )
        spans = [(min(s, limit), min(e, limit)) for s, e in record.spans_s]
        return turns, spans, record.asking.after_video

    def _thin(self, item: Item, conversations: Sequence[tuple[list, list, str | None]]) -> None:
        """Drop frames uniformly so that the longest prompt fits ``max_length``."""
        keep = len(item.times_s)
        frames = item.pixels, item.features, item.times_s, item.thinned, item.kept
        while item.longest > self.max_length and keep > 1:  # more than once only where frames are of any size
            each = self.encoder.tokens_per_frame
            if self.encoder.patching is not None:
                each = len(item.prompts[0].visual) / len(item.times_s)
            keep = max(1, keep - math.ceil((item.longest - self.max_length) / each))
            item.pixels, item.features, item.times_s, item.thinned, item.kept = frames
            _keep(item, self._thinned_places(item, keep))
            item.prompts = self._prompts(item, conversations)

    def _thinned_places(self, item: Item, keep: int) -> np.ndarray:
        """Which frames are left of an item if ``keep`` are; of stored features whole groups."""
        count, patching = len(item.times_s), self.encoder.patching
        if patching is None or item.features is None:
            return thinned_places(count, keep)
        size = patching.temporal
        groups = thinned_places(len(item.features), max(1, keep // size))
        frames = (groups[:, None] * size + np.arange(size)).ravel()
        return frames[frames < count]

    def _turns(self, record: Record) -> list[Turn]:
        """What is encoded of a conversation: all, or what stands before the answer to generate."""
        turns = list(record.turns[:-1] if not self.answers and record.has_answer else record.turns)
        if self.answers and record.raw and record.moment:
            turns = [turn if turn.written is None or turn.role != "user" else without_times(turn) for turn in turns]
        return turns


def pictures(item: Item) -> Sequence[Tensor]:
    """The frames of each visual, [F, H, W, 3]: of the video, or of every image."""
    if not item.tiles:
        return [item.pixels]
    return item.pixels.split(1) if isinstance(item.pixels, Tensor) else item.pixels


def _keep(item: Item, index: np.ndarray) -> None:
    """Leave the item only the frames ``index``; without a copy where these are all."""
    count = len(item.times_s)
    if len(index) == count:
        return
    item.thinned += count - len(index)
    item.kept = index if item.kept is None else item.kept[index]
    item.times_s = item.times_s[index]
    item.pixels = item.pixels[index] if item.pixels is not None else None
    if item.features is not None:
        item.features = item.features[np.unique(index // math.ceil(count / len(item.features)))]  # also of groups


def share_prompt(prompts: Sequence[Prompt], text_only: bool, to_the_letter: bool = False) -> None:
    """Let answers to the same turns share all that stands before them, as one prefix.

    With ``text_only`` they share their first token too, where it is the same, and their end is not trained (4.3).
    Published code takes the chosen answer's first token for all of them, whatever the others begin with.
    """
    starts = [prompt.answer_start for prompt in prompts]
    if text_only and to_the_letter:
        for prompt, start in zip(prompts, starts, strict=True):
            prompt.ids[start] = prompts[0].ids[starts[0]]
    firsts = {prompt.ids[start] for prompt, start in zip(prompts, starts, strict=True)}
    for prompt, start in zip(prompts, starts, strict=True):
        prompt.prefix_length = start + (text_only and len(firsts) == 1)
        if text_only:
            prompt.supervised[prompt.answer_end] = False


def pack_by_video(records: Sequence[Record], most: int) -> list[list[int]]:
    """Indices of records that ask about the same view of a video behind the same words, in groups of at most ``most``,
    in order of first appearance."""
    groups: dict[tuple, list[int]] = {}
    for i, record in enumerate(records):
        before = words_before(record.turns)
        alone = not record.video or before is None
        groups.setdefault((i,) if alone else (record.video, record.asking.view, before), []).append(i)
    return [g[k : k + most] for g in groups.values() for k in range(0, len(g), most)]


def words_before(turns: Sequence[Turn]) -> tuple[tuple[str, str], ...] | None:
    """What stands before the video, by speaker; None where it is a span, whose time is the record's own, or no video
    comes."""
    found: list[tuple[str, str]] = []
    for turn in turns:
        for part in turn.parts if turn.written is None else turn.written:
            if isinstance(part, VisualMark):
                return tuple(found)
            if not isinstance(part, str):
                return None
            found.append((turn.role, part))
    return None


def as_it_is(found: Any) -> Any:
    """For torch's loader: what a worker has read, not made into tensors."""
    return found
