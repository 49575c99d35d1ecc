"""What a kill or a copy can do to a run's folder, and what is found in it afterwards."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from videollm.training import saving
from videollm.training.saving import Facts


def write(output, step: int, keep: int = 99) -> None:
    """A whole checkpoint of two files."""
    folder = output / f"checkpoint-{step}"
    saving.begin(folder)
    (folder / "shards").mkdir()
    for file in ("model", "shards/0"):
        (folder / file).write_bytes(bytes(10 + step))
    saving.finish(folder, Facts(step, 2, 3, 100), keep)


def test_the_newest_whole_checkpoint_is_found_by_number(tmp_path):
    for step in (2, 10, 9):
        write(tmp_path, step)
    found = saving.last_good(tmp_path)
    assert found.folder == tmp_path / "checkpoint-10" and found.facts == Facts(10, 2, 3, 100)
    assert not (tmp_path / saving.STAGING).exists()


@pytest.mark.parametrize("damage", ["shards/0", "model", saving.MANIFEST])
def test_a_checkpoint_without_one_of_its_files_is_passed_over(tmp_path, damage, caplog):
    write(tmp_path, 2)
    write(tmp_path, 4)
    (tmp_path / "checkpoint-4" / damage).write_bytes(b"half")
    assert saving.last_good(tmp_path).facts.step == 2
    (tmp_path / "checkpoint-2" / damage).unlink()
    assert saving.last_good(tmp_path) is None and caplog.text.count("passed over") == 3


def test_a_checkpoint_that_was_being_written_is_passed_over_and_tidied(tmp_path, caplog):
    """Killed before its manifest. A folder without one that nothing says was being written may be somebody's."""
    write(tmp_path, 2)
    saving.begin(tmp_path / "checkpoint-4")
    (tmp_path / "checkpoint-4" / "model").write_bytes(b"half")
    (tmp_path / "checkpoint-6").mkdir()
    assert saving.last_good(tmp_path).facts.step == 2 and "checkpoint-4: passed over, no readable" in caplog.text
    saving.tidy(tmp_path)
    assert [step for step, _ in saving.checkpoint_folders(tmp_path)] == [6, 2]
    assert not (tmp_path / saving.STAGING).exists()


def test_a_damaged_checkpoint_is_written_anew(tmp_path):
    write(tmp_path, 2)
    (tmp_path / "checkpoint-2" / "more").write_bytes(b"of before")
    (tmp_path / "checkpoint-2" / "model").unlink()
    write(tmp_path, 2)
    assert saving.last_good(tmp_path).facts.step == 2
    assert set(saving.sizes(tmp_path / "checkpoint-2")) == {"model", "shards/0", saving.MANIFEST}


def test_folders_that_only_look_like_checkpoints_are_left_alone(tmp_path):
    write(tmp_path, 2)
    (tmp_path / "checkpoint-best").mkdir()
    (tmp_path / "checkpoint-7").write_text("a file")
    assert saving.last_good(tmp_path).facts.step == 2
    write(tmp_path, 3, keep=1)
    assert [step for step, _ in saving.checkpoint_folders(tmp_path)] == [3]
    assert (tmp_path / "checkpoint-best").is_dir() and (tmp_path / "checkpoint-7").is_file()


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(1, 99), unique=True, min_size=1, max_size=8), st.integers(1, 5))
def test_the_last_few_are_kept(tmp_path_factory, steps, count):
    output = tmp_path_factory.mktemp("run")
    for step in sorted(steps):
        write(output, step, count)
    assert [step for step, _ in saving.checkpoint_folders(output)] == sorted(steps, reverse=True)[:count]


def test_a_later_checkpoint_that_was_passed_over_does_not_cost_an_earlier_one_its_place(tmp_path):
    for step in (2, 9, 4):
        write(tmp_path, step, keep=1 if step == 4 else 9)
    assert [step for step, _ in saving.checkpoint_folders(tmp_path)] == [9, 4]


def test_a_model_that_was_being_replaced_is_put_back(tmp_path):
    """Killed between the two renames: the old folder is aside, the new one is not there yet."""
    best = tmp_path / "best"
    for text in ("old", "new"):
        saving.begin(saving.staged(best))
        (saving.staged(best) / "model").write_text(text)
        if text == "old":
            saving.publish(best)
    best.rename(saving.staged(tmp_path / "best.old"))
    saving.tidy(tmp_path)
    assert (tmp_path / "best" / "model").read_text() == "old"
    assert not (tmp_path / saving.STAGING).exists()


@settings(deadline=None)
@given(st.lists(st.integers(0, 9)).map(sorted), st.integers(0, 9), st.binary(max_size=5))
def test_a_log_ends_at_the_step_that_is_gone_on_from(tmp_path_factory, steps, last, torn):
    log = tmp_path_factory.mktemp("run") / "log.jsonl"
    lines = "".join(json.dumps({"step": step, "loss": 0.1}) + "\n" for step in steps)
    log.write_bytes(lines.encode() + (b'{"step": 1' + torn.replace(b"\n", b"") if torn else b""))
    saving.rewind(log, last)
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == [s for s in steps if s <= last]
