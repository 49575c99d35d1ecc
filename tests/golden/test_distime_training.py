"""LoRA and optimisation steps against the published implementation.

Qwen2's adapters are put into our layers one by one. InternLM2's sit on the fused projection: they are merged by the
converter. What trains is read from the shipped 1B recipe.
"""

import pytest
import torch

from distime.names import WRAPPER, to_official
from distime.official_config import our_layout
from tests.golden.distime_model import HIDDEN, LOGITS, arrays, golden_batch, golden_bundle, read
from videollm.common.config import build, read_yaml
from videollm.model.lora import add_lora, merge_lora
from videollm.model.loss import logits_of
from videollm.training.optimizer import set_trainable
from videollm.training.settings import Settings

TERMS = {"lm": "loss_text", "dfl": "loss_time_dfl", "diou": "loss_iou"}
NORMS = {"rel": 6e-4, "abs": 1e-4}


@pytest.fixture
def info(folder, llm):
    return read(folder / "lora" / llm / "info")


@pytest.fixture
def adapted(folder, llm, info, tmp_path, repository):
    """The golden model with the golden adapters in our layers, frozen as the 1B recipe freezes it."""
    if any("wqkv" in name for name in info["target_modules"]):
        pytest.skip("the published adapters of InternLM2 sit on its fused projection")
    bundle = golden_bundle(folder, llm, tmp_path)
    targets = [name.split(".")[-1] for name in info["target_modules"]]
    options = {"r": info["r"], "alpha": info["lora_alpha"], "dropout": 0.0, "targets": targets}
    add_lora(bundle.model.language_model, options)
    bundle.config.lora = options
    weights = {
        n.replace(WRAPPER, "language_model."): t for n, t in arrays(folder / "lora" / llm / "lora_weights").items()
    }
    found = bundle.model.load_state_dict(weights, strict=False)
    assert not found.unexpected_keys and not any("lora_" in name for name in found.missing_keys)
    set_trainable(
        bundle.model, build(Settings, read_yaml(repository / "configs/distime/internvl2_5_1b_lora.yaml")).train
    )
    return bundle


def official_names(bundle):
    """Our trainable parameters by their official, un-merged names."""
    found = {}
    for name, parameter in bundle.model.named_parameters():
        if parameter.requires_grad:
            (official,) = to_official({name: parameter}, our_layout(bundle.config))
            found[official.replace("language_model.", WRAPPER, 1)] = parameter
    return found


def assert_losses(output, published):
    for name, official in TERMS.items():
        assert output.terms[name].item() == pytest.approx(published[official], rel=4e-4, abs=3e-5), name


def assert_forward(bundle, folder, llm, info, losses):
    """Losses, states, logits and times of the sample that the golden folder ran with its adapters."""
    expected, model = arrays(folder / "lora" / llm / "forward"), bundle.model
    batch = golden_batch(bundle, folder, [info["sample"]])
    with torch.no_grad():
        assert_losses(model(batch), losses)
        reading = model.read(batch)
        torch.testing.assert_close(reading.states, expected["last_hidden"][0], **HIDDEN)
        tail = logits_of(model.language_model, reading.states[-len(expected["logits_tail"]) :])
        torch.testing.assert_close(tail, expected["logits_tail"], **LOGITS)
        logits = model.head._logits(reading.queries)
        torch.testing.assert_close(logits.flatten(1), expected["time_logits"], **LOGITS)
        seconds = model.head._seconds(model.head._expected(logits.softmax(-1)), batch.duration_s)
        torch.testing.assert_close(seconds, expected["pred_seconds"], atol=2e-3, rtol=0)


def test_active_adapters_give_the_published_forward_pass(folder, llm, info, adapted):
    assert_forward(adapted, folder, llm, info, info["losses"])


def test_the_recipe_trains_the_published_parameters(info, adapted):
    assert set(official_names(adapted)) == set(info["trainable"])


def test_gradients_of_what_trains_are_the_published_ones(folder, info, adapted):
    adapted.model(golden_batch(adapted, folder, [info["sample"]])).loss.backward()
    norms = {name: parameter.grad.norm().item() for name, parameter in official_names(adapted).items()}
    assert norms == {name: pytest.approx(norm, **NORMS) for name, norm in info["grad_norms"].items()}


def test_merged_adapters_give_the_published_weights_and_losses(folder, llm, info, adapted):
    merge_lora(adapted.model)
    expected = arrays(folder / "lora" / llm / "forward")["merged_weight_example"]
    found = to_official(adapted.model.state_dict(), our_layout(adapted.config))[info["merged_weight_example"]]
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    assert_forward(adapted, folder, llm, info, info["losses_after_merge"])


def test_adamw_steps_are_the_published_ones(folder, info, adapted):
    plan = info["train_steps"]
    parameters = list(official_names(adapted).values())
    optimizer = torch.optim.AdamW(
        parameters, lr=plan["lr"], betas=plan["betas"], eps=plan["eps"], weight_decay=plan["weight_decay"]
    )
    for step in plan["steps"]:
        output = adapted.model(golden_batch(adapted, folder, [step["sample"]]))
        assert_losses(output, step["losses"])
        output.loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, plan["clip"])
        assert norm.item() == pytest.approx(step["grad_norm_before_clip"], **NORMS)
        optimizer.step()
        optimizer.zero_grad()


# ---- un-merged checkpoints through the converter ---------------------------------------------------------------------


def unmerged_state(folder, llm, info):
    """An un-merged official checkpoint: the golden weights inside peft's names, and the golden adapters."""
    adapters = arrays(folder / "lora" / llm / "lora_weights")
    adapted = {name.partition(".lora_")[0] for name in adapters}
    state = dict(adapters)
    for name, tensor in arrays(folder / llm / "model").items():
        name = name.replace("language_model.", WRAPPER, 1)
        layer, _, end = name.rpartition(".")
        state[f"{layer}.base_layer.{end}" if layer in adapted else name] = tensor
    assert set(state) == set(info["state_dict_keys_before_merge"])
    return state


def test_an_unmerged_checkpoint_converts_to_the_merged_model(folder, llm, info, tmp_path):
    bundle = golden_bundle(folder, llm, tmp_path, unmerged_state(folder, llm, info), use_llm_lora=info["r"])
    assert not any("lora_" in name for name in bundle.model.state_dict())
    back = to_official(bundle.model.state_dict(), our_layout(bundle.config))
    assert {*back, "time_project.project"} == set(info["state_dict_keys_after_merge"])
    expected = arrays(folder / "lora" / llm / "forward")["merged_weight_example"]
    torch.testing.assert_close(back[info["merged_weight_example"]], expected, atol=1e-6, rtol=0)
    assert_forward(bundle, folder, llm, info, info["losses_after_merge"])
