"""What a model sees of one question: its prompt to the token, and each frame's time, size and place in it.

In: a bundle, a record, a reader of its video. Out: text for people. The item is made as for answering it; nothing is
run. Knows no answers.
"""

from collections.abc import Iterator
from itertools import accumulate, pairwise

import numpy as np

from videollm.batches.collate import tokens_of
from videollm.batches.dataset import Item, VideoDataset
from videollm.batches.prompt import Prompt
from videollm.batches.reader import VisualReader
from videollm.checkpoint import Bundle
from videollm.data import Record
from videollm.inference.plan import room_for_question
from videollm.model.generate import GenerateOptions


def explain(bundle: Bundle, record: Record, reader: VisualReader, options: GenerateOptions) -> str:
    """The prompt of a question as ``bundle`` gets it, then a line for each frame (or group of frames) and image.

    A visual that cannot be read is told in one line. Raises ConfigError as of asking.
    """
    room = room_for_question(bundle.config, options)
    item = VideoDataset([record], reader, bundle.encoder(), max_length=room, answers=False)[0]
    if item.bad:
        return f"{record.where}: {item.bad}"
    (prompt,) = item.prompts
    thinned = f", {item.thinned} more were chosen and left out to fit the context" if item.thinned else ""
    shown = (
        f"frames: {item.frames or len(item.times_s)}{thinned}" if len(item.times_s) else f"images: {len(item.tiles)}"
    )
    head = f"{record.where}: {len(prompt)} tokens, {len(prompt.visual)} of them visual; {item.duration_s:g} s, {shown}"
    return "\n".join([head, "", text_of(bundle, prompt), "", *rows_of(bundle, item, prompt)])


def text_of(bundle: Bundle, prompt: Prompt) -> str:
    """The prompt's text as its ids give it; a run of visual tokens is told by its number."""
    visual = np.zeros(len(prompt), bool)
    visual[prompt.visual] = True
    edges = [0, *(np.flatnonzero(visual[1:] != visual[:-1]) + 1).tolist(), len(prompt)]
    decode = bundle.tokenizer.decode
    return "".join(
        f"[{stop - start} visual tokens]" if visual[start] else decode(prompt.ids[start:stop])
        for start, stop in pairwise(edges)
    )


def rows_of(bundle: Bundle, item: Item, prompt: Prompt) -> Iterator[str]:
    """A line for each frame, group of frames or tile, under a heading."""
    count = len(item.times_s) or sum(item.tiles)
    if not count:
        yield "nothing to see"
        return
    sizes = tokens_of(item, len(prompt.visual), count)
    places = [0, *accumulate(sizes)]
    axes = "" if prompt.position is None else "  time, row, column of the first token"
    yield f"{'frame':>6} {'time, s':>9} {'width x height':>14} {'tokens':>7} {'place':>7}{axes}"
    for i, tokens in enumerate(sizes):
        time = f"{item.times_s[i]:.3f}" if len(item.times_s) else "-"
        place = prompt.visual[places[i]]
        position = "" if prompt.position is None else "  " + ", ".join(map(str, prompt.position[:, place]))
        yield f"{i + 1:>6} {time:>9} {side(bundle, item, i):>14} {tokens:>7} {place:>7}{position}"


def side(bundle: Bundle, item: Item, i: int) -> str:
    """Width and height in pixels of frame ``i``, as the tower takes it."""
    if item.grids:
        rows, columns = item.grids[i]
        return f"{columns * bundle.model.patching.patch} x {rows * bundle.model.patching.patch}"
    return f"{bundle.model.preprocess.size} x {bundle.model.preprocess.size}"
