"""A tower that torch.compile has compiled gives the features of one that has not been, and so the same answers."""

import shutil
from dataclasses import replace

import pytest
import torch
from torch._dynamo.utils import counters

from tests.models import NoiseReader, make_bundle, record, turns
from videollm.common.config import ConfigError
from videollm.inference.answer import answer_records
from videollm.model.generate import GenerateOptions
from videollm.model.towers import CompiledTower, encode_frames
from videollm.model.videollm import tower_shape

SHORT = GenerateOptions(max_new_tokens=8)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="needs g++")
@pytest.mark.parametrize("backbone", ["internvl", "etchat"])
def test_a_compiled_tower_gives_the_same_features_and_answers(backbone):
    """Three frames are filled up to four, five to eight; each number is compiled once."""
    bundle = make_bundle(backbone, "d2vlm")
    tower = bundle.model.vision_tower
    torch.compiler.reset()
    counters.clear()
    compiled = CompiledTower(tower)
    pixels = torch.randn(8, *tower_shape(tower))
    for count in (3, 4, 5, 1):
        features = encode_frames(compiled, pixels[:count], 64)
        torch.testing.assert_close(features, encode_frames(tower, pixels[:count], 64), rtol=1e-4, atol=1e-5)
    assert counters["stats"]["unique_graphs"] == 3
    asked = [
        record({"id": said, "video": "a.mp4", "conversations": turns(f"<video>\n{said}")}) for said in ("when?", "who?")
    ]
    one, other = (
        [(line.id, line.raw_text) for line in answer_records(bundle, asked, NoiseReader(), replace(SHORT, **more))]
        for more in ({}, {"compile_tower": True})
    )
    assert one == other and one[0][1]


def test_a_tower_of_frames_of_any_size_is_not_compiled():
    with pytest.raises(ConfigError, match=r"^generate\.compile_tower: frames of any size"):
        CompiledTower(make_bundle("qwen3_vl", "text").model.vision_tower)
