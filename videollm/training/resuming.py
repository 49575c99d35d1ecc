"""What a run goes on from, and whether its settings continue the same training.

In: settings, the run's folder. Out: the checkpoint, or a ConfigError that lists every setting that is another and may
not be, why, and the remedy. Which may change stands beside each setting (settings.py). Builds no model, reads no data.
"""

import json
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

from videollm.common.config import ConfigError, join, read_yaml, to_dict
from videollm.common.processes import world_size
from videollm.training.saving import Checkpoint, last_good
from videollm.training.settings import BEST, FREE, STEP, Settings


def find_checkpoint(settings: Settings) -> Checkpoint | None:
    """Where to go on; ConfigError if ``train.resume`` finds nothing, or if a new run would mix with an old one."""
    output, resume = Path(settings.train.output), settings.train.resume
    found = last_good(output) if resume else None
    if resume is True and found is None:
        raise ConfigError(
            f"train.resume: {output} holds no whole checkpoint-N folder; set train.resume=false to start anew"
        )
    if not resume and (any(output.glob("checkpoint-*")) or (output / "log.jsonl").exists()):
        again = "true to go on with it" if last_good(output) else "auto to begin again (it has saved no checkpoint)"
        other = "choose another folder, or delete it"
        raise ConfigError(f"train.output: {output} holds an earlier run; set train.resume={again}, {other}")
    return found


def check_resume(settings: Settings, stage: int | None, checkpoint: Checkpoint) -> None:
    """ConfigError where going on would not be the same training: DeepSpeed fails inside, or drops the optimizer."""
    facts, name, world = checkpoint.facts, checkpoint.folder, world_size()
    other = f"; or start a new run from it: model.checkpoint={name} and another train.output"
    if facts.zero_stage != stage:
        was, now = (f"ZeRO-{s}" if s is not None else "no DeepSpeed" for s in (facts.zero_stage, stage))
        raise ConfigError(
            f"train.deepspeed: {name} was written with {was}, this run has {now}, which cannot read its optimizer; "
            f"use the file it was trained with{other}"
        )
    if facts.processes != world:
        raise ConfigError(
            f"train.resume: {name} was written by {facts.processes} processes, this run has {world}; start "
            f"{facts.processes} (GPUS, NNODES){other}"
        )
    if settings.train.steps is not None and settings.train.steps < facts.step:
        raise ConfigError(f"train.steps: {settings.train.steps}, but {name} is past that already; give more")
    if refused := list(refusals(settings, checkpoint)):
        (key, before, now, why), *more = refused
        told = [f"{key}: {now!r}, but the run in {name.parent} began with {before!r} ({why})"]
        told += [f"{key}: {now!r}, it began with {before!r} ({why})" for key, before, now, why in more]
        raise ConfigError(f"{'; '.join(told)}; resume with {'those' if more else 'that'}{other}")


def refusals(settings: Settings, checkpoint: Checkpoint) -> Iterator[tuple[str, Any, Any, str]]:
    """(key, value of the run so far, value now, why it may not change) of every setting that may not."""
    written = checkpoint.folder.parent / "config.yaml"
    old, new = read_yaml(written) if written.is_file() else {}, to_dict(settings)
    why_not = {
        FREE: "",
        STEP: other_step(old.get("train", {}), settings, checkpoint),
        BEST: other_best(new, checkpoint),
    }
    for key, rule in rules(Settings):
        section, _, name = key.partition(".")
        value, earlier = new[section][name], old.get(section, {})
        why = why_not.get(rule, rule)
        if name in earlier and why:
            yield from ((*found, why) for found in differences(key, earlier[name], value))


def rules(cls: type, where: str = "", rule: str = FREE) -> Iterator[tuple[str, str]]:
    """(key, rule) of every setting of every section: FREE, STEP, BEST, or why it may never change."""
    hints = get_type_hints(cls, include_extras=True)
    for field in fields(cls):
        (own,) = getattr(hints[field.name], "__metadata__", (rule,))
        if where:
            yield join(where, field.name), own
        else:
            yield from rules(get_type_hints(cls)[field.name], field.name, own)


def differences(key: str, old: Any, new: Any) -> Iterator[tuple[str, Any, Any]]:
    """(key, old, new) of what differs in a setting; of two mappings, below it."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in {**old, **new}:
            if name in old or new[name]:  # else an option that came later, and asks for nothing
                yield from differences(join(key, name), old.get(name), new.get(name))
    elif old != new:
        yield key, old, new


def other_step(old: dict, settings: Settings, checkpoint: Checkpoint) -> str:
    """Why a step cut into other batches would not have the same items, in the same order; empty where it would."""
    world, items, train = world_size(), checkpoint.facts.items, settings.train
    before, now = (of_a_step(values, world) for values in (old, to_dict(train)))
    if before != now:
        return (
            f"a step would have {now} items on each process, not {before}; choose train.batch_size and "
            "train.accumulation, whose product it is"
        )
    if train.group_by_length:
        return "train.group_by_length puts together what such a batch takes"
    sizes = (old.get("batch_size", 1), train.batch_size)
    if world > 1 and any(items % (size * world) for size in sizes):
        return f"the {items} items are no multiple of it on {world} processes, so a pass would end with others"
    return ""


def of_a_step(train: dict, world: int) -> int:
    """Items of an optimisation step on each process, of the ``train`` section of a config."""
    if train.get("global_batch"):
        return train["global_batch"] // world
    return train.get("batch_size", 1) * train.get("accumulation", 1)


def other_best(new: dict, checkpoint: Checkpoint) -> str:
    """Why the score of the best model so far would not be comparable; empty where no best model is, or is wanted."""
    if not new["train"]["best"] or best_score(checkpoint) is None:
        return ""
    return "best/ was chosen by it, and other scores cannot be held against that one; or set train.best=null"


def best_score(checkpoint: Checkpoint) -> float | None:
    """The validation score of the best model so far."""
    state = checkpoint.folder / "trainer_state.json"
    return json.loads(state.read_text(encoding="utf-8")).get("best_metric") if state.is_file() else None


def check_items(checkpoint: Checkpoint | None, items: int) -> None:
    """ConfigError where the data are not those of the run that is gone on with: their order would be another."""
    if checkpoint is not None and checkpoint.facts.items != items:
        raise ConfigError(
            f"data.train: {items} items, but {checkpoint.folder} was trained on {checkpoint.facts.items}; give the "
            "same data, or start a new run from it with model.checkpoint"
        )


def check_questions(settings: Settings, checkpoint: Checkpoint | None, questions: str | None) -> None:
    """ConfigError where a best model was chosen by other questions; ``questions`` is a digest, None without any."""
    before = None if checkpoint is None else checkpoint.facts.questions
    if before in (None, questions) or questions is None:
        return
    if why := other_best(to_dict(settings), checkpoint):
        raise ConfigError(f"data.validation: other questions than {checkpoint.folder} knows ({why}); give the same")
