"""What published annotation files write otherwise: their span marks, and the layout of preference records.

Published: ``conversations`` and ``tgt`` hold one entry a class, ``chosen`` among them; our own: the chosen answer as in
every record, and a list ``rejected``. Only the shape changes: marks, spans and texts are checked by annotations.py,
which calls this file. It knows no file, no head and no tokenizer.
"""

import json
from typing import Any

from videollm.common.files import Bad

CHOSEN = "chosen"
DENSE_TASKS = ("dvc", "slc", "tvc", "rvc")
CLASS_TASKS = {"f": DENSE_TASKS, "repeat": DENSE_TASKS, "qwen": ("rvc",)}  # the published script asserts these
TEXT_ONLY = "qwen"
MARK, EVIDENCE_END, IMAGE = "<evi>", "</evi>", "<image>"
SPAN_MARKS = ("<span>", MARK, "<TIME_STAMP>")  # ours first: the one we write; any file trains any head


def read_as_published(item: dict) -> dict:
    """A record with what published code does not look at put right: of a picture and a video the picture counts, an
    empty one is none, and names may be numbers."""
    item = {key: value for key, value in item.items() if value not in ("", []) or key not in ("image", "video", "id")}
    if item.get("image") is not None:
        item.pop("video", None)
    for key in ("id", "task", "source"):
        if not isinstance(item.get(key), str | None):
            item[key] = json.dumps(item[key])
    return item


def from_classes(item: dict, raw: bool = False) -> dict:
    """A record in the published layout -> the same one in our own.

    Args:
        raw: as published, the chosen answer's question counts, whatever the classes ask.

    Raises:
        Bad: no chosen answer, no class, a class key or its task unknown, or another question in a class.
    """
    talks = item["conversations"]
    if CHOSEN not in talks:
        raise Bad("no chosen answer", "conversations", f"add the class {CHOSEN!r}")
    classes = [key for key in talks if key != CHOSEN]
    if not classes:
        raise Bad("no rejected answer", "conversations", "add a class, or write a plain list of turns")
    if "rejected" in item:
        raise Bad("both classes and a list of rejected answers", "rejected", "keep one of the two")
    tgt, src = _by_class(item, "tgt", talks), _by_class(item, "src", talks)
    question, chosen = _turns(talks, CHOSEN)
    rejected = []
    for name in classes:
        asked, answer = _turns(talks, name)
        if asked != question and not raw:
            what = "its question is not the one of the chosen answer"
            raise Bad(what, f"conversations.{name}", "make a record of its own of it")
        kind = class_kind(name, item.get("task"))
        entry = {"factor": kind or name, "value": answer.get("value"), "tgt": tgt.get(name)}
        rejected.append(entry | ({"text_only": True} if kind == TEXT_ONLY else {}))
    times = {key: found[CHOSEN] for key, found in (("tgt", tgt), ("src", src)) if CHOSEN in found}
    kept = {key: value for key, value in item.items() if key not in ("tgt", "src", "conversations")}
    return kept | times | {"conversations": [question, chosen], "rejected": rejected}


def class_kind(name: str, task: Any) -> str:
    """The part of a class key that decides, the third at ``_``: ``reject_0_shift`` -> ``shift``.

    It may be empty.

    Raises:
        Bad: fewer than three parts, or a kind that the task cannot have.
    """
    parts = name.split("_")
    if len(parts) < 3:
        raise Bad(f"unknown class {name!r}", "conversations", "name it like reject_0_shift, in three parts")
    kind = parts[2]
    if kind in CLASS_TASKS and task not in CLASS_TASKS[kind]:
        tasks = ", ".join(CLASS_TASKS[kind])
        raise Bad(f"class {name!r} in a record of task {task!r}", "conversations", f"only {tasks} may have it")
    return kind


def _by_class(item: dict, key: str, talks: dict) -> dict:
    """The times of each class; ``src`` may also be flat, for it belongs to the question."""
    value = item.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        if key == "src":
            return {CHOSEN: value}
        raise Bad("not one list a class, as the conversations are", key, f'write {{"{CHOSEN}": [...], ...}}')
    if unknown := [name for name in value if name not in talks]:
        raise Bad(f"unknown class {unknown[0]!r}", key, "name each as in `conversations`")
    return value


def _turns(talks: dict, name: str) -> list[dict]:
    """[question, answer] of one class."""
    turns = talks[name]
    if not (isinstance(turns, list) and len(turns) == 2 and all(isinstance(turn, dict) for turn in turns)):
        raise Bad("not one question and one answer", f"conversations.{name}", "write [human, gpt]")
    return turns


def to_classes(item: dict) -> tuple[dict | None, list[str]]:
    """A preference record in our own layout -> the published one, and what that cannot hold.

    None where nothing is left. The published packing needs a video, one turn a side, and marks in both answers; only
    task ``rvc`` may have two answers without any.
    """
    turns = item["conversations"]
    if len(turns) != 2 or not item.get("video"):
        return None, ["the published layout has one question and one answer about a video"]
    (human, gpt), tgt = turns, item.get("tgt", [])
    talks, times, left_out = {CHOSEN: _pair(human, gpt["value"])}, {CHOSEN: tgt}, []
    for k, entry in enumerate(item["rejected"]):
        spans = entry.get("tgt", [])
        text_only = not spans and not tgt and item.get("task") in CLASS_TASKS[TEXT_ONLY]
        if not text_only and not (spans and tgt):
            left_out.append(f"rejected[{k}] ({entry['factor']}): an answer without a span mark, and no task rvc")
            continue
        name = f"reject_{k}_{TEXT_ONLY if text_only else entry['factor'].replace('_', '-')}"
        talks[name], times[name] = _pair(human, entry["value"]), spans
    if len(talks) == 1:
        return None, left_out
    kept = {key: value for key, value in item.items() if key not in ("rejected", "src", "tgt")}
    kept |= {"task": item.get("task", ""), "source": item.get("source", ""), "conversations": talks}
    kept |= {"src": {CHOSEN: item["src"]}} if item.get("src") else {}
    return kept | ({"tgt": times} if tgt else {}), left_out


def _pair(human: dict, answer: str) -> list[dict]:
    """One class: the question, and the answer behind its evidence stage; as it is where it is to the letter."""
    if IMAGE in human["value"]:
        return [human, {"from": "gpt", "value": answer}]
    question = human["value"].replace("<span>", MARK).replace("<video>", IMAGE)
    stage = MARK * answer.count("<span>") + EVIDENCE_END
    value = f"{stage} {answer.replace('<span>', MARK)}"
    return [{"from": "human", "value": question}, {"from": "gpt", "value": value}]
