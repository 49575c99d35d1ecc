"""Lengths that are counted once and kept: numbers of tokens in a small file, under a digest of what decides on them.

In: what was counted before, if it is of the same annotation files, choice of records, tokenizer, template, head and
code. Out: the numbers. A file that is of anything else, or damaged, is counted anew and written whole or not at all. It
knows no training; whoever calls names the folder, which a user may delete.
"""

import hashlib
import inspect
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from videollm.batches.dataset import VideoDataset
from videollm.batches.lengths import item_sizes, too_long
from videollm.batches.prompt import PromptEncoder
from videollm.common.config import to_dict
from videollm.common.files import parse_json, write_text
from videollm.data import Record

logger = logging.getLogger(__name__)
ROOMS = ("data", "heads", "batches")  # of the core, whose code decides on what an encoded conversation is


class KeptLengths:
    """The files in ``folder``; only one process of a run ``writes`` them."""

    def __init__(self, folder: str | Path, writes: bool):
        self.folder, self.writes = Path(folder), writes

    def too_long(
        self, records: Sequence[Record], encoder: PromptEncoder, max_length: int, rejected: bool
    ) -> dict[int, int]:
        """As ``lengths.too_long``."""

        def count() -> list[list[int]]:
            return [list(pair) for pair in too_long(records, encoder, max_length, rejected=rejected).items()]

        key = self.key(records, encoder, max_length, rejected)
        return dict(self.kept("too_long", key, count, np.arange(len(records))).tolist())

    def item_sizes(self, dataset: VideoDataset, setting: str) -> np.ndarray:
        """As ``lengths.item_sizes``."""
        reader = dataset.reader
        groups = [list(map(int, group)) for group in dataset.groups]
        shape = [to_dict(reader.sampler), reader.max_tiles, dataset.rejected, groups]
        if dataset.encoder.patching is not None:
            shape += [reader.root, to_dict(reader.preprocess)]
        key = self.key(dataset.records, dataset.encoder, dataset.max_length, shape)
        return self.kept("items", key, lambda: item_sizes(dataset, setting).tolist(), None, len(dataset.groups))

    def key(self, records: Sequence[Record], encoder: PromptEncoder, *more: Any) -> str:
        """A digest of what decides on lengths."""
        files = {path: file_digest(path) for path in sorted({r.path for r in records})}
        chosen = [(r.path, r.line, r.raw, r.max_tiles, r.duration_s, len(r.rejected)) for r in records]
        told = json.dumps([files, chosen, more], default=str)
        return hashlib.sha256("\n".join([told, encoder_digest(encoder), code_digest(encoder)]).encode()).hexdigest()

    def kept(
        self, name: str, key: str, count: Callable[[], list], places: np.ndarray | None, rows: int | None = None
    ) -> np.ndarray:
        """Pairs of numbers [N, 2]: those of the file ``name``, or what ``count`` gives, which is written.

        ``places``: what may stand in the first column; ``rows``: N.
        """
        file = self.folder / f"{name}.json"
        try:
            found = parse_json(file.read_bytes())
            pairs = checked(found, key, places, rows)
        except FileNotFoundError:
            pairs = None
        except (OSError, ValueError) as error:
            pairs = None
            if self.writes:
                logger.warning("%s: %s; lengths are counted anew", file, error)
        if pairs is not None:
            return pairs
        counted = count()
        if self.writes:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                write_text(file, json.dumps({"of": key, "lengths": counted}) + "\n")
            except OSError as error:
                logger.warning("%s: cannot be written (%s); lengths are counted at the next start again", file, error)
        return np.asarray(counted, np.int64).reshape(-1, 2)


def checked(found: Any, key: str, places: np.ndarray | None, rows: int | None) -> np.ndarray:
    """The pairs in a kept file. Raises ValueError where it is of something else, or damaged."""
    if not isinstance(found, dict) or not isinstance(found.get("lengths"), list):
        raise ValueError("no lengths in it")
    if found.get("of") != key:
        raise ValueError("of other records, another tokenizer or other settings")
    flat = [pair for pair in found["lengths"] if not (isinstance(pair, list) and list(map(type, pair)) == [int, int])]
    if flat or (rows is not None and len(found["lengths"]) != rows):
        raise ValueError("damaged")
    pairs = np.asarray(found["lengths"], np.int64).reshape(-1, 2)
    if (pairs < 0).any() or (places is not None and not np.isin(pairs[:, 0], places).all()):
        raise ValueError("damaged")
    return pairs


def file_digest(path: str | Path) -> str:
    """Of a file's bytes; of one that is gone, as of a record that was made in memory, none."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return "none"


def encoder_digest(encoder: PromptEncoder) -> str:
    """Of the tokenizer's content, the template, the layout of frames, and the head with its options."""
    tokenizer, head = encoder.tokenizer, encoder.head
    raw = getattr(tokenizer, "backend_tokenizer", None)
    words = raw.to_str() if raw is not None else json.dumps(sorted(tokenizer.get_vocab().items()))
    added = sorted((i, repr(token)) for i, token in tokenizer.added_tokens_decoder.items())
    parts = [words, added, type(tokenizer), encoder.template, encoder.visual, type(head), head.options]
    return hashlib.sha256("\n".join(map(repr, parts)).encode()).hexdigest()


def code_digest(encoder: PromptEncoder) -> str:
    """Of the code that turns annotations into tokens, the head's own module among it."""
    core = Path(__file__).resolve().parents[1]
    files = [file for room in ROOMS for file in sorted((core / room).glob("*.py"))]
    files.append(Path(inspect.getfile(type(encoder.head))))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
