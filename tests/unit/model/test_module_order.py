"""Every batch runs the same modules in the same order, forward and backward, whatever its samples hold.

Under ZeRO-3 the ranks wait for each other in each module; one that ran another, or none, would leave them hanging.
"""

import pytest

from tests.models import LINES, PAIRS, make_batch, make_bundle, make_dataset, settings, turns
from videollm.grpo.rollout import Questions
from videollm.model.decoding import Decoding
from videollm.model.generate import GenerateOptions
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


def order_of(model, step) -> list[str]:
    """Modules with parameters in the order in which ``step`` reaches them; ``-name`` on the way back."""
    seen, hooks = [], []
    for name, module in model.named_modules():
        own = list(module.parameters(recurse=False))
        if own:
            hooks.append(module.register_forward_pre_hook(lambda *_, name=name: seen.append(name)))
        if any(parameter.requires_grad for parameter in own):
            hooks.append(module.register_full_backward_pre_hook(lambda *_, name=name: seen.append(f"-{name}")))
    step()
    model.zero_grad(set_to_none=True)
    for hook in hooks:
        hook.remove()
    return seen


def assert_one_order(model, given: dict, made=lambda batch: batch) -> None:
    """Of the steps on the batches that are ``made`` of what is given."""
    model.train()
    first, *others = (
        (name, order_of(model, lambda own=own: model(made(own)).loss.backward())) for name, own in given.items()
    )
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


@pytest.mark.filterwarnings("ignore:Full backward hook")
@pytest.mark.parametrize("pair", [p for p in PAIRS if "d2vlm" in p or "internvl" in p], ids="-".join)
def test_all_kinds_of_questions_do_when_they_are_answered_and_learnt_from(pair, tmp_path, monkeypatch):
    """Also several on one visual beside as many on several."""
    for name in ("videollm.grpo.rollout.is_deepspeed_zero3_enabled", "videollm.model.generate.together"):
        monkeypatch.setattr(name, lambda: True)
    monkeypatch.setattr(Decoding, "ended", lambda self: self.length == 3)  # as where another rank goes on
    bundle = make_bundle(*pair)
    own = build_objective({"name": "grpo", "answers": 2, "rewards": {f"{__name__}:length": 1.0}})
    given = settings("internvl", "text", {"output": str(tmp_path)})
    given.generate = GenerateOptions(max_new_tokens=3)
    own.prepare(bundle, given)
    bundle.model.objective = own
    lines = {name: LINES[line] if isinstance(line, str) else line for name, line in KINDS.items()}
    asked = {name: Questions([make_dataset(bundle, [line], answers=False)[0]]) for name, line in lines.items()}
    one, other = (asked[name].items[0] for name in ("two_spans", "asked"))
    asked |= {"one visual": Questions([one, one]), "two visuals": Questions([one, other])}
    assert_one_order(bundle.model, asked, lambda questions: own.made([questions], 0)[0])


def length(answer, record, duration_s):
    return len(answer.text)
