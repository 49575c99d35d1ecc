"""The published packed preference files, ``torch.save`` of token ids, back to text.

The two packings: published_systems.md#d2vlm-preference-loss.

In: the ``.pt`` file and the tokenizer it was packed with. Out: records in our own schema, as dicts. Both published
packings name the tokens that each answer must predict, so nothing has to be cut out of the packed sequence. Masks and
positions are not read: our training makes its own.
"""

import itertools
import os
import pickle
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from videollm.common.files import Bad
from videollm.data import AnnotationError
from videollm.data.published import CHOSEN, TEXT_ONLY, class_kind


def read_packed(path: str | os.PathLike, tokenizer: PreTrainedTokenizerBase) -> list[dict]:
    """The records of a packed file in our own schema, each with its one rejected answer.

    Only tensors and plain values are loaded, never code.

    Raises:
        AnnotationError: the file cannot be read, or with every record that is not packed as published.
    """
    try:
        items = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        reason = " ".join(str(error).split())[:200]
        raise AnnotationError([f"{path}: cannot be read: {reason} (file) - give the published .pt file"]) from None
    if not isinstance(items, list) or not items:
        raise AnnotationError([f"{path}: no list of records (file) - give the published .pt file"])
    records, problems = [], []
    for k, item in enumerate(items, start=1):
        try:
            records.append(_unpack(item, tokenizer))
        except Bad as error:
            problems.append(f"{path}:item {k}: {error}")
    if problems:
        raise AnnotationError(problems)
    return records


def _unpack(item: Any, tokenizer: PreTrainedTokenizerBase) -> dict:
    """One packed record -> our own schema."""
    packed = item.get("processed_response") if isinstance(item, dict) else None
    if not isinstance(packed, dict):
        raise Bad("not packed", "processed_response", "give a file with one packed class a record")
    name = packed.get("class")
    try:
        (event,) = packed["conflict_events"]
        shared = [packed["full_token_ids"][0]] if event[CHOSEN]["text"]["input_index"][0] == 0 else []
        chosen, reject = (
            _text([*shared, *event[side]["text"]["logit_token_id"]], bool(shared), tokenizer)
            for side in (CHOSEN, "reject")
        )
        human = item["conversations"][0]
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise Bad(f"not packed as published: {error!r}", "processed_response", "pack the record anew") from None
    if not isinstance(name, str):
        raise Bad("no class", "processed_response.class", "pack the record anew")
    kind = class_kind(name, item.get("task"))
    entry = {"factor": kind or name, "value": reject, "tgt": _flat(item.get("tgt_reject"))}
    kept = {k: v for k, v in item.items() if k not in ("processed_response", "tgt_reject", "src", "tgt")}
    times = {key: value for key in ("src", "tgt") if (value := _flat(item.get(key)))}
    turns = [human, {"from": "gpt", "value": chosen}]
    rejected = [entry | ({"text_only": True} if kind == TEXT_ONLY else {})]
    return kept | times | {"conversations": turns, "rejected": rejected}


def _flat(value: Any) -> Any:
    """Times as a plain list, of one class where they are listed by class."""
    value = value.get(CHOSEN) if isinstance(value, dict) else value
    return value.tolist() if isinstance(value, torch.Tensor) else value


def _text(ids: list[int], shared: bool, tokenizer: PreTrainedTokenizerBase) -> str:
    """The text of an answer. The first packing ends with the stop token, the second has none.

    The text between special tokens was tokenised piece by piece, and so it is decoded: tokenizers that put a blank
    before each piece take it away again.
    """
    ids = ids if shared else ids[:-1]
    special = {token.content: i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    pieces = itertools.groupby(ids, key=lambda i: i in special.values())
    text = "".join(
        "".join(tokenizer.convert_ids_to_tokens(piece)) if is_special else tokenizer.decode(piece)
        for is_special, piece in ((is_special, list(piece)) for is_special, piece in pieces)
    )
    if tokenizer(text, add_special_tokens=False).input_ids != ids:
        what = f"its tokens are not those of {text[:80]!r}"
        raise Bad(what, "processed_response", "give the tokenizer that it was packed with")
    return text
