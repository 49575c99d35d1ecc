"""Sizes, frame indices, tiles and pixels of today's backbones are those of the released processors.

What is compared, with which settings, stands in golden/backbones: preprocess.json and each family's cases.json. Sizes
and indices are exact, frames that are resized too; normalised pixels within 1e-6.
"""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from videollm.model.backbones import published_sampler
from videollm.video.budget import SizeError, smart_resize
from videollm.video.decode import VideoInfo
from videollm.video.patching import Patching
from videollm.video.preprocess import Preprocess, tile, tile_grid
from videollm.video.sampling import Sampler

QWEN, INTERN = ("qwen2_5_vl", "qwen3_vl"), ("internvl3", "internvl3_5")
CASES = "abcde"


def rows(folder, name):
    return json.loads((folder / "preprocess.json").read_text())[name]


def read(folder, family, name):
    """(the processor's settings, the case, its arrays)."""
    cases = json.loads((folder / family / "cases.json").read_text())
    if name not in cases["cases"]:
        pytest.skip(f"{family} has no case {name}")
    return cases["processor"], cases["cases"][name], load_file(folder / family / f"case_{name}.safetensors")


def qwen(family, processor):
    video, image = processor["video_size"], processor["image_size"]
    return Preprocess(
        kind=family, factor=processor["patch_size"] * processor["merge_size"], mean=processor["mean"],
        std=processor["std"], min_pixels=video["shortest_edge"], max_pixels=video["longest_edge"],
        image_min_pixels=image["shortest_edge"], image_max_pixels=image["longest_edge"],
    )  # fmt: skip


@pytest.mark.parametrize("rule", [*QWEN, "image"])
def test_backbone_sizes_are_the_released_ones(folder, rule):
    for row in rows(folder, "smart_resize"):
        said = next(row[key] for key in row if key.startswith(rule))  # of images the key tells a factor too
        frames = row["frames"] if rule == "qwen3_vl" else None
        asked = (row["height"], row["width"], said["factor"], said["min_pixels"], said["max_pixels"], frames)
        if "error" in said:
            with pytest.raises(SizeError):
                smart_resize(*asked)
        else:
            assert list(smart_resize(*asked)) == said["result"], row
            if rule in QWEN:
                limits = {key: said[key] for key in ("factor", "min_pixels", "max_pixels")}
                assert list(Preprocess(kind=rule, **limits).frame_size(*asked[:2], row["frames"])) == said["result"]


def test_backbone_group_times_of_qwen3_are_the_released_ones(folder):
    for row in rows(folder, "sampling"):
        family = row["qwen3_vl"]
        if "group_times_s" in family:
            info = VideoInfo("golden.mp4", 1.0, row["video_fps"], row["total_frames"], 64, 48, np.zeros(0))
            published = Sampler(**published_sampler({"type": "qwen3_vl"}))  # of ``compatibility: published``
            even = published.times_s(info, np.array(family["result"]))
            times, _ = Patching(16).times(even)
            np.testing.assert_allclose(times, family["group_times_s"], rtol=0, atol=1e-9)
            assert [f"<{time:.1f} seconds>" for time in times] == family["time_strings"], row


def chosen(row, **settings):
    total, fps = row["total_frames"], row["video_fps"]
    info = VideoInfo("golden.mp4", total / fps, fps, total, 64, 48, np.arange(total) / fps)
    return Sampler(**settings).indices(info).tolist()


@pytest.mark.parametrize("family", QWEN)
def test_backbone_frames_are_the_released_ones_inside_the_video(folder, family):
    for row in rows(folder, "sampling"):
        limits = {name: row[name] for name in ("fps", "min_frames", "max_frames")}
        released = row[family].get("result", [0])  # released Qwen2.5-VL divides by zero where there is one frame
        found = chosen(row, rule=family, **limits)
        assert found == [i for i in released if i < row["total_frames"]], row
        count = row["qwen_vl_utils_0_0_14_smart_nframes"]
        if family == "qwen2_5_vl" and isinstance(count, int):
            assert len(found) == count


def test_backbone_frames_of_internvl_are_the_released_ones(folder):
    for row in rows(folder, "sampling"):
        found = chosen(row, rule="internvl", num_frames=row["internvl"]["num_frames"])
        # Released: an error where the video has fewer frames than are asked for; here each of them once.
        assert found == row["internvl"].get("result", list(range(row["total_frames"]))), row


def test_backbone_tiles_of_internvl_are_the_released_ones(folder):
    for row in rows(folder, "internvl_tiles"):
        assert row["min_patches"] == 1
        grid = tile_grid(row["width"], row["height"], row["max_patches"], row["size"])
        assert grid == (row["columns"], row["rows"]), row
        small = tile(np.zeros((row["height"], row["width"], 3), np.uint8), row["max_patches"], row["size"])
        assert len(small) == row["patches_with_thumbnail"]


def patches(frames, preprocess, processor):
    """Frames after the first stage, bytes [F, H, W, 3] -> rows of patches as the tower takes them."""
    frames = preprocess.before_device(torch.from_numpy(np.array(frames)))
    patching = Patching(*(processor[f"{name}_size"] for name in ("patch", "merge", "temporal_patch")))
    return patching.normalised(patching.group(frames).flatten(0, 1), preprocess.mean, preprocess.std)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("family", QWEN)
def test_backbone_frames_and_images_of_qwen_have_the_released_pixels(folder, family, name):
    processor, case, arrays = read(folder, family, name)
    preprocess = qwen(family, processor)
    made = {"pixel_values_videos": [], "pixel_values": []}
    for k, video in enumerate(case["videos"]):
        frames, resize = arrays[f"frames_{k}"].numpy(), preprocess.while_decoding()
        small = np.stack([resize(frame, len(frames)) for frame in frames])
        assert list(small.shape[1:3]) == [video["resized_height"], video["resized_width"]]
        np.testing.assert_array_equal(small, arrays.get(f"resized_frames_{k}", arrays[f"frames_{k}"]))
        made["pixel_values_videos"].append(patches(small, preprocess, processor))
    for k, image in enumerate(case["images"]):
        small = preprocess.while_decoding(image=True)(arrays[f"image_{k}"].numpy())
        assert list(small.shape[:2]) == [image["resized_height"], image["resized_width"]]
        made["pixel_values"].append(patches(small[None], preprocess, processor))
    for key, values in made.items():
        if values:
            torch.testing.assert_close(torch.cat(values), arrays[key], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("family", INTERN)
def test_backbone_tiles_and_frames_of_internvl_have_the_released_pixels(folder, family, name):
    """Videos to one grey level: transformers resizes them by torch, InternVL's own code, like this one, by Pillow."""
    processor, case, arrays = read(folder, family, name)
    size, most = processor["size"], processor["image_max_patches"]
    preprocess = Preprocess(size=size, mean=processor["mean"], std=processor["std"])
    videos = [preprocess(arrays[f"frames_{k}"]) for k in range(len(case["videos"]))]
    images = [preprocess(tile(arrays[f"image_{k}"].numpy(), most, size)) for k in range(len(case["images"]))]
    expected = arrays["pixel_values"].split([len(pixels) for pixels in videos + images])
    for k, (made, wanted) in enumerate(zip(videos + images, expected, strict=True)):
        levels = 255 * torch.tensor(processor["std"]).view(3, 1, 1) * (made - wanted)
        assert levels.abs().max() < (1.001 if k < len(videos) else 1e-4)
