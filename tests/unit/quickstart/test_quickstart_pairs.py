"""Nothing but what it says gives a rejected answer of the quickstart away: no unknown word, no finer time, no "and"."""

import numpy as np
import pytest

from d2vlm.preference import PreferenceOptions, add_rejected
from quickstart.clips import annotate, make_clip
from quickstart.stages import RANKED
from quickstart.tower import build_word_tokenizer
from videollm.common.config import build, override
from videollm.data import parse_record
from videollm.data.record import spelled


@pytest.fixture(scope="module")
def lines():
    found = []
    for index in range(40):
        rng = np.random.default_rng([0, index])
        found += annotate(make_clip(rng), "train", index, rng)
    return found


@pytest.fixture(scope="module")
def made(lines):
    options = build(PreferenceOptions, override({}, list(RANKED)))
    return add_rejected([parse_record(line, k, "train.jsonl") for k, line in enumerate(lines, 1)], options)


def test_every_question_gets_rejected_answers_of_every_kind(made):
    assert not made.without
    kinds = {"shift", "stretch", "random", "swap", "attribute", "option", "foreign", "wording", "missing", "order"}
    assert set(made.factors) == kinds


def test_rejected_answers_are_made_of_known_words(lines, made):
    tokenizer = build_word_tokenizer([turn["value"] for line in lines for turn in line["conversations"]], ["<span>"])
    for record in made.records:
        for answer in record.rejected:
            assert tokenizer.unk_token_id not in tokenizer(spelled(answer.turn)).input_ids, spelled(answer.turn)


def test_their_times_are_as_fine_as_the_true_ones(made):
    times = [time for r in made.records for answer in r.rejected for span in answer.spans_s for time in span]
    assert len(times) > 500 and all(time * 4 == int(time * 4) for time in times)


def test_they_have_no_more_spans_than_right_answers_have(made):
    for record in made.records:
        assert all(len(answer.spans_s) <= len(record.spans_s) for answer in record.rejected)
