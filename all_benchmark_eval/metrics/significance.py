"""How sure a mean over samples is, and a difference of two: bootstrap intervals and a sign-flip test.

Per-sample scores [N, M] of N samples and M metrics in; the same resamples serve all metrics. Samples are taken as
independent, so several queries about one video make the intervals somewhat too narrow. Files are not known here.
"""

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
_AT_ONCE = 1 << 22  # numbers of one array of resamples

Floats = NDArray[np.float64]


def bootstrap_means(values: Floats, resamples: int, seed: int) -> Floats:
    """Means of ``resamples`` draws of N samples with replacement: [N, M] -> [resamples, M]."""
    count, rng, means = len(values), np.random.default_rng(seed), []
    for rows in _chunks(resamples, count):
        drawn = rng.integers(0, count, size=(rows, count)) + np.arange(rows)[:, None] * count
        times = np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count)
        means.append(times @ values / count)
    return np.concatenate(means)


def bootstrap_interval(values: Floats, resamples: int, seed: int) -> Floats:
    """Percentile interval of the mean at ``CONFIDENCE``: [N, M] -> [2, M]."""
    tail = (1 - CONFIDENCE) / 2
    return np.quantile(bootstrap_means(values, resamples, seed), [tail, 1 - tail], axis=0)


def sign_flip_p(differences: Floats, resamples: int, seed: int) -> Floats:
    """Two-sided p-value of a mean difference of 0, each sample's sign being free under it: [N, M] -> [M].

    (1 + draws at least as far from 0) / (1 + draws), so it is never 0.
    """
    differences = differences[(differences != 0).any(-1)]  # the others change no draw
    observed = np.abs(differences.sum(0))
    far = np.zeros(differences.shape[1], int)
    rng = np.random.default_rng(seed)
    for rows in _chunks(resamples, max(len(differences), 1)):
        positive = rng.integers(0, 2, size=(rows, len(differences)), dtype=np.int8)
        drawn = 2 * (positive.astype(np.float64) @ differences) - differences.sum(0)
        far += (np.abs(drawn) >= observed - 1e-9).sum(0)
    return (1 + far) / (1 + resamples)


def by_samples(per_sample: Mapping[str, Mapping[str, float]]) -> Iterable[tuple[list[str], list[str], Floats]]:
    """Metrics that have the same samples together: (metrics, ids, values [N, M]); metrics without a sample left out."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for name, values in per_sample.items():
        if values:
            groups.setdefault(tuple(values), []).append(name)
    for ids, names in groups.items():
        yield names, list(ids), np.array([list(per_sample[name].values()) for name in names], np.float64).T


def _chunks(resamples: int, width: int) -> Iterable[int]:
    """Row counts that sum to ``resamples``, of arrays ``width`` wide."""
    rows = max(1, _AT_ONCE // width)
    return [min(rows, resamples - done) for done in range(0, resamples, rows)]
