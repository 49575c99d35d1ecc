"""The answer part of a text: what a model says in the end, without what it thinks before.

In: the text of an answer, untouched. Out: the part that counts, with tags, end tokens and full-width signs out of the
way. Reasoning is not the answer: ``<think>`` blocks (also unclosed ones) are dropped, and the last ``<answer>``, the
last ``\\boxed`` or what follows the last "Final answer:" is all that counts. It knows no time and no option.
"""

import re
from dataclasses import dataclass
from typing import Generic, TypeVar

Value = TypeVar("Value")


@dataclass(frozen=True)
class Reading(Generic[Value]):
    """What was read. ``value`` is None or empty where nothing was; ``rule`` says in a few words how, or why not."""

    value: Value
    rule: str


# Words by which an answer takes back what it has said.
TURNS = (
    r"(?:(?:^|[.!?…\n])\s{0,3}(?:(?:hmm+|oh|but|no)[,.]?\s)?(?:wait|correction|apologies|sorry|actually(?!.{0,40}\balso))\b"
    r"|\b(?:wait|hold\s+on|scratch\s+that)\s?[,:.!-]|\blet\s+me\s+(?:re-?\w+|double-?check|check\s+again|look\s+again)\b"
    r"|\bor\s+rather\b|\bon\s+(?:second|closer)\s+\w+\b|更正|其实|不对)[,:.!-]?"
)
ANSWER_TAGS = ("answer", "conclusion", "solution")
ALL, THOUGHT_DROPPED, NOTHING = "all of it", "reasoning dropped", "no answer part"  # rules where no mark was found

_THOUGHT = re.compile(  # also in brackets of Kimi's, Magistral's and Seed's, and as channels of gpt-oss
    r"[<◁\[]\s{0,3}(/?)\s{0,3}(?:seed:)?"
    r"(?:think|thinking|thoughts?|reason|reasoning|analysis|reflection|scratchpad|cot)\s{0,3}[>▷\]]"
    r"|<\|(?:channel\|>analysis<\|message|begin_of_thought)\|>|<\|(channel\|>final<\|message|end_of_thought)\|>",
    re.IGNORECASE,
)
_END_TOKEN = re.compile(r"</?s>|<\|[^<>|]{1,40}\|>|<(?:eos|bos|pad|end_of_turn|unk)>", re.I)
_MARKER = re.compile(
    r"(?:\b(?:final|best|correct|my|the)\s{1,3}){0,3}\b(?:answer|ans)\b[*_]{0,3}\s{0,3}(?:is\s{0,3})?[:=][*_]{0,3}"
    r"|\bfinal\s{1,3}answer\b[*_]{0,3}(?:\s+is\b)?|^\W{0,8}answer\W{0,8}$"
    r"|(?:最终|正确)?答案\s?(?:是|为|[:=])|正解\s?[:=は]|答え\s?[:=は]",
    re.IGNORECASE | re.MULTILINE,
)
_BOXED = "\\boxed{"
_LATEX_TEXT = re.compile(r"\\(?:text|mathrm|mathbf|textbf)\s?\{([^{}]{0,80})\}")
_WIDE = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {0x3000: 0x20, 0x3010: 0x5B, 0x3011: 0x5D}


def answer_part(text: str, tags: tuple[str, ...] = ANSWER_TAGS) -> tuple[str, str]:
    """(part, rule): the part of ``text`` that counts, and what marked it; ("", why) where no answer was given.

    ``tags``: names of tags that hold an answer, the ones that count most first; the last one of a name counts, and it
    need not be closed. Full-width digits, letters and signs become ASCII, character by character.
    """
    text = text.translate(_WIDE)
    told = _without_thoughts(text)
    rule = ALL if told == text else THOUGHT_DROPPED
    told = _END_TOKEN.sub(" ", told)
    for tag in tags:
        inside = _last_tagged(told, tag)
        if inside is not None:
            told, rule = inside, f"<{tag}>"
            break
    if (at := told.rfind(_BOXED)) >= 0:
        return _LATEX_TEXT.sub(r"\1", _braced(told[at + len(_BOXED) :])), "\\boxed"
    marks = [mark for mark in _MARKER.finditer(told) if told[mark.end() :].strip(" \t\r\n*_.:")]
    if marks:
        return told[marks[-1].end() :], marks[-1].group().strip(" \n*_:#=")
    return told, rule if told.strip() else NOTHING


def beside_answer(text: str) -> str:
    """What stands beside an answer part and is no thought: "5 - 10 s." of "5 - 10 s. Answer: C"."""
    text = text.translate(_WIDE)
    part, rest = answer_part(text)[0], _END_TOKEN.sub(" ", _without_thoughts(text))
    return " ".join(rest.rsplit(part, maxsplit=1)) if part.strip() else ""


def _without_thoughts(text: str) -> str:
    """Without what stands in the tags of reasoning, before a lone closing one, and behind one never closed."""
    kept: list[str] = []
    place = depth = 0
    for tag in _THOUGHT.finditer(text):
        if not (tag[1] or tag[2]):
            if not depth:
                kept.append(text[place : tag.start()])
            depth += 1
        elif depth:
            depth, place = 0, tag.end()  # blocks within blocks end together
        else:
            kept, place = [], tag.end()
    return " ".join(kept) if depth else " ".join([*kept, text[place:]])


def _last_tagged(text: str, tag: str) -> str | None:
    """What the last ``<tag>`` holds, closed or not; None where there is none."""
    opened = list(re.finditer(rf"<\s{{0,3}}{tag}\s{{0,3}}>", text, re.I))
    if not opened:
        return None
    closed = re.compile(rf"<\s{{0,3}}/\s{{0,3}}{tag}\s{{0,3}}>", re.I).search(text, opened[-1].end())
    return text[opened[-1].end() : closed.start() if closed else len(text)]


def _braced(text: str) -> str:
    """Up to the brace that closes one opened before ``text``."""
    depth = 1
    for place, sign in enumerate(text):
        depth += (sign == "{") - (sign == "}")
        if not depth:
            return text[:place]
    return text
