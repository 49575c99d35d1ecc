"""The connector tells which frames look like a word of the question, by numbers computed here by hand."""

import pytest
import torch

from realweights.connector import LIKENESS, MIXED, SHARPNESS
from videollm.common.config import ConfigError
from videollm.grpo.objective import no_dropout
from videollm.model.connectors import build_connector

WORDS = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
NAMES = torch.tensor([[-1.0, 0.0], [0.8, 0.6], [0.6, 0.8]])
CENTER = torch.tensor([1.0, 1.0])
FRAMES = CENTER + torch.tensor([[4.0, 0.0], [0.0, -1.0], [0.0, 9.0], [3.0, 4.0]])
OWNER = torch.tensor([0, 0, 1, 1])


@pytest.fixture
def connector():
    made = build_connector({"type": "word_match", "words": 5, "names": 2}, 2, 3)
    made.take(WORDS, NAMES[:2], CENTER)
    return made.eval()


def test_rows_of_words_may_be_left_over_and_names_beyond_the_rows_are_refused(connector):
    with pytest.raises(ConfigError, match=r"model\.connector\.names: 2, but there are 3; set 3"):
        connector.take(WORDS, NAMES, CENTER)
    assert connector.words.float().tolist() == [*WORDS.tolist(), [0, 0]]
    assert connector.names.float().flatten().tolist() == pytest.approx([-1, 0, 0.8, 0.6], abs=2e-3)
    assert connector.center.tolist() == [1, 1]


def together(frames, owner):
    """What each frame says with those of its video that look like it: a mean of directions, weighed by likeness."""
    unit = torch.nn.functional.normalize(frames - CENTER, dim=-1)
    said = []
    for one, of in zip(unit, owner, strict=True):
        video = unit[owner == of]
        said.append((LIKENESS * video @ one).softmax(0) @ video)
    return torch.stack(said)


def test_a_frame_is_told_the_nearest_name_of_its_own_question_words_in_a_row(connector):
    ids, mask = torch.tensor([[0, 3], [2, 1]]), torch.tensor([[1, 0], [1, 1]])
    near, said = connector.nearness(FRAMES, connector.names_in(ids, mask), OWNER), together(FRAMES, OWNER)
    names = torch.tensor([[1.0, 0.0], [1.0, 0.0], [-(0.5**0.5), 0.5**0.5], [-(0.5**0.5), 0.5**0.5]])
    assert torch.allclose(near[:, 0], (said * names).sum(-1), atol=1e-5)  # padding is not read
    known = (said @ NAMES[:2].T).mean(-1)  # over both names
    assert torch.allclose(near[:, 0] - near[:, 1], known, atol=3e-3)  # names are kept in bfloat16


def test_frames_of_other_videos_say_nothing(connector):
    ids, mask = torch.tensor([[0], [1]]), torch.ones(2, 1)
    both = connector.nearness(FRAMES, connector.names_in(ids, mask), OWNER)
    one = connector.nearness(FRAMES[2:], connector.names_in(ids[1:], mask[1:]), torch.tensor([0, 0]))
    assert torch.allclose(both[2:], one, atol=1e-6)


@pytest.mark.parametrize(
    "asked, cosine",
    [
        ([0, 1], (0.6 + 0.8) * 0.5**0.5),
        ([0, 4, 4, 1], 0.8),  # 4 has no vector: two names
        ([4, 0, 1, 4, 2], (0.6 + 0.8) * 0.5**0.5),
        ([2, 4], -0.6),  # nothing is nearer than what is named
        ([4, 4], 0.0),
    ],
)
def test_words_without_a_vector_end_a_name(connector, asked, cosine):
    names = connector.names_in(torch.tensor([asked]), torch.ones(1, len(asked)))
    near = connector.nearness(FRAMES[3:], names, torch.tensor([0]))
    assert near[0, 0].item() == pytest.approx(cosine)


def test_a_token_is_the_frame_and_six_numbers_beside_it(connector):
    ids, mask = torch.tensor([[0, 3], [2, 1]]), torch.tensor([[1, 0], [1, 1]])
    near = connector.nearness(FRAMES, connector.names_in(ids, mask), OWNER)
    tokens = connector(FRAMES[:, None], ids, mask, OWNER)
    less_mean = near - near.unflatten(0, (2, 2)).mean(1).repeat_interleave(2, 0)
    less_best = near - near.unflatten(0, (2, 2)).amax(1).repeat_interleave(2, 0)
    told = torch.cat([near, less_mean, less_best], 1)
    plain = torch.cat([FRAMES, torch.zeros(4, 1)], 1)  # the identity, into a wider model
    assert tokens.shape == (4, 1, 3)
    assert torch.allclose(tokens[:, 0], plain + SHARPNESS * told @ connector.told.T, atol=1e-5)
    narrow = build_connector({"type": "word_match"}, 3, 2)  # the last of a frame's numbers are for the nearness only
    assert narrow.weight.tolist() == [[1, 0, 0], [0, 1, 0]]


def test_in_training_frames_of_a_question_that_names_one_thing_say_other_words(connector):
    ids, mask = torch.tensor([[4, 4, 4], [0, 1, 4], [0, 4, 1]]), torch.ones(3, 3)  # nothing, one name, two
    frames, owner = torch.cat([FRAMES] * 3)[:, None], torch.arange(3).repeat_interleave(4)
    told = connector(frames, ids, mask, owner)
    swapped = told.clone()
    swapped[4:8, 0, :2] += (FRAMES - CENTER).flip(-1) - (FRAMES - CENTER)
    torch.manual_seed(0)
    connector.mix.p = 0
    found = [connector.train()(frames, ids, mask, owner) for _ in range(20)]
    like = [[torch.allclose(one, other, atol=1e-5) for one in found] for other in (told, swapped)]
    assert sum(like[0]) > 0 and sum(like[1]) > 0 and sum(like[0]) + sum(like[1]) == 20  # all frames of a question alike
    no_dropout(connector)  # as reinforcement learning does
    assert torch.equal(connector(frames, ids, mask, owner), told)


def test_in_training_a_name_is_mixed_with_one_that_the_alignment_taught(connector):
    torch.manual_seed(0)
    named = torch.nn.functional.normalize(torch.rand(400, 2, 2) + torch.tensor([1.0, 0.0]), dim=-1)
    named[:, 1] = 0  # no name
    mixed = connector.train().mix(named, torch.tensor([[0.0, 1.0]]))
    assert torch.equal(mixed[:, 1], named[:, 1]) and torch.allclose(mixed[:, 0].norm(dim=-1), torch.ones(400))
    # n + s * (0, 1) is parallel to what came out: s by the two of them
    share = mixed[:, 0, 1] / mixed[:, 0, 0] * named[:, 0, 0] - named[:, 0, 1]
    assert 0 <= share.min() < 0.05 and MIXED - 0.05 < share.max() <= MIXED + 1e-4
    assert share.mean().item() == pytest.approx(MIXED / 2, abs=0.1)
    ids, mask = torch.tensor([[0, 4], [1, 4]]), torch.ones(2, 2)
    names = connector.names_in(ids, mask)
    assert not torch.equal(connector.nearness(FRAMES, names, OWNER), connector.nearness(FRAMES, names, OWNER))
    no_dropout(connector)
    assert torch.equal(connector.mix(named, NAMES), named)


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
