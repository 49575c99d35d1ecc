"""Which option an answer chooses.

In: the text of an answer, how many options there are, their texts and labels. Out: the index of one option, or None
where none is chosen, or several. What the answer says it is ("the answer is C") outranks letters told elsewhere; a
letter that is no option is skipped; "A dog runs." is the option with that text, not A.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from videollm.reading.part import TURNS, Reading, answer_part
from videollm.reading.quantities import quantities
from videollm.reading.structured import fragments

Labels = Literal["letter", "digit"]

_KEYS = re.compile(
    r"(?:(?:final|best|correct|selected|predicted|my)[_ ]?)?"
    r"(?:answer|choice|option|result|prediction|pred|letter|label|response)(?:[_ ]?(?:letter|id|index|idx))?",
    re.IGNORECASE,
)
_KEYED = re.compile(rf"[\"']?(?:{_KEYS.pattern})[\"']?\s?:\s?[\"'(\[]{{0,2}}(\w{{1,2}})[\"')\]]{{0,2}}\s?[,}}\n]", re.I)
_WORDS = r"(?:\s{1,3}(?!not\b|n[o']t\b)[\w']{1,12}){0,5}?"
_HEDGES = r"(?:\s+(?:most|very|likely|probably|clearly|definitely|certainly|obviously|surely|therefore|thus)\b){0,3}"
_BE = (
    r"(?:'s|\s+(?:is|was|(?:would|should|must|will|can\s+only|has\s+to|have\s+to|seems\s+to|appears\s+to)\s+be)\b)"
    + _HEDGES
)
_IS = rf"(?:{_BE}|\bare|\bes|\best|\bist|(?:应该|应当|应|可能|大概|就|只能|一定|必须)*[是为]|は|은|는|:|=|\s[-–—]\s)"
_NOT_BUT = r"(?:\bnot\s[(\[*]{0,3}(?:option\s)?\w[)\]*]{0,3},?\s(?:but|rather)\s(?:rather\s)?)?"  # "not A but C"
_SIGNS = r"[\s*_\"'`(\[{:.$<]{0,8}"
_NAME = r"(?:(?:the\s+)?(?:option|choice|letter|number|answer)\b|选项)?"
_ANSWER = (
    r"(?<!incorrect\s)(?<!wrong\s)(?<!least\s)(?:\b(?:answer|ans|respuesta(?:\s+correcta)?|réponse|antwort|ответ)\b|\bchoice(?=\s{0,2}:)|\bmy\s+choice\b"
    r"|\b(?:best|good|correct|right|selected|chosen|final|appropriate|suitable|accurate|likely|plausible)\s+(?:option|choice)\b"
    r"|答案|正解|答え|정답|(?:正确|最佳)选项)"
)
_CHOSEN = (
    rf"(?:\b(?:choose|pick|select|go\s+with|going\s+with|say|believe|think)\b(?:\s+(?:it|that|the\s+answer))?(?:{_BE})?"
    rf"|\b(?:it|that){_BE}|选择?|选项|[认觉][为得](?:答案)?(?:应该|应|可能|就)?[是为]|(?:^|[，,。]\s?)(?:而|应该?|就)*[是为]|\b(?:hence|thus|therefore|so)\b,?"
    r"|^(?:option|choice|(?:most\s+)?likely|probably|definitely)\b)"
)
_RIGHT = r"(?:the\s+)?(?:(?:most|only|likely|best)\s+){0,2}(?:correct|right|best|answer|likely|true|正确)"
_END = r"(?![A-Za-z0-9_\u00c0-\u024f])(?!['’][A-Za-z])(?![.:]\d)(?!-\w)"
_GOES_ON = re.compile(
    r"[\s*_\"'`$]{0,4}(?:$|[()\].,:;!?\n}]|(?:because|since|as|is|was|would|seems|should|and|or|due|for|given|—|–|-|which|that|"
    r"based|when|not)\b)",
    re.IGNORECASE,
)
_JOINED = r"(?:,|/|\bor\b|\band\b|&|，|、|或者?|[和与及])"
_MORE = re.compile(
    rf"[\s*_\"'`)\]]{{0,4}}(?:{_JOINED}|(?=\())[\s*_\"'`]{{0,3}}(?:\b(?:or|possibly|maybe|perhaps)\s)?(?:\b(?:option|choice)\s)?[\s(\[]{{0,2}}([A-Z]|\d{{1,2}})(?![\w'’])"
    r"[)\]]?(?=[\s).,\]!?。，]|$)(?!\s(?:(?:is|are)\s+(?:wrong|not|in)|appears?|shows?))"
)
_PAIRED = re.compile(
    rf"(?:\b(?:both|either|neither)\b|(?<![A-Za-z])[A-Z][)\]*]{{0,2}}\s{{0,2}}{_JOINED}\s{{0,2}}(?:option\s)?[(\[*]{{0,2}})$",
    re.IGNORECASE,
)
_DENIED = re.compile(r"\bnot\b|n['’]t\b|\bneither\b|不是", re.IGNORECASE)
_REFUSED = re.compile(r"\b(?:not|no|never|nothing|wrong|incorrect)\b|n['’ ]t\b", re.IGNORECASE)
_WRONG = re.compile(  # in words, see ``_words``
    r"\s*(?:(?:is|are|was)(?:n t\b|\s+(?:wrong|not|incorrect)\b)|(?:no|wrong|incorrect|false)\b)"
)
_TURNED = re.compile(TURNS, re.IGNORECASE)
_LISTED = re.compile(r"^[\s*]{0,4}[(\[]?([A-Z]|\d{1,2})[)\].:]\s", re.MULTILINE)
NO_CHOICE = "no choice"
_UNSURE = ("the only label in it", "the option's text in it")  # rules that do not outweigh a choice told before
SEVERAL = -1  # in place of an index, within this file
_OPTION = 500  # characters behind a letter that are held against the option's text

Found = int | None  # an index, SEVERAL, or None


def read_choice(text: str, count: int, options: Sequence[str] = (), labels: Labels = "letter") -> int | None:
    """The index of the one option that an answer chooses, of ``count``; None if it chooses none, or several.

    ``labels``: "letter" for options (A), (B), ...; "digit" for (0), (1), ..., where letters count as well.
    """
    return explain_choice(text, count, options, labels).value


def explain_choice(
    text: str, count: int, options: Sequence[str] = (), labels: Labels = "letter"
) -> Reading[int | None]:
    """The choice, and by which rule it was read."""
    part, why = answer_part(text)
    reader = _Reader(count, [_words(option) for option in options], _rules(labels))
    keyed = next((value for value in map(_of_keys, fragments(part)) if value is not None), None)
    if keyed is None and (found := _KEYED.search(part)):
        keyed = found.group(1)
    choice, rule = reader.read(part if keyed is None else keyed)
    return Reading(choice, f"{why}; {rule}" if keyed is None else f"{why}; a key of JSON; {rule}")


@dataclass(frozen=True)
class _Rules:
    """Patterns with a group ``label``; without brackets it is ``bare`` in ``leading`` and ``named`` in ``marked``."""

    alone: re.Pattern
    told: re.Pattern
    chosen: re.Pattern
    correct: re.Pattern
    leading: re.Pattern
    marked: re.Pattern


@cache
def _rules(labels: Labels) -> _Rules:
    signs = {"letter": "[A-Za-z]", "digit": r"\d{1,2}|[A-Za-z]"}[labels]
    label, flags = f"(?<![A-Za-z])(?P<label>{signs})", re.IGNORECASE | re.MULTILINE
    behind = rf"{_SIGNS}{_NOT_BUT}{_NAME}{_SIGNS}{label}{_END}"
    return _Rules(
        re.compile(rf"[\W_]*?(?<!-){label}[\W_]*"),
        re.compile(rf"{_ANSWER}{_WORDS}\s{{0,3}}{_IS}?{behind}", flags),
        re.compile(rf"{_CHOSEN}{behind}", flags),
        re.compile(rf"(?<![A-Za-z0-9'’.]){label}[)\]*_\"'`.]{{0,4}}\s{{0,3}}{_IS}\s{{0,3}}{_RIGHT}", flags),
        re.compile(rf"[\s\"'*`]*(?:[(\[{{]\s?{label}\s?[)\]}}]|(?P<bare>{signs})(?=[).:,;\s*\"'`]|$))"),
        re.compile(rf"[(\[]\s?{label}\s?[)\]]|\b[Oo]ption\s(?P<named>{signs}){_END}"),
    )


@dataclass(frozen=True)
class _Reader:
    """The rules for one question. ``options`` are in words, see ``_words``."""

    count: int
    options: Sequence[str]
    rules: _Rules

    def read(self, text: str) -> tuple[int | None, str]:
        """(choice, rule). Behind a "wait" or "actually" stands what counts, if that chooses."""
        text = text.strip()
        before, rule = self._read(text)
        turned = list(_TURNED.finditer(text))
        after, later = self._read(text[turned[-1].end() :].strip()) if turned else (None, NO_CHOICE)
        if later == NO_CHOICE:
            return before, rule
        sure = after == before or later not in _UNSURE
        return (after, later) if sure else (None, "an answer that is taken back")

    def _read(self, text: str) -> tuple[int | None, str]:
        same, alone = self._equal(text), self.rules.alone.fullmatch(text)
        if alone and not text.startswith("-"):
            choice = self._index(alone["label"])
            if None not in (same, choice) and same != choice:
                return None, "a label that is another option's text"
            return (same, "the option's text") if choice is None else (choice, "a label alone")
        if same is not None:
            return same, "the option's text"
        if re.match(r"\W*(?:both|either|neither)\b", text, re.IGNORECASE):
            return None, "several options"
        for rule, find in (
            ("the answer told", lambda: self._last(self.rules.told, text)),
            ("its first label", lambda: self._first(text)),
            ("the option called right", lambda: self._last(self.rules.correct, text)),
            ("the option chosen", lambda: self._last(self.rules.chosen, text, alone=True)),
            ("its last line", lambda: self._last_line(text)),
            (_UNSURE[0], lambda: self._only_marked(text)),
            (_UNSURE[1], lambda: self._held(text)),
        ):
            found = find()
            if found is not None:
                return (None, "several options") if found == SEVERAL else (found, rule)
        return None, NO_CHOICE

    def _index(self, label: str) -> Found:
        """The option that a label names; None if there is none."""
        index = int(label) if label.isdecimal() else ord(label.upper()) - ord("A")
        return index if 0 <= index < self.count else None

    def _last(self, rule: re.Pattern, text: str, alone: bool = False) -> Found:
        """The last label that ``rule`` finds, passing over those that are denied, an article, or no option.

        ``alone``: it must be the only one that it finds.
        """
        last: Found = None
        for found in reversed(list(rule.finditer(text))):
            label, (start, end) = found["label"], found.span("label")
            if _DENIED.search(re.sub(_NOT_BUT, "", found.group(), flags=re.I)) or not self._is_label(text, label, end):
                continue
            several, index = self._several(text, start, end), self._index(label)
            if last is None and several or not several and None not in (last, index) and index != last:
                return SEVERAL
            last = index if last is None else last
            if last is not None and not alone:
                break
        return last

    def _is_label(self, text: str, label: str, end: int) -> bool:
        """Whether a letter is a label, and no article or word: "A dog runs" is none, "C because" is one."""
        behind = text[end : end + _OPTION]
        if re.match(r"[^\x00-\x7f]|[)\]}*]", behind):
            return True
        if _GOES_ON.match(behind) and (label.isupper() or label.isdecimal() or not re.match(r"\s[a-z]", behind)):
            return True
        words, index = _words(behind), self._index(label)
        return bool(words and index is not None and index < len(self.options) and words.startswith(self.options[index]))

    def _several(self, text: str, start: int, end: int) -> bool:
        """Whether the label is one of two: "C or D", "both B and C"."""
        more = _MORE.match(text, end)
        if more and more.group(1) != text[start:end]:
            return self._index(more.group(1)) is not None
        return bool(_PAIRED.search(text[max(0, start - 24) : start]))

    def _first(self, text: str) -> Found:
        """The label that the text begins with, unless it goes through all of them or another option's text follows."""
        found = self.rules.leading.match(text)
        if not found:
            return None
        name = "label" if found["label"] else "bare"
        label, (start, end) = found[name], found.span(name)
        several = len({m.group(1) for m in _LISTED.finditer(text)}) > 1 or self._all_told(text)
        behind = text[end : end + _OPTION]
        index, other = self._index(label), self._equal(re.sub(r"^[)\]}.:,\s]+", "", behind).split("\n")[0])
        if None not in (index, other) and index != other:
            return SEVERAL
        no_label = name == "bare" and not self._is_label(text, label, end)
        if several or no_label or re.match(r"[.:]\d", behind) or self._called_wrong(index, behind):
            return None
        return SEVERAL if self._several(text, start, end) else index

    def _all_told(self, text: str) -> bool:
        """Whether the text tells the whole list of options again."""
        words = f" {_words(text)} "
        return len(self.options) > 2 and all(f" {option} " in words for option in self.options)

    def _called_wrong(self, index: Found, behind: str) -> bool:
        """Whether a label is only told to be refused: "(A) is wrong", "(A) a dog runs is not shown"."""
        words = _words(behind)
        option = self.options[index] if index is not None and index < len(self.options) else ""
        return bool(_WRONG.match(words.removeprefix(option)))

    def _last_line(self, text: str) -> Found:
        lines = [line for line in text.split("\n") if line.strip()]
        found = self.rules.alone.fullmatch(lines[-1].strip()) if len(lines) > 1 else None
        return self._index(found["label"]) if found and not found["label"].islower() else None

    def _only_marked(self, text: str) -> Found:
        found = {(m["label"] or m["named"]).upper() for m in self.rules.marked.finditer(text)}
        if len(found) > 1:
            return SEVERAL
        return self._index(found.pop()) if found and not _REFUSED.search(text) else None

    def _equal(self, text: str) -> int | None:
        """The only option with these words; of a "No, he does not" the option "No"."""
        words = _words(text)
        same = [i for i, option in enumerate(self.options) if option and option == words]
        if not same and (found := re.match(r"\W*(yes|no)\b(?=\W)", text, re.IGNORECASE)):
            same = [i for i, option in enumerate(self.options) if option == found.group(1).lower()]
        return same[0] if len(same) == 1 else None

    def _held(self, text: str) -> Found:
        """The only option whose words stand in the text in a row; of options within options, the longest.

        Where the rest of the text denies something, nothing is sure.
        """
        words = f" {_words(text)} "
        held = [(len(option), i) for i, option in enumerate(self.options) if option and f" {option} " in words]
        if not held:
            return None
        longest = [i for size, i in held if size == max(held)[0]]
        option = self.options[longest[0]]
        within = all(self.options[i] in option for _, i in held)
        if len(longest) > 1 or not within:
            return SEVERAL
        sure = _says(text, option) and not _REFUSED.search(words.replace(f" {option} ", " "))
        return longest[0] if sure else None


def _says(text: str, option: str) -> bool:
    """Whether a text that holds an option's words may mean it. Of one word that is less sure: "he left the room".

    A number must be the only one and tell no time; any other word must end its clause ("the car is blue.").
    """
    if " " in option or not option.isascii():
        return True
    if option.isdecimal():
        return [q.unit in ("", "none") for q in quantities(text)] == [True]
    return bool(re.search(rf"\b{re.escape(option)}\b\W{{0,3}}(?:$|[.,;!?\n])", text, re.IGNORECASE))


def _of_keys(value: Any) -> str | None:
    """The text under a key for an answer, or the one text of a list."""
    if isinstance(value, dict):
        found = next((v for k, v in value.items() if _KEYS.fullmatch(str(k))), None)
        if isinstance(found, list) and len(found) == 1:
            found = found[0]
        return str(found) if isinstance(found, str | int) and not isinstance(found, bool) else None
    one = isinstance(value, list) and len(value) == 1 and isinstance(value[0], str)
    return value[0] if one else None


def _words(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))
