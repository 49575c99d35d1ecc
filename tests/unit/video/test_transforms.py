"""Frames reach the vision tower with the numbers that its weights were trained on."""

import json
from random import Random

import numpy as np
import PIL
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file

from videollm.video.preprocess import Preprocess, tile, tile_grid

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)


def frames(count=3, height=30, width=50, seed=0) -> torch.Tensor:
    return torch.from_numpy(np.random.RandomState(seed).randint(0, 256, (count, height, width, 3), np.uint8))


def staged(preprocess: Preprocess, pixels: torch.Tensor, rng=None) -> torch.Tensor:
    """Both stages as the reader runs them: one frame at a time, then all together."""
    resize = preprocess.while_decoding(rng)
    return preprocess(torch.from_numpy(np.stack([resize(frame) for frame in pixels.numpy()])))


@pytest.mark.golden
def test_d2vlm_frames_match_published_pixels(golden_dir):
    arrays = load_file(golden_dir / "d2vlm/preprocess.safetensors")
    for case in json.loads((golden_dir / "d2vlm/preprocess.json").read_text()):
        preprocess = Preprocess(kind="clip", size=int(case["transform"].split("_")[-1]))
        expected = arrays[f"out.{case['index']}"]
        torch.testing.assert_close(staged(preprocess, arrays[f"in.{case['index']}"]), expected, rtol=0, atol=1e-6)


@pytest.mark.golden
def test_distime_frames_match_published_pixels(golden_dir):
    arrays = np.load(golden_dir / "distime/unit/preprocess.npz")
    # The published pixels were made with Pillow 13; until 12.3 one of the seven pictures differs by one grey level.
    levels = 0 if int(PIL.__version__.split(".")[0]) >= 13 else 1
    clip_std = (0.2686295, 0.2613025, 0.2757711)  # as published there: a digit is missing in the last
    variants = {
        "imagenet": Preprocess(),
        "clip": Preprocess(kind="clip", std=clip_std),
        "siglip": Preprocess(kind="plain"),
    }
    for case in json.loads((golden_dir / "distime/unit/preprocess.json").read_text()):
        pixels = torch.from_numpy(arrays[f"{case['index']}_image"])[None]
        for name, stats in variants.items():
            preprocess = Preprocess(kind="internvl", size=case["size"], mean=stats.mean, std=stats.std)
            resized = preprocess.while_decoding()(pixels[0].numpy())
            published = arrays[f"{case['index']}_resized_uint8"].astype(int)
            np.testing.assert_allclose(resized.astype(int), published, rtol=0, atol=levels)
            expected = torch.from_numpy(arrays[f"{case['index']}_{name}"])[None]
            near = 4e-6 + levels / 255 / 0.22  # every std here is larger
            torch.testing.assert_close(staged(preprocess, pixels), expected, rtol=0, atol=near)


@pytest.mark.golden
def test_distime_tiling_matches_published_grids(golden_dir):
    golden = json.loads((golden_dir / "distime/unit/tiling.json").read_text())
    for case in golden["cases"]:
        columns, rows = tile_grid(case["width"], case["height"], case["max_num"], case["image_size"])
        assert (columns, rows) == (case["cols"], case["rows"]), case


@pytest.mark.golden
def test_distime_candidate_order_inside_an_area_never_decides(golden_dir):
    """The published order comes from iterating a set; ours is sorted, and chooses the same for every shape."""
    orders = json.loads((golden_dir / "distime/unit/tiling.json").read_text())["candidate_order"]
    rng = Random(0)
    shapes = [(rng.randint(1, 60), rng.randint(1, 60)) for _ in range(150)] + [(120, 80), (13, 6), (5, 3), (7, 4)]
    for max_tiles, order in orders.items():
        for width, height in shapes:
            best, gap = None, float("inf")
            for c, r in order:
                distance = abs(width / height - c / r)
                if distance < gap or (distance == gap and width * height > 0.5 * 8 * 8 * c * r):
                    best, gap = (c, r), distance
            assert tile_grid(width, height, int(max_tiles), 8) == best


@pytest.mark.golden
def test_distime_tiles_match_published_pixels(golden_dir):
    paths = sorted((golden_dir / "distime/unit").glob("tiles_max*.npz"))
    if not paths:
        pytest.skip(f"no tiles_maxN.npz is in {golden_dir / 'distime/unit'}")
    for path in paths:
        arrays, max_tiles = np.load(path), int(path.stem.removeprefix("tiles_max"))
        size = arrays["tiles"].shape[1]
        tiles = tile(arrays["image"], max_tiles, size)
        np.testing.assert_array_equal(tiles.numpy(), arrays["tiles"])
        pixels = Preprocess(size=size)(tiles)
        torch.testing.assert_close(pixels, torch.from_numpy(arrays["pixel_values"]), rtol=0, atol=4e-6)


@pytest.mark.parametrize("kind", ["internvl", "clip", "plain"])
def test_one_stage_and_two_stages_give_the_same_numbers(kind):
    preprocess = Preprocess(kind=kind, size=16)
    pixels = frames()
    torch.testing.assert_close(preprocess(pixels), staged(preprocess, pixels), rtol=0, atol=0)


@given(st.sampled_from(["internvl", "clip", "plain"]), st.integers(1, 70), st.integers(1, 70), st.integers(1, 24))
def test_every_picture_becomes_a_square(kind, height, width, size):
    preprocess = Preprocess(kind=kind, size=size)
    result = staged(preprocess, frames(2, height, width))
    assert result.shape == (2, 3, size, size)
    assert result.dtype == torch.float32
    assert result.isfinite().all()


def test_square_frames_are_only_normalised():
    pixels = frames(2, 8, 8)
    result = Preprocess(kind="plain", size=8, mean=MEAN, std=STD)(pixels)
    expected = (pixels.numpy() / 255 - np.array(MEAN)) / np.array(STD)
    np.testing.assert_allclose(result.permute(0, 2, 3, 1).numpy(), expected, atol=1e-5)


def test_frame_difference_is_zero_first_and_the_change_after():
    preprocess = Preprocess(kind="plain", size=8, frame_difference=True)
    result = preprocess(frames(4, 8, 8))
    assert result.shape == (4, preprocess.channels, 8, 8)
    assert (result[0, 3:] == 0).all()
    torch.testing.assert_close(result[1:, 3:], result[1:, :3] - result[:-1, :3])


def test_random_crop_is_one_for_all_frames_and_off_in_evaluation():
    preprocess = Preprocess(kind="clip", size=16, random_crop=True)
    same = frames(1).expand(3, -1, -1, -1)
    crops = [staged(preprocess, same, Random(seed)) for seed in range(4)]
    for crop in crops:
        torch.testing.assert_close(crop[0], crop[2], rtol=0, atol=0)
    assert len({float(crop.sum()) for crop in crops}) == 4
    torch.testing.assert_close(crops[1], staged(preprocess, same, Random(1)), rtol=0, atol=0)
    centre = Preprocess(kind="clip", size=16)
    torch.testing.assert_close(staged(preprocess, same), staged(centre, same), rtol=0, atol=0)


def test_random_crop_keeps_four_fifths_of_a_square():
    """A picture of its own coordinates shows where the crop came from."""
    size = 100
    rows, columns = np.mgrid[0:size, 0:size].astype(np.uint8)
    picture = np.stack([rows, columns, rows], -1)
    for seed in range(20):
        crop = Preprocess(kind="clip", size=size, random_crop=True).while_decoding(Random(seed))(picture) * 255
        height, width = (crop[c].max() - crop[c].min() + 1 for c in (0, 1))
        assert 0.78 <= height * width / size**2 <= 1.001


@pytest.mark.parametrize(
    "field, value, extra",
    [
        ("kind", "siglip", {}),
        ("size", 0, {}),
        ("size", 22.5, {}),
        ("mean", (0.5,), {}),
        ("std", (0.5, 0.0, 0.5), {}),
        ("random_crop", True, {"kind": "internvl"}),
    ],
)
def test_bad_fields_are_named(field, value, extra):
    with pytest.raises(ValueError, match=f"Preprocess.{field}"):
        Preprocess(**{field: value, **extra})


@pytest.mark.parametrize(
    "shape, dtype", [((8, 8, 3), torch.uint8), ((2, 3, 8, 8), torch.uint8), ((2, 9, 8, 3), torch.float32)]
)
def test_wrong_shapes_are_refused(shape, dtype):
    with pytest.raises(ValueError, match="frames must be"):
        Preprocess(kind="plain", size=8)(torch.zeros(shape, dtype=dtype))


@given(st.integers(1, 2000), st.integers(1, 2000), st.integers(1, 40))
def test_grid_never_exceeds_its_limit(width, height, max_tiles):
    columns, rows = tile_grid(width, height, max_tiles, 448)
    assert 1 <= columns * rows <= max_tiles


def test_tiles_put_together_are_the_resized_picture():
    image = Image.fromarray(frames(1, 40, 60)[0].numpy())
    tiles = tile(image, 6, 16, thumbnail=False)
    columns, rows = tile_grid(60, 40, 6, 16)
    whole = torch.cat([torch.cat(list(row), 1) for row in tiles.view(rows, columns, 16, 16, 3)], 0)
    np.testing.assert_array_equal(whole.numpy(), np.asarray(image.resize((columns * 16, rows * 16))))
    assert len(tile(image, 6, 16)) == columns * rows + 1
    assert len(tile(image, 1, 16)) == 1


def test_bad_grid_arguments_are_refused():
    with pytest.raises(ValueError, match="max_tiles"):
        tile_grid(10, 10, 0, 448)
