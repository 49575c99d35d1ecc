"""What can be wrong with an answer, one factor at a time: when, which events, in which order, and which words.

In: the wording of a right answer, what else is known of its video and of the other videos, and a random generator.
Out: the wording of a wrong answer, or None where the factor does not apply. Times are seconds. What the factors mean is
in docs/annotations.md. It knows no file and no model.
"""

import random
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import lru_cache

from d2vlm.preferences.wording import Event, Span, Wording, take_apart, words
from videollm.common.config import need
from videollm.data import Record
from videollm.data.conversation import span_marks
from videollm.data.record import spelled

TRIES = 24  # draws of a span before a factor gives up
SHORTEST_S = 1.0  # length by which a moment is moved and drawn
ATTRIBUTES = [
    ["red", "green", "blue", "yellow", "purple", "pink", "brown", "black", "white", "gray"],
    ["circle", "square", "triangle", "rectangle", "star"], ["left", "right"], ["up", "down"],
    ["moving left", "moving right", "moving up", "moving down", "growing", "shrinking"],
    ["two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"],
    ["man", "woman", "boy", "girl", "child"], ["dog", "cat", "horse", "bird"], ["he", "she"], ["open", "close"],
    ["opens", "closes"], ["before", "after"], ["first", "last"], ["small", "large"], ["inside", "outside"],
]  # fmt: skip
_OPTION = re.compile(r"(?:^|\s)\(?([A-Ha-h])[).:]\s+(.+?)(?=\s+\(?[A-Ha-h][).:]\s|\s*$)", re.DOTALL)
_LETTER = re.compile(r"(?<!\w)([A-Ha-h])(?=[).:]|\s*$)")


@dataclass
class Severity:
    """How far the spans of a rejected answer are from the true ones."""

    shift: tuple[float, float] = (0.3, 2.0)  # by how many lengths of the span it is moved
    stretch: tuple[float, float] = (1.5, 4.0)  # how many times longer, or shorter, it becomes
    iou: tuple[float, float] = (0.0, 0.5)  # tIoU with the true span; the upper end holds for a swap, too
    events: float = 0.5  # share of an answer's events that are moved, at least one
    step_s: float = 0.01  # times are multiples of it; where all true ones are, others would give a wrong answer away

    def __post_init__(self):
        for name, low, high in (("shift", 0, 1e6), ("stretch", 1, 1e6), ("iou", 0, 1)):
            value = getattr(self, name)
            inside = len(value) == 2 and low <= value[0] <= value[1] <= high
            need(inside, f"severity.{name}: {list(value)} is not [low, high] within {low:g} and {high:g}")
        need(self.iou[1] < 1, "severity.iou: a tIoU of 1 is the true span; lower the upper end, for example to 0.7")
        need(0 < self.events <= 1, f"severity.events: {self.events} is not a share in (0, 1]")
        above = 0 < self.step_s < float("inf")
        need(above, f"severity.step_s: {self.step_s}, but it must be a number of seconds above 0")

    def snapped(self, time_s: float) -> float:
        """The nearest multiple of ``step_s``."""
        return round(round(time_s / self.step_s) * self.step_s, 6)


@dataclass
class Library:
    """What all records together know: the spans of each video, and the words of its events and of others'.

    Everything is sorted, so that what is drawn from it does not depend on the order of the files.
    """

    spans: dict[str, list[Span]] = field(default_factory=dict)  # video -> true spans
    ends: dict[str, float] = field(default_factory=dict)  # video -> seconds, its length as far as known
    near: dict[tuple, list[tuple[str, str]]] = field(default_factory=dict)  # (video, task, style) -> (before, after)
    far: dict[tuple, list[tuple[str, str]]] = field(default_factory=dict)  # (task, style) -> (before, after)

    @staticmethod
    def of(records: Iterable[Record]) -> "Library":
        """Collect from all records with an answer."""
        spans, ends, near, far = defaultdict(set), defaultdict(float), defaultdict(set), defaultdict(set)
        for record in records:
            video = visual_of(record)
            ends[video] = max(ends[video], record.duration_s or 0.0, *(e for _, e in record.spans_s), 0.0)
            if record.has_answer:
                answer = wording_of(record)
                spans[video].update(answer.spans)
                for style, said in sayings(answer):
                    near[video, record.task, style].add(said)
                    far[record.task, style].add(said)
        spans, near, far = ({key: sorted(kept) for key, kept in pool.items()} for pool in (spans, near, far))
        return Library(spans, dict(ends), near, far)


@dataclass
class Scene:
    """One right answer and all that a factor may look at."""

    answer: Wording
    video: str
    task: str
    question: str
    library: Library
    severity: Severity
    attributes: tuple[tuple[str, ...], ...]

    @property
    def end_s(self) -> float:
        """Seconds; where the length of the video is unknown, the end of the last known span."""
        return self.library.ends[self.video]


def visual_of(record: Record) -> str:
    """What the records of one video have in common; a text-only record stands alone."""
    return record.video or "\n".join(record.images) or f"\n{record.id}"


def wording_of(record: Record) -> Wording:
    """The last answer of a record, taken apart."""
    turn = record.turns[-1]
    return take_apart(spelled(turn), [record.spans_s[mark.span] for mark in span_marks(turn)])


def sayings(answer: Wording) -> list[tuple]:
    """[(style, (before, after)), ...] of the events; an answer without spans is one saying, of style None."""
    if not answer.events:
        return [(None, (answer.head, ""))]
    return [(event.style, (event.before, event.after)) for event in answer.events if event.words]


def tiou(a: Span, b: Span) -> float:
    """Temporal intersection over union; 1 for equal moments.

    Over the hull, unlike ``videollm.common.spans``: the last bits of the two differ, and a seed must go on drawing the
    same pairs where a tIoU lies on a bound.
    """
    union = max(a[1], b[1]) - min(a[0], b[0])
    return max(0.0, min(a[1], b[1]) - max(a[0], b[0])) / union if union > 0 else float(a == b)


# ---- when ------------------------------------------------------------------------------------------------------------


def shift(scene: Scene, rng: random.Random) -> Wording | None:
    """Spans moved earlier or later, as long as before."""

    def moved(span: Span) -> Span:
        by = rng.uniform(*scene.severity.shift) * max(span[1] - span[0], SHORTEST_S) * rng.choice((-1, 1))
        return span[0] + by, span[1] + by

    return _move(scene, rng, moved)


def stretch(scene: Scene, rng: random.Random) -> Wording | None:
    """Spans that begin too early or end too late, or cover only a part."""

    def stretched(span: Span) -> Span:
        factor = rng.uniform(*scene.severity.stretch) ** rng.choice((-1, 1))
        change, place = (span[1] - span[0]) * (factor - 1), rng.random()
        start, end = span[0] - change * place, span[1] + change * (1 - place)
        return (max(0.0, start), min(scene.end_s, end)) if factor > 1 else (start, end)

    return _move(scene, rng, stretched)


def anywhere(scene: Scene, rng: random.Random) -> Wording | None:
    """Spans of about the right length at a random place."""
    return _move(scene, rng, lambda span: _draw(scene, rng, span))


def swap(scene: Scene, rng: random.Random) -> Wording | None:
    """Two events have each other's span; a single one has that of something else in the video."""
    spans, most = list(scene.answer.spans), scene.severity.iou[1]
    if len(spans) > 1 and not scene.answer.listed:
        pairs = [(i, j) for i in range(len(spans)) for j in range(i) if tiou(spans[i], spans[j]) <= most]
        if not pairs:
            return None
        i, j = rng.choice(pairs)
        spans[i], spans[j] = spans[j], spans[i]
        return scene.answer.with_spans(spans)
    others = [s for s in scene.library.spans.get(scene.video, ()) if all(tiou(s, true) <= most for true in spans)]
    if not spans or not others:
        return None
    spans[rng.randrange(len(spans))] = rng.choice(others)
    return scene.answer.with_spans(spans)


def _draw(scene: Scene, rng: random.Random, like: Span) -> Span:
    """A random span inside the video, half to one and a half times as long as ``like``."""
    length = min(rng.uniform(0.5, 1.5) * max(like[1] - like[0], SHORTEST_S), scene.end_s)
    start = rng.uniform(0.0, scene.end_s - length)
    return start, start + length


def _move(scene: Scene, rng: random.Random, move: Callable[[Span], Span]) -> Wording | None:
    """Some events with their spans moved; each moved one lies in the video and within the allowed tIoU."""
    spans = list(scene.answer.spans)
    picked = rng.sample(range(len(spans)), max(1, round(scene.severity.events * len(spans)))) if spans else []
    done = False
    for k in picked:
        truths = scene.answer.spans if scene.answer.listed else (spans[k],)
        if (found := _try(scene, lambda k=k: move(scene.answer.spans[k]), truths)) is not None:
            spans[k], done = found, True
    return scene.answer.with_spans(spans) if done else None


def _try(scene: Scene, draw: Callable[[], Span], truths: Iterable[Span]) -> Span | None:
    """The first of some drawn spans that lies in the video and is as far from the true ones as it should be."""
    low, high = scene.severity.iou
    for _ in range(TRIES):
        start, end = map(scene.severity.snapped, draw())
        overlap = max((tiou((start, end), true) for true in truths), default=0.0)
        if 0 <= start < end <= scene.end_s and low <= overlap <= high:
            return start, end
    return None


# ---- which events ----------------------------------------------------------------------------------------------------


def missing(scene: Scene, rng: random.Random) -> Wording | None:
    """One event of several is left out."""
    events = list(scene.answer.events)
    if len(events) < 2:
        return None
    del events[rng.randrange(len(events))]
    return scene.answer.with_events(events)


def repeated(scene: Scene, rng: random.Random) -> Wording | None:
    """One event is told once or twice more."""
    events = list(scene.answer.events)
    if not events:
        return None
    k = rng.randrange(len(events))
    events[k:k] = [events[k]] * rng.randint(1, 2)
    return scene.answer.with_events(events)


def spurious(scene: Scene, rng: random.Random) -> Wording | None:
    """An event that the video does not show, at a time when none of the answer's events happens."""
    events = list(scene.answer.events)
    if not events:
        return None
    model = rng.choice(events)
    low = replace(scene, severity=replace(scene.severity, iou=(0.0, scene.severity.iou[1])))
    span = _try(low, lambda: _draw(scene, rng, model.span), scene.answer.spans)
    said = (model.before, model.after) if scene.answer.listed else _foreign(scene, rng, model.style)
    if span is None or said is None:
        return None
    if scene.answer.spans == tuple(sorted(scene.answer.spans)):
        place = sum(event.span <= span for event in events)
    else:
        place = rng.randint(0, len(events))
    events.insert(place, Event(said[0], span, said[1]))
    return scene.answer.with_events(events)


def order(scene: Scene, rng: random.Random) -> Wording | None:
    """Events that were told in the order of time, in another one."""
    events, by_time = list(scene.answer.events), sorted(scene.answer.events, key=lambda event: event.span[0])
    if len({event.span[0] for event in events}) < 2 or events != by_time:
        return None
    for _ in range(TRIES):
        rng.shuffle(events)
        if [e.span[0] for e in events] != [e.span[0] for e in by_time]:
            return scene.answer.with_events(events)
    return None


# ---- which words -----------------------------------------------------------------------------------------------------


def wording(scene: Scene, rng: random.Random) -> Wording | None:
    """One event has the words of another one of the same video."""

    def other(style: tuple | None, own: tuple[str, ...]) -> tuple[str, str] | None:
        others = [said for said in _near(scene, style) if words(" ".join(said)) != own]
        return rng.choice(others) if others else None

    return _reword(scene, rng, other)


def foreign(scene: Scene, rng: random.Random) -> Wording | None:
    """One event has the words of an event of another video, which this one's never have."""
    return _reword(scene, rng, lambda style, own: _foreign(scene, rng, style))


def attribute(scene: Scene, rng: random.Random) -> Wording | None:
    """One word or phrase is replaced by another of its group: a colour by a colour, left by right."""
    pattern, groups = _phrases(scene.attributes)
    text = scene.answer.text
    found = list(pattern.finditer(text))
    if not found:
        return None
    hit = rng.choice(found)
    own = hit[0].casefold()
    other = rng.choice([phrase for phrase in groups[own] if phrase != own])
    other = other.capitalize() if hit[0][0].isupper() else other
    return take_apart(text[: hit.start()] + other + text[hit.end() :], scene.answer.spans)


@lru_cache(maxsize=8)
def _phrases(attributes: tuple[tuple[str, ...], ...]) -> tuple[re.Pattern, dict[str, tuple[str, ...]]]:
    """What finds any phrase of the groups, longer ones first, but never a mark; and the group of each phrase."""
    groups = {phrase: group for group in attributes for phrase in group}
    longest = "|".join(map(re.escape, sorted(groups, key=len, reverse=True)))
    return re.compile(rf"(?<![\w<])(?:{longest or '(?!)'})(?![\w>])", re.IGNORECASE), groups


def option(scene: Scene, rng: random.Random) -> Wording | None:
    """Another option of a multiple-choice question: its letter, and its text where the answer repeats it."""
    options, text = dict(_OPTION.findall(scene.question)), scene.answer.text
    letters = [hit for hit in _LETTER.finditer(text) if hit[1] in options]
    if len(options) < 2 or len(letters) != 1:
        return None
    right = letters[0][1]
    other = rng.choice([letter for letter in options if letter != right])
    text = text[: letters[0].start()] + other + text[letters[0].end() :]
    return take_apart(text.replace(options[right].strip(), options[other].strip()), scene.answer.spans)


def _near(scene: Scene, style: tuple | None) -> list[tuple[str, str]]:
    return scene.library.near.get((scene.video, scene.task, style), [])


def _foreign(scene: Scene, rng: random.Random, style: tuple | None) -> tuple[str, str] | None:
    """A saying of the same task and style that no event of this video has."""
    pool = scene.library.far.get((scene.task, style), [])
    here = {words(" ".join(said)) for said in _near(scene, style)}
    for _ in range(TRIES if pool else 0):
        said = rng.choice(pool)
        if words(" ".join(said)) not in here:
            return said
    return None


def _reword(scene: Scene, rng: random.Random, find: Callable) -> Wording | None:
    """One saying of the answer replaced by what ``find(style, its words)`` returns."""
    events = scene.answer.events
    if not events:
        said = find(None, words(scene.answer.head))
        return replace(scene.answer, head=said[0]) if said else None
    for k in rng.sample(range(len(events)), len(events)):
        said = find(events[k].style, events[k].words) if events[k].words else None
        if said:
            changed = replace(events[k], before=said[0], after=said[1])
            return replace(scene.answer, events=(*events[:k], changed, *events[k + 1 :]))
    return None


FACTORS: dict[str, Callable[[Scene, random.Random], Wording | None]] = {
    "shift": shift, "stretch": stretch, "random": anywhere, "swap": swap, "missing": missing, "repeated": repeated,
    "spurious": spurious, "order": order, "wording": wording, "foreign": foreign, "attribute": attribute,
    "option": option,
}  # fmt: skip
