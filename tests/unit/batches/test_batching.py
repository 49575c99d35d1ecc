"""Batches by a budget of tokens: every item once an epoch, budget kept, ranks in step, losses as ever, resumable."""

import json

import numpy as np
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.models import LINES, NoiseReader, make_bundle, record, settings, turns
from tests.unit.training.test_trainer import make_trainer
from videollm.batches.dataset import VideoDataset
from videollm.batches.lengths import item_sizes
from videollm.batches.order import TokenBudgetBatches
from videollm.common.config import ConfigError
from videollm.video.sampling import Sampler

SETTING = "train.max_tokens_per_batch"


class Epoch:
    """What a sampler looks at of a dataset."""

    def __init__(self, epoch=0):
        self.epoch = epoch


class Reader(NoiseReader):
    """Noise, with the settings that the number of frames follows from."""

    sampler, max_tiles = Sampler(rule="fps", fps=1.0), 1


SIZES = st.lists(st.tuples(st.integers(0, 300), st.integers(1, 300)), min_size=1, max_size=50)


def batches_of(sizes, budget=1000, ranks=2, seed=0, aligned=True, epoch=0):
    return list(TokenBudgetBatches(Epoch(epoch), np.asarray(sizes), budget, ranks, seed, aligned))


def places(sizes, batch, aligned):
    """Tokens of a batch with its padding, as the collator lays it out."""
    of = np.asarray(sizes)[batch]
    return len(batch) * int(of.max(0).sum() if aligned else of.sum(1).max())


# ---- the order -------------------------------------------------------------------------------------------------------


@hypothesis_settings(deadline=None)
@given(SIZES, st.integers(1, 3000), st.integers(1, 5), st.integers(0, 3), st.booleans())
def test_every_item_comes_once_within_the_budget_and_ranks_have_as_many_batches(sizes, budget, ranks, seed, aligned):
    sampler = TokenBudgetBatches(Epoch(), np.asarray(sizes), budget, ranks, seed, aligned)
    for epoch in range(3):
        sampler.dataset.epoch = epoch
        batches = list(sampler)
        assert sorted(i for batch in batches for i in batch) == list(range(len(sizes)))
        assert len(batches) == len(sampler) and len(batches) % ranks == 0
        assert sum(not batch for batch in batches) < ranks
        assert all(places(sizes, batch, aligned) <= budget for batch in batches if len(batch) > 1)
        shares = [list(BatchSamplerShard(sampler, ranks, rank)) for rank in range(ranks)]  # as accelerate deals them
        assert [batch for step in zip(*shares, strict=True) for batch in step] == batches


def test_the_order_depends_on_seed_and_epoch_only():
    sizes = np.random.default_rng(0).integers(10, 90, (300, 2))
    assert batches_of(sizes) == batches_of(sizes)
    for other in (batches_of(sizes, epoch=1), batches_of(sizes, seed=1)):
        assert other != batches_of(sizes)
        assert set(map(frozenset, other)) != set(map(frozenset, batches_of(sizes)))  # not the batches' order alone


def test_padding_is_small_and_the_ranks_of_a_step_have_alike_work():
    rng = np.random.default_rng(0)
    sizes = np.stack([rng.integers(5, 300, 2000), rng.integers(20, 120, 2000)], 1)
    batches = batches_of(sizes, budget=4000, ranks=4)
    assert 1 - sizes.sum() / sum(places(sizes, b, True) for b in batches if b) < 0.13
    cost = np.asarray([places(sizes, b, True) if b else 4000 for b in batches]).reshape(-1, 4)
    assert (cost.max(1) / cost.mean(1)).mean() < 1.1


def test_the_costliest_step_comes_first():
    sizes = [[0, 10]] * 200 + [[0, 5000]]
    for epoch in range(3):
        assert [200] in batches_of(sizes, epoch=epoch)[:2]


# ---- lengths ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bundles():
    return {head: make_bundle("internvl", head) for head in ("d2vlm", "distime", "text")}


ASKED = [name for name in LINES if name != "image"]
RATHER = {"factor": "wording", "value": "<span> and much later again <span>", "tgt": [0, 1, 1, 4]}


@pytest.mark.parametrize("head", ["d2vlm", "distime", "text"])
@pytest.mark.parametrize("form", ["plain", "packed", "rejected", "thinned"])
def test_lengths_are_those_of_the_rows_without_a_video_opened(bundles, head, form):
    bundle = bundles[head]
    durations = {"a.mp4": 4, "b.mp4": 6, "c.mp4": 5}
    lines = [LINES[name] for name in ASKED]
    lines = [{"duration": durations[line["video"]], **line} if "video" in line else line for line in lines]
    lines = lines[1:2] if form in ("rejected", "thinned") else lines
    lines = [{**line, "rejected": [RATHER]} if form == "rejected" else line for line in lines]
    records = [record({**line, "id": str(i)}) for i, line in enumerate(lines)]
    if form == "packed":
        records = [r for r in records if r.video == "b.mp4" and len(r.turns) == 2]
    options = {"pack": form == "packed", "rejected": "all" if form == "rejected" else None}
    dataset = VideoDataset(records, Reader(), bundle.encoder(), max_length=1024, **options)
    if form == "thinned":
        dataset.max_length = int(item_sizes(dataset, SETTING).sum(1).max()) - 3
    collate = bundle.collator(pack=options["pack"], rank=form == "rejected")
    sizes = item_sizes(dataset, SETTING)
    for i in range(len(dataset)):
        padded, total = collate([dataset[i]]).padded
        assert sizes[i].sum() == total - padded, lines[i]
    if form == "thinned":
        assert any(dataset[i].thinned for i in range(len(dataset)))
    batch = collate([dataset[i] for i in range(len(dataset))])
    assert batch.padded[1] == places(sizes, list(range(len(dataset))), collate.split_prefix)


def test_a_video_without_a_duration_is_named_where_frames_follow_from_it(bundles):
    lines = {"video": "a.mp4", "conversations": turns("<video>\nwhen?", "now")}
    dataset = VideoDataset([record(lines)], Reader(), bundles["text"].encoder(), max_length=1024)
    with pytest.raises(ConfigError, match=r"train\.max_tokens_per_batch: lines\.jsonl:1 has no duration"):
        item_sizes(dataset, SETTING)


# ---- training --------------------------------------------------------------------------------------------------------


def line(number):
    video, seconds = (("a.mp4", 4), ("b.mp4", 6), ("c.mp4", 5))[number % 3]
    answer = "in <span>" + ", and so on" * (number % 4)
    said = turns("<video>\nwhen?", answer)
    return {"id": f"r{number}", "video": video, "duration": seconds, "tgt": [0, 2], "conversations": said}


def trainer_of(folder, head="distime", items=10, **train):
    trainer = make_trainer(folder, [line(i) for i in range(items)], head=head, reader=Reader, **train)
    seen, collate = [], trainer.data_collator

    def watched(items):
        batch = collate(items)
        seen.append(batch.ids)
        return batch

    watched.split_prefix = collate.split_prefix
    trainer.data_collator = watched
    return trainer, seen


def entries(folder):
    lines = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [entry for entry in map(json.loads, lines) if "padding_share" in entry]


def test_a_resumed_run_goes_on_in_the_same_order_to_the_same_weights(tmp_path):
    options = {"max_tokens_per_batch": 1000, "epochs": 2.0}
    whole, order = trainer_of(tmp_path / "whole", **options)
    whole.train()
    steps = whole.state.global_step
    assert steps == len(order) and steps % 2 == 0
    for half in (order[: steps // 2], order[steps // 2 :]):
        assert sorted(name for batch in half for name in batch) == sorted(f"r{i}" for i in range(10))
    assert max(len(batch) for batch in order) > 1 and order[: steps // 2] != order[steps // 2 :]
    broken, first = trainer_of(tmp_path / "broken", **options, save_every=1, keep=50)
    broken.train()
    stop = steps // 2 + 1  # within the second epoch
    resumed, rest = trainer_of(tmp_path / "broken", **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "broken" / f"checkpoint-{stop}"))
    assert first == order and rest == order[stop:]
    for name, tensor in whole.bundle.model.state_dict().items():
        assert torch.equal(tensor, resumed.bundle.model.state_dict()[name]), name
    shares = [entry["padding_share"] for entry in entries(tmp_path / "whole")]
    assert len(shares) == steps and all(0 <= share < 0.5 for share in shares)


@pytest.mark.parametrize("head", ["d2vlm", "distime", "text"])
def test_losses_and_gradients_do_not_depend_on_how_a_step_is_cut_into_batches(tmp_path, head):
    trainer, _ = trainer_of(tmp_path, head, items=6)
    model, dataset = trainer.bundle.model.eval(), trainer.train_dataset
    items = [dataset[i] for i in range(6)]

    def step(*batches):
        collated = [trainer.data_collator([items[i] for i in batch]) for batch in batches]
        counts = trainer.get_batch_samples(iter(collated), len(collated), torch.device("cpu"))[1]
        model.zero_grad()
        losses = [trainer.compute_loss(model, batch, num_items_in_batch=counts) for batch in collated]
        sum(losses).backward()
        grads = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        return float(sum(losses).detach()), grads

    loss, grads = step([0, 1, 2, 3, 4, 5])
    for cut in ([[4, 1], [0, 3, 5], [2]], [[0], [1, 2, 3, 4, 5], []]):  # an empty one too, as a rank may have
        other, other_grads = step(*cut)
        assert other == pytest.approx(loss, rel=1e-5)
        torch.testing.assert_close(other_grads, grads, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("also", [{"batch_size": 2}, {"global_batch": 4}, {"group_by_length": True}])
def test_a_budget_stands_for_itself(also):
    with pytest.raises(ConfigError, match=r"train\.max_tokens_per_batch: "):
        settings("internvl", "text", {"max_tokens_per_batch": 100, **also})
