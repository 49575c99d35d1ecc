"""Preference optimization against the published implementation: both of its packings, single and in a batch.

Chosen and rejected stand behind one prompt in a row here; the published code packs them into one sequence with a
special mask (spec D2VLM 4.2), or shares their first token and trains no end (4.3). The numbers are the same.
"""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from d2vlm.fpo import FPO, FPOOptions
from d2vlm.names import NAMES
from tests.golden.d2vlm_model import GoldenReader, golden_bundle
from videollm.batches.dataset import VideoDataset
from videollm.data import parse_record

pytestmark = pytest.mark.golden

RELATIVE, GRADIENT, LEAST_NORM = 1e-4, 1e-3, 1e-5
USUAL = ["fpo_pair", "fpo_mixed", *(f"fpo_single_{k}" for k in range(5))]
NOT_RUNS = ("fpo_annotations", "fpo_packed")


def runs() -> list[str]:
    """The usual runs, skipped by name where the folder lacks them, and whatever others it holds."""
    golden = Path(os.environ.get("GOLDEN_DIR", Path(__file__).resolve().parents[3] / "shared" / "golden"))
    return sorted({*USUAL, *(path.stem for path in (golden / "d2vlm").glob("fpo_*.json"))} - {*NOT_RUNS})


@pytest.fixture(scope="module")
def folder(golden_dir) -> Path:
    return golden_dir / "d2vlm"


@pytest.fixture(scope="module")
def bundle(folder):
    bundle = golden_bundle(folder)
    bundle.model.objective = FPO(FPOOptions())
    return bundle


def read_run(folder: Path, name: str) -> dict:
    """What the published code computed; skips a run that the folder lacks."""
    path = folder / f"{name}.json"
    if not path.is_file():
        pytest.skip(f"{name} is not in this golden folder")
    return json.loads(path.read_text())


def preference_batch(bundle, folder: Path, run: dict) -> dict:
    """The run's samples, each with the one rejected answer that the published code had packed."""
    lines, records = json.loads((folder / "fpo_annotations.json").read_text()), []
    for k, sample in enumerate(run["samples"]):
        line = lines[sample["annotation"]]
        record = parse_record({**line, "id": str(k)}, 1, "golden.json", raw_spans=True)
        classes = [name for name in line["conversations"] if name != "chosen"]
        records.append(replace(record, rejected=(record.rejected[classes.index(sample["cls"])],)))
    reader = GoldenReader(bundle, load_file(folder / "fpo_frames.safetensors"))
    dataset = VideoDataset(records, reader, bundle.encoder(), max_length=4096, rejected="one")
    batch = bundle.collator(rank=True)([dataset[k] for k in range(len(dataset))])
    assert not batch.bad
    return batch


@pytest.mark.parametrize("run", runs())
def test_factors_and_every_loss_equal_the_published_ones(folder, bundle, run):
    info = read_run(folder, run)
    batch, objective = preference_batch(bundle, folder, info), bundle.model.objective
    with torch.no_grad():
        reading = bundle.model.read(batch)
        _, factors = objective.factors(bundle.model, batch, reading)
        sums, _ = objective.sums(bundle.model, batch, reading)
        total = bundle.model(batch).loss.item()
    for pair, wanted in enumerate(info["losses"]["logps"]):
        for which in ("chosen", "reject"):
            sample = (batch.pairs.chosen if which == "chosen" else batch.pairs.rejected)[pair]
            grounding, text = factors[sample].tolist()
            assert grounding == pytest.approx(wanted[which].get("grounding", 0.0), rel=RELATIVE)
            assert text == pytest.approx(wanted[which]["text"], rel=RELATIVE)
            assert grounding + text == pytest.approx(wanted[which]["total"], rel=RELATIVE)
    counts = bundle.model.counts(batch)
    assert counts["fpo"] == len(info["samples"]) and counts["grounding"] == info["losses"]["avg_factor"]
    for term in ("lm", "grounding", "consistency", "fpo"):
        found = (sums[term] / counts[term].clamp(min=1)).item()
        # A log-sigmoid near 0 keeps the absolute error of two sums of log-probabilities.
        assert found == pytest.approx(info["losses"][term], rel=RELATIVE, abs=1e-5 if term == "fpo" else 0), term
    assert total == pytest.approx(info["losses"]["total"], rel=RELATIVE)


@pytest.mark.parametrize("run", runs())
def test_every_gradient_equals_the_published_one(folder, bundle, run):
    info = read_run(folder, run)
    bundle.model.zero_grad(set_to_none=True)
    bundle.model(preference_batch(bundle, folder, info)).loss.backward()
    found = {name: parameter.grad for name, parameter in bundle.model.named_parameters()}
    arrays = load_file(folder / f"{run}.safetensors")
    compared = 0
    for name, wanted in info["grad"].items():
        if wanted is None:  # the tower, which is frozen; its names are not one to one
            continue
        grad = found[NAMES.ours(name)]
        norm = 0.0 if grad is None else grad.norm().item()
        if wanted["norm"] > LEAST_NORM:
            assert norm == pytest.approx(wanted["norm"], rel=GRADIENT), name
            compared += 1
        else:
            assert norm < 10 * LEAST_NORM, name
        if f"grad:{name}" in arrays:
            torch.testing.assert_close(grad, arrays[f"grad:{name}"], rtol=GRADIENT, atol=GRADIENT * wanted["absmax"])
    assert compared > 50
    bundle.model.zero_grad(set_to_none=True)


@pytest.mark.parametrize("run", runs())
def test_the_same_tokens_are_predicted_at_the_same_positions(folder, bundle, run):
    info = read_run(folder, run)
    batch = preference_batch(bundle, folder, info)
    positions = batch.position_ids.flatten()[batch.label_index]
    for pair, (event,) in enumerate(info["conflict_events"]):
        at = [*info["pos_id"][pair], -1]  # index -1 is the last token of the prompt
        for which, samples in (("chosen", batch.pairs.chosen), ("reject", batch.pairs.rejected)):
            mine, text = batch.pairs.label_sample == samples[pair], event[which]["text"]
            assert batch.label_ids[mine].tolist() == text["logit_token_id"]
            assert positions[mine].tolist() == [info["relative_offset"][pair] + at[i] for i in text["input_index"]]
