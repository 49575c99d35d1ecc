"""A wrong config is named by its key; a right one arrives typed."""

from dataclasses import dataclass, field
from typing import Literal

import pytest

from videollm.common.config import ConfigError, build, merge, override, read_yaml, to_dict
from videollm.training.settings import Settings


@dataclass
class Inner:
    rate: float = 0.5
    sizes: tuple[int, ...] = (1, 2)


@dataclass
class Outer:
    name: str
    mode: Literal["fast", "slow"] = "fast"
    inner: Inner = field(default_factory=Inner)
    extra: Inner | None = None
    parts: dict[str, Inner] = field(default_factory=dict)
    count: int | None = None


def test_values_arrive_in_their_types():
    made = build(Outer, {"name": "x", "inner": {"rate": "1e-3", "sizes": [3.0]}, "parts": {"a": {"rate": 1}}})
    assert made == Outer("x", inner=Inner(0.001, (3,)), parts={"a": Inner(1.0)})
    assert isinstance(made.parts["a"].rate, float) and isinstance(made.inner.sizes[0], int)


@pytest.mark.parametrize(
    "values, words",
    [
        ({"name": "x", "inner": {"rat": 1}}, ["run.inner.rat", "did you mean run.inner.rate"]),
        ({"name": "x", "zzz": 1}, ["run.zzz", "name, mode, inner"]),
        ({}, ["run.name", "missing"]),
        ({"name": 3}, ["run.name", "expected str", "3"]),
        ({"name": "x", "mode": "quick"}, ["run.mode", "'quick' is unknown; known values: fast, slow"]),
        ({"name": "x", "mode": "fsat"}, ["run.mode", "'fsat' is unknown; did you mean fast?"]),
        ({"name": "x\0y"}, ["run.name", "holds a NUL character"]),
        ({"name": "x", "inner": 5}, ["run.inner", "mapping"]),
        ({"name": "x", "inner": {"rate": "high"}}, ["run.inner.rate", "number"]),
        ({"name": "x", "inner": {"sizes": [1, "b"]}}, ["run.inner.sizes[1]", "int"]),
        ({"name": "x", "inner": {"sizes": 4}}, ["run.inner.sizes", "list"]),
        ({"name": "x", "count": True}, ["run.count", "int"]),
        ({"name": "x", "count": 1.5}, ["run.count", "int"]),
        ({"name": "x", "parts": {"a": {"rte": 1}}}, ["run.parts.a.rte", "did you mean run.parts.a.rate"]),
        ({"name": "x", "extra": {"rte": 1}}, ["run.extra.rte"]),
        ({"name": "x", "parts": {1: {"rate": 1}}}, ["run.parts, a key", "expected str, got 1"]),
    ],
)
def test_a_wrong_value_is_named_by_its_full_key(values, words):
    with pytest.raises(ConfigError) as error:
        build(Outer, values, "run")
    assert str(error.value).startswith(words[0])
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize(
    "section, given, lines",
    [
        ("train", {"steps": 0, "keep": 0, "lr": -1, "betas": [1], "parts": {"tower": {}}, "output": ""}, 6),
        ("train", {"lora": {"r": 0, "alpha": -1, "dropout": 1}, "report_to": ["paper"]}, 4),
        ("data", {"backend": "pyva", "workers": -1, "max_length": 0, "max_bad_fraction": 2, "duration_s": [3]}, 5),
        ("data", {"sampler": {"fps": 0, "num_frames": 0, "rule": "x"}}, 3),
        ("generate", {"max_new_tokens": 0, "min_new_tokens": -1, "temperature": 0, "top_p": 2, "draw_spans": True}, 5),
    ],
)
def test_all_that_is_wrong_in_a_section_is_said_at_once(section, given, lines):
    with pytest.raises(ConfigError) as error:
        build(Settings, {"model": {}, "data": {}} | {section: given})
    said = str(error.value).split("\n")
    assert len(said) == lines and all(line.startswith(f"{section}.") for line in said), said


def test_a_check_inside_a_dataclass_keeps_the_key():
    values = {"model": {}, "data": {"sampler": {"fps": -1}}}
    with pytest.raises(ConfigError, match=r"data\.sampler.*fps"):
        build(Settings, values)
    with pytest.raises(ConfigError, match=r"train\.parts\.tower.*vision_tower"):
        build(Settings, {"model": {}, "data": {}, "train": {"parts": {"tower": {}}}})


def test_overrides_are_read_as_yaml_and_leave_the_file_alone():
    values = {"train": {"steps": 5, "lr": 1}, "data": {}}
    changed = override(values, ["train.steps=7", "data.train=[a, b]", "model.head.name=text", "train.best=null"])
    assert changed["train"] == {"steps": 7, "lr": 1, "best": None}
    assert changed["data"] == {"train": ["a", "b"]} and changed["model"]["head"]["name"] == "text"
    assert values == {"train": {"steps": 5, "lr": 1}, "data": {}}


@pytest.mark.parametrize("text", ["train.steps", "=3", "train.steps.x=1"])
def test_a_bad_override_is_quoted(text):
    with pytest.raises(ConfigError) as error:
        override({"train": {"steps": 5}}, [text])
    assert text.split("=")[0] in str(error.value)


def test_an_override_may_hold_equal_signs_and_bad_yaml():
    assert override({}, ["a.b=x=y", "c={"])["a"]["b"] == "x=y"
    assert override({}, ["c={"])["c"] == "{"


@pytest.mark.parametrize(
    "text, word",
    [
        (b"a: [1,\nb: 2", "line 2"),
        (b"- 1", "mapping"),
        (b"", "mapping"),
        (b"\xff\xfe\x00a", "UTF-8"),
        (b"a: 1\nb: {c: 1, d: 2,\n  c: 3}", "c stands twice"),
        (b"a: " + b"[" * 5000 + b"]" * 5000, "nested too deeply"),
    ],
)
def test_a_yaml_error_names_the_file(tmp_path, text, word):
    path = tmp_path / "run.yaml"
    path.write_bytes(text)
    with pytest.raises(ConfigError) as error:
        read_yaml(path)
    assert str(error.value).startswith(str(path)) and word in str(error.value)
    assert "\n" not in str(error.value)


def test_where_no_key_is_known_that_is_said():
    @dataclass
    class Empty:
        pass

    with pytest.raises(ConfigError, match=r"^train\.objective\.answers: unknown key; known keys: none$"):
        build(Empty, {"answers": 4}, "train.objective")


def test_a_key_may_stand_again_where_a_mapping_is_laid_over_another(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\n")
    assert read_yaml(path)["b"] == {"x": 1, "y": 3}


@pytest.mark.parametrize(
    "given, says",
    [
        ("train.lr=.inf", "train.lr: inf, but it must be finite"),
        ("train.lr=.nan", "train.lr: nan, but it must be at least 0"),
        ("train.epochs=.inf", "train.epochs: inf, but it must be finite"),
        ("train.epochs=0", "train.epochs: 0, so nothing would be trained"),
        ("train.seed=-1", "train.seed: -1, but it must be at least 0"),
        ("train.seed=4294967296", "train.seed: 4294967296, but it must be below 2**32"),
        ("train.min_lr_ratio=2", "train.min_lr_ratio: 2.0 is no share"),
        ("train.output=''", "train.output: it is empty; name a folder"),
        ("model.checkpoint=''", "model.checkpoint: it is empty; give a value, or null for none"),
        ("model.checkpoint=", "model.checkpoint= has no value (an empty variable?); write model.checkpoint=null"),
        ("train.parts={head: {lr: -1}}", "train.parts.head.lr: -1.0, but it must be at least 0"),
        ("train.parts={head: {weight_decay: .nan}}", "train.parts.head.weight_decay: nan, but"),
        ("train.parts={head: {only: []}}", "train.parts.head.only: it is empty; leave it out, or set head.train=false"),
        ("train.lora={alpha: .nan}", "train.lora.alpha: nan, but it must be at least 0"),
        ("data.unseen_id=-1", "data.unseen_id: -1, but it must be at least 0"),
        ("generate.repetition_penalty=.inf", "generate.repetition_penalty: inf, but it must be above 0 and finite"),
    ],
)
def test_a_number_that_none_can_mean_is_refused_by_its_key(given, says):
    with pytest.raises(ConfigError) as error:
        build(Settings, override({"model": {}, "data": {}}, [given]))
    assert str(error.value).startswith(says)


def test_a_missing_yaml_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match="none.yaml"):
        read_yaml(tmp_path / "none.yaml")


def test_a_written_config_builds_the_same_again():
    made = build(Outer, {"name": "x", "extra": {"sizes": [4]}})
    assert to_dict(made)["extra"] == {"rate": 0.5, "sizes": [4]}
    assert build(Outer, to_dict(made)) == made


def test_merging_keeps_both_sides_apart():
    base = {"a": {"x": 1}, "b": 2}
    merged = merge(base, {"a": {"y": 3}, "b": {"z": 1}})
    assert merged == {"a": {"x": 1, "y": 3}, "b": {"z": 1}} and base == {"a": {"x": 1}, "b": 2}
