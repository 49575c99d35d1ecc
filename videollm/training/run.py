"""A training run from settings to its final model: check, assemble, read ahead, train, save.

Runs as one process, under ``torchrun --nproc_per_node N`` or under the ``deepspeed`` launcher, on CPU or GPU. Writes
``output/``: ``config.yaml`` (resolved), ``starts.jsonl``, ``log.jsonl``, ``checkpoint-N/`` (resumable), ``best/`` (by
validation) and ``final/`` (for ``videollm.infer``). Every part of it has a file of its own beside this one.
"""

import importlib.util
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from transformers import TrainingArguments, set_seed

from videollm.batches.dataset import VideoDataset
from videollm.batches.reader import VisualReader, open_store
from videollm.batches.unknown import warn_unknown
from videollm.checkpoint import Bundle
from videollm.common.command import without_bars
from videollm.common.config import ConfigError, need
from videollm.common.files import check_folder
from videollm.common.processes import one_fate, this_rank, world_size
from videollm.common.spread import elements
from videollm.data import Record, filters
from videollm.data.check import check_some
from videollm.data.mixture import load_training
from videollm.inference.plan import room_for_question
from videollm.model.lora import merge_lora
from videollm.model.objective import build_objective
from videollm.model.tying import tied
from videollm.training.assemble import assemble, spreading
from videollm.training.features import FeatureStore, fill_store
from videollm.training.optimizer import part_of, set_trainable, warn_frozen
from videollm.training.preemption import Preempted, StopOnSignal
from videollm.training.preflight import check_start, prepare_process
from videollm.training.resuming import check_items, check_questions
from videollm.training.runfolder import kept_lengths, open_run
from videollm.training.settings import DataSettings, Settings, TrainSettings
from videollm.training.trainer import VideoTrainer
from videollm.training.validation import make_validation


def train(settings: Settings) -> Path:
    """Run the training that ``settings`` describe; returns the folder of the final model.

    Raises:
        ConfigError, AnnotationError, CheckpointError, BadVideosError, OutOfMemory, SaveError: one message that names
            key, line or file.
        Preempted: told to stop by SIGTERM; the state is saved.
    """
    check_reporting(settings.train.report_to)
    settings.generate.check_machine(torch.cuda.is_available())  # now, not at the first validation
    with one_fate(), without_bars():
        checkpoint = check_start(settings)
        prepare_process(settings)
        data = settings.data
        records, root, left_out = wanted_records(data)
        objective = build_objective(settings.train.objective)
        objective.check(records, settings)
        spread = spreading(settings)
        bundle = assemble(settings, spread)
        set_trainable(bundle.model, settings.train)
        pairs, limit = objective.rejected is not None, bundle.config.context_length
        long = kept_lengths(settings).too_long(records, bundle.encoder(), limit, rejected=pairs)
        records, left_long = filters.without_long(records, long, limit, data.max_bad_fraction)
        left_out += left_long
    if this_rank() == 0:
        print_start(bundle, filters.counts(records, left_out))
        warn_unknown(records, bundle.tokenizer, "data.train")
        warn_frozen(bundle.model, settings)
    arguments = training_arguments(settings)  # starts the process group
    objective.prepare(bundle, settings)
    bundle.model.objective = objective
    rank, world = arguments.process_index, arguments.world_size
    open_run(settings, checkpoint.facts.step if checkpoint else 0, world, rank)
    if rank == 0 and left_out:
        filters.tell(left_out, Path(settings.train.output))
    reader = make_reader(bundle, settings, arguments, records, root)
    if spread is not None:
        spread.rest(bundle.model, finished=True)
    room = limit if objective.answers else room_for_question(bundle.config, settings.generate)
    dataset = VideoDataset(
        records, reader, bundle.encoder(), max_length=room, pack=data.pack, max_questions=data.max_questions,
        answers=objective.answers, rejected=objective.rejected, seed=settings.train.seed,
    )  # fmt: skip
    if len(dataset) < world:
        raise ConfigError(f"data.train: {len(dataset)} items for {world} processes; start at most that many")
    check_items(checkpoint, len(dataset))
    validate = make_validation(bundle, settings, reader, arguments)
    check_questions(settings, checkpoint, validate.questions if validate else None)
    # ``validate`` holds its own records; the Trainer only asks whether there are any.
    own = {"validate": validate, "eval_dataset": [] if validate else None, "train_dataset": dataset}
    trainer = VideoTrainer(bundle, settings, args=arguments, data_collator=objective.collator(bundle, settings), **own)
    if rank:
        set_seed(settings.train.seed + rank)  # of dropout; the order of the data follows train.seed on all ranks
    with StopOnSignal() as stop:
        trainer.add_callback(stop)
        trainer.train(resume_from_checkpoint=str(checkpoint.folder) if checkpoint else None)
        if stop.stopped:
            saved = f"saved checkpoint-{trainer.state.global_step}, go on with train.resume=true"
            raise Preempted(f"told to stop: {saved}", stop.status)
        return save_final(trainer, settings)


def wanted_records(data: DataSettings) -> tuple[list[Record], Path, list[dict]]:
    """The records to train on, the folder of their videos, and which were left out; errors name file and line."""
    check_folder(data.videos, "data.videos")
    need(data.train, "data.train: no annotation file given")
    records, root = load_training(data.train, data.videos, raw_spans=data.raw_spans)
    if data.frames is None and data.features is None:
        check_some(records, root, "data.videos")
    records, left_out = filters.wanted(records, data.duration_s, data.max_answer_words)
    return records, root, left_out


def check_reporting(names: Sequence[str]) -> None:
    """ConfigError where the package of a ``train.report_to`` is not installed."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(f"train.report_to: {name} is not installed; pip install {name}, or leave it out")


def accumulation(train: TrainSettings) -> int:
    """Batches of one optimisation step on each process; ConfigError where ``train.global_batch`` cannot be split so."""
    if train.global_batch is None:
        return train.accumulation
    world = world_size()
    steps, rest = divmod(train.global_batch, train.batch_size * world)
    if rest or not steps:
        raise ConfigError(
            f"train.global_batch: {train.global_batch} items cannot be split over {world} processes with "
            f"train.batch_size={train.batch_size}; start a number of processes that divides it, or change either"
        )
    return steps


def training_arguments(settings: Settings) -> TrainingArguments:
    """The run as transformers' own arguments."""
    t = settings.train
    kinds = {"cosine": "cosine_with_min_lr", "linear": "linear", "constant": "constant_with_warmup"}
    gpu = torch.cuda.is_available()
    known = {field.name for field in fields(TrainingArguments)}
    name = next(n for n in ("activation_checkpointing", "gradient_checkpointing") if n in known)  # the new one, the old
    checkpointing = {name: True, f"{name}_kwargs": {"use_reentrant": False}} if t.gradient_checkpointing else {}
    return TrainingArguments(
        output_dir=t.output,
        max_steps=t.steps or -1,
        num_train_epochs=t.epochs,
        per_device_train_batch_size=t.batch_size,
        gradient_accumulation_steps=accumulation(t),
        learning_rate=t.lr,
        adam_beta1=t.betas[0],
        adam_beta2=t.betas[1],
        max_grad_norm=t.clip,
        lr_scheduler_type=kinds[t.schedule],
        lr_scheduler_kwargs={"min_lr_rate": t.min_lr_ratio} if t.schedule == "cosine" else {},
        warmup_steps=int(t.warmup) if t.warmup >= 1 else t.warmup,
        bf16=t.precision == "bf16",
        deepspeed=t.deepspeed,
        seed=t.seed,
        data_seed=t.seed,
        logging_steps=min(t.log_every, t.steps or t.log_every),  # a short run logs its losses too
        logging_nan_inf_filter=False,
        accelerator_config={"non_blocking": gpu},  # batches come in pinned memory where there is a GPU
        save_strategy="steps" if t.save_every else "no",
        save_steps=t.save_every or 500,
        eval_strategy="steps" if t.validate_every else "no",
        eval_steps=t.validate_every,
        report_to=t.report_to or "none",
        dataloader_num_workers=settings.data.workers,
        remove_unused_columns=False,
        use_cpu=not gpu,
        ddp_find_unused_parameters=False,
        disable_tqdm=None,
        **checkpointing,
    )


def make_reader(
    bundle: Bundle, settings: Settings, arguments: TrainingArguments, records: Sequence[Record], root: Path
) -> VisualReader:
    """Frames for training, from below ``root``; with ``data.features``, the frozen tower's features are made first."""
    data = settings.data
    reader = bundle.reader(root, data.sampler, backend=data.backend)
    if data.preprocess is not None:
        reader.preprocess = data.preprocess
    reader.timeout_s = data.decode_timeout_s
    if data.frames:
        open_store(data.frames, reader, records)
    if not data.features:
        return reader
    if not bundle.model.frozen_tower:
        raise ConfigError(
            "data.features: the vision tower is trained (train.parts.vision_tower), so nothing can be kept"
        )
    if changed := [r for r in records if r.asking.view.jpeg]:
        raise ConfigError(
            f"data.features: {changed[0].where} is of a data set with data_augment, which changes its frames each "
            "time; set that to false, or leave data.features out"
        )
    store = FeatureStore(data.features, reader, bundle.model.vision_tower)
    fill_store(store, records, bundle, arguments)
    reader.stored = store
    return reader


def print_start(bundle: Bundle, records: dict[str, int]) -> None:
    """A table of what is trained on, by kinds of ``records``, and one of what trains."""
    table = Table("records", "number", title="What is trained on")
    for name, count in records.items():
        table.add_row(name, f"{count:,}")
    Console(width=80).print(table)
    totals: dict[str, list[int]] = {}
    for name, parameter in bundle.model.named_parameters():
        row = totals.setdefault(part_of(name), [0, 0])
        row[0] += elements(parameter)
        row[1] += elements(parameter) * parameter.requires_grad
    table = Table("part", "parameters", "trained", title="What trains")
    if tied(bundle.config.text_config):
        totals = {"embeddings = lm_head" if part == "embeddings" else part: row for part, row in totals.items()}
    for part, (count, trained) in [*totals.items(), ("all", [sum(v) for v in zip(*totals.values(), strict=True)])]:
        table.add_row(part, f"{count:,}", f"{trained:,}")
    Console(width=80).print(table)


def save_final(trainer: VideoTrainer, settings: Settings) -> Path:
    """Write ``output/final``, with adapters folded in if asked."""
    final = Path(settings.train.output) / "final"
    if trainer.bundle.config.lora and settings.train.merge_lora:
        merge_lora(trainer.bundle.model)
        with trainer.writing(final.name) as folder:
            if trainer.args.process_index == 0:
                trainer.bundle.save(folder)
    else:
        trainer.save_model(str(final))
    return final
