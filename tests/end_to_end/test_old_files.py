"""Files that an older version wrote go on to work: configs, killed runs, checkpoints, answers, stores, import paths.

``tests/old_files`` holds what commit f702fae wrote (its README says how). Every test works on a copy of it, from
within the copy, since all paths in there are relative.
"""

import importlib
import json
import runpy
import shutil
import sys

import pytest
import torch
import yaml
from safetensors.torch import load_file

from videollm.checkpoint import load
from videollm.common.registry import function_at
from videollm.infer import main as infer
from videollm.inference.session import Session
from videollm.train import main as train
from videollm.training.resuming import differences

pytestmark = pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")  # of commands run here

SPAN_S = 0.05  # how far a span may move on another processor; bf16 moves these by 0.03 s


@pytest.fixture
def old(repository, tmp_path, monkeypatch):
    """A copy of the old files, which is the working folder."""
    folder = tmp_path / "old"
    shutil.copytree(repository / "tests/old_files", folder)
    monkeypatch.chdir(folder)
    return folder


def rows(path) -> list[dict]:
    """The lines of a JSON-lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def command(monkeypatch, module: str, *words) -> int:
    """``python -m module words``, in this process; its exit status."""
    monkeypatch.setattr(sys, "argv", [module, *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    return ended.value.code


# ---- training --------------------------------------------------------------------------------------------------------

STARTS = {
    "short": ["configs/d2vlm.yaml", "train.steps=4", "train.save_every=2", "train.output=runs/short"],
    "distime_lora": ["runs/distime_lora/config.yaml"],
}


def assert_logs_agree(found: list[dict], whole: list[dict]) -> None:
    """The same entries in the same order, with the same numbers to four digits."""
    assert [(e["step"], set(e)) for e in found] == [(e["step"], set(e)) for e in whole]
    for one, other in zip(found[:-1], whole[:-1], strict=True):  # the last one sums up only what this start has done
        assert one == pytest.approx(other, rel=2e-4, abs=2e-5)


@pytest.mark.parametrize("name", STARTS)
def test_a_run_killed_with_the_old_code_resumes_as_if_it_had_not_been(old, name):
    """From the user's own file, or from the resolved one in the folder of the run, which names every option."""
    run, given = old / "runs" / name, STARTS[name]
    before = (run / "starts.jsonl").read_text()
    assert [e["step"] for e in rows(run / "log.jsonl") if "loss" in e] == [1, 2, 3]  # killed behind step 3
    assert train(["--config", *given, "train.resume=true"]) == 0
    assert_logs_agree(rows(run / "log.jsonl"), rows(old / f"whole/{name}.log.jsonl"))
    assert (run / "starts.jsonl").read_text().startswith(before)
    assert [start["step"] for start in rows(run / "starts.jsonl")] == [0, 2]
    final = load_file(run / "final/model.safetensors")
    wanted = json.loads((old / f"whole/{name}.final.json").read_text())
    assert {key: list(t.shape) for key, t in final.items()} == {key: shape for key, (shape, _) in wanted.items()}
    norms = {key: t.double().norm().item() for key, t in final.items()}
    assert norms == pytest.approx({key: norm for key, (_, norm) in wanted.items()}, rel=1e-3, abs=1e-5)
    assert not (run / "best").exists()  # step 4 is no better than step 2, whose score the old checkpoint remembers


def test_another_training_is_still_refused_by_what_the_old_folder_says(old, capsys):
    assert train(["--config", *STARTS["short"], "train.resume=true", "train.lr=0.5"]) == 2
    assert "train.lr: 0.5, but the run in runs/short began with 0.01" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["d2vlm", "distime"])
def test_the_same_config_still_makes_the_same_run_folder(old, name):
    """One step from an old YAML file; every option it was resolved to has the value it had."""
    config = yaml.safe_load((old / f"runs/{name}/config.yaml").read_text())
    changed = {"output": "fresh", "steps": 1, "validate_every": None, "log_every": 1}
    given = [f"train.{key}={json.dumps(value)}" for key, value in changed.items()]
    assert train(["--config", f"configs/{name}.yaml", *given]) == 0
    found = yaml.safe_load((old / "fresh/config.yaml").read_text())
    config["train"] |= changed
    config["data"]["features"] = None
    # The one default with another name: the scores of spans have moved, and are found under both.
    assert function_at(config["train"].pop("metric"), "") is function_at(found["train"]["metric"], "")
    for section, values in config.items():
        assert not [
            name for name in values if [*differences(name, values[name], found[section].get(name, values[name]))]
        ]


# ---- checkpoints -----------------------------------------------------------------------------------------------------

MODELS = {"d2vlm": "runs/d2vlm/final", "distime": "runs/distime/final", "adapters": "runs/adapters"}


def assert_same_answers(found: list[dict], wanted: list[dict]) -> None:
    """The same tokens; spans and scores as near as another processor leaves them."""
    assert [list(line) for line in found] == [list(line) for line in wanted]
    for line, old_line in zip(found, wanted, strict=True):
        for key in ("id", "video", "question", "raw_text", "duration", "finish_reason", "thinned", "error"):
            assert line[key] == old_line[key], key
        for key in ("spans", "evidence_spans"):
            assert sum(line[key], []) == pytest.approx(sum(old_line[key], []), abs=SPAN_S), key
        assert line["scores"] == pytest.approx(old_line["scores"], abs=0.01)


def asked(bundle, old, line: dict) -> dict:
    """The question of an old answer, asked again."""
    session = Session(bundle, {"generate": {"max_new_tokens": 40}})
    found = session.ask(old / "data/videos" / line["video"], line["question"])
    return found.to_json() | {key: line[key] for key in ("id", "video")}


@pytest.mark.parametrize("name", MODELS)
def test_an_old_checkpoint_is_loaded_whole_and_answers_as_before(old, name):
    bundle = load(MODELS[name])
    stored = load_file(next((old / MODELS[name]).glob("*.safetensors")))
    state = bundle.model.state_dict()
    assert [key for key, tensor in stored.items() if not torch.equal(state[key], tensor)] == []
    assert bundle.config.head["name"] == ("d2vlm" if name == "d2vlm" else "distime")
    assert bool(bundle.config.lora) is (name == "adapters")
    for wanted in rows(old / f"answers/{name}.jsonl"):
        assert_same_answers([asked(bundle, old, wanted)], [wanted])


def test_old_adapters_are_merged(old, monkeypatch):
    assert command(monkeypatch, "videollm.checkpoint", "runs/adapters", "merged") == 0
    bundle, wanted = load("merged"), rows(old / "answers/adapters.jsonl")
    assert bundle.config.lora is None and not any("lora" in key for key in bundle.model.state_dict())
    assert_same_answers([asked(bundle, old, line) for line in wanted], wanted)


# ---- inference -------------------------------------------------------------------------------------------------------


def run_infer(name: str, output: str, *more: str) -> int:
    paths = ["--model", MODELS[name], "--annotations", "data/questions.jsonl", "--videos", "data/videos"]
    options = ["--batch-size", "2", "--workers", "0", "--device", "cpu", "generate.max_new_tokens=40"]
    return infer([*paths, "--output", output, *options, *more])


def meta_of(output) -> dict:
    return json.loads(output.with_name(output.name + ".meta.json").read_text())


def test_a_half_done_output_is_finished_and_keeps_its_answers(old):
    output = old / "answers/half/d2vlm.jsonl"
    whole, torn = output.read_text().rsplit("\n", 1)
    assert whole.count("\n") == 1 and torn  # two answers and the beginning of a third
    assert run_infer("d2vlm", "answers/half/d2vlm.jsonl") == 0
    kept = set(whole.splitlines())
    assert kept < set(output.read_text().splitlines())
    assert_same_answers(rows(output), rows(old / "answers/d2vlm.jsonl"))
    assert meta_of(output)["speed"]["questions"] == 4  # those that are decoded together are asked together again
    assert meta_of(output)["counts"] == {"questions": 4, "answered": 4, "errors": 0}


@pytest.mark.parametrize("name", MODELS)
def test_a_complete_output_is_found_complete(old, name):
    output = old / f"answers/{name}.jsonl"
    text, meta = output.read_text(), meta_of(output)
    assert run_infer(name, f"answers/{name}.jsonl") == 0
    assert output.read_text() == text
    assert meta_of(output).keys() - {"preprocess", "finish_reasons"} == meta.keys()  # which older versions did not note
    for key in meta.keys() - {"commit", "config"}:  # of the code and of transformers
        assert meta_of(output)[key] == meta[key], key  # had it asked anything, the speed would be another


def test_another_way_of_decoding_is_still_refused(old, capsys):
    assert run_infer("d2vlm", "answers/d2vlm.jsonl", "generate.max_new_tokens=41") == 2
    assert "was made with another decoding" in capsys.readouterr().err


# ---- stores ----------------------------------------------------------------------------------------------------------


def bytes_of(folder) -> dict[str, bytes]:
    """{name: content} of a folder's tensors."""
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


def test_stored_frames_are_read_and_not_decoded_again(old, monkeypatch, capsys):
    before = bytes_of(old / "frames")
    for video in (old / "data/videos").rglob("*.mp4"):
        video.write_bytes(b"no video any more")
    paths = ["--annotations", "data/train.jsonl", "--videos", "data/videos", "--output", "frames"]
    assert command(monkeypatch, "videollm.frames", "build", *paths, "--config", "configs/d2vlm.yaml") == 0
    assert "frames: 4 videos stored, 0 bad" in capsys.readouterr().out and bytes_of(old / "frames") == before
    assert run_infer("d2vlm", "again.jsonl", "--frames", "frames") == 0
    assert_same_answers(rows(old / "again.jsonl"), rows(old / "answers/d2vlm.jsonl"))


def test_stored_features_are_found(old, capsys):
    made_with = rows(old / "runs/d2vlm/starts.jsonl")[0]["versions"]["transformers"]
    if made_with != (here := importlib.import_module("transformers").__version__):
        pytest.skip(f"the names of the files hold the version of transformers, {made_with}; here it is {here}")
    before = bytes_of(old / "features")
    given = ["model={checkpoint: runs/d2vlm/final}", "data.features=features", "train.validate_every=null"]
    assert train(["--config", "configs/d2vlm.yaml", *given, "train.steps=1", "train.output=fresh"]) == 0
    assert "features of 4 videos" in (said := capsys.readouterr().out) and "hit rate 100%" in said
    assert bytes_of(old / "features") == before


# ---- scores and annotations ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["d2vlm", "distime"])
def test_old_answers_score_as_before(old, name):
    from all_benchmark_eval.moving_shapes.task import main

    main(["--annotations", "data/questions.jsonl", "--predictions", f"answers/{name}.jsonl", "--output", "s.json"])
    found, wanted = (json.loads((old / f).read_text()) for f in ("s.json", f"answers/{name}.scores.json"))
    assert found == wanted and found["counts"]["grounding"]["scored"] == 2 and found["mIoU"] > 0.4


def test_old_annotations_have_no_bad_line(old, monkeypatch, capsys):
    files = ["data/train.jsonl", "--videos", "data/videos", "--workers", "1"]
    assert command(monkeypatch, "videollm.data", "check", "--annotations", *files) == 0
    assert "no bad line" in capsys.readouterr().out


# ---- what others import ----------------------------------------------------------------------------------------------

PUBLIC = {
    "videollm.heads": "HEADS HeadOptions SpanSlot TemporalHead build_head head_class marks replace_marks span_text",
    "videollm.structures": "Answer FrameBatch FrameSlot FrameTimeSlot Part Prediction Role SpanMark SpanRefs SpanSlot "
    "Token Turn VisualMark",
    "videollm.data": "AnnotationError Record Report draw_rejected load_records neutral_json parse_record "
    "read_annotations validate",
    "videollm.checkpoint": "Bundle CheckpointError load",
    "videollm.train": "main",
    "videollm.infer": "main",
    "videollm.ask": "ask main",
    "all_benchmark_eval.spans": "SpanList THRESHOLDS as_spans first_span_ious grounding_scores mean_set_f1 set_f1 "
    "summarise tiou tiou_matrix",
}


@pytest.mark.parametrize("module, name", [(m, n) for m, names in PUBLIC.items() for n in names.split()])
def test_an_old_import_path_works(module, name):
    assert getattr(importlib.import_module(module), name) is not None


def test_an_old_import_path_gives_the_same_class_and_not_a_second_one():
    heads, structures = map(importlib.import_module, ("videollm.heads", "videollm.structures"))
    assert heads.SpanSlot is structures.SpanSlot
    (slot,) = heads.replace_marks(structures.Turn("user", (structures.SpanMark(0),)), lambda m: m).parts
    assert isinstance(slot, structures.SpanMark)
    line = {"id": "a", "video": "a.mp4", "src": [0, 1], "conversations": [{"from": "human", "value": "<span>?"}]}
    (turn,) = importlib.import_module("videollm.data").parse_record(line, 1, "a.jsonl").turns
    assert structures.SpanMark(0) in turn.parts and isinstance(turn, structures.Turn)


PLUGIN = """
from videollm.heads import HEADS, TemporalHead, replace_marks
from videollm.structures import Prediction, SpanMark, SpanSlot, Role


@HEADS.register(name="written_for_the_old_code")
class Head(TemporalHead):
    span_tokens = ("<then>",)

    def compose(self, turns, spans_s, duration_s):
        return [replace_marks(t, lambda mark: SpanSlot("<then>", Role.ANSWER, mark.span)) for t in turns]
"""


def test_a_head_written_for_the_old_code_is_found(tmp_path, monkeypatch):
    (tmp_path / "written_for_the_old_code.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    heads, structures = map(importlib.import_module, ("videollm.heads", "videollm.structures"))
    head = heads.build_head({"name": "written_for_the_old_code"}, 8)
    (turn,) = head.compose([structures.Turn("assistant", ("at ", structures.SpanMark(0)))], [[0, 1]], 2.0)
    assert turn.parts == ("at ", structures.SpanSlot("<then>", structures.Role.ANSWER, 0))


DOORS = (  # not videollm.launch, which hands its process over: tests/unit/test_launch.py
    "videollm.train videollm.infer videollm.ask videollm.memory videollm.frames videollm.data videollm.checkpoint "
    "videollm.convert d2vlm.convert d2vlm.preference d2vlm.rank distime.convert all_benchmark_eval.score "
    "all_benchmark_eval.compare all_benchmark_eval.check all_benchmark_eval.evaluate "
    "all_benchmark_eval.moving_shapes.task"
)


@pytest.mark.parametrize("module", DOORS.split())
def test_a_command_is_still_started_by_its_name(module, monkeypatch, capsys):
    assert command(monkeypatch, module, "--help") == 0
    assert "usage: " in capsys.readouterr().out
