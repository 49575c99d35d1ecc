"""A resumed run takes the remedies that messages name: smaller batches of the same step, other ways of reading."""

import json
import signal

import pytest

from tests.models import clip_lines, clips, read_log, write_config
from tests.ranks import kill_after, noting, order, ran
from videollm import train
from videollm.frames import main as frames

FRAMES = "data.sampler={rule: segments, num_frames: 3, pick: random}"
LOSSES = ("loss", "lm", "dfl", "diou", "learning_rate", "grad_norm")


def items(folder, ranks: int) -> dict[int, set[str]]:
    """{step: ids of its items on all ranks}; of a step that was made twice, the second time."""
    found = [order(folder, rank) for rank in range(ranks)]
    return {step: {i for of in found for batch in of[step] for i in batch} for step in found[0]}


def started(config, *overrides, ranks=1, then=None, status=0) -> None:
    ran(config, FRAMES, *overrides, ranks=ranks, hook=noting(config.parent, then), status=status)


@pytest.mark.parametrize(
    "ranks, count, size, smaller",
    [
        (1, 6, {"batch_size": 4}, ("train.batch_size=2", "train.accumulation=2")),  # a pass ends in a smaller step
        pytest.param(
            2, 8, {"batch_size": 2, "global_batch": 4}, ("train.batch_size=1",), marks=pytest.mark.distributed
        ),
    ],
)
def test_smaller_batches_go_on_with_the_same_items_and_losses(tmp_path, ranks, count, size, smaller):
    options = {"steps": 7, "save_every": 2, "lines": clip_lines(count), **size}
    whole, broken = (write_config(tmp_path / name, "distime", **options) for name in ("whole", "broken"))
    started(whole, ranks=ranks)
    started(broken, ranks=ranks, then=kill_after(5), status=-signal.SIGKILL)
    started(broken, "train.resume=true", *smaller, ranks=ranks)
    assert items(broken.parent, ranks) == items(whole.parent, ranks)
    logs = [read_log(config.parent / "run") for config in (whole, broken)]
    assert [e["step"] for e in logs[1]] == list(range(1, 8))
    for one, other in zip(*logs, strict=True):
        assert [other[key] for key in LOSSES] == pytest.approx([one[key] for key in LOSSES], rel=1e-4)


def test_a_run_that_a_slow_decoder_or_a_disk_stopped_goes_on_otherwise(tmp_path, capsys):
    """With a longer limit for a video, and from decoded frames."""
    config = write_config(tmp_path, "text", steps=2, save_every=1)
    fixed = "data.sampler={rule: segments, num_frames: 3}"
    assert train.main(["--config", str(config), fixed]) == 0
    values = ["--annotations", str(tmp_path / "train.jsonl"), "--videos", str(clips())]
    built = ["build", *values, "--output", str(tmp_path / "store"), "--config", str(config), fixed, "--workers", "1"]
    assert frames(built) == 0
    given = ["train.resume=true", "train.steps=3", "data.decode_timeout_s=900", f"data.frames={tmp_path / 'store'}"]
    assert train.main(["--config", str(config), fixed, *given]) == 0
    assert [e["step"] for e in read_log(tmp_path / "run")][-1] == 3


def test_a_best_model_is_not_held_against_scores_of_another_kind(tmp_path, capsys):
    config = write_config(tmp_path, "distime", steps=2, save_every=1, validate_every=1, best="mIoU")
    assert train.main(["--config", str(config)]) == 0
    again = ["--config", str(config), "train.resume=true", "train.steps=3"]
    other = tmp_path / "other.jsonl"
    other.write_text("".join(json.dumps(line) + "\n" for line in clip_lines(2)))
    for override, says in (
        ("train.best=R@1_0.5", "train.best: 'R@1_0.5', but the run in"),
        ("train.validation_size=3", "train.validation_size: 3, but the run in"),
        ("generate.max_new_tokens=9", "generate.max_new_tokens: 9, but the run in"),
        (f"data.validation=[{other}]", "data.validation: other questions than"),
    ):
        capsys.readouterr()
        assert train.main([*again, override]) == 2
        said = capsys.readouterr().err
        assert says in said and "best/ was chosen by it" in said and "train.best=null" in said
    moved = tmp_path / "moved.jsonl"
    moved.write_bytes((tmp_path / "train.jsonl").read_bytes())
    assert train.main([*again, f"data.validation=[{moved}]"]) == 0
    assert train.main([*again[:-1], "train.steps=4", f"data.validation=[{other}]", "train.best=null"]) == 0
