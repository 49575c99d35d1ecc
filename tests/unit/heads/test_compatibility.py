"""``compatibility``: by default what is correct, ``published`` what the released systems do, flag by flag."""

import json

import pytest
import torch

from tests.models import (
    HEADS,
    NATIVE,
    clip_lines,
    clips,
    make_batch,
    make_bundle,
    model_settings,
    preprocess_of,
    turns,
    write_config,
    write_lines,
)
from videollm.checkpoint import load, read_config
from videollm.common.config import ConfigError
from videollm.heads import FrameBatch, build_head
from videollm.infer import main as infer
from videollm.inference.options import read_options
from videollm.model.generate import GenerateOptions
from videollm.train import main as run_train
from videollm.training.assemble import assemble, read_settings

RUN = {"model": {"head": {"name": "distime"}}, "data": {"sampler": {"rule": "segments", "pick": "random"}}}
FLAGS = {  # the table of docs/distime.md: flag -> (default, published)
    "model.head.gaussians_bf16": (False, True),
    "model.head.expectation_bf16": (False, True),
    "model.head.target_clamp": ("video", "last_second"),
    "model.head.order_for_diou": (True, False),
    "model.head.dfl_average": ("published", "published"),
    "data.unseen_id": (None, 0),
    "data.raw_spans": (False, True),
    "data.sampler.spare_last": (False, True),
    "generate.encode_spans": (True, False),
}


def flags_of(values):
    settings = read_settings(values)
    own = dict(settings.model.head)
    head = build_head(own, 8).options
    found = {}
    for name in FLAGS:
        *parents, last = name.split(".")
        node = head if parents == ["model", "head"] else settings
        for parent in () if node is head else parents:
            node = getattr(node, parent)
        found[name] = getattr(node, last)
    return found


@pytest.mark.parametrize("name, column", [(None, 0), ("default", 0), ("published", 1)])
def test_every_flag_has_its_default_and_its_published_value(name, column):
    values = RUN | ({"compatibility": name} if name else {})
    assert flags_of(values) == {flag: pair[column] for flag, pair in FLAGS.items()}


def test_a_value_of_ones_own_stands_over_the_preset():
    values = {**RUN, "model": {"head": {"name": "distime", "gaussians_bf16": False}}}
    values["data"] = RUN["data"] | {"raw_spans": False}
    found = flags_of(values | {"compatibility": "published"})
    assert found["data.raw_spans"] is found["model.head.gaussians_bf16"] is False
    assert found["data.unseen_id"] == 0 and found["model.head.expectation_bf16"] is True


def test_the_page_lists_every_flag_with_both_values(repository):
    page = (repository / "docs/distime.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| ")]
    for flag, (default, published) in FLAGS.items():
        (row,) = [row for row in rows if f"`{flag}`" in row]
        cells = [cell.strip().strip("`") for cell in row.split("|")]
        assert [json.dumps(default).strip('"'), json.dumps(published).strip('"')] == cells[4:6], flag


@pytest.mark.parametrize("values, says", [
    ({"compatibility": "publishd"}, "'publishd' is unknown; did you mean published"),
    ({"compatibility": "published", "model": {"head": {"name": "text"}}}, "nothing about the text head"),
])  # fmt: skip
def test_a_preset_that_is_not_there_is_refused(values, says):
    with pytest.raises(ConfigError, match=says):
        read_settings(RUN | values)


@pytest.mark.parametrize("backbone", NATIVE)
def test_a_native_backbone_has_the_released_times(backbone, tmp_path):
    """Given with parts, with a checkpoint, and at asking; a sampler's own value stands over it."""
    parts = {"model": model_settings(backbone, "text"), "data": {"preprocess": preprocess_of(backbone)}}
    told = {"compatibility": "published"}
    for given, even in (({}, False), (told, True)):
        sampler = {"rule": "fps", "fps": 2.0}
        bundle = assemble(read_settings({**parts, "data": {**parts["data"], "sampler": sampler}, **given}))
        assert bundle.model.patching.even is bundle.reader("x").sampler.even_times is even
    make_bundle(backbone, "text").save(tmp_path)
    again = {"model": {"checkpoint": str(tmp_path)}, "data": {}}
    for given, even in ((again, False), (again | told, True)):
        bundle = assemble(read_settings(given))
        assert bundle.model.patching.even is bundle.reader("x").sampler.even_times is even
    own = read_settings({**again, **told, "data": {"sampler": {"even_times": False}}})
    assert own.data.sampler.even_times is False
    config = read_config(tmp_path)
    for words, even in (([], False), (["compatibility=published"], True)):
        options = read_options(words, config, torch.device("cpu"))
        assert options.sampler.even_times is load(tmp_path, head=options.head).model.patching.even is even
    assert options.sources["sampler.even_times"] == "compatibility"
    told = read_options(["compatibility=published", "sampler.even_times=false"], config, torch.device("cpu"))
    assert told.sampler.even_times is False


# ---- what the flags do -----------------------------------------------------------------------------------------------


def test_expected_times_lie_on_the_bf16_grid_as_published():
    torch.manual_seed(0)
    frames = FrameBatch(torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.bool), torch.tensor([150.0]))
    queries, owner = torch.randn(64, 8), torch.zeros(64, dtype=torch.long)
    raw = {}
    for name in ("default", "published"):
        torch.manual_seed(1)
        head = build_head({"name": "distime", "compatibility": name}, 8)
        head.reset_parameters()
        prediction = head.predict(queries, owner, frames)
        raw[name] = prediction.raw
        assert ((prediction.seconds >= 0) & (prediction.seconds <= 150)).all()
        assert (prediction.seconds[:, 0] <= prediction.seconds[:, 1]).all()
    on_grid = raw["published"] == raw["published"].bfloat16().float()
    assert on_grid.all() and not (raw["default"] == raw["default"].bfloat16().float()).all()
    torch.testing.assert_close(raw["published"], raw["default"], atol=1 / 8, rtol=0)


def test_losses_with_the_bf16_grid_have_gradients_and_stay_near():
    bundle = make_bundle("internvl", "distime")
    batch = make_batch(bundle, ["two_spans", "turns"])
    exact = bundle.model(batch).terms
    bundle.model.head.options.expectation_bf16 = True
    output = bundle.model(batch)
    output.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in bundle.model.head.time_gen.parameters())
    for name, value in output.terms.items():
        torch.testing.assert_close(value, exact[name], rtol=0.05, atol=0.05)


ASKED = {  # a question about a given span, behind an answered one
    "video": "c.mp4", "duration": 5, "src": [1, 2, 3, 4], "tgt": [0, 1, 2, 3],
    "conversations": turns("<video>\nbefore <span>?", "at <span>", "and before <span>?", "at <span>"),
}  # fmt: skip


@pytest.mark.parametrize("head", ["distime", "d2vlm"])
def test_given_times_of_question_and_history_are_seen_and_as_published_not(head):
    bundle = make_bundle("internvl", head)
    stop, model = bundle.tokenizer.convert_tokens_to_ids("<|im_end|>"), bundle.model

    def first_logits(given, **options):
        line = {**ASKED, **given}
        batch = make_batch(bundle, [line], asked=True)
        seen = []
        hook = model.get_output_embeddings().register_forward_hook(lambda _m, _i, out: seen.append(out[0]))
        model.generate_ids(batch, 0, stop, GenerateOptions(max_new_tokens=1, **options))
        hook.remove()
        return seen[0]

    base = first_logits({})
    assert first_logits({"tgt": [0, 1, 0, 5]}).equal(base)  # the last answer's times are not shown
    for given in ({"src": [4, 5, 3, 4]}, {"src": [1, 2, 0, 4]}, {"tgt": [2, 5, 2, 3]}):
        assert not torch.allclose(first_logits(given), base, atol=1e-5), given
        assert first_logits(given, encode_spans=False).equal(first_logits({}, encode_spans=False))


def test_given_times_are_encoded_as_in_training():
    """The embeddings of the prompt are those of the same places in a training batch."""
    bundle = make_bundle("internvl", "distime")
    seen = []
    encode = bundle.model.head._encode
    bundle.model.head._encode = lambda bins: seen.append(bins) or encode(bins)
    with torch.no_grad():
        bundle.model(make_batch(bundle, [ASKED]))
        bundle.model.generate_ids(make_batch(bundle, [ASKED], asked=True), 0, 1, GenerateOptions(max_new_tokens=1))
    trained, asked = seen[0], seen[1]
    torch.testing.assert_close(trained[:-1], asked)  # all but the stamp of the last answer, which is to be found


def test_a_checkpoint_keeps_its_time_head_when_training_goes_on(tmp_path):
    """The published script starts it anew each time."""
    config = write_config(tmp_path, "distime")
    assert run_train(config_args(config, "train.steps=1")) == 0
    again = read_settings({
        "model": {"checkpoint": str(tmp_path / "run/final")},
        "data": {"train": [write_lines(tmp_path / "x.jsonl", clip_lines())], "videos": str(clips())},
    })  # fmt: skip
    first, second = load(tmp_path / "run/final").model.head, assemble(again).model.head
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def config_args(path, *overrides):
    return ["--config", str(path), *overrides]


# ---- commands --------------------------------------------------------------------------------------------------------


def test_training_and_inference_take_the_preset_from_the_command_line(tmp_path, capsys):
    config = write_config(tmp_path, "distime", model={"head": HEADS["distime"]})
    assert run_train(config_args(config, "train.steps=1", "compatibility=published")) == 0
    final = tmp_path / "run/final"
    assert "raw_spans: true" in (tmp_path / "run/config.yaml").read_text()
    assert load(final).config.head["compatibility"] == "published"
    told = ["compatibility=published", "sampler.num_frames=3"]
    options = read_options(told, read_config(final), torch.device("cpu"))
    assert options.generate.encode_spans is False and options.head == {"compatibility": "published"}
    assert options.raw_spans and options.sampler.num_frames == 3
    assert options.sources["generate.encode_spans"] == "compatibility"
    asked = write_lines(tmp_path / "q.jsonl", clip_lines(1))
    arguments = ["--model", str(final), "--annotations", asked, "--videos", str(clips()), "--output"]
    published = ["compatibility=published", "generate.max_new_tokens=3", "--precision", "bf16"]
    assert infer([*arguments, str(tmp_path / "a.jsonl"), *published]) == 0
    (line,) = map(json.loads, (tmp_path / "a.jsonl").read_text().splitlines())
    assert line["error"] is None
    assert json.loads((tmp_path / "a.jsonl.meta.json").read_text())["decoding"]["encode_spans"] is False
    capsys.readouterr()
    assert infer([*arguments, str(tmp_path / "b.jsonl"), "compatibility=none"]) == 2
    assert "compatibility: 'none' is unknown; known values: default, published" in capsys.readouterr().err


@pytest.mark.parametrize("duration", [{}, {"duration": 3}])
def test_published_inference_answers_about_a_time_behind_the_end(tmp_path, capsys, duration):
    """As published: the last frame; by default the question is refused by name."""
    make_bundle("internvl", "d2vlm").save(tmp_path / "model")
    line = {"id": "q", "video": clip_lines(1)[0]["video"], "src": [40], **duration}
    asked = write_lines(tmp_path / "q.jsonl", [line | {"conversations": turns("<image>\nWhat is at <evi>?")}])
    arguments = ["--model", str(tmp_path / "model"), "--annotations", asked, "--videos", str(clips())]
    arguments += ["generate.max_new_tokens=3", "--output"]
    assert infer([*arguments, str(tmp_path / "a.jsonl")]) == 2
    assert "[40, 40] lies outside" in capsys.readouterr().err
    assert infer([*arguments, str(tmp_path / "b.jsonl"), "compatibility=published"]) == 0
    assert json.loads((tmp_path / "b.jsonl").read_text())["error"] is None


WRONG = {
    "d2vlm": {"alpah": 2, "alpha": 1.0, "keep_ratio": 0, "run_edges": "x"},
    "distime": {"reg_mx": 16, "reg_max": 0, "sigma": 0, "frame_time": "x"},
    "text": {"units": "seconds", "unit": "minutes"},
}


@pytest.mark.parametrize("head, key", [(head, key) for head, options in WRONG.items() for key in options])
def test_wrong_options_name_their_key(head, key):
    with pytest.raises(ConfigError, match=rf"^model\.head\.{key}"):
        build_head({"name": head, key: WRONG[head][key]}, 8)
