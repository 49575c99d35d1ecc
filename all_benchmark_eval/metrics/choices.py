"""Which option an answer's text chooses, and what multiple-choice benchmarks share: questions, rows, accuracies.

The ``mvbench_*``, ``longvideobench_*``, ``videomme_*`` and ``etbench_*`` rules are the published scripts', quirks
included (spec METRICS 7, 8, 10.2); ``read_choice`` is what the text says, the same for every benchmark. Accuracies are
over ``Mark``s, one a question. Official formats and sentence similarity are not known here.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from all_benchmark_eval.benchmark import BenchmarkError, read_json
from all_benchmark_eval.metrics.moments import as_object
from all_benchmark_eval.metrics.parsing import split_evidence

# ---- published -------------------------------------------------------------------------------------------------------


def mvbench_right(text: str, true: str, variant: Literal["distime", "d2vlm"]) -> bool:
    """Whether MVBench's scripts count ``text`` as right; ``true`` is "(A) the option".

    The first words are compared, each in the other: an empty answer, "(" or "." is always right. Raises IndexError, as
    the scripts do, where ``true`` has no text behind its letter.
    """
    word, _, true_word, _ = _first_words(text.replace("Answer: " if variant == "distime" else "</evi>", ""), true)
    return word.replace(".", "") in true_word or true_word in word


def longvideobench_right(text: str, true: str) -> bool:
    """Whether LongVideoBench's script counts ``text`` as right; ``true`` is "A. the option".

    The answer's first word within the true one, or the true option within what follows the first word: an empty answer
    is always right. Raises IndexError, as the script does, where ``true`` has no text behind its letter.
    """
    word, rest, true_word, true_rest = _first_words(text.strip(), true)
    return word.replace(".", "") in true_word or true_rest in rest


def _first_words(text: str, true: str) -> tuple[str, str, str, str]:
    word, _, rest = text.lower().partition(" ")
    true_word, _, true_rest = true.lower().partition(" ")
    if not true_rest:
        raise IndexError(f"no text behind the letter of {true!r}")
    return word, rest, true_word, true_rest[:-1] if true_rest.endswith(".") else true_rest


_VIDEOMME_PHRASES = (
    "The best answer is",
    "The correct answer is",
    "The answer is",
    "The answer",
    "Best answer:",
    "Best option: ",
    "Answer:",
    "Option:",
    "The correct answer",
    "The correct option",
)


def videomme_letter(text: str) -> str:
    """The letter that Video-MME's script as D2VLM ships it reads, "" for none: "Because it is D" gives B."""
    text = text.strip()
    for phrase in _VIDEOMME_PHRASES:
        text = text.replace(phrase, "")
    found = re.search("[A-D]", text.replace("</evi>", "").split(".")[0])
    return found.group() if found else ""


@dataclass(frozen=True)
class Verdict:
    """What a letter rule makes of an answer.

    ``right`` is None where no letter decides: then the option most like ``rest`` is taken, and an empty ``rest`` is
    wrong. ``matched``: the scripts do not count the answer as failed.
    """

    right: bool | None
    matched: bool
    rest: str = ""


def etbench_verdict(text: str, true: int, count: int, *, bracketed: bool, final: bool) -> Verdict:
    """E.T. Bench's letter rules for an answer to one of ``count`` options (METRICS 10.2).

    ``bracketed``: the first "(letter)" anywhere comes first, and any letter counts as matched (the original scripts).
    ``final``: a letter that is wrong but an option decides as well; else only a right one does.
    """
    letters = [found.group(1)] if bracketed and (found := re.search(r"\(([A-Za-z])\)", text)) else []
    rest = text[len("best option:") :] if text.lower().startswith("best option:") else text
    rest = rest.lstrip().lstrip("(").lstrip()
    if rest and (len(rest) == 1 or rest[1] in "., )"):
        letters.append(rest[0])
    for letter in letters:
        choice = "abcde"[:count].find(letter.lower())
        if choice == true or (final and choice >= 0):
            return Verdict(choice == true, matched=True)
    return Verdict(None, matched=bracketed and bool(letters) and bool(rest), rest=rest)


def letter_of(true: str) -> int | None:
    """The index of the option that a ground truth such as "(B) text" or "B. text" names."""
    found = re.match(r"\s*\(?\s*([A-Za-z])\s*(?:[).]|$)", true)
    return ord(found.group(1).upper()) - ord("A") if found else None


# ---- what the text says ----------------------------------------------------------------------------------------------

_ALONE = re.compile(r"[\W_]*([A-Za-z])[\W_]*")
_LEADING = re.compile(r"[\s\"'*]*(?:\(\s?([A-Za-z])\s?\)|([A-Za-z])\s?[).:,])")
_TOLD = re.compile(
    r"\b(?:answer|option|choice|it)\b\s{0,3}(?:is|:|=)?\s{0,3}:?\s{0,3}[\"'*]{0,3}"
    r"(?:\(\s?([a-z])\s?\)|((?-i:[A-Z]))\b(?!['’])|([a-z])\b(?=[\W_]{0,9}$))",
    re.IGNORECASE,
)
_BRACKETED = re.compile(r"\(\s?([A-Za-z])\s?\)")


def read_choice(text: str, count: int, options: Sequence[str] = ()) -> int | None:
    """The index of the one option that an answer chooses, of ``count``; None if it chooses none, or several.

    In this order: a letter alone; the letter told as the answer ("the answer is (B)", the last one told); the letter it
    starts with; the only letter in brackets; the only one of ``options`` that the answer holds word for word. What
    stands before an evidence delimiter is no part of the answer.
    """
    text = split_evidence(text)[1].strip()
    bracketed = {letter.upper() for letter in _BRACKETED.findall(text)}
    found = _ALONE.fullmatch(text) or next(reversed(list(_TOLD.finditer(text))), None)
    if found is None and len(bracketed) < 2:
        found = _LEADING.match(text) or _BRACKETED.search(text)
    if found is None:
        return _held(text, options) if not bracketed else None
    choice = ord(next(filter(None, found.groups())).upper()) - ord("A")
    return choice if choice < count else None


def _held(text: str, options: Sequence[str]) -> int | None:
    """The only option whose words stand in the text in a row; of options within options, the longest."""
    words = f" {_words(text)} "
    held = [(len(_words(option)), i) for i, option in enumerate(options) if f" {_words(option)} " in words]
    longest = [i for size, i in held if size == max(held)[0] and size]
    within = all(_words(options[i]) in _words(options[longest[0]]) for _, i in held) if longest else False
    return longest[0] if len(longest) == 1 and within else None


def _words(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


# ---- accuracies ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mark:
    """One question's outcome. ``counted``: it is in the denominator. ``groups``: {kind: value}, for break-downs."""

    id: str
    right: bool
    state: Literal["scored", "unparsed", "missing"] = "scored"
    counted: bool = True
    groups: dict[str, str] = field(default_factory=dict)


def tally(marks: Iterable[Mark], key: Callable[[Mark], str]) -> dict[str, dict[str, int]]:
    """``{key: {"correct", "total"}}`` of the counted marks, keys in the order in which they come up."""
    found: dict[str, dict[str, int]] = {}
    for mark in marks:
        entry = found.setdefault(key(mark), {"correct": 0, "total": 0})
        entry["correct"] += mark.counted and mark.right
        entry["total"] += mark.counted
    return found


def share(entry: dict[str, int]) -> float | None:
    """correct / total; None of nothing."""
    return entry["correct"] / entry["total"] if entry["total"] else None


def state_counts(marks: Sequence[Mark]) -> dict[str, int]:
    """Of ``Scores.counts``."""
    states = [mark.state for mark in marks]
    counts = {state: states.count(state) for state in ("scored", "unparsed", "missing")}
    return {"samples": len(states)} | counts | {"clipped": 0}


def per_sample(marks: Iterable[Mark]) -> dict[str, float]:
    """{id: 1.0 if right} of the counted marks."""
    return {mark.id: float(mark.right) for mark in marks if mark.counted}


# ---- questions and rows ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Question:
    """One question of a ground truth. ``record``: more keys of its line for ``videollm.infer`` (bound, frames)."""

    id: str
    video: str
    text: str
    options: tuple[str, ...]
    answer: int  # the right option
    groups: dict[str, str] = field(default_factory=dict)
    record: dict[str, Any] = field(default_factory=dict)

    def line(self, wording: dict[str, str]) -> dict:
        """For ``videollm.infer``. ``wording`` has "text" with places {question} and {options}, and "option"."""
        options = [
            wording["option"].format(letter=chr(ord("A") + i), option=option) for i, option in enumerate(self.options)
        ]
        text = wording["text"].format(question=self.text, options="\n".join(options))
        turns = [{"from": "human", "value": f"<video>\n{text}"}]
        return {"id": self.id, "video": self.video} | self.record | {"conversations": turns}


def read_rows(path: Path, keys: Sequence[str]) -> list[tuple[str, dict]]:
    """(place, object) of every item of a JSON list; each has ``keys``. Raises BenchmarkError where that is not so."""
    rows = read_json(path)
    if not isinstance(rows, list) or not rows:
        raise BenchmarkError(f"{path}: expected a list with an item for every question, got {type(rows).__name__}")
    places = [f"{path}: item {number}" for number in range(1, len(rows) + 1)]
    return [(where, dict(as_object(row, where, keys))) for where, row in zip(places, rows, strict=True)]


def once(items: Iterable[tuple[str, Any]], path: object) -> dict[str, Any]:
    """{id: item}. Raises BenchmarkError for an id that stands twice."""
    found: dict[str, Any] = {}
    for name, item in items:
        if name in found:
            raise BenchmarkError(f"{path}: {name!r} stands twice")
        found[name] = item
    return found
