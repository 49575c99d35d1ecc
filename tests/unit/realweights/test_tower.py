"""The tower computes what TensorFlow's EfficientNet-Lite0 does: padding, sizes and the bytes it is given."""

import pytest
import torch

from realweights.tower import MEAN, SIZE, STD, LiteTower, LiteTowerConfig, Same, pool
from videollm.video.preprocess import Preprocess


@pytest.mark.parametrize(
    ("kernel", "stride", "side", "seen"),
    [
        (3, 2, 4, [[9, 6], [6, 4]]),  # one row of zeros, and it is below
        (5, 2, 4, [[16, 12], [12, 9]]),  # one above, two below
        (3, 1, 2, [[4, 4], [4, 4]]),
        (3, 2, 3, [[4, 4], [4, 4]]),  # an odd side: one on each side
    ],
)
def test_zeros_go_where_tensorflow_puts_them(kernel, stride, side, seen):
    """A kernel of ones counts the pixels that it sees."""
    conv = Same(1, 1, kernel, stride)
    torch.nn.init.ones_(conv.weight)
    assert conv(torch.ones(1, 1, side, side)).squeeze().tolist() == seen


def test_the_network_is_as_large_as_published():
    """4 652 008 parameters with the classifier of 1000 classes, which is not read."""
    tower = LiteTower(LiteTowerConfig())
    own = sum(p.numel() for n, p in tower.named_parameters() if not n.startswith(("look", "project", "norm")))
    assert own + 1280 * 1000 + 1000 == 4_652_008


def test_a_frame_is_one_feature_and_another_size_is_refused():
    tower = LiteTower(LiteTowerConfig(image_size=32, hidden_size=8)).eval()
    features = tower(torch.rand(2, 3, 32, 32))
    assert features.shape == (2, 1, 8) and torch.allclose(features.mean(-1), torch.zeros(2, 1), atol=1e-5)
    with pytest.raises(ValueError, match="frames of shape"):
        tower(torch.rand(2, 3, SIZE, SIZE))


def test_a_frame_is_read_from_where_the_tower_looks():
    places = torch.rand(2, 4, 3)
    assert torch.allclose(pool(places, torch.zeros(2, 4, 1)), places.mean(1))
    looks = torch.tensor([[0.0, 0, 99, 0], [99, 0, 0, 0]]).unsqueeze(-1)
    assert torch.allclose(pool(places, looks), torch.stack([places[0, 2], places[1, 0]]))


def test_bytes_are_scaled_as_the_package_was_trained():
    pixels = torch.tensor([127, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 2, 2, 3).contiguous()
    made = Preprocess(kind="plain", size=2, mean=MEAN, std=STD)(pixels)
    assert torch.allclose(made.flatten(1), torch.tensor([[0.0], [1.0]]).expand(2, 12), atol=1e-6)
