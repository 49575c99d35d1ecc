"""The connector tells which frames look like a word of the question, by numbers computed here by hand."""

import pytest
import torch

from realweights.connector import SHARPNESS
from videollm.common.config import ConfigError
from videollm.model.connectors import build_connector

WORDS = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
NAMES = torch.tensor([[-1.0, 0.0], [0.8, 0.6], [0.6, 0.8]])
CENTER = torch.tensor([1.0, 1.0])
FRAMES = CENTER + torch.tensor([[4.0, 0.0], [0.0, -1.0], [0.0, 9.0], [3.0, 4.0]])
OWNER = torch.tensor([0, 0, 1, 1])


@pytest.fixture
def connector():
    made = build_connector({"type": "word_match", "words": 5, "names": 2}, 2, 3)
    made.take(WORDS, NAMES, CENTER)
    return made


def test_rows_of_words_may_be_left_over_and_names_beyond_the_rows_are_left_out(connector):
    assert connector.words.float().tolist() == [*WORDS.tolist(), [0, 0]]
    assert connector.names.float().flatten().tolist() == pytest.approx([-1, 0, 0.8, 0.6], abs=2e-3)
    assert connector.center.tolist() == [1, 1]


def test_a_frame_is_told_the_nearest_name_of_its_own_question_words_in_a_row(connector):
    ids, mask = torch.tensor([[0, 3], [2, 1]]), torch.tensor([[1, 0], [1, 1]])
    near = connector.nearness(FRAMES, ids, mask, OWNER)
    assert near[:, 0].tolist() == pytest.approx([1.0, 0.0, 0.5**0.5, (0.8 - 0.6) * 0.5**0.5])  # padding is not read
    known = [(-1 + 0.8) / 2, (0 - 0.6) / 2, 0.6 / 2, (-0.6 + 0.96) / 2]  # the mean over both names
    assert (near[:, 0] - near[:, 1]).tolist() == pytest.approx(known, abs=3e-3)  # names are kept in bfloat16


@pytest.mark.parametrize(
    "asked, cosine",
    [
        ([0, 1], (0.6 + 0.8) * 0.5**0.5),
        ([0, 4, 4, 1], 0.8),  # 4 has no vector: two names
        ([4, 0, 1, 4, 2], (0.6 + 0.8) * 0.5**0.5),
        ([4, 4], 0.0),
    ],
)
def test_words_without_a_vector_end_a_name(connector, asked, cosine):
    near = connector.nearness(FRAMES[3:], torch.tensor([asked]), torch.ones(1, len(asked)), torch.tensor([0]))
    assert near[0, 0].item() == pytest.approx(cosine)


def test_a_token_is_the_frame_and_six_numbers_beside_it(connector):
    ids, mask = torch.tensor([[0, 3], [2, 1]]), torch.tensor([[1, 0], [1, 1]])
    near = connector.nearness(FRAMES, ids, mask, OWNER)
    tokens = connector(FRAMES[:, None], ids, mask, OWNER)
    less_mean = near - near.unflatten(0, (2, 2)).mean(1).repeat_interleave(2, 0)
    less_best = near - near.unflatten(0, (2, 2)).amax(1).repeat_interleave(2, 0)
    told = torch.cat([near, less_mean, less_best], 1)
    plain = torch.cat([FRAMES, torch.zeros(4, 1)], 1)  # the identity, into a wider model
    assert tokens.shape == (4, 1, 3)
    assert torch.allclose(tokens[:, 0], plain + SHARPNESS * told @ connector.told.T, atol=1e-5)
    narrow = build_connector({"type": "word_match"}, 3, 2)  # the last of a frame's numbers are for the nearness only
    assert narrow.weight.tolist() == [[1, 0, 0], [0, 1, 0]]


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
