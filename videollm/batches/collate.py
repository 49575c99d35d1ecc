"""From items to one ``Batch``.

Selections and flat indices (row * L + column) are made here, on the CPU, so that the model gathers and scatters without
a host sync. Knows ``Item`` and ``Prompt``; no files and no network.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from videollm.batches.batch import PAD, PREFIX, Batch, Pairs
from videollm.batches.dataset import Item
from videollm.batches.prompt import Prompt
from videollm.data.conversation import Role
from videollm.heads import SpanRefs

MOST_ASKED = 256  # tokens of a question for a connector that reads it; as published, the end of a longer one is kept


@dataclass
class Collator:
    """Items -> ``Batch``.

    Args:
        pad_id: id at padded places (never seen: they are masked by place, not by id).
        split_prefix: align all prefixes in the first columns, as a separate prefix pass and packing need.
        bidirectional: frame tokens of one run see each other.
        average: ``tokens`` or ``samples``: what the language-model loss is a mean over.
        question_tokenizer: tokenises the question for a connector that reads it, or None.
        rank: every item's first answer is the chosen one, all others are rejected and get no weight.
        unseen_id: places with this id are seen by no other place (published DisTime: 0), or None.
    """

    pad_id: int
    split_prefix: bool
    bidirectional: bool
    average: str = "tokens"
    question_tokenizer: object = None
    rank: bool = False
    unseen_id: int | None = None

    def __call__(self, items: Sequence[Item]) -> Batch:
        bad = [f"{', '.join(item.ids)}: {item.bad}" for item in items if item.bad]
        items = [item for item in items if not item.bad]
        told = {"bad": bad, "ids": [i for item in items for i in item.ids]}
        told["thinned"] = sum(item.thinned > 0 for item in items)
        samples = sum(len(item.prompts) for item in items)
        items = items or [Item([Prompt([self.pad_id], [False], [-1])], [np.zeros((0, 2))])]
        rows = [self._row(item) for item in items]
        # At least one column (padding, where nothing has visuals): all ranks make a prefix pass, as ZeRO-3 demands.
        prefix = max(1, *(r.prefix for r in rows)) if self.split_prefix else 0
        rest = max((len(r.ids) - (r.prefix if self.split_prefix else 0) for r in rows), default=1)
        length = prefix + rest
        told["padded"] = (len(rows) * length - sum(len(r.ids) for r in rows), len(rows) * length)
        places = [self._columns(r, prefix, length) for r in rows]
        batch = Batch(
            **self._tokens(rows, places, prefix, length),
            **self._labels(rows, places, length),
            **self._refs(items, rows, places, length, samples),
            **self._visuals(items, rows, places, length),
            **(self._questions(items) if self.question_tokenizer is not None else {}),
            **told,
        )
        if self.rank:
            batch.pairs = self._pairs(items, rows, batch)
        return batch

    def _row(self, item: Item) -> "Row":
        """One item as a flat row: the shared prefix once, then every prompt's rest."""
        first = item.prompts[0]
        split = self.split_prefix or len(item.prompts) > 1
        row = Row(first.prefix_length if split else 0)
        row.add(first, 0, first.prefix_length, segment=PREFIX if split else 1)
        for s, prompt in enumerate(item.prompts):
            if prompt.ids[: prompt.prefix_length] != first.ids[: first.prefix_length]:
                raise ValueError(f"{item.ids[s]} and {item.ids[0]} are packed, but their prefixes differ")
            row.add(prompt, prompt.prefix_length, len(prompt), segment=s + 1, sample=s)
        return row

    def _columns(self, row: "Row", prefix: int, length: int) -> np.ndarray:
        """Column of every token of a row."""
        columns = np.arange(len(row.ids))
        if self.split_prefix:
            columns[row.prefix :] += prefix - row.prefix
        return columns

    def _tokens(self, rows: list["Row"], places: list[np.ndarray], prefix: int, length: int) -> dict:
        shape = (len(rows), length)
        ids = np.full(shape, self.pad_id)
        segment, block = np.full(shape, PAD), np.full(shape, -1)
        counted = [np.concatenate(row.position, -1) for row in rows]  # [n], or [3, n]
        # Padding goes on counting: to transformers a jump back is the start of another sequence.
        position = np.tile(np.arange(length), (max(len(np.atleast_2d(p)) for p in counted), len(rows), 1))
        for b, (row, columns) in enumerate(zip(rows, places, strict=True)):
            ids[b, columns], position[:, b, columns] = row.ids, counted[b]
            segment[b, columns] = row.segment
            if self.bidirectional:
                block[b, columns] = row.block
        unseen = (ids == self.unseen_id) & (segment != PAD)  # none, where unseen_id is None
        segment[unseen] = PAD
        names = ("input_ids", "position_ids", "segment_ids", "block_ids")
        arrays = (ids, position if len(position) > 1 else position[0], segment, block)
        batch = {n: torch.as_tensor(a, dtype=torch.long) for n, a in zip(names, arrays, strict=True)}
        causal = not self.bidirectional and all(r.segments == 1 for r in rows) and prefix == 0
        batch |= {"plain_causal": causal, "needs_mask": not causal or bool(unseen.any())}
        last = torch.as_tensor([columns[-1] for columns in places], dtype=torch.long)
        return batch | {"prefix_columns": prefix, "last": last}

    def _labels(self, rows: list["Row"], places: list[np.ndarray], length: int) -> dict:
        index, ids, weight = [], [], []
        for b, (row, columns) in enumerate(zip(rows, places, strict=True)):
            where = np.flatnonzero(row.supervised)
            index.append(b * length + columns[np.asarray(row.before)[where]])
            ids.append(np.asarray(row.ids)[where])
            sample = np.asarray(row.sample)[where]
            counts = np.bincount(sample, minlength=1)
            share = 1.0 / counts[sample] if self.average == "samples" else np.ones(len(where))
            weight.append(share * (sample == 0) if self.rank else share)
        return {
            "label_index": flat(index, torch.long),
            "label_ids": flat(ids, torch.long),
            "label_weight": flat(weight, torch.float32),
        }

    def _refs(
        self, items: Sequence[Item], rows: list["Row"], places: list[np.ndarray], length: int, samples: int
    ) -> dict:
        """Spans and frame times: FRAME seconds are the frame's time twice."""
        table, seconds, sample0 = [], [], 0
        for b, (item, row, columns) in enumerate(zip(items, rows, places, strict=True)):
            for sample, token, ref in row.refs:
                place, before = b * length + columns[token], b * length + columns[row.before[token]]
                table.append((place, before, b, sample0 + sample, int(ref.role), ref.span, ref.frame))
                is_frame = ref.role is Role.FRAME
                seconds.append([item.times_s[ref.frame]] * 2 if is_frame else item.spans_s[sample][ref.span])
            sample0 += len(item.prompts)
        columns = (c.contiguous() for c in torch.as_tensor(np.asarray(table, np.int64).reshape(-1, 7)).unbind(1))
        refs = SpanRefs(*columns, torch.as_tensor(np.asarray(seconds, np.float32).reshape(-1, 2)), samples)
        answered = (refs.role == Role.EVIDENCE) | (refs.role == Role.ANSWER)
        # An answer in front of a later turn's video: its spans change the prefix, which then cannot be kept.
        early = (t < r.prefix and ref.role in (Role.EVIDENCE, Role.ANSWER) for r in rows for _, t, ref in r.refs)
        return {
            "refs": refs,
            "early_refs": (~answered).nonzero().flatten(),
            "late_refs": answered.nonzero().flatten(),
            "span_refs": (refs.role != Role.FRAME).nonzero().flatten(),
            "keep_prefix": not any(early),
        }

    def _pairs(self, items: Sequence[Item], rows: list["Row"], batch: Batch) -> Pairs:
        """Which samples are compared, and what of labels and spans belongs to which."""
        samples = batch.num_samples
        sizes = [len(item.prompts) for item in items][:samples]  # a stand-in has no sample
        first = np.cumsum([0, *sizes])[: len(sizes)].astype(np.int64)
        owner = []
        for start, row in zip(first, rows, strict=False):
            where = np.flatnonzero(row.supervised)
            shared = np.asarray(row.segment)[where] == PREFIX
            owner.append(np.where(shared, samples, start + np.asarray(row.sample)[where]))
        chosen, spans = torch.as_tensor(first), batch.refs.select(batch.span_refs)
        return Pairs(
            chosen=chosen.repeat_interleave(torch.tensor(sizes, dtype=torch.long) - 1),
            rejected=torch.as_tensor(np.setdiff1d(np.arange(samples), first), dtype=torch.long),
            label_sample=flat(owner, torch.long),
            answer_refs=(batch.segment_ids.flatten()[spans.index] > PREFIX).nonzero().flatten(),
            chosen_refs=torch.isin(spans.sample, chosen).nonzero().flatten(),
        )

    def _visuals(self, items: Sequence[Item], rows: list["Row"], places: list[np.ndarray], length: int) -> dict:
        num_frames = max((len(item.times_s) for item in items), default=0)
        times = torch.zeros(len(items), max(num_frames, 1))
        mask = torch.zeros(len(items), max(num_frames, 1), dtype=torch.bool)
        index, row_of, column, sizes = [], [], [], []
        for b, (item, row, columns) in enumerate(zip(items, rows, places, strict=True)):
            index.append(b * length + columns[row.visual])
            timed = len(item.times_s)
            times[b, :timed] = torch.as_tensor(item.times_s, dtype=torch.float32)
            mask[b, :timed] = True
            count = timed or sum(item.tiles)
            sizes += tokens_of(item, len(row.visual), count)
            row_of.append(np.full(count, b))
            column.append(np.arange(count) if timed else np.full(count, -1))
        batch = {"times_s": times, "frame_mask": mask, "visual_index": flat(index, torch.long)}
        batch["duration_s"] = torch.tensor([float(i.duration_s) for i in items])
        batch |= {"frame_row": flat(row_of, torch.long), "frame_col": flat(column, torch.long)}
        any_size = any(item.grids for item in items)
        if any_size:
            batch["runs"] = [(len(list(same)), size) for size, same in groupby(sizes)]
        # Items of one visual hold the same tensor: it is in the batch, and goes through the tower, once.
        units = [len(row.visual) if any_size else len(column) for row, column in zip(rows, column, strict=True)]
        starts: dict[int, int] = {}  # of a tensor, its first frame, or of frames of any size its first token
        at = 0
        for name, field in (("pixel_values", "pixels"), ("features", "features")):
            held = [(t, n, i.grids) for i, n in zip(items, units, strict=True) if (t := getattr(i, field)) is not None]
            tensors = {id(t): (t, n, grids) for t, n, grids in held}
            if not tensors:
                continue
            for key, (_, count, _) in tensors.items():
                starts[key], at = at, at + count
            batch[name] = torch.cat([t for t, _, _ in tensors.values()])
            if any_size and field == "pixels":
                batch["grids"] = np.concatenate([np.asarray(grids) for _, _, grids in tensors.values()])
        visuals = [i.features if i.pixels is None else i.pixels for i in items]
        known = ((t, n) for t, n in zip(visuals, units, strict=True) if t is not None)
        source = flat([starts[id(t)] + np.arange(n) for t, n in known], torch.long)
        return batch if source.equal(torch.arange(len(source))) else batch | {"frame_source": source}

    def _questions(self, items: Sequence[Item]) -> dict:
        texts = [item.question for item in items]
        out = self.question_tokenizer(texts, padding=True, truncation=True, max_length=MOST_ASKED, return_tensors="pt")
        # Where every question is empty the tokenizer may return no column at all (and floats). One masked column keeps
        # the connector's text layers on the graph of every rank.
        lack = max(0, 1 - out["input_ids"].shape[1])
        ids, mask = (pad(out[name].long(), (0, lack)) for name in ("input_ids", "attention_mask"))
        return {"question_ids": ids, "question_mask": mask}


class Row:
    """The tokens of one item in order, and for each the token that predicts it (``before``)."""

    def __init__(self, prefix: int):
        self.prefix, self.segments = prefix, 0
        self.ids, self.position, self.segment, self.block = [], [], [], []
        self.supervised, self.sample, self.before = [], [], []
        self.visual, self.refs = [], []

    def add(self, prompt: Prompt, start: int, stop: int, segment: int, sample: int = 0) -> None:
        """Append tokens ``start`` to ``stop`` of a prompt as (a part of) one segment."""
        base = len(self.ids)
        shift = base - start
        self.ids += prompt.ids[start:stop]
        self.position.append(np.arange(start, stop) if prompt.position is None else prompt.position[:, start:stop])
        self.segment += [segment] * (stop - start)
        self.block += prompt.block[start:stop]
        self.supervised += prompt.supervised[start:stop]
        self.sample += [sample] * (stop - start)
        places = list(range(base - 1, base + stop - start - 1))
        if start and places:
            places[0] = start - 1  # the last token of the shared prefix, wherever this segment stands
        self.before += places
        self.visual += [p + shift for p in prompt.visual if start <= p < stop]
        self.refs += [(sample, r.position + shift, r) for r in prompt.refs if start <= r.position < stop]
        self.segments = max(self.segments, segment)


def tokens_of(item: Item, tokens: int, frames: int) -> list[int]:
    """Tokens of each of an item's ``frames``, ``tokens`` in all; grids say how they are shared out."""
    areas = [rows * columns for rows, columns in item.grids]
    return [area * tokens // sum(areas) for area in areas] if areas else [tokens // frames] * frames if frames else []


def flat(arrays: list[np.ndarray], dtype: torch.dtype) -> Tensor:
    """Arrays joined into one tensor; an empty one if there are none."""
    return torch.as_tensor(np.concatenate(arrays) if arrays else np.zeros(0), dtype=dtype)
