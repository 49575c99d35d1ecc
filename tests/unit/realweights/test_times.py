"""The start of DisTime's head: words far from each other, said and read again."""

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import cosine_similarity

from distime.losses import gaussian
from distime.time_head import TimeHead, TimeOptions
from realweights import times
from tests.toy_packages import language


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return language(tmp_path_factory.mktemp("times") / "language")


def test_times_are_said_by_words_and_read_from_states_that_lean_to_them(folder, tmp_path, capsys):
    file = tmp_path / "times.safetensors"
    given = ["--language", str(folder), "--output", str(file), "--steps", "150"]
    assert times.main(given) == 0
    head = TimeHead(TimeOptions(), 576)
    head.load_state_dict(load_file(file))
    tokenizer = times.AutoTokenizer.from_pretrained(folder)
    weight = times.AutoModelForCausalLM.from_pretrained(folder).get_input_embeddings().weight.detach()
    words = times.choose_words(weight, tokenizer, 33)
    assert len(set(words.tolist())) == 33
    said = weight[words] - weight.mean(0)
    with torch.no_grad():
        bins = torch.arange(33.0)
        encoded = head.time_enc(gaussian(bins[:, None].expand(-1, 2), 32, 1.0).flatten(-2)) - weight.mean(0)
        near = cosine_similarity(encoded[:, None], said[None], dim=-1)
        read = head.time_gen(30 * (said[:-8] + said[8:])).unflatten(-1, (2, -1)).argmax(-1)
    assert (near.argmax(1) == bins).float().mean() > 0.9
    assert (read[:, 0] - bins[:-8]).abs().median() <= 1 and (read[:, 1] - bins[8:]).abs().median() <= 1
    capsys.readouterr()
    assert times.main(given) == 0  # there already
    assert times.main([*given[:-1], "151"]) == 2
    assert "times.safetensors: was made with" in capsys.readouterr().err


def test_a_missing_model_and_a_damaged_file_are_one_line_with_a_remedy(folder, tmp_path, capsys):
    none, file = str(tmp_path / "none"), tmp_path / "times.safetensors"
    assert times.main(["--language", none, "--output", str(file)]) == 2
    assert f"error: {none}: no converted language model; make it with python -m" in capsys.readouterr().err
    file.write_bytes(b"no tensors")
    assert times.main(["--language", str(folder), "--output", str(file)]) == 2
    assert f"error: {file}: cannot be read (" in capsys.readouterr().err
    assert file.read_bytes() == b"no tensors"


def test_words_are_as_unlike_as_can_be_and_whole(folder):
    tokenizer = times.AutoTokenizer.from_pretrained(folder)
    weight = torch.randn(len(tokenizer), 8, generator=torch.Generator().manual_seed(0))
    words = times.choose_words(weight, tokenizer, 4)
    assert all(tokenizer.decode([i])[1:].isalpha() for i in words)
    vectors = torch.nn.functional.normalize(weight - weight.mean(0), dim=-1)
    near = vectors[words] @ vectors[words].T - torch.eye(4)
    assert near.max() < 0.2
    with pytest.raises(ValueError, match="whole words, 900 are needed"):
        times.choose_words(weight, tokenizer, 900)
