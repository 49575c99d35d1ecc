"""Lists of data sets (meta json): which records, how often, from where; and what is said about a bad one."""

import json
import random
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from tests.models import clip_lines, clips, make_bundle, turns, write_lines
from videollm.batches.dataset import VideoDataset
from videollm.data import AnnotationError
from videollm.data.mixture import load_training
from videollm.video.preprocess import JPEG_QUALITY, Preprocess, through_jpeg
from videollm.video.sampling import Sampler


@pytest.fixture
def folder(tmp_path):
    """Two roots, one annotation file of four questions, one of an image and a text."""
    for name in ("film", "stills"):
        (tmp_path / name).mkdir()
    for clip in clips().glob("clip*.mp4"):
        shutil.copy(clip, tmp_path / "film")
    coarse = np.random.default_rng(0).integers(0, 256, (4, 8, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((80, 40), Image.Resampling.BICUBIC).save(tmp_path / "stills/x.png")
    write_lines(tmp_path / "a.jsonl", clip_lines())
    mixed = [{"image": "x.png", "conversations": turns("what?", "noise")}, {"conversations": turns("hi", "hello")}]
    write_lines(tmp_path / "b.jsonl", mixed)
    return tmp_path


def write_list(folder, **entries):
    base = {"film": {"root": "film", "annotation": "a.jsonl"}, "stills": {"root": "stills", "annotation": "b.jsonl"}}
    found = {name: base.get(name, {}) | entry if isinstance(entry, dict) else entry for name, entry in entries.items()}
    (folder / "meta.json").write_text(json.dumps(found), encoding="utf-8")
    return [str(folder / "meta.json")]


def test_records_of_all_sets_come_in_order_under_one_root(folder):
    paths = write_list(folder, film={"data_augment": False, "repeat_time": 1, "length": 4}, stills={})
    records, root = load_training(paths, folder)
    assert root == folder and len(records) == 6
    assert records[0].video == "film/clip0.mp4" and records[0].id == "film/q0"
    assert records[4].images == ("stills/x.png",) and records[5].video is None and not records[5].images
    assert all((root / name).is_file() for r in records for name in (*r.images, *filter(None, [r.video])))


@pytest.mark.parametrize("repeat, count", [(1, 4), (3, 12), (2.0, 8), (0.5, 2), (0.3, 1)])
def test_a_set_is_repeated_or_cut_to_its_first_share(folder, repeat, count):
    records, _ = load_training(write_list(folder, film={"repeat_time": repeat}), folder)
    assert [r.id for r in records] == [f"film/q{i % 4}" for i in range(count)]


def test_roots_elsewhere_and_plain_files_share_the_folder_above(folder):
    """The released list has absolute roots; nothing else has to be said."""
    paths = [*write_list(folder, film={"root": str(folder / "film")}), str(folder / "b.jsonl")]
    records, root = load_training(paths, folder / "stills")
    assert root == folder
    assert records[0].images == ("stills/x.png",) and records[2].video == "film/clip0.mp4"


def test_two_sets_of_one_file_keep_their_records_apart(folder):
    records, _ = load_training(write_list(folder, film={}, again={"root": "film", "annotation": "a.jsonl"}), folder)
    assert len({r.id for r in records}) == 8


BAD = {
    "annotation is missing": ({"annotation": "none.jsonl"}, "no file 'none.jsonl' (annotation) - correct the path"),
    "no annotation": ({"annotation": None}, "no path (annotation)"),
    "root is missing": ({"root": "nowhere"}, "no folder 'nowhere' (root)"),
    "misspelt key": ({"repeat_times": 2}, "unknown key (repeat_times) - did you mean repeat_time?"),
    "half a pass more": ({"repeat_time": 1.5}, "1.5 is neither (repeat_time) - write a whole number"),
    "no pass": ({"repeat_time": 0}, "0 is neither (repeat_time)"),
    "nothing left": ({"repeat_time": 0.1}, "0.1 keeps none of 4 records (repeat_time)"),
    "no flag": ({"data_augment": "no"}, "a string instead of true or false (data_augment)"),
    "no tile": ({"max_dynamic_patch": 0}, "0 is no number of tiles (max_dynamic_patch)"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_entry_is_named_with_its_remedy(folder, what):
    changes, says = BAD[what]
    with pytest.raises(AnnotationError) as caught:
        load_training(write_list(folder, film=changes), folder)
    (problem,) = caught.value.problems
    assert "meta.json: data set 'film': " in problem and says in problem


def test_everything_wrong_with_all_files_is_said_at_once(folder):
    write_lines(folder / "a.jsonl", [*clip_lines(2), {**clip_lines(1)[0], "id": "odd", "tgt": [1, 2, 3, 4]}])
    paths = write_list(folder, film={}, stills={"root": "nowhere"}, third=[])
    with pytest.raises(AnnotationError) as caught:
        load_training([*paths, str(folder / "none.jsonl")], folder)
    text = "\n".join(caught.value.problems)
    assert len(caught.value.problems) == 4
    assert "a.jsonl:3" in text and "1 in the answers" in text and "none.jsonl" in text and "data set 'third'" in text


# ---- data_augment, max_dynamic_patch ---------------------------------------------------------------------------------


def item_of(folder, epoch=0, **changes):
    bundle = make_bundle("internvl", "text")
    records, root = load_training(write_list(folder, film=changes, stills=changes), folder)
    reader = bundle.reader(root, Sampler(rule="segments", num_frames=3), max_tiles=2)
    dataset = VideoDataset(records, reader, bundle.encoder(), max_length=1024)
    dataset.set_epoch(epoch)
    return dataset[0], dataset[4]


def test_augmented_sets_go_through_jpeg_drawn_by_epoch(folder):
    plain, augmented = item_of(folder), item_of(folder, data_augment=True)
    later, again = item_of(folder, epoch=1, data_augment=True), item_of(folder, data_augment=True)
    for k in range(2):
        assert not torch.equal(plain[k].pixels, augmented[k].pixels)
        off = (plain[k].pixels.float() - augmented[k].pixels).abs().mean()
        assert off < 12  # grey levels: compressed, not another picture
        assert torch.equal(augmented[k].pixels, again[k].pixels)
    assert not torch.equal(augmented[1].pixels, later[1].pixels)


def test_jpeg_qualities_are_those_of_the_published_range():
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    drawn = []

    class Draw(random.Random):
        def randint(self, low, high):
            drawn.append((low, high))
            return super().randint(low, high)

    Preprocess(size=28).while_decoding(Draw(0), jpeg=True)(noise)
    assert drawn == [(75, 100)] == [JPEG_QUALITY]
    assert through_jpeg(noise, random.Random(0)).shape == noise.shape


def test_a_set_has_its_own_limit_of_tiles(folder):
    assert item_of(folder)[1].tiles == [3]  # 80 x 40: two tiles and the thumbnail
    assert item_of(folder, max_dynamic_patch=1)[1].tiles == [1]
