"""Words that a tokenizer does not know: the model reads one and the same token in place of each.

In: records and a tokenizer. Out: one warning with their share, so that nobody trains or asks with words that are lost.
Most tokenizers spell out what they do not know, and have no such token. Knows no model.
"""

import logging
from collections import Counter
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from videollm.data import Record

logger = logging.getLogger(__name__)
MOST = 2000  # records that are looked at, evenly from all
NAMED = 3  # words


def warn_unknown(records: Sequence[Record], tokenizer: PreTrainedTokenizerBase, where: str) -> None:
    """Warn, once, of the share of unknown tokens in the text of ``records``; ``where`` says whose text it is."""
    if tokenizer.unk_token_id is None or not tokenizer.is_fast:
        return
    turns = (turn for record in records[:: max(1, len(records) // MOST)] for turn in record.turns)
    texts = [part for turn in turns for part in turn.parts if isinstance(part, str)]
    if not texts:
        return
    found = tokenizer(texts, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True)
    words: Counter[str] = Counter()
    for text, ids, places in zip(texts, found.input_ids, found.offset_mapping, strict=True):
        words.update(text[a:b] for i, (a, b) in zip(ids, places, strict=True) if i == tokenizer.unk_token_id)
    if unknown := words.total():
        share = 100 * unknown / sum(map(len, found.input_ids))
        named = ", ".join(repr(word) for word, _ in words.most_common(NAMED))
        logger.warning(
            "%s: the model's tokenizer (%d tokens) does not know %.1f %% of the text, most often %s: the model reads "
            "%s in their place; use its own words, or a model with a larger vocabulary",
            where, len(tokenizer), share, named, tokenizer.unk_token,
        )  # fmt: skip
