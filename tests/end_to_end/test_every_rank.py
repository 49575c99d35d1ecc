"""Every rank touches every module in every step, whatever its samples hold: no hang, and the numbers of one process.

Each step pairs two samples that need different parts of the model, one a rank.
"""

from itertools import product

import pytest
import torch
from PIL import Image

from tests.models import BACKBONES, NATIVE, clip_lines, clips, make_bundle, read_log, turns, write_config
from tests.ranks import in_order, output_of, run
from videollm.checkpoint import load
from videollm.training.trainer import VideoTrainer

pytestmark = pytest.mark.distributed

SPANS = clip_lines(1)[0]
KINDS = {
    "text": {"conversations": turns("hi", "hello there")},
    "no span": {"video": "clip1.mp4", "conversations": turns("<video>\nwhat is it?", "a dog")},
    "image": {"image": "picture.png", "conversations": turns("<image>\nwhat?", "a cat")},
    "unreadable": {"video": "broken.mp4", "conversations": turns("<video>\nwhen?", "now")},
    "late video": {
        "video": "clip0.mp4", "duration": 4, "tgt": [1, 3, 0, 2],
        "conversations": turns("hi, when?", "in <span>", "<video>\nand this?", "<span>"),
    },
}  # fmt: skip
MIXED = ("image", "late video", "no span")
TRAINED = "vision_tower.blocks.0.attn.qkv.weight"
WORSE = [{"factor": "wording", "value": "It never happens."}, {"factor": "shift", "value": "Early.", "tgt": []}]


def lopsided() -> list[dict]:
    """Pairs of lines, one for each rank: every kind beside a video with a span, on both sides, and beside another."""
    kinds = list(KINDS.values())
    pairs = [(SPANS, kind) for kind in kinds] + [(kind, SPANS) for kind in kinds]
    pairs += zip(kinds, [*kinds[1:], kinds[0]], strict=True)
    return [line | {"id": f"{i}-{side}"} for i, pair in enumerate(pairs) for side, line in enumerate(pair)]


def compare(tmp_path, repository, head: str, stage: int | None, backbone: str, lines=None, overrides=(), **options):
    """Train with two ranks and with one that has both samples in its batch; their logs must agree.

    They differ by the order in which float32 numbers are added: by 2e-6 of a value at most, measured over all cells.
    """
    if not (clips() / "picture.png").exists():
        Image.effect_noise((40, 30), 50).convert("RGB").save(clips() / "picture.png")
    lines = lines or lopsided()
    options = {
        "steps": None, "epochs": 1.0, "lr": 1e-5, "schedule": "constant", "warmup": 0.0, "lines": lines,
        "backbone": backbone, **options,
    }  # fmt: skip
    overrides = ("data.max_bad_fraction=1.0", *overrides)
    one = write_config(tmp_path / "one", head, batch_size=2, **options)
    assert run(one, *overrides, hook=in_order) == [0], output_of(one, 0).read_text()[-2000:]
    zero = None if stage is None else str(repository / f"configs/deepspeed/zero{stage}.json")
    two = write_config(tmp_path / "two", head, batch_size=1, deepspeed=zero, **options)
    assert run(two, *overrides, ranks=2, hook=in_order) == [0, 0], output_of(two, 0).read_text()[-2000:]
    alone, shared = read_log(tmp_path / "one" / "run"), read_log(tmp_path / "two" / "run")
    assert len(shared) == len(alone) == len(lines) // 2
    for key in alone[0].keys() - {"padding_share"}:  # the rows of one batch are padded, a row alone is not
        assert [e[key] for e in shared] == pytest.approx([e[key] for e in alone], rel=1e-5, abs=1e-6), key


@pytest.mark.parametrize(
    "head, stage, backbone",
    [
        ("d2vlm", 3, "internvl"),
        ("distime", 2, "internvl"),
        pytest.param("d2vlm", None, "etchat", marks=pytest.mark.slow),
    ],
)
def test_lopsided_batches_neither_hang_nor_change_a_number(tmp_path, repository, head, stage, backbone):
    compare(tmp_path, repository, head, stage, backbone)


@pytest.mark.parametrize(
    "backbone, stage",
    [
        ("qwen3_vl", 3),
        *(pytest.param(*cell, marks=pytest.mark.slow) for cell in product(NATIVE, (2, 3)) if cell != ("qwen3_vl", 3)),
    ],
)
def test_a_native_tower_learns_under_every_stage(tmp_path, repository, backbone, stage):
    """Three steps, in each of which one rank alone has what the tower sees; the checkpoint is that of one process."""
    lines = [line | {"id": f"{i}"} for i, line in enumerate([KINDS["text"], SPANS, SPANS, *map(KINDS.get, MIXED)])]
    compare(tmp_path, repository, "d2vlm", stage, backbone, lines, parts={"vision_tower": {"train": True}})
    one, two = (load(tmp_path / name / "run/final").model.state_dict() for name in ("one", "two"))
    moved = make_bundle(backbone, "d2vlm", {"seed": 0}).model.state_dict()
    assert one.keys() == two.keys() and not one[TRAINED].equal(moved[TRAINED])
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-2, atol=1e-4, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [None, 1, 2, 3])
@pytest.mark.parametrize("backbone", ["internvl", "etchat"])
@pytest.mark.parametrize("head", ["d2vlm", "distime", "text"])
def test_lopsided_batches_of_every_head_under_every_stage(tmp_path, repository, head, stage, backbone):
    compare(tmp_path, repository, head, stage, backbone)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize(
    "options",
    [{"gradient_checkpointing": True}, {"lora": {"r": 2, "dropout": 0.0}, "merge_lora": False}],
    ids=["checkpointing", "adapters"],
)
def test_lopsided_batches_with_options(tmp_path, repository, stage, options):
    compare(tmp_path, repository, "d2vlm", stage, "internvl", **options)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [None, 2, 3])
def test_lopsided_batches_of_a_model_whose_output_layer_is_its_embedding(tmp_path, repository, stage):
    """Every rank has to add up what both uses of the matrix give."""
    language = BACKBONES["internvl"]["language"] | {"tie_word_embeddings": True}
    compare(tmp_path, repository, "d2vlm", stage, "internvl", model={"language": language})


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_lopsided_preference_batches(tmp_path, repository, stage):
    lines = [line | {"rejected": WORSE} for line in lopsided()]
    objective = {"name": "d2vlm.fpo", "rejected": "all"}
    compare(tmp_path, repository, "d2vlm", stage, "internvl", lines, objective=objective)


@pytest.mark.parametrize("stage", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_lopsided_questions_are_answered_and_learnt_from(tmp_path, repository, stage):
    """One rank asks about a video; the other about nothing, or behind an earlier turn with a span."""
    kinds = [KINDS["text"], SPANS, SPANS, KINDS["late video"]]
    lines = [line | {"id": f"{i}"} for i, line in enumerate(kinds)]
    objective = {"name": "grpo", "answers": 2, "rewards": {f"{__name__}:worth": 1.0}}
    compare(tmp_path, repository, "d2vlm", stage, "internvl", lines, objective=objective)


def worth(answer, record, duration_s):
    """Differs for nearly every answer."""
    return sum(map(len, answer.spans)) + sum(map(ord, answer.text)) / 1000


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_stored_features_beside_pictures_and_text(tmp_path, repository, stage):
    """Only some batches need the tower, whose layers ZeRO-3 splits over the ranks."""
    compare(tmp_path, repository, "d2vlm", stage, "internvl", overrides=(f"data.features={tmp_path / 'features'}",))


def test_validation_under_zero3_gives_what_one_process_gives(tmp_path, repository):
    """Three questions for two ranks, and held-out pairs; the steps between and behind are those of one process, too."""
    lines = [line | {"rejected": WORSE} for line in clip_lines(4)]
    options = {"lines": lines, "objective": {"name": "d2vlm.fpo", "rejected": "all"}, "steps": 2, "lr": 1e-5}
    options |= {"validate_every": 1, "validation_size": 3}
    one = write_config(tmp_path / "one", "d2vlm", batch_size=2, **options)
    two = write_config(
        tmp_path / "two", "d2vlm", deepspeed=str(repository / "configs/deepspeed/zero3.json"), batch_size=1, **options
    )
    assert run(one, hook=in_order) == [0], output_of(one, 0).read_text()[-2000:]
    assert run(two, ranks=2, hook=in_order) == [0, 0], output_of(two, 0).read_text()[-2000:]
    alone, shared = ([*read_log(of.parent / "run"), *read_log(of.parent / "run", "eval_mIoU")] for of in (one, two))
    assert len(alone) == len(shared) == 4 and any("eval_preference" in key for key in alone[-1])
    for mine, other in zip(alone, shared, strict=True):
        for key in mine.keys() - {"padding_share", "time"}:
            assert other[key] == pytest.approx(mine[key], rel=1e-4, abs=1e-5, nan_ok=True), key


def test_each_rank_draws_its_own_dropout(tmp_path):
    """Two ranks with the same sample and the same seed would else have the same masks, and learn from half as many."""

    def hook(rank: int) -> None:
        in_order(rank)
        step = VideoTrainer.training_step

        def noted(self, *args, **kwargs):
            loss = step(self, *args, **kwargs)
            (tmp_path / f"loss{rank}").write_text(repr(loss.item()))
            return loss

        VideoTrainer.training_step = noted

    lines = [SPANS | {"id": name} for name in "ab"]
    config = write_config(tmp_path, "text", lines=lines, steps=1, lora={"r": 4, "dropout": 0.5})
    # A fresh adapter adds nothing; its second half must not be zero for its dropout to show.
    assert run(config, "train.lora.dropout=0.5", "train.steps=3", "train.lr=0.1", ranks=2, hook=hook) == [0, 0]
    assert (tmp_path / "loss0").read_text() != (tmp_path / "loss1").read_text()
