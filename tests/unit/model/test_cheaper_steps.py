"""What makes a step cheaper leaves its numbers: checkpointing, bf16, attention kernels, stored features, batches."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from tests.models import (
    PAIRS,
    clip_lines,
    clips,
    gradients,
    make_batch,
    make_bundle,
    read_log,
    turns,
    write_config,
    write_lines,
)
from videollm.model.generate import GenerateOptions
from videollm.train import main

MIXED = ["two_spans", "image", "turns", "text", "asked", "no_spans"]
HEADS = [pair for pair in PAIRS if pair[0] == "internvl" and pair[1] != "text"]


def step_of(bundle, names=MIXED):
    """Terms and gradients of one training step without dropout."""
    output = bundle.model(make_batch(bundle, names))
    output.loss.backward()
    return output.terms, {n: g.clone() for n, g in gradients(bundle.model).items() if g is not None}


def distance(one, other):
    """Relative distance of two sets of gradients."""
    assert one.keys() == other.keys()
    return (
        sum((one[n].float() - other[n].float()).square().sum() for n in one).sqrt()
        / sum(g.float().square().sum() for g in one.values()).sqrt()
    )


@pytest.mark.parametrize("pair", HEADS, ids="-".join)
def test_gradient_checkpointing_gives_the_same_step(pair):
    bundle = make_bundle(*pair)
    bundle.model.train()
    terms, grads = step_of(bundle)
    bundle.model.gradient_checkpointing_enable({"use_reentrant": False})
    again, regrads = step_of(bundle)
    assert {n: v.item() for n, v in again.items()} == {n: pytest.approx(v.item(), rel=1e-5) for n, v in terms.items()}
    assert distance(grads, regrads) < 1e-5


@pytest.mark.parametrize("pair", HEADS, ids="-".join)
def test_sdpa_and_eager_attention_give_the_same_step(pair):
    (terms, grads), (again, regrads) = (step_of(make_bundle(*pair, attention=kind)) for kind in ("sdpa", "eager"))
    assert {n: v.item() for n, v in again.items()} == {n: pytest.approx(v.item(), rel=1e-4) for n, v in terms.items()}
    assert distance(grads, regrads) < 1e-4


@pytest.mark.parametrize("kind", ["weights", "autocast"])
@pytest.mark.parametrize("pair", HEADS, ids="-".join)
def test_bf16_is_fp32_within_its_precision(pair, kind):
    """bf16 tells numbers apart by 2^-8; some layers add that up to a few percent."""
    terms, grads = step_of(make_bundle(*pair))
    bundle = make_bundle(*pair)
    if kind == "weights":
        bundle.model.to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=kind == "autocast"):
        again, regrads = step_of(bundle)
    assert {n: v.item() for n, v in again.items()} == {
        n: pytest.approx(v.item(), rel=0.05, abs=0.03) for n, v in terms.items()
    }
    assert distance(grads, regrads) < 0.2


def test_logits_are_made_for_the_last_place_of_a_prompt_only():
    bundle, shapes = make_bundle("internvl", "distime"), []
    bundle.model.get_output_embeddings().register_forward_hook(
        lambda _m, _i, out: shapes.append(out.shape[:-1].numel())
    )
    batch = make_batch(bundle, MIXED, asked=True)
    bundle.model.generate_ids(batch, 0, 1, GenerateOptions(max_new_tokens=3))
    assert shapes == [len(MIXED)] * 3


def test_no_loop_over_samples_runs_a_layer_more_often_for_more_of_them():
    bundle, calls = make_bundle("internvl", "distime"), []
    layer = bundle.model.decoder.layers[0]
    layer.register_forward_hook(lambda *_: calls.append(1))
    for names in (["two_spans"], MIXED):
        bundle.model(make_batch(bundle, names))
    assert len(calls) == 2


# ---- runs ------------------------------------------------------------------------------------------------------------


def train(config, *overrides):
    assert main(["--config", str(config), *overrides]) == 0


@pytest.fixture
def mixed(tmp_path):
    """A list of data sets whose batches hold videos, an image and text."""
    Image.fromarray(np.full((40, 80, 3), 90, np.uint8)).save(tmp_path / "x.png")
    lines = [{"image": "x.png", "conversations": turns("what?", "grey")}, {"conversations": turns("hi", "hello")}]
    sets = {
        "film": {"root": str(clips()), "annotation": write_lines(tmp_path / "film.jsonl", clip_lines()), "length": 4},
        "rest": {"root": str(tmp_path), "annotation": write_lines(tmp_path / "rest.jsonl", lines), "repeat_time": 2},
    }
    (tmp_path / "meta.json").write_text(json.dumps(sets), encoding="utf-8")
    return tmp_path


def test_stored_features_train_a_mixture_as_the_videos_do(mixed, capsys):
    losses, said = [], []
    for name, features in (("a", "null"), ("b", str(mixed / "features")), ("c", str(mixed / "features"))):
        config = write_config(mixed / name, "distime", batch_size=4, validate_every=2)
        train(config, f"data.train=[{mixed / 'meta.json'}]", f"data.features={features}", "data.max_tiles=2")
        losses.append([e["loss"] for e in read_log(mixed / name / "run")])
        said.append(capsys.readouterr().out)
    assert losses[1] == pytest.approx(losses[0], rel=1e-5) == losses[2]
    assert "features of 4 videos" in said[1] and "hit rate 0%" in said[1] and "hit rate 100%" in said[2]
    assert json.loads((mixed / "a/run/final/config.json").read_text())["max_tiles"] == 2


def test_data_augment_and_stored_features_are_refused_by_name(mixed, capsys):
    sets = json.loads((mixed / "meta.json").read_text())
    sets["film"]["data_augment"] = True
    (mixed / "meta.json").write_text(json.dumps(sets), encoding="utf-8")
    config = write_config(mixed / "run", "distime")
    features = [f"data.train=[{mixed / 'meta.json'}]", f"data.features={mixed / 'features'}"]
    assert main(["--config", str(config), *features]) == 2
    said = capsys.readouterr().err
    assert "data.features" in said and "data_augment" in said and "film.jsonl:1" in said


def test_batches_grouped_by_length_pad_less_and_resume_in_the_same_order(tmp_path):
    lines = [{**line, "id": f"q{i}", "conversations": turns("<video>\nwhen?" + " really?" * i, "<span>")}
             for i, line in enumerate(clip_lines(12))]  # fmt: skip
    options = {"steps": 6, "batch_size": 3, "save_every": 2, "keep": 5}  # four steps are a pass
    padding, losses = {}, {}
    for grouped in (False, True):
        config = write_config(tmp_path / str(grouped), "distime", lines=lines, group_by_length=grouped, **options)
        train(config)
        log = read_log(tmp_path / str(grouped) / "run")
        padding[grouped], losses[grouped] = sum(e["padding_share"] for e in log), [e["loss"] for e in log]
    assert 0 < padding[True] < padding[False]
    for gone in ("final", "checkpoint-4", "checkpoint-6"):
        shutil.rmtree(tmp_path / "True/run" / gone, ignore_errors=True)
    train(config, "train.resume=true")
    again = {e["step"]: e["loss"] for e in read_log(tmp_path / "True/run")}
    assert (tmp_path / "True/run/checkpoint-4").is_dir()  # the resumed run came past it
    assert [again[step] for step in range(1, 7)] == pytest.approx(losses[True], rel=1e-6)
