"""An answer taken apart into its events, and put together again with other ones.

In: the text of an answer with ``<span>`` marks, and its spans. Out: a ``Wording``: what is said before and after each
mark, and how the events are joined; unchanged, it spells the same text. Two kinds: *told* events have words of their
own (``<span>, cut. <span>, fry.``), *listed* ones have none (``It happens at <span>, <span> and <span>.``).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

MARK = "<span>"
Span = tuple[float, float]

_END = re.compile(r"(?:\s*[.;!?]+\s+|\s*\n\s*)")  # of a sentence, before another
_HEAD = re.compile(r".*(?:[.;:!?]\s+|\n\s*)", re.DOTALL)  # what stands before the first event's sentence
_TAIL = re.compile(r"\s*[.;!?]*\s*$")
_LINK = re.compile(r"(?:[\s,;&-]|\b(?:and|or|then)\b)*", re.IGNORECASE)  # what may join two events of one sentence


@dataclass(frozen=True)
class Event:
    """One span of an answer, seconds, and what the answer says around it."""

    before: str
    span: Span
    after: str

    @property
    def words(self) -> tuple[str, ...]:
        """What is said of the event, without case and punctuation."""
        return words(self.before + " " + self.after)

    @property
    def style(self) -> tuple[bool, bool]:
        """Whether words stand before and after the mark: only events of one style can lend each other their words."""
        return bool(words(self.before)), bool(words(self.after))


@dataclass(frozen=True)
class Wording:
    """An answer: ``head``, then its events with ``joins`` between them, then ``tail``."""

    head: str
    events: tuple[Event, ...]
    joins: tuple[str, ...]
    tail: str

    @property
    def text(self) -> str:
        """The answer with its marks spelled ``<span>``."""
        told = [f"{event.before}{MARK}{event.after}" for event in self.events]
        joined = [part for pair in zip(told, (*self.joins, ""), strict=True) for part in pair] if told else []
        return "".join((self.head, *joined, self.tail))

    @property
    def spans(self) -> tuple[Span, ...]:
        return tuple(event.span for event in self.events)

    @property
    def key(self) -> tuple:
        """What two answers that say the same have in common: words, places of the marks, times to 0.01 s."""
        return words(self.text.replace(MARK, " \x00 ")), tuple((round(s, 2), round(e, 2)) for s, e in self.spans)

    @property
    def listed(self) -> bool:
        """Whether the spans are a list in one sentence, so that the words belong to all of them."""
        if len(self.events) < 2:
            return bool(self.events) and self.events[0].style != (False, True)
        inner = [event.before for event in self.events[1:]] + [event.after for event in self.events[:-1]]
        return not any(map(words, inner))

    def with_events(self, events: Sequence[Event]) -> "Wording":
        """The same answer with other events, at least one; a listed answer takes only their spans."""
        if self.listed:
            first, last = self.events[0].before, self.events[-1].after
            spans, n = [event.span for event in events], len(events)
            events = [Event(first * (k == 0), s, last * (k == n - 1)) for k, s in enumerate(spans)]
        default = " and " if self.listed else (self.tail.rstrip() or ".") + " "
        missing = len(events) - 1 - len(self.joins)
        joins = (self.joins[:1] or (default,)) * missing + self.joins
        return replace(self, events=tuple(events), joins=joins[len(joins) - len(events) + 1 :])

    def with_spans(self, spans: Sequence[Span]) -> "Wording":
        """The same words with other times."""
        pairs = zip(self.events, spans, strict=True)
        return replace(self, events=tuple(replace(event, span=span) for event, span in pairs))


def words(text: str) -> tuple[str, ...]:
    """The words of a text without case and punctuation; a mark of its own (NUL) counts as one."""
    return tuple(re.findall(r"\w+|\x00", text.casefold()))


def take_apart(text: str, spans: Sequence[Span]) -> Wording:
    """The wording of an answer; ``text`` has as many ``<span>`` as there are spans. Raises ValueError: it has not."""
    first, *rest = text.split(MARK)
    if len(rest) != len(spans):
        raise ValueError(f"{len(rest)} marks for {len(spans)} spans")
    if not rest:
        return Wording(text, (), (), "")
    found = _HEAD.match(first)
    head = found[0] if found else ""
    befores, afters, joins = [first[len(head) :]], [], []
    for piece in rest[:-1]:
        after, join, before = _between(piece, leading=not words(befores[0]))
        afters.append(after)
        joins.append(join)
        befores.append(before)
    tail = _TAIL.search(rest[-1])[0]
    afters.append(rest[-1][: len(rest[-1]) - len(tail)])
    events = tuple(Event(b, tuple(s), a) for b, s, a in zip(befores, spans, afters, strict=True))
    return Wording(head, events, tuple(joins), tail)


def _between(piece: str, leading: bool) -> tuple[str, str, str]:
    """The text between two marks -> (after the one, join, before the other)."""
    ends = list(_END.finditer(piece))
    if ends:
        return piece[: ends[-1].start()], ends[-1][0], piece[ends[-1].end() :]
    said = [hit for hit in re.finditer(r"\w+", piece) if not _LINK.fullmatch(hit[0])]
    if not said:
        return "", piece, ""
    if leading:  # the words belong to the mark before them, but for a link at the end
        end = said[-1].end()
        return piece[:end], piece[end:], ""
    link = _LINK.match(piece)[0]
    return "", link, piece[len(link) :]
