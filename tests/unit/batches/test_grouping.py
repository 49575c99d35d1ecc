"""Batches of similar length: every item once, the same order on all ranks, less padding, no video opened."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.models import NoiseReader, make_bundle, record, turns
from videollm.batches.dataset import VideoDataset
from videollm.batches.lengths import item_sizes
from videollm.batches.order import LengthGroupedSampler
from videollm.common.config import ConfigError
from videollm.video.sampling import Sampler


class Unread(NoiseReader):
    """A reader whose videos must not be opened."""

    sampler, max_tiles = Sampler(rule="segments", num_frames=4), 6

    def video(self, name, rng, view=None, limits=()):
        raise AssertionError("opened")


class Epoch:
    epoch = 0


def item_lengths(dataset):
    """Tokens of each item's row."""
    return item_sizes(dataset, "train.group_by_length").sum(1)


def order_of(lengths, size=2, ranks=2, seed=0, epoch=0):
    dataset = Epoch()
    dataset.epoch = epoch
    return list(LengthGroupedSampler(dataset, lengths, size, ranks, seed))


def dataset_of(*lines, **options):
    reader = Unread()
    for name, value in options.items():
        setattr(reader, name, value)
    bundle = make_bundle("internvl", "distime")
    records = [record({**line, "id": str(i)}) for i, line in enumerate(lines)]
    return VideoDataset(records, reader, bundle.encoder(), max_length=1024)


SHORT = {"video": "a.mp4", "conversations": turns("<video>\nwhen?", "now")}


@given(st.lists(st.integers(1, 500), min_size=1, max_size=60), st.integers(1, 4), st.integers(1, 3))
def test_every_item_comes_once_and_the_longest_first(lengths, size, ranks):
    order = order_of(lengths, size, ranks)
    assert sorted(order) == list(range(len(lengths)))
    if len(lengths) > size * ranks * 50 or len(lengths) % (size * ranks) == 0:
        assert lengths[order[0]] == max(lengths)


def test_the_order_depends_on_seed_epoch_and_lengths_only():
    lengths = np.random.default_rng(0).integers(10, 900, 200)
    assert order_of(lengths) == order_of(lengths)
    assert order_of(lengths) != order_of(lengths, epoch=1) and order_of(lengths) != order_of(lengths, seed=1)


def test_padding_shrinks_and_ranks_have_similar_work():
    lengths = np.random.default_rng(0).integers(10, 900, 800).tolist()

    def padding(order):
        batches = [[lengths[i] for i in order[k : k + 4]] for k in range(0, len(order), 4)]
        return 1 - sum(lengths) / sum(max(b) * len(b) for b in batches)

    plain = list(np.random.default_rng(1).permutation(800))
    grouped = order_of(lengths, size=4, ranks=2)
    assert padding(grouped) < 0.1 < 0.3 < padding(plain)
    longest = np.asarray([lengths[i] for i in grouped]).reshape(-1, 2, 4).max(2)  # [step, rank]
    assert np.abs(longest[:, 0] - longest[:, 1]).mean() < 40


def test_lengths_are_those_of_the_prompts_up_to_a_constant():
    long = {**SHORT, "conversations": turns("<video>\nwhen does it happen, and for how long?", "from the start on")}
    text, image = {"conversations": turns("hi", "hello")}, {"image": "x.png", "conversations": turns("what?", "a cat")}
    dataset = dataset_of(SHORT, long, text, image)
    short, longer, words, picture = item_lengths(dataset)
    reader = dataset.reader = NoiseReader()
    true = [len(dataset[i].prompts[0]) for i in range(3)]
    assert reader and (longer - short, short - words) == pytest.approx((true[1] - true[0], true[0] - true[2]), abs=12)
    frame = 4  # visual tokens
    assert picture >= 7 * frame  # six tiles and the thumbnail at most


def test_frames_by_the_second_need_a_duration():
    every = Sampler(rule="fps", fps=2.0, max_frames=20)
    lengths = item_lengths(dataset_of({**SHORT, "duration": 4}, {**SHORT, "duration": 300}, sampler=every))
    short, long = item_lengths(dataset_of({**SHORT, "duration": 4}, {**SHORT, "duration": 8}, sampler=every))
    assert lengths[1] - lengths[0] == (20 - 8) / (16 - 8) * (long - short)
    with pytest.raises(ConfigError, match=r"train\.group_by_length: lines\.jsonl:1 has no duration"):
        item_lengths(dataset_of(SHORT, sampler=every))
