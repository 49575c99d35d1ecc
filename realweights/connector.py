"""A connector that tells the language model which frames look like what the question names.

In: what the tower says of each frame, in the vectors of words (align.py), and the question in the token ids of the
sentence model. The first of a frame's numbers are a word embedding of the language model: a frame's token is that,
through a linear map, and beside it how near the frame is to the nearest name in the question, which is an unbroken row
of words that have a vector. As a Q-Former does, it reads the question, so questions of one video are not packed. The
words' vectors are frozen; it knows no language model beyond them.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from videollm.common.config import build, need
from videollm.model.connectors import CONNECTORS, WHERE, Connector

SHARPNESS = 5.0  # nearness is a cosine; its differences between frames are about a fifth
SCRAMBLED = 1.0  # share of the questions naming one thing whose frames do not say their words in training
MIXED = 2.0  # most of another name in a name in training: as hard to tell then as things that the alignment did not see
LIKENESS = 5.0  # on cosines of frames: how much more a frame counts to those that look like it
NEIGHBOURS = 10  # names of the alignment whose mean nearness says how near a frame is to names at all


class Scramble(nn.Dropout):
    """In training the numbers of frames [V, 1, Dv] change places, the same in all frames of a question.

    What looks alike still does, but a frame no longer says its word. For the share ``p`` of the questions that
    ``told`` [B] marks, those that the nearness answers; ``owner`` [V] is each frame's question. A kind of dropout: who
    switches that off, as reinforcement learning does, switches this off.
    """

    def forward(self, frames: Tensor, told: Tensor, owner: Tensor) -> Tensor:
        """[V, 1, Dv] -> [V, 1, Dv]."""
        if not self.training or not self.p:
            return frames
        drawn = told & (torch.rand(len(told), device=frames.device) < self.p)
        places = torch.rand(len(told), frames.shape[-1], device=frames.device).argsort(-1)
        return torch.where(drawn[owner, None, None], frames.gather(2, places[owner, None]), frames)


class Mix(nn.Dropout):
    """In training a question's names [B, K, Dv] are mixed with one that the alignment taught, drawn from ``known``.

    By up to ``MIXED`` times its own length, for the share ``p`` of the questions; a row of zeros stays so. The frames
    of a thing of training lie nearer to its name than those of a new thing will: so the model meets nearness that is
    weak or misleads, and learns to weigh whole events rather than the best frame. A kind of dropout as ``Scramble`` is.
    """

    def forward(self, names: Tensor, known: Tensor) -> Tensor:
        """[B, K, Dv] -> [B, K, Dv]."""
        if not self.training or not self.p:
            return names
        share, number = MIXED * torch.rand(len(names), device=names.device), len(names)
        share = share * (torch.rand(number, device=names.device) < self.p)
        other = known[torch.randint(len(known), (number,), device=names.device)].to(names.dtype)
        mixed = normalize(names + (share[:, None] * other)[:, None], dim=-1)
        return torch.where(names.any(-1, keepdim=True), mixed, names)


@dataclass
class WordMatchOptions:
    """Options of ``word_match``."""

    words: int = 30522  # rows of the table of words: the sentence model's vocabulary
    names: int = 600  # rows of the table of names that the alignment taught


@CONNECTORS.register(name="word_match")
class WordMatchConnector(Connector):
    """A linear map, from the identity, plus a map of six numbers a frame.

    ``words`` [words, Dv]: unit vectors of the question's tokens; ``names`` [names, Dv]: that the alignment taught;
    ``center`` [Dv]: around which frames lie. They come from ``connector.safetensors`` beside the tower's weights.
    The six: the cosine c of the frame (meant with the frames of its video that look like it) and the nearest of the
    question's names, and c less the mean over the nearest ``names`` (Conneau et al., Word Translation Without Parallel
    Data, ICLR 2018: some frames are near to all names); each by itself, less its mean over the video, and less its
    best in the video.
    """

    reads_question = True

    def __init__(self, fields: dict, vision_size: int, hidden_size: int):
        super().__init__()
        options = build(WordMatchOptions, fields, WHERE)
        for name, rows in (("words", options.words), ("names", options.names)):
            self.register_buffer(name, torch.zeros(rows, vision_size, dtype=torch.bfloat16))
        self.register_buffer("center", torch.zeros(vision_size))
        self.weight = nn.Parameter(torch.empty(hidden_size, vision_size))
        self.bias = nn.Parameter(torch.empty(hidden_size))
        self.told = nn.Parameter(torch.empty(hidden_size, 6))
        self.scramble, self.mix = Scramble(SCRAMBLED), Mix(1.0)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The identity of the dimensions that both have, and a random direction of a word's size for each number."""
        nn.init.eye_(self.weight)
        nn.init.zeros_(self.bias)
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
    def take(self, words: Tensor, names: Tensor, center: Tensor) -> None:
        """Keep unit vectors of words [n, Dv] and names [m, Dv], and the frames' center; ConfigError without room."""
        for key, table, rows in (("words", self.words, words), ("names", self.names, names)):
            need(len(rows) <= len(table), f"{WHERE}.{key}: {len(table)}, but there are {len(rows)}; set {len(rows)}")
            table[: len(rows)] = rows
        self.center.copy_(center)

    def names_in(self, query_ids: Tensor, query_mask: Tensor) -> Tensor:
        """The names in each question, an unbroken row of words each, zeros where there are fewer. [B, Lq + 1, Dv]."""
        words = self.words[query_ids].float() * query_mask.unsqueeze(-1)  # [B, Lq, Dv]
        named = words.any(-1)  # [B, Lq]
        place = (named & ~nn.functional.pad(named[:, :-1], (1, 0))).cumsum(1)  # of the row that a word stands in
        names = words.new_zeros(len(words), words.shape[1] + 1, words.shape[2])
        return normalize(names.scatter_add(1, place.unsqueeze(-1).expand_as(words), words), dim=-1)

    def nearness(self, features: Tensor, names: Tensor, owner: Tensor) -> Tensor:
        """Cosine of each frame [V, Dv] and the nearest of its question's ``names`` (0: none), and less that to names
        of training. [V, 2]."""
        frames = normalize(features.float() - self.center.float(), dim=-1)
        alike = (LIKENESS * frames @ frames.T).masked_fill(owner[:, None] != owner, -torch.inf)
        frames = alike.softmax(-1) @ frames  # what frames of a video that look alike say together
        names = self.mix(names, self.names)
        given = names.any(-1)[owner]  # [V, Lq + 1]
        cosine = torch.einsum("vd,vqd->vq", frames, names[owner])
        cosine = torch.where(given.any(-1), cosine.masked_fill(~given, -1).amax(-1), 0)  # [V]
        known = (frames @ self.names.float().T).topk(min(NEIGHBOURS, len(self.names)), -1).values.mean(-1)
        return torch.stack([cosine, cosine - known], -1)

    def forward(self, features, query_ids=None, query_mask=None, owner=None) -> Tensor:
        """features [V, 1, Dv], query_ids and query_mask [B, Lq], owner [V] -> [V, 1, D]."""
        names = self.names_in(query_ids, query_mask)
        near = self.nearness(features[:, 0], names, owner)
        zeros, rows = near.new_zeros(len(query_ids), 2), owner[:, None].expand(-1, 2)
        mean = zeros.scatter_reduce(0, rows, near, "mean", include_self=False)
        best = zeros.scatter_reduce(0, rows, near, "amax", include_self=False)
        told = SHARPNESS * torch.cat([near, near - mean[owner], near - best[owner]], -1)  # [V, 6]
        # Of several names, as in a choice, nearness does not say which: there the frames' own words have to.
        features = self.scramble(features - self.center, names.any(-1).sum(1) == 1, owner) + self.center
        plain = nn.functional.linear(features.to(self.weight.dtype), self.weight, self.bias)
        return plain + (told.to(self.told.dtype) @ self.told.T)[:, None]
