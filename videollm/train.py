"""The training entry point: ``python -m videollm.train --config FILE [key=value ...]``.

Runs as one process, under ``torchrun --nproc_per_node N`` or under the ``deepspeed`` launcher, on CPU or GPU, from
the same config. Writes ``output/`` : ``config.yaml`` (resolved), ``log.jsonl``, ``checkpoint-N/`` (resumable),
``best/`` (by validation) and ``final/`` (for ``videollm.infer``).
"""

import argparse
import importlib.util
import itertools
import json
import logging
import os
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.distributed as dist
import yaml
from rich.console import Console
from rich.table import Table
from safetensors import SafetensorError
from transformers import TrainingArguments
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.trainer_utils import get_last_checkpoint

from videollm.annotations import AnnotationError, Record
from videollm.assemble import assemble, part_of, set_trainable
from videollm.checkpoint import Bundle, CheckpointError
from videollm.config import ConfigError, build, override, read_yaml, to_dict
from videollm.data import load_records
from videollm.dataset import VideoDataset, VisualReader
from videollm.errors import tell
from videollm.features import FeatureStore
from videollm.infer import answer_records, room_for_question
from videollm.lora import merge_lora
from videollm.objectives import build_objective
from videollm.settings import Settings
from videollm.structures import SpanMark
from videollm.trainer import BadVideosError, FreshFrames, JsonLog, VideoTrainer

logger = logging.getLogger(__name__)


def train(settings: Settings) -> Path:
    """Run the training that ``settings`` describe; returns the folder of the final model.

    Raises:
        ConfigError, AnnotationError, CheckpointError, BadVideosError: one message that names key, line or file.
    """
    output = Path(settings.train.output)
    check_reporting(settings.train.report_to)
    resume = last_checkpoint(settings)
    prepare_launch(settings)
    data = settings.data
    records = load_records(data.train, raw_spans=data.raw_spans) if data.train else []
    if not records:
        raise ConfigError("data.train: no annotation file given, or all of them are empty")
    if not Path(settings.data.videos).is_dir():
        raise ConfigError(f"data.videos: {settings.data.videos} is not a folder; give the one the paths are below")
    objective = build_objective(settings.train.objective)
    objective.check(records, settings)
    bundle = assemble(settings)
    set_trainable(bundle.model, settings.train)
    arguments = training_arguments(settings)  # starts the process group
    objective.prepare(bundle, settings)
    bundle.model.objective = objective
    if arguments.process_index == 0:
        write_config(output, settings)
        print_trainable(bundle)
    reader = make_reader(bundle, settings, arguments, records)
    dataset = make_dataset(bundle, settings, reader, records)
    if len(dataset) < arguments.world_size:
        raise ConfigError(
            f"data.train: {len(dataset)} items for {arguments.world_size} processes; start at most that many"
        )
    validate = make_validation(bundle, settings, reader, arguments)
    trainer = VideoTrainer(
        bundle,
        settings,
        validate=validate,
        args=arguments,
        train_dataset=dataset,
        eval_dataset=[] if validate else None,  # ``validate`` holds its own records; the Trainer only asks whether any
        data_collator=bundle.collator(
            average=settings.train.loss_average,
            pack=settings.data.pack,
            rank=objective.rejected is not None,
            unseen_id=settings.data.unseen_id,
        ),
        callbacks=[FreshFrames(), JsonLog()],
    )
    trainer.train(resume_from_checkpoint=resume)
    return save_final(trainer, settings)


def check_reporting(names: Sequence[str]) -> None:
    """ConfigError where the package of a ``train.report_to`` is not installed."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(f"train.report_to: {name} is not installed; pip install {name}, or leave it out")


def write_config(output: Path, settings: Settings) -> None:
    """Make the output folder with ``config.yaml``; ConfigError where it cannot be written."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        (output / "config.yaml").write_text(yaml.safe_dump(to_dict(settings), sort_keys=False), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"train.output: cannot write to {output} ({error}); choose another folder") from None


def check_deepspeed(path: str) -> None:
    """ConfigError if the DeepSpeed file is missing, not JSON, or would replace what the config sets by part."""
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError:
        raise ConfigError(f"train.deepspeed: no file {path}") from None
    except ValueError as error:
        raise ConfigError(f"train.deepspeed: {path} is not JSON ({error})") from None
    for key in ("optimizer", "scheduler"):
        if not isinstance(found, dict) or key in found:
            raise ConfigError(
                f"train.deepspeed: {path} must be a mapping without {key!r}: train.lr, train.parts and "
                "train.schedule decide on that"
            )


def prepare_launch(settings: Settings) -> None:
    """What has to hold before torch, DeepSpeed or a process group start."""
    torch.set_num_threads(
        int(os.environ.get("OMP_NUM_THREADS", 1)) if not torch.cuda.is_available() else torch.get_num_threads()
    )
    if torch.cuda.device_count() > 1 and "RANK" not in os.environ:
        raise ConfigError(
            f"this one process sees {torch.cuda.device_count()} GPUs: start with scripts/train.sh (or torchrun), which "
            "runs a process a GPU, or choose one with CUDA_VISIBLE_DEVICES"
        )
    if not settings.train.deepspeed:
        return
    check_deepspeed(settings.train.deepspeed)
    if "RANK" not in os.environ:  # started as plain python: DeepSpeed would look for MPI
        alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
        os.environ.update(alone, MASTER_PORT=str(free_port()))
    if not torch.cuda.is_available():
        import deepspeed

        # DeepSpeed would compile a shared-memory communication op with g++ at the first run; gloo does without.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def free_port() -> int:
    """A port of the loopback address that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def training_arguments(settings: Settings) -> TrainingArguments:
    """The run as transformers' own arguments."""
    t = settings.train
    kinds = {"cosine": "cosine_with_min_lr", "linear": "linear", "constant": "constant_with_warmup"}
    checkpointing = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}
    checkpointing = checkpointing if t.gradient_checkpointing else {}  # transformers renames it: no warning unasked
    return TrainingArguments(
        output_dir=t.output,
        max_steps=t.steps or -1,
        num_train_epochs=t.epochs,
        per_device_train_batch_size=t.batch_size,
        gradient_accumulation_steps=t.accumulation,
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
        logging_steps=min(t.log_every, t.steps or t.log_every),  # a short run logs its losses too
        logging_nan_inf_filter=False,
        save_strategy="steps" if t.save_every else "no",
        save_steps=t.save_every or 500,
        save_total_limit=t.keep,
        eval_strategy="steps" if t.validate_every else "no",
        eval_steps=t.validate_every,
        report_to=t.report_to or "none",
        dataloader_num_workers=settings.data.workers,
        remove_unused_columns=False,
        use_cpu=not torch.cuda.is_available(),
        ddp_find_unused_parameters=False,
        disable_tqdm=None,
        **checkpointing,
    )


def make_reader(
    bundle: Bundle, settings: Settings, arguments: TrainingArguments, records: Sequence[Record]
) -> VisualReader:
    """Frames for training; with ``data.features``, the frozen tower's features are made first."""
    data = settings.data
    reader = bundle.reader(data.videos, data.sampler, backend=data.backend, max_tiles=data.max_tiles)
    if data.preprocess is not None:
        reader.preprocess = data.preprocess
    if not data.features:
        return reader
    if not bundle.model.frozen_tower:
        raise ConfigError(
            "data.features: the vision tower is trained (train.parts.vision_tower), so nothing can be kept"
        )
    store = FeatureStore(data.features, reader, bundle.model.vision_tower)
    fill_store(store, records, bundle, arguments)
    reader.stored = store
    return reader


def fill_store(store: FeatureStore, records: Sequence[Record], bundle: Bundle, arguments: TrainingArguments) -> None:
    """Store the features of the records' videos, every rank its share; ConfigError where they cannot be written."""
    tower = bundle.model.vision_tower.to(arguments.device)
    try:
        store.fill([r.video for r in records if r.video], tower, arguments.process_index, arguments.world_size)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"data.features: cannot write to {store.folder} ({error}); choose another folder") from None
    if dist.is_initialized():
        dist.barrier()


def make_dataset(bundle: Bundle, settings: Settings, reader: VisualReader, records: Sequence[Record]) -> VideoDataset:
    """The training data."""
    return VideoDataset(
        records,
        reader,
        bundle.encoder(),
        max_length=bundle.config.context_length,
        pack=settings.data.pack,
        max_questions=settings.data.max_questions,
        rejected=bundle.model.objective.rejected,
        seed=settings.train.seed,
    )


def make_validation(
    bundle: Bundle, settings: Settings, reader: VisualReader, arguments: TrainingArguments
) -> Callable[[], dict[str, float]] | None:
    """A function that answers the validation questions by free generation and scores the spans, and has the objective
    compare their rejected answers; None without any."""
    if not settings.train.validate_every:
        return None
    if not settings.data.validation:
        raise ConfigError("data.validation: train.validate_every needs annotation files to validate on")
    if is_deepspeed_zero3_enabled() and arguments.world_size > 1:
        raise ConfigError(
            "train.validate_every: not possible under ZeRO-3, whose ranks would wait for each other's span tokens; set "
            "it to null and answer with videollm.infer afterwards, or use ZeRO-2"
        )
    known, objective = load_records(settings.data.validation), bundle.model.objective
    pairs = [r for r in known if objective.rejected and r.rejected][: settings.train.validation_size]
    truths = {r.id: (r, spans) for r in known if (spans := answer_spans(r))}
    truths = dict(itertools.islice(truths.items(), settings.train.validation_size))
    if not truths:
        raise ConfigError("data.validation: no record has an answer with a span; give some, or no train.validate_every")
    records, world = [record for record, _ in truths.values()], arguments.world_size
    mine = records[arguments.process_index :: world]
    plain = bundle.reader(settings.data.videos, backend=settings.data.backend)
    if reader.stored is not None and plain.sampler == reader.sampler:
        fill_store(reader.stored, records, bundle, arguments)
        plain.stored = reader.stored
    room_for_question(bundle, settings.generate)
    score, best = load_metric(settings.train.metric), settings.train.best
    names = [*flat(score(*[[spans for _, spans in truths.values()]] * 2)), *(objective.logged if pairs else ())]
    if best and best not in names:
        raise ConfigError(f"train.best: {settings.train.metric} gives no {best!r}, only {', '.join(names)}")

    def validate() -> dict[str, float]:
        device = [torch.cuda.current_device()] if torch.cuda.is_available() else []
        with torch.random.fork_rng(device):  # training goes on as it would without validation
            lines = {line["id"]: line for line in answer_records(bundle, mine, plain, settings.generate, batch_size=32)}
        if dist.is_initialized():
            shares: list = [None] * world
            dist.all_gather_object(shares, lines)
            lines = {k: v for share in shares for k, v in share.items()}
        bad = limit_unasked(lines, settings.data.max_bad_fraction)
        good = [r.id for r in records if not lines[r.id]["error"]]
        found = score([lines[i]["spans"] for i in good], [truths[i][1] for i in good]) | {"unreadable": bad}
        return flat(found) | (objective.held_out(bundle, pairs, plain, size=8) if pairs else {})

    return validate


def answer_spans(record: Record) -> list[list[float]]:
    """The spans of the answer that is to be given, [start, end] in seconds; not those of the turns before it."""
    parts = record.turns[-1].parts if record.has_answer else ()
    return [list(record.spans_s[p.span]) for p in parts if isinstance(p, SpanMark)]


def limit_unasked(lines: dict[str, dict], allowed: float) -> int:
    """How many questions could not be asked; BadVideosError past the tolerated share, or if it is all of them."""
    bad = [line for line in lines.values() if line["error"]]
    if bad and (len(bad) > allowed * len(lines) or len(bad) == len(lines)):
        raise BadVideosError(
            f"{len(bad)} of {len(lines)} validation questions could not be asked (data.max_bad_fraction={allowed}), "
            f"first {bad[0]['id']}: {bad[0]['error']}; mend or remove them, or raise the fraction"
        )
    for line in bad:
        logger.warning("validation leaves out %s: %s", line["id"], line["error"])
    return len(bad)


def flat(scores: dict, prefix: str = "") -> dict[str, float]:
    """Nested scores under one level of names: ``{"R@1": {"0.5": x}}`` as ``{"R@1_0.5": x}``."""
    found = {}
    for name, value in scores.items():
        found |= flat(value, f"{prefix}{name}_") if isinstance(value, dict) else {f"{prefix}{name}": float(value)}
    return found


def load_metric(name: str) -> Callable:
    """The function ``package.module:function``; ConfigError if there is none."""
    module, _, function = name.partition(":")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"train.metric: no function {name!r} ({error}); write package.module:function") from None


def print_trainable(bundle: Bundle) -> None:
    """A table of what trains."""
    totals: dict[str, list[int]] = {}
    for name, parameter in bundle.model.named_parameters():
        row = totals.setdefault(part_of(name), [0, 0])
        row[0] += parameter.numel()
        row[1] += parameter.numel() * parameter.requires_grad
    table = Table("part", "parameters", "trained", title="What trains")
    for part, (count, trained) in [*totals.items(), ("all", [sum(v) for v in zip(*totals.values(), strict=True)])]:
        table.add_row(part, f"{count:,}", f"{trained:,}")
    Console(width=80).print(table)


def last_checkpoint(settings: Settings) -> str | None:
    """Where to go on; ConfigError if ``train.resume`` finds nothing, or if a new run would mix with an old one."""
    output = Path(settings.train.output)
    last = get_last_checkpoint(str(output)) if output.is_dir() else None
    if settings.train.resume and last is None:
        raise ConfigError(f"train.resume: {output} holds no checkpoint-N folder; set train.resume=false to start anew")
    if not settings.train.resume and (last or (output / "log.jsonl").exists()):
        raise ConfigError(
            f"train.output: {output} holds an earlier run; set train.resume=true to go on with it, choose another "
            "folder, or delete it"
        )
    return last if settings.train.resume else None


def save_final(trainer: VideoTrainer, settings: Settings) -> Path:
    """Write ``output/final``, with adapters folded in if asked."""
    final = Path(settings.train.output) / "final"
    if trainer.bundle.config.lora and settings.train.merge_lora:
        if trainer.is_deepspeed_enabled and trainer.accelerator.state.deepspeed_plugin.zero_stage == 3:
            raise ConfigError("train.merge_lora: not possible under ZeRO-3; set it to false, merge afterwards")
        merge_lora(trainer.bundle.model)
        if trainer.args.process_index == 0:
            trainer.bundle.save(final)
    else:
        trainer.save_model(str(final))
    if dist.is_initialized():
        dist.barrier()
    return final


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; a user's error is one line and exit status 2."""
    parser = argparse.ArgumentParser(
        prog="videollm.train", description="Train a temporally grounded video-language model."
    )
    parser.add_argument("--config", required=True, help="YAML file, see configs/")
    parser.add_argument("--local_rank", "--local-rank", help=argparse.SUPPRESS)  # the deepspeed launcher adds it
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="train.steps=100 data.videos=DIR ...")
    args = parser.parse_intermixed_args(argv)
    try:
        final = train(build(Settings, override(read_yaml(args.config), args.overrides)))
    except (AnnotationError, BadVideosError, CheckpointError, ConfigError) as error:
        return tell(error)
    if int(os.environ.get("RANK", 0)) == 0:
        print(f"final model: {final}")
    if dist.is_initialized():
        dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
