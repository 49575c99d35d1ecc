"""What the converters share: tensors by name from any files, names both ways, adapters, the report of keys."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from videollm.checkpoint import CheckpointError
from videollm.checkpoint.tensors import KeyReport, NameTable, TensorSource, fold_adapters, write_tensors

ROWS = [("a.blocks.{i}.norm1.{x}", "b.layers.{i}.before.{x}"), ("a.{x}", "b.rest.{x}"), ("head", "top")]
WORD = st.text(st.characters(categories=["L", "N"], include_characters="._"), min_size=1)


@given(number=st.integers(0, 99), rest=WORD)
def test_a_name_comes_back_from_the_other_side(number, rest):
    table = NameTable(ROWS)
    for official in (f"a.blocks.{number}.norm1.{rest}", f"a.{rest}", "head"):
        assert table.official(table.ours(official)) == official
    assert table.ours(f"c.{rest}") is None and table.official("toppled") is None


def test_tensors_written_in_shards_are_read_as_written(tmp_path):
    state = {f"t{i}": torch.full((4, i + 1), float(i)) for i in range(6)}
    assert write_tensors(tmp_path, state.items(), shard_bytes=100) == sum(t.nbytes for t in state.values())
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2 and not list(tmp_path.glob("*.part"))
    source = TensorSource(tmp_path)
    assert set(source) == set(state) and all(source[name].equal(state[name]) for name in state)
    assert source.shape("t5") == (4, 6)
    assert {name: t.shape for name, t in source.outlines().items()} == {name: t.shape for name, t in state.items()}
    assert all(t.is_meta for t in source.outlines().values())


def test_an_index_that_names_what_no_shard_holds_is_refused(tmp_path):
    save_file({"a": torch.ones(1)}, tmp_path / "one.safetensors")
    index = {"weight_map": {"a": "one.safetensors", "b": "one.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="b \\(1 such\\) is in none of its shards"):
        TensorSource(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(CheckpointError, match="no weight_map"):
        TensorSource(tmp_path)


def test_a_training_state_is_no_file_of_weights(tmp_path):
    torch.save({"model": {"a": torch.ones(1)}}, tmp_path / "model.bin")
    with pytest.raises(CheckpointError, match="model is no tensor"):
        TensorSource(tmp_path)


def test_adapters_fold_into_their_layers_and_nothing_else_changes():
    a, b, weight = torch.randn(2, 3), torch.randn(4, 2), torch.randn(4, 3)
    wrapped = {"l.base_layer.weight": weight, "l.base_layer.bias": torch.ones(4), "n.weight": torch.ones(2)}
    folded = fold_adapters(wrapped | {"l.lora_A.default.weight": a, "l.lora_B.default.weight": b}, 0.5)
    assert set(folded) == {"l.weight", "l.bias", "n.weight"}
    torch.testing.assert_close(folded["l.weight"], weight + 0.5 * b @ a)
    beside = fold_adapters({"l.weight": weight, "l.lora_A.weight": a, "l.lora_B.weight": b}, 0.5)
    torch.testing.assert_close(beside["l.weight"], folded["l.weight"])
    with pytest.raises(CheckpointError, match="no l.weight that it belongs to"):
        fold_adapters({"l.lora_A.weight": a, "l.lora_B.weight": b}, 0.5)


def test_a_report_has_a_line_for_every_key(capsys):
    found, wanted = {"a": torch.ones(1), "b": torch.ones(2)}, {"b": torch.ones(3), "c": torch.ones(1)}
    KeyReport.compare(found, wanted).print()
    lines = ["missing: c", "unexpected: a", "re-shaped: b [2] -> [3]", "1 missing, 1 unexpected, 1 re-shaped keys"]
    assert capsys.readouterr().out.splitlines() == lines
