"""A part that cannot be built from its mapping: one message that begins with the key, of whatever kind the part is."""

import pytest
import torch

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
    "model.vision={type: conv, hidden_size: -1}": ("model.vision: a part of type conv ", "negative dimension -1"),
    "model.vision={type: conv, image_size: 30}": ("model.vision: a part of type conv ", "multiple of 16"),
    "model.vision={type: [1]}": ("model.vision.type: [1] ", "choose one of conv"),
    "model.vision={type: null}": ("model.vision.type: None ", "choose one of conv"),
    "model.vision.hidden_size=wide": ("model.vision.hidden_size: ", "expected int"),
    "model.vision.num_attention_heads=5": ("model.vision: a part of type internvl ", "divisible"),
    "model.vision.patch_size=0": ("model.vision: a part of type internvl ", "ZeroDivisionError"),
    "model.vision.hidden_act=nothing": ("model.vision: a part of type internvl ", "'nothing'"),
    "model.vision.attn_implementation=nothing": ("model.vision: a part of type internvl ", "nothing"),
    "model.connector={type: mlp, down: 1}": ("model.connector.down: ", "known keys: downsample"),
    "model.connector={type: linear, init_scale: [1]}": ("model.connector.init_scale: ", "expected a number"),
    "model.connector={type: qformer, hidden_size: x}": ("model.connector.hidden_size: ", "known keys: "),
    "model.connector={type: qformer, num_attention_heads: 5}": ("model.connector: a part of type qformer ", "multiple"),
    "model.connector={type: qformer, cross_attention_frequency: 0}": ("model.connector: a part of type qformer ", ""),
    "model.head=d2vlm": ("model.head: ", "expected a mapping"),
    "model.head={name: [1]}": ("model.head.name: no head [1]", ""),
    "model.head={name: d2vlm, alpa: 1}": ("model.head.alpa: ", "did you mean model.head.alpha"),
    "model.head={name: d2vlm, inject_layer: 99}": ("model.head: layer 99 ", "4 layers"),
    "model.head={name: d2vlm, inject_layer: 2, query_layer: -9}": ("model.head: layer -9 ", "4 layers"),
    "model.language.num_hidden_layers=four": ("model.language: a qwen2 ", "'num_hidden_layers'"),
    "model.language.hidden_act=nothing": ("model.language: a qwen2 ", "'nothing'"),
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
