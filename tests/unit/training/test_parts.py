"""A part that cannot be built from its mapping: one message that begins with the key, of whatever kind the part is."""

import pytest
import torch
from safetensors.torch import save_file

from tests.models import SIZE, make_bundle, model_settings, settings
from videollm.common.config import ConfigError, override
from videollm.model.objective import build_objective
from videollm.training.assemble import assemble, read_settings

DATA = {"preprocess": {"kind": "plain", "size": SIZE}, "max_length": 1024}
CASES = {  # what is laid over a config that works: how the message begins, and what else it says
    "model.vision={type: conv, channels: 3}": (
        "model.vision.channels: ", "known keys: channels, hidden_size, image_size, num_channels"),
    "model.vision={type: conv, channels: [a]}": ("model.vision.channels: ", "known keys: channels"),
    "model.vision={type: conv, num_channels: x}": ("model.vision.num_channels: ", "expected int"),
    "model.vision={type: conv, chanels: [4]}": ("model.vision.chanels: ", "did you mean model.vision.channels"),
    "model.vision={type: conv, hidden_size: -1}": ("model.vision.hidden_size: -1", "at least 1"),
    "model.vision={type: conv, image_size: 30}": ("model.vision: a part of type conv ", "multiple of 16"),
    "model.vision={type: [1]}": ("model.vision.type: no tower [1]; ", "known: conv"),
    "model.vision={type: null}": ("model.vision.type: no tower None; ", "known: conv"),
    "model.vision.hidden_size=wide": ("model.vision.hidden_size: ", "expected int"),
    "model.vision.num_attention_heads=5": ("model.vision: a part of type internvl ", "divisible"),
    "model.vision.patch_size=0": ("model.vision.patch_size: 0", "at least 1"),
    "model.vision.patch_size=[40, 40]": ("model.vision.patch_size: no patch ", "raise model.vision.image_size"),
    "model.vision.attention_dropout=1.5": ("model.vision.attention_dropout: 1.5", "from 0 to 1"),
    "model.vision.num_hidden_layers=0": ("model.vision.num_hidden_layers: 0", "at least 1"),
    "model.vision.hidden_act=nothing": ("model.vision: a part of type internvl ", "'nothing'"),
    "model.vision.attn_implementation=nothing": ("model.vision: a part of type internvl ", "nothing"),
    "model.connector={type: mlp, down: 1}": ("model.connector.down: ", "known keys: downsample"),
    "model.connector={type: linear, init_scale: [1]}": ("model.connector.init_scale: ", "expected a number"),
    "model.connector={type: qformer, hidden_size: x}": ("model.connector.hidden_size: ", "known keys: "),
    "model.connector={type: qformer, num_attention_heads: 5}": ("model.connector: a part of type qformer ", "multiple"),
    "model.connector={type: qformer, cross_attention_frequency: 0}": (
        "model.connector.cross_attention_frequency: 0", "at least 1"),
    "model.head=d2vlm": ("model.head: ", "expected a mapping"),
    "model.head={name: [1]}": ("model.head.name: no head [1]", ""),
    "model.head={name: d2vlm, alpa: 1}": ("model.head.alpa: ", "did you mean model.head.alpha"),
    "model.head={name: d2vlm, inject_layer: 99}": ("model.head: layer 99 ", "4 layers"),
    "model.head={name: d2vlm, inject_layer: 2, query_layer: -9}": ("model.head: layer -9 ", "4 layers"),
    "model.language.num_hidden_layers=four": ("model.language: a qwen2 ", "'num_hidden_layers'"),
    "model.language.hidden_act=nothing": ("model.language: a qwen2 ", "'nothing'"),
    "model.language.num_key_value_heads=3": (
        "model.language.num_attention_heads: 4 ", "no multiple of model.language.num_key_value_heads, 3"),
    "model.language.num_key_value_heads=0": ("model.language.num_key_value_heads: 0", "at least 1"),
    "model.language.hidden_size=36": ("model.language.hidden_size: 36 over model.language.num_attention_heads, 4", "9"),
    "model.language.intermediate_size=0": ("model.language.intermediate_size: 0", "at least 1"),
    "model.language.attention_dropout=1.5": ("model.language.attention_dropout: 1.5", "from 0 to 1"),
    "model.language.rope_parameters={rope_type: default, rope_theta: 0}": (
        "model.language.rope_parameters.rope_theta: 0", "above 0"),
    "model.language.max_position_embeddings=1023": (
        "data.max_length: 1024", "1023 positions (max_position_embeddings); lower it"),
    "model.language.model_type=[1]": ("model.language.model_type: [1]", ""),
    "train.objective={name: [1]}": ("train.objective.name: no objective [1]", ""),
    "train.objective={name: d2vlm.fpo, bta: 1}": ("train.objective.bta: ", "did you mean train.objective.beta"),
    "model.language={model_type: gpt2}": ("model.language.model_type: GPT2Model ", "choose another"),
    "model.visual_tokens.token=''": ("model.visual_tokens.token: ", "is empty"),
    "train.lora={r: x}": ("train.lora.r: ", "expected int"),
    "train.lora={r: 0}": ("train.lora.r: 0", "at least 1"),
    "train.lora={dropout: 1}": ("train.lora.dropout: 1.0", "[0, 1)"),
}  # fmt: skip


@pytest.mark.parametrize("given", CASES)
@pytest.mark.parametrize("preset", ["default", "published"])
def test_a_mapping_that_no_part_can_be_built_from_is_named_by_its_key(given, preset):
    values = {"model": model_settings("internvl", "d2vlm"), "data": DATA, "compatibility": preset}
    begins, says = CASES[given]
    with pytest.raises(ConfigError) as error:
        wanted = read_settings(override(values, [given]))
        build_objective(wanted.train.objective)
        assemble(wanted)
    message = str(error.value)
    assert message.startswith(begins) and says in message and "\n" not in message


@pytest.mark.parametrize("section", ["model", "data", "train", "generate"])
def test_a_preset_over_what_is_no_mapping_is_named(section):
    with pytest.raises(ConfigError, match=f"^{section}: expected a mapping of keys, got 5"):
        read_settings({"model": model_settings("internvl", "d2vlm"), "compatibility": "published", section: 5})


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    make_bundle("qwen2_5_vl", "text").save(folder)
    return str(folder)


def over_checkpoint(checkpoint, preprocess: dict):
    """A model of the checkpoint with other frames."""
    data = DATA | {"preprocess": preprocess}
    return assemble(read_settings({"model": {"checkpoint": checkpoint}, "data": data})).model


def test_frames_of_the_config_go_over_those_of_the_checkpoint(checkpoint):
    """Where they are normalised too, not only where they are made."""
    given = {"kind": "qwen2_5_vl", "factor": 8, "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    model = over_checkpoint(checkpoint, given)
    pixels = torch.zeros(2, 3 * 2 * 4 * 4, dtype=torch.uint8)
    seen = model.as_the_tower_takes(pixels).view(2, 3, -1)
    assert torch.allclose(seen, -torch.tensor([0.1 / 0.4, 0.2 / 0.5, 0.3 / 0.6])[:, None].expand_as(seen))


def test_frames_that_the_tower_of_a_checkpoint_cannot_take_are_one_line(checkpoint):
    """A tiny tower has visual tokens of 8 pixels, the released one of 28."""
    with pytest.raises(ConfigError, match=r"^data\.preprocess: sides are multiples of 28, the vision tower's 8 "):
        over_checkpoint(checkpoint, {"kind": "qwen2_5_vl"})


def test_another_head_than_that_of_the_checkpoint_is_one_line_with_the_way_to_it(checkpoint):
    with pytest.raises(ConfigError, match=r"has a text head.*leave it out, or convert .* --head d2vlm"):
        assemble(read_settings({"model": {"checkpoint": checkpoint, "head": {"name": "d2vlm"}}, "data": DATA}))


@pytest.mark.parametrize(
    "rope, positions",
    [
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}, 1024),
        ({"rope_type": "yarn", "factor": 3.5, "original_max_position_embeddings": 256}, 896),
        ({"rope_type": "dynamic", "factor": 4.0}, 1024),
    ],
)
def test_a_context_may_be_as_long_as_positions_are_stretched(rope, positions):
    language = model_settings("internvl", "text")["language"] | {"max_position_embeddings": 256}
    given = settings("internvl", "text", language=language | {"rope_parameters": rope | {"rope_theta": 1e4}})
    if positions == 1024:
        assert assemble(given).config.context_length == 1024
        return
    with pytest.raises(ConfigError, match=f"data.max_length: 1024, but the language model has {positions} positions"):
        assemble(given)


def test_a_run_that_began_with_too_long_a_context_goes_on(tmp_path):
    language = model_settings("internvl", "text")["language"] | {"max_position_embeddings": 256}
    train = {"resume": "auto", "output": str(tmp_path)}
    with pytest.raises(ConfigError, match="data.max_length"):
        assemble(settings("internvl", "text", train, language=language))
    (tmp_path / "checkpoint-2").mkdir()
    assert assemble(settings("internvl", "text", train, language=language)).config.context_length == 1024


@pytest.mark.parametrize("key, value", [("vocab_size", 268), ("max_position_embeddings", 255)])
def test_a_connector_that_cannot_read_a_question_is_refused(key, value):
    connector = model_settings("etchat", "text")["connector"] | {key: value}
    with pytest.raises(ConfigError, match=f"model.connector.{key}: {value}, but questions need at least {value + 1}"):
        assemble(settings("etchat", "text", connector=connector))


def test_a_head_starts_from_its_file_which_has_to_fit(tmp_path):
    given = assemble(settings("internvl", "distime")).model.head.state_dict()
    start = {name: torch.full_like(tensor, 0.5) for name, tensor in given.items()}
    file = tmp_path / "head.safetensors"
    save_file(start, file)
    head = assemble(settings("internvl", "distime", head_weights=str(file))).model.head.state_dict()
    assert all(torch.equal(head[name], tensor) for name, tensor in start.items())
    first = next(iter(start))
    save_file(start | {first: torch.zeros(1)}, file)
    with pytest.raises(ConfigError, match=f"model.head_weights: {file} lacks {first}, or has them in another shape"):
        assemble(settings("internvl", "distime", head_weights=str(file)))


WORDS = {
    "too wide": {"dog": torch.ones(33), "cat": torch.zeros(33)},
    "none": {},
    "one, from whose mean nothing differs": {"dog": torch.ones(4)},
    "matrices": {"dog": torch.ones(2, 2), "cat": torch.zeros(2, 2)},
    "uneven": {"dog": torch.ones(4), "cat": torch.ones(5)},
}


@pytest.mark.parametrize("words", WORDS)
def test_word_vectors_of_which_no_embeddings_can_be_made_are_refused(tmp_path, words):
    save_file(WORDS[words], tmp_path / "words.safetensors")
    with pytest.raises(ConfigError, match="model.word_vectors: has to hold several words"):
        assemble(settings("internvl", "text", word_vectors=str(tmp_path / "words.safetensors")))


def test_weights_of_a_tower_of_another_size_are_refused(tmp_path):
    state = make_bundle("internvl", "text").model.vision_tower.state_dict()
    name = next(name for name in state if name.endswith("q_proj.weight"))
    save_file(state | {name: torch.ones(3, 3)}, tmp_path / "model.safetensors")
    with pytest.raises(ConfigError, match=f"model.vision_weights: .*lacks {name}, or has them in another shape"):
        assemble(settings("internvl", "text", vision_weights=str(tmp_path)))


def test_scaled_residuals_of_layers_without_the_projections_are_refused():
    language = model_settings("internvl", "text")["language"] | {"model_type": "starcoder2"}
    with pytest.raises(ConfigError, match="model.scale_residuals: not for the layers of a Starcoder2Model"):
        assemble(settings("internvl", "text", language=language, scale_residuals=True))


def test_under_deepspeed_a_checkpoint_is_read_in_bf16_and_a_new_head_starts_as_in_float32(tmp_path):
    """What DeepSpeed makes of float32 weights, without ever holding those."""
    bundle = make_bundle("internvl", "distime")
    bundle.config.headless = True
    bundle.model.save_pretrained(
        tmp_path, state_dict={n: p for n, p in bundle.model.state_dict().items() if not n.startswith("head.")}
    )
    bundle.save_tokenizers(tmp_path)
    models = []
    for train in ({}, {"precision": "bf16", "deepspeed": "configs/deepspeed/zero2.json"}):
        given = settings("internvl", "distime", train={"seed": 5, "lora": {}} | train)
        given.model = type(given.model)(checkpoint=str(tmp_path))
        models.append(assemble(given).model)
    plain, half = ({name: p.detach() for name, p in model.named_parameters()} for model in models)
    assert {p.dtype for p in half.values()} == {torch.bfloat16} and {p.dtype for p in plain.values()} == {torch.float32}
    assert all(torch.equal(half[name], plain[name].bfloat16()) for name in plain)
