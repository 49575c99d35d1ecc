"""Published scripts of moment retrieval side by side: what each takes of an answer, and when it calls it a hit.

In: ``Moments`` and ``Located``, as the files have them. Out: ``Scores`` by one ``Rule``. The scripts differ for the
same data in the pairs that they find in a text, in which of several they take, in a reversed one, in the threshold and
in single or double precision; all of it stands in one table, ``RULES``. Files are the benchmarks'; what a text means,
and the ``corrected`` protocol, are not here.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from all_benchmark_eval.benchmark import Scores
from all_benchmark_eval.items import Answers, answered, known_length
from all_benchmark_eval.metrics import moments, parsing
from all_benchmark_eval.metrics.intervals import iou_hull, iou_union
from all_benchmark_eval.metrics.moments import Floats, Located, MomentBenchmark, Moments, Script, State
from all_benchmark_eval.moment_forms import MARK, PREDICTIONS
from videollm.common.answers import split_spans
from videollm.reading import read_spans

SCRIPT = "the answers in the prediction file"

Iou = Callable[[Floats, Floats], NDArray[np.floating]]


@dataclass(frozen=True)
class Rule:
    """How one script scores the answer to a query with one true span.

    Attributes:
        takes: which of several pairs counts; ``only``: there must be exactly one; ``all``: their summed lengths do.
        reads: text of an answer -> pairs, reversed ones as they stand; None: what ``videollm.reading`` finds.
        ordered: a reversed pair is turned round; else nothing overlaps it.
        strict: a hit lies above the threshold; else on it as well.
        iou: of two spans, in the script's own arithmetic.
        ranks: ``R5@t`` where a file ranks spans.
        asked: the means are over all queries; else over those in the prediction file, which is all that a script sees.
    """

    takes: Literal["first", "last", "only", "all"] = "first"
    reads: Callable[[str], list] | None = None
    ordered: bool = False
    strict: bool = False
    iou: Iou = iou_hull
    ranks: bool = False
    asked: bool = False

    def pick(self, pairs: Sequence) -> list:
        """Those of an answer's pairs that count."""
        kept = {"first": pairs[:1], "last": pairs[-1:], "only": pairs if len(pairs) == 1 else [], "all": pairs}
        return [sorted(pair) if self.ordered else list(pair) for pair in kept[self.takes]]


SINGLE = partial(iou_union, dtype=np.float32)  # of torch.Tensor
RULES: Mapping[str, Rule] = {
    "timelens": Rule("first", parsing.timelens_pairs),  # also lmms-eval's timelens
    "lmms_charades": Rule("first", parsing.lmms_charades_pairs, ordered=True),
    "exactly_one": Rule("only", parsing.charades_pairs, ordered=True),
    "time_r1": Rule("last", parsing.time_r1_pairs, strict=True),
    "extremewhen": Rule("last", parsing.any_dash_pairs, ordered=True, asked=True),
    "videomind": Rule("first", iou=SINGLE, ranks=True),
    "unitime": Rule("all", strict=True, iou=SINGLE),
    "default": Rule("first", iou=iou_union, ranks=True, asked=True),  # plain means, whoever wrote them
}


def rules(first: str, *others: str) -> dict[str, Script]:
    """What ``RULES`` of these names score, in this order; of all where only the first is named."""
    names = (first, *(others or (name for name in RULES if name != first)))
    return {name: partial(published, rule=RULES[name]) for name in names}


def taken(truth: Moments, located: Located, rule: Rule) -> Located:
    """What a script takes of each answer; where the file has only its text, what the script finds in that."""
    found = Located.nowhere(len(truth))
    for row in np.flatnonzero(located.state != State.MISSING).tolist():
        text, length = located.told.get(row, ""), known_length(truth.durations[row])
        if row in located.worded:
            pairs = rule.reads(text) if rule.reads else read_spans(text, length)
        else:
            own = [located.spans[row].tolist()] if located.state[row] == State.PARSED else []
            pairs = located.ranked.get(row, own)
        found.put(row, list(map(list, pairs)) if rule.ranks and row in located.ranked else rule.pick(pairs), text)
    return found


def published(truth: Moments, located: Located, rule: Rule) -> Scores:
    """``R1@t``, ``mIoU`` and, where the script ranks, ``R5@t``, in percent. An answer without a pair counts as 0."""
    given = taken(truth, located, rule)
    ious = np.nan_to_num(summed_iou(given, truth.spans) if rule.takes == "all" else rule.iou(given.spans, truth.spans))
    top = moments.top_recalls(truth.spans, given, rule.iou) if rule.ranks else {}
    keep = None if rule.asked else given.state != State.MISSING
    reaches = np.greater if rule.strict else np.greater_equal
    scores = moments.grounding(truth, given, ious, top=top, keep=keep, reaches=reaches)
    scores.denominator = "" if rule.asked else SCRIPT
    return scores


def summed_iou(given: Located, true: Floats) -> NDArray[np.float32]:
    """Overlaps over lengths, each summed over all pairs of an answer -> [N]; pairs that overlap count twice."""
    width = max(map(len, given.ranked.values()), default=1)
    spans = np.full((len(true), width, 2), np.nan)
    spans[:, 0] = given.spans
    for row, pairs in given.ranked.items():
        spans[row, : len(pairs)] = pairs
    spans, true = spans.astype(np.float32), true.astype(np.float32)[:, None]
    inside = np.minimum(spans[..., 1], true[..., 1]) - np.maximum(spans[..., 0], true[..., 0])
    overlap = np.nansum(np.maximum(inside, 0), axis=-1)
    length = np.nansum(spans[..., 1] - spans[..., 0], axis=-1) + (true[..., 1] - true[..., 0])[:, 0]
    with np.errstate(invalid="ignore", divide="ignore"):
        iou = overlap / (length - overlap)
    return np.where(np.isfinite(iou) & given.parsed, iou, np.float32(0))


class RuledBenchmark(MomentBenchmark):
    """A benchmark of moments that scripts of several repositories score.

    Predictions are written as TimeLens and lmms-eval write them, ``{"video>>>query>>>[s, e]": {...}}``: with
    ``timestamps`` where spans come from a head's tokens, with ``answers`` where a text tells them.
    """

    forms = PREDICTIONS
    headline = ("R1@0.3", "R1@0.5", "R1@0.7", "mIoU")

    def from_answers(self, truth: Moments, answers: Answers, wording: str) -> dict:
        """An entry for every question that was answered."""
        columns = (truth.videos, truth.queries, truth.spans.tolist())
        found = {}
        for answer, _, video, query, true in answered(answers, truth.ids, *columns):
            by_token = split_spans(answer.text)[1] or answer.evidence_spans or not answer.text
            told = {"timestamps": answer.scored_spans} if by_token else {}
            found[f"{self.file_of(video)}{MARK}{query}{MARK}{true}"] = told | {"answers": answer.text}
        return found
