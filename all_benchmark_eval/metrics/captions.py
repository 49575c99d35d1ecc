"""Scores of captions: PTB tokens, METEOR, CIDEr, ROUGE-L, BLEU (pycocoevalcap's), as fractions (CIDEr: 0 to 10).

A pair is ``(hypothesis, reference)``, both as ``tokenize`` returns them; a group is a list of pairs that make one
corpus (a video at one IoU threshold, say). Every function takes all groups of a run at once and returns one score a
group, 0 for a group without pairs. Videos, spans and files are not known here.
"""

import atexit
import random
import string
from collections.abc import Sequence
from itertools import chain, pairwise

import numpy as np
from numpy.typing import NDArray
from pycocoevalcap.bleu import bleu_scorer
from pycocoevalcap.cider.cider_scorer import precook
from pycocoevalcap.rouge.rouge import Rouge

from all_benchmark_eval.metrics.java import TIMEOUT_S, Meteor, meteor_scores, ptb_tokenize

Pair = tuple[str, str]  # (hypothesis, reference), tokenized
Group = Sequence[Pair]
Floats = NDArray[np.float64]

_tokens: dict[str, str] = {}  # what ``tokenize`` has seen
_running: list[Meteor] = []  # the one METEOR process, or none
_rouge = Rouge()
_ORDERS = 4  # n-grams of 1 to 4 words
_CIDER_SIGMA = 6.0  # of the penalty on different lengths
_CIDER_CHUNK = 10_000  # pairs at a time, about 1 million n-grams


def tokenize(texts: Sequence[str]) -> list[str]:
    """PTB tokens of each text, lower case, joined by blanks, punctuation dropped (METRICS section 4).

    Give all texts of a run in one call: a call that holds a new text starts Java once (about 1 s). Line breaks and
    control characters count as blanks. Raises BenchmarkError (JavaError) where Java is missing or fails.
    """
    new = list(dict.fromkeys(text for text in texts if text not in _tokens))
    _tokens.update(zip(new, ptb_tokenize(new), strict=True))
    return [_tokens[text] for text in texts]


def start_meteor(timeout_s: float = TIMEOUT_S) -> Meteor:
    """The one METEOR process of this Python process, started if need be; it loads (7 CPU-s) while the caller works on.

    Ends with Python or ``close_meteor``. Raises BenchmarkError (JavaError) where Java is missing.
    """
    if not _running or _running[0].closed:
        _running[:] = [Meteor(timeout_s)]
        atexit.register(close_meteor)
    return _running[0]


def close_meteor() -> None:
    """End the METEOR process, if there is one. The next call of ``meteor`` starts another."""
    while _running:
        _running.pop().close()


def meteor(groups: Sequence[Group]) -> Floats:
    """METEOR 1.5 of each group as one corpus (not the mean of its pairs) -> [G]."""
    stats = start_meteor().stats(list(chain.from_iterable(groups)))  # [N, 23]
    return meteor_scores(_group_sums(stats, _owners(groups), len(groups)))


def meteor_pairs(pairs: Group) -> Floats:
    """METEOR 1.5 of each pair -> [N]."""
    return meteor_scores(start_meteor().stats(pairs))


def cider(groups: Sequence[Group]) -> Floats:
    """CIDEr(-D) of each group -> [G], with document frequencies from the group's own references."""
    return np.array([scores.mean() if len(scores) else 0.0 for scores in cider_pairs(groups)])


def cider_pairs(groups: Sequence[Group], documents: Sequence[str] | None = None) -> list[Floats]:
    """The CIDEr of every pair, a list of arrays [len(group)]; ``cider`` is their means.

    ``documents`` are the (tokenized) texts that document frequencies come from, in place of each group's references.
    """
    grams = _Grams(documents)
    found: list[Floats] = []
    for some in _chunks(groups, _CIDER_CHUNK):
        sizes = np.array([len(group) for group in some])
        found += np.split(grams.cider(list(chain.from_iterable(some)), sizes), np.cumsum(sizes)[:-1])
    return found


def rouge_l(groups: Sequence[Group]) -> Floats:
    """Mean ROUGE-L (beta 1.2) of each group's pairs -> [G]."""
    scores = rouge_l_pairs(list(chain.from_iterable(groups)))
    return group_means(scores, groups)


def rouge_l_pairs(pairs: Group) -> Floats:
    """ROUGE-L of each pair -> [N]."""
    known = {pair: _rouge.calc_score([pair[0]], [pair[1]]) for pair in dict.fromkeys(pairs)}
    return np.array([known[pair] for pair in pairs])


def bleu(groups: Sequence[Group]) -> Floats:
    """BLEU-1 to BLEU-4 of each group as one corpus -> [G, 4]."""
    known = {pair: _bleu_counts(pair) for pair in dict.fromkeys(chain.from_iterable(groups))}
    counts = np.array([known[pair] for group in groups for pair in group]).reshape(-1, 2 + 2 * _ORDERS)
    counts = _group_sums(counts, _owners(groups), len(groups))  # [G, 10]
    tested, reference, guesses, correct = counts[:, 0], counts[:, 1], counts[:, 2:6], counts[:, 6:]
    precision = np.cumprod((correct + 1e-15) / (guesses + 1e-9), axis=1) ** (1 / np.arange(1, _ORDERS + 1))  # [G, 4]
    ratio = (tested + 1e-15) / (reference + 1e-9)
    scores = precision * np.exp(np.minimum(1 - 1 / ratio, 0.0))[:, None]
    return np.where(np.array([len(group) > 0 for group in groups])[:, None], scores, 0.0)


def random_letters(count: int, seed: int) -> list[str]:
    """``count`` strings of 10 to 20 random lower-case letters: what published scripts pair a prediction with that
    matches no event. They need no tokenizer."""
    draw = random.Random(seed)
    return ["".join(draw.choices(string.ascii_lowercase, k=draw.randint(10, 20))) for _ in range(count)]


def _owners(groups: Sequence[Group]) -> NDArray[np.int64]:
    """The group of every pair, [N]."""
    return np.repeat(np.arange(len(groups)), [len(group) for group in groups])


def _group_sums(rows: Floats, owner: NDArray[np.int64], count: int) -> Floats:
    """Sums [count, K] of rows [N, K] by owner [N]."""
    sums = np.zeros((count, rows.shape[1]))
    np.add.at(sums, owner, rows)
    return sums


def group_means(scores: Floats, groups: Sequence[Group]) -> Floats:
    """Means [G] of scores [N], the pairs of all groups in order; 0 for a group without pairs."""
    sizes = np.array([len(group) for group in groups])
    return np.bincount(_owners(groups), weights=scores, minlength=len(groups)) / np.maximum(sizes, 1)


def _chunks(groups: Sequence[Group], size: int) -> list[Sequence[Group]]:
    """The groups in order, cut into runs of about ``size`` pairs."""
    run = np.cumsum([len(group) for group in groups]) // size
    cuts = [0, *(np.flatnonzero(np.diff(run)) + 1).tolist(), len(groups)]
    return [groups[start:end] for start, end in pairwise(cuts) if end > start]


def _bleu_counts(pair: Pair) -> list[int]:
    """What BLEU counts of a pair: words of both, n-grams of the hypothesis, n-grams that are right."""
    counts = bleu_scorer.cook_test(pair[0], bleu_scorer.cook_refs([pair[1]]))
    return [counts["testlen"], counts["reflen"][0], *counts["guess"], *counts["correct"]]


class _Grams:
    """The n-grams of texts as numbers, each text counted once, and CIDEr from them for many groups at once."""

    def __init__(self, documents: Sequence[str] | None = None):
        """``documents`` as for ``cider_pairs``."""
        self._ids: dict[tuple[str, ...], int] = {}
        self._texts: dict[str, tuple[NDArray[np.int64], ...]] = {}
        self._documents = None if documents is None else len(documents)
        self._known, self._frequency = np.unique(self._table(documents or [])[1], return_counts=True)

    def _count(self, text: str) -> tuple[NDArray[np.int64], ...]:
        """(id [K], order 0..3 [K], count [K]) of a text's distinct n-grams."""
        if text not in self._texts:
            counts = precook(text, _ORDERS)
            ids = [self._ids.setdefault(gram, len(self._ids)) for gram in counts]
            orders = [len(gram) - 1 for gram in counts]
            self._texts[text] = tuple(np.array(part, dtype=np.int64) for part in (ids, orders, list(counts.values())))
        return self._texts[text]

    def _table(self, texts: Sequence[str]) -> tuple[NDArray[np.int64], ...]:
        """(pair [K], id [K], order [K], count [K]) of the n-grams of one text a pair, by pair and id."""
        counted = [self._count(text) for text in texts]
        pair = np.repeat(np.arange(len(texts)), [len(part[0]) for part in counted])
        none = (np.zeros(0, np.int64),) * 3
        ids, orders, counts = (np.concatenate(part) for part in zip(none, *counted, strict=True))
        order = np.lexsort((ids, pair))
        return pair[order], ids[order], orders[order], counts[order]

    def cider(self, pairs: list[Pair], sizes: NDArray[np.int64]) -> Floats:
        """CIDEr [N] of the pairs of all groups in order; ``sizes`` [G] are the pairs in each group."""
        owner = np.repeat(np.arange(len(sizes)), sizes)
        tables = [self._table([pair[side] for pair in pairs]) for side in (0, 1)]  # hypotheses, references
        size = max(len(self._ids), 1)  # of the vocabulary
        if self._documents is None:
            key, documents = owner * size, sizes[owner]  # [N], [N]: each group has its own document frequencies
            known, frequency = np.unique(key[tables[1][0]] + tables[1][1], return_counts=True)
        else:
            key, documents = owner * 0, np.full(len(pairs), self._documents)
            known, frequency = self._known, self._frequency
        weights, norms, lengths = [], [], []
        for pair, ids, orders, counts in tables:
            df = np.maximum(_look_up(known, frequency, key[pair] + ids), 1)
            weight = counts * (np.log(documents[pair].astype(np.float64)) - np.log(df))
            weights.append(weight)
            norms.append(np.sqrt(self._by_order(pair, orders, weight**2, len(pairs))))  # [N, 4]
            lengths.append(self._by_order(pair, orders, counts, len(pairs))[:, 1])  # bigrams stand for the length
        pair, ids, orders, _ = tables[0]
        reference = _look_up(tables[1][0] * size + tables[1][1], weights[1], pair * size + ids)
        product = self._by_order(pair, orders, np.minimum(weights[0], reference) * reference, len(pairs))
        norm = norms[0] * norms[1]
        cosine = np.divide(product, norm, out=np.zeros_like(norm), where=norm != 0)
        return 10 * cosine.mean(1) * np.exp(-((lengths[0] - lengths[1]) ** 2) / (2 * _CIDER_SIGMA**2))

    @staticmethod
    def _by_order(pair: NDArray, orders: NDArray, values: NDArray, count: int) -> Floats:
        """Sums [count, 4] of values [K] by pair and order."""
        return np.bincount(pair * _ORDERS + orders, weights=values, minlength=count * _ORDERS).reshape(count, _ORDERS)


def _look_up(keys: NDArray[np.int64], values: NDArray, wanted: NDArray[np.int64]) -> NDArray:
    """The value of each wanted key, 0 where it is unknown; keys are sorted and differ."""
    if not len(keys):
        return np.zeros(len(wanted), dtype=values.dtype)
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, values[place], 0)
