"""How long conversations will be before any video is opened: of items, to sort them, and of records, to refuse some.

In: records, a ``PromptEncoder``, and what decides on the number of frames. Out: numbers of tokens. Nothing is decoded;
where frames keep their shape, headers of videos tell it.
"""

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from tqdm import tqdm

from videollm.batches.dataset import VideoDataset, share_prompt
from videollm.batches.prompt import Prompt, PromptEncoder, Visual
from videollm.common.config import ConfigError
from videollm.data import Record
from videollm.data.load import LONG_FILE
from videollm.video.patching import Patching
from videollm.video.preprocess import Preprocess
from videollm.video.sampling import Sampler
from videollm.video.timeline import VideoError
from videollm.video.view import View

BY_TIME = ("fps", "qwen2_5_vl", "qwen3_vl")  # rules of a sampler by which a longer video has more frames
Shape = tuple[int, int]  # height and width
LARGEST = (1 << 14, 1 << 14)  # a picture that every budget makes smaller
READERS = 16  # threads that wait for headers


def item_sizes(dataset: VideoDataset, setting: str) -> np.ndarray:
    """Tokens of each item's prefix and of what stands behind it, [N, 2] int64: those of the collator's row.

    Frames follow from duration and sampler, so that a count is off by a frame where a file is longer or shorter than
    its annotation says. Of an image it is the most tiles that it can have. Frames of any size count as the header of
    their video says; without one, and of images, as what their budget of pixels lets through at most.

    Raises:
        ConfigError: a video without ``duration``, where that decides on the number of its frames.
    """
    step, shapes = dataset.encoder.tokens_per_frame, shapes_of(dataset)
    sizes = [item_size(dataset, group, step, setting, shapes) for group in dataset.groups]
    return np.asarray(sizes, np.int64).reshape(-1, 2)


def shapes_of(dataset: VideoDataset) -> dict[tuple[str, View], Shape]:
    """Height and width of the videos whose header tells it, where these decide on the number of tokens."""
    if dataset.encoder.patching is None:
        return {}
    asked = list(dict.fromkeys((r.video, r.asking.view) for r in dataset.records if r.video is not None))
    with ThreadPoolExecutor(READERS) as pool:
        found = pool.map(lambda one: dataset.reader.shape(*one), asked)
        shown = tqdm(found, "headers", len(asked), disable=None if len(asked) >= LONG_FILE else True)
        return {one: shape for one, shape in zip(asked, shown, strict=True) if shape}


def item_size(
    dataset: VideoDataset, group: Sequence[int], step: int, setting: str, shapes: Mapping[tuple[str, View], Shape]
) -> tuple[int, int]:
    """(prefix, rest) of the item that holds the records ``group``: encoded with one frame, ``step`` for each other."""
    records = [dataset.records[i] for i in group]
    first, reader = records[0], dataset.reader
    count = frames_of(first, reader.sampler, reader.max_tiles, setting)
    prompts = [encoded(dataset.encoder, record) for record in records]
    rest = sum(len(p) - p.prefix_length for p in prompts)
    prefix = prompts[0].prefix_length
    if dataset.rejected:
        worse = [encoded(dataset.encoder, first.answered_by(answer)) for answer in first.rejected]
        share_prompt([prompts[0], *worse], text_only=False)
        prefix, (chosen, *others) = prompts[0].prefix_length, [len(p) - p.prefix_length for p in (prompts[0], *worse)]
        rest = chosen + (sum(others) if dataset.rejected == "all" else max(others))
        prompts += worse
    if dataset.encoder.patching is not None:
        more = of_any_size(dataset, first, count, shapes.get((first.video, first.asking.view), LARGEST))
        return prefix + max(0, min(more, dataset.max_length - max(map(len, prompts)))), rest
    if first.video is None:
        return prefix + (count - len(first.images)) * dataset.encoder.visual.per_frame, rest
    room = dataset.max_length - max(map(len, prompts))  # for more than one frame
    return prefix + step * (min(count, max(1, room // step + 1)) - 1), rest


def of_any_size(dataset: VideoDataset, record: Record, count: int, shape: Shape) -> int:
    """Tokens of ``count`` frames of a shape, or of images as large as may be, beyond one of the smallest."""
    patching, preprocess = dataset.encoder.patching, dataset.reader.preprocess
    if record.video is None:
        size = patching.tokens(patching.grid(*preprocess.image_size(*LARGEST)))
        return len(record.images) * (size - 1)
    try:
        video = video_of(patching, preprocess, count, shape)
    except VideoError:  # reading it will say so
        return 0
    return video.count * (patching.tokens(video.grids[0]) - 1) + (video.count - 1) * dataset.encoder.tokens_per_frame


def video_of(patching: Patching, preprocess: Preprocess, frames: int, shape: Shape = LARGEST) -> Visual:
    """A video of ``frames``, one a second, as its shape is seen; the largest, as large as their budget allows.

    Raises:
        VideoError: a shape that cannot be brought to any size.
    """
    times_s, starts_s = patching.times(np.arange(frames, dtype=float))
    grid = patching.grid(*preprocess.frame_size(*shape, max(frames, patching.temporal)))
    return Visual("video", len(times_s), times_s, [grid] * len(times_s), starts_s)


def conversation(record: Record) -> tuple:
    """What ``PromptEncoder.encode`` takes of a record, with one frame of its video, or one tile of each image."""
    visuals = [("image", 1)] * len(record.images) or [("video", 1)]
    known = [record.duration_s or 1.0, *(end for _, end in record.spans_s)]
    return record.turns, record.spans_s, visuals, max(known), record.asking.after_video


def encoded(encoder: PromptEncoder, record: Record) -> Prompt:
    """A record's conversation, as short as it can be made: see ``conversation``."""
    return encoder.encode(*conversation(record))


def too_long(
    records: Sequence[Record], encoder: PromptEncoder, max_length: int, *, rejected: bool = False
) -> dict[int, int]:
    """Tokens of the records that cannot be made to fit ``max_length``, by their place among ``records``.

    With ``rejected`` a record counts with each of its rejected answers as well. An image counts with one tile.
    """
    found = {}
    for place, record in enumerate(tqdm(records, desc="lengths", disable=None if len(records) >= LONG_FILE else True)):
        forms = [record, *(map(record.answered_by, record.rejected) if rejected else ())]
        # Most are so short that their bytes say it; tokenising all would take minutes.
        doubtful = [one for one in forms if encoder.at_most(*conversation(one)) > max_length]
        tokens = max((len(encoded(encoder, one)) for one in doubtful), default=0)
        if tokens > max_length:
            found[place] = tokens
    return found


def frames_of(record: Record, sampler: Sampler, max_tiles: int, setting: str) -> int:
    """Frames of a record's video, or tiles of its images at most; ``setting`` is what asks."""
    if record.video is None:
        tiles = max(1, (record.max_tiles or max_tiles) // max(1, len(record.images)))
        return len(record.images) * (tiles + (tiles > 1))
    if sampler.rule not in BY_TIME:
        return sampler.num_frames
    if record.duration_s is None:
        raise ConfigError(
            f"{setting}: {record.where} has no duration, so the number of its frames is not known; add `duration`, or "
            f"leave {setting} out"
        )
    start, end = record.asking.view.bound_s or (0.0, record.duration_s)
    seconds = min(end, record.duration_s) - max(start, 0.0)
    least = 1 if sampler.rule == "fps" else sampler.min_frames
    return min(max(least, math.ceil(seconds * sampler.fps)), sampler.max_frames or math.inf)
