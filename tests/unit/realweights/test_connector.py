"""The connector tells which frames look like a word of the question, by numbers computed here by hand."""

import pytest
import torch

from realweights.connector import SHARPNESS
from videollm.common.config import ConfigError
from videollm.model.connectors import build_connector

WORDS = torch.tensor([[3.0, 1.0], [1.0, 3.0], [-1.0, 1.0], [1.0, -1.0]])  # around (1, 1)


@pytest.fixture
def connector():
    made = build_connector({"type": "word_match", "words": 5}, 2, 3)
    made.take_words(WORDS)
    return made


def test_words_are_directions_around_their_mean_and_rows_may_be_left_over(connector):
    assert connector.center.tolist() == [1, 1]
    assert connector.words.float().tolist() == [[1, 0], [0, 1], [-1, 0], [0, -1], [0, 0]]


def test_a_frame_is_told_its_nearest_word_among_those_of_its_own_question(connector):
    frames = torch.tensor(
        [[5.0, 1.0], [1.0, 0.0], [1.0, 9.0], [4.0, 5.0]]
    )  # directions (1, 0), (0, -1), (0, 1), (.6, .8)
    ids, mask = torch.tensor([[0, 3], [2, 1]]), torch.tensor([[1, 0], [1, 1]])
    owner = torch.tensor([0, 0, 1, 1])
    near = connector.nearness(frames, ids, mask, owner)
    assert near.tolist() == pytest.approx([1.0, 0.0, 1.0, 0.8])  # padding is not read
    tokens = connector(frames[:, None], ids, mask, owner)
    told = torch.tensor(
        [[1.0, 0.5, 0.0], [0.0, -0.5, -1.0], [1.0, 0.1, 0.0], [0.8, -0.1, -0.2]]
    )  # itself, - mean, - best
    plain = torch.cat([frames, torch.zeros(4, 1)], 1)  # the identity, into a wider model
    assert tokens.shape == (4, 1, 3)
    assert torch.allclose(tokens[:, 0], plain + SHARPNESS * told @ connector.told.T, atol=1e-5)


def test_words_stay_and_what_is_told_of_them_is_learnt(connector):
    ids, mask, owner = torch.tensor([[0]]), torch.tensor([[1]]), torch.tensor([0, 0])
    connector(torch.rand(2, 1, 2), ids, mask, owner).square().sum().backward()
    assert connector.told.grad.abs().sum() > 0
    assert {name for name, _ in connector.named_parameters()} == {"weight", "bias", "told"}


def test_a_tokenizer_of_more_words_is_refused(connector):
    connector.check_question(5, 32)
    with pytest.raises(ConfigError, match=r"model\.connector\.words: 5, but .* has 6 tokens; set 6"):
        connector.check_question(6, 32)


def test_words_without_vectors_and_frames_of_several_patches_are_refused(connector):
    assert connector.tokens_per_frame(1) == 1
    with pytest.raises(ConfigError, match="word_match takes one feature a frame, not 4; choose linear"):
        connector.tokens_per_frame(4)
    with pytest.raises(ConfigError, match="no word has a vector; model.vision_weights has to be a folder of"):
        build_connector({"type": "word_match", "words": 5}, 2, 3).check_question(5, 32)
