"""transformers' Trainer with what this project needs of it, and no more.

Loss terms are divided by their counts over the whole optimisation step (all ranks, all accumulated batches); every
term is logged; videos that could not be read are counted, named and limited; validation answers questions by free
generation, because teacher forcing shows a head the true frames.
"""

import errno
import json
import math
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback

from videollm.batches.batch import Batch
from videollm.batches.order import LengthGroupedSampler, TokenBudgetBatches, item_lengths, item_sizes
from videollm.checkpoint.bundle import Bundle
from videollm.common.config import ConfigError
from videollm.common.processes import out_of_memory
from videollm.training import saving
from videollm.training.optimizer import parameter_groups
from videollm.training.saving import Facts, SaveError
from videollm.training.settings import Settings

TORCH_SAVE = ("inline_container", "PytorchStreamWriter")  # named in what it raises on a full disk
# What transformers does not save: counts of the run, and the sums behind the next log entry.
PROGRESS = ("skipped", "first_bad", "padded", "term_sums", "term_steps", "_tr_loss", "_globalstep_last_logged")


class BadVideosError(RuntimeError):
    """More videos could not be read than the config tolerates."""


class OutOfMemory(RuntimeError):
    """A step did not fit into memory; the message names its batches and their largest sample."""


class VideoTrainer(Trainer):
    """See the module's docstring.

    Args:
        bundle: the model and its tokenizers.
        settings: the run's settings.
        validate: called on every rank without arguments, in evaluation mode; returns {metric: value}. Or None.
    """

    def __init__(self, bundle: Bundle, settings: Settings, validate=None, **kwargs):
        self.bundle, self.settings, self.validate = bundle, settings, validate
        self.term_sums: dict[str, torch.Tensor] = {}
        self.term_steps = 0
        self.skipped = torch.zeros(2)  # unreadable and thinned items so far, over all ranks
        self.first_bad = ""  # of this rank
        self.padded = torch.zeros(2)  # padded and all places since the last log, of this rank
        self.step_batches: list[Batch] = []  # of the step that runs
        self.writes_checkpoint = False
        super().__init__(model=bundle.model, processing_class=bundle.tokenizer, **kwargs)

    # ---- loss ------------------------------------------------------------------------------------------------------

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> dict[str, torch.Tensor] | None:
        """Counts of every loss term over this optimisation step, summed over ranks; bad videos are counted too."""
        if not batch_samples:
            return None
        total: dict[str, torch.Tensor] = {}
        self.step_batches = batch_samples
        for batch in batch_samples:
            self._note_bad(batch.bad)
            self.padded += torch.tensor(batch.padded)
            counts = self.bundle.model.counts(batch) | {
                "bad": torch.tensor(float(len(batch.bad))),
                "thinned": torch.tensor(float(batch.thinned)),
            }
            for name, value in counts.items():
                total[name] = total.get(name, 0.0) + value.to(device, torch.float32)
        self.skipped = self.skipped.to(device)
        names = sorted(total)
        values = torch.stack([total[n] for n in names])
        if dist.is_initialized():
            dist.all_reduce(values)
        total = dict(zip(names, values.unbind(), strict=True))
        self.term_steps += 1
        # Counted on the device and looked at when logging, so that no step waits for the number.
        self.skipped = self.skipped + torch.stack([total.pop("bad"), total.pop("thinned")])
        return total

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """This micro-batch's part of the step's loss, times the ranks (whose gradients are averaged)."""
        output = model(batch=inputs, counts=num_items_in_batch)
        for name, value in output.terms.items():
            self.term_sums[name] = self.term_sums.get(name, 0.0) + value
        loss = output.loss * self.args.world_size
        return (loss, output) if return_outputs else loss

    def floating_point_ops(self, inputs: Batch) -> int:
        """transformers' own rule: 6 a parameter and token."""
        return 6 * inputs.input_ids.numel() * self.model.num_parameters(exclude_embeddings=True)

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        """Add every loss term, averaged over the steps since the last log."""
        bad, thinned = map(int, self.skipped.tolist())
        self._limit_bad(bad)
        if "loss" in logs and self.term_sums:
            names = sorted(self.term_sums)
            values = torch.stack([self.term_sums[n].float() for n in names])
            values = torch.cat([values, self.padded.to(values.device)])
            if dist.is_initialized():
                dist.all_reduce(values)
            *terms, padded, places = values.tolist()
            logs = logs | {name: term / max(1, self.term_steps) for name, term in zip(names, terms, strict=True)}
            logs |= {"bad_videos": bad, "thinned_videos": thinned, "padding_share": padded / max(1.0, places)}
            self.term_sums, self.term_steps, self.padded = {}, 0, torch.zeros(2)
        super().log(logs, *args, **kwargs)

    # ---- bad videos ------------------------------------------------------------------------------------------------

    def _note_bad(self, bad: list[str]) -> None:
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
                f"{Path(self.args.output_dir) / 'skipped.jsonl'}: mend or remove them, or raise the fraction"
            )

    # ---- the run ---------------------------------------------------------------------------------------------------

    def train(self, *args, **kwargs):
        """transformers' loop; OutOfMemory where a step does not fit."""
        try:
            return super().train(*args, **kwargs)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
                raise
            raise unsaved(error.filename or self.args.output_dir, error) from None
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            where = self._describe_step() if self.bundle.model.training else "in validation"
            rank = f" on rank {self.args.process_index}" if self.args.world_size > 1 else ""
            raise OutOfMemory(
                f"out of memory in step {self.state.global_step + 1}{rank}, {where}; lower train.batch_size (and raise "
                "train.accumulation), data.max_length or the frames of data.sampler, or set "
                "train.gradient_checkpointing=true; python -m videollm.memory --config FILE tells beforehand what fits "
                f"({str(error).splitlines()[0]})"
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

    def _init_training_state(self, max_steps, *args, **kwargs):
        """Intervals are those of this run; transformers would keep those of the checkpoint."""
        place = super()._init_training_state(max_steps, *args, **kwargs)
        self.state.compute_steps(self.args, max_steps)
        return place

    def _run_epoch(self, *, epoch, epochs_trained, resume_from_checkpoint, **rest):
        """One pass; none behind the last step, where transformers would still make one."""
        if resume_from_checkpoint is not None and epoch == epochs_trained:
            self._go_on_from(Path(resume_from_checkpoint))
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(
                epoch=epoch, epochs_trained=epochs_trained, resume_from_checkpoint=resume_from_checkpoint, **rest
            )

    # ---- order -----------------------------------------------------------------------------------------------------

    def _get_train_sampler(self, train_dataset=None):
        """Items in random order, or in one that puts similar lengths together (``train.group_by_length``)."""
        dataset = train_dataset if train_dataset is not None else self.train_dataset
        if not self.settings.train.group_by_length:
            return super()._get_train_sampler(train_dataset)
        size, ranks = self.settings.train.batch_size, self.args.world_size
        return LengthGroupedSampler(dataset, item_lengths(dataset), size, ranks, self.settings.train.seed)

    def get_train_dataloader(self) -> DataLoader:
        """transformers' own, or batches that fill a budget of tokens (``train.max_tokens_per_batch``)."""
        budget, dataset = self.settings.train.max_tokens_per_batch, self.train_dataset
        if budget is None:
            return super().get_train_dataloader()
        sizes, ranks = item_sizes(dataset, "train.max_tokens_per_batch"), self.args.world_size
        aligned = self.data_collator.split_prefix
        loader = DataLoader(
            dataset,
            batch_sampler=TokenBudgetBatches(dataset, sizes, budget, ranks, self.settings.train.seed, aligned),
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
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
    def writing(self, name: str, facts: Facts | None = None):
        """The folder to write ``name`` of the output into, on every rank; it is put in place once all have.

        Raises:
            SaveError: it could not be written; what was there is as it was.
        """
        output, first = Path(self.args.output_dir), self.args.process_index == 0
        try:
            if first:
                saving.start(output, name)
            self.accelerator.wait_for_everyone()
            yield saving.staged(output, name)
            self.accelerator.wait_for_everyone()
            if first:
                saving.publish(output, name, facts)
        except (OSError, SafetensorError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not any(name in str(error) for name in TORCH_SAVE):
                raise
            raise unsaved(f"{name} into {output}", error) from None
        self.accelerator.wait_for_everyone()

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the model into a folder of the output, all of it or nothing."""
        if _internal_call:  # a part of a checkpoint, which is put in place as a whole
            super().save_model(output_dir, _internal_call=True)
            return
        with self.writing(Path(output_dir).name) as folder:
            super().save_model(str(folder), _internal_call=True)

    def _save(self, output_dir: str, state_dict: dict | None = None) -> None:
        """One folder that ``checkpoint.load`` takes."""
        if self.args.should_save:
            self.bundle.save(output_dir, state_dict)
            torch.save(self.args, Path(output_dir) / "training_args.bin")

    def _save_checkpoint(self, model, trial) -> None:
        """Everything that exact resuming needs, all of it or nothing; only the last few are kept."""
        step, rank = self.state.global_step, self.args.process_index
        plugin = getattr(self.accelerator.state, "deepspeed_plugin", None)
        stage = plugin.zero_stage if self.is_deepspeed_enabled else None
        facts = Facts(step, self.args.world_size, stage, len(self.train_dataset))
        self.writes_checkpoint = True
        with self.writing(f"checkpoint-{step}", facts) as folder:
            super()._save_checkpoint(model, trial)
            progress = {name: getattr(self, name) for name in PROGRESS}
            torch.save(progress, folder / f"progress_{rank}.pt")
        self.writes_checkpoint = False
        if rank == 0:
            saving.keep_last(Path(self.args.output_dir), self.settings.train.keep, step)

    def _get_output_dir(self, trial) -> str:
        """Where transformers writes a checkpoint."""
        folder = super()._get_output_dir(trial)
        return str(Path(folder) / saving.STAGING) if self.writes_checkpoint else folder

    def _go_on_from(self, checkpoint: Path) -> None:
        """Take up what was counted and summed since the last log, so that the next entry is the unbroken run's."""
        progress = torch.load(checkpoint / f"progress_{self.args.process_index}.pt", "cpu", weights_only=True)
        for name in PROGRESS:
            setattr(self, name, progress[name])
        device = self.args.device
        self._tr_loss = self._tr_loss.to(device)
        self.term_sums = {name: value.to(device) for name, value in self.term_sums.items()}


def unsaved(what: str, error: Exception) -> SaveError:
    """The error that something could not be written."""
    reason = " ".join(str(error).split())[:200]
    return SaveError(
        f"train.output: cannot write {what} ({reason}); what was saved before is whole: make room, then go on with "
        "train.resume=true"
    )


class FreshFrames(TrainerCallback):
    """Tells the data set its epoch; accelerate does so only where one process reads the data."""

    def on_epoch_begin(self, args, state, control, train_dataloader=None, **kwargs):
        """Frames drawn at random are drawn anew."""
        train_dataloader.dataset.set_epoch(int(state.epoch or 0))


class JsonLog(TrainerCallback):
    """Writes every log entry as a line of ``log.jsonl``."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Append one entry."""
        if state.is_world_process_zero and logs:
            with open(Path(args.output_dir) / "log.jsonl", "a", encoding="utf-8") as out:
                out.write(json.dumps({"step": state.global_step, **logs}) + "\n")
