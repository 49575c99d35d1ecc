"""Vectors of words and names, of a tiny language model and a sentence model drawn here."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import normalize, one_hot
from transformers import AutoTokenizer

from realweights import align
from tests.toy_packages import language, sentences


@pytest.fixture
def made(tmp_path, monkeypatch):
    folder = language(tmp_path / "language")
    model = sentences()
    monkeypatch.setattr(align, "sentence_model", lambda: model)
    weight, pieces = align.embeddings(folder), model.tokenizer
    read = AutoTokenizer.from_pretrained(folder)
    words = align.word_vectors(folder, weight, pieces)
    return SimpleNamespace(weight=weight, read=read, pieces=pieces, model=model, words=words)


def test_a_word_is_its_embedding_and_its_sentence_vector_side_by_side(made):
    ball = made.pieces.convert_tokens_to_ids("ball")
    read, meant = made.words[ball].split([576, 384])
    embedded = made.weight[made.read(" ball", add_special_tokens=False)["input_ids"]].mean(0)
    assert torch.allclose(read * 2**0.5, normalize(embedded - made.weight.mean(0), dim=0), atol=1e-5)
    texts = made.pieces.convert_ids_to_tokens(range(len(made.pieces)))
    vectors = torch.from_numpy(made.model.encode(texts))
    assert torch.allclose(meant * 2**0.5, normalize(vectors[ball] - vectors.mean(0), dim=0), atol=1e-5)


def test_what_questions_consist_of_names_nothing(made):
    for word in ("when", "the", "video", "?", "b", "d"):
        assert not made.words[made.pieces.convert_tokens_to_ids(word)].any(), word
    assert not made.words[made.pieces.all_special_ids].any()
    named = made.pieces.convert_tokens_to_ids(["ball", "red", "kite"])
    assert made.words[named].norm(dim=-1).tolist() == pytest.approx([1, 1, 1])


def test_a_name_is_the_direction_of_its_words_and_who_has_fewer_repeats_them(made):
    ball, red = made.words[made.pieces.convert_tokens_to_ids(["ball", "red"])]
    names = align.name_vectors(made.words, made.pieces, [["red ball", "ball"], ["red"]])
    expected = [[normalize(ball + red, dim=0), ball], [red, red]]
    assert torch.allclose(names, torch.stack([torch.stack(row) for row in expected]), atol=1e-5)


def test_the_tower_learns_where_to_look_and_what_to_call_it():
    """Each of four places looks like one of eight things; only what stands where the last number is not 0 is named."""
    rng = torch.Generator().manual_seed(0)
    labels, where = torch.randint(8, (400,), generator=rng), torch.randint(4, (400,), generator=rng)
    like = torch.randint(8, (400, 4), generator=rng)
    like[torch.arange(400), where] = labels
    marked = torch.rand(400, generator=rng)
    x = torch.cat([one_hot(like, 8), marked[:, None, None] * one_hot(where, 4)[..., None]], -1)
    torch.manual_seed(0)
    tower = SimpleNamespace(look=torch.nn.Linear(9, 1, bias=False), project=torch.nn.Linear(9, 8))
    align.fit(tower, x.half(), labels.masked_fill(labels == 7, -1), torch.eye(8)[:7, None], 600, 0)
    with torch.no_grad():
        looks = tower.look(x)
        near = tower.project(align.pool(x, looks))[:, :7]
    plain = (labels < 7) & (marked > 0.3)
    assert (looks[..., 0].argmax(1) == where)[plain].float().mean() > 0.95
    assert (near.argmax(1) == labels)[plain].float().mean() > 0.95


def test_a_missing_language_model_is_one_line_with_a_remedy(tmp_path, capsys):
    places = ("--packages", tmp_path, "--language", tmp_path / "none", "--output", tmp_path / "tower")
    assert align.main([str(word) for word in places]) == 2
    assert f"error: {tmp_path / 'none'}: no converted language model; make it with" in capsys.readouterr().err
