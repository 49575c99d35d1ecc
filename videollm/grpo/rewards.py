"""What an answer is worth: functions of an answer, its record and the video's length, found by name.

In: an answer's line as inference writes it and scores read it, so that no text is read in a way of its own here. Out: a
number, 1 for a perfect answer and 0 for a worthless one; or, of a whole answer, the weighted sum of those that say
something about its record. A function of one's own is named ``package.module:function``. Knows no model.
"""

import inspect
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import linear_sum_assignment

from videollm.common.answers import AnswerLine, Span, span_text, split_spans
from videollm.common.config import UserError, need, unknown
from videollm.common.registry import function_at, new_registry, registered
from videollm.common.spans import first_span_ious, tiou_matrix
from videollm.data import Record
from videollm.data.conversation import SpanMark
from videollm.reading import read_choice, read_spans

REWARDS = new_registry("rewards")
Function = Callable[[AnswerLine, Record, float], float]
Needs = Literal["spans", "choice"]
_OPTION = re.compile(r"\(([A-Za-z])\)\s*([^()]*)")
SHOWN = 200  # characters of an answer that a message repeats


class RewardError(UserError, RuntimeError):
    """A reward that is no number, or that could not be computed; the message names it, the record and the answer."""


def reward(name: str, needs: Needs | None = None) -> Callable[[Function], Function]:
    """Registers a reward; it says something about records whose own answer has what it ``needs``; ConfigError where
    that is no such thing."""
    known = (*get_args(Needs), None)
    need(needs in known, unknown(f"needs of the reward {name}", needs, known))

    def register(function: Function) -> Function:
        function.needs = needs
        REWARDS.register(name=name)(function)
        return function

    return register


# ---- a whole answer --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rewards:
    """The weighted sum of several, by name; ``where`` is the key that names them."""

    terms: dict[str, tuple[float, Function]]
    where: str

    @classmethod
    def named(cls, weights: dict[str, float], where: str) -> "Rewards":
        """Those of a config; ConfigError for an unknown name, what is no such function, and weights that do nothing."""
        need(any(weights.values()), f"{where}: {weights} names none with a weight; give one, such as {{f1: 1.0}}")
        found = {}
        for name, weight in weights.items():
            key = f"{where}.{name}"
            need(math.isfinite(weight), f"{key}: {weight}, but a weight must be finite")
            if ":" in name:
                function = function_at(name, where)
                need(takes_three(function), f"{key}: it must take three: an answer, a record, and seconds; change it")
            else:
                function = registered(REWARDS, name, key, "Or write package.module:function")
            found[name] = (weight, function)
        return cls(found, where)

    def lacking(self, record: Record) -> str | None:
        """What the record's answer lacks, where no reward of a weight says anything about it; None where one does."""
        needs = {getattr(function, "needs", None) for weight, function in self.terms.values() if weight}
        return None if any(has(record, one) for one in needs) else " and no ".join(sorted(needs))

    def of(self, answer: AnswerLine, record: Record, duration_s: float) -> dict[str, float]:
        """Every reward that says something about the record, before its weight.

        Raises:
            RewardError: one raises, or gives no finite number; the message is one line.
        """
        found = {}
        for name, (_, function) in self.terms.items():
            if not has(record, getattr(function, "needs", None)):
                continue
            where = f"{self.where}.{name}: {record.where}, answer {answer.text[:SHOWN]!r}"
            try:
                earned = function(answer, record, duration_s)
                found[name] = math.nan if isinstance(earned, str | bytes) else float(earned)
            except (Exception, SystemExit) as error:  # of any kind: it may be anybody's
                said = " ".join(str(error).split())
                raise RewardError(f"{where}: {type(error).__name__}: {said}; mend the reward, or the answer") from error
            if not math.isfinite(found[name]):
                raise RewardError(f"{where}: gives {earned!r}; a reward must be a finite number")
        return found

    def total(self, found: dict[str, float]) -> float:
        """The weighted sum of what ``of`` gives."""
        return sum(self.terms[name][0] * value for name, value in found.items())


def takes_three(function: Callable) -> bool:
    """Whether a function can be called as a reward is; of one that does not tell, yes."""
    try:
        inspect.signature(function).bind(None, None, 0.0)
    except TypeError:
        return False
    except ValueError:  # no signature, as of some that are written in C
        pass
    return True


def has(record: Record, needs: Needs | None) -> bool:
    """Whether the record's own answer has what a reward needs."""
    if needs == "spans":
        return bool(true_spans(record))
    return needs is None or true_choice(record) is not None


def true_spans(record: Record) -> list[Span]:
    """The spans of the answer that is to be given, [start, end] in seconds."""
    parts = record.turns[-1].parts if record.has_answer else ()
    return [list(record.spans_s[part.span]) for part in parts if isinstance(part, SpanMark)]


def true_text(record: Record) -> str:
    """The answer that is to be given, its times written out as in an answer's line."""
    parts = record.turns[-1].parts if record.has_answer else ()
    texts = (span_text(*record.spans_s[p.span]) if isinstance(p, SpanMark) else p for p in parts)
    return " ".join(text.strip() for text in texts if text.strip())


def true_choice(record: Record) -> int | None:
    """Which of the options in the question the answer to be given names."""
    return chosen(true_text(record), record) if record.has_answer else None


def chosen(text: str, record: Record) -> int | None:
    """Which of the options "(a) ... (b) ..." of the record's question a text names; None without any."""
    options = dict(_OPTION.findall(record.question.lower()))
    letters = [chr(ord("a") + k) for k in range(len(options))]
    if len(options) < 2 or list(options) != letters:
        return None
    return read_choice(" ".join(split_spans(text)[0]), len(options), [text.strip() for text in options.values()])


def spans_of(answer: AnswerLine, duration_s: float) -> list[Span]:
    """The spans that scores look at; those in the text where the head gives none."""
    return answer.scored_spans or read_spans(answer.text, duration_s)


# ---- rewards ---------------------------------------------------------------------------------------------------------


@reward("tiou", needs="spans")
def first_iou(answer: AnswerLine, record: Record, duration_s: float) -> float:
    """tIoU of the first span with the true one that it matches best, as mIoU has it (TimeLens)."""
    return float(np.nan_to_num(first_span_ious([spans_of(answer, duration_s)], [true_spans(record)]))[0])


@reward("edges", needs="spans")
def edge_weighted_iou(answer: AnswerLine, record: Record, duration_s: float) -> float:
    """tIoU of the first span, times (1 - error of an end / length of the video) for both ends (Time-R1)."""
    spans, true = spans_of(answer, duration_s)[:1], true_spans(record)
    if not spans:
        return 0.0
    iou = tiou_matrix(spans, true)[0]  # [T]
    best = int(iou.argmax())
    need(duration_s > 0, "its video's length is not known, give its record a duration", ValueError)
    apart = np.abs(np.asarray(spans[0]) - np.asarray(true[best])) / duration_s
    return float(iou[best] * np.clip(1 - apart, 0, 1).prod())


@reward("f1", needs="spans")
def span_f1(answer: AnswerLine, record: Record, duration_s: float) -> float:
    """tIoU summed over the best one-to-one pairs, as an F1: a span too many or too few costs. One of one: its tIoU."""
    return matched(spans_of(answer, duration_s), true_spans(record))


@reward("captions", needs="spans")
def caption_f1(answer: AnswerLine, record: Record, duration_s: float) -> float:
    """As ``f1``, each pair's tIoU times the F1 of the words behind both times: what happens, and when."""
    return described(answer, record, duration_s, lambda told, asked: [[word_f1(a, b) for b in asked] for a in told])


def described(
    answer: AnswerLine, record: Record, duration_s: float, alike: Callable[[list[str], list[str]], ArrayLike]
) -> float:
    """As ``f1``, each pair's tIoU times how ``alike`` [P, T] the texts of both times are."""
    spans, true = spans_of(answer, duration_s), true_spans(record)
    texts, wanted = (split_spans(text)[0] for text in (answer.text, true_text(record)))
    if len(texts) != len(spans) + 1:
        return 0.0  # a time that belongs to no text
    # What stands before the first time belongs to it as well: "a dog runs at <span>".
    told, asked = ([f"{all_[0]} {all_[1]}", *all_[2:]] if len(all_) > 1 else [] for all_ in (texts, wanted))
    return matched(spans, true, np.asarray(alike(told, asked)).reshape(len(spans), len(true)))


@reward("choice", needs="choice")
def right_choice(answer: AnswerLine, record: Record, duration_s: float) -> float:
    """1 for the option that the record's answer names, else 0."""
    return float(chosen(answer.text, record) == true_choice(record))


@reward("format")
def well_formed(answer: AnswerLine, record: Record, duration_s: float) -> float:
    """1 for an answer that ends by itself and has as many spans as the record's, else 0."""
    need(answer.finish_reason, "its line has no finish_reason, give an output of videollm.infer", ValueError)
    same = len(spans_of(answer, duration_s)) == len(true_spans(record))
    return float(answer.finish_reason == "stop" and same)


def matched(spans: Sequence[Span], true: Sequence[Span], weight: np.ndarray | float = 1.0) -> float:
    """F1 of spans [P, 2] and true ones [T, 2]: 2 x the best pairs' summed tIoU x ``weight`` [P, T] / (P + T)."""
    if not spans or not true:
        return float(len(spans) == len(true))
    worth = tiou_matrix(spans, true) * weight
    return float(2 * worth[linear_sum_assignment(worth, maximize=True)].sum() / (len(spans) + len(true)))


def word_f1(a: str, b: str) -> float:
    """Harmonic mean of precision and recall of the words of two texts; 1 for two without any."""
    first, second = (Counter(re.findall(r"\w+", text.lower())) for text in (a, b))
    words = first.total() + second.total()
    return 2 * (first & second).total() / words if words else 1.0
