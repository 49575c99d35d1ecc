"""How the linear connector may start: as a scaled copy, with the mean feature taken out."""

import pytest
import torch
from safetensors.torch import save_file

from tests.models import make_bundle
from videollm.checkpoint.start import center_features
from videollm.common.config import ConfigError
from videollm.model.connectors import build_connector


class Model:
    """What ``center_features`` looks at."""

    def __init__(self, connector):
        self.connector = connector


def linear() -> Model:
    return Model(build_connector({"type": "linear", "identity_init": True, "init_scale": 0.2}, 4, 6))


def test_a_copy_may_start_scaled():
    features = torch.randn(3, 1, 4)
    tokens = linear().connector(features)
    torch.testing.assert_close(tokens[..., :4], 0.2 * features)
    assert not tokens[..., 4:].any()


def test_the_mean_feature_becomes_zero(tmp_path):
    model, mean = linear(), torch.randn(4)
    save_file({"mean": mean}, tmp_path / "mean.safetensors")
    center_features(model, str(tmp_path / "mean.safetensors"))
    assert model.connector(mean.view(1, 1, 4)).abs().max() < 1e-6


def test_a_mean_that_does_not_fit_is_named(tmp_path):
    save_file({"mean": torch.zeros(5)}, tmp_path / "mean.safetensors")
    for path in (tmp_path / "mean.safetensors", tmp_path / "absent"):
        with pytest.raises(ConfigError, match=r"model\.feature_mean"):
            center_features(linear(), str(path))


def test_another_connector_refuses_a_mean(tmp_path):
    with pytest.raises(ConfigError, match="only the linear connector"):
        center_features(make_bundle("internvl", "text").model, str(tmp_path / "absent"))
