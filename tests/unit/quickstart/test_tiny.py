"""What a CPU can train: a tokenizer that gives text back, a tower that reads frames, and words with its vectors."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import AutoTokenizer

from quickstart import clips as moving_shapes
from quickstart import tower as tiny
from quickstart.clips import COLORS, MOTIONS, SHAPES
from videollm.checkpoint.start import align_words
from videollm.model.towers import ConvTower, ConvTowerConfig
from videollm.video.preprocess import Preprocess
from videollm.video.read import read_video
from videollm.video.sampling import Sampler

TEXTS = ["when does the red circle moving left happen ?", "(a) blue square growing (b) it happens at ."]
WORDS = ["red", "circle", "moving", "(a)", "?", ".", "-", "percent", "seconds", "28", "46", "12.3", "happens", "\n"]
STEPS = 60


@pytest.fixture(scope="module")
def tokenizer():
    return tiny.build_word_tokenizer(TEXTS, ["<evi>"])


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes")
    moving_shapes.write_dataset(folder, {"train": 24, "val": 6}, seed=0, progress=False)
    return folder


@pytest.fixture(scope="module")
def prepared(dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tower")
    return folder, tiny.prepare_tower(dataset, folder, steps=STEPS, seed=0)


def decode(tokenizer, text: str) -> str:
    return tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids)


# ---- tokenizer -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "it happens at 28 - 46 percent .",
        "12.3 - 20.1 seconds.",
        "1 2 12",
        "(a) blue square growing (b) red",
        "red\ncircle \n moving",
        "  red  circle ",
        "<|im_start|>red\ncircle<|im_end|>\n",
        "<evi><evi> red circle<evi>",
        "",
    ],
)
def test_decoding_gives_the_text_back(tokenizer, text):
    assert decode(tokenizer, text) == text


@given(st.lists(st.sampled_from([*WORDS, " ", "<evi>", "<|im_end|>"]), max_size=20))
@settings(deadline=None)
def test_any_order_of_known_pieces_comes_back(tokenizer, pieces):
    # Words with nothing between them would read as one longer word, which is not known: a line break parts them.
    glued = [a.isalpha() and b.isalpha() for a, b in zip(pieces, [*pieces, ""][1:], strict=True)]
    text = "".join(piece + "\n" * parted for piece, parted in zip(pieces, glued, strict=True))
    assert decode(tokenizer, text) == text


def test_every_digit_and_newline_is_one_token_even_if_no_text_has_it():
    tokenizer = tiny.build_word_tokenizer([])
    ids = tokenizer("0 1 2 3 4 5 6 7 8 9 - percent . \n", add_special_tokens=False).input_ids
    assert tokenizer.unk_token_id not in ids
    assert len(tokenizer("1234567890", add_special_tokens=False).input_ids) == 10
    assert len(tokenizer("\n", add_special_tokens=False).input_ids) == 1


def test_special_tokens_are_single_ids_and_unknown_words_are_the_unknown_token(tokenizer):
    for token in ("<pad>", "<unk>", "<|im_start|>", "<|im_end|>", "<evi>"):
        assert tokenizer(token, add_special_tokens=False).input_ids == [tokenizer.convert_tokens_to_ids(token)]
    assert (tokenizer.pad_token, tokenizer.eos_token, tokenizer.unk_token) == ("<pad>", "<|im_end|>", "<unk>")
    unknown = tokenizer("red zebra", add_special_tokens=False).input_ids
    assert unknown[1:] == [tokenizer.unk_token_id] and unknown[0] != tokenizer.unk_token_id
    assert len(set(tokenizer.get_vocab().values())) == len(tokenizer)


def test_a_saved_tokenizer_reads_and_writes_the_same(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = "<|im_start|>red circle 28 - 46 percent .\n<evi> growing<|im_end|>"
    assert loaded(text).input_ids == tokenizer(text).input_ids and decode(loaded, text) == text
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert (loaded.pad_token_id, loaded.eos_token_id) == (tokenizer.pad_token_id, tokenizer.eos_token_id)


def test_the_vocabulary_does_not_depend_on_the_order_of_the_texts():
    assert tiny.build_word_tokenizer(TEXTS).get_vocab() == tiny.build_word_tokenizer(TEXTS[::-1]).get_vocab()


# ---- word vectors --------------------------------------------------------------------------------------------------


def test_aligned_words_have_the_given_directions_and_other_words_stay(tokenizer):
    generator = torch.Generator().manual_seed(0)
    attributes = {word: torch.randn(8, generator=generator) for word in ("red", "blue", "circle")}
    weight = torch.randn(len(tokenizer), 10, generator=generator)
    before = weight.clone()
    align_words(weight, tokenizer, attributes, norm=4.0)
    mean = sum(attributes.values()) / 3
    changed = set()
    for word, vector in attributes.items():
        for piece in (word, "\u2581" + word):  # at the start of a text and after a blank
            index = tokenizer.convert_tokens_to_ids(piece)
            changed.add(index)
            torch.testing.assert_close(weight[index, :8], 4 * (vector - mean) / (vector - mean).norm())
            assert weight[index, 8:].eq(0).all()
    others = [i for i in range(len(tokenizer)) if i not in changed]
    assert len(changed) == 6 and torch.equal(weight[others], before[others])


def test_a_word_that_the_tokenizer_lacks_does_not_overwrite_the_unknown_token(tokenizer):
    weight = torch.zeros(len(tokenizer), 4)
    align_words(weight, tokenizer, {"zebra": torch.ones(4), "red": torch.zeros(4)})
    assert weight[tokenizer.unk_token_id].eq(0).all()
    assert weight[tokenizer.convert_tokens_to_ids("red")].norm() == pytest.approx(4)


def test_word_vectors_wider_than_the_embedding_are_refused(tokenizer):
    with pytest.raises(ValueError, match="model.word_vectors: .* at most 4"):
        align_words(torch.zeros(len(tokenizer), 4), tokenizer, {"red": torch.ones(5), "blue": torch.zeros(5)})


# ---- tower ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("channels", "size"), [((24, 48, 96), 64), ((8, 16), 32), ((4,), 16)])
def test_the_tower_gives_one_vector_a_frame(channels, size):
    config = ConvTowerConfig(num_channels=3, channels=channels, hidden_size=12, image_size=size)
    tower = ConvTower(config).eval()
    assert tower(torch.randn(5, 3, size, size)).shape == (5, 1, 12)
    assert tower.num_patches == 1 and tower.hidden_size == 12


def test_the_default_tower_has_a_quarter_of_a_million_parameters():
    assert 0.24e6 < sum(p.numel() for p in ConvTower(ConvTowerConfig()).parameters()) < 0.28e6


def test_frames_and_sizes_that_the_tower_cannot_take_are_refused():
    with pytest.raises(ValueError, match="multiple of 16 pixels, not 60"):
        ConvTower(ConvTowerConfig(image_size=60))
    with pytest.raises(ValueError, match="shape"):
        ConvTower(ConvTowerConfig())(torch.zeros(1, 3, 64, 64))


# ---- preparation ---------------------------------------------------------------------------------------------------


def test_labels_say_which_event_a_frame_shows(dataset):
    clips = tiny.Clips(dataset, "train", 24)
    records = {r["video"]: r for r in tiny.read_records(dataset, "train")}
    names = [tuple(COLORS), SHAPES, tuple(MOTIONS)]
    several = 0
    for record, labels, pixels in zip(records.values(), clips.labels, clips.frames, strict=True):
        frames = read_video(dataset / "videos" / record["video"], Sampler(rule="segments", num_frames=32))
        assert torch.equal(pixels, torch.as_tensor(frames.pixels))
        for time_s, label in zip(frames.times_s, labels.tolist(), strict=True):
            active = [e for e in record["events"] if e["span"][0] <= time_s < e["span"][1]]
            several += len(active) > 1
            match active:
                case []:
                    assert label == [-1, -1, -1]
                case [e]:
                    assert [n[i] for n, i in zip(names, label, strict=True)] == [e["color"], e["shape"], e["motion"]]
                case _:
                    assert label == [-2, -2, -2]
    assert several > 0, "these clips should have an overlap"


def test_a_training_window_is_what_preprocessing_the_whole_clip_gives(dataset):
    """Else the tower would be trained on other differences than it sees later; frame 0 differs from nothing."""
    clips = tiny.Clips(dataset, "train", 2)
    whole = torch.stack([Preprocess(kind="plain", size=64, frame_difference=True)(f) for f in clips.frames])
    starts = set()
    pixels, labels = clips.batch(torch.Generator().manual_seed(0))
    views = whole.unfold(1, 4, 1).movedim(-1, 2)  # [2, 29, 4, 6, 64, 64]
    for window, window_labels in zip(pixels.unflatten(0, (32, 4)), labels.unflatten(0, (32, 4)), strict=True):
        clip, start = (views == window).flatten(2).all(-1).nonzero()[0].tolist()
        assert torch.equal(window_labels, clips.labels[clip, start : start + 4])
        starts.add(start)
    assert len(starts) > 8


def test_most_training_windows_touch_an_event_and_all_places_of_a_clip_are_used(dataset):
    clips = tiny.Clips(dataset, "train", 24)
    clips.frames = (
        torch.arange(32, dtype=torch.uint8).view(1, 32, 1, 1, 1).expand(24, 32, 64, 64, 3)
    )  # tells its number
    rng = torch.Generator().manual_seed(0)
    batches = [clips.batch(rng) for _ in range(6)]
    touching = torch.cat([(labels >= 0).any(1).unflatten(0, (32, 4)).any(1) for _, labels in batches])
    numbers = torch.cat([(pixels[:, 0, 0, 0] * 0.5 + 0.5).mul(255).round() for pixels, _ in batches])
    assert 0.75 < touching.float().mean() < 0.97
    assert set(numbers.int().tolist()) == set(range(32))


def test_a_short_preparation_already_tells_colours_and_is_reported(prepared):
    folder, report = prepared
    assert json.loads((folder / "report.json").read_text()) == report
    assert report["steps"] == STEPS and report["clips"] == 24 and report["cpu_s"] > 0
    assert set(report["accuracy"]) == {"color", "shape", "motion"}
    assert report["accuracy"]["color"] > 0.75, "always saying 'nothing here' earns about 0.55"
    assert report["accuracy"]["motion"] > 0.4


def test_a_prepared_tower_loads_and_its_word_vectors_point_at_what_frames_show(prepared, dataset):
    folder, _ = prepared
    tower = ConvTower.from_pretrained(folder)
    vectors = load_file(folder / "attributes.safetensors")
    assert set(vectors) == {*COLORS, *SHAPES, *MOTIONS} and {v.shape for v in vectors.values()} == {(128,)}
    clips = tiny.Clips(dataset, "val", 6)
    known = clips.labels[..., 0] >= 0
    with torch.no_grad():
        features = torch.cat([tower(tiny.PREPROCESS(f))[:, 0] for f in clips.frames])[known.flatten()]
    said = (features @ torch.stack([vectors[c] for c in COLORS]).T).argmax(1)
    assert (said == clips.labels[..., 0][known]).float().mean() > 0.6


def test_the_same_seed_prepares_the_same_tower(dataset, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        tiny.prepare_tower(dataset, tmp_path / name, steps=2, seed=seed, clips=3)
    a, b, c = (load_file(tmp_path / name / "model.safetensors") for name in "abc")
    assert all(torch.equal(a[key], b[key]) for key in a) and not torch.equal(a["project.weight"], c["project.weight"])


def test_the_command_makes_tower_and_tokenizer(dataset, tmp_path, capsys):
    paths = ["--data", str(dataset), "--output", str(tmp_path / "tower"), "--tokenizer", str(tmp_path / "tokenizer")]
    assert tiny.main([*paths, "--steps", "1"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 1
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    for record in tiny.read_records(dataset, "train"):
        for turn in record["conversations"]:
            text = turn["value"].replace("<video>", "").replace("<span>", "")
            assert decode(tokenizer, text) == text


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (None, "no .*train.jsonl; make the data"),
        ("", "is empty"),
        ('{"video": "a.mp4"}', "train.jsonl:1: no key 'events'"),
    ],
)
def test_data_that_cannot_prepare_a_tower_is_refused_with_a_remedy(tmp_path, capsys, line, message):
    if line is not None:
        (tmp_path / "train.jsonl").write_text(line)
    with pytest.raises(ValueError, match=message):
        tiny.prepare_tower(tmp_path, tmp_path / "tower")
    assert (
        tiny.main(["--data", str(tmp_path), "--output", str(tmp_path / "t"), "--tokenizer", str(tmp_path / "k")]) == 2
    )
    assert "python -m quickstart.clips" in capsys.readouterr().err


def test_no_steps_are_refused(dataset, tmp_path):
    with pytest.raises(ValueError, match="steps must be >= 1, not 0"):
        tiny.prepare_tower(dataset, tmp_path, steps=0)
