"""A checkpoint is asked as it was trained to be; the command line wins; the meta file says where each value is from.

Sampled answers are those of seed and question, whatever batch, rank or run draws them.
"""

import json
import os

import pytest
import torch
import yaml

from tests.models import clip_lines, clips, make_bundle, turns, write_config, write_lines
from tests.ranks import forked
from videollm import ask as asking
from videollm import infer, train
from videollm.checkpoint import load, read_config
from videollm.common.config import ConfigError, to_dict
from videollm.inference.options import own_precision, read_options
from videollm.inference.output import read_lines
from videollm.inference.session import Session
from videollm.model.generate import GenerateOptions, Rows
from videollm.training.assemble import read_settings

CPU, GPU = torch.device("cpu"), torch.device("cuda")
TRAINED = {"max_new_tokens": 5, "repetition_penalty": 1.3, "encode_spans": False}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The final model of a run in bf16 that says how answers are made."""
    config = write_config(tmp_path_factory.mktemp("trained"), "distime", steps=1, precision="bf16")
    values = yaml.safe_load(config.read_text()) | {"generate": TRAINED}
    config.write_text(yaml.safe_dump(values))
    assert train.main(["--config", str(config)]) == 0
    return config.parent / "run/final"


@pytest.fixture(scope="module")
def before(tmp_path_factory):
    """A checkpoint as older versions wrote it, which says nothing of it."""
    folder = tmp_path_factory.mktemp("before")
    make_bundle("internvl", "distime").save(folder)
    fields = json.loads((folder / "config.json").read_text())
    del fields["generate"], fields["precision"]
    (folder / "config.json").write_text(json.dumps(fields))
    return folder


def asked(model, annotations, output, *more) -> int:
    words = ["--model", model, "--annotations", annotations, "--videos", clips(), "--output", output, "--device", "cpu"]
    return infer.main([*map(str, words), *map(str, more)])


def meta_of(output) -> dict:
    return json.loads(output.with_name(output.name + ".meta.json").read_text())


# ---- what a checkpoint knows -----------------------------------------------------------------------------------------


def test_answers_are_made_as_in_training_unless_the_command_line_says_otherwise(trained, tmp_path):
    annotations = write_lines(tmp_path / "q.jsonl", clip_lines(1))
    assert asked(trained, annotations, tmp_path / "own.jsonl") == 0
    assert (
        asked(trained, annotations, tmp_path / "other.jsonl", "generate.max_new_tokens=3", "sampler.num_frames=2") == 0
    )
    own, other = (meta_of(tmp_path / name) for name in ("own.jsonl", "other.jsonl"))
    assert own["decoding"].items() >= TRAINED.items() and own["decoding"]["precision"] == "fp32"
    assert other["decoding"].items() >= (TRAINED | {"max_new_tokens": 3}).items()
    for key in ("generate.repetition_penalty", "sampler.rule", "sampler.num_frames", "generate.max_new_tokens"):
        assert own["sources"][key] == "checkpoint"
    assert other["sources"]["generate.repetition_penalty"] == "checkpoint"
    assert {other["sources"][key] for key in ("generate.max_new_tokens", "sampler.num_frames")} == {"command line"}


def test_one_question_is_asked_so_too(trained, monkeypatch, capsys):
    found = []

    def watched(model, number, options, *rest):
        found.append(options)
        return Rows(model, number, options, *rest)

    monkeypatch.setattr("videollm.inference.rows.Rows", watched)
    words = ["--model", str(trained), "--video", str(clips() / "clip0.mp4"), "--question", "when?", "--device", "cpu"]
    assert asking.main(words) == 0 and asking.main([*words, "generate.max_new_tokens=2"]) == 0
    Session(load(trained)).ask(clips() / "clip0.mp4", "when?")
    assert [to_dict(options) for options in found] == [
        to_dict(GenerateOptions(**TRAINED | more)) for more in ({}, {"max_new_tokens": 2}, {})
    ]


def test_a_model_computes_on_a_gpu_in_what_it_was_trained_in(trained, before):
    for device, given, precision, source in (
        (GPU, None, "bf16", "checkpoint"),
        (GPU, "fp32", "fp32", "command line"),
        (CPU, None, "fp32", "default"),
        (CPU, "bf16", "bf16", "command line"),
    ):
        options = read_options([], read_config(trained), device, given)
        assert (options.precision, options.sources["precision"]) == (precision, source)
    assert own_precision(read_config(before), GPU) == "fp32"


def test_steps_are_recorded_only_on_a_gpu_whatever_the_training_did(trained):
    config = read_config(trained)
    config.generate |= {"graphs": True}
    assert read_options([], config, GPU).generate.graphs and not read_options([], config, CPU).generate.graphs
    with pytest.raises(ConfigError, match=r"^generate\.graphs: true, but only a GPU records steps; set it to false"):
        read_options(["generate.graphs=true"], config, CPU)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU records steps")
def test_a_training_that_could_record_no_step_does_not_begin(tmp_path, capsys):
    run = write_config(tmp_path, "distime", steps=1)
    assert train.main(["--config", str(run), "generate.graphs=true"]) == 2
    assert "generate.graphs: true, but only a GPU" in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_a_checkpoint_of_before_is_asked_as_before(before):
    config = read_config(before)
    options = read_options([], config, GPU)
    assert options.generate == GenerateOptions(max_new_tokens=512) and options.precision == "fp32"
    assert set(options.sources.values()) == {"default", "checkpoint"}
    assert not [key for key, source in options.sources.items() if "generate" in key and source != "default"]


def test_an_option_that_is_none_any_more_is_passed_over(trained):
    config = read_config(trained)
    config.generate |= {"beams": 4}
    assert to_dict(read_options([], config, CPU).generate).items() >= TRAINED.items()


def test_a_training_that_goes_on_from_a_checkpoint_keeps_how_it_is_asked(trained):
    values = {"model": {"checkpoint": str(trained)}, "data": {}}
    assert to_dict(read_settings(values).generate).items() >= TRAINED.items()
    own = read_settings(values | {"generate": {"max_new_tokens": 9}}).generate
    assert (own.max_new_tokens, own.repetition_penalty) == (9, 1.3)


def test_answers_that_no_context_holds_are_refused_before_a_model_is_trained_for_them(tmp_path, capsys):
    config = write_config(tmp_path, "text")
    assert train.main(["--config", str(config), "generate.max_new_tokens=1024"]) == 2
    assert "generate.max_new_tokens: 1024 leave no room" in capsys.readouterr().err


# ---- an output that is gone on with ----------------------------------------------------------------------------------


def test_an_output_goes_on_though_options_have_come_or_gone_since(trained, tmp_path, capsys):
    annotations, output = write_lines(tmp_path / "q.jsonl", clip_lines(2)), tmp_path / "o.jsonl"
    assert asked(trained, annotations, output) == 0
    text, meta = output.read_text(), meta_of(output)
    for name in ("precision", "head", "top_p"):
        del meta["decoding"][name]
    meta["decoding"]["beams"], meta["sampler"]["loop"] = 4, True
    output.with_name("o.jsonl.meta.json").write_text(json.dumps(meta))
    assert asked(trained, annotations, output) == 0
    assert output.read_text() == text and meta_of(output)["decoding"] == meta["decoding"]
    capsys.readouterr()
    assert asked(trained, annotations, output, "generate.top_p=0.5", "--precision", "bf16") == 2
    said = capsys.readouterr().err
    assert "another decoding (top_p: 1.0, now 0.5, precision: fp32, now bf16); give what it was made with" in said


# ---- sampled answers -------------------------------------------------------------------------------------------------


def in_ranks(count: int, *words) -> None:
    """The command as ``count`` processes."""
    pids = forked(count, lambda _rank: asked(*words))
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * count


def test_sampled_answers_are_the_same_in_any_batch_run_and_rank(before, tmp_path):
    said = ("when is it?", "and where?", "what is it?", "who is there, and why?")
    lines = [
        {"id": f"q{k}-{i}", "video": f"clip{i}.mp4", "conversations": turns(f"<video>\n{said[k]}")}
        for k in range(4)
        for i in range(3)
    ]
    annotations = write_lines(tmp_path / "q.jsonl", lines)
    how = ("generate.do_sample=true", "generate.max_new_tokens=6", "--workers", 0)
    whole, batched, broken, ranks = (tmp_path / f"{name}.jsonl" for name in ("whole", "batched", "broken", "ranks"))
    assert asked(before, annotations, whole, "--batch-size", 1, *how) == 0
    assert asked(before, annotations, batched, "--batch-size", 4, *how) == 0
    assert asked(before, annotations, broken, "--batch-size", 3, *how) == 0
    broken.write_text("".join(broken.read_text().splitlines(keepends=True)[::3]))
    assert asked(before, annotations, broken, "--batch-size", 5, *how) == 0
    in_ranks(2, before, annotations, ranks, "--batch-size", 2, *how)
    texts = [
        [json.loads(line)["raw_text"] for line in path.read_text().splitlines()]
        for path in (whole, batched, broken, ranks)
    ]
    assert texts[0] == texts[1] == texts[2] == texts[3] and len(set(texts[0])) == len(lines)
    assert asked(before, annotations, tmp_path / "s.jsonl", "generate.seed=1", *how) == 0
    others = [json.loads(line)["raw_text"] for line in (tmp_path / "s.jsonl").read_text().splitlines()]
    assert not set(others) & set(texts[0])


def test_an_answer_out_of_time_is_one_that_is_kept_and_counted(before, tmp_path, capsys):
    annotations, output = write_lines(tmp_path / "a.jsonl", clip_lines(3)), tmp_path / "o.jsonl"
    assert asked(before, annotations, output, "generate.time_limit_s=1e-9") == 0
    meta, lines = meta_of(output), read_lines(output)
    assert meta["finish_reasons"] == {"time": 3} == {lines[0].finish_reason: len(lines)}
    assert meta["counts"] == {"questions": 3, "answered": 3, "errors": 0} and all(line.raw_text for line in lines)
    whole = output.read_bytes()
    output.write_bytes(b"".join(whole.splitlines(keepends=True)[1:]))
    assert asked(before, annotations, output, "generate.time_limit_s=1e-9") == 0 and output.read_bytes() == whole
    assert asked(before, annotations, output) == 2
    assert "decoding (time_limit_s: 1e-09, now None)" in capsys.readouterr().err
    for wrong in ("0", "-1", ".inf", ".nan", "soon"):
        assert asked(before, annotations, tmp_path / "other.jsonl", f"generate.time_limit_s={wrong}") == 2
        (said,) = capsys.readouterr().err.splitlines()
        assert "generate.time_limit_s: " in said
    assert not list(tmp_path.glob("other*"))


def test_a_tower_is_compiled_only_where_there_is_a_compiler(trained, tmp_path, monkeypatch, capsys):
    config = read_config(trained)
    config.generate |= {"compile_tower": True}
    assert not read_options([], config, CPU).generate.compile_tower  # off on a CPU, whatever the training did
    assert read_options(["generate.compile_tower=true"], config, CPU).generate.compile_tower
    own = [line | {"generate": {"compile_tower": True}} for line in clip_lines(1)]
    assert asked(trained, write_lines(tmp_path / "q.jsonl", own), tmp_path / "o.jsonl") == 2
    assert "q.jsonl:1: generate.compile_tower: of a run, not of one record" in capsys.readouterr().err
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ConfigError, match=r"^generate\.compile_tower: true, but no-such-compiler is missing"):
        read_options(["generate.compile_tower=true"], config, CPU)
    run = write_config(tmp_path, "distime", steps=1)
    assert train.main(["--config", str(run), "generate.compile_tower=true"]) == 2
    assert "no-such-compiler" in capsys.readouterr().err and not (tmp_path / "run").exists()
