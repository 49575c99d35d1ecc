"""Which questions are answered together, and their videos read ahead of the model.

In: records, decoding options. Out: a plan of units that depends on nothing else, so that whatever process answers a
unit, and in which run, gives the same answers; and items of it, every video read once for all its questions. Knows no
network beyond what the bundle tells of prompts, and no output file.
"""

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass, field

from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from videollm.batches.dataset import Item, VideoDataset, as_it_is, pack_by_video
from videollm.batches.reader import VisualReader
from videollm.checkpoint import Bundle
from videollm.common.config import ConfigError, build, need, to_dict
from videollm.common.processes import leave_interrupts
from videollm.data import Record
from videollm.model.generate import GenerateOptions
from videollm.model.videollm import VideoLLMConfig
from videollm.video.patching import Grid

AHEAD = 2  # times as many questions as are answered at a time: so many have their videos read ahead
UNITS = 16  # of a list of questions, at least, so that as many processes have something to do
SHORT, LONG = 4, 16  # times as many questions as are answered at a time, in a unit: at its end rows are empty

Alike = list[tuple[Record, GenerateOptions]]  # questions that can be decoded beside each other, and how each one is
Unit = list[Alike]


def plan(records: Sequence[Record], options: GenerateOptions, batch_size: int) -> list[Unit]:
    """Units of questions, ``batch_size`` of which are answered at a time; each holds all about each of its videos.

    Raises:
        ConfigError: see ``by_options``.
    """
    units, open_unit, size = [], [], unit_size(len(records), batch_size)
    for group in pack_by_video(records, len(records)):
        open_unit += [records[i] for i in group]
        if len(open_unit) >= size:
            units.append(open_unit)
            open_unit = []
    units += [open_unit] if open_unit else []
    return [by_options(unit, options) for unit in units]


def unit_size(questions: int, batch_size: int) -> int:
    """How many of so many questions a unit has, about: all of its last video's are in it."""
    return batch_size * min(LONG, max(SHORT, questions // (UNITS * batch_size)))


def by_options(records: Sequence[Record], options: GenerateOptions) -> list[Alike]:
    """Records that are decoded alike, each with how: ``options`` with the record's own laid over them.

    Raises:
        ConfigError: a record's own option is unknown or has a bad value; the message names its line.
    """
    groups: dict[tuple, Alike] = {}
    for record in records:
        given = record.asking.generate
        whole = "of a run, not of one record: its video is seen for others, too; leave it out"
        need("compile_tower" not in given, f"{record.where}: generate.compile_tower: {whole}")
        own = build(GenerateOptions, to_dict(options) | given, f"{record.where}: generate") if given else options
        groups.setdefault(astuple(own.of_all), []).append((record, own))
    return list(groups.values())


def room_for_question(config: VideoLLMConfig, options: GenerateOptions) -> int:
    """Tokens that the context has beside the answer; ConfigError if there are none."""
    context = config.context_length
    asked = options.within(context).max_new_tokens
    if asked >= context:
        raise ConfigError(
            f"generate.max_new_tokens: {asked} leave no room for a question in the model's {context} tokens; leave it "
            f"out, or set generate.max_new_tokens={max(1, context // 4)}"
        )
    return context - asked


@dataclass
class Asked:
    """The questions about one video: an item for each, and what they share once (pixels, or stored features)."""

    items: list[Item]
    pixels: Tensor | None = None  # of F frames, as ``reader.Seen`` has them
    features: Tensor | None = None  # [F, P, Dv]
    grids: list[Grid] = field(default_factory=list)  # of frames of any size, as of an ``Item``

    def pin_memory(self) -> "Asked":
        """The pixels where a GPU takes them from while it works; the data loader calls it."""
        self.pixels = self.pixels.pin_memory() if self.pixels is not None else None
        return self


class VideoGroups(Dataset):
    """The questions of ``unit`` by video, in order. Frames drawn at random depend on a record's place in ``records``
    only."""

    def __init__(self, bundle: Bundle, records: Sequence[Record], reader: VisualReader, unit: Unit):
        rooms = {record.id: room_for_question(bundle.config, own) for alike in unit for record, own in alike}
        asked = [record for alike in unit for record, _ in alike]
        place = {record.id: i for i, record in enumerate(records)}
        encoder = bundle.encoder()
        made = {
            room: VideoDataset(records, reader, encoder, max_length=room, answers=False) for room in set(rooms.values())
        }
        self.reader, self.questions = reader, len(asked)
        self.groups = [
            [(made[rooms[asked[i].id]], place[asked[i].id]) for i in group]
            for group in pack_by_video(asked, len(asked))
        ]

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, index: int) -> Asked:
        group = self.groups[index]
        dataset, i = group[0]
        record = dataset.records[i]
        if record.video is None or not self.reader.fixed:
            return Asked([dataset[i] for dataset, i in group])  # every item has its own
        limits = tuple(sorted({dataset.room(i) for dataset, i in group}))
        found = Asked([])
        for dataset, i in group:
            item = dataset.item(i, limits)
            found.items.append(item)
            if dataset.encoder.patching is not None:
                self._share(found, item)
                continue
            item.pixels = item.features = None  # one question's choice of frames is never held beside another's
        if dataset.encoder.patching is None and not all(item.bad for item in found.items):
            seen = self.reader.video(record.video, None, record.asking.view, limits)
            found.pixels, found.features = seen.pixels, seen.features
        return found

    def _share(self, group: Asked, item: Item) -> None:
        """Of frames of any size, an item with all of them leaves its groups to ``group``; others have groups of their
        own, which are none of those."""
        if item.bad or item.kept is not None:
            return
        if group.pixels is None and group.features is None:
            group.pixels, group.features, group.grids = item.pixels, item.features, item.grids
        item.pixels = item.features = None


def read_ahead(groups: VideoGroups, batch_size: int, workers: int, pin: bool) -> DataLoader:
    """The groups in order, read by worker processes while the caller is busy (in this one without any).

    They are ahead by what ``AHEAD`` times ``batch_size`` questions take on average; so many videos are held in memory.
    """
    workers = min(workers, len(groups))
    some = min(1.0, AHEAD * batch_size / max(groups.questions, 1))
    ahead = math.ceil(some * len(groups) / workers) if workers else None
    return DataLoader(
        groups, batch_size=None, num_workers=workers, collate_fn=as_it_is, pin_memory=pin, prefetch_factor=ahead,
        worker_init_fn=leave_interrupts,
    )  # fmt: skip
