"""Paragraph scores of dense captions: all captions of a video as one text, against those of its references.

In: the captions of each video, predicted and true of each reference. Out: scores of all videos as one corpus, in
percent, as the paragraph evaluation of ActivityNet Captions has them ("Move Forward and Tell", ECCV 2018, whose script
TimeChat's for YouCook2 follows): letters only, no tokenizer. Times and files are not known here.
"""

import re
from collections.abc import Sequence

import numpy as np
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider

from all_benchmark_eval.metrics import captions

METRICS = ("Para_METEOR", "Para_CIDEr", "Para_ROUGE_L", *(f"Para_BLEU_{n}" for n in range(1, 5)))


def paragraph_scores(
    said: Sequence[Sequence[str]], true: Sequence[Sequence[Sequence[str]]], meteor: bool
) -> dict[str, float]:
    """Of captions ``said`` [V] against ``true`` [V], the captions of each reference that a video has (at least one).

    ``meteor``: with METEOR, which takes the reference that is best for each video.
    """
    if not said:
        return {}
    texts = [_letters(captions) for captions in said]
    references = [[_letters(captions) for captions in video] for video in true]
    hypotheses, targets = {k: [text] for k, text in enumerate(texts)}, dict(enumerate(references))
    bleu, _ = Bleu(4).compute_score(targets, hypotheses, verbose=0)
    found = {"Para_CIDEr": Cider().compute_score(targets, hypotheses)[0]}
    found |= {"Para_ROUGE_L": np.mean([captions.rouge_l_of(*pair) for pair in zip(texts, references, strict=True)])}
    found |= {f"Para_BLEU_{n}": value for n, value in enumerate(bleu, start=1)}
    if meteor:
        found["Para_METEOR"] = captions.meteor_of_best(texts, references)
    return {name: 100.0 * float(value) for name, value in found.items()}


def _letters(texts: Sequence[str]) -> str:
    """The words of texts, lower case, without anything that is not a letter a-z."""
    return " ".join(re.findall("[a-z]+", " ".join(texts).lower()))
