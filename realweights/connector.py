"""A connector that tells the language model which frames look like a word of the question.

In: what the tower says of each frame, in word embeddings (align.py), and the question in the language model's own token
ids. A frame's token is that vector through a linear map, and beside it how near the frame is to the nearest word of the
question: by itself, and against the mean and the best frame of its video. As a Q-Former does, it reads the question, so
questions of one video are not packed. The words' vectors are frozen; it knows no language model beyond them.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from videollm.common.config import build, need
from videollm.model.connectors import CONNECTORS, WHERE, LinearConnector

SHARPNESS = 5.0  # nearness is a cosine; its differences between frames are about a fifth


@dataclass
class WordMatchOptions:
    """Options of ``word_match``."""

    words: int = 49152  # rows kept for the language model's vocabulary, before a head adds its own


@CONNECTORS.register(name="word_match")
class WordMatchConnector(LinearConnector):
    """The linear connector, from the identity, plus a map of three numbers a frame.

    ``words`` [words, Dv]: unit vectors of the tokens around ``center`` [Dv], from ``connector.safetensors`` beside the
    tower's weights.
    """

    reads_question = True

    def __init__(self, fields: dict, vision_size: int, hidden_size: int):
        options = build(WordMatchOptions, fields, WHERE)
        super().__init__({"identity_init": True}, vision_size, hidden_size)
        self.register_buffer("words", torch.zeros(options.words, vision_size, dtype=torch.bfloat16))
        self.register_buffer("center", torch.zeros(vision_size))
        self.told = nn.Parameter(torch.empty(hidden_size, 3))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The identity, and a random direction of a word's size for each of the three numbers."""
        super().reset_parameters()
        if hasattr(self, "told"):
            nn.init.normal_(self.told, std=0.1)

    def check_question(self, words: int, longest: int) -> None:
        """ConfigError where the question's tokenizer has more words than there are rows."""
        have = len(self.words)
        need(words <= have, f"{WHERE}.words: {have}, but model.question_tokenizer has {words} tokens; set {words}")
        lack = "no word has a vector; model.vision_weights has to be a folder of realweights.align, with its connector"
        need(self.words.is_meta or self.words.any(), f"{WHERE}.type: word_match: {lack}")

    def tokens_per_frame(self, num_patches: int) -> int:
        """1; ConfigError for a tower that gives more of a frame."""
        need(num_patches == 1, f"{WHERE}.type: word_match takes one feature a frame, not {num_patches}; choose linear")
        return 1

    @torch.no_grad()
    def take_words(self, embeddings: Tensor) -> None:
        """Keep the word embeddings [words, Dv] as directions around their mean."""
        center = embeddings.mean(0)
        self.center.copy_(center)
        self.words[: len(embeddings)] = normalize(embeddings - center, dim=-1).to(self.words.dtype)

    def nearness(self, features: Tensor, query_ids: Tensor, query_mask: Tensor, owner: Tensor) -> Tensor:
        """Cosine of each frame [V, Dv] and the nearest token of its question. [V]."""
        frames = normalize(features.float() - self.center.float(), dim=-1)
        cosine = torch.einsum("vd,bqd->vbq", frames, self.words[query_ids].float())
        cosine = cosine.masked_fill(~query_mask.bool(), -1).amax(-1)  # [V, B]
        return cosine.gather(1, owner[:, None])[:, 0]

    def forward(self, features, query_ids=None, query_mask=None, owner=None) -> Tensor:
        """features [V, 1, Dv], query_ids and query_mask [B, Lq], owner [V] -> [V, 1, D]."""
        near, rows = self.nearness(features[:, 0], query_ids, query_mask, owner), len(query_ids)
        zeros = near.new_zeros(rows)
        mean = zeros.scatter_reduce(0, owner, near, "mean", include_self=False)
        best = zeros.scatter_reduce(0, owner, near, "amax", include_self=False)
        told = SHARPNESS * torch.stack([near, near - mean[owner], near - best[owner]], -1)  # [V, 3]
        return super().forward(features) + (told.to(self.told.dtype) @ self.told.T)[:, None]
