"""Towers and connectors: shapes, freezing, order of patches, what the question changes, and what each mistake says."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from videollm.common.config import ConfigError
from videollm.model import connectors
from videollm.model.connectors import CONNECTORS, Connector, build_connector, pixel_shuffle
from videollm.model.towers import TOWERS, build_tower, encode_frames

WIDTH, HIDDEN = 16, 24
BODY = {"hidden_size": WIDTH, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
INTERNVL = {"type": "internvl", **BODY, "image_size": 56, "patch_size": 14, "attention_bias": True}
INSTRUCTBLIP = {"type": "instructblip", **BODY, "image_size": 28, "patch_size": 14, "initializer_range": 0.1}
CONV = {"type": "conv", "num_channels": 3, "channels": [4, 6, 8], "hidden_size": WIDTH, "image_size": 32}
QFORMER = {"type": "qformer", **BODY, "num_query_tokens": 4, "vocab_size": 30, "max_position_embeddings": 12}
MLP = {"type": "mlp", "downsample": 0.5}
LINEAR = {"type": "linear"}


def frames_for(tower, count):
    size = INTERNVL["image_size"] if tower.num_patches == 16 else INSTRUCTBLIP["image_size"]
    return torch.randn(count, 3, size, size)


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


@pytest.fixture
def qformer():
    return build_connector(QFORMER, WIDTH, HIDDEN).eval()


# ---- towers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config, patches", [(INTERNVL, 16), (INSTRUCTBLIP, 4)])
def test_tower_gives_one_feature_a_patch_and_no_cls(config, patches):
    tower = build_tower(config).eval()
    assert (tower.num_patches, tower.hidden_size) == (patches, WIDTH)
    frames = frames_for(tower, 3)
    layers = tower.encoder.layer if config is INTERNVL else tower.encoder.layers
    seen = []
    layers[-1].register_forward_hook(lambda _, __, out: seen.append(out))
    features = tower(frames)
    assert features.shape == (3, patches, WIDTH)
    torch.testing.assert_close(features, seen[0][:, 1:])  # nothing after the last block, CLS first


@pytest.mark.parametrize("config", [INTERNVL, INSTRUCTBLIP])
def test_tower_attends_with_sdpa_and_agrees_with_eager_attention(config):
    tower = build_tower(config).eval()
    assert tower.config._attn_implementation == "sdpa"
    eager = build_tower({**config, "attn_implementation": "eager"}).eval()
    eager.load_state_dict(tower.state_dict())
    frames = frames_for(tower, 2)
    torch.testing.assert_close(tower(frames), eager(frames), rtol=1e-4, atol=1e-5)


def test_instructblip_tower_holds_no_weights_of_the_unused_final_norm():
    assert not [name for name in build_tower(INSTRUCTBLIP).state_dict() if "post_layernorm" in name]


@pytest.mark.parametrize("chunk", [1, 2, 5, 9])
def test_chunks_of_frames_change_nothing(chunk):
    tower = build_tower(INTERNVL).eval()
    frames = frames_for(tower, 5)
    sizes = []
    tower.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    features = encode_frames(tower, frames, chunk)
    assert max(sizes) <= chunk
    torch.testing.assert_close(features, tower(frames), rtol=1e-5, atol=1e-6)


def test_conv_tower_gives_one_feature_a_frame():
    tower = build_tower(CONV).eval()
    frames = torch.randn(3, 3, 32, 32)
    features = encode_frames(tower, frames, 2)
    assert features.shape == (3, tower.num_patches, tower.hidden_size) == (3, 1, WIDTH)
    torch.testing.assert_close(features, tower(frames), rtol=1e-4, atol=1e-5)


def test_no_frames_give_no_features():
    tower = build_tower(INSTRUCTBLIP)
    assert encode_frames(tower, frames_for(tower, 0), 4).shape == (0, 4, WIDTH)


def test_encoding_reaches_the_connector_but_leaves_no_gradient_in_the_tower():
    tower, connector = build_tower(INTERNVL), build_connector(MLP, WIDTH, HIDDEN)
    features = encode_frames(tower, frames_for(tower, 2), 4)
    assert not features.requires_grad
    connector(features).sum().backward()
    assert all(p.grad is None for p in tower.parameters())
    assert all(p.grad is not None for p in connector.parameters())


def test_chunk_below_one_is_refused():
    tower = build_tower(INSTRUCTBLIP)
    with pytest.raises(ValueError, match="chunk is 0"):
        encode_frames(tower, frames_for(tower, 1), 0)


@pytest.mark.parametrize("config", [INTERNVL, INSTRUCTBLIP])
@pytest.mark.parametrize("shape", [(2, 3, 42, 42), (2, 1, 28, 28), (3, 28, 28)])
def test_frames_of_another_shape_name_the_key(config, shape):
    with pytest.raises(ValueError, match=r"model\.vision\.image_size"):
        build_tower(config)(torch.zeros(shape))


@pytest.mark.parametrize("config", [{"type": "resnet"}, {}])
def test_unknown_tower_names_key_and_choices(config):
    with pytest.raises(ValueError, match=r"model\.vision\.type: .*conv, .*instructblip, internvl"):
        build_tower(config)


@pytest.mark.parametrize("kind", ["internvl", "instructblip", "conv"])
def test_misspelt_field_of_a_tower_suggests_the_right_one(kind):
    with pytest.raises(ConfigError, match=r"model\.vision\.hiden_size: unknown key; did you mean .*hidden_size"):
        build_tower({"type": kind, "hiden_size": 8})


def test_field_of_the_wrong_kind_is_named():
    with pytest.raises(ConfigError, match=r"model\.vision\.hidden_size: .*expected int"):
        build_tower({"type": "internvl", "hidden_size": "wide"})


def test_instructblip_tower_refuses_frames_that_are_not_square():
    with pytest.raises(ConfigError, match=r"model\.vision\.image_size"):
        build_tower({**INSTRUCTBLIP, "image_size": [28, 42]})


def test_config_of_a_built_tower_builds_the_same_tower():
    fields = build_tower(INTERNVL).config.to_dict()
    again = build_tower({"type": "internvl", **fields})
    assert again.config.to_dict() == fields


def test_registered_tower_is_found_by_its_name():
    TOWERS.register(lambda fields: nn.Linear(fields["a"], 1), name="mine")
    try:
        assert build_tower({"type": "mine", "a": 5}).in_features == 5
    finally:
        TOWERS.pop("mine")


# ---- linear and mlp --------------------------------------------------------------------------------------------------


def test_linear_connector_keeps_every_patch():
    connector = build_connector(LINEAR, WIDTH, HIDDEN)
    assert connector(torch.randn(3, 5, WIDTH)).shape == (3, 5, HIDDEN)
    assert connector.tokens_per_frame(5) == 5
    assert not connector.reads_question


@pytest.mark.parametrize("hidden", [WIDTH, HIDDEN])
def test_identity_init_copies_the_features_and_leaves_the_rest_zero(hidden):
    connector = build_connector({**LINEAR, "identity_init": True}, WIDTH, hidden)
    features = torch.randn(2, 3, WIDTH)
    tokens = connector(features)
    assert torch.equal(tokens[..., :WIDTH], features)
    assert not tokens[..., WIDTH:].any()


def test_identity_init_into_fewer_dimensions_is_refused():
    with pytest.raises(ConfigError, match=r"model\.connector\.identity_init"):
        build_connector({**LINEAR, "identity_init": True}, WIDTH, WIDTH - 1)


def test_identity_survives_a_model_that_resets_its_parts():
    class Holder(PreTrainedModel):
        config_class = PretrainedConfig

        def __init__(self, config):
            super().__init__(config)
            self.connector = build_connector({**LINEAR, "identity_init": True}, WIDTH, HIDDEN)
            self.post_init()

        def _init_weights(self, module):
            super()._init_weights(module)
            if isinstance(module, Connector):
                module.reset_parameters()

    features = torch.randn(1, 1, WIDTH)
    assert torch.equal(Holder(PretrainedConfig()).connector(features)[..., :WIDTH], features)


@given(side=st.integers(1, 4), block=st.integers(1, 3), width=st.integers(1, 3))
def test_pixel_shuffle_puts_each_square_into_one_vector_row_by_row(side, block, width):
    grid = side * block
    features = torch.arange(2 * grid * grid * width).view(2, grid * grid, width)
    image = features.view(2, grid, grid, width)
    squares = [
        image[:, i : i + block, j : j + block].flatten(1) for i in range(0, grid, block) for j in range(0, grid, block)
    ]
    assert torch.equal(pixel_shuffle(features, block), torch.stack(squares, 1))


def test_mlp_connector_makes_a_quarter_of_the_tokens():
    connector = build_connector(MLP, WIDTH, HIDDEN)
    assert connector(torch.randn(3, 16, WIDTH)).shape == (3, 4, HIDDEN)
    assert connector.tokens_per_frame(1024) == 256


@pytest.mark.parametrize("patches", [15, 9])
def test_mlp_connector_refuses_a_grid_it_cannot_halve(patches):
    connector = build_connector(MLP, WIDTH, HIDDEN)
    for use in (lambda: connector(torch.randn(1, patches, WIDTH)), lambda: connector.tokens_per_frame(patches)):
        with pytest.raises(ValueError, match=r"model\.connector\.downsample"):
            use()


@pytest.mark.parametrize("downsample", [0.0, -0.5, 0.4, 2.0, float("nan")])
def test_mlp_connector_refuses_a_ratio_that_is_not_one_over_n(downsample):
    with pytest.raises(ConfigError, match=r"model\.connector\.downsample"):
        build_connector({"type": "mlp", "downsample": downsample}, WIDTH, HIDDEN)


# ---- qformer ---------------------------------------------------------------------------------------------------------

IDS = torch.tensor([[2, 7, 8, 9, 3], [2, 11, 3, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
OWNER = torch.tensor([0, 0, 1])


def test_qformer_makes_one_token_a_frame(qformer):
    assert qformer(torch.randn(3, 6, WIDTH), IDS, MASK, OWNER).shape == (3, 1, HIDDEN)
    assert qformer.tokens_per_frame(256) == 1
    assert qformer.reads_question


def test_question_changes_the_token_of_the_same_frame(qformer):
    features = torch.randn(1, 6, WIDTH).expand(3, -1, -1)
    tokens = qformer(features, IDS, MASK, OWNER)
    torch.testing.assert_close(tokens[0], tokens[1])
    assert (tokens[1] - tokens[2]).abs().max() > 1e-4


def test_owner_equals_text_repeated_for_each_frame(qformer):
    features = torch.randn(3, 6, WIDTH)
    torch.testing.assert_close(qformer(features, IDS, MASK, OWNER), qformer(features, IDS[OWNER], MASK[OWNER]))


def test_padding_of_the_question_is_not_read(qformer):
    features = torch.randn(2, 6, WIDTH)
    noisy = torch.where(MASK.bool(), IDS, 17)
    torch.testing.assert_close(qformer(features, IDS, MASK), qformer(features, noisy, MASK))
    short = qformer(features[1:], IDS[1:, :3], MASK[1:, :3])
    torch.testing.assert_close(qformer(features, IDS, MASK)[1:], short, rtol=1e-4, atol=1e-6)


def test_attention_of_the_compressor_follows_the_formula(qformer):
    features = torch.randn(2, 6, WIDTH)
    u = qformer.state_proj(qformer.question_states(features, IDS, MASK, torch.arange(2), torch.arange(2)))
    a = (qformer.attend_query(u) @ qformer.attend_key(features).mT / WIDTH**0.5).softmax(-1)
    expected = qformer.token_proj((a @ features + u).mean(1, keepdim=True))
    torch.testing.assert_close(qformer(features, IDS, MASK), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("way", ["frames shared", "as under ZeRO-3", "checkpointed"])
def test_what_is_made_once_a_frame_gives_the_same_tokens_and_gradients(qformer, monkeypatch, way):
    """As the layers as they are give for every frame of every question."""
    features, source, owner = torch.randn(2, 6, WIDTH), torch.tensor([0, 1, 0]), torch.tensor([0, 0, 1])
    features.requires_grad_()  # as of a tower that learns
    for norm in (qformer.cross_norm, qformer.attend_key[0]):  # else a lost scale would go unnoticed
        torch.nn.init.normal_(norm.weight)
        torch.nn.init.normal_(norm.bias)

    def step(*frames):
        qformer.zero_grad()
        features.grad = None
        tokens = qformer(frames[0], IDS, MASK, owner, *frames[1:])
        tokens.square().sum().backward()
        return [tokens, features.grad, *(p.grad for p in qformer.parameters() if p.grad is not None)]

    with monkeypatch.context() as patch:
        patch.setattr(qformer, "plain", lambda: True)
        wanted = step(features[source])
    if way == "as under ZeRO-3":
        monkeypatch.setattr(connectors, "is_deepspeed_zero3_enabled", lambda: True)
    if way == "checkpointed":
        qformer.training = True  # its parts are not: no dropout
        for layer in qformer.qformer.encoder.layer:
            layer.gradient_checkpointing = True
    assert qformer.plain() == (way != "frames shared")
    torch.testing.assert_close(step(features, source), wanted, rtol=1e-4, atol=1e-5)
    assert "forward" not in vars(qformer.attend_key[1])


def test_no_frames_give_no_tokens(qformer):
    nobody = torch.zeros(0, dtype=torch.int64)
    assert qformer(torch.zeros(0, 6, WIDTH), IDS, MASK, nobody).shape == (0, 1, HIDDEN)


def test_features_of_a_half_precision_tower_are_accepted(qformer):
    for connector in (qformer, build_connector(MLP, WIDTH, HIDDEN), build_connector(LINEAR, WIDTH, HIDDEN)):
        assert connector(torch.randn(2, 4, WIDTH).bfloat16(), IDS, MASK).dtype == torch.float32


def test_qformer_without_a_question_says_what_to_pass(qformer):
    with pytest.raises(ValueError, match="pass query_ids and query_mask"):
        qformer(torch.randn(2, 6, WIDTH))


@pytest.mark.parametrize(
    "ids, mask, owner, message",
    [
        (IDS, MASK[:, :4], OWNER, "must both be"),
        (torch.ones(1, 13, dtype=torch.int64), torch.ones(1, 13, dtype=torch.int64), torch.zeros(3).long(), "Lq <= 12"),
        (IDS, MASK, None, "query_ids has 2 rows for 3 frames"),
        (IDS, MASK, OWNER[:2], "owner has 2 rows for 3 frames"),
    ],
)
def test_text_that_does_not_fit_is_refused(qformer, ids, mask, owner, message):
    with pytest.raises(ValueError, match=message):
        qformer(torch.randn(3, 6, WIDTH), ids, mask, owner)


@pytest.mark.parametrize("fields", [{"num_query_tokens": 0}, {"encoder_hidden_size": 7}, {"num_layers": 2}])
def test_wrong_field_of_the_qformer_is_named(fields):
    with pytest.raises(ConfigError, match=rf"model\.connector\.{next(iter(fields))}"):
        build_connector({**QFORMER, **fields}, WIDTH, HIDDEN)


@pytest.mark.parametrize("config", [{"type": "mean"}, {}])
def test_unknown_connector_names_key_and_choices(config):
    with pytest.raises(ValueError, match=r"model\.connector\.type: .*linear, mlp, qformer"):
        build_connector(config, WIDTH, HIDDEN)


def test_registered_connector_is_found_by_its_name():
    CONNECTORS.register(lambda fields, vision_size, hidden_size: (fields, vision_size, hidden_size), name="mine")
    try:
        assert build_connector({"type": "mine", "a": 1}, 2, 3) == ({"a": 1}, 2, 3)
    finally:
        CONNECTORS.pop("mine")
