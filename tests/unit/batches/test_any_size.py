"""Frames of any size on their way into a batch: groups, thinning, sharing, and every row as if it were alone."""

import numpy as np
import pytest
import torch

from tests.models import LINES, SHAPES, gradients, make_bundle, make_dataset, noise, turns
from videollm.batches.lengths import item_sizes
from videollm.batches.reader import Seen
from videollm.common.config import ConfigError
from videollm.model.towers import encode_video
from videollm.video.patching import Patching, Run, even_starts
from videollm.video.sampling import Sampler

NAMES = list(LINES)
AGAIN = {"id": "again", "video": "a.mp4", "tgt": [1, 3], "conversations": turns("<video>\nand when?", "<span>")}


@pytest.fixture(scope="module", params=["qwen3_vl", "qwen2_5_vl"])
def bundle(request):
    return make_bundle(request.param, "distime")


def items_of(bundle, names, **options):
    dataset = make_dataset(bundle, names, **options)
    return dataset.__getitems__(range(len(dataset)))


def test_a_group_is_what_behind_is_called_a_frame(bundle):
    """5 frames, one a second, are 3 groups of 2; the last frame stands twice."""
    (item,) = items_of(bundle, ["turns"])
    assert item.times_s.tolist() == [0.5, 2.5, 4.0] and item.frames == 5
    height, width = SHAPES["c.mp4"]
    assert item.grids == [(height // 4, width // 4)] * 3 and len(item.pixels) == 3 * height * width // 16
    frames = noise(5, height, width)
    pixel = frames[4, 4:8, 8:12].permute(2, 0, 1)  # the third column of the second row of patches, of the last frame
    second_cell, third_patch = 1, 2
    last = item.pixels.view(3, -1, 4, 3, 2, 4, 4)[2, second_cell, third_patch]
    assert torch.equal(last[:, 0], pixel) and torch.equal(last[:, 1], pixel)
    assert len(item.prompts[0].visual) == 3 * height * width // 64


def test_a_frame_that_does_not_fit_alone_is_named_with_the_setting_that_makes_it_smaller(bundle):
    """No shorter text would help: a group of frames has more tokens than the context."""
    for answers, says in ((True, "data.preprocess"), (False, "under preprocess, or max_tiles, in its config.json")):
        dataset = make_dataset(bundle, ["turns"], max_length=200, answers=answers)
        dataset.reader.video = lambda *_, **__: Seen(noise(2, 128, 128), None, [0.0, 1.0], 5.0)  # 16 x 16 tokens
        (item,) = dataset.__getitems__([0])
        assert "256 of them of what is seen" in item.bad and says in item.bad and "shorten" not in item.bad


def test_every_row_of_a_mixed_batch_is_as_alone(bundle):
    """Videos of three sizes, an image and text: states at every token, and what a head sees of every frame."""
    items, model = items_of(bundle, NAMES), bundle.model
    collate = bundle.collator()
    together, found = collate(items), []
    with torch.no_grad():
        for batch in (together, *(collate([item]) for item in items)):
            reading = model.read(batch)
            found.append((reading, batch, reading.frames.embeds))
    (all_of, batch, embeds), *alone = found
    states = all_of.states.view(len(batch), -1, all_of.states.shape[-1])
    for row, (one, own, frames) in enumerate(alone):
        mine = one.states[own.segment_ids.flatten() >= 0]
        torch.testing.assert_close(states[row][batch.segment_ids[row] >= 0], mine, atol=2e-5, rtol=0)
        count = int(own.frame_mask.sum())
        assert count == int(batch.frame_mask[row].sum())
        torch.testing.assert_close(embeds[row, :count], frames[0, :count], atol=2e-5, rtol=0)


def test_what_a_head_sees_of_a_frame_is_the_mean_of_its_tokens(bundle):
    items = items_of(bundle, ["two_spans", "image", "asked"])
    batch, model = bundle.collator()(items), bundle.model
    with torch.no_grad():
        tokens = model.frame_tokens(batch)
        frames = model.frame_batch(batch, tokens).embeds
    sizes = [rows * columns // 4 for item in items for rows, columns in item.grids]
    parts = tokens[:, 0].split(sizes)
    assert len(set(sizes)) > 1 and len(parts) == 2 + 1 + 3
    torch.testing.assert_close(frames[0, 1], parts[1].mean(0))
    torch.testing.assert_close(frames[2, 2], parts[5].mean(0))
    assert not frames[1].any()  # an image has no time


def test_a_prompt_that_is_too_long_loses_frames_before_they_are_grouped(bundle):
    (whole,) = items_of(bundle, ["asked"])
    (item,) = items_of(bundle, ["asked"], max_length=whole.longest - 1)
    assert item.longest < whole.longest and item.thinned == 6 - item.frames > 0
    assert len(item.times_s) == -(-item.frames // 2) == len(item.grids)
    assert len(item.pixels) == sum(rows * columns for rows, columns in item.grids)
    (none,) = items_of(bundle, ["asked"], max_length=8)
    assert none.bad and "max_length" in none.bad


def test_a_video_that_fits_loses_no_frame(bundle):
    """What the text leaves room for are groups; a frame more in a group costs nothing."""
    (whole,) = items_of(bundle, ["asked"])
    (item,) = items_of(bundle, ["asked"], max_length=whole.longest)
    assert not item.thinned and item.frames == 6


def test_a_video_of_several_questions_goes_through_the_tower_once(bundle, monkeypatch):
    items = items_of(bundle, ["two_spans", AGAIN, "asked"])
    first = items[0].pixels
    other = items_of(bundle, [AGAIN])[0].pixels
    assert torch.equal(items[1].pixels, other)
    items[1].pixels = first  # as the reader's memory makes it where frames are fixed
    shared, apart = bundle.collator()(items), bundle.collator()(items_of(bundle, ["two_spans", AGAIN, "asked"]))
    assert len(shared.pixel_values) == len(apart.pixel_values) - len(first)
    with torch.no_grad():
        torch.testing.assert_close(bundle.model.frame_tokens(shared), bundle.model.frame_tokens(apart))


def test_stored_features_are_as_good_as_pixels(bundle):
    """Beside pixels, for several questions, and thinned: by whole groups then."""
    names = ["two_spans", "image", "asked", "turns"]
    dataset = make_dataset(bundle, names)
    collate, model = bundle.collator(), bundle.model
    with torch.no_grad():
        wanted = model.frame_tokens(collate([dataset[i] for i in range(4)]))
        read = dataset.reader.video

        def stored(name, *args):
            seen = read(name, *args)
            if name == "b.mp4":
                return seen
            features = encode_video(model.vision_tower, seen.pixels, model.preprocess, torch.device("cpu"))
            return Seen(None, features, seen.times_s, seen.duration_s)

        dataset.reader.video = stored
        items = [dataset[i] for i in range(4)]
        assert items[0].pixels is None and items[2].pixels is not None
        found = model.frame_tokens(collate(items))
        torch.testing.assert_close(found, wanted)
        dataset.max_length = items[3].longest - 1
        dataset.kept.clear()
        dataset.rooms.clear()
        item = dataset[3]
    assert item.kept.tolist() == [0, 1, 4] and item.times_s.tolist() == [0.5, 4.0]
    assert len(item.features) == len(item.prompts[0].visual)


def test_a_trained_tower_has_gradients_everywhere(bundle):
    model = bundle.model
    model.frozen_tower = False
    model.vision_tower.requires_grad_(True)
    try:
        for names in (NAMES, ["text"]):
            model(bundle.collator()(items_of(bundle, names))).loss.backward()
            grads = gradients(model)
            assert all(grad is not None for grad in grads.values())
            moved = [
                name for name, grad in grads.items() if name.startswith(("vision_tower", "connector")) and grad.any()
            ]
            assert bool(moved) == (names is NAMES)
    finally:
        model.frozen_tower = True
        model.vision_tower.requires_grad_(False)


# ---- positions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rule, even, starts, expected",
    [
        ("4.49", False, [0.0, 0.5, 1.5, 4.0], [0, 2, 6, 16]),  # shown at uneven times
        ("4.49", False, [7.0, 7.9999, 9.0], [0, 4, 8]),  # containers round times
        ("4.49", True, even_starts(4, 0.67), [0, 2, 5, 8]),
        ("4.52", True, even_starts(4, 0.67), [0, 0, 0, 0]),
        ("5.3", True, even_starts(4, 0.67), [0, 2, 5, 8]),
    ],
)
def test_times_become_positions_by_a_rule(rule, even, starts, expected):
    patching = Patching(4, per_second=4.0, rule=rule, even=even)
    places = patching.positions(2 + 4 * len(starts) + 1, [Run(2, (4, 4), np.asarray(starts))])
    assert places[0, 2:-1:4].tolist() == [2 + step for step in expected]
    assert places[1, 2:6].tolist() == [2, 2, 3, 3] and places[2, 2:6].tolist() == [2, 3, 2, 3]
    behind = 2 + (2 if rule == "5.3" else max(*expected, 1) + 1)  # the picture is two tokens wide and high
    assert places[:, -1].tolist() == [behind] * 3


def test_even_spacing_is_the_mean_of_the_times_shown():
    times = np.asarray([0.0, 0.4, 1.1, 1.5, 2.0])
    assert Patching(4, per_second=2.0).times(times)[1].tolist() == [0.0, 1.1, 2.0]
    assert Patching(4, per_second=2.0, even=True).times(times)[1].tolist() == [0.0, 1.0, 2.0]
    assert Patching(4).times(np.asarray([3.0]))[0].tolist() == [3.0]


def test_groups_without_any_time_are_refused(bundle):
    with pytest.raises(ValueError, match="part them by text"):
        Patching(4).positions(9, [Run(0, (4, 4), [0.0, 1.0])])
    with pytest.raises(ConfigError, match=r"model.visual_tokens.*before"):
        make_bundle("qwen3_vl", "text", visual_tokens={"token": "<|video_pad|>"}).encoder()


def test_a_frame_of_another_size_names_what_it_must_be():
    with pytest.raises(ValueError, match="multiples of 8"):
        Patching(4).group(noise(2, 12, 16))


def test_lengths_are_those_of_headers_and_without_them_at_most_what_the_budget_lets_through(bundle):
    """Of 1024 pixels a frame and a budget of 2048, no item is taken for shorter than it is."""
    lines = [LINES["two_spans"], LINES["asked"], LINES["image"], LINES["text"], AGAIN]
    dataset = make_dataset(bundle, [{"duration": 6, **line} for line in lines])
    dataset.reader.sampler, dataset.reader.max_tiles = Sampler(rule="fps", fps=1.0), 1
    dataset.reader.preprocess = bundle.model.preprocess
    told = item_sizes(dataset, "data.length_grouping").sum(1)
    dataset.reader.shape = lambda *_: None
    sizes = item_sizes(dataset, "data.length_grouping").sum(1)
    items = [dataset[i] for i in range(len(dataset))]
    assert [told[i] for i in (0, 1, 3)] == [items[i].longest for i in (0, 1, 3)] and told[0] < sizes[0]
    assert all(size >= item.longest for size, item in zip(sizes, items, strict=True))
    assert sizes[3] == items[3].longest and sizes[0] < 4 * items[0].longest
    dataset.max_length = 150
    assert item_sizes(dataset, "data.length_grouping").sum(1).max() == 150
