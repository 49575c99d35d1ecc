"""What the measuring scripts compare is the same work, and the arithmetic they print is that of the real modules."""

import argparse
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import d2vlm_step, floor, fpo_ablation, serving, vision_cost
from quickstart.stages import Stage
from videollm.model.connectors import build_connector
from videollm.model.towers import build_tower


@pytest.fixture
def args():
    return argparse.Namespace(layers=7, width=64, vocabulary=64, batch=2, repeats=1, device="cpu", dtype="float32")


def test_one_prefix_and_two_passes_have_the_same_loss_and_gradients(args, monkeypatch):
    monkeypatch.setattr(d2vlm_step, "peak_mib", lambda *_: 0.0)
    found = d2vlm_step.supervised(args)
    assert found["largest difference"] < 1e-4 and "two passes / one prefix, batch 2" in found["ratios"]


def test_one_row_a_pair_and_two_sequences_have_the_same_loss_and_gradients(args, monkeypatch):
    monkeypatch.setattr(d2vlm_step, "peak_mib", lambda *_: 0.0)
    assert d2vlm_step.preference(args)["largest difference"] < 1e-4


def test_a_ratio_is_the_median_of_its_rounds():
    found = d2vlm_step.ratio({"slow": [4.0, 9.0, 2.0], "fast": [2.0, 3.0, 2.0]}, "slow", "fast")
    assert found == {"median": 2.0, "quartiles": [1.5, 2.5]}
    assert d2vlm_step.ratio({"slow": [4.0], "fast": [16.0]}, "slow", "fast", share=1 / 8)["median"] == 2.0


def test_the_counted_flops_are_those_of_the_real_tower_and_compressor():
    with torch.device("meta"):
        tower = build_tower({"type": "instructblip"})
        connector = build_connector({"type": "qformer", "vocab_size": 30523}, 1408, 3072)
        with FlopCounterMode(display=False) as seen, torch.no_grad():
            features = tower(torch.zeros(1, 3, 224, 224))
        words = torch.zeros(1, 20, dtype=torch.int64)
        with FlopCounterMode(display=False) as compressed, torch.no_grad():
            connector(features, words, torch.ones_like(words))
    counted = vision_cost.shares(1)
    assert counted["vision tower"] == pytest.approx(1e-12 * seen.get_total_flops(), rel=0.02)
    assert counted["Q-Former"] / 3 == pytest.approx(1e-12 * compressed.get_total_flops(), rel=0.02)


def test_the_ablation_trains_each_kind_from_the_same_model_and_data(tmp_path):
    args = argparse.Namespace(config=tmp_path / "c.yaml", overrides=["train.steps=5"])
    commands = {
        kind: fpo_ablation.train_stage(args, tmp_path / "q", tmp_path / "out" / kind, kind, seed=1).command
        for kind in fpo_ablation.KINDS
    }
    differ = ("train.objective", "train.output=", "train.parts.", "train.lr=")
    rest = {tuple(part for part in command if not part.startswith(differ)) for command in commands.values()}
    assert len(rest) == 1 and f"model.checkpoint={tmp_path}/q/d2vlm/final" in next(iter(rest))
    assert {"train.objective.grounding_weight=0", "train.objective.text_weight=1"} <= set(commands["text"])


def test_the_ablation_runs_its_commands(tmp_path):
    logs = [tmp_path / f"{name}.txt" for name in "ab"]
    fpo_ablation.run_all([Stage(f"train {log.stem}", [sys.executable, "-c", "print(41 + 1)"], log) for log in logs], 1)
    assert all("42" in log.read_text().splitlines() for log in logs)


def test_the_ablation_table_has_means_and_spreads(capsys):
    runs = [dict.fromkeys(fpo_ablation.METRICS, value) for value in (0.5, 0.7)]
    fpo_ablation.tell({"before": runs[:1], "both": runs})
    out = capsys.readouterr().out
    assert "| before | 0.500 ± 0.000" in out and "| both | 0.600 ± 0.141" in out


def test_the_floor_of_a_step_has_all_its_products():
    """Of a layer and of attention, forward and backward."""
    layer = torch.nn.Linear(16, 16)

    def step() -> None:
        x = layer(torch.randn(2, 4, 6, 16, requires_grad=True))
        torch.nn.functional.scaled_dot_product_attention(x, x, x, is_causal=True).sum().backward()

    with FlopCounterMode(display=False) as counted:
        step()
    found = floor.products_of(step)
    linear = 3 * 2 * 48 * 16 * 16
    attention = 7 * 2 * 8 * 6 * 16 * 6
    assert linear == counted.get_total_flops()  # which knows the layer, and no attention on a CPU
    assert floor.operations(found) == linear + attention
    floor.bare(found, "cpu")()  # the operands fit each other


def test_rows_and_batches_answer_the_same_questions_at_their_lengths(args, monkeypatch):
    monkeypatch.setattr(serving, "LONG", 12)
    args.rows, args.answers = 2, 2
    bundle = serving.small_model(args)
    assert serving.steps_of([5, 2, 4, 3], 2) == {"batched": 9, "steady": 8, "least": 7}
    assert serving.most([5, 2, 4, 3], 2, {"batched": [20.0], "prompts": [2.0]}) == 20 / (2 + 18 * 7 / 9)
    found = serving.mixed(args, bundle)
    assert set(found) == {"even", "short"}
    for told in found.values():
        assert told["waits"]["steady"].keys() == {"first", "whole"} and all(v > 0 for v in told["tokens/s"].values())
    assert set(serving.several(args, bundle)["ms"]) == {"prompt", "prompts", "apart", "shared"}
