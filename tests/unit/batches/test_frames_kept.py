"""Only the frames that the context holds are decoded, and they are the ones that thinning all of them would leave."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.models import clip_lines, clips, make_bundle, record, turns
from videollm.batches.dataset import VideoDataset
from videollm.batches.reader import VisualReader
from videollm.inference.plan import VideoGroups
from videollm.model.generate import GenerateOptions
from videollm.video.preprocess import Preprocess
from videollm.video.sampling import Sampler, kept_places, thinned_places
from videollm.video.store import FrameStore, build_store
from videollm.video.view import FrameFolder, View

ALL = Sampler(rule="fps", fps=4.0)
NAME = "clip0.mp4"
QUESTION = "<video>\nwhen does the long thing happen that is asked for here?"


@pytest.fixture
def decoded(monkeypatch):
    """How many frames each decoding gave."""
    counts, decode = [], VisualReader.decode

    def counted(self, *args):
        frames = decode(self, *args)
        counts.append(len(frames.pixels))
        return frames

    monkeypatch.setattr(VisualReader, "decode", counted)
    return counts


def dataset_of(bundle, lines, fewer=0, **options):
    """A data set of real clips whose longest prompt is ``fewer`` frames too long for it."""
    records = [record(line) for line in lines]
    whole = VideoDataset(records, bundle.reader(clips(), ALL), bundle.encoder(), max_length=100_000)
    longest = max(whole[i].longest for i in range(len(whole)))
    room = longest - fewer * bundle.encoder().tokens_per_frame
    return whole, VideoDataset(records, bundle.reader(clips(), ALL), bundle.encoder(), max_length=room, **options)


@given(st.integers(1, 3000), st.lists(st.integers(1, 3000), min_size=1, max_size=4))
def test_everybody_finds_the_frames_of_thinning_all(count, limits):
    places = kept_places(count, limits)
    assert len(places) <= min(count, sum(limits)) and (np.diff(places) > 0).all()
    for most in limits:
        wanted = np.linspace(0, count - 1, min(most, count)).round()
        assert set(wanted) <= set(places.tolist()) and np.array_equal(thinned_places(count, most), wanted)
    assert np.array_equal(kept_places(count, ()), np.arange(count))


@pytest.mark.parametrize("head", ["text", "distime", "d2vlm"])
@pytest.mark.parametrize("fewer", [0, 3, 9])
def test_a_long_video_is_decoded_only_where_it_is_looked_at(decoded, head, fewer):
    line = {"video": NAME, "duration": 4.0, "tgt": [1, 2], "conversations": turns(QUESTION, "in <span>")}
    whole, short = dataset_of(make_bundle("internvl", head), [line], fewer)
    every, item = whole[0], short[0]
    count = len(every.times_s)
    wanted = np.linspace(0, count - 1, count - fewer).round().astype(int)
    assert decoded[-1] == count - fewer and item.thinned == fewer
    assert np.array_equal(item.times_s, every.times_s[wanted]) and torch.equal(item.pixels, every.pixels[wanted])
    assert item.kept is None and item.longest <= short.max_length


def test_questions_of_other_lengths_share_one_decoding_and_see_what_they_see_alone(decoded):
    lines = [{"id": f"q{k}", "video": NAME, "conversations": turns(QUESTION + " and why?" * k)} for k in range(3)]
    bundle = make_bundle("internvl", "distime")
    _, short = dataset_of(bundle, lines, 9, answers=False)
    alone = [VideoDataset([r], short.reader, short.encoder, max_length=short.max_length)[0] for r in short.records]
    rooms = {len(item.times_s) for item in alone}
    assert len(rooms) > 1
    decoded.clear()
    together = short.__getitems__([0, 1, 2])
    assert len(decoded) == 1 and max(rooms) < decoded[0] <= sum(rooms)
    for one, item in zip(alone, together, strict=True):
        assert np.array_equal(one.times_s, item.times_s) and torch.equal(one.pixels, item.pixels)
        assert one.thinned == item.thinned > 0 and one.prompts[0].ids == item.prompts[0].ids


def test_inference_decodes_a_group_once_and_holds_only_what_is_looked_at(decoded):
    bundle = make_bundle("internvl", "distime")
    lines = [{"id": f"q{k}", "video": NAME, "conversations": turns(QUESTION + " and why?" * k)} for k in range(2)]
    whole, _ = dataset_of(bundle, lines)
    every = whole[0]
    bundle.config.context_length = every.longest - 5 * bundle.encoder().tokens_per_frame + 8
    records = whole.records
    alike = [(record, GenerateOptions(max_new_tokens=8)) for record in records]
    groups = VideoGroups(bundle, records, bundle.reader(clips(), ALL), [alike])
    decoded.clear()
    asked = groups[0]
    assert decoded == [len(asked.pixels)] and len(asked.pixels) < len(every.pixels) + 1
    for item in asked.items:
        kept = np.arange(len(asked.pixels)) if item.kept is None else item.kept
        wanted = np.linspace(0, len(every.times_s) - 1, len(every.times_s) - item.thinned).round().astype(int)
        assert item.thinned > 0 and item.pixels is None
        assert torch.equal(asked.pixels[kept], every.pixels[wanted])


def test_a_text_that_needs_the_duration_is_measured_without_it(decoded):
    """The annotation has none, and the file is not open yet."""
    bundle = make_bundle("internvl", "text")
    bundle.model.head.options.unit = "percent"
    line = {"video": NAME, "tgt": [1, 2], "conversations": turns(QUESTION, "in <span>")}
    _, short = dataset_of(bundle, [line], 4)
    item = short[0]
    assert item.longest <= short.max_length and 4 <= item.thinned <= 5


def test_a_store_and_a_folder_of_pictures_read_only_what_is_looked_at(tmp_path):
    preprocess = Preprocess(kind="plain", size=16)
    build_store(tmp_path / "store", [NAME], clips(), ALL, preprocess, progress=False)
    stored = FrameStore(tmp_path / "store", ALL, preprocess)
    whole, some = stored(NAME), stored(NAME, (3,))
    wanted = thinned_places(len(whole.times_s), 3)
    assert np.array_equal(some.places, wanted) and some.chosen == len(whole.times_s)
    assert torch.equal(some.pixels, whole.pixels[wanted]) and np.array_equal(some.times_s, whole.times_s[wanted])
    (tmp_path / "pictures").mkdir()
    for number in range(1, 10):
        Image.new("RGB", (4, 4), (number,) * 3).save(Path(tmp_path) / f"pictures/{number}.png")
    reader = VisualReader(tmp_path, Sampler(rule="fps", fps=1.0), preprocess)
    seen = reader.video("pictures", None, View(frames=FrameFolder(1.0)), (3,))
    assert seen.pixels[:, 0, 0, 0].tolist() == [1, 5, 9] and seen.times_s.tolist() == [1.0, 5.0, 9.0]


@pytest.mark.parametrize("kind", ["internvl", "plain"])
@pytest.mark.parametrize("difference", [False, True])
def test_whole_grey_levels_stay_bytes_until_the_device_and_give_the_same_numbers(kind, difference):
    preprocess = Preprocess(kind=kind, size=8, frame_difference=difference)
    pixels = torch.from_numpy(np.random.RandomState(0).randint(0, 256, (7, 8, 8, 3), np.uint8))
    sent = preprocess.before_device(pixels)
    assert sent.dtype == torch.uint8
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (preprocess.mean, preprocess.std))
    old = (pixels.permute(0, 3, 1, 2).float() / 255 - mean) / std
    if difference:
        old = torch.cat([old, torch.cat([torch.zeros_like(old[:1]), old.diff(dim=0)])], 1)
    kept = [0, 3, 6]  # a frame is compared with the one before it, also where that was left out
    assert torch.equal(preprocess.on_device(sent[kept]), old[kept])


def test_floats_are_normalised_where_they_are():
    preprocess = Preprocess(kind="clip", size=8)
    pixels = torch.rand(5, 3, 8, 8)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (preprocess.mean, preprocess.std))
    wanted = (pixels - mean) / std
    found = preprocess.on_device(preprocess.before_device(pixels))
    assert found.data_ptr() == pixels.data_ptr() and torch.equal(found, wanted)


def test_the_model_takes_bytes_as_it_takes_floats():
    bundle = make_bundle("internvl", "text")
    (line,) = clip_lines(1)
    item = VideoDataset([record(line)], bundle.reader(clips(), ALL), bundle.encoder(), max_length=4096)[0]
    assert item.pixels.dtype == torch.uint8
    batch = bundle.collator()([item])
    with torch.no_grad():
        tokens = bundle.model.frame_tokens(batch)
        batch.pixel_values = bundle.model.preprocess.on_device(batch.pixel_values)
        assert torch.equal(tokens, bundle.model.frame_tokens(batch))
