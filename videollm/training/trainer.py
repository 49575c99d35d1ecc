"""transformers' Trainer with what this project needs of it, through its public hooks alone.

Loss terms are divided by their counts over the whole optimisation step (all ranks, all accumulated batches); every
term is logged; videos that could not be read are counted, named and limited; validation answers questions by free
generation, because teacher forcing shows a head the true frames. A checkpoint is what transformers writes into its
folder and what ``on_save`` adds behind it, the manifest last.
"""

import errno
import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from torch.utils.data import DataLoader, RandomSampler
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback

from videollm.batches.batch import Batch
from videollm.batches.order import LengthGroupedSampler, TokenBudgetBatches
from videollm.checkpoint import Bundle
from videollm.common.config import ConfigError, UserError
from videollm.common.processes import out_of_memory
from videollm.training import saving
from videollm.training.optimizer import parameter_groups
from videollm.training.preemption import outlive_signal
from videollm.training.runfolder import kept_lengths
from videollm.training.saving import Facts, SaveError
from videollm.training.settings import Settings, TrainSettings

TORCH_SAVE = ("inline_container", "PytorchStreamWriter")  # named in what it raises on a full disk
# What transformers does not save: counts of the run, and the sums behind the next log entry.
PROGRESS = ("skipped", "first_bad", "padded", "term_sums", "term_steps", "without")
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


class BadVideosError(UserError, RuntimeError):
    """More videos could not be read than the config tolerates."""


class OutOfMemory(UserError, RuntimeError):
    """A step did not fit into memory; the message names its batches and their largest sample."""


def smaller(train: TrainSettings) -> str:
    """What a run can do whose step does not fit into memory."""
    same = []  # what it can go on with
    if train.batch_size > 1 and not train.group_by_length:
        same.append("lower train.batch_size and raise train.accumulation as much")
    if not train.gradient_checkpointing:
        same.append("set train.gradient_checkpointing=true")
    new = "start a new run with a lower data.max_length, fewer frames (data.sampler) or train.max_tokens_per_batch"
    return f"{' or '.join(same)} and resume; or {new}" if same else new


class Progress(ProgressCallback):
    """transformers' bar and log lines, each with its step."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Print one line."""
        super().on_log(args, state, control, {"step": f"{state.global_step}/{state.max_steps}", **logs}, **kwargs)


class VideoTrainer(Trainer, TrainerCallback):
    """See the module's docstring. It is a callback of its own.

    Args:
        bundle: the model and its tokenizers.
        settings: the run's settings.
        validate: called on every rank without arguments, in evaluation mode; returns {metric: value}. Or None. Its
            ``questions`` are a digest of what it asks.
    """

    def __init__(self, bundle: Bundle, settings: Settings, validate=None, **kwargs):
        self.bundle, self.settings, self.validate = bundle, settings, validate
        self.term_sums: dict[str, torch.Tensor] = {}  # of the loss and its terms since the last log, of this rank
        self.term_steps = 0  # optimisation steps since the last log
        self.without: dict[str, torch.Tensor] = {}  # of these, those in which a number was the mean of nothing
        self.skipped = torch.zeros(2)  # unreadable and thinned items so far, over all ranks
        self.first_bad = ""  # of this rank
        self.padded = torch.zeros(2)  # padded and all places since the last log, of this rank
        self.step_batches: list[Batch] = []  # of the step that runs
        self.resumed: Path | None = None  # the checkpoint that the run goes on from
        self.written: Path | None = None  # the folder of the output that is being written
        super().__init__(model=bundle.model, processing_class=bundle.tokenizer, **kwargs)
        for printing in (ProgressCallback, PrinterCallback):
            self.remove_callback(printing)
        self.add_callback(Progress())
        self.add_callback(self)

    # ---- a step ----------------------------------------------------------------------------------------------------

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device) -> tuple:
        """The batches of an optimisation step on this rank, and the counts of its loss terms over all ranks.

        What the batches say of themselves is noted. No batches where the run is over.
        """
        batches = [] if self.control.should_training_stop else list(islice(epoch_iterator, num_batches))
        if not batches:
            return [], None
        with self.accelerator.autocast():
            batches = self.bundle.model.objective.made(batches, self.state.global_step)
        self.step_batches = batches
        self.padded += sum(torch.tensor(batch.padded) for batch in batches)
        self._name_bad([name for batch in batches for name in batch.bad])
        counts = self._counts(batches, device)
        # Counted on the device and looked at when logging, so that no step waits for the number.
        self.skipped = self.skipped.to(device) + torch.stack([counts.pop("bad"), counts.pop("thinned")])
        self.term_steps += 1
        for name in self.bundle.model.objective.logged:
            self.without[name] = self.without.get(name, 0) + (counts[name] == 0)
        return batches, counts

    def _counts(self, batches: list[Batch], device: torch.device) -> dict[str, torch.Tensor]:
        """Counts of every loss term, and of items that were unreadable or thinned, over ``batches`` and all ranks."""
        found = []
        for batch in batches:
            items = {"bad": len(batch.bad), "thinned": batch.thinned}
            # Made on the device: a copy of Python's numbers would wait for it.
            items = {name: torch.full((), float(number), device=device) for name, number in items.items()}
            found.append(self.bundle.model.counts(batch) | items)
        names = sorted(found[0])
        total = sum(torch.stack([of[name].to(device, torch.float32) for name in names]) for of in found)
        if dist.is_initialized():
            dist.all_reduce(total)
        return dict(zip(names, total.unbind(), strict=True))

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """This micro-batch's part of the step's loss, times the ranks (whose gradients are averaged)."""
        output = model(batch=inputs, counts=num_items_in_batch)
        for name, value in (output.terms | {"loss": output.loss.detach()}).items():
            self.term_sums[name] = self.term_sums.get(name, 0.0) + value.float()
        loss = output.loss * self.args.world_size
        return (loss, output) if return_outputs else loss

    def floating_point_ops(self, inputs: Batch) -> int:
        """transformers' own rule: 6 a parameter and token."""
        return 6 * inputs.input_ids.numel() * self.model.num_parameters(exclude_embeddings=True)

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        """Add the loss and its terms, averaged over the steps since the last log; write a line of ``log.jsonl``.

        What is no loss is averaged over the steps in which it was the mean of something, and else left out.
        """
        bad, thinned = map(int, self.skipped.tolist())
        self._limit_bad(bad)
        if "loss" in logs and self.term_sums:
            names = sorted(self.term_sums)
            values = torch.stack([self.term_sums[n] for n in names])
            values = torch.cat([values, self.padded.to(values.device)])
            if dist.is_initialized():
                dist.all_reduce(values)
            *terms, padded, places = values.tolist()
            steps = [self.term_steps - int(self.without.get(name, 0)) for name in names]
            logs = logs | {name: term / of for name, term, of in zip(names, terms, steps, strict=True) if of}
            logs |= {"bad_videos": bad, "thinned_videos": thinned, "padding_share": padded / max(1.0, places)}
            self.term_sums, self.term_steps, self.without, self.padded = {}, 0, {}, torch.zeros(2)
        super().log(logs, *args, **kwargs)
        if self.is_world_process_zero():
            with open(Path(self.args.output_dir) / "log.jsonl", "a", encoding="utf-8") as out:
                out.write(json.dumps({"step": self.state.global_step, **logs}) + "\n")

    def _name_bad(self, bad: list[str]) -> None:
        """Name unreadable videos in ``skipped.jsonl``."""
        if bad:
            self.first_bad = self.first_bad or f", here first {bad[0]}"
            with open(Path(self.args.output_dir) / "skipped.jsonl", "a", encoding="utf-8") as out:
                out.writelines(json.dumps({"step": self.state.global_step, "video": b}) + "\n" for b in bad)

    def _limit_bad(self, bad: int) -> None:
        """Stop past the tolerated share of the data."""
        allowed = self.settings.data.max_bad_fraction
        passes = max(1, math.ceil(self.state.epoch or 0))  # a bad video is met again in every pass over the data
        if bad > allowed * len(self.train_dataset) * passes:
            raise BadVideosError(
                f"{bad} training items could not be read, of {len(self.train_dataset)} "
                f"(data.max_bad_fraction={allowed}){self.first_bad}; all are named in "
                f"{Path(self.args.output_dir) / 'skipped.jsonl'}: mend them or raise the fraction, and resume"
            )

    # ---- the run ---------------------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | None = None, **kwargs):
        """transformers' loop; OutOfMemory where a step does not fit, SaveError where a file cannot be written."""
        self.resumed = Path(resume_from_checkpoint) if resume_from_checkpoint else None
        with self._explaining():
            return super().train(resume_from_checkpoint, **kwargs)

    @contextmanager
    def _explaining(self) -> Iterator[None]:
        """Memory and disk that do not suffice become one message."""
        try:
            yield
        except (OSError, SafetensorError, RuntimeError, MemoryError) as error:
            reason, output = " ".join(str(error).split())[:200], self.args.output_dir
            if out_of_memory(error):
                where = self._describe_step() if self.bundle.model.training else "in validation"
                where = f"while writing {self.written.name}" if self.written else where
                rank = f" on rank {self.args.process_index}" if self.args.world_size > 1 else ""
                fits = "videollm memory --config FILE tells beforehand what fits"
                remedy = f"{smaller(self.settings.train)}; {fits}"
                raise OutOfMemory(
                    f"out of memory in step {self.state.global_step + 1}{rank}, {where}; {remedy} ({reason})"
                ) from None
            other = isinstance(error, RuntimeError) and not any(name in str(error) for name in TORCH_SAVE)
            if other or not (self.written or getattr(error, "errno", None) in FULL):
                raise
            what = f"{self.written.name} into {output}" if self.written else error.filename or output
            raise SaveError(
                f"train.output: cannot write {what} ({reason}); what was saved before is whole: make room, then go on "
                "with train.resume=true"
            ) from None

    def _describe_step(self) -> str:
        """The batches of the step that runs, and the largest sample among them."""
        shapes, largest = [], (0, 0, "none")
        for batch in self.step_batches:
            segments = batch.segment_ids.cpu()
            frames = torch.bincount(batch.frame_row.cpu(), minlength=len(segments))
            shapes.append(f"{segments.shape[0]} rows x {segments.shape[1]} tokens with {int(frames.sum())} frames")
            questions = segments.amax(1)  # of each row; more than one behind a shared prefix
            packed = int(questions.sum()) == len(batch.ids)
            first = (questions.cumsum(0) - questions) if packed else range(len(batch.ids))
            for row, at in enumerate(map(int, first)):
                size = (int((segments[row] >= 0).sum()), int(frames[row]), batch.ids[at])
                largest = max(largest, size)
        return (
            f"in batches of {'; '.join(shapes)}; the largest sample is {largest[2]} with {largest[0]} tokens and "
            f"{largest[1]} frames"
        )

    # ---- order -----------------------------------------------------------------------------------------------------

    def get_train_dataloader(self) -> DataLoader:
        """Items in random order or in one of the objective's, in one that puts similar lengths together, or in batches
        that fill a budget."""
        dataset, train, ranks = self.train_dataset, self.settings.train, self.args.world_size
        kept = kept_lengths(self.settings)
        if train.max_tokens_per_batch is not None:
            sizes, aligned = kept.item_sizes(dataset, "train.max_tokens_per_batch"), self.data_collator.split_prefix
            batches = TokenBudgetBatches(dataset, sizes, train.max_tokens_per_batch, ranks, train.seed, aligned)
            order = {"batch_sampler": batches}
        elif train.group_by_length:
            lengths, size = kept.item_sizes(dataset, "train.group_by_length").sum(1), train.batch_size
            order = {"sampler": LengthGroupedSampler(dataset, lengths, size, ranks, train.seed), "batch_size": size}
        else:
            own = self.bundle.model.objective.order(dataset, self.settings)
            order = {"sampler": own or RandomSampler(dataset), "batch_size": train.batch_size}
        loader = DataLoader(
            dataset,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
            worker_init_fn=outlive_signal,
            **order,
        )
        return self.accelerator.prepare(loader)

    # ---- optimiser -------------------------------------------------------------------------------------------------

    def create_optimizer(self, *args, **kwargs):
        """AdamW with a learning rate and weight decay by part; see ``parameter_groups``."""
        if self.optimizer is None:
            groups = parameter_groups(self.bundle.model, self.settings)
            cls, options = self.get_optimizer_cls_and_kwargs(self.args, self.bundle.model)
            self.optimizer = cls(groups, **options)
        return self.optimizer

    # ---- validation and saving ---------------------------------------------------------------------------------------

    def evaluate(self, *_args, metric_key_prefix: str = "eval", **_kwargs) -> dict[str, float]:
        """Validation by free generation; a new best of ``train.best`` is saved in ``output/best``."""
        self.bundle.model.eval()
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in self.validate().items()}
        self.bundle.model.train()
        self.log(metrics)
        best = self.settings.train.best
        self.bundle.model.objective.validated(f"{metric_key_prefix}_{best}" if best else next(iter(metrics)))
        if best:
            value = metrics.get(f"{metric_key_prefix}_{best}")
            if value is None:
                raise ConfigError(f"train.best: validation gives no {best!r}, only {', '.join(metrics)}")
            # In the state, so that a resumed run does not take a worse model for the best.
            if self.state.best_metric is None or value > self.state.best_metric:
                self.state.best_metric = value
                self.save_model(str(Path(self.args.output_dir) / "best"))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """The folder to write a model ``name`` into, on every rank; it is put in place once all have.

        Raises:
            SaveError: it could not be written; what was there is as it was.
        """
        self.written = Path(self.args.output_dir) / name
        with self._explaining():
            self._first_alone(saving.begin, saving.staged(self.written))
            yield saving.staged(self.written)
            self._first_alone(saving.publish, self.written)
        self.written = None

    def _first_alone(self, act: Callable, *args) -> None:
        """Once all ranks are here, rank 0 does something; then all go on."""
        self.accelerator.wait_for_everyone()
        if self.args.process_index == 0:
            act(*args)
        self.accelerator.wait_for_everyone()

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write a folder that ``checkpoint.load`` takes, all of it or nothing.

        For transformers (``_internal_call``) it is the beginning of a checkpoint, which ``on_save`` ends.
        """
        if _internal_call:
            self.written = Path(output_dir)
            self._first_alone(saving.begin, self.written)
            self._write_model(self.written)
        else:
            with self.writing(Path(output_dir).name) as folder:
                self._write_model(folder)

    def _write_model(self, folder: Path) -> None:
        """Rank 0 writes; DeepSpeed gathers from all ranks."""
        state = self.accelerator.get_state_dict(self.model_wrapped) if self.is_deepspeed_enabled else None
        if self.args.process_index == 0:
            self.bundle.save(folder, state)
            torch.save(self.args, folder / "training_args.bin")

    def on_save(self, args, state, control, **kwargs) -> None:
        """Add to a checkpoint what transformers has not written; the manifest once every rank has."""
        folder, train = self.written, self.settings.train
        progress = {name: getattr(self, name) for name in PROGRESS} | {"objective": self.bundle.model.objective.state()}
        torch.save(progress, folder / f"progress_{args.process_index}.pt")
        stage = self.accelerator.state.deepspeed_plugin.zero_stage if self.is_deepspeed_enabled else None
        asked = self.validate.questions if self.validate else None
        facts = Facts(state.global_step, args.world_size, stage, len(self.train_dataset), asked)
        self._first_alone(saving.finish, folder, facts, train.keep)
        self.written = None

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        """Go on with this run's intervals up to its last step, and from what was summed since the last log."""
        state.compute_steps(args, state.max_steps)  # transformers keeps those of the checkpoint
        control.should_training_stop = state.global_step >= state.max_steps  # it would make one more step
        if self.resumed is not None:
            progress = torch.load(self.resumed / f"progress_{args.process_index}.pt", "cpu", weights_only=True)
            if "_tr_loss" in progress:  # by older code: transformers' own sum, of the loss times the ranks
                progress["term_sums"]["loss"] = progress["_tr_loss"] / args.world_size
            for name in PROGRESS:
                setattr(self, name, progress.get(name, getattr(self, name)))
            self.bundle.model.objective.resume(progress.get("objective", {}))  # older code wrote none
            for sums in (self.term_sums, self.without):
                sums |= {name: value.to(args.device) for name, value in sums.items()}

    def on_epoch_begin(self, args, state, control, **kwargs) -> None:
        """Frames drawn at random are drawn anew; accelerate says so only where one process reads the data."""
        self.train_dataset.set_epoch(int(state.epoch or 0))
