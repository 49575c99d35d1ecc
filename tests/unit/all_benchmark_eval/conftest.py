"""What several share: data of every benchmark, and scores of captions without Java."""

from pathlib import Path

import numpy as np
import pytest

from all_benchmark_eval.metrics import captions
from tests.benchmark_data import write_all


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_all(tmp_path_factory.mktemp("data"))


@pytest.fixture
def plain_words(monkeypatch):
    """Caption scores without Java: tokens are the words, METEOR is the share of a hypothesis's words that are right."""
    monkeypatch.setattr(captions, "start_meteor", lambda: None)
    monkeypatch.setattr(captions, "tokenize", lambda texts: [text.lower().strip(" .") for text in texts])

    def pairs(some):
        halves = [(set(h.split()), set(r.split())) for h, r in some]
        return np.array([len(h & r) / max(len(h), 1) for h, r in halves])

    monkeypatch.setattr(captions, "meteor_pairs", pairs)
    monkeypatch.setattr(captions, "meteor", lambda groups: np.array([pairs(g).mean() if g else 0.0 for g in groups]))
    best = lambda said, true: max(pairs([(said, one)])[0] for one in true)  # noqa: E731
    monkeypatch.setattr(captions, "meteor_of_best", lambda texts, true: float(np.mean(list(map(best, texts, true)))))
