"""Every batch runs the same modules in the same order, forward and backward, whatever its samples hold.

Under ZeRO-3 the ranks wait for each other in each module; one that ran another, or none, would leave them hanging.
"""

import pytest

from tests.models import LINES, PAIRS, make_batch, make_bundle, make_dataset, turns
from videollm.model.objective import build_objective

KINDS = {name: name for name in LINES} | {
    "unreadable": {"video": "broken.mp4", "conversations": turns("<video>\nwhen?", "now")},
    "late video": {
        "video": "a.mp4", "duration": 4, "tgt": [1, 3, 0, 2],
        "conversations": turns("hi, when?", "in <span>", "<video>\nand this?", "<span>"),
    },
}  # fmt: skip
WORSE = [{"factor": "wording", "value": "It never happens."}]


@pytest.fixture(autouse=True)
def zero3(monkeypatch):
    """As under ZeRO-3; elsewhere a batch may leave out what it does not need."""
    monkeypatch.setattr("videollm.model.videollm.is_deepspeed_zero3_enabled", lambda: True)


def order_of(model, batch: dict) -> list[str]:
    """Modules with parameters in the order in which a training step reaches them; ``-name`` on the way back."""
    seen, hooks = [], []
    for name, module in model.named_modules():
        own = list(module.parameters(recurse=False))
        if own:
            hooks.append(module.register_forward_pre_hook(lambda *_, name=name: seen.append(name)))
        if any(parameter.requires_grad for parameter in own):
            hooks.append(module.register_full_backward_pre_hook(lambda *_, name=name: seen.append(f"-{name}")))
    model(batch).loss.backward()
    model.zero_grad(set_to_none=True)
    for hook in hooks:
        hook.remove()
    return seen


def assert_one_order(model, batches: dict) -> None:
    model.train()
    first, *others = ((name, order_of(model, batch)) for name, batch in batches.items())
    assert len(first[1]) > 50
    for name, order in others:
        assert order == first[1], f"{name} and {first[0]}"


@pytest.mark.filterwarnings("ignore:Full backward hook", "ignore:`gradient_checkpointing_enable`")
@pytest.mark.parametrize("checkpointing", [False, True], ids=["cached", "checkpointed"])
@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_all_kinds_of_batches_run_the_same_modules_in_the_same_order(pair, checkpointing):
    bundle = make_bundle(*pair)
    if checkpointing:
        bundle.model.gradient_checkpointing_enable({"use_reentrant": False})
    assert_one_order(bundle.model, {name: make_batch(bundle, [line]) for name, line in KINDS.items()})


@pytest.mark.filterwarnings("ignore:Full backward hook")
@pytest.mark.parametrize("head", ["d2vlm", "distime"])
def test_all_kinds_of_preference_pairs_do_too(head):
    bundle = make_bundle("internvl", head)
    bundle.model.objective = build_objective({"name": "d2vlm.fpo", "rejected": "all"})
    batches = {}
    for name, line in KINDS.items():
        line = (LINES[line] if isinstance(line, str) else line) | {"rejected": WORSE}
        dataset = make_dataset(bundle, [line], rejected="all")
        batches[name] = bundle.collator(rank=True)([dataset[0]])
    assert_one_order(bundle.model, batches)
