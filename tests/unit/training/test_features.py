"""Stored features of a frozen tower: the tower's own numbers, and never those of another video, tower or sampling."""

import shutil
import time

import pytest
import torch

from tests.models import clips, make_bundle
from videollm.batches import reader
from videollm.common.config import ConfigError
from videollm.training.features import FeatureStore
from videollm.video.decode import VideoError
from videollm.video.preprocess import Preprocess
from videollm.video.sampling import Sampler

FOUR = Sampler(rule="segments", num_frames=4)
NAMES = ["clip0.mp4", "clip1.mp4", "clip0.mp4", "broken.mp4"]


@pytest.fixture(scope="module")
def bundle():
    return make_bundle("internvl", "text")


def store_of(bundle, folder, sampler=FOUR, root=None, **changes):
    reader = bundle.reader(root or clips(), sampler)
    for name, value in changes.items():
        setattr(reader, name, value)
    return FeatureStore(folder, reader, bundle.model.vision_tower)


def test_stored_features_are_the_towers_own(bundle, tmp_path):
    store = store_of(bundle, tmp_path)
    assert store("clip0.mp4") is None
    store.fill(NAMES, bundle.model.vision_tower)
    assert (store.misses, store.hits) == (2, 0) and len(list(tmp_path.iterdir())) == 2
    seen = store.reader.video("clip0.mp4", None)
    features, stored_times, stored_duration = store("clip0.mp4")
    pixels = store.reader.preprocess.on_device(seen.pixels)
    with torch.no_grad():
        torch.testing.assert_close(features, bundle.model.vision_tower(pixels), rtol=1e-5, atol=1e-6)
    assert (stored_times == seen.times_s).all() and stored_duration == seen.duration_s


def test_a_reader_with_a_store_opens_no_video_again(bundle, tmp_path):
    store = store_of(bundle, tmp_path)
    store.fill(NAMES, bundle.model.vision_tower)
    store.reader.stored = store
    for name in ("clip1.mp4", "clip0.mp4"):
        seen = store.reader.video(name, None)
        assert seen.pixels is None and seen.features.shape[0] == 4 == len(seen.times_s)


def test_what_is_stored_is_not_computed_again(bundle, tmp_path):
    store_of(bundle, tmp_path).fill(NAMES, bundle.model.vision_tower)
    again = store_of(bundle, tmp_path)
    again.fill(NAMES, bundle.model.vision_tower)
    assert (again.misses, again.hits) == (0, 2)


def test_ranks_share_the_work(bundle, tmp_path):
    stores = [store_of(bundle, tmp_path) for _ in range(2)]
    for rank, store in enumerate(stores):
        store.fill(NAMES, bundle.model.vision_tower, rank, 2)
    assert sorted(s.misses for s in stores) == [1, 1] and sum(s.hits for s in stores) == 0


def test_workers_read_ahead_and_a_decoder_that_hangs_costs_its_video(bundle, tmp_path, monkeypatch):
    alone, read = store_of(bundle, tmp_path / "alone"), reader.read_video
    alone.fill(NAMES, bundle.model.vision_tower)

    def decode(path, *args, **options):
        return time.sleep(60) if path.name == "clip1.mp4" else read(path, *args, **options)

    monkeypatch.setattr(reader, "read_video", decode)
    store = store_of(bundle, tmp_path / "ahead", timeout_s=1.0)
    state = torch.get_rng_state()
    store.fill(NAMES, bundle.model.vision_tower, workers=1)
    assert torch.equal(torch.get_rng_state(), state)  # training draws what it would have drawn
    assert (store.misses, store.hits) == (1, 0) and store("clip1.mp4") is None
    assert torch.equal(store("clip0.mp4")[0], alone("clip0.mp4")[0])


def test_another_sampler_preprocessing_or_tower_never_finds_old_features(bundle, tmp_path):
    store_of(bundle, tmp_path).fill(NAMES, bundle.model.vision_tower)
    other = make_bundle("internvl", "text", train={"seed": 2})
    sampled = store_of(bundle, tmp_path, Sampler(rule="segments", num_frames=5))
    processed = store_of(bundle, tmp_path, preprocess=Preprocess(kind="internvl", size=28))
    for store in (sampled, processed, store_of(other, tmp_path)):
        assert store("clip0.mp4") is None
    assert store_of(bundle, tmp_path)("clip0.mp4") is not None


def test_another_video_under_the_same_name_is_computed_anew(bundle, tmp_path):
    root = tmp_path / "videos"
    root.mkdir()
    shutil.copy(clips() / "clip0.mp4", root / "v.mp4")
    store = store_of(bundle, tmp_path / "store", root=root)
    store.fill(["v.mp4"], bundle.model.vision_tower)
    shutil.copy(clips() / "clip1.mp4", root / "v.mp4")
    assert store("v.mp4") is None


def test_a_damaged_file_is_made_anew(bundle, tmp_path):
    store = store_of(bundle, tmp_path)
    store.fill(["clip0.mp4"], bundle.model.vision_tower)
    whole = store("clip0.mp4")[0].clone()  # not a view of the file
    store.path("clip0.mp4").write_bytes(b"half a file")
    assert store("clip0.mp4") is None
    store.fill(["clip0.mp4"], bundle.model.vision_tower)
    assert torch.equal(store("clip0.mp4")[0], whole)


def test_a_missing_video_is_named(bundle, tmp_path):
    with pytest.raises(VideoError, match="none.mp4"):
        store_of(bundle, tmp_path)("none.mp4")


def test_frames_drawn_at_random_are_refused(bundle, tmp_path):
    with pytest.raises(ConfigError, match=r"data\.features"):
        store_of(bundle, tmp_path, Sampler(rule="segments", pick="random"))
    with pytest.raises(ConfigError, match=r"data\.features"):
        store_of(bundle, tmp_path, preprocess=Preprocess(kind="clip", size=28, random_crop=True))
