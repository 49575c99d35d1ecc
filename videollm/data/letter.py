"""A record to the letter: what published D2VLM code makes of a text, blanks and odd places of its tokens included.

In: the object of a line in the published marks. Out: whether it is one, its answer in neutral words, and the parts that
each turn is written in (``Turn.written``). Published code knows no evidence stage: ``<evi>`` and ``</evi>`` are tokens
wherever they stand, and of 2n ``<evi>`` in an answer the first n ground, the last n answer
(published_systems.md#d2vlm-data). This file knows no head and no tokenizer.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from videollm.data.conversation import Part, SpanMark, Token, Turn, VisualMark
from videollm.data.published import EVIDENCE_END, IMAGE, MARK, SPAN_MARKS

_OTHERS = re.compile("|".join(["<video>", *(mark for mark in SPAN_MARKS if mark != MARK)]))  # not D2VLM's own
_TOKEN = re.compile(f"({MARK}|{EVIDENCE_END}|{IMAGE})")


def is_published(item: dict) -> bool:
    """Whether ``item`` is one question about a video, answered or not, with D2VLM's marks and as many as its spans."""
    turns = item.get("conversations")
    if not item.get("video") or not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        return False
    texts = [turn.get("value") for turn in turns]
    if [turn.get("from") for turn in turns] not in (["human"], ["human", "gpt"]):
        return False
    if not all(isinstance(text, str) for text in texts) or _OTHERS.search(texts[0]):
        return False
    return any(map(_TOKEN.search, texts)) and (len(turns) == 1 or marked_twice(texts[1], item.get("tgt")))


def marked_twice(answer: str, tgt: Any) -> bool:
    """Whether an answer in published words marks each span of ``tgt`` twice; without ``tgt`` none."""
    spans = len(tgt) / 2 if isinstance(tgt, list) else 0
    return answer.count(MARK) == 2 * spans and not _OTHERS.search(answer) and IMAGE not in answer


def usable(item: dict) -> tuple[dict, dict]:
    """``item`` with the times that published code looks at, and the keys with those that it leaves alone.

    Asked only, it reads no ``tgt``, and of ``src`` a pair a mark; an odd number of times (but one alone, which is a
    moment when asked) it does not see at all (docs/d2vlm.md, surprises 4 and 5).
    """
    turns, src = item["conversations"], item.get("src")
    kept, marks = dict(item), 2 * turns[0]["value"].count(MARK)
    if len(turns) == 1:
        kept.pop("tgt", None)
    if isinstance(src, list) and len(src) > 1:
        if len(src) % 2:
            del kept["src"]
        elif len(turns) == 1 and marks:
            kept["src"] = src[:marks]
    return kept, {key: item[key] for key in ("src", "tgt") if key in item and kept.get(key) != item[key]}


def neutral_answer(answer: str) -> str:
    """The answer proper, each event's mark once: what follows the first half of the marks, without ``</evi>``."""
    pieces = answer.split(MARK)
    answer = MARK.join(pieces[len(pieces) // 2 :])
    return answer.replace(EVIDENCE_END, "").lstrip()


def written_question(text: str, spans: int, last: bool) -> tuple[Part, ...]:
    """A question to the letter. Its first marks, or its ``last`` ones, stand for the spans 0, 1, ...; any other mark
    stands for none."""
    left_out = max(0, text.count(MARK) - spans) if last else 0
    return _parts(text, [None] * left_out + list(range(spans)))


def written_answer(text: str, first: int) -> tuple[Part, ...]:
    """An answer to the letter, whose spans are counted from ``first`` on."""
    spans = [first + k for k in range(text.count(MARK) // 2)]
    return _parts(text, spans + spans)


def written(item: dict, question: str, turns: Sequence[Turn], src: int) -> tuple[Turn, ...]:
    """The turns with what is written in them; the question as given, with ``src`` spans.

    These are its last marks in supervised training, where published code counts from the end of the prompt, and its
    first ones elsewhere.
    """
    from_end = len(turns) == 2 and "rejected" not in item and not has_moment(item)
    asked = replace(turns[0], written=written_question(question, src, from_end))
    answers = (written_answer(turn["value"], src) for turn in item["conversations"][1:])
    return asked, *(replace(turn, written=parts) for turn, parts in zip(turns[1:], answers, strict=True))


def has_moment(item: dict) -> bool:
    """Whether the question's ``src`` is one time alone."""
    return isinstance(item.get("src"), list) and len(item["src"]) == 1


def _parts(text: str, spans: Sequence[int | None]) -> tuple[Part, ...]:
    """``text`` cut at its tokens; the k-th mark stands for ``spans[k]``."""
    behind, parts = iter(spans), []
    for piece in _TOKEN.split(text):
        if piece == MARK and (span := next(behind, None)) is not None:
            parts.append(SpanMark(span))
        elif piece in (MARK, EVIDENCE_END):
            parts.append(Token(piece))
        else:
            parts.append(VisualMark(0, after="") if piece == IMAGE else piece)
    return tuple(part for part in parts if part != "")


def without_times(turn: Turn) -> Turn:
    """The turn with marks that stand for no span."""
    parts = (Token(MARK) if isinstance(part, SpanMark) else part for part in turn.written)
    return replace(turn, written=tuple(parts))


def spelled_out(parts: Sequence[Part]) -> str:
    """The text that ``parts`` are of."""
    names = {SpanMark: MARK, VisualMark: IMAGE}
    return "".join(part.text if isinstance(part, Token) else names.get(type(part), part) for part in parts)
