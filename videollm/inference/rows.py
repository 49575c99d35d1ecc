"""Which question is answered in which row: ended ones leave, waiting ones enter, nobody waits for the longest answer.

In: questions as they become ready, in order, and how many rows there are. Out: each with its answer, as it ends. Who
enters when follows from the questions, the rows and the device's ``look`` alone (and from a time limit, where one is
set), so that asking the same ones again gives the same. Knows no files and no video.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import torch

from videollm.batches.batch import Batch
from videollm.batches.dataset import Item
from videollm.checkpoint import Bundle
from videollm.data import Record
from videollm.heads import Answer
from videollm.model.generate import GenerateOptions, Rows


@dataclass
class Question:
    """One that can be asked, its video encoded, and how.

    ``until``: when its answer is to end even so, by ``time.monotonic()``; what there is by then is its answer. So it is
    when the time limit of its options is over, which counts from ``begun``, when it has entered a row.
    """

    record: Record
    item: Item
    options: GenerateOptions
    until: float = math.inf
    begun: float = math.inf

    def over(self) -> bool:
        """Whether its answer has to end now."""
        limit, now = self.options.time_limit_s, time.monotonic()
        return now >= self.until or (limit is not None and now >= self.begun + limit)

    def cancel(self) -> None:
        """Let the answer end at the next look."""
        self.until = -math.inf


@dataclass
class Group:
    """Questions that enter ``rows`` in one pass: whole, or from ``start`` on behind what row ``source`` holds."""

    questions: list[Question]
    rows: list[int]
    source: int | None = None
    start: int = 0


class Seating:
    """Questions in ``number`` rows.

    ``options``: what is the same for all of them (``GenerateOptions.of_all``), with the most tokens that one may get,
    and ``min_new_tokens`` where any has.
    """

    def __init__(self, bundle: Bundle, options: GenerateOptions, number: int):
        self.bundle, self.options, self.number = bundle, options, number
        self.collate, self.device = bundle.collator(asked=True), next(bundle.model.parameters()).device
        self.inside: dict[int, Question] = {}
        self.newest: tuple[Question, int] | None = None  # the question that was the last to enter, and its row

    @torch.no_grad()
    def run(self, questions: Iterator[Question], so_far: bool = False) -> Iterator[tuple[Question, Answer, str]]:
        """Every question with its answer and finish reason (``stop``, ``length`` or ``time``), as they end.

        With ``so_far`` also, at every look, those that go on, with what there is and no reason.
        """
        bundle, pad = self.bundle, self.bundle.tokenizer.pad_token_id
        with Rows(bundle.model, self.number, self.options, bundle.stop_id, pad, self.device) as rows:
            while True:
                self.enter(rows, questions)
                if not self.inside:
                    return
                for step in range(rows.look):
                    if step:
                        rows.feed()
                    rows.decide()
                yield from self.leave(rows, so_far)
                if self.inside:
                    rows.feed()

    def leave(self, rows: Rows, so_far: bool) -> list[tuple[Question, Answer, str]]:
        """The questions whose answers have ended; their rows are free. With ``so_far`` those that go on, too."""
        done = rows.state.done.tolist()
        ended = [row for row in sorted(self.inside) if done[row] or self.inside[row].over()]
        told = sorted(self.inside) if so_far else ended
        tokenizer, stop_id, found = self.bundle.tokenizer, self.bundle.stop_id, []
        for row, made in zip(told, rows.state.answers(told) if told else (), strict=True):
            question, goes_on = self.inside[row], row not in ended
            duration_s = question.item.duration_s
            answer, reason = self.bundle.model.read_answer(*made, tokenizer, stop_id, duration_s, goes_on)
            found.append((question, answer, reason if goes_on or done[row] else "time"))
            if not goes_on:
                del self.inside[row]
                rows.leave(row)
        return found

    def enter(self, rows: Rows, questions: Iterator[Question]) -> None:
        """Waiting questions enter all rows that are free."""
        free = [row for row in range(self.number) if row not in self.inside]
        entering = list(islice(questions, len(free)))
        for question in entering:
            question.begun = time.monotonic()
        groups = self.grouped(entering, free, rows.shares)
        # Who is first and follows one of before goes first: that one's row may be free, and another one's in a moment.
        before = groups[:1] if groups and groups[0].source is not None else []
        whole = [group for group in groups if group.source is None]
        for group in before:
            self.follow(rows, group)
        if whole:
            together = [question for group in whole for question in group.questions]
            batch, own = self.batch([one.item for one in together]), [one.options for one in together]
            rows.enter(batch, [row for group in whole for row in group.rows], own=own)
        for group in groups[len(before) :]:
            if group.source is not None:
                self.follow(rows, group)
        self.inside |= {row: question for g in groups for row, question in zip(g.rows, g.questions, strict=True)}

    def grouped(self, entering: list[Question], free: list[int], shares: bool) -> list[Group]:
        """The passes by which questions enter, a row each; ``shares``: what a row holds already is not run again."""
        groups, reads = [], self.bundle.model.connector.reads_question
        for question, row in zip(entering, free, strict=False):
            start = common_start(self.newest[0].item, question.item, reads) if shares and self.newest else 0
            if not start:
                groups.append(Group([question], [row]))
            elif groups and groups[-1].source is not None:  # and so from the same row
                groups[-1].questions.append(question)
                groups[-1].rows.append(row)
            else:
                groups.append(Group([question], [row], self.newest[1], start))
            self.newest = (question, row)
        return groups

    def follow(self, rows: Rows, group: Group) -> None:
        """The questions of a group enter behind the frames that a row has already."""
        batch = self.batch([replace(one.item, features=None, pixels=None) for one in group.questions])
        rows.follow(batch, group.rows, group.source, group.start, [one.options for one in group.questions])

    def batch(self, items: list[Item]) -> Batch:
        """Items as the model takes them, where it takes them."""
        return self.collate(items).to(self.device, non_blocking=True)


def common_start(one: Item, other: Item, reads_question: bool) -> int:
    """How many tokens two questions about the same frames begin with that are the same and hold all frames; 0: none.

    ``reads_question``: frames look the same only to the same question.
    """
    (a,), (b,) = one.prompts, other.prompts
    start = a.prefix_length
    given = [[ref for ref in prompt.refs if ref.position < start] for prompt in (a, b)]
    same = (
        one.features is not None
        and one.features is other.features
        and (one.question == other.question or not reads_question)
        and np.array_equal(one.times_s, other.times_s)
        and one.grids == other.grids
        and start == b.prefix_length
        and a.ids[:start] == b.ids[:start]
        and a.visual == b.visual
        and all(place < start for place in a.visual)
        and given[0] == given[1]
        and all(ref.span < 0 for ref in given[0])  # a span has seconds of its own
    )
    return start if same else 0
