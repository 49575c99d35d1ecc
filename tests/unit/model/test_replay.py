"""Steps of generation that are recorded once and replayed give the tokens of steps that run.

Here is no GPU, so a tape stands in for a CUDA graph: it keeps the operations, the tensors they were given and those
they made, and plays them on these very tensors. What Python computes is not on it. ``tests/cuda`` has the real one.
"""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.models import NoiseReader, make_batch, make_bundle
from tests.ops import WAITS
from tests.unit.inference.test_rows import EVERY, LONG, SAMPLED, ended_by_a_word, records
from tests.unit.model.test_generate import likely_spans
from videollm.common.config import ConfigError
from videollm.common.replay import Replay
from videollm.inference.answer import answer_records
from videollm.model import generate
from videollm.model.generate import GenerateOptions

RUNS = Counter()


class Tape(TorchDispatchMode):
    """``Tape(step)`` runs it; ``play`` runs what it did once more."""

    def __init__(self, step):
        super().__init__()
        self.operations = []
        RUNS["recorded"] += 1
        with self:
            step()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.name().split(".")[0] not in set(WAITS) - {"aten::lift_fresh"}, f"{func} waits for the device"
        made = func(*args, **kwargs or {})
        if not func.is_view:
            self.operations.append((func, args, kwargs or {}, made))
        return made

    def play(self) -> None:
        RUNS["played"] += 1
        for func, args, kwargs, made in self.operations:
            again = func(*args, **kwargs)
            for old, new in zip(*(x if isinstance(x, tuple | list) else [x] for x in (made, again)), strict=True):
                if isinstance(old, Tensor) and old is not new:
                    old.copy_(new)


@pytest.fixture(autouse=True)
def taped(monkeypatch):
    RUNS.clear()
    monkeypatch.setattr(generate, "recorder", lambda masked, device: lambda step: Tape(step).play)


@pytest.mark.parametrize("options", [LONG, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("pair", EVERY, ids="-".join)
def test_replayed_steps_answer_as_steps_that_run(pair, options, monkeypatch):
    """While questions enter and leave rows, whose prompts and videos get longer."""
    bundle = likely_spans(make_bundle(*pair))
    ended_by_a_word(bundle, options, monkeypatch)
    wanted, found = (
        list(answer_records(bundle, records(), NoiseReader(), how, batch_size=3))
        for how in (options, replace(options, graphs=True))
    )
    assert len(found) == len(wanted) and found == wanted
    assert RUNS["played"] > RUNS["recorded"] > 1


@pytest.mark.parametrize("head", ["d2vlm", "distime"])
def test_drawn_answers_and_their_log_probabilities_are_those_of_steps_that_run(head):
    bundle = likely_spans(make_bundle("internvl", head))
    batch = make_batch(bundle, ["two_spans", "turns"], asked=True)
    options = GenerateOptions(max_new_tokens=10, do_sample=True, draw_spans=True, temperature=1.3)
    one, other = (
        bundle.model.drawn(batch, bundle.tokenizer, bundle.stop_id, how, 3)
        for how in (options, replace(options, graphs=True))
    )
    for a, b in zip(one, other, strict=True):
        assert a.ids == b.ids
        for field in ("seconds", "words_log_prob", "spans_log_prob"):
            # Steps that run draw for span tokens alone, those recorded for all rows: matrices of other sizes.
            torch.testing.assert_close(getattr(a, field), getattr(b, field), rtol=1e-6, atol=1e-5)
    assert RUNS["played"] > RUNS["recorded"]


def test_a_step_is_recorded_the_second_time_that_its_key_is_met():
    total, calls = torch.zeros(()), []

    def step():
        calls.append(1)
        total.add_(1)

    replay = Replay(step, lambda step: Tape(step).play)
    for key in "aabaabb":
        replay(key)
    assert total == 7 and len(calls) == 4
    assert (RUNS["recorded"], RUNS["played"]) == (2, 3)


def test_steps_are_recorded_where_that_can_be(monkeypatch):
    monkeypatch.undo()
    with pytest.raises(ConfigError, match=r"^generate\.graphs: true, but only a GPU records steps"):
        generate.recorder(True, torch.device("cpu"))
    with pytest.raises(ConfigError, match=r"^generate\.graphs: true, but flash attention"):
        generate.recorder(False, torch.device("cuda"))
    monkeypatch.setattr(generate, "together", lambda: True)
    with pytest.raises(ConfigError, match=r"^generate\.graphs: true, but ZeRO-3"):
        generate.recorder(True, torch.device("cuda"))
    monkeypatch.setattr(generate, "together", lambda: False)
    assert generate.recorder(True, torch.device("cuda")) is generate.cuda_graph
