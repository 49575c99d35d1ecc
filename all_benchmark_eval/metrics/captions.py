"""Scores of captions: PTB tokens, METEOR, CIDEr, ROUGE-L, BLEU, as pycocoevalcap has them: fractions (CIDEr: 0 to 10).

A pair is ``(hypothesis, reference)``, both as ``tokenize`` returns them; a group is a list of pairs that make one
corpus (a video at one IoU threshold, say). Every function takes all groups of a run at once and returns one score a
group, 0 for a group without pairs. Videos, spans and files are not known here.
"""

import random
import string
from collections.abc import Sequence
from itertools import chain, pairwise

import numpy as np
from numpy.typing import NDArray
from pycocoevalcap.bleu import bleu_scorer
from pycocoevalcap.cider.cider_scorer import precook
from scipy.sparse import csr_array

from all_benchmark_eval.metrics.java import Meteor, meteor_scores, ptb_tokenize

Pair = tuple[str, str]  # (hypothesis, reference), tokenized
Group = Sequence[Pair]
Floats = NDArray[np.float64]

_tokens: dict[str, str] = {}  # what ``tokenize`` has seen
_running: list[Meteor] = []  # the one METEOR process, or none
_ROUGE_BETA = 1.2  # recall counts more
_ORDERS = 4  # n-grams of 1 to 4 words
_CIDER_SIGMA = 6.0  # of the penalty on different lengths
_CIDER_CHUNK = 10_000  # pairs at a time, about 1 million n-grams


def tokenize(texts: Sequence[str]) -> list[str]:
    """PTB tokens of each text, lower case, joined by blanks, punctuation dropped
    (published_systems.md#tokens-of-captions).

    Give all texts of a run in one call: a call that holds a new text starts Java once (about 1 s). Line breaks and
    control characters count as blanks. Raises BenchmarkError (JavaError) where Java is missing or fails.
    """
    new = list(dict.fromkeys(text for text in texts if text not in _tokens))
    _tokens.update(zip(new, ptb_tokenize(new), strict=True))
    return [_tokens[text] for text in texts]


def start_meteor() -> Meteor:
    """The one METEOR process of this Python process, started if need be; it loads (7 CPU-s) while the caller works on.

    Ends with Python or its ``close``. Raises BenchmarkError (JavaError) where Java is missing.
    """
    if not _running or _running[0].closed:
        _running[:] = [Meteor()]
    return _running[0]


def meteor(groups: Sequence[Group]) -> Floats:
    """METEOR 1.5 of each group as one corpus (not the mean of its pairs) -> [G]."""
    stats = start_meteor().stats(list(chain.from_iterable(groups)))  # [N, 23]
    return meteor_scores(_group_sums(stats, groups))


def meteor_pairs(pairs: Group) -> Floats:
    """METEOR 1.5 of each pair -> [N]."""
    return meteor_scores(start_meteor().stats(pairs))


def meteor_of_best(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """METEOR 1.5 of hypotheses as one corpus, each with that of its references which is best for it (the first of
    equal ones), as METEOR does with several."""
    pairs = [(text, true) for text, several in zip(hypotheses, references, strict=True) for true in several]
    stats = start_meteor().stats(pairs)
    ends = np.cumsum([len(several) for several in references])[:-1]
    best = [rows[meteor_scores(rows).argmax()] for rows in np.split(stats, ends)]
    return float(meteor_scores(np.sum(best, axis=0, keepdims=True))[0])


def cider(groups: Sequence[Group], documents: Sequence[str] | None = None) -> Floats:
    """CIDEr(-D) of each group -> [G], with document frequencies from the group's own references, or ``documents``."""
    return np.array([scores.mean() if len(scores) else 0.0 for scores in cider_pairs(groups, documents)])


def cider_pairs(groups: Sequence[Group], documents: Sequence[str] | None = None) -> list[Floats]:
    """The CIDEr of every pair, a list of arrays [len(group)]; ``cider`` is their means.

    ``documents`` are the (tokenized) texts that document frequencies come from, in place of each group's references.
    """
    grams, found = _Grams(), []
    grams.count(documents or [])  # first: numbers, and with them the order of sums, do not depend on what is scored
    for some in _chunks(groups, _CIDER_CHUNK):
        scores = _cider(grams, list(chain.from_iterable(some)), _owners(some), documents)
        found += np.split(scores, np.cumsum([len(group) for group in some])[:-1])
    return found


def rouge_l(groups: Sequence[Group]) -> Floats:
    """Mean ROUGE-L (beta 1.2) of each group's pairs -> [G]."""
    scores = rouge_l_pairs(list(chain.from_iterable(groups)))
    return group_means(scores, groups)


def rouge_l_pairs(pairs: Group) -> Floats:
    """ROUGE-L of each pair -> [N]."""
    known = {pair: rouge_l_of(pair[0], [pair[1]]) for pair in dict.fromkeys(pairs)}
    return np.array([known[pair] for pair in pairs])


def rouge_l_of(hypothesis: str, references: Sequence[str]) -> float:
    """ROUGE-L of a text against several, as pycocoevalcap has it: the best precision with the best recall."""
    said = hypothesis.split(" ")
    true = [reference.split(" ") for reference in references]
    common = [_common_words(said, words) for words in true]
    precision = max(common) / len(said)
    recall = max(count / len(words) for count, words in zip(common, true, strict=True))
    if not precision or not recall:
        return 0.0
    return ((1 + _ROUGE_BETA**2) * precision * recall) / (recall + _ROUGE_BETA**2 * precision)


def _common_words(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence. A bit of ``open_ones`` is 0 where the row of the usual table, for the
    words of ``second`` so far, goes up by one; so a row is one sum of long numbers, some ten times faster."""
    places: dict[str, int] = {}
    for place, word in enumerate(first):
        places[word] = places.get(word, 0) | 1 << place
    open_ones = every = (1 << len(first)) - 1
    for word in second:
        match = open_ones & places.get(word, 0)
        open_ones = (open_ones + match | open_ones - match) & every
    return len(first) - open_ones.bit_count()


def bleu(groups: Sequence[Group]) -> Floats:
    """BLEU-1 to BLEU-4 of each group as one corpus -> [G, 4]."""
    known = {pair: _bleu_counts(pair) for pair in dict.fromkeys(chain.from_iterable(groups))}
    counts = np.array([known[pair] for group in groups for pair in group]).reshape(-1, 2 + 2 * _ORDERS)
    counts = _group_sums(counts, groups)  # [G, 10]
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


def _group_sums(rows: Floats, groups: Sequence[Group]) -> Floats:
    """Sums [G, K] of rows [N, K], one a pair."""
    sums = np.zeros((len(groups), rows.shape[1]))
    np.add.at(sums, _owners(groups), rows)
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
    """The n-grams of texts as numbers, each text counted once; number % 4 is the order, 0 for a single word."""

    def __init__(self):
        self._ids: dict[tuple[str, ...], int] = {}
        self._texts: dict[str, NDArray[np.int64]] = {}  # [2, K]: n-grams and how often

    def count(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """[3, K]: the place of the text, an n-gram of it, and how often it is in there."""
        for text in dict.fromkeys(texts):
            if text not in self._texts:
                counts = precook(text, _ORDERS)
                ids = [self._ids.setdefault(gram, _ORDERS * len(self._ids) + len(gram) - 1) for gram in counts]
                self._texts[text] = np.array([ids, list(counts.values())], dtype=np.int64)
        parts = [self._texts[text] for text in texts]
        place = np.repeat(np.arange(len(parts)), [part.shape[1] for part in parts])
        return np.vstack([place, np.concatenate([np.zeros((2, 0), np.int64), *parts], axis=1)])

    @property
    def end(self) -> int:
        """Above all numbers so far."""
        return max(_ORDERS * len(self._ids), 1)


def _cider(grams: _Grams, pairs: Sequence[Pair], owner: NDArray[np.int64], documents: Sequence[str] | None) -> Floats:
    """CIDEr [N] of the pairs of all groups in order; document frequencies as for ``cider_pairs``."""
    texts = [[pair[side] for pair in pairs] for side in (0, 1)]
    corpora = [owner, owner, owner]  # each group has its own document frequencies
    if documents is not None:
        corpora = [owner * 0, owner * 0, np.zeros(len(documents), np.int64)]
    counted = [grams.count(some) for some in (*texts, texts[1] if documents is None else documents)]
    keys = [corpus[place] * grams.end + gram for corpus, (place, gram, _) in zip(corpora, counted, strict=True)]
    known, column = np.unique(np.concatenate(keys), return_inverse=True)  # [C]: n-grams of each corpus
    column = np.split(column, np.cumsum([len(key) for key in keys])[:-1])
    frequency = np.maximum(np.bincount(column[2], minlength=len(known)), 1)
    rarity = np.log(np.bincount(corpora[2])[known // grams.end]) - np.log(frequency)
    by_order = np.eye(_ORDERS)[known % _ORDERS]  # [C, 4]
    weights, lengths = [], []
    for (place, gram, count), columns in zip(counted[:2], column, strict=False):
        entries = (count * rarity[columns], (place, columns))
        weights.append(csr_array(entries, shape=(len(pairs), len(known))))
        lengths.append(np.bincount(place, count * (gram % _ORDERS == 1), len(pairs)))  # bigrams stand for the length
    hypothesis, reference = weights
    product = hypothesis.minimum(reference).multiply(reference) @ by_order  # [N, 4]
    norm = np.sqrt(hypothesis.power(2) @ by_order) * np.sqrt(reference.power(2) @ by_order)
    cosine = np.divide(product, norm, out=np.zeros_like(norm), where=norm != 0)
    return 10 * cosine.mean(1) * np.exp(-((lengths[0] - lengths[1]) ** 2) / (2 * _CIDER_SIGMA**2))
