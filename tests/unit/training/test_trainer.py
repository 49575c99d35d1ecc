"""What the trainer adds to transformers': common counts, groups by part, a limit on bad videos, the best model."""

import json

import pytest
import torch

from tests.models import NoiseReader, make_batch, make_bundle, record, settings, turns
from videollm.batches.dataset import VideoDataset
from videollm.common.config import ConfigError
from videollm.common.registry import function_at
from videollm.training.optimizer import parameter_groups, part_of
from videollm.training.run import training_arguments
from videollm.training.trainer import BadVideosError, VideoTrainer
from videollm.training.validation import Validation, flat, try_metric

GOOD = {"video": "a.mp4", "tgt": [0, 2], "conversations": turns("<video>\nwhen?", "in <span>")}
BAD = {"video": "broken.mp4", "conversations": turns("<video>\nwhen?", "now")}


def make_trainer(tmp_path, lines, *, head="distime", validate=None, data=None, reader=NoiseReader, **train):
    given = settings(
        "internvl", head, {"output": str(tmp_path), "log_every": 1, "report_to": [], "lr": 1e-3, **train}, data
    )
    bundle = make_bundle("internvl", head)
    records = [record({**line, "id": f"r{i}"}) for i, line in enumerate(lines)]
    return VideoTrainer(
        bundle, given, validate=validate, args=training_arguments(given), data_collator=bundle.collator(),
        train_dataset=VideoDataset(records, reader(), bundle.encoder(), max_length=1024),
        eval_dataset=[] if validate else None,
    )  # fmt: skip


def test_counts_are_summed_over_the_accumulated_batches(tmp_path):
    trainer = make_trainer(tmp_path, [GOOD])
    model = trainer.bundle.model
    batches = [make_batch(trainer.bundle, [n]) for n in ("two_spans", "text")]
    _, counts = trainer.get_batch_samples(iter(batches), 2, torch.device("cpu"))
    singles = [model.counts(b) for b in batches]
    assert counts == {k: sum(s[k] for s in singles) for k in singles[0]}


def test_a_pass_over_the_data_ends_in_a_smaller_step_without_a_change_of_scale(tmp_path):
    """Three items in accumulated pairs: the last step holds one; its loss is that item's own mean."""
    trainer = make_trainer(tmp_path, [GOOD] * 3, accumulation=2, epochs=1.0, lr=0.0)
    trainer.train()
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    losses = [e["loss"] for e in log if "loss" in e]
    assert len(losses) == 2 and losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_learning_rate_and_decay_are_set_by_part_and_spare_norms_and_biases():
    parts = {"head": {"lr": 1.0, "weight_decay": 0.5}, "embeddings": {"train": False}, "vision_tower": {"train": True}}
    given = settings("internvl", "d2vlm", {"lr": 0.1, "weight_decay": 0.2, "parts": parts})
    model = make_bundle("internvl", "d2vlm", train={"parts": parts}).model
    names = {id(p): n for n, p in model.named_parameters()}
    seen = set()
    for group in parameter_groups(model, given):
        for parameter in group["params"]:
            name = names[id(parameter)]
            assert group["lr"] == (1.0 if part_of(name) == "head" else 0.1), name
            decay = 0.5 if part_of(name) == "head" else 0.2
            spared = name.endswith("bias") or "norm" in name or name.startswith(("head.frm_head.0", "head.evi_head.0"))
            assert group["weight_decay"] == (0 if spared else decay), name
            seen.add(name)
    assert seen == {n for n, p in model.named_parameters() if p.requires_grad}
    assert {part_of(n) for n in seen} == {"head", "vision_tower", "connector", "language_model", "lm_head"}


def test_of_a_part_only_what_is_named_learns():
    parts = {"head": {"only": ["evi_head", r"frm_head\.0"]}, "connector": {"train": False, "only": ["linear_1"]}}
    model = make_bundle("internvl", "d2vlm", train={"parts": parts}).model
    learns = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name.split(".")[1] for name in learns if name.startswith("head.")} == {"evi_head", "frm_head"}
    assert {name for name in learns if "frm_head" in name} == {"head.frm_head.0.weight", "head.frm_head.0.bias"}
    assert not any(name.startswith("connector.") for name in learns)
    for pattern, message in (
        ("no_such", r"parts\.head\.only: 'no_such' is in no name"),
        ("(", r"train\.parts\.head\.only: '\(' is no regular expression"),
    ):
        with pytest.raises(ConfigError, match=message):
            make_bundle("internvl", "d2vlm", train={"parts": {"head": {"only": [pattern]}}})


@pytest.mark.parametrize("epochs, fraction, good", [(1.0, 0.5, True), (4.0, 0.5, True), (1.0, 0.4, False)])
def test_the_share_of_unreadable_videos_is_of_every_pass(tmp_path, epochs, fraction, good):
    """A bad video is met once a pass; a long training must not run into the limit."""
    trainer = make_trainer(tmp_path, [GOOD, BAD], data={"max_bad_fraction": fraction}, epochs=epochs)
    if good:
        trainer.train()
        named = (tmp_path / "skipped.jsonl").read_text().splitlines()
        assert len(named) == epochs and all("broken.mp4" in line for line in named)
    else:
        with pytest.raises(BadVideosError, match=r"1 training items.*of 2.*max_bad_fraction=0\.4.*skipped\.jsonl"):
            trainer.train()


def test_a_step_of_unreadable_videos_moves_nothing(tmp_path):
    trainer = make_trainer(tmp_path, [BAD], data={"max_bad_fraction": 1.0}, steps=1)
    before = {k: v.clone() for k, v in trainer.bundle.model.state_dict().items()}
    trainer.train()
    for name, tensor in trainer.bundle.model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_frames_are_drawn_for_each_epoch(tmp_path):
    trainer = make_trainer(tmp_path, [GOOD, GOOD], epochs=3.0)
    seen, read = [], trainer.train_dataset.reader.video
    dataset = trainer.train_dataset
    dataset.reader.video = lambda *what: seen.append(dataset.epoch) or read(*what)
    trainer.train()
    assert seen == [0, 0, 1, 1, 2, 2]


def test_the_best_model_is_kept_also_over_a_resumed_run(tmp_path):
    scores = iter([3.0, 5.0, 4.0])
    options = {"validate_every": 1, "save_every": 1, "best": "score", "keep": 5}
    trainer = make_trainer(
        tmp_path, [GOOD], validate=Validation(lambda: {"score": next(scores)}, ""), steps=3, **options
    )
    kept = []
    save = trainer.save_model

    def noted(folder=None, **options):
        kept.append((trainer.state.global_step, str(folder)))
        save(folder, **options)

    trainer.save_model = noted
    trainer.train()
    best = str(tmp_path / "best")
    assert [step for step, folder in kept if folder == best] == [1, 2]
    options |= {"steps": 4, "save_every": None}
    worse = make_trainer(tmp_path, [GOOD], validate=Validation(lambda: {"score": 4.5}, ""), **options)
    again = []
    worse.save_model = lambda folder=None, **k: again.append(str(folder))
    worse.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert worse.state.global_step == 4 and best not in again


def test_a_log_entry_that_older_code_began_is_finished(tmp_path):
    """It kept transformers' own sum of the losses in a checkpoint, not one among those of the terms."""
    options = {"log_every": 2, "save_every": 1, "steps": 2, "keep": 2}
    make_trainer(tmp_path, [GOOD] * 2, **options).train()
    saved = tmp_path / "checkpoint-1" / "progress_0.pt"
    progress = torch.load(saved, weights_only=True)
    progress["_tr_loss"] = progress["term_sums"].pop("loss")
    torch.save(progress, saved)
    make_trainer(tmp_path, [GOOD] * 2, **options).train(resume_from_checkpoint=str(saved.parent))
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    whole, broken = (e for e in log if "loss" in e)
    assert broken == pytest.approx(whole)


def test_a_best_metric_that_validation_does_not_give_is_named(tmp_path):
    trainer = make_trainer(
        tmp_path, [GOOD], validate=Validation(lambda: {"score": 1.0}, ""), steps=1, validate_every=1, best="mIoU"
    )
    with pytest.raises(ValueError, match="train.best.*'mIoU'.*eval_score"):
        trainer.train()


def test_nested_scores_become_flat_names():
    assert flat({"mIoU": 1, "R@1": {"0.5": 2}}) == {"mIoU": 1.0, "R@1_0.5": 2.0}


def test_a_metric_is_found_by_its_name_or_refused():
    assert function_at("json:dumps", "train.metric") is json.dumps
    for name in ("json:nothing", "no_such_module:f", "json", "math:pi"):
        with pytest.raises(ConfigError, match=r"train\.metric"):
            function_at(name, "train.metric")


@pytest.mark.parametrize("name", ["os:getcwd", "math:sqrt", "videollm.common.spans:iou_union"])
def test_a_function_that_is_no_metric_is_refused_before_the_first_step(name):
    with pytest.raises(ConfigError, match=rf"train\.metric: {name} is no function \(predicted spans, true spans\)"):
        try_metric(function_at(name, "train.metric"), name, [[[0.0, 1.0]]])


def test_the_optimizer_is_one_kernel_and_copies_to_a_device_do_not_wait(tmp_path):
    trainer = make_trainer(tmp_path, [GOOD])
    assert trainer.create_optimizer().defaults["fused"]
    assert trainer.args.accelerator_config.non_blocking == torch.cuda.is_available()
    assert trainer.get_train_dataloader().pin_memory == torch.cuda.is_available()
